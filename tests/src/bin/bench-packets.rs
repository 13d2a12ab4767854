//! `cargo xtask bench packets`: what a packet costs, beside plain forwarding and beside real kube-proxy, in one run.
//!
//! ```text
//! runs   our programs alone, by BPF_PROG_TEST_RUN: nanoseconds above a program of two instructions
//! path   packets through a node on one CPU: forwarding, ours, nftables, iptables, forwarding again
//! xdp    live frames over a program of two instructions that sends them back
//! ```

use std::{fs, panic::resume_unwind, path::PathBuf, process::ExitCode, thread};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use lb_agent::datapath::OBJECT;
use lb_tests::{
    Agent, Home,
    bench::{
        path::{Cell, Flows, PLAIN},
        peers::{self, IPTABLES, NFTABLES, Peers, SERVICE_PORT},
        report::{Goal, OURS},
        runs::{self, Case, Wanted},
        wire::{self, Where, Wire},
        worker,
        xdp::{self, Port},
    },
    control_plane::ControlPlane,
    privilege,
};
use serde_json::json;

/// What a packet costs.
#[derive(Debug, Parser)]
struct Args {
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "runs,path,xdp")]
    parts: Vec<Part>,
    /// Numbers of Services.
    #[arg(long, value_delimiter = ',', default_value = "1,1000,10000")]
    sizes: Vec<u32>,
    /// Largest size that real kube-proxy programs itself; beyond it, its rule sets are padded in their own shape.
    #[arg(long, default_value_t = 1000)]
    real: u32,
    /// Numbers of flows that take turns, powers of two; 0: every packet begins one.
    #[arg(long, value_delimiter = ',', default_value = "1,1024,65536,0")]
    flows: Vec<u32>,
    /// Families: 4, 6.
    #[arg(long, value_delimiter = ',', default_value = "4,6")]
    families: Vec<u8>,
    /// Rounds of each lane. Many short ones: the machine's speed drifts within seconds.
    #[arg(long, default_value_t = 15)]
    rounds: u32,
    /// Packets of each round.
    #[arg(long, default_value_t = 131_072)]
    packets: u32,
    /// Of the programs alone, only what begins so.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    only: String,
    /// Of the programs alone, also those of another object, in turn with ours: what `cargo xtask build-ebpf` made of another version.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// CPU that everything runs on.
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// Leave kube-proxy out.
    #[arg(long)]
    alone: bool,
    /// Write all figures as JSON into this folder.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Args {
    /// Flows of a family that are open at once: those of every cell, for flows of the one before are not over when the next begins.
    fn room(&self) -> u32 {
        (2 * self.flows.iter().sum::<u32>()).max(1 << 17).next_power_of_two()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Part {
    /// Nanoseconds of our programs alone.
    Runs,
    /// Packets through a node.
    Path,
    /// Frames at XDP.
    Xdp,
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
    let mut cases = Vec::new();
    if args.parts.contains(&Part::Runs) {
        // In a thread of its own: whatever is started later is not to be pinned.
        let alone = thread::scope(|scope| scope.spawn(|| programs_alone(args)).join());
        cases = alone.unwrap_or_else(|panic| resume_unwind(panic))?;
    }
    let mut cells = Vec::new();
    if args.parts.contains(&Part::Path) {
        through_a_node(args, &mut cells)?;
    }
    let mut missing = false;
    let mut lanes = Vec::new();
    if args.parts.contains(&Part::Xdp) {
        (lanes, missing) = frames(args)?;
    }
    let goals: Vec<Goal> =
        cells.iter().map(Cell::goals).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    println!("\ngoals");
    for goal in &goals {
        println!("{} {:<90} {:.3}", if goal.reached { "[ok]  " } else { "[MISS]" }, goal.what, goal.seen);
    }
    if let Some(folder) = &args.out {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let all = json!({
            "runs": cases, "cells": cells, "xdp": lanes, "goals": goals, "rounds": args.rounds, "packets": args.packets,
        });
        fs::write(folder.join("packets.json"), serde_json::to_vec_pretty(&all)?)?;
        println!("written: {}", folder.display());
    }
    Ok(!missing && goals.iter().all(|goal| goal.reached))
}

fn programs_alone(args: &Args) -> Result<Vec<Case>> {
    worker::pin(args.cpu)?;
    let netns = runs::node()?;
    let mut objects = vec![("ours", OBJECT.to_vec())];
    if let Some(path) = &args.against {
        let other = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        objects.push(("other", other));
    }
    let mut all = Vec::new();
    for &services in &args.sizes {
        // One flow tells nothing that some do not, and new ones are among the cases.
        for &flows in args.flows.iter().filter(|flows| **flows > 1) {
            for &family in &args.families {
                let wanted = Wanted { objects: &objects, services, flows, v6: family == 6, only: &args.only };
                let cases = runs::measure(&netns, wanted, (args.rounds, args.packets))?;
                println!("\n{services} Services, {flows} flows, IPv{family}: ns above two instructions");
                for Case { name, object, ns, .. } in &cases {
                    println!("{name:<32} {object:<6} {:>5.0} ({:.0}..{:.0})", ns.median, ns.min, ns.max);
                }
                all.extend(cases);
            }
        }
    }
    Ok(all)
}

/// The lanes at XDP, and whether ours is missing.
fn frames(args: &Args) -> Result<(Vec<xdp::Lane>, bool)> {
    let port = Port::new(args.cpu)?;
    let ours = xdp::ours(OBJECT)?;
    if ours.is_none() {
        println!(
            "\nNOT MEASURED: lb_xdp, which this object does not have; G5 is not reached. Only what it is compared with:"
        );
    }
    let mut all = Vec::new();
    for &flows in args.flows.iter().filter(|flows| **flows > 1) {
        for &family in &args.families {
            let lanes =
                xdp::measure(&port, ours.as_ref(), (flows, family == 6), (args.rounds, args.packets))?;
            println!("\nXDP, {flows} flows, IPv{family}: ns for each frame, over the first");
            for xdp::Lane { name, ns, ratio, .. } in &lanes {
                println!(
                    "{name:<14} {:>5.0} {:.3} ({:.3}..{:.3})",
                    ns.median, ratio.median, ratio.min, ratio.max
                );
            }
            all.extend(lanes);
        }
    }
    Ok((all, ours.is_none()))
}

fn through_a_node(args: &Args, cells: &mut Vec<Cell>) -> Result<()> {
    let peers: &[&str] = if args.alone { &[] } else { &[NFTABLES, IPTABLES] };
    let names = [PLAIN[0], OURS].into_iter().chain(peers.iter().copied()).chain([PLAIN[1]]);
    let mut wires = names.map(|name| Wire::new(name, args.cpu)).collect::<Result<Vec<_>>>()?;
    wires.iter_mut().try_for_each(Wire::count)?;
    if args.alone {
        return sizes(args, &wires, None, cells);
    }
    let control_plane = ControlPlane::start()?;
    let node = |name: &str| wires.iter().find(|wire| wire.name == name).map(Wire::node);
    let nodes = [node(NFTABLES).context("a lane")?, node(IPTABLES).context("a lane")?];
    let peers = Peers::start(&control_plane, nodes)?;
    control_plane.create_all(wires[0].objects())?;
    sizes(args, &wires, Some(peers), cells)
}

fn sizes(args: &Args, wires: &[Wire], mut peers: Option<Peers<'_>>, cells: &mut Vec<Cell>) -> Result<()> {
    let home = Home::new("bench-packets")?;
    let ours = wires.iter().find(|wire| wire.name == OURS).context("a lane")?;
    let lanes: Vec<&'static str> = wires.iter().map(|wire| wire.name).collect();
    let backends = wire::backends();
    home.apply("wire", &ours.objects())?;
    for &size in &args.sizes {
        println!("loading {size} Services");
        let services: Vec<_> =
            (0..size).flat_map(|number| peers::objects_of(number, size, backends)).collect();
        home.apply("services", &services)?;
        let room = args.room().to_string();
        let agent = Agent::start_with(
            ours.node(),
            &home,
            ["--devices", "up0,down0", "--pod-devices", "pod*", "--map-max-flows", &room],
        )?;
        let mut remark = None;
        if let Some(peers) = &mut peers {
            for place in [Where::Elsewhere, Where::Here] {
                for ip in wire::cluster_ip(place) {
                    peers.wait_programmed(ip, SERVICE_PORT)?;
                }
            }
            remark = peers.load(size, args.real, backends)?;
        }
        for &family in &args.families {
            for place in [Where::Elsewhere, Where::Here] {
                for &flows in &args.flows {
                    let flows = if flows == 0 { Flows::New } else { Flows::Open(flows) };
                    let mut cell = Cell::measure(
                        wires,
                        (size, family == 6),
                        (place, flows),
                        (args.rounds, args.packets),
                    )?;
                    cell.remark.clone_from(&remark);
                    print!("{}", cell.table(&lanes));
                    cells.push(cell);
                }
            }
        }
        agent.stop()?;
    }
    Ok(())
}
