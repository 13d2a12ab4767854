//! Compares the programs with the pure pipeline, packet by packet: `cargo xtask soak packets`.

use std::process::ExitCode;
use std::time::{Instant, SystemTime};

use anyhow::Result;
use clap::Parser;
use lb_tests::differential::Differential;

/// Random and malformed packets for the programs in the kernel and for the same code on the host: every byte, counter and flow
#[derive(Parser)]
struct Arguments {
    /// At least so many
    #[arg(long, default_value_t = 1_000_000)]
    packets: u64,
    /// The seed of the first sequence of packets; without it one that nobody has had before
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("packets: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let first = match arguments.seed {
        Some(seed) => seed,
        None => SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs() << 20,
    };
    println!("the first seed is {first}");
    let begin = Instant::now();
    let report = Differential::new()?.run(first, arguments.packets)?;
    println!("{report}in {:.1} s", begin.elapsed().as_secs_f64());
    Ok(())
}
