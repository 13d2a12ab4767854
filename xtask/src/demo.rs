//! `cargo xtask demo`: the main job, live, in network namespaces of its own.

use anyhow::Result;
use clap::Args;
use xtask::paths;

use crate::{command, setup};

/// What the verb takes.
#[derive(Args)]
pub(crate) struct Demo {
    /// Arguments of the demo itself; `cargo xtask demo -- --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

impl Demo {
    /// Sets up, builds, and runs the demo as root.
    pub(crate) fn run(&self) -> Result<()> {
        setup::run()?;
        release_program("demo", &["lb-agent", "lb-probe"], &self.args)
    }
}

/// Builds a program of lb-tests and those that it starts, in release mode, and runs it as root.
///
/// One cargo command for all, because cargo chooses the features of shared dependencies per command: two commands would
/// compile many crates twice.
pub(crate) fn release_program(name: &str, starts: &[&str], args: &[String]) -> Result<()> {
    let mut build = command::cargo("build");
    build.args(["--release", "--package", "lb-agent", "--package", "lb-tests", "--bin", name]);
    build.args(starts.iter().flat_map(|started| ["--bin", started]));
    command::step(&mut build)?;
    let program = paths::target_dir().join("release").join(name);
    command::step(command::as_root(&program)?.args(args))
}
