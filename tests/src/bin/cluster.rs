//! A real cluster on this machine and upstream's tests of one: `cargo xtask cluster`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use lb_tests::cluster::{self, Layout, Proxy, Selection};
use lb_tests::privilege;

/// Runs a real cluster on this machine: kubelets, containers, DNS, and a service proxy on every node
#[derive(Parser)]
#[command(name = "cargo xtask cluster", max_term_width = 100)]
struct Arguments {
    /// Folder of the cluster; without it target/cluster
    #[arg(long, value_name = "DIR", global = true)]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Start a cluster and leave it running
    Up(Shape),
    /// Run upstream's tests of Services against the cluster that is up
    E2e(Selection),
    /// End the cluster that is up
    Down,
    /// Be the cluster, until SIGTERM: what `up` starts
    #[command(hide = true)]
    Hold(Shape),
}

/// What a cluster consists of.
#[derive(clap::Args)]
struct Shape {
    /// Who serves Services on every node
    #[arg(long, value_enum, default_value_t = Proxy::LbAgent)]
    proxy: Proxy,
    /// Number of nodes; with six, tests run that want two in each zone
    #[arg(long, default_value_t = 3, value_name = "N")]
    nodes: u8,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !privilege::is_root() {
        eprintln!("cluster: needs root, to make namespaces and cgroups and to run containers");
        return ExitCode::FAILURE;
    }
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(Arguments { dir, task }: Arguments) -> Result<()> {
    let layout = Layout::new(dir)?;
    match task {
        Task::Up(Shape { proxy, nodes }) => cluster::up(&layout, proxy, nodes),
        Task::E2e(selection) => cluster::e2e(&layout, &selection),
        Task::Down => cluster::down(&layout),
        Task::Hold(Shape { proxy, nodes }) => cluster::hold(&layout, proxy, nodes),
    }
}
