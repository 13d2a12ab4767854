//! What a frame costs at XDP, over a program of two instructions that sends it back (G5): live frames by BPF_PROG_TEST_RUN, which the other
//! end of the cable counts and drops.
//!
//! ```text
//! alone       two instructions, one frame again and again
//! XDP_TX      a Source makes each frame the next flow's, then two instructions
//! lb_xdp      the same Source, then ours
//! ```
//!
//! A program of two instructions needs no Source, ours needs one: with a single frame it would meet a single flow. What the Source takes,
//! the difference of the first two, is not ours and is subtracted from what the third takes. A figure of ours counts only if every
//! frame was counted, by ours as sent on and at the other end.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::{Addr, Addr4, Reason};
use nix::net::if_::if_nametoindex;
use serde::Serialize;

use super::{
    bpf::{Code, Kind, Map, Program, Reg, go_first},
    frames::Says,
    generator::{Sent, Source},
    report::Goal,
    runs::{self, DROP, Hook, Loaded, TX, UPLINK, frames_of, open, two_instructions},
    stats::{Spread, order},
    worker,
};
use crate::Netns;

/// The lane without a [`Source`].
pub const ALONE: &str = "alone";
/// The lane that ours is compared with, and its twin.
pub const PLAIN: [&str; 2] = ["XDP_TX", "XDP_TX again"];
/// Requests at ours, and answers.
pub const OURS: [&str; 2] = ["lb_xdp", "lb_xdp, answers"];

/// All rounds of one family and number of flows.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// Flows that take turns.
    pub flows: u32,
    /// 4 or 6.
    pub family: u8,
    /// The A-A check: median ratio of the two lanes of [`PLAIN`].
    pub a_a: f64,
    /// Lanes, in the order of the table.
    pub lanes: Vec<Lane>,
}

/// One lane of a cell.
#[derive(Clone, Debug, Serialize)]
pub struct Lane {
    /// Which program.
    pub name: &'static str,
    /// Nanoseconds for each frame, of all rounds.
    pub ns: Spread,
    /// Frames per second over those of the program of two instructions, each without what its Source takes.
    pub ratio: Spread,
    /// Frames per second over those of [`PLAIN`], Source and all: closer to 1.
    pub with_source: Spread,
}

/// A node's device, and the end of its cable, in one namespace.
#[derive(Debug)]
pub struct Port {
    cpu: usize,
    seen: Map,
    netns: Netns,
    _link: OwnedFd,
}

/// The programs, and the frame of the lane without a [`Source`].
struct Set {
    loaded: Loaded,
    two: Program,
    frame: Vec<u8>,
}

/// What takes turns.
struct Turn<'a> {
    name: &'static str,
    source: Option<&'a Source>,
    hook: Option<Hook>,
}

impl Port {
    /// Builds the namespace.
    ///
    /// # Errors
    /// Those of ip(8) and of the kernel.
    pub fn new(cpu: usize) -> Result<Self> {
        let netns = runs::node()?;
        let seen = Map::array(8, 1)?;
        let mut code = Code::default();
        code.copy(Reg::R6, Reg::R1).count(&seen, 0).exit(DROP.cast_signed());
        let counts = code.program(Kind::Xdp, "bench_count")?;
        // A device takes frames of the other end only if it has a program, too.
        let link = netns.run(|| counts.attach(if_nametoindex("uplinkp")?))?;
        Ok(Self { cpu, seen, netns, _link: link })
    }

    /// Nanoseconds for each of `count` frames.
    fn round(&self, set: &Set, turn: &Turn<'_>, count: u32) -> Result<f64> {
        let Set { loaded, two, frame } = set;
        let Turn { name, source, hook } = *turn;
        if let Some(source) = source {
            source.lead_to(hook.map_or(Ok(two.as_fd()), |hook| loaded.program(hook))?)?;
        }
        let before = (self.seen.get(0)?, loaded.counted(Reason::Express)?);
        let took = self.netns.run(|| -> Result<_> {
            worker::pin(self.cpu)?;
            go_first()?;
            let sent = match source {
                Some(source) => source.send_timed(UPLINK, 0, count)?,
                None => Sent::time(count, |count| two.send(frame, UPLINK, count))?,
            };
            Ok(sent.took)
        })?;
        // The one that was sent alone, too.
        let all = u64::from(count) + 1;
        let (seen, ours) = (self.seen.get(0)? - before.0, loaded.counted(Reason::Express)? - before.1);
        ensure!(seen * 1000 >= all * 999, "{name}: of {all} frames {seen} came to the other end");
        let wanted = if hook.is_some() { all } else { 0 };
        ensure!(ours == wanted, "{name}: {ours} of {wanted} frames were sent on by ours");
        Ok(took.as_secs_f64() * 1e9 / f64::from(count))
    }
}

/// Measures frames of so many flows of a family.
///
/// # Errors
/// Frames are lost, or not translated.
pub fn measure(
    port: &Port,
    object: &[u8],
    (flows, v6): (u32, bool),
    (rounds, count): (u32, u32),
) -> Result<Cell> {
    let mut loaded = Loaded::new(object, 1, flows, v6)?;
    let ends = if v6 {
        open::<Addr>(&mut loaded, &port.netns, flows)?
    } else {
        open::<Addr4>(&mut loaded, &port.netns, flows)?
    };
    let frames = [0, 1].map(|way| frames_of(&ends.away[way], Says::Ack));
    let frame = frames[0].first().context("frames")?.clone();
    let [requests, answers] = frames.map(|frames| Source::new(Kind::Xdp, &frames));
    let (requests, answers) = (requests?, answers?);
    let set = Set { loaded, two: two_instructions(Kind::Xdp, TX.cast_signed())?, frame };
    let turn = |name, source, hook| Turn { name, source, hook };
    let turns = [
        turn(PLAIN[0], Some(&requests), None),
        turn(ALONE, None, None),
        turn(OURS[0], Some(&requests), Some(Hook::Xdp)),
        turn(OURS[1], Some(&answers), Some(Hook::Xdp)),
        turn(PLAIN[1], Some(&requests), None),
    ];
    let mut seen: Vec<Vec<f64>> = vec![Vec::new(); turns.len()];
    for round in 0..rounds as usize {
        for at in order(turns.len(), round) {
            seen[at].push(port.round(&set, &turns[at], count)?);
        }
    }
    Ok(Cell::sum_up(turns.map(|turn| turn.name), &seen, (flows, v6)))
}

impl Cell {
    fn sum_up<const N: usize>(names: [&'static str; N], seen: &[Vec<f64>], (flows, v6): (u32, bool)) -> Self {
        let of = |name| names.iter().zip(seen).find(|(lane, _)| **lane == name).map_or(&[][..], |(_, ns)| ns);
        let (alone, [one, other]) = (of(ALONE), PLAIN.map(of));
        let lane = |(&name, ns): (&&'static str, &Vec<f64>)| {
            // Of the same round, so that a drift of the machine does not count.
            let plain = |round: usize| f64::midpoint(one[round], other[round]);
            let source = |round: usize| if name == ALONE { 0.0 } else { plain(round) - alone[round] };
            let rounds = || ns.iter().copied().enumerate();
            Lane {
                name,
                ns: Spread::of(ns.iter().copied()),
                ratio: Spread::of(rounds().map(|(round, ns)| alone[round] / (ns - source(round)))),
                with_source: Spread::of(rounds().map(|(round, ns)| plain(round) / ns)),
            }
        };
        let a_a = Spread::of(one.iter().zip(other).map(|(one, other)| one / other)).median;
        Self { flows, family: if v6 { 6 } else { 4 }, a_a, lanes: names.iter().zip(seen).map(lane).collect() }
    }

    fn lane(&self, name: &str) -> Option<&Lane> {
        self.lanes.iter().find(|lane| lane.name == name)
    }

    /// Compares with G5.
    pub fn goals(&self) -> Vec<Goal> {
        let place = format!("{} flows, IPv{}", self.flows, self.family);
        let is_even = (self.a_a - 1.0).abs() <= 0.03;
        let what = format!("A-A within 3 %: XDP, {place}");
        let mut goals = vec![Goal { what, seen: self.a_a, reached: is_even }];
        let least = if self.flows <= 1024 { 0.55 } else { 0.45 };
        for lane in OURS.iter().filter_map(|name| self.lane(name)) {
            let seen = lane.ratio.median;
            let what = format!("G5 {} >= {least} of XDP_TX: {place}", lane.name);
            // What is subtracted comes from other lanes: where twins differ, a ratio may be anything.
            goals.push(Goal { what, seen, reached: is_even && seen >= least });
        }
        goals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_the_frames_is_subtracted() {
        // 40 ns of the source; ours takes 100 more than two instructions.
        let names = [PLAIN[0], ALONE, OURS[0], PLAIN[1]];
        let seen = [vec![140.0], vec![100.0], vec![240.0], vec![140.0]];
        let cell = Cell::sum_up(names, &seen, (1024, false));
        let lane = cell.lane(OURS[0]).unwrap();
        assert_eq!((lane.ratio.median, lane.with_source.median), (0.5, 140.0 / 240.0));
        let goals = cell.goals();
        assert_eq!(goals.iter().map(|goal| goal.reached).collect::<Vec<_>>(), [true, false], "{goals:?}");
    }
}
