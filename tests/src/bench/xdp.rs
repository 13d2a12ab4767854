//! What a packet costs at XDP, over a program of two instructions that sends it back (G5): live frames by BPF_PROG_TEST_RUN, which the other
//! end of the cable counts and drops.
//!
//! A figure of ours counts only if every frame was counted there, translated.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use aya::{Ebpf, EbpfLoader, programs::Xdp};
use nix::net::if_::if_nametoindex;
use serde::Serialize;

use super::{
    bpf::{Code, Kind, Map, Program, Reg, go_first},
    frames::{Says, frame},
    generator::Source,
    runs::{self, two_instructions},
    stats::Spread,
    wire::{CABLE, Where, node_port},
    worker,
};
use crate::{Netns, Node, Topology};

/// `XDP_DROP`, `XDP_TX`
const DROP: i32 = 1;
const TX: i32 = 3;
/// Our program.
const OURS: &str = "lb_xdp";

/// One lane's nanoseconds for each frame.
#[derive(Clone, Debug, Serialize)]
pub struct Lane {
    /// Which program.
    pub name: &'static str,
    /// Flows that take turns.
    pub flows: u32,
    /// 4 or 6.
    pub family: u8,
    /// Of all rounds.
    pub ns: Spread,
    /// What the first lane takes over what this one takes, in the same round.
    pub ratio: Spread,
}

/// A node's device, and the end of its cable.
#[derive(Debug)]
pub struct Port {
    cpu: usize,
    seen: Map,
    _far: Netns,
    topology: Topology,
    _link: OwnedFd,
}

impl Port {
    /// Builds the namespaces.
    ///
    /// # Errors
    /// Those of ip(8) and of the kernel.
    pub fn new(cpu: usize) -> Result<Self> {
        let topology = Topology::single()?;
        let far = Netns::new("far")?;
        topology.node(1).netns.join("up0", &far, "eth0")?;
        let seen = Map::array(8, 1)?;
        let mut code = Code::default();
        code.copy(Reg::R6, Reg::R1).count(&seen, 0).exit(DROP);
        let counts = code.program(Kind::Xdp, "bench_count")?;
        let link = far.run(|| counts.attach(if_nametoindex("eth0")?))?;
        Ok(Self { cpu, seen, _far: far, topology, _link: link })
    }

    fn node(&self) -> &Node {
        self.topology.node(1)
    }

    /// Nanoseconds for each of `count` frames that a program decides.
    fn round(&self, source: &Source, program: BorrowedFd<'_>, count: u32) -> Result<f64> {
        source.lead_to(program)?;
        let before = self.seen.get(0)?;
        let took = self.node().netns.run(|| -> Result<_> {
            worker::pin(self.cpu)?;
            go_first()?;
            Ok(source.send_timed(if_nametoindex("up0")?, 0, count)?.took)
        })?;
        let seen = self.seen.get(0)? - before;
        ensure!(seen * 1000 >= u64::from(count) * 999, "of {count} frames {seen} came back");
        Ok(took.as_secs_f64() * 1e9 / f64::from(count))
    }
}

/// The object, if it has a program at XDP.
///
/// # Errors
/// It does not load.
pub fn ours(object: &[u8]) -> Result<Option<Ebpf>> {
    let mut ebpf = EbpfLoader::new().load(object)?;
    let Some(program) = ebpf.program_mut(OURS) else { return Ok(None) };
    let program: &mut Xdp = program.try_into()?;
    program.load()?;
    Ok(Some(ebpf))
}

/// Measures the program of two instructions twice, and between them ours, if there is one.
///
/// # Errors
/// Frames are lost.
pub fn measure(
    port: &Port,
    ours: Option<&Ebpf>,
    (flows, v6): (u32, bool),
    (rounds, count): (u32, u32),
) -> Result<Vec<Lane>> {
    let to = node_port(port.node(), Where::Elsewhere, v6);
    let frames: Vec<Vec<u8>> =
        (0..flows).map(|number| frame(CABLE, runs::client(number, v6), to, Says::Udp)).collect();
    let source = Source::new(Kind::Xdp, &frames)?;
    let two: Program = two_instructions(Kind::Xdp, TX)?;
    let mut lanes = vec![("XDP_TX", two.as_fd())];
    if let Some(ebpf) = ours {
        let program: &Xdp = ebpf.program(OURS).context("our program")?.try_into()?;
        lanes.push((OURS, program.fd()?.as_fd()));
    }
    lanes.push(("XDP_TX again", two.as_fd()));
    let mut seen: Vec<Vec<f64>> = vec![Vec::new(); lanes.len()];
    for round in 0..rounds as usize {
        for step in 0..lanes.len() {
            let at = (step + round) % lanes.len();
            seen[at].push(port.round(&source, lanes[at].1, count)?);
        }
    }
    let lane = |(&(name, _), ns): (&(&'static str, BorrowedFd<'_>), &Vec<f64>)| Lane {
        name,
        flows,
        family: if v6 { 6 } else { 4 },
        ns: Spread::of(ns.iter().copied()),
        ratio: Spread::of(seen[0].iter().zip(ns).map(|(first, ns)| first / ns)),
    };
    Ok(lanes.iter().zip(&seen).map(lane).collect())
}
