//! Ids of rules in running text: `EP-3`, `MQ-8a`, `TP-2 to TP-6`; `2.7-external` for what a section says without an id.

use std::collections::BTreeSet;

/// The ids that there are, in the order of their table.
#[derive(Debug)]
pub(super) struct Known {
    ids: Vec<String>,
}

/// What a text says about rules.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Named {
    /// Ids that there are.
    pub(super) ids: BTreeSet<String>,
    /// Words that look like an id and are none.
    pub(super) unknown: BTreeSet<String>,
}

impl Known {
    pub(super) fn new(ids: impl IntoIterator<Item = String>) -> Self {
        Self { ids: ids.into_iter().collect() }
    }

    /// The rules that `text` names. Line breaks in it are blanks.
    pub(super) fn named(&self, text: &str) -> Named {
        let mut named = Named::default();
        // The id right before the word `to`.
        let mut range_from: Option<usize> = None;
        let mut previous: Option<usize> = None;
        for word in text.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))) {
            // The full stop of a sentence is no part of it.
            let word = word.trim_matches('.');
            if word.is_empty() {
                continue;
            }
            let position = self.position(word);
            match (position, range_from.take()) {
                (Some(last), Some(first)) if first <= last && self.same_area(first, last) => {
                    named.ids.extend(self.ids[first..=last].iter().cloned());
                }
                (Some(at), _) => {
                    named.ids.insert(self.ids[at].clone());
                }
                (None, _) if self.looks_like_one(word) => {
                    named.unknown.insert(word.to_owned());
                }
                (None, _) => {}
            }
            if word == "to" {
                range_from = previous;
            }
            previous = position;
        }
        named
    }

    /// Where the rule that `word` names is in the table: its id, or its id and the letter of a part (`CT-9a`).
    fn position(&self, word: &str) -> Option<usize> {
        let find = |id: &str| self.ids.iter().position(|known| known == id);
        find(word).or_else(|| {
            let whole = word.strip_suffix(|c: char| c.is_ascii_lowercase())?;
            // The letter of a part follows the number of a rule.
            find(whole)
        })
    }

    fn looks_like_one(&self, word: &str) -> bool {
        let Some((area, name)) = word.split_once('-') else { return false };
        // A name follows a section's number: `2.7-2.8` are two sections.
        let is_section = area.starts_with(|c: char| c.is_ascii_digit());
        let begins = |c: char| if is_section { c.is_ascii_alphabetic() } else { c.is_ascii_digit() };
        name.starts_with(begins) && self.ids.iter().any(|id| area_of(id) == area)
    }

    fn same_area(&self, first: usize, last: usize) -> bool {
        area_of(&self.ids[first]) == area_of(&self.ids[last])
    }
}

/// `EP` of `EP-3`, `2.7` of `2.7-external`.
fn area_of(id: &str) -> &str {
    id.split('-').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        Known::new(["EP-1", "EP-2", "EP-3", "MQ-8", "MQ-8a", "MQ-8b", "MQ-9", "CT-9"].map(str::to_owned))
    }

    fn named(text: &str) -> (Vec<String>, Vec<String>) {
        let Named { ids, unknown } = known().named(text);
        (ids.into_iter().collect(), unknown.into_iter().collect())
    }

    #[test]
    fn ids_are_found_wherever_they_stand_in_a_sentence() {
        assert_eq!(named("EP-1, (EP-3): what `MQ-9` says.").0, ["EP-1", "EP-3", "MQ-9"]);
        assert_eq!(named("Nothing here: KEP-1669, EP-, EP, UTF-8, XEP-1").0, [""; 0]);
    }

    #[test]
    fn a_range_has_everything_between_its_ends_in_the_order_of_the_table() {
        assert_eq!(named("EP-1 to EP-3").0, ["EP-1", "EP-2", "EP-3"]);
        assert_eq!(named("MQ-8\nto MQ-9").0, ["MQ-8", "MQ-8a", "MQ-8b", "MQ-9"]);
        assert_eq!(named("from EP-1 it goes to EP-3").0, ["EP-1", "EP-3"]);
        assert_eq!(named("EP-3 to MQ-9").0, ["EP-3", "MQ-9"]);
    }

    #[test]
    fn the_letter_of_a_part_means_its_rule_unless_the_rule_has_that_letter() {
        assert_eq!(named("CT-9a and MQ-8a").0, ["CT-9", "MQ-8a"]);
    }

    #[test]
    fn what_a_section_says_has_its_number_and_a_name() {
        let known = Known::new(["2.7-external", "2.7-other-ports"].map(str::to_owned));
        let Named { ids, unknown } = known.named("2.7-other-ports: 2.7, 2.7-2.8, 12.7-x; see 2.7-external.");
        assert_eq!(ids.into_iter().collect::<Vec<_>>(), ["2.7-external", "2.7-other-ports"]);
        assert_eq!(unknown.len(), 0);
        assert_eq!(known.named("2.7-others.").unknown.into_iter().collect::<Vec<_>>(), ["2.7-others"]);
    }

    #[test]
    fn a_number_that_no_rule_of_the_area_has_is_unknown() {
        assert_eq!(named("EP-4, MQ-10, BS-11, EP-1").1, ["EP-4", "MQ-10"]);
    }
}
