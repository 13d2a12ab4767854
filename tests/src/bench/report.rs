//! What `bench-connect` prints: a table per size and family, and the goals that were reached or missed.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;

use super::{stats::Spread, worker::Round};

/// Why writing to a String is never an error.
pub(super) const FITS: &str = "a String takes any text";

/// The lane that the others are compared with, and its twin.
pub const DIRECT: [&str; 2] = ["direct", "direct again"];
/// The lane that is ours.
pub const OURS: &str = "lb-agent";
/// Ours with XDP at the cables.
pub const OURS_XDP: &str = "lb-agent XDP";

/// All rounds of one size and family.
#[derive(Debug, Default, Serialize)]
pub struct Cell {
    /// Services.
    pub size: u32,
    /// 4 or 6.
    pub family: u8,
    /// What is not real about a lane.
    pub remarks: BTreeMap<&'static str, String>,
    /// Rounds by lane, interleaved when they were taken.
    pub rounds: BTreeMap<&'static str, Vec<Round>>,
}

/// One lane of a cell, summed up.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Summary {
    /// Connections per second.
    pub rate: Spread,
    /// Rate over the rate of the two direct lanes in the same round.
    pub ratio: Spread,
    /// connect() in microseconds, medians of rounds: p50, p95, p99.
    pub connect_us: [f64; 3],
    /// p99 over the direct p99 of the same round.
    pub p99_ratio: Spread,
    /// Stalled connections.
    pub stalls: u64,
    /// Failed connections.
    pub failures: u64,
}

impl Cell {
    /// Sums up a lane.
    pub fn summary(&self, lane: &str) -> Option<Summary> {
        let rounds = self.rounds.get(lane)?;
        let direct = |at: usize, value: fn(&Round) -> f64| {
            let values = DIRECT.iter().filter_map(|name| self.rounds.get(name)?.get(at).map(value));
            Spread::of(values).median.max(f64::MIN_POSITIVE)
        };
        let mean_direct = |at: usize| {
            let rates: Vec<f64> =
                DIRECT.iter().filter_map(|name| Some(self.rounds.get(name)?.get(at)?.rate)).collect();
            #[expect(clippy::cast_precision_loss, reason = "two lanes")]
            let count = rates.len().max(1) as f64;
            rates.iter().sum::<f64>() / count
        };
        let middle = |value: fn(&Round) -> f64| Spread::of(rounds.iter().map(value)).median;
        Some(Summary {
            rate: Spread::of(rounds.iter().map(|round| round.rate)),
            ratio: Spread::of(rounds.iter().enumerate().map(|(at, round)| round.rate / mean_direct(at))),
            connect_us: [middle(|round| round.p50), middle(|round| round.p95), middle(|round| round.p99)],
            p99_ratio: Spread::of(
                rounds.iter().enumerate().map(|(at, round)| round.p99 / direct(at, |round| round.p99)),
            ),
            stalls: rounds.iter().map(|round| round.stalls).sum(),
            failures: rounds.iter().map(|round| round.failures).sum(),
        })
    }

    /// The A-A check: median ratio of the two direct lanes.
    pub fn a_a(&self) -> f64 {
        let [one, other] = DIRECT.map(|lane| self.rounds.get(lane).map_or(&[][..], Vec::as_slice));
        Spread::of(one.iter().zip(other).map(|(one, other)| one.rate / other.rate)).median
    }

    /// The cell as a table.
    pub fn table(&self, lanes: &[&'static str]) -> String {
        let mut text = String::new();
        writeln!(text, "\n{} Services, IPv{}, A-A {:.3}", self.size, self.family, self.a_a()).expect(FITS);
        writeln!(
            text,
            "{:<13} {:>8} {:>22} {:>7} {:>7} {:>7} {:>9} {:>6} {:>6}",
            "", "conn/s", "ratio to direct", "p50 us", "p95 us", "p99 us", "p99 ratio", "stalls", "failed"
        )
        .expect(FITS);
        for lane in lanes {
            let Some(summary) = self.summary(lane) else { continue };
            let ratio = summary.ratio;
            let ratio = format!("{:.3} ({:.3}..{:.3})", ratio.median, ratio.min, ratio.max);
            let [p50, p95, p99] = summary.connect_us;
            writeln!(
                text,
                "{lane:<13} {:>8.0} {ratio:>22} {p50:>7.1} {p95:>7.1} {p99:>7.1} {:>9.2} {:>6} {:>6}{}",
                summary.rate.median,
                summary.p99_ratio.median,
                summary.stalls,
                summary.failures,
                self.remarks.get(lane).map_or(String::new(), |remark| format!("  ({remark})")),
            )
            .expect(FITS);
        }
        text
    }
}

/// Says at the end of a lane's line which peers it is slower than.
pub(super) fn mark(below: impl Iterator<Item = &'static str>) -> String {
    let below: Vec<&str> = below.collect();
    if below.is_empty() { String::new() } else { format!("  BELOW {}", below.join(", ")) }
}

/// A goal and what was reached.
#[derive(Debug, Serialize)]
pub struct Goal {
    /// What was asked.
    pub what: String,
    /// What was seen.
    pub seen: f64,
    /// Whether it was reached.
    pub reached: bool,
}

/// Compares with the goals: G1, G2, G13, the p99, the A-A check.
pub fn goals(cells: &[Cell], peers: &[&'static str]) -> Vec<Goal> {
    let mut goals = Vec::new();
    let mut goal = |what: String, seen: f64, reached: bool| goals.push(Goal { what, seen, reached });
    for cell in cells {
        let place = format!("{} Services, IPv{}", cell.size, cell.family);
        let a_a = cell.a_a();
        goal(format!("A-A within 3 %: {place}"), a_a, (a_a - 1.0).abs() <= 0.03);
        let Some(ours) = cell.summary(OURS) else { continue };
        goal(format!("G1 rate >= 0.97 of direct: {place}"), ours.ratio.median, ours.ratio.median >= 0.97);
        goal(
            format!("connect p99 <= 1.1 of direct: {place}"),
            ours.p99_ratio.median,
            ours.p99_ratio.median <= 1.1,
        );
        for peer in peers {
            let Some(theirs) = cell.summary(peer) else { continue };
            // Both as ratios to the direct rate of the same round, so that a drift between rounds does not count.
            let over = ours.ratio.median / theirs.ratio.median;
            goal(format!("G13 rate >= {peer}: {place}"), over, over >= 1.0);
        }
    }
    for family in [4, 6] {
        let ours: Vec<&Cell> = cells.iter().filter(|cell| cell.family == family).collect();
        let (Some(small), Some(large)) = (ours.first(), ours.last()) else { continue };
        let (Some(first), Some(last)) = (small.summary(OURS), large.summary(OURS)) else { continue };
        if small.size != large.size {
            // Ratios to direct, so that a drift of the machine between the two sizes does not count.
            let flat = last.ratio.median / first.ratio.median;
            goal(
                format!("G2 {} over {} Services >= 0.98: IPv{family}", large.size, small.size),
                flat,
                flat >= 0.98,
            );
        }
    }
    goals
}
