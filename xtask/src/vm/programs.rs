//! The programs that go into the guest, as cargo builds them.

use std::{path::PathBuf, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::command;

/// The first process of the guest.
pub(super) const INIT: &str = "vm-init";

/// The programs that tests start. Those of the demo and the benchmarks are several times the size of the rest.
pub(super) const STARTED_BY_TESTS: [&str; 2] = ["lb-agent", "lb-probe"];

/// Executables of one build.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Programs {
    /// The test programs asked for: target name and path, in the order in which they were asked for.
    pub(super) tests: Vec<(String, PathBuf)>,
    /// Ordinary programs. Cargo builds all of lb-tests, because its tests may start any.
    pub(super) binaries: Vec<(String, PathBuf)>,
}

/// Builds the named test targets of lb-tests, the programs they start, and the first process. Cargo's messages go to stderr.
///
/// # Errors
/// When cargo fails, for one because there is no such test target.
pub(super) fn build(tests: &[String]) -> Result<Programs> {
    // One command for all, so that features are resolved once and nothing is built in two ways.
    let mut command = command::cargo("build");
    command
        .args(["--package", "lb-tests", "--package", "lb-agent"])
        .args(["--message-format", "json-render-diagnostics"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    for binary in STARTED_BY_TESTS.into_iter().chain([INIT]) {
        command.args(["--bin", binary]);
    }
    for test in tests {
        command.args(["--test", test]);
    }
    command::say(&command);
    let output = command.output().context("cannot run cargo")?;
    ensure!(output.status.success(), "the build of the tests failed");
    let messages = String::from_utf8(output.stdout).context("cargo printed what is not UTF-8")?;
    let built = parse(&messages)?;
    let find = |name: &String| {
        let found = built.tests.iter().find(|(built, _)| built == name).cloned();
        found.with_context(|| format!("cargo did not build the test {name}"))
    };
    Ok(Programs { tests: tests.iter().map(find).collect::<Result<_>>()?, binaries: built.binaries })
}

impl Programs {
    /// Path of the ordinary program `name`.
    ///
    /// # Errors
    /// When cargo reported none.
    pub(super) fn binary(&self, name: &str) -> Result<&PathBuf> {
        let found = self.binaries.iter().find(|(binary, _)| binary == name);
        found.map(|(_, path)| path).with_context(|| format!("cargo did not build {name}"))
    }
}

/// The part of cargo's messages that matters here.
///
/// Source: "External tools" in the Cargo book.
#[derive(Deserialize)]
struct Message {
    reason: String,
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

fn parse(messages: &str) -> Result<Programs> {
    let mut programs = Programs::default();
    for line in messages.lines() {
        let message: Message = serde_json::from_str(line).context("cargo's message is not as expected")?;
        let (Some(target), Some(path)) = (message.target, message.executable) else {
            continue;
        };
        if message.reason != "compiler-artifact" {
            continue;
        }
        match target.kind.first().map(String::as_str) {
            Some("test") => programs.tests.push((target.name, path)),
            Some("bin") => programs.binaries.push((target.name, path)),
            _ => {}
        }
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_told_from_libraries_and_build_scripts() {
        let messages = [
            r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"lb-common"},"executable":null}"#,
            r#"{"reason":"build-script-executed","package_id":"lb-agent","out_dir":"/t/out"}"#,
            r#"{"reason":"compiler-artifact","target":{"kind":["custom-build"],"name":"b"},"executable":null}"#,
            r#"{"reason":"compiler-artifact","target":{"kind":["test"],"name":"sockets"},"executable":"/t/d/s-1"}"#,
            r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"lb-agent"},"executable":"/t/lb-agent"}"#,
            r#"{"reason":"build-finished","success":true}"#,
        ];
        let want = Programs {
            tests: vec![("sockets".into(), "/t/d/s-1".into())],
            binaries: vec![("lb-agent".into(), "/t/lb-agent".into())],
        };
        let found = parse(&messages.join("\n")).unwrap();
        assert_eq!(found, want);
        assert_eq!(found.binary("lb-agent").unwrap(), &PathBuf::from("/t/lb-agent"));
        assert_eq!(found.binary("lb-probe").unwrap_err().to_string(), "cargo did not build lb-probe");
    }

    #[test]
    fn a_message_of_another_shape_is_an_error() {
        assert!(parse("warning: not json").is_err());
    }
}
