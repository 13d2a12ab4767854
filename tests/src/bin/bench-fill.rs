//! `cargo xtask bench fill`: from decoded objects to programmed maps, and one change in a large cluster.
//!
//! Every figure is a median over rounds in one process pinned to one CPU. Kernel maps are the real ones; nothing is
//! attached.

use std::{
    fs,
    process::{Command, ExitCode},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Parser;
use lb_agent::{
    datapath::load::{Loaded, Switches, load},
    maps::{memory::Capacities, pin::PinDir},
    reconcile::Reconciler,
};
use lb_common::abi::SocketLb;
use lb_tests::{
    Agent, Bpffs, Home, Topology,
    agent::pinned,
    bench::{
        cluster::{Objects, Pipeline, slice},
        stats::Spread,
    },
    privilege,
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use serde_json::json;

/// Fill and change times of the agent's pipeline.
#[derive(Debug, Parser)]
struct Args {
    /// Rounds of each measurement.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Write all figures as JSON to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<std::path::PathBuf>,
}

fn main() -> ExitCode {
    if !privilege::is_root() {
        eprintln!("bench-fill: needs root, to create BPF maps");
        return ExitCode::FAILURE;
    }
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-fill: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("cannot pin to CPU 0")?;
    let mut fills = Vec::new();
    println!("fill: decoded objects to programmed maps, {} rounds, CPU 0", args.rounds);
    println!("{:>9} x {:<3} {:>12} {:>12} {:>12}", "services", "n", "convert ms", "program ms", "us/service");
    for services in [10_000, 100_000] {
        let mut per_service = [0.0; 2];
        for (at, endpoints) in [1, 10].into_iter().enumerate() {
            let times = (0..args.rounds).map(|_| fill(services, endpoints)).collect::<Result<Vec<_>>>()?;
            let convert = Spread::of(times.iter().map(|(convert, _)| ms(*convert)));
            let program = Spread::of(times.iter().map(|(_, program)| ms(*program)));
            let us = (convert.median + program.median) * 1000.0 / f64::from(services);
            per_service[at] = us;
            println!(
                "{services:>9} x {endpoints:<3} {:>12.1} {:>12.1} {us:>12.2}",
                convert.median, program.median
            );
            fills.push(json!({"services": services, "endpoints": endpoints, "convert_ms": convert, "program_ms": program}));
        }
        let [one, ten] = per_service;
        println!(
            "{services:>9}: {one:.2} us per Service with one backend, {:.2} us per further backend",
            (ten - one) / 9.0
        );
    }
    let changes = changes()?;
    let memory = memory()?;
    if let Some(path) = &args.json {
        let all = json!({"fill": fills, "change": changes, "memory": memory});
        fs::write(path, serde_json::to_vec_pretty(&all)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// A reconciler over fresh kernel maps that hold this many.
fn empty(services: u32, endpoints: u32) -> Result<(Bpffs, PinDir, Reconciler)> {
    let bpffs = Bpffs::new("fill")?;
    let pins = PinDir::open(&bpffs.path().join("lb"))?;
    let slots = services * endpoints.next_power_of_two();
    let room = |entries: u32| entries + entries / 4 + 4096;
    let need = Capacities {
        // One for the port, one for all other ports of the ClusterIP.
        frontends: room(2 * services),
        services: room(services),
        slots: room(slots),
        backends: room(services * endpoints),
        ..Capacities::default()
    };
    let switches =
        Switches { host_netns: 0, has_set_retval: true, has_mptcp: false, has_coarse_clock: false };
    let Loaded { maps, .. } = load(&pins, switches, need, || {})?;
    Ok((bpffs, pins, Reconciler::restore(maps, SocketLb::ALL)?))
}

/// Time to convert and take in all objects, and time to compile and program them.
fn fill(services: u32, endpoints: u32) -> Result<(Duration, Duration)> {
    let objects = Objects::new(services, endpoints)?;
    let (_bpffs, _pins, reconciler) = empty(services, endpoints)?;
    let mut pipeline = Pipeline::new(reconciler);
    let begin = Instant::now();
    pipeline.take_in(&objects)?;
    let converted = begin.elapsed();
    pipeline.program()?;
    Ok((converted, begin.elapsed().saturating_sub(converted)))
}

/// Single changes in a small and in a large cluster, one after the other and with a cold cache.
fn changes() -> Result<Vec<serde_json::Value>> {
    println!("\nchange: one endpoint of one Service replaced, converted, compiled and programmed");
    println!("{:>9} {:<10} {:>10} {:>10} {:>10}", "services", "cache", "p50 us", "p99 us", "max us");
    let mut rows = Vec::new();
    for (cold, cache, count) in [(false, "as it is", 5000), (true, "cold", 300)] {
        let mut medians = Vec::new();
        for services in [1000, 50_000] {
            let (p50, p99, max) = change(services, count, cold)?;
            println!("{services:>9} {cache:<10} {p50:>10.1} {p99:>10.1} {max:>10.1}");
            rows.push(
                json!({"services": services, "cache": cache, "p50_us": p50, "p99_us": p99, "max_us": max}),
            );
            medians.push(p50);
        }
        println!("{:>9} ratio of the medians, 50000 over 1000: {:.2}", "", medians[1] / medians[0]);
    }
    Ok(rows)
}

/// Memory of a running agent and of its maps.
fn memory() -> Result<Vec<serde_json::Value>> {
    println!("\nmemory: lb-agent on a folder of manifests, 5 s after it was ready");
    println!("{:>9} x {:<3} {:>12} {:>14}", "services", "n", "agent MiB", "maps MiB");
    let mut rows = Vec::new();
    for (services, endpoints) in [(0, 0), (10_000, 2), (30_000, 4)] {
        let topology = Topology::single()?;
        let home = Home::new("memory")?;
        let objects = Objects::new(services, endpoints)?;
        let all = objects.services.iter().zip(&objects.slices);
        let values: Vec<serde_json::Value> = all
            .flat_map(|(service, slice)| [serde_json::to_value(service), serde_json::to_value(slice)])
            .collect::<Result<_, _>>()?;
        for (number, chunk) in values.chunks(1000).enumerate() {
            home.apply(&format!("part{number}"), chunk)?;
        }
        let agent = Agent::start(topology.node(1), &home)?;
        sleep(Duration::from_secs(5));
        let (rss, maps) = (resident(agent.id())?, map_bytes(&home)?);
        println!("{services:>9} x {endpoints:<3} {rss:>12.1} {maps:>14.1}");
        rows.push(json!({"services": services, "endpoints": endpoints, "agent_mib": rss, "maps_mib": maps}));
    }
    Ok(rows)
}

/// Resident memory of a process in MiB.
fn resident(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("the agent runs")?;
    let line =
        text.lines().find_map(|line| line.strip_prefix("Rss:")).context("smaps_rollup has a line Rss")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}

/// Kernel memory of all pinned maps in MiB, as bpftool shows it.
fn map_bytes(home: &Home) -> Result<f64> {
    let mut bytes = 0.0;
    for entry in fs::read_dir(pinned(home, ""))? {
        let output =
            Command::new("bpftool").args(["-j", "map", "show", "pinned"]).arg(entry?.path()).output()?;
        let map: serde_json::Value = serde_json::from_slice(&output.stdout).context("bpftool prints JSON")?;
        bytes += map["bytes_memlock"].as_f64().unwrap_or(0.0);
    }
    Ok(bytes / (1024.0 * 1024.0))
}

/// Larger than the last-level caches of today's servers.
const CACHE: usize = 256 << 20;

/// Median, 99th percentile and maximum of single changes, in microseconds.
fn change(services: u32, changes: u32, cold: bool) -> Result<(f64, f64, f64)> {
    let objects = Objects::new(services, 2)?;
    let (_bpffs, _pins, reconciler) = empty(services, 2)?;
    let mut pipeline = Pipeline::new(reconciler);
    pipeline.take_in(&objects)?;
    pipeline.program()?;
    drop(objects);
    let mut times = Vec::new();
    let mut elsewhere = vec![0_u8; CACHE];
    for round in 0..changes {
        let number = round.wrapping_mul(7919) % services;
        let object = slice(number, 2, 1 + round % 2)?;
        // A node does other things between two changes: without this, the small cluster is measured in the cache.
        if cold {
            elsewhere.iter_mut().step_by(64).for_each(|byte| *byte = byte.wrapping_add(1));
            std::hint::black_box(&elsewhere);
        }
        let begin = Instant::now();
        pipeline.slice(&object)?;
        pipeline.program()?;
        times.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    let at = |fraction| lb_tests::bench::stats::quantile(&times, fraction);
    Ok((at(0.5), at(0.99), at(1.0)))
}
