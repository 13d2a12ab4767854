//! Builds the programs of the tests' control plane, or runs one by hand.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use lb_tests::control_plane::{ControlPlane, Program, Trust, cache_folder, find};

/// The real Kubernetes control plane of the tests.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Clone, Copy, Subcommand)]
enum Task {
    /// Build etcd, kube-apiserver, kube-controller-manager and kube-proxy, unless they are there.
    Build,
    /// Start a control plane, print the path of a kubeconfig, and end it with Ctrl-C.
    Up,
    /// Print the folder that keeps what is built.
    Path,
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line: the reader needs what to do about it, not our call stack.
            eprintln!("control-plane: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Build => Program::ALL.into_iter().try_for_each(|program| find(program).map(drop)),
        Task::Up => up(),
        Task::Path => {
            println!("{}", cache_folder()?.display());
            Ok(())
        }
    }
}

fn up() -> Result<()> {
    let control_plane = ControlPlane::start()?;
    println!("{}", control_plane.kubeconfig(&control_plane.host_url(), Trust::Authority)?.display());
    eprintln!("running in the network namespace {}; Ctrl-C ends it", control_plane.netns().name());
    let interrupted = control_plane.run(async { tokio::signal::ctrl_c().await });
    interrupted.context("cannot wait for Ctrl-C")?;
    control_plane.check_running()?;
    Ok(())
}
