//! Compares lb-agent with kube-proxy over many seeds: `cargo xtask soak twin`.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Parser;
use lb_tests::control_plane::ControlPlane;
use lb_tests::twin::{DetectLocal, Laboratory, Seed};

/// Seeds unless somebody says otherwise.
const SEEDS: u64 = 100;

/// Fewer seeds need not meet every difference that is known.
const ENOUGH: u64 = 50;

/// Compares lb-agent with kube-proxy: two nodes of the same shape, one API server, random Services
#[derive(Parser)]
struct Arguments {
    /// How many seeds, one after the other; without it 100, or the one that --seed names
    #[arg(long)]
    seeds: Option<u64>,
    /// Changes of each seed
    #[arg(long, default_value_t = 10)]
    steps: u32,
    /// The first seed
    #[arg(long)]
    seed: Option<u64>,
    /// Only Service N, of 1 to 5: a failure that it shows alone has little around it
    #[arg(long, value_name = "N")]
    only: Option<u8>,
    /// Tell kube-proxy the range of the node's pods
    #[arg(long)]
    detect_local: bool,
    /// Go on after a seed that failed
    #[arg(long)]
    keep_going: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("twin: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let detect = if arguments.detect_local { DetectLocal::ByRange } else { DetectLocal::Off };
    let control_plane = ControlPlane::start()?;
    let namespace = control_plane.namespace("twin")?;
    let mut laboratory = Laboratory::start(&namespace, detect)?;
    let first = arguments.seed.unwrap_or(1);
    let count = arguments.seeds.unwrap_or(if arguments.seed.is_some() { 1 } else { SEEDS });
    let mut failed = Vec::new();
    for seed in first..first.saturating_add(count) {
        let begin = Instant::now();
        let result = laboratory.run(Seed { seed, steps: arguments.steps, only: arguments.only });
        let looks = laboratory.looks();
        println!("seed {seed}: {:.1} s, {looks} destinations so far", begin.elapsed().as_secs_f64());
        if let Err(error) = result {
            if !arguments.keep_going {
                return Err(error);
            }
            eprintln!("{error:#}");
            failed.push(seed);
        }
    }
    println!("differences that are known, and how often they were met:\n{}", laboratory.met());
    if !failed.is_empty() {
        bail!("the nodes differ with the seeds {failed:?}");
    }
    if count >= ENOUGH && arguments.only.is_none() { laboratory.check_all_met() } else { Ok(()) }
}
