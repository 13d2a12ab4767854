//! `cargo xtask cluster`: a real cluster on this machine, and upstream's tests of one.

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use xtask::{go::Go, paths};

use crate::{command, demo, setup};

/// What is done with the cluster.
#[derive(Subcommand)]
pub(crate) enum Cluster {
    /// Starts three nodes with kubelet, containerd, DNS and lb-agent, and leaves them running
    ///
    /// The first time it installs Debian packages and builds kubelet, CoreDNS and upstream's tests with Go.
    Up(Arguments),
    /// Runs upstream's tests of Services against it; fails if one does not pass that passes with kube-proxy
    E2e(Arguments),
    /// Ends it
    Down(Arguments),
}

/// What goes to the program.
#[derive(Args)]
pub(crate) struct Arguments {
    /// --proxy lb-agent|kube-proxy, --nodes N; --focus, --skip, --procs; --dir. `-- --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

impl Cluster {
    /// Sets up what the verb needs, builds in release mode, and runs as root.
    pub(crate) fn run(&self) -> Result<()> {
        match self {
            Self::Up(Arguments { args }) => {
                setup::run()?;
                setup::cluster()?;
                go()?;
                release("up", args)
            }
            Self::E2e(Arguments { args }) => release("e2e", args),
            Self::Down(Arguments { args }) => {
                // Whoever wants to end it does not want to wait for a compiler.
                let program = paths::target_dir().join("release/cluster");
                if program.is_file() {
                    return command::step(command::as_root(&program)?.arg("down").args(args));
                }
                release("down", args)
            }
        }
    }
}

/// Finds a Go, or downloads one: the programs of the control plane may come from elsewhere, and kubelet does not.
fn go() -> Result<()> {
    let Err(no_go) = Go::find() else { return Ok(()) };
    setup::go::install(&format!("kubelet and upstream's tests are built with Go, and {no_go}"))
        .context("install Go 1.21 or newer (https://go.dev/dl)")
}

fn release(task: &str, args: &[String]) -> Result<()> {
    let args: Vec<String> = [task.to_owned()].into_iter().chain(args.iter().cloned()).collect();
    demo::release_program("cluster", &["lb-agent"], &args)
}
