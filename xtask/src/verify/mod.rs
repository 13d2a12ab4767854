//! `cargo xtask verify`: the BPF object against 5.10's limits, the verifier, and the table of its costs.

mod object;
mod static_check;
mod table;

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use xtask::{ebpf, paths};

use self::{object::Object, table::Table};
use crate::{command, setup};

/// The checked-in table, from the workspace root.
const TABLE: &str = "lb-ebpf/verifier.txt";
/// How the names of read-only switches begin that the agent sets after probing the kernel.
const SWITCH: &str = "LB_HAS_";

/// What the verb takes.
#[derive(Args, Default)]
pub(crate) struct Verify {
    /// Writes what was measured into lb-ebpf/verifier.txt
    #[arg(long)]
    bless: bool,
    /// Only looks at the object: needs no root and no BPF
    #[arg(long, conflicts_with = "bless")]
    static_only: bool,
    /// The program that loads was built a moment ago.
    #[arg(skip)]
    is_built: bool,
}

impl Verify {
    /// As without arguments, by the program of a build that has just been.
    pub(crate) fn built() -> Self {
        Self { is_built: true, ..Self::default() }
    }

    /// Builds the object, checks it, loads every program and compares.
    pub(crate) fn run(&self) -> Result<()> {
        setup::run()?;
        let object = ebpf::build(&[])?;
        let bytes = fs::read(&object).with_context(|| format!("cannot read {}", object.display()))?;
        let parsed = Object::parse(&bytes).with_context(|| object.display().to_string())?;
        let findings = static_check::check(&parsed);
        for finding in &findings {
            println!("{finding}");
        }
        ensure!(findings.is_empty(), "the object does not fit kernel 5.10");
        println!("the object uses nothing that kernel 5.10 lacks");
        if self.static_only {
            return Ok(());
        }
        if !self.is_built {
            command::step(command::cargo("build").args([
                "--quiet",
                "--package",
                "lb-tests",
                "--bin",
                "verify",
            ]))?;
        }
        let loader = paths::target_dir().join("debug/verify");
        let mut command = command::as_root(&loader)?;
        command.arg(&object).args(parsed.symbols.iter().filter(|symbol| symbol.starts_with(SWITCH)));
        command::say(&command);
        let measured = Table::measured(&command::output(&mut command)?, &parsed.program_sizes())?;
        print!("{measured}");
        if self.bless { bless(&measured) } else { compare(&measured) }
    }
}

fn bless(measured: &Table) -> Result<()> {
    let path = paths::workspace_root().join(TABLE);
    fs::write(&path, measured.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    println!("written to {TABLE}");
    Ok(())
}

fn compare(measured: &Table) -> Result<()> {
    let path = paths::workspace_root().join(TABLE);
    let text = fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}: `cargo xtask verify --bless` writes it", path.display()))?;
    let expected = Table::parse(&text).with_context(|| TABLE.to_owned())?;
    if let Some(why) = expected.other_kernel(measured) {
        println!("{why}");
    }
    let differences = expected.differences(measured);
    if differences.is_empty() {
        println!("as in {TABLE}");
        return Ok(());
    }
    for difference in &differences {
        println!("{difference}");
    }
    bail!("the programs' costs changed: if that is meant, `cargo xtask verify --bless` and commit {TABLE}");
}
