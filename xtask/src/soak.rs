//! `cargo xtask soak`: comparisons that go on for as long as somebody has time.

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::{control_plane_setup, demo, setup};

/// What is compared.
#[derive(Subcommand)]
pub(crate) enum Soak {
    /// Two nodes of the same shape, one served by kube-proxy and one by lb-agent, both fed with random Services
    ///
    /// Fails with the first seed whose nodes differ otherwise than tests/src/twin/meant.rs allows, and at the end if an entry
    /// of that list was never needed.
    Twin(Arguments),
}

/// What goes to the program.
#[derive(Args)]
pub(crate) struct Arguments {
    /// --seeds N, --steps M, --seed FIRST, --only SERVICE, --detect-local, --keep-going
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

impl Soak {
    /// Sets up, builds in release mode, and runs as root.
    pub(crate) fn run(&self) -> Result<()> {
        let Self::Twin(Arguments { args }) = self;
        control_plane_setup::prepare("`cargo xtask test --no-cluster`")?;
        setup::run()?;
        demo::release_program("twin", &["lb-agent", "lb-probe"], args)
    }
}
