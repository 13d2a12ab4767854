//! `cargo xtask bench packets`: what a packet costs.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, ValueEnum};
use lb_tests::{
    bench::{runs, worker},
    privilege,
};

/// What a packet costs.
#[derive(Debug, Parser)]
struct Args {
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "runs")]
    parts: Vec<Part>,
    /// Numbers of Services.
    #[arg(long, value_delimiter = ',', default_value = "1,1000,10000")]
    sizes: Vec<u32>,
    /// Numbers of flows that take turns, powers of two.
    #[arg(long, value_delimiter = ',', default_value = "1024,65536")]
    flows: Vec<u32>,
    /// Families: 4, 6.
    #[arg(long, value_delimiter = ',', default_value = "4,6")]
    families: Vec<u8>,
    /// Rounds of each lane. Many short ones: the machine's speed drifts within seconds.
    #[arg(long, default_value_t = 15)]
    rounds: u32,
    /// Packets of each round.
    #[arg(long, default_value_t = 65_536)]
    packets: u32,
    /// Of the programs alone, only what begins so.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    only: String,
    /// CPU that everything runs on.
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// Write all figures as JSON into this folder.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Part {
    /// Nanoseconds of our programs alone.
    Runs,
}

fn main() -> ExitCode {
    if !privilege::is_root() {
        eprintln!("bench-packets: needs root, to make network namespaces and to load BPF programs");
        return ExitCode::FAILURE;
    }
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench-packets: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<bool> {
    worker::pin(args.cpu)?;
    if args.parts.contains(&Part::Runs) {
        let netns = runs::node()?;
        for &services in &args.sizes {
            for &flows in &args.flows {
                for &family in &args.families {
                    let cases = runs::measure(&netns, (services, flows, family == 6), (args.rounds, args.packets), &args.only)?;
                    println!("\n{services} Services, {flows} flows, IPv{family}: ns above two instructions");
                    for case in cases {
                        println!("{:<32} {:>5.0} ({:.0}..{:.0})", case.name, case.ns.median, case.ns.min, case.ns.max);
                    }
                }
            }
        }
    }
    Ok(true)
}
