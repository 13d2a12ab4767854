//! Client or server of `bench-connect`, in a namespace and cgroup of its own.

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::{Parser, Subcommand};
use lb_tests::bench::worker;

#[derive(Debug, Parser)]
struct Args {
    /// CPU to run on.
    #[arg(long)]
    cpu: usize,
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Echoes a byte per connection.
    Serve { addrs: Vec<SocketAddr> },
    /// Connects for some time and prints what it saw as JSON.
    Load {
        /// Milliseconds.
        #[arg(long)]
        ms: u64,
        addrs: Vec<SocketAddr>,
    },
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-worker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    worker::pin(args.cpu)?;
    match &args.role {
        Role::Serve { addrs } => worker::serve(addrs),
        Role::Load { ms, addrs } => {
            let round = worker::load(addrs, Duration::from_millis(*ms))?;
            println!("{}", serde_json::to_string(&round)?);
            Ok(())
        }
    }
}
