//! `cargo xtask rules`: which test holds which rule.
//!
//! ```text
//! tests/rules.txt          table.rs   the rules, which wait, which have no test yet
//! comments of the tests    scan.rs    which tests name which ids (ids.rs), whatever literals say (literals.rs)
//!         |
//!         v
//! tests/RULES.md           both, for people; stale, it fails the check
//! ```

mod ids;
mod literals;
mod scan;
mod table;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use xtask::paths;

use ids::Known;
use table::{Rule, Table, Waits};

/// What a person writes.
const TABLE: &str = "tests/rules.txt";

/// What this writes.
const PAGE: &str = "tests/RULES.md";

/// Where the scenarios are.
const SCENARIOS: &str = "tests/scenarios";

/// What the verb takes.
#[derive(Args)]
pub(crate) struct Rules {
    /// Write nothing; fail if tests/RULES.md is stale
    #[arg(long)]
    check: bool,
}

impl Rules {
    /// As `--check` makes it.
    pub(crate) const CHECK: Self = Self { check: true };

    /// Writes the page, or compares it, and fails if a rule is not held.
    pub(crate) fn run(&self) -> Result<()> {
        let root = paths::workspace_root();
        let page = root.join(PAGE);
        let table = fs::read_to_string(root.join(TABLE)).with_context(|| format!("cannot read {TABLE}"))?;
        let table = Table::parse(&table).with_context(|| format!("{TABLE} cannot be read"))?;
        let known = Known::new(table.rules().map(|rule| rule.id.clone()));
        let (tests, mut problems) = named(root, &known)?;
        problems.extend(untested(&table, &tests));
        let text = render(&table, &tests)?;
        if !self.check {
            fs::write(&page, &text).with_context(|| format!("cannot write {PAGE}"))?;
        } else if fs::read_to_string(&page).unwrap_or_default() != text {
            problems.push(format!("{PAGE} is stale: `cargo xtask rules` writes it"));
        }
        if problems.is_empty() {
            return Ok(());
        }
        bail!("{}", problems.join("\n"));
    }
}

/// The tests of each rule, sorted.
type Tests = BTreeMap<String, Vec<String>>;

/// Looks through all sources. Also returns ids that there are not, with their place.
fn named(root: &Path, known: &Known) -> Result<(Tests, Vec<String>)> {
    let mut tests = Tests::new();
    let mut problems = Vec::new();
    for path in sources(root)? {
        let text = fs::read_to_string(root.join(&path))
            .with_context(|| format!("cannot read {}", path.display()))?;
        let found = if path.extension().is_some_and(|ending| ending == "rs") {
            scan::rust(&text, &scan::module_of(&path), known)
        } else {
            scan::scenario(&text, &path.display().to_string(), known)
        };
        let place = |(line, word)| format!("{}:{line}: there is no rule {word}", path.display());
        problems.extend(found.unknown.into_iter().map(place));
        let unseen =
            |line| format!("{}:{line}: a bracket stays open, what follows was not read", path.display());
        problems.extend(found.unclosed.map(unseen));
        for (test, ids) in found.tests {
            for id in ids {
                tests.entry(id).or_default().push(test.clone());
            }
        }
    }
    for names in tests.values_mut() {
        names.sort_unstable();
    }
    Ok((tests, problems))
}

/// Rust files of all packages and the scenarios, as paths below `root`, sorted.
fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root)? {
        let package = entry?.path();
        if package.join("Cargo.toml").is_file() {
            for folder in ["src", "tests", "benches"] {
                files(&package.join(folder), "rs", &mut found)?;
            }
        }
    }
    files(&root.join(SCENARIOS), "yaml", &mut found)?;
    let below = |path: PathBuf| path.strip_prefix(root).map(Path::to_owned);
    let mut below = found.into_iter().map(below).collect::<Result<Vec<_>, _>>()?;
    below.sort_unstable();
    Ok(below)
}

/// Files with this ending in a folder and all below; a folder that is not there has none.
fn files(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            files(&path, ending, found)?;
        } else if path.extension().is_some_and(|found| found == ending) {
            found.push(path);
        }
    }
    Ok(())
}

/// What is wrong between the table and the tests.
fn untested(table: &Table, tests: &Tests) -> Vec<String> {
    let judge = |rule: &Rule| {
        let Rule { id, .. } = rule;
        match (tests.contains_key(id), table.missing.contains(id)) {
            (true, true) => Some(format!("{id} has a test: take it off the missing in {TABLE}")),
            (false, false) if rule.needs_test() => {
                Some(format!("{id} has no test: name it above one (`/// {id}.`)"))
            }
            (false, true) if !rule.needs_test() => {
                Some(format!("{id} waits: take it off the missing in {TABLE}"))
            }
            _ => None,
        }
    };
    table.rules().filter_map(judge).collect()
}

/// The page.
fn render(table: &Table, tests: &Tests) -> Result<String> {
    let mut page = String::from(
        "# From rule to test\n\nWritten by `cargo xtask rules` out of [rules.txt](rules.txt) and the comments above the \
         tests. `cargo xtask lint` fails if it is\nstale, if a comment names a rule that there is not, or if a rule has no \
         test and does not wait for the packet path.\n",
    );
    for area in &table.areas {
        write!(page, "\n## {}\n\n| id | rule | tests |\n|---|---|---|\n", area.title)?;
        for rule in &area.rules {
            let mut cell: Vec<String> =
                tests.get(&rule.id).into_iter().flatten().map(|test| format!("`{test}`")).collect();
            match &rule.waits {
                Waits::Whole => cell.push("waits for the packet path".to_owned()),
                Waits::Part(part) => cell.push(format!("waits for the packet path: {part}")),
                Waits::No => {}
            }
            if table.missing.contains(&rule.id) {
                cell.push("**none yet**".to_owned());
            }
            writeln!(page, "| {} | {} | {} |", rule.id, rule.text, cell.join("<br>"))?;
        }
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "# Area\nA-1 | held\nA-2 | not held\nA-3 waits | packets\nA-4 waits: a half | partly\n";

    fn judged(missing: &str, tested: &[&str]) -> Vec<String> {
        let table = Table::parse(&format!("{TEXT}missing {missing}\n")).unwrap();
        let tests = tested.iter().map(|id| ((*id).to_owned(), vec!["a::b".to_owned()])).collect();
        let first_words = |problem: &String| problem.split(':').next().unwrap().to_owned();
        untested(&table, &tests).iter().map(first_words).collect()
    }

    #[test]
    fn a_rule_has_a_test_or_waits_or_is_missing() {
        assert_eq!(judged("A-2", &["A-1", "A-4"]), [""; 0]);
        assert_eq!(judged("", &["A-1", "A-4"]), ["A-2 has no test"]);
        assert_eq!(judged("A-2", &["A-1"]), ["A-4 has no test"]);
    }

    #[test]
    fn the_missing_only_become_fewer() {
        assert_eq!(judged("A-1 A-2", &["A-1", "A-4"]), ["A-1 has a test"]);
        assert_eq!(judged("A-2 A-3", &["A-1", "A-4"]), ["A-3 waits"]);
    }

    #[test]
    fn the_page_says_of_every_rule_who_holds_it() {
        let table = Table::parse(&format!("{TEXT}missing A-2\n")).unwrap();
        let tests = [("A-1".to_owned(), vec!["a::b".to_owned(), "c.yaml".to_owned()])].into();
        let page = render(&table, &tests).unwrap();
        for line in [
            "## Area",
            "| A-1 | held | `a::b`<br>`c.yaml` |",
            "| A-2 | not held | **none yet** |",
            "| A-3 | packets | waits for the packet path |",
            "| A-4 | partly | waits for the packet path: a half |",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in {page}");
        }
    }
}
