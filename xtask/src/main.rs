//! The repository's command line: `cargo xtask --help`.

mod bench;
mod cluster;
mod command;
mod control_plane_setup;
mod demo;
mod fuzz;
mod lint;
mod mutants;
mod programs;
mod rules;
mod setup;
mod soak;
mod test;
mod verify;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The tasks of this repository
#[derive(Parser)]
#[command(bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Installs what a build needs beyond rustup: rust-src, the BPF linker, system packages
    ///
    /// Says each thing before it does it, and does nothing when everything is there. `demo`, `test`, `lint`, `verify` and
    /// `bench` run it by themselves.
    Setup,
    /// Builds the BPF object alone and prints its path
    BuildEbpf {
        /// Cargo features of lb-ebpf, for example `log`
        #[arg(long, value_delimiter = ',')]
        features: Vec<String>,
    },
    /// Shows the load balancer at work between two nodes made of network namespaces
    ///
    /// Builds in release mode and runs as root, through sudo if need be. Leaves nothing behind.
    Demo(demo::Demo),
    /// Runs every test: unit, property, kernel, traffic and real API server
    ///
    /// Tests that attach programs or make namespaces run as root, through sudo if need be. What is left out is printed at the
    /// end as NOT RUN.
    Test(test::Test),
    /// Checks formats, spelling, licences, clippy for host and BPF, rustdoc, the table of rules, security advisories
    ///
    /// The tools come from crates.io into the target folder, at pinned versions.
    Lint,
    /// Writes tests/RULES.md: which test holds which rule of tests/rules.txt
    Rules(rules::Rules),
    /// Loads every BPF program and compares its cost with lb-ebpf/verifier.txt
    ///
    /// First looks into the object for anything that kernel 5.10 lacks. Needs root.
    Verify(verify::Verify),
    /// Breaks the code in small ways and lists what no test notices; takes an hour or two
    ///
    /// Fails unless what survives is what tests/survivors.txt lists, with a reason each.
    Mutants(mutants::Mutants),
    /// Compares for a long time; see `soak twin`
    #[command(subcommand)]
    Soak(soak::Soak),
    /// Runs a real cluster on this machine, with upstream's tests; see `cluster up`, `cluster e2e` and `cluster down`
    #[command(subcommand)]
    Cluster(cluster::Cluster),
    /// Looks for objects that break a promise, by LLVM's libFuzzer; a minute unless told otherwise
    ///
    /// What it finds is printed as text, with the command that plays it again.
    Fuzz(fuzz::Fuzz),
    /// Measures; see `bench connect` and `bench fill`
    #[command(subcommand)]
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever RUST_BACKTRACE says: what failed is a command, not this program.
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Setup => setup::verb(),
        Verb::BuildEbpf { features } => {
            let features: Vec<&str> = features.iter().map(String::as_str).collect();
            println!("{}", xtask::ebpf::build(&features)?.display());
            Ok(())
        }
        Verb::Demo(demo) => demo.run(),
        Verb::Test(test) => test.run(),
        Verb::Lint => lint::verb(),
        Verb::Rules(rules) => rules.run(),
        Verb::Verify(verify) => verify.run(),
        Verb::Mutants(mutants) => mutants.run(),
        Verb::Soak(soak) => soak.run(),
        Verb::Cluster(cluster) => cluster.run(),
        Verb::Fuzz(fuzz) => fuzz.run(),
        Verb::Bench(bench) => bench.run(),
    }
}
