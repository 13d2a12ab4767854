//! Programs and test programs, as cargo builds them.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::command;

/// What one build has made.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Programs {
    /// Test programs: of libraries and programs, those with the unit tests.
    pub(crate) tests: Vec<TestProgram>,
    /// Ordinary programs: name and path.
    pub(crate) binaries: Vec<(String, PathBuf)>,
}

/// A program that runs tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TestProgram {
    /// Name of the target: for one in `tests/` that of its file or folder.
    pub(crate) name: String,
    /// Whether it is one of `tests/`, and no unit tests.
    pub(crate) is_integration: bool,
    /// The program.
    pub(crate) path: PathBuf,
    /// The package's folder, where cargo runs it.
    pub(crate) folder: PathBuf,
}

/// Runs `cargo build` with these arguments. Cargo's messages go to stderr.
///
/// # Errors
/// When cargo fails, for one because there is no such target.
pub(crate) fn build(arguments: &[&str]) -> Result<Programs> {
    let mut command = command::cargo("build");
    command
        .args(["--message-format", "json-render-diagnostics"])
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    command::say(&command);
    let output = command.output().context("cannot run cargo")?;
    ensure!(output.status.success(), "the build of the tests failed");
    parse(&String::from_utf8(output.stdout).context("cargo printed what is not UTF-8")?)
}

impl Programs {
    /// Path of the ordinary program `name`.
    ///
    /// # Errors
    /// When cargo reported none.
    pub(crate) fn binary(&self, name: &str) -> Result<&Path> {
        let found = self.binaries.iter().find(|(binary, _)| binary == name);
        found.map(|(_, path)| &**path).with_context(|| format!("cargo did not build {name}"))
    }

    /// The test program `name` of a folder `tests/`.
    ///
    /// # Errors
    /// When cargo reported none.
    pub(crate) fn test(&self, name: &str) -> Result<&TestProgram> {
        let found = self.tests.iter().find(|test| test.is_integration && test.name == name);
        found.with_context(|| format!("cargo did not build the test {name}"))
    }
}

/// The part of cargo's messages that matters here.
///
/// Source: "External tools" in the Cargo book.
#[derive(Deserialize)]
struct Message {
    reason: String,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
    manifest_path: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

fn parse(messages: &str) -> Result<Programs> {
    let mut programs = Programs::default();
    for line in messages.lines() {
        let message: Message = serde_json::from_str(line).context("cargo's message is not as expected")?;
        let (Some(target), Some(profile), Some(path), Some(manifest)) =
            (message.target, message.profile, message.executable, message.manifest_path)
        else {
            continue;
        };
        if message.reason != "compiler-artifact" {
            continue;
        }
        let kind = target.kind.first().map(String::as_str);
        if profile.test {
            let folder = manifest.parent().unwrap_or(&manifest).to_owned();
            let is_integration = kind == Some("test");
            programs.tests.push(TestProgram { name: target.name, is_integration, path, folder });
        } else if kind == Some("bin") {
            programs.binaries.push((target.name, path));
        }
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_from_their_tests_from_libraries_and_build_scripts() {
        let messages = [
            r#"{"reason":"compiler-artifact","manifest_path":"/w/c/Cargo.toml","target":{"kind":["lib"],"name":"lb-common"},"profile":{"test":false},"executable":null}"#,
            r#"{"reason":"build-script-executed","package_id":"lb-agent","out_dir":"/t/out"}"#,
            r#"{"reason":"compiler-artifact","manifest_path":"/w/a/Cargo.toml","target":{"kind":["custom-build"],"name":"b"},"profile":{"test":false},"executable":null}"#,
            r#"{"reason":"compiler-artifact","manifest_path":"/w/t/Cargo.toml","target":{"kind":["test"],"name":"demo"},"profile":{"test":true},"executable":"/t/d/s-1"}"#,
            r#"{"reason":"compiler-artifact","manifest_path":"/w/t/Cargo.toml","target":{"kind":["bin"],"name":"demo"},"profile":{"test":true},"executable":"/t/d/s-2"}"#,
            r#"{"reason":"compiler-artifact","manifest_path":"/w/t/Cargo.toml","target":{"kind":["bin"],"name":"demo"},"profile":{"test":false},"executable":"/t/demo"}"#,
            r#"{"reason":"build-finished","success":true}"#,
        ];
        let found = parse(&messages.join("\n")).unwrap();
        let test = |is_integration, path: &str| TestProgram {
            name: "demo".into(),
            is_integration,
            path: path.into(),
            folder: "/w/t".into(),
        };
        assert_eq!(found.tests, [test(true, "/t/d/s-1"), test(false, "/t/d/s-2")]);
        assert_eq!(found.binary("demo").unwrap(), "/t/demo");
        assert_eq!(found.test("demo").unwrap().path, PathBuf::from("/t/d/s-1"));
        assert_eq!(
            found.test("lb-common").unwrap_err().to_string(),
            "cargo did not build the test lb-common"
        );
    }

    #[test]
    fn a_message_of_another_shape_is_an_error() {
        assert!(parse("error: no such command").is_err());
    }
}
