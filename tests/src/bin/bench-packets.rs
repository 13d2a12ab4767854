//! `cargo xtask bench packets`: what a packet costs, beside plain forwarding and beside real kube-proxy, in one run.
//!
//! ```text
//! runs   our programs alone, at tc and at XDP, by BPF_PROG_TEST_RUN: nanoseconds above a program of two instructions
//! xdp    live frames that lb_xdp sends back, over a program of two instructions that does
//! path   packets through a node on one CPU: forwarding, ours at tc and at XDP, nftables, iptables, forwarding again
//! rr     requests over open connections between pods: direct, ours at sockets and at tc, nftables, iptables, direct again
//! udp    the same in datagrams, of one socket and of a new one each time
//! ```

use std::{fs, panic::resume_unwind, path::PathBuf, process::ExitCode, thread, time::Duration};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use lb_agent::datapath::OBJECT;
use lb_tests::{
    Agent, Home,
    bench::{
        lane::Lane,
        path::{Cell, Flows, PLAIN, expressed},
        peers::{self, IPTABLES, NFTABLES, Peers, SERVICE_PORT},
        report::{DIRECT, Goal, OURS, OURS_XDP},
        requests::{self, OURS_TC},
        runs::{self, Case, Wanted},
        wire::{self, CABLES, Where, Wire},
        worker::{self, Asking},
        xdp::{self, Port},
    },
    control_plane::ControlPlane,
    privilege,
    wait::wait_for,
};
use serde_json::{Value, json};

/// What a packet costs.
#[derive(Debug, Parser)]
struct Args {
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "runs,xdp,path,rr,udp")]
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
    /// Packets of each round of packets.
    #[arg(long, default_value_t = 131_072)]
    packets: u32,
    /// Milliseconds of each round of requests.
    #[arg(long, default_value_t = 150)]
    ms: u64,
    /// Of the programs alone, only what begins so.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    only: String,
    /// Of the programs alone, also those of another object, in turn with ours: what `cargo xtask build-ebpf` made of another version.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// CPU that everything runs on; for requests always the first one.
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// Leave kube-proxy out.
    #[arg(long)]
    alone: bool,
    /// Write all figures as JSON into this folder.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Part {
    /// Nanoseconds of our programs alone.
    Runs,
    /// Frames at XDP.
    Xdp,
    /// Packets through a node.
    Path,
    /// Requests over open connections.
    Rr,
    /// Requests in datagrams.
    Udp,
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
    let frames = if args.parts.contains(&Part::Xdp) { live_frames(args)? } else { Vec::new() };
    let mut cells = Vec::new();
    if args.parts.contains(&Part::Path) {
        through_a_node(args, &mut cells)?;
    }
    let mut asked = Vec::new();
    if args.parts.contains(&Part::Rr) || args.parts.contains(&Part::Udp) {
        ask(args, &mut asked)?;
    }
    let mut goals: Vec<Goal> = cases.iter().filter_map(Case::goal).collect();
    goals.extend(frames.iter().flat_map(xdp::Cell::goals));
    goals.extend(cells.iter().map(Cell::goals).collect::<Result<Vec<_>>>()?.into_iter().flatten());
    goals.extend(asked.iter().flat_map(requests::Cell::goals));
    report(&goals);
    if let Some(folder) = &args.out {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let all = json!({
            "runs": cases, "cells": cells, "xdp": frames, "requests": asked, "goals": goals, "rounds": args.rounds,
            "packets": args.packets, "ms": args.ms,
        });
        fs::write(folder.join("packets.json"), serde_json::to_vec_pretty(&all)?)?;
        println!("written: {}", folder.display());
    }
    Ok(goals.iter().all(|goal| goal.reached))
}

fn report(goals: &[Goal]) {
    let kernel = nix::sys::utsname::uname();
    let kernel = kernel.as_ref().map_or_else(|_| "?".into(), |name| name.release().to_string_lossy());
    println!("\ngoals (kernel {kernel}, {})", processor().unwrap_or_else(|| "?".into()));
    for goal in goals {
        println!("{} {:<90} {:.3}", if goal.reached { "[ok]  " } else { "[MISS]" }, goal.what, goal.seen);
    }
    let below = goals.iter().filter(|goal| !goal.reached && goal.what.contains("not below"));
    match below.count() {
        0 => {}
        count => println!("\nSLOWER THAN KUBE-PROXY in {count} of the lines above: search for BELOW"),
    }
}

/// What this machine says it is made of.
fn processor() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let name = text.lines().find(|line| line.starts_with("model name"))?.split(": ").nth(1)?;
    Some(format!("{}x {name}", thread::available_parallelism().ok()?))
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
        // New flows are among the cases.
        for &flows in args.flows.iter().filter(|flows| **flows > 0) {
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

fn live_frames(args: &Args) -> Result<Vec<xdp::Cell>> {
    let port = Port::new(args.cpu)?;
    let mut all = Vec::new();
    for &flows in args.flows.iter().filter(|flows| **flows > 0) {
        for &family in &args.families {
            let cell = xdp::measure(&port, OBJECT, (flows, family == 6), (args.rounds, args.packets))?;
            println!("\nXDP, {flows} flows, IPv{family}, A-A {:.3}", cell.a_a);
            println!(
                "{:<16} {:>8} {:>9} {:>24} {:>12}",
                "", "ns/frame", "Mpps", "rate over XDP_TX", "with source"
            );
            for xdp::Lane { name, ns, ratio, with_source } in &cell.lanes {
                println!(
                    "{name:<16} {:>8.0} {:>9.3} {:>24} {:>12.3}",
                    ns.median,
                    1e3 / ns.median,
                    format!("{:.3} ({:.3}..{:.3})", ratio.median, ratio.min, ratio.max),
                    with_source.median,
                );
            }
            all.push(cell);
        }
    }
    Ok(all)
}

fn through_a_node(args: &Args, cells: &mut Vec<Cell>) -> Result<()> {
    let peers: &[&str] = if args.alone { &[] } else { &[NFTABLES, IPTABLES] };
    let names = [PLAIN[0], OURS, OURS_XDP].into_iter().chain(peers.iter().copied()).chain([PLAIN[1]]);
    let mut wires = names.map(|name| Wire::new(name, args.cpu)).collect::<Result<Vec<_>>>()?;
    wires.iter_mut().try_for_each(Wire::count)?;
    wires.iter_mut().filter(|wire| wire.name == OURS_XDP).try_for_each(Wire::take_express)?;
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

/// A lane of ours.
struct Ours<'a> {
    wire: &'a Wire,
    home: Home,
}

impl<'a> Ours<'a> {
    fn new(wires: &'a [Wire], name: &str) -> Result<Self> {
        let wire = wires.iter().find(|wire| wire.name == name).context("a lane")?;
        let home = Home::new("bench-packets")?;
        home.apply("wire", &wire.objects())?;
        Ok(Self { wire, home })
    }

    /// Starts an agent that keeps so many flows, with XDP if the lane is to have that. If it does not get it, the lane will be void.
    fn start(&self, services: &[Value], flows: u32) -> Result<Agent> {
        self.home.apply("services", services)?;
        let xdp = self.wire.name == OURS_XDP;
        if xdp {
            self.wire.ask_neighbours()?;
        }
        let devices = CABLES.join(",");
        let xdp_option = if xdp { "native" } else { "off" };
        let flows = flows.to_string();
        let options =
            ["--devices", &devices, "--pod-devices", "pod*", "--xdp", xdp_option, "--map-max-flows", &flows];
        let agent = Agent::start_with(self.wire.node(), &self.home, options)?;
        if xdp {
            let is_on = || expressed(&self.home).map(drop).map_err(|error| format!("{error:#}"));
            if let Err(why) = wait_for("XDP at both cables", Duration::from_secs(30), is_on) {
                println!("{why:#}");
            }
            self.wire.keep_neighbours()?;
        }
        Ok(agent)
    }
}

fn sizes(args: &Args, wires: &[Wire], mut peers: Option<Peers<'_>>, cells: &mut Vec<Cell>) -> Result<()> {
    let [ours, express] = [OURS, OURS_XDP].map(|name| Ours::new(wires, name));
    let (ours, express) = (ours?, express?);
    let lanes: Vec<&'static str> = wires.iter().map(|wire| wire.name).collect();
    let backends = wire::backends();
    // Those of backends elsewhere and of those here are all kept to the end, as connection tracking keeps them. A table without room
    // would be a measurement of something else.
    let kept = (2 * args.flows.iter().sum::<u32>()).next_power_of_two().max(1 << 16);
    for &size in &args.sizes {
        println!("loading {size} Services");
        let services: Vec<_> =
            (0..size).flat_map(|number| peers::objects_of(number, size, backends)).collect();
        let agents = [ours.start(&services, kept)?, express.start(&services, kept)?];
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
                        (wires, [&ours.home, &express.home]),
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
        agents.into_iter().try_for_each(Agent::stop)?;
    }
    Ok(())
}

fn ask(args: &Args, cells: &mut Vec<requests::Cell>) -> Result<()> {
    let peers: &[&str] = if args.alone { &[] } else { &[NFTABLES, IPTABLES] };
    let names = [DIRECT[0], OURS, OURS_TC].into_iter().chain(peers.iter().copied()).chain([DIRECT[1]]);
    let lanes = names.map(Lane::for_requests).collect::<Result<Vec<_>>>()?;
    if args.alone {
        return ask_sizes(args, &lanes, None, cells);
    }
    let control_plane = ControlPlane::start()?;
    let node = |name: &str| lanes.iter().find(|lane| lane.name == name).map(Lane::node);
    let nodes = [node(NFTABLES).context("a lane")?, node(IPTABLES).context("a lane")?];
    let peers = Peers::start(&control_plane, nodes)?;
    control_plane.create_all(requests::objects(&lanes[0]))?;
    ask_sizes(args, &lanes, Some(peers), cells)
}

fn ask_sizes(
    args: &Args,
    lanes: &[Lane],
    mut peers: Option<Peers<'_>>,
    cells: &mut Vec<requests::Cell>,
) -> Result<()> {
    let (tcp, udp) = ([Asking::Tcp(1), Asking::Tcp(16)], [Asking::UdpFixed, Asking::UdpFresh]);
    let parts = [(Part::Rr, tcp), (Part::Udp, udp)];
    let asking: Vec<Asking> =
        parts.into_iter().filter(|(part, _)| args.parts.contains(part)).flat_map(|(_, ways)| ways).collect();
    let names: Vec<&'static str> = lanes.iter().map(|lane| lane.name).collect();
    let homes = [Home::new("bench-sockets")?, Home::new("bench-tc")?];
    let [ours, tc] = [OURS, OURS_TC].map(|name| lanes.iter().find(|lane| lane.name == name));
    let (ours, tc) = (ours.context("a lane")?, tc.context("a lane")?);
    let backends = [false, true].map(|v6| ours.backend(v6));
    for &size in &args.sizes {
        println!("loading {size} Services");
        let mut services = requests::objects(ours);
        services.extend((0..size).flat_map(|number| peers::objects_of(number, size, backends)));
        homes.iter().try_for_each(|home| home.apply("services", &services))?;
        let agents = [
            Agent::start(ours.node(), &homes[0])?,
            Agent::start_with(tc.node(), &homes[1], ["--socket-lb", "none", "--pod-devices", "pod*"])?,
        ];
        let mut remark = None;
        if let Some(peers) = &mut peers {
            for v6 in [false, true] {
                let to = requests::asked(v6);
                peers.wait_programmed(to.ip(), to.port())?;
            }
            remark = peers.load(size, args.real, backends)?;
        }
        for &family in &args.families {
            for &asking in &asking {
                let time = (args.rounds, Duration::from_millis(args.ms));
                let mut cell = requests::Cell::measure(lanes, (size, family == 6), asking, time)?;
                if let Some(remark) = &remark {
                    cell.cell.remarks.extend([NFTABLES, IPTABLES].map(|lane| (lane, remark.clone())));
                }
                print!("{}", cell.table(&names));
                cells.push(cell);
            }
        }
        agents.into_iter().try_for_each(Agent::stop)?;
    }
    Ok(())
}
