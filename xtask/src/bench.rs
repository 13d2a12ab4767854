//! `cargo xtask bench`: measurements; lb-tests has the programs that make them.

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::{control_plane_setup, demo, setup};

/// Arguments of benchmarks that do without kube-proxy and so without a control plane.
const ALONE: [&str; 3] = ["--alone", "--help", "-h"];

/// What is measured.
#[derive(Subcommand)]
pub(crate) enum Bench {
    /// connect() through a ClusterIP: ours, direct, and real kube-proxy in nftables and iptables mode
    Connect(Arguments),
    /// Nanoseconds of a packet in our programs, at tc and at XDP; packets per second through a node: forwarding, ours, and real kube-proxy in
    /// nftables and iptables mode; requests per second over open connections, and in datagrams
    Packets(Arguments),
    /// From decoded objects to programmed maps: time, and memory of the agent and of the maps
    Fill(Arguments),
}

/// What goes to the measuring program.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Arguments of the benchmark itself; `cargo xtask bench connect -- --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

impl Bench {
    /// Sets up, builds in release mode, and measures as root.
    pub(crate) fn run(&self) -> Result<()> {
        let arguments = self.arguments();
        if matches!(self, Self::Connect(_) | Self::Packets(_))
            && !arguments.iter().any(|argument| ALONE.contains(&argument.as_str()))
        {
            control_plane_setup::prepare("`-- --alone`")?;
        }
        setup::run()?;
        let (name, starts) = self.programs();
        demo::release_program(name, starts, arguments)
    }

    /// The program that measures, and those that it starts.
    fn programs(&self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Connect(_) => ("bench-connect", &["lb-agent", "bench-worker"]),
            Self::Packets(_) => ("bench-packets", &["lb-agent", "bench-worker"]),
            Self::Fill(_) => ("bench-fill", &["lb-agent"]),
        }
    }

    fn arguments(&self) -> &[String] {
        match self {
            Self::Connect(arguments) | Self::Packets(arguments) | Self::Fill(arguments) => &arguments.args,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use xtask::paths;

    use super::*;

    /// What in a benchmark's source gives away that it starts a program, and the file that holds the call.
    const STARTS: [(&str, &str, &str); 2] = [
        ("Agent::start", "tests/src/agent.rs", "lb-agent"),
        ("lane::Lane", "tests/src/bench/lane.rs", "bench-worker"),
    ];

    fn source(path: &str) -> String {
        fs::read_to_string(paths::workspace_root().join(path)).unwrap()
    }

    #[test]
    fn whatever_a_benchmark_starts_is_built_with_it() {
        let none = || Arguments { args: Vec::new() };
        for bench in [Bench::Connect(none()), Bench::Packets(none()), Bench::Fill(none())] {
            let (name, starts) = bench.programs();
            let text = source(&format!("tests/src/bin/{name}.rs"));
            for (word, file, program) in STARTS {
                assert!(
                    source(file).contains(&format!("binary(\"{program}\")")),
                    "{file} starts no {program}"
                );
                assert!(
                    !text.contains(word) || starts.contains(&program),
                    "{name} starts {program}: {starts:?}"
                );
            }
            // Both measure the agent that was just built, in whatever way they start it.
            assert!(starts.contains(&"lb-agent"), "{name}: {starts:?}");
        }
    }
}
