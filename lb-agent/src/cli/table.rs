//! The one renderer of tables.

use core::fmt;

use comfy_table::{Table as Grid, presets::NOTHING};

/// Spaces between two columns.
const GAP: u16 = 2;

/// Columns of text, aligned by spaces, so that `grep`, `awk` and `cut` can read them.
pub(super) struct Table {
    grid: Grid,
}

impl Table {
    /// A table with headings.
    pub(super) fn new<const N: usize>(headings: [&str; N]) -> Self {
        let mut table = Self::facts();
        table.grid.set_header(headings);
        table
    }

    /// A table without headings: name, value.
    pub(super) fn facts() -> Self {
        let mut grid = Grid::new();
        grid.load_style(NOTHING);
        Self { grid }
    }

    /// Adds a row. An empty cell is shown as `-`, so that every row has the same number of words.
    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.grid.add_row(cells.map(|cell| if cell.is_empty() { "-".to_owned() } else { cell }));
    }

    /// Adds a fact.
    pub(super) fn fact(&mut self, name: &str, value: impl fmt::Display) {
        self.row([name.to_owned(), value.to_string()]);
    }

    /// The text, without a line break at the end.
    pub(super) fn render(mut self) -> String {
        self.grid.discover_columns();
        self.grid.column_iter_mut().for_each(|column| {
            column.set_padding((0, GAP));
        });
        self.grid.trim_fmt()
    }
}

/// A heading and one line per item, or nothing if there is no item.
pub(super) fn section(heading: &str, items: &[String]) -> Option<String> {
    let lines = items.iter().map(|item| format!("\n  {item}"));
    (!items.is_empty()).then(|| format!("{heading}:{}", lines.collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_longest_cell_and_lines_end_without_spaces() {
        let mut table = Table::new(["NAME", "PORT", "KIND"]);
        table.row(["a-long-name".into(), "80".into(), "x".into()]);
        table.row(["b".into(), String::new(), "y".into()]);
        assert_eq!(table.render(), "NAME         PORT  KIND\na-long-name  80    x\nb            -     y");
    }

    #[test]
    fn facts_have_no_heading() {
        let mut table = Table::facts();
        table.fact("agent", "ready");
        table.fact("cgroup", 1);
        assert_eq!(table.render(), "agent   ready\ncgroup  1");
    }

    #[test]
    fn an_empty_section_is_left_out() {
        assert_eq!(section("notices", &[]), None);
        assert_eq!(section("notices", &["a".into(), "b".into()]).as_deref(), Some("notices:\n  a\n  b"));
    }
}
