//! Many connections to one endpoint, for as long as somebody has time: `cargo xtask soak ports`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use lb_tests::topology::ports::{Crowd, Size};

/// Connections from outside to one endpoint on another node, each of which needs a port of the node for masquerading
#[derive(Parser)]
struct Arguments {
    /// Connections that are open at the same time
    #[arg(long, default_value_t = 20_000)]
    open: u64,
    /// New ones in a second, each of which takes the place of the oldest one
    #[arg(long, default_value_t = 2000)]
    per_second: u64,
    /// For so long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ports: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { open, per_second, seconds } = *arguments;
    let report = Crowd::new(&[])?.run(Size { open, per_second, seconds })?;
    println!("{report}");
    report.check()
}
