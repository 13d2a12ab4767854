//! What upstream's tests came to, and how that differs from the baseline: what they come to with kube-proxy.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

/// First line of a list.
const HEAD: &str = "result\tseconds\ttest";

/// How a test ended, in ginkgo's words.
const PASSED: &str = "passed";
const SKIPPED: &str = "skipped";

/// Tests by name, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Results(BTreeMap<String, Outcome>);

/// What came of one test.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outcome {
    state: String,
    seconds: u64,
}

/// A test that did not end as the baseline says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Difference {
    test: String,
    /// In the baseline; `None`: it is not in it.
    expected: Option<String>,
    /// Now; `None`: it did not run.
    seen: Option<String>,
}

/// The parts of ginkgo's JSON report that matter here (onsi/ginkgo v2, `types/types.go`).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Option<Vec<Spec>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    /// Nanoseconds.
    run_time: u64,
    /// Why it failed, or why it skipped itself; those that were not chosen have none.
    failure: Option<serde::de::IgnoredAny>,
}

impl Results {
    /// Reads ginkgo's report.
    ///
    /// # Errors
    /// It has another form, or no test was chosen.
    pub(super) fn from_report(text: &str) -> Result<Self> {
        let suites: Vec<Suite> = serde_json::from_str(text).context("ginkgo's report has another form")?;
        let specs = suites.into_iter().flat_map(|suite| suite.spec_reports.unwrap_or_default());
        let chosen = specs
            .filter(|spec| spec.leaf_node_type == "It" && (spec.state != SKIPPED || spec.failure.is_some()));
        let results: BTreeMap<_, _> = chosen
            .map(|spec| {
                let mut words = spec.container_hierarchy_texts.unwrap_or_default();
                words.push(spec.leaf_node_text);
                let seconds = (spec.run_time + 500_000_000) / 1_000_000_000;
                (words.join(" "), Outcome { state: spec.state, seconds })
            })
            .collect();
        if results.is_empty() {
            bail!("no test has a name that was asked for");
        }
        Ok(Self(results))
    }

    /// Reads a list as [`fmt::Display`] writes it. Lines that begin with `#` are remarks.
    ///
    /// # Errors
    /// A line has another form: its number is named.
    pub(super) fn from_list(text: &str) -> Result<Self> {
        let mut results = BTreeMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            if line.starts_with('#') || line == HEAD {
                continue;
            }
            let parts: Vec<&str> = line.splitn(3, '\t').collect();
            let [state, seconds, test] = parts[..] else { bail!("line {number} has no three columns") };
            let seconds =
                seconds.parse().with_context(|| format!("line {number}: {seconds} are no seconds"))?;
            results.insert(test.to_owned(), Outcome { state: state.to_owned(), seconds });
        }
        Ok(Self(results))
    }

    /// How many ended how, such as `128 passed, 3 skipped`.
    pub(super) fn summary(&self) -> String {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for outcome in self.0.values() {
            *counts.entry(&outcome.state).or_default() += 1;
        }
        counts.iter().map(|(state, count)| format!("{count} {state}")).collect::<Vec<_>>().join(", ")
    }

    /// What ended otherwise than `baseline` says. Tests that did not run count when `all` were asked for.
    pub(super) fn differences(&self, baseline: &Self, all: bool) -> Vec<Difference> {
        let mut tests: Vec<&String> = self.0.keys().collect();
        if all {
            tests.extend(baseline.0.keys().filter(|test| !self.0.contains_key(*test)));
        }
        tests.sort_unstable();
        let state = |results: &Self, test: &str| results.0.get(test).map(|outcome| outcome.state.clone());
        let differences = tests.into_iter().map(|test| Difference {
            test: test.clone(),
            expected: state(baseline, test),
            seen: state(self, test),
        });
        differences.filter(|difference| difference.expected != difference.seen).collect()
    }
}

impl Difference {
    /// Whether a test that passes in the baseline does not, or one that the baseline does not know fails.
    pub(super) fn is_worse(&self) -> bool {
        let is_well = |state: &Option<String>| matches!(state.as_deref(), Some(PASSED | SKIPPED));
        match self.expected.as_deref() {
            Some(PASSED) => self.seen.as_deref() != Some(PASSED),
            Some(_) => false,
            None => !is_well(&self.seen),
        }
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEAD}")?;
        for (test, Outcome { state, seconds }) in &self.0 {
            writeln!(f, "{state}\t{seconds}\t{test}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = |state: &Option<String>| state.clone().unwrap_or_else(|| "absent".to_owned());
        let mark = if self.is_worse() { "WORSE" } else { "other" };
        write!(f, "{mark}  {} -> {}  {}", state(&self.expected), state(&self.seen), self.test)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xtask::paths::workspace_root;

    fn list(lines: &[(&str, &str)]) -> Results {
        let lines: Vec<String> = lines.iter().map(|(state, test)| format!("{state}\t1\t{test}\n")).collect();
        Results::from_list(&lines.concat()).unwrap()
    }

    #[test]
    fn a_report_gives_the_tests_that_ran_or_skipped_themselves() {
        let report = r#"[{"SpecReports": [
            {"ContainerHierarchyTexts": ["[sig-network] Services"], "LeafNodeType": "It", "LeafNodeText": "should serve",
             "State": "passed", "RunTime": 1600000000},
            {"ContainerHierarchyTexts": ["[sig-network]"], "LeafNodeType": "It", "LeafNodeText": "needs more nodes",
             "State": "skipped", "RunTime": 0, "Failure": {"Message": "2 nodes"}},
            {"ContainerHierarchyTexts": null, "LeafNodeType": "It", "LeafNodeText": "not chosen",
             "State": "skipped", "RunTime": 0},
            {"ContainerHierarchyTexts": null, "LeafNodeType": "SynchronizedBeforeSuite", "LeafNodeText": "",
             "State": "passed", "RunTime": 0}
        ]}, {"SpecReports": null}]"#;
        let results = Results::from_report(report).unwrap();
        assert_eq!(
            results.to_string(),
            "result\tseconds\ttest\n\
             passed\t2\t[sig-network] Services should serve\n\
             skipped\t0\t[sig-network] needs more nodes\n"
        );
        assert_eq!(results.summary(), "1 passed, 1 skipped");
        assert_eq!(Results::from_list(&results.to_string()).unwrap(), results);
    }

    #[test]
    fn a_report_without_a_chosen_test_is_an_error() {
        let error = Results::from_report(r#"[{"SpecReports": []}]"#).unwrap_err().to_string();
        assert!(error.contains("no test"), "{error}");
    }

    #[test]
    fn a_test_that_passes_with_kube_proxy_must_pass() {
        let baseline =
            list(&[("passed", "a"), ("passed", "b"), ("passed", "c"), ("failed", "d"), ("skipped", "e")]);
        let seen =
            list(&[("passed", "a"), ("failed", "b"), ("skipped", "c"), ("passed", "d"), ("failed", "f")]);
        let differences = seen.differences(&baseline, true);
        let worse: Vec<&str> =
            differences.iter().filter(|it| it.is_worse()).map(|it| it.test.as_str()).collect();
        assert_eq!(worse, ["b", "c", "f"]);
        let names: Vec<&str> = differences.iter().map(|it| it.test.as_str()).collect();
        assert_eq!(names, ["b", "c", "d", "e", "f"]);
    }

    #[test]
    fn a_test_of_the_baseline_that_did_not_run_counts_only_when_all_were_asked_for() {
        let (baseline, seen) = (list(&[("passed", "a"), ("passed", "b")]), list(&[("passed", "a")]));
        assert_eq!(seen.differences(&baseline, false), []);
        let differences = seen.differences(&baseline, true);
        assert_eq!(differences.len(), 1);
        assert!(differences[0].is_worse());
        assert_eq!(differences[0].to_string(), "WORSE  passed -> absent  b");
    }

    #[test]
    fn the_checked_in_baseline_is_a_list() {
        let text = std::fs::read_to_string(workspace_root().join("tests/cluster/baseline.tsv")).unwrap();
        let baseline = Results::from_list(&text).unwrap();
        assert!(baseline.0.len() > 100, "{}", baseline.summary());
        assert!(baseline.0.keys().all(|test| test.starts_with("[sig-network]")));
    }

    #[test]
    fn a_line_of_another_form_is_named_by_its_number() {
        let error = Results::from_list("# remark\nresult\tseconds\ttest\npassed\tx\tname\n").unwrap_err();
        assert!(format!("{error:#}").starts_with("line 3"), "{error:#}");
    }
}
