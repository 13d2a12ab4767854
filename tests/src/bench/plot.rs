//! Ratio to direct over the number of Services, as an SVG that needs nothing else.

use std::fmt::Write as _;

use super::report::Cell;

/// Why writing to a String is never an error.
const FITS: &str = "a String takes any text";

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const MARGIN: f64 = 56.0;
/// Colour-blind safe (Okabe and Ito).
const COLOURS: [&str; 6] = ["#000000", "#999999", "#0072b2", "#e69f00", "#d55e00", "#009e73"];

/// One line per lane, for one family. The horizontal axis is logarithmic.
pub fn svg(cells: &[Cell], lanes: &[&'static str], family: u8) -> String {
    let cells: Vec<&Cell> = cells.iter().filter(|cell| cell.family == family).collect();
    let largest = cells.iter().map(|cell| cell.size).max().unwrap_or(1).max(2);
    let x = |size: u32| MARGIN + (WIDTH - 2.0 * MARGIN) * f64::from(size).ln() / f64::from(largest).ln();
    let y = |ratio: f64| HEIGHT - MARGIN - (HEIGHT - 2.0 * MARGIN) * (ratio / 1.1).clamp(0.0, 1.0);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{MARGIN}\" y=\"24\">Connections per second, ratio to direct, IPv{family}</text>\n"
    );
    for step in 0..=5_u8 {
        let ratio = f64::from(step) / 5.0;
        let at = y(ratio);
        writeln!(
            text,
            "<line x1=\"{MARGIN}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" \
             text-anchor=\"end\">{ratio:.1}</text>",
            WIDTH - MARGIN,
            MARGIN - 6.0,
            at + 4.0
        ).expect(FITS);
    }
    for cell in &cells {
        writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            x(cell.size),
            HEIGHT - MARGIN + 18.0,
            cell.size
        )
        .expect(FITS);
    }
    for (number, (lane, colour)) in lanes.iter().zip(COLOURS).enumerate() {
        let points: Vec<String> = cells
            .iter()
            .filter_map(|cell| {
                Some(format!("{:.1},{:.1}", x(cell.size), y(cell.summary(lane)?.ratio.median)))
            })
            .collect();
        #[expect(clippy::cast_precision_loss, reason = "a handful of lanes")]
        let row = 40.0 + 16.0 * number as f64;
        writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/><text x=\"{}\" y=\"{row}\" \
             fill=\"{colour}\">{lane}</text>",
            points.join(" "),
            WIDTH - 2.0 * MARGIN - 20.0
        ).expect(FITS);
    }
    text.push_str("</svg>\n");
    text
}
