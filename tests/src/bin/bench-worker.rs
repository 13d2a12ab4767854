//! Client or server of `bench-connect` and `bench-packets`, in a namespace and cgroup of its own.

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::{Parser, Subcommand};
use lb_tests::bench::{
    bpf::go_first,
    worker::{self, Asking, Round},
};

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
    /// Answers requests over connections, and datagrams.
    Answer { addrs: Vec<SocketAddr> },
    /// Asks for some time and prints what it saw as JSON.
    Ask {
        /// Milliseconds.
        #[arg(long)]
        ms: u64,
        /// How, as JSON.
        #[arg(long)]
        how: String,
        to: SocketAddr,
    },
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
        Role::Answer { addrs } => {
            go_first()?;
            worker::answer(addrs)
        }
        Role::Ask { ms, how, to } => {
            go_first()?;
            let how: Asking = serde_json::from_str(how)?;
            print(&worker::ask(*to, how, Duration::from_millis(*ms))?)
        }
        Role::Load { ms, addrs } => print(&worker::load(addrs, Duration::from_millis(*ms))?),
    }
}

fn print(round: &Round) -> Result<()> {
    println!("{}", serde_json::to_string(round)?);
    Ok(())
}
