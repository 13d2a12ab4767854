//! `cargo xtask lint`: everything that judges the sources without running them.

use std::{process::Command, time::Duration};

use anyhow::{Result, bail};
use xtask::{ebpf, paths};

use crate::{
    command,
    rules::Rules,
    setup::{self, cargo_tool::CargoTool},
};

const DENY: CargoTool =
    CargoTool { package: "cargo-deny", binary: "cargo-deny", version: "0.20.2", args: &[] };
const TYPOS: CargoTool = CargoTool { package: "typos-cli", binary: "typos", version: "1.52.0", args: &[] };
const TAPLO: CargoTool = CargoTool {
    package: "taplo-cli",
    binary: "taplo",
    version: "0.10.0",
    // Without the language server and the schema download: only the formatter is used.
    args: &["--no-default-features"],
};
/// How long the advisory database may take to arrive.
const FETCH_LIMIT: Duration = Duration::from_mins(2);

/// Runs every check, even after one failed, and fails at the end.
///
/// # Errors
/// When a tool cannot be installed, or naming the checks that failed.
pub(crate) fn verb() -> Result<()> {
    setup::run()?;
    for tool in [DENY, TYPOS, TAPLO] {
        tool.install()?;
    }
    let mut failed = Vec::new();
    for (name, mut command) in checks()? {
        if let Err(error) = command::step(&mut command) {
            eprintln!("lint: {name}: {error:#}");
            failed.push(name);
        }
    }
    if let Err(error) = Rules::CHECK.run() {
        eprintln!("lint: rules: {error:#}");
        failed.push("rules");
    }
    let advisories = advisories();
    if let Err(error) = &advisories {
        eprintln!("lint: advisories: {error:#}");
        failed.push("advisories");
    }
    if matches!(advisories, Ok(Advisories::NotChecked)) {
        eprintln!(
            "\nNOT CHECKED: security advisories. https://github.com/RustSec/advisory-db is out of reach from here."
        );
    }
    if !failed.is_empty() {
        bail!("lint found something: {}", failed.join(", "));
    }
    eprintln!("lint: everything else is clean");
    Ok(())
}

/// Name and command of each check that needs nothing but this machine and crates.io.
fn checks() -> Result<Vec<(&'static str, Command)>> {
    let mut clippy = command::cargo("clippy");
    clippy.args(["--all-targets", "--", "--deny", "warnings"]);
    let mut clippy_log = command::cargo("clippy");
    clippy_log.args([
        "--package",
        "lb-agent",
        "--features",
        "bpf-log",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]);
    // Not of the workspace, as with rustfmt below. In its target folder, so that not everything is checked twice; with a fuzzer
    // that is never linked, so that none is built, which would need a C++ compiler.
    let mut clippy_fuzz = command::cargo("clippy");
    clippy_fuzz
        .args(["--manifest-path", "tests/fuzz/Cargo.toml", "--target-dir"])
        .arg(paths::target_dir())
        .args(["--", "--deny", "warnings", "--deny", "clippy::pedantic"])
        .env("CUSTOM_LIBFUZZER_PATH", "/none/libfuzzer.a");
    let mut clippy_bpf = ebpf::cargo("clippy", &[])?;
    clippy_bpf.args(["--bins", "--", "--deny", "warnings"]);
    let mut clippy_bpf_log = ebpf::cargo("clippy", &["log"])?;
    clippy_bpf_log.args(["--bins", "--", "--deny", "warnings"]);
    let mut rustdoc = command::cargo("doc");
    rustdoc.args(["--no-deps", "--document-private-items"]).env("RUSTDOCFLAGS", "--deny warnings");
    let mut format = command::cargo("fmt");
    format.args(["--all", "--", "--check"]);
    // Not of the workspace.
    let mut format_fuzz = command::cargo("fmt");
    format_fuzz.args(["--manifest-path", "tests/fuzz/Cargo.toml", "--", "--check"]);
    let mut deny = command::program(DENY.binary);
    deny.args(["--all-features", "check", "bans", "licenses", "sources"]);
    let mut taplo = command::program(TAPLO.binary);
    taplo.args(["format", "--check"]);
    Ok(vec![
        ("rustfmt", format),
        ("rustfmt of tests/fuzz", format_fuzz),
        ("taplo", taplo),
        ("typos", command::program(TYPOS.binary)),
        ("cargo-deny", deny),
        ("clippy", clippy),
        ("clippy with bpf-log", clippy_log),
        ("clippy of tests/fuzz", clippy_fuzz),
        ("clippy for BPF", clippy_bpf),
        ("clippy for BPF with its log", clippy_bpf_log),
        ("rustdoc", rustdoc),
    ])
}

/// What became of the check against known vulnerabilities.
enum Advisories {
    Clean,
    NotChecked,
}

/// The advisory database lives on GitHub, which a machine that reaches only package registries does not see.
fn advisories() -> Result<Advisories> {
    let mut fetch = command::program("timeout");
    fetch.arg(FETCH_LIMIT.as_secs().to_string()).args([DENY.binary, "fetch", "db"]);
    if let Err(error) = command::step(&mut fetch) {
        eprintln!("lint: {error:#}");
        return Ok(Advisories::NotChecked);
    }
    let mut check = command::program(DENY.binary);
    check.args(["--all-features", "check", "--disable-fetch", "advisories"]);
    command::step(&mut check)?;
    Ok(Advisories::Clean)
}
