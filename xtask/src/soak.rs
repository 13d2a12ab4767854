//! `cargo xtask soak`: what goes on for as long as somebody has time.

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::{control_plane_setup, demo, setup};

/// What goes on.
#[derive(Subcommand)]
pub(crate) enum Soak {
    /// Two nodes of the same shape, one served by kube-proxy and one by lb-agent, both fed with random Services
    ///
    /// Fails with the first seed whose nodes differ otherwise than tests/src/twin/meant.rs allows, and at the end if an entry
    /// of that list was never needed.
    Twin(Arguments),
    /// 20,000 connections from outside to one endpoint, and 2,000 new ones a second for a minute
    ///
    /// Each needs a port of the node for masquerading. Fails if one of them is not opened, or is gone at the end.
    Ports(PortsArguments),
    /// A million random and malformed packets, for the programs in the kernel and for the same code on the host
    ///
    /// Fails with the first sequence of packets on which they do not agree, and prints the seed that does it alone.
    Packets(PacketsArguments),
}

/// What goes to the program.
#[derive(Args)]
pub(crate) struct Arguments {
    /// --seeds N, --steps M, --seed FIRST, --only SERVICE, --detect-local, --keep-going
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// What goes to the program.
#[derive(Args)]
pub(crate) struct PortsArguments {
    /// --open N, --per-second N, --seconds N
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// What goes to the program.
#[derive(Args)]
pub(crate) struct PacketsArguments {
    /// --packets N, --seed FIRST
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

impl Soak {
    /// Sets up, builds in release mode, and runs as root.
    pub(crate) fn run(&self) -> Result<()> {
        let (program, args) = match self {
            Self::Twin(Arguments { args }) => {
                control_plane_setup::prepare("`cargo xtask test --no-cluster`")?;
                ("twin", args)
            }
            Self::Ports(PortsArguments { args }) => ("ports", args),
            Self::Packets(PacketsArguments { args }) => ("packets", args),
        };
        setup::run()?;
        demo::release_program(program, &["lb-agent", "lb-probe"], args)
    }
}
