//! Packets through a node on one CPU, side by side: forwarded, ours, and by kube-proxy's rules. What `bench-packets` makes of [`Wire`]s.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use lb_common::abi::Reason;

use super::{
    generator::Source,
    peers::{IPTABLES, NFTABLES, forget},
    report::{Goal, OURS, OURS_XDP, mark},
    stats::{Spread, order},
    wire::{CABLES, To, Traffic, Where, Wire},
};
use crate::Home;

/// Why writing to a String is never an error.
const FITS: &str = "a String takes any text";
/// The lane that the others are compared with, and its twin.
pub const PLAIN: [&str; 2] = ["forwarding", "forwarding again"];
/// New flows in a list.
const FRESH: u32 = 1 << 18;
/// New flows of a round: fewer than connection tracking has room for.
const OPENED: u32 = 1 << 15;

/// How many flows there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum Flows {
    /// As many, open for both directions.
    Open(u32),
    /// Every packet begins one.
    New,
}

/// All rounds of one kind of traffic.
#[derive(Debug, Serialize)]
pub struct Cell {
    /// Services.
    pub size: u32,
    /// 4 or 6.
    pub family: u8,
    /// Where the backends are.
    pub place: Where,
    /// How many flows.
    pub flows: Flows,
    /// What is not real about a lane.
    pub remark: Option<String>,
    /// Why the lane with XDP says nothing and was left out.
    pub void: Option<String>,
    /// Nanoseconds for each packet, and the part that was lost, by lane and round.
    pub rounds: BTreeMap<&'static str, Vec<[f64; 2]>>,
}

/// How many packets an agent's XDP has sent on so far.
///
/// # Errors
/// It is not at both cables.
pub fn expressed(home: &Home) -> Result<u64> {
    let status = home.status()?;
    for name in CABLES {
        let said = row(&status["agent"]["devices"], name)["xdp"].clone();
        ensure!(said == "native", "XDP of {name}: {said}");
    }
    count(&status, Reason::Express)
}

/// The row of that name in a list of an agent's status.
fn row<'a>(rows: &'a Value, name: &str) -> &'a Value {
    let mut rows = rows.as_array().into_iter().flatten();
    rows.find(|row| row["name"] == name).unwrap_or(&Value::Null)
}

fn count(status: &Value, reason: Reason) -> Result<u64> {
    let count = row(&status["reasons"], reason.name())["count"].as_u64();
    count.with_context(|| format!("the status has no count of {}", reason.name()))
}

/// How many packets of an agent had no flow that is kept: those that opened one, and those that were to be kept and found no room.
fn unkept(home: &Home) -> Result<u64> {
    let status = home.status()?;
    Ok(count(&status, Reason::Flow)? + count(&status, Reason::NotKept)?)
}

/// One lane of a cell, summed up.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// Nanoseconds for each packet.
    pub ns: Spread,
    /// Packets per second over those of plain forwarding in the same round.
    pub ratio: Spread,
    /// Largest part that was lost.
    pub lost: f64,
}

impl Cell {
    /// Measures `rounds` rounds of `count` packets in each lane. The homes are those of our agents, the second one's has XDP.
    ///
    /// # Errors
    /// Packets do not arrive, or are not what they should be for an agent of ours: open flows are not kept.
    pub fn measure(
        (wires, [ours, express]): (&[Wire], [&Home; 2]),
        (size, v6): (u32, bool),
        (place, flows): (Where, Flows),
        (rounds, count): (u32, u32),
    ) -> Result<Self> {
        let mut cell = Self {
            size,
            family: if v6 { 6 } else { 4 },
            place,
            flows,
            remark: None,
            void: None,
            rounds: BTreeMap::new(),
        };
        let (number, first, count) = match flows {
            Flows::Open(number) => (number, 0, count),
            Flows::New => (FRESH, 1 << 20, OPENED),
        };
        let mut lanes: Vec<(&Wire, Traffic, Source)> = Vec::new();
        for wire in wires {
            let to = if PLAIN.contains(&wire.name) { To::Backends } else { To::NodePort };
            let traffic = Traffic { place, to, v6, flows: number, first };
            let source = wire.source(&traffic)?;
            if matches!(flows, Flows::Open(_)) {
                wire.establish(&traffic)?;
            }
            lanes.push((wire, traffic, source));
        }
        let before = expressed(express);
        let unkept_before = [unkept(ours)?, unkept(express)?];
        for round in 0..rounds {
            for at in order(lanes.len(), round as usize) {
                let (wire, traffic, source) = &lanes[at];
                let mut from = 0;
                if flows == Flows::New {
                    from = u64::from(round) * u64::from(count);
                    if [NFTABLES, IPTABLES].contains(&wire.name) {
                        forget(&wire.node().netns)?;
                    }
                }
                let seen = wire.time(traffic, source, from, count)?;
                cell.rounds.entry(wire.name).or_default().push(seen);
            }
        }
        if flows != Flows::New {
            for (home, before) in [ours, express].into_iter().zip(unkept_before) {
                let unkept = unkept(home)? - before;
                let most = u64::from(rounds) * u64::from(count) / 1000;
                ensure!(unkept <= most, "{}: {unkept} packets had no flow that is kept", cell.title());
            }
        }
        let sent = before.and_then(|before| Ok(expressed(express)? - before));
        cell.judge_express(sent, u64::from(rounds) * (u64::from(count) + 1));
        Ok(cell)
    }

    /// Leaves the lane with XDP out if that was not there before and after, or has not sent on what it should.
    fn judge_express(&mut self, sent: Result<u64>, packets: u64) {
        // What a backend here gets, and the first packets of flows, are left to tc.
        let is_its = self.place == Where::Elsewhere && self.flows != Flows::New;
        let judged = sent.and_then(|sent| {
            ensure!(!is_its || sent * 1000 >= packets * 999, "XDP has sent on {sent} of {packets} packets");
            Ok(())
        });
        if let Err(why) = judged {
            self.rounds.remove(OURS_XDP);
            self.void = Some(format!("{why:#}"));
        }
    }

    /// Sums up a lane.
    pub fn summary(&self, lane: &str) -> Option<Summary> {
        let rounds = self.rounds.get(lane)?;
        let plain = |at: usize| {
            let both: Vec<f64> =
                PLAIN.iter().filter_map(|name| Some(self.rounds.get(name)?.get(at)?[0])).collect();
            #[expect(clippy::cast_precision_loss, reason = "two lanes")]
            let count = both.len().max(1) as f64;
            both.iter().sum::<f64>() / count
        };
        Some(Summary {
            ns: Spread::of(rounds.iter().map(|[ns, _]| *ns)),
            ratio: Spread::of(rounds.iter().enumerate().map(|(at, [ns, _])| plain(at) / ns)),
            lost: rounds.iter().map(|[_, lost]| *lost).fold(0.0, f64::max),
        })
    }

    /// The A-A check: median ratio of the two lanes that forward.
    pub fn a_a(&self) -> f64 {
        let [one, other] = PLAIN.map(|lane| self.rounds.get(lane).map_or(&[][..], Vec::as_slice));
        Spread::of(one.iter().zip(other).map(|(one, other)| other[0] / one[0])).median
    }

    /// What it is about.
    pub fn title(&self) -> String {
        let flows = match self.flows {
            Flows::Open(1) => "1 flow".to_owned(),
            Flows::Open(number) => format!("{number} flows"),
            Flows::New => "new flow per packet".to_owned(),
        };
        let place = match self.place {
            Where::Elsewhere => "backends elsewhere",
            Where::Here => "backend here",
        };
        format!("{} Services, IPv{}, {place}, {flows}", self.size, self.family)
    }

    /// The cell as a table.
    pub fn table(&self, lanes: &[&'static str]) -> String {
        let mut text = String::new();
        writeln!(text, "\n{}, A-A {:.3}", self.title(), self.a_a()).expect(FITS);
        writeln!(
            text,
            "{:<17} {:>9} {:>9} {:>24} {:>7}",
            "", "ns/packet", "Mpps", "rate over forwarding", "lost"
        )
        .expect(FITS);
        for lane in lanes {
            let Some(Summary { ns, ratio, lost }) = self.summary(lane) else {
                if let Some(why) = self.void.as_ref().filter(|_| *lane == OURS_XDP) {
                    writeln!(text, "{lane:<17} VOID: {why}").expect(FITS);
                }
                continue;
            };
            let below = mark(self.below(lane));
            let remark = self.remark.as_deref().filter(|_| [NFTABLES, IPTABLES].contains(lane));
            writeln!(
                text,
                "{lane:<17} {:>9.0} {:>9.3} {:>24} {:>6.1}%{below}{}",
                ns.median,
                1e3 / ns.median,
                format!("{:.3} ({:.3}..{:.3})", ratio.median, ratio.min, ratio.max),
                lost * 100.0,
                remark.map_or(String::new(), |remark| format!("  ({remark})")),
            )
            .expect(FITS);
        }
        text
    }

    /// The peers that a lane of ours is slower than.
    fn below(&self, lane: &str) -> impl Iterator<Item = &'static str> {
        let ours = self.summary(lane).filter(|_| [OURS, OURS_XDP].contains(&lane));
        [NFTABLES, IPTABLES].into_iter().filter(move |peer| {
            let theirs = self.summary(peer);
            ours.zip(theirs).is_some_and(|(ours, theirs)| ours.ratio.median < theirs.ratio.median)
        })
    }

    /// Compares with G6.
    ///
    /// # Errors
    /// There are no rounds of ours.
    pub fn goals(&self) -> Result<Vec<Goal>> {
        let place = self.title();
        let a_a = self.a_a();
        let goal =
            |what: String, seen: f64, reached: bool| Goal { what: format!("{what}: {place}"), seen, reached };
        let mut goals = vec![goal("A-A within 3 %".into(), a_a, (a_a - 1.0).abs() <= 0.03)];
        self.summary(OURS).context("rounds of ours")?;
        for lane in [OURS, OURS_XDP] {
            let Some(ours) = self.summary(lane) else { continue };
            goals.push(goal(format!("nothing of {lane} is lost"), ours.lost, ours.lost <= 0.001));
            if self.flows != Flows::New {
                let (seen, what) = (ours.ratio.median, format!("G6 {lane} >= 0.90 of forwarding"));
                goals.push(goal(what, seen, seen >= 0.90));
            }
            for (peer, least) in [(NFTABLES, 1.3), (IPTABLES, 1.7)] {
                let Some(theirs) = self.summary(peer) else { continue };
                let over = ours.ratio.median / theirs.ratio.median;
                goals.push(goal(format!("{lane} not below {peer}"), over, over >= 1.0));
                goals.push(goal(format!("G6 {lane} >= {least} of {peer}"), over, over >= least));
            }
        }
        if self.void.is_some() {
            goals.push(goal(format!("{OURS_XDP} serves"), 0.0, false));
        }
        Ok(goals)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    fn cell(place: Where, flows: Flows) -> Cell {
        let rounds =
            [(PLAIN[0], 100.0), (OURS, 125.0), (OURS_XDP, 80.0), (NFTABLES, 120.0), (PLAIN[1], 100.0)];
        let rounds = rounds.into_iter().map(|(lane, ns)| (lane, vec![[ns, 0.0]])).collect();
        Cell { size: 1, family: 4, place, flows, remark: None, void: None, rounds }
    }

    #[test]
    fn a_lane_below_kube_proxy_is_marked() {
        let table = cell(Where::Elsewhere, Flows::Open(1)).table(&[OURS, OURS_XDP]);
        let lines: Vec<&str> = table.lines().filter(|line| line.starts_with("lb-agent")).collect();
        assert!(lines[0].contains("BELOW nftables") && !lines[1].contains("BELOW"), "{table}");
    }

    #[test]
    fn a_lane_whose_xdp_did_nothing_or_was_not_there_is_void() {
        let judged = |place, flows, sent| {
            let mut cell = cell(place, flows);
            cell.judge_express(sent, 1000);
            (cell.void.is_some(), cell.rounds.contains_key(OURS_XDP), cell.goals().unwrap().len())
        };
        assert_eq!(judged(Where::Elsewhere, Flows::Open(1), Ok(999)), (false, true, 9));
        assert_eq!(judged(Where::Elsewhere, Flows::Open(1), Ok(900)), (true, false, 6));
        assert_eq!(judged(Where::Here, Flows::Open(1), Ok(0)), (false, true, 9));
        let gone = || -> Result<u64> { bail!("XDP of up0: null") };
        assert_eq!(judged(Where::Here, Flows::Open(1), gone()), (true, false, 6));
    }
}
