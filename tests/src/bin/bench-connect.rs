//! `cargo xtask bench connect`: connections per second and connect() through a ClusterIP, beside a direct connection and
//! beside real kube-proxy, in one run.
//!
//! ```text
//! direct, direct again    client -> server pod, no programs, no rules: their ratio is the A-A check
//! lb-agent                client -> ClusterIP, our programs on the node's cgroup
//! nftables, iptables      client -> ClusterIP, rules by real kube-proxy in the node's namespace
//! ```
//!
//! Every lane has a node, a client and a server of its own. All are loaded at once; clients take turns, one at a time, on
//! one CPU. An established connection costs nothing in any lane but conntrack, so what is measured is the first packet.

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use clap::Parser;
use lb_tests::{
    Agent, Home,
    bench::{
        lane::Lane,
        peers::{self, IPTABLES, NFTABLES, Peers},
        plot,
        report::{Cell, DIRECT, Goal, OURS, goals},
    },
    control_plane::ControlPlane,
    privilege,
};
use serde_json::json;

/// Rate and latency of new connections.
#[derive(Debug, Parser)]
struct Args {
    /// Numbers of Services.
    #[arg(long, value_delimiter = ',', default_value = "1,1000,10000,50000")]
    sizes: Vec<u32>,
    /// Largest size that real kube-proxy programs itself; beyond it, its rule sets are padded in their own shape.
    #[arg(long, default_value_t = 1000)]
    real: u32,
    /// Rounds of each lane, size and family. Many short ones: the machine's speed drifts within seconds.
    #[arg(long, default_value_t = 40)]
    rounds: u32,
    /// Milliseconds of each round.
    #[arg(long, default_value_t = 150)]
    ms: u64,
    /// Leave kube-proxy out.
    #[arg(long)]
    alone: bool,
    /// Write all rounds as JSON and the plots as SVG into this folder.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    if !privilege::is_root() {
        eprintln!("bench-connect: needs root, to make network namespaces and to load BPF programs");
        return ExitCode::FAILURE;
    }
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench-connect: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// All lanes, and what fills them.
struct Bench {
    lanes: Vec<Lane>,
    home: Home,
    cells: Vec<Cell>,
}

fn run(args: &Args) -> Result<bool> {
    let mut names = vec![DIRECT[0], OURS];
    if !args.alone {
        names.extend([NFTABLES, IPTABLES]);
    }
    names.push(DIRECT[1]);
    let lanes = names.iter().map(|name| Lane::new(name)).collect::<Result<Vec<_>>>()?;
    let mut bench = Bench { lanes, home: Home::new("bench")?, cells: Vec::new() };
    let result = if args.alone { bench.sizes(args, None) } else { bench.with_kube_proxy(args) };
    result?;
    bench.report(args, &names)
}

impl Bench {
    fn lane(&self, name: &str) -> Result<&Lane> {
        self.lanes.iter().find(|lane| lane.name == name).context("every lane exists")
    }

    fn with_kube_proxy(&mut self, args: &Args) -> Result<()> {
        let control_plane = ControlPlane::start()?;
        let lanes = core::mem::take(&mut self.lanes);
        let peer = |name: &str| lanes.iter().find(|lane| lane.name == name).context("every lane exists");
        let nodes = [peer(NFTABLES)?.node(), peer(IPTABLES)?.node()];
        let mut peers = Peers::start(&control_plane, nodes)?;
        let mut inner = Self { lanes: Vec::new(), home: Home::new("bench-peers")?, cells: Vec::new() };
        core::mem::swap(&mut inner.home, &mut self.home);
        let result = inner.sizes_over(&lanes, args, Some(&mut peers));
        self.cells = inner.cells;
        drop(peers);
        self.lanes = lanes;
        result
    }

    fn sizes(&mut self, args: &Args, peers: Option<&mut Peers<'_>>) -> Result<()> {
        let lanes = core::mem::take(&mut self.lanes);
        let result = self.sizes_over(&lanes, args, peers);
        self.lanes = lanes;
        result
    }

    fn sizes_over(&mut self, lanes: &[Lane], args: &Args, mut peers: Option<&mut Peers<'_>>) -> Result<()> {
        let ours = lanes.iter().find(|lane| lane.name == OURS).context("every lane exists")?;
        let backends = [ours.backend(false), ours.backend(true)];
        for &size in &args.sizes {
            println!("loading {size} Services");
            self.home.apply(
                "services",
                &(0..size).flat_map(|number| peers::objects_of(number, size, backends)).collect::<Vec<_>>(),
            )?;
            let agent = Agent::start(ours.node(), &self.home)?;
            let mut remark = None;
            if let Some(peers) = &mut peers {
                remark = peers.load(size, args.real, backends)?;
            }
            for v6 in [false, true] {
                let mut cell = Cell { size, family: if v6 { 6 } else { 4 }, ..Cell::default() };
                if let Some(remark) = &remark {
                    cell.remarks.extend([NFTABLES, IPTABLES].map(|lane| (lane, remark.clone())));
                }
                for round in 0..args.rounds {
                    // Another lane begins each round, so that none is always the first or after the same one.
                    for at in 0..lanes.len() {
                        let lane = &lanes[(at + round as usize) % lanes.len()];
                        let targets = if DIRECT.contains(&lane.name) {
                            vec![lane.backend(v6)]
                        } else {
                            peers::targets(size, v6)
                        };
                        let seen = lane.run(&targets, Duration::from_millis(args.ms))?;
                        cell.rounds.entry(lane.name).or_default().push(seen);
                    }
                }
                print!("{}", cell.table(&lanes.iter().map(|lane| lane.name).collect::<Vec<_>>()));
                self.cells.push(cell);
            }
            agent.stop()?;
        }
        Ok(())
    }

    fn report(&self, args: &Args, names: &[&'static str]) -> Result<bool> {
        let mut goals = goals(&self.cells, &[NFTABLES, IPTABLES]);
        goals.extend(self.cells.iter().flat_map(flawless));
        println!("\ngoals");
        for goal in &goals {
            println!("{} {:<48} {:.3}", if goal.reached { "[ok]  " } else { "[MISS]" }, goal.what, goal.seen);
        }
        if let Some(folder) = &args.out {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
            let all = json!({"cells": self.cells, "goals": goals, "rounds": args.rounds, "ms": args.ms});
            fs::write(folder.join("connect.json"), serde_json::to_vec_pretty(&all)?)?;
            for family in [4, 6] {
                fs::write(
                    folder.join(format!("connect-v{family}.svg")),
                    plot::svg(&self.cells, names, family),
                )?;
            }
            println!("written: {}", folder.display());
        }
        let _ = self.lane(OURS)?;
        Ok(goals.iter().all(|goal| goal.reached))
    }
}

/// Through our lane every connection succeeds, and no more of them stall than in the worse direct lane.
fn flawless(cell: &Cell) -> Vec<Goal> {
    let Some(ours) = cell.summary(OURS) else { return Vec::new() };
    let place = format!("{} Services, IPv{}", cell.size, cell.family);
    let direct = DIRECT.iter().filter_map(|lane| cell.summary(lane)).map(|lane| lane.stalls).max();
    #[expect(clippy::cast_precision_loss, reason = "a count of connections")]
    let goal = |what: String, seen: u64, most: u64| Goal { what, seen: seen as f64, reached: seen <= most };
    vec![
        goal(format!("no failed connect: {place}"), ours.failures, 0),
        goal(format!("no more stalls than direct: {place}"), ours.stalls, direct.unwrap_or(0)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_tests::bench::worker::Round;

    fn missed(ours: [u64; 2], direct: [u64; 2]) -> Vec<String> {
        let round = |[stalls, failures]: [u64; 2]| {
            vec![Round { rate: 1.0, p50: 1.0, p95: 1.0, p99: 1.0, stalls, failures }]
        };
        let rounds = [(DIRECT[0], round([0, 0])), (OURS, round(ours)), (DIRECT[1], round(direct))];
        let cell = Cell { rounds: rounds.into(), ..Cell::default() };
        let missed = flawless(&cell).into_iter().filter(|goal| !goal.reached);
        missed.map(|goal| goal.what.split(':').next().unwrap().to_owned()).collect()
    }

    #[test]
    fn failures_and_stalls_of_our_lane_miss_a_goal() {
        assert_eq!(missed([0, 0], [0, 0]), [] as [&str; 0]);
        assert_eq!(missed([0, 1], [0, 9]), ["no failed connect"]);
        assert_eq!(missed([2, 0], [1, 0]), ["no more stalls than direct"]);
        assert_eq!(missed([2, 0], [2, 0]), [] as [&str; 0]);
    }
}
