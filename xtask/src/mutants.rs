//! `cargo xtask mutants`: breaks the code in small ways, one at a time, and lists what no test notices.
//!
//! Only pure code is worth it: what an endpoint, a frontend or a connect() comes to. It takes an hour or two, so it is run by
//! hand. `tests/survivors.txt` lists the changes that may survive, each with its reason; any other one fails the run, and so
//! does an entry that a test catches by now.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use xtask::paths;

use crate::{
    command,
    setup::{self, cargo_tool::CargoTool},
};

const TOOL: CargoTool =
    CargoTool { package: "cargo-mutants", binary: "cargo-mutants", version: "27.1.0", args: &[] };

/// A package, and which of its files are changed.
struct Scope {
    package: &'static str,
    files: &'static [&'static str],
    /// Arguments of the test program: tests that can see these files.
    tests: &'static [&'static str],
}

/// What decides: the socket path, and from objects to what the maps need.
const SCOPES: [Scope; 2] = [
    Scope {
        package: "lb-common",
        files: &[
            "lb-common/src/datapath/s*.rs",
            "lb-common/src/datapath/tables.rs",
            "lb-common/src/abi/affinity.rs",
            "lb-common/src/abi/frontend.rs",
            "lb-common/src/abi/service.rs",
            "lb-common/src/abi/sock.rs",
        ],
        tests: &[],
    },
    Scope {
        package: "lb-agent",
        files: &[
            "lb-agent/src/compile/*.rs",
            "lb-agent/src/k8s/select.rs",
            "lb-agent/src/k8s/service.rs",
            "lb-agent/src/k8s/slice.rs",
        ],
        tests: &["compile::", "k8s::"],
    },
];

/// Changes that may survive: one per line as the tool prints it but for line and column, then ` # ` and the reason.
const SURVIVORS: &str = "tests/survivors.txt";

/// What the verb takes.
#[derive(Args)]
pub(crate) struct Mutants {
    /// Changes only this package: lb-common or lb-agent
    #[arg(long, value_name = "NAME")]
    package: Option<String>,
    /// Changes only what is in this file
    #[arg(long, value_name = "FILE")]
    file: Vec<String>,
}

impl Mutants {
    /// Runs every scope and compares what survives with the list.
    pub(crate) fn run(&self) -> Result<()> {
        setup::run()?;
        TOOL.install()?;
        let listed = listed(&fs::read_to_string(paths::workspace_root().join(SURVIVORS))?)?;
        let (mut survived, mut looked_at) = (BTreeSet::new(), Vec::new());
        for scope in
            SCOPES.iter().filter(|scope| self.package.as_ref().is_none_or(|name| name == scope.package))
        {
            let files: Vec<&str> = if self.file.is_empty() {
                scope.files.to_vec()
            } else {
                self.file.iter().map(String::as_str).filter(|file| file.starts_with(scope.package)).collect()
            };
            if files.is_empty() {
                continue;
            }
            survived.append(&mut change(scope, &files)?);
            looked_at.extend(files.into_iter().map(str::to_owned));
        }
        ensure!(!looked_at.is_empty(), "nothing to change: --package is one of lb-common and lb-agent");
        // Of a part of the files nothing is known about the others.
        let whole = self.package.is_none() && self.file.is_empty();
        verdict(&listed, &survived, whole)
    }
}

/// Changes one scope; returns what survived.
fn change(scope: &Scope, files: &[&str]) -> Result<BTreeSet<String>> {
    let target = paths::target_dir().join("mutants");
    let output = target.join(scope.package);
    fs::create_dir_all(&output).with_context(|| format!("cannot create {}", output.display()))?;
    share_tools(&target)?;
    let mut run = command::program(TOOL.binary);
    run.args(["mutants", "--package", scope.package, "--no-shuffle", "--colors", "never"])
        .args(["--minimum-test-timeout", "120"])
        .args(files.iter().flat_map(|file| ["--file", file]))
        .arg("--output")
        .arg(&output)
        // Its own copy of the sources is built there, with the tools of this workspace.
        .env("CARGO_TARGET_DIR", target.join("build"))
        .current_dir(paths::workspace_root());
    run.args(["--", "--lib", "--"]).args(scope.tests);
    // It fails whenever something survives; which of them may, the list says.
    let status = run.status().with_context(|| format!("cannot run {}", TOOL.binary))?;
    let outcome = output.join("mutants.out");
    ensure!(
        matches!(status.code(), Some(0 | 2 | 3)),
        "cargo-mutants ended with {status}; what it printed is in {}",
        outcome.display()
    );
    let mut survived = BTreeSet::new();
    for file in ["missed.txt", "timeout.txt"] {
        let path = outcome.join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        survived.extend(text.lines().map(without_place));
    }
    Ok(survived)
}

/// Lets the build of the copy find bpf-linker.
fn share_tools(target: &Path) -> Result<()> {
    let build = target.join("build");
    fs::create_dir_all(&build).with_context(|| format!("cannot create {}", build.display()))?;
    let link: PathBuf = build.join("tools");
    match symlink(paths::tools_dir(), &link) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("cannot link {}", link.display()))
        }
        _ => Ok(()),
    }
}

/// `file:line:column: what` without line and column, which other changes move.
fn without_place(line: &str) -> String {
    let mut parts = line.splitn(4, ':');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(file), Some(_), Some(_), Some(what)) => format!("{file}:{what}"),
        _ => line.to_owned(),
    }
}

/// The changes that may survive.
fn listed(text: &str) -> Result<BTreeSet<String>> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (change, reason) = line.split_once(" # ").unwrap_or((line, ""));
            ensure!(!reason.trim().is_empty(), "{SURVIVORS}: no reason behind `{change}`");
            Ok(change.to_owned())
        })
        .collect()
}

fn verdict(listed: &BTreeSet<String>, survived: &BTreeSet<String>, whole: bool) -> Result<()> {
    let unlisted: Vec<&str> = survived.difference(listed).map(String::as_str).collect();
    let caught: Vec<&str> =
        if whole { listed.difference(survived).map(String::as_str).collect() } else { Vec::new() };
    for change in &unlisted {
        println!("survived: {change}");
    }
    for change in &caught {
        println!("caught by now, remove it from {SURVIVORS}: {change}");
    }
    if unlisted.is_empty() && caught.is_empty() {
        println!("nothing survived but what {SURVIVORS} lists");
        return Ok(());
    }
    bail!("{} survived that are not listed, {} are listed and caught", unlisted.len(), caught.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_survivor_needs_a_reason() {
        let good = "# words\n\na.rs: replace x with y # equal for all inputs\n";
        assert_eq!(listed(good).unwrap(), BTreeSet::from(["a.rs: replace x with y".to_owned()]));
        for bad in ["a.rs: replace x with y", "a.rs: replace x with y # "] {
            assert!(listed(bad).unwrap_err().to_string().contains("no reason"), "{bad}");
        }
    }

    #[test]
    fn a_change_is_known_by_its_file_and_words() {
        let line = "lb-common/src/a.rs:12:7: replace < with <= in A::b";
        assert_eq!(without_place(line), "lb-common/src/a.rs: replace < with <= in A::b");
    }

    #[test]
    fn the_list_is_exact_for_a_whole_run_and_an_upper_limit_for_a_part() {
        let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
        assert!(verdict(&set(&["a"]), &set(&["a"]), true).is_ok());
        assert!(verdict(&set(&["a"]), &set(&["a", "b"]), false).is_err());
        assert!(verdict(&set(&["a", "b"]), &set(&["a"]), true).is_err());
        assert!(verdict(&set(&["a", "b"]), &set(&["a"]), false).is_ok());
    }

    #[test]
    fn the_checked_in_list_can_be_read() {
        listed(&fs::read_to_string(paths::workspace_root().join(SURVIVORS)).unwrap()).unwrap();
    }
}
