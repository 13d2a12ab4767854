//! `tests/rules.txt`: the rules, which of them wait, and which have no test yet.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail, ensure};

/// The whole file.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) areas: Vec<Area>,
    /// Rules that have no test yet.
    pub(super) missing: BTreeSet<String>,
}

/// The rules under one heading.
#[derive(Debug)]
pub(super) struct Area {
    pub(super) title: String,
    pub(super) rules: Vec<Rule>,
}

/// One line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) id: String,
    pub(super) waits: Waits,
    pub(super) text: String,
}

/// Whether a rule waits for the packet path.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Waits {
    /// It needs a test.
    No,
    /// This part of it waits, the rest needs a test.
    Part(String),
    /// Only packets can show it.
    Whole,
}

impl Table {
    /// Reads the file: `# heading`, `ID [waits[: PART]] | text`, `missing ID ..`. Comments before the first rule are not
    /// headings.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut table = Self::default();
        let mut heading = String::new();
        for (number, line) in (1..).zip(text.lines()) {
            if let Some(words) = line.strip_prefix("missing ") {
                table.missing.extend(words.split_whitespace().map(str::to_owned));
            } else if let Some(title) = line.strip_prefix("# ") {
                title.clone_into(&mut heading);
            } else if !line.trim().is_empty() && line != "#" {
                let rule = Rule::parse(line).with_context(|| format!("line {number}: {line}"))?;
                ensure!(table.rules().all(|other| other.id != rule.id), "line {number}: {} again", rule.id);
                match table.areas.last_mut() {
                    Some(area) if area.title == heading => area.rules.push(rule),
                    _ => table.areas.push(Area { title: heading.clone(), rules: vec![rule] }),
                }
            }
        }
        if let Some(stranger) = table.missing.iter().find(|id| table.rules().all(|rule| rule.id != **id)) {
            bail!("{stranger} is missing, but no rule");
        }
        Ok(table)
    }

    /// All rules in order.
    pub(super) fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.areas.iter().flat_map(|area| &area.rules)
    }
}

impl Rule {
    fn parse(line: &str) -> Result<Self> {
        let (head, text) = line.split_once(" | ").context("a rule is written `ID | text`")?;
        let (id, waits) = head.split_once(' ').unwrap_or((head, ""));
        let waits = match waits.split_once(": ") {
            None if waits.is_empty() => Waits::No,
            None if waits == "waits" => Waits::Whole,
            Some(("waits", part)) => Waits::Part(part.to_owned()),
            _ => bail!("`{waits}` is neither `waits` nor `waits: PART`"),
        };
        Ok(Self { id: id.to_owned(), waits, text: text.to_owned() })
    }

    /// Whether a test has to name it.
    pub(super) fn needs_test(&self) -> bool {
        self.waits != Waits::Whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_marks_and_the_missing_are_read() {
        let table = Table::parse(
            "# About this file.\n#\n# More.\n\n# One\nA-1 | first\nA-2 waits | second\n\n# Two\nB-1 waits: a half | third\n\nmissing A-1\nmissing B-1\n",
        )
        .unwrap();
        let titles: Vec<&str> = table.areas.iter().map(|area| area.title.as_str()).collect();
        assert_eq!(titles, ["One", "Two"]);
        let waits: Vec<&Waits> = table.rules().map(|rule| &rule.waits).collect();
        assert_eq!(waits, [&Waits::No, &Waits::Whole, &Waits::Part("a half".to_owned())]);
        assert_eq!(table.rules().map(Rule::needs_test).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(table.missing.iter().collect::<Vec<_>>(), ["A-1", "B-1"]);
    }

    #[test]
    fn a_line_that_cannot_be_right_is_named() {
        for (text, part) in [
            ("A-1 first", "line 1: A-1 first"),
            ("A-1 maybe | first", "line 1: A-1 maybe"),
            ("A-1 | first\nA-1 | second", "line 2: A-1 again"),
            ("A-1 | first\nmissing A-2", "A-2 is missing, but no rule"),
        ] {
            let error = format!("{:#}", Table::parse(text).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }
}
