//! Requests of a pod to a pod of its node, directly or through a cluster IP: over open connections (G3), and in datagrams (G4).
//!
//! What a request takes is mostly the sockets' work and the scheduler's, the same in every lane; so lanes differ by little, and a
//! figure is worth its A-A check.

use std::{fmt::Write as _, net::SocketAddr, time::Duration};

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    lane::{Lane, PORT},
    peers::{IPTABLES, NFTABLES, SERVICE_PORT, cluster_ips, forget},
    report::{self, DIRECT, FITS, Goal, OURS, mark},
    stats::order,
    worker::Asking,
};
use crate::control_plane::objects;

/// Ours without hooks at sockets: packets are translated at the pods' devices.
pub const OURS_TC: &str = "lb-agent tc";
/// The Service that is asked, behind all others.
const ASKED: u32 = 65_010;

/// All rounds of one way to ask.
#[derive(Debug, Serialize)]
pub struct Cell {
    /// How.
    pub asking: Asking,
    /// The rest.
    pub cell: report::Cell,
}

/// The Service that is asked, for TCP and UDP.
pub fn objects(lane: &Lane) -> Vec<Value> {
    let ips = cluster_ips(ASKED);
    let ports = [("tcp", "TCP"), ("udp", "UDP")];
    let service_ports = ports.map(|(name, protocol)| {
        json!({"name": name, "protocol": protocol, "port": SERVICE_PORT, "targetPort": PORT})
    });
    let mut all = vec![json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "asked", "namespace": "default"},
        "spec": {
            "clusterIP": ips[0], "clusterIPs": ips, "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
            "ports": service_ports,
        },
    })];
    for v6 in [false, true] {
        let ip = lane.backend(v6).ip().to_string();
        let name = format!("asked-{}", if v6 { 6 } else { 4 });
        let mut slice = objects::slice(&name, "asked", &[&ip], PORT);
        slice["metadata"]["namespace"] = json!("default");
        slice["ports"] =
            ports.map(|(name, protocol)| json!({"name": name, "protocol": protocol, "port": PORT})).into();
        all.push(slice);
    }
    all
}

/// The address that is asked.
pub fn asked(v6: bool) -> SocketAddr {
    (cluster_ips(ASKED)[usize::from(v6)], SERVICE_PORT).into()
}

impl Cell {
    /// Measures `rounds` rounds of each lane. The address of a Service leads nowhere by itself: who is answered was translated.
    ///
    /// # Errors
    /// No request is answered.
    pub fn measure(
        lanes: &[Lane],
        (size, v6): (u32, bool),
        asking: Asking,
        (rounds, time): (u32, Duration),
    ) -> Result<Self> {
        let cell = report::Cell { size, family: if v6 { 6 } else { 4 }, ..report::Cell::default() };
        let mut cell = Self { asking, cell };
        for round in 0..rounds as usize {
            for at in order(lanes.len(), round) {
                let lane = &lanes[at];
                let to = if DIRECT.contains(&lane.name) { lane.backend(v6) } else { asked(v6) };
                if asking == Asking::UdpFresh && [NFTABLES, IPTABLES].contains(&lane.name) {
                    forget(lane.netns())?;
                }
                let seen = lane.ask(to, asking, time)?;
                cell.cell.rounds.entry(lane.name).or_default().push(seen);
            }
        }
        Ok(cell)
    }

    /// What it is about.
    pub fn title(&self) -> String {
        let how = match self.asking {
            Asking::Tcp(1) => "TCP, 1 connection".to_owned(),
            Asking::Tcp(count) => format!("TCP, {count} connections"),
            Asking::UdpFixed => "UDP, one socket".to_owned(),
            Asking::UdpFresh => "UDP, new port each time".to_owned(),
        };
        format!("{how}, {} Services, IPv{}", self.cell.size, self.cell.family)
    }

    /// The cell as a table.
    pub fn table(&self, lanes: &[&'static str]) -> String {
        let mut text = String::new();
        writeln!(text, "\n{}, A-A {:.3}", self.title(), self.cell.a_a()).expect(FITS);
        writeln!(
            text,
            "{:<13} {:>9} {:>22} {:>7} {:>7} {:>6} {:>6}",
            "", "request/s", "ratio to direct", "p50 us", "p99 us", "stalls", "failed"
        )
        .expect(FITS);
        for lane in lanes {
            let Some(summary) = self.cell.summary(lane) else { continue };
            let ratio = summary.ratio;
            let ratio = format!("{:.3} ({:.3}..{:.3})", ratio.median, ratio.min, ratio.max);
            let [p50, _, p99] = summary.connect_us;
            let below = mark(self.below(lane));
            writeln!(
                text,
                "{lane:<13} {:>9.0} {ratio:>22} {p50:>7.1} {p99:>7.1} {:>6} {:>6}{below}{}",
                summary.rate.median,
                summary.stalls,
                summary.failures,
                self.cell.remarks.get(lane).map_or(String::new(), |remark| format!("  ({remark})")),
            )
            .expect(FITS);
        }
        text
    }

    /// Rate of one lane over that of another.
    fn over(&self, lane: &str, other: &str) -> Option<f64> {
        Some(self.cell.summary(lane)?.ratio.median / self.cell.summary(other)?.ratio.median)
    }

    /// The peers that a lane of ours is slower than.
    fn below(&self, lane: &str) -> impl Iterator<Item = &'static str> {
        let is_ours = [OURS, OURS_TC].contains(&lane);
        [NFTABLES, IPTABLES]
            .into_iter()
            .filter(move |peer| is_ours && self.over(lane, peer).is_some_and(|over| over < 1.0))
    }

    /// Compares with G3 or G4.
    pub fn goals(&self) -> Vec<Goal> {
        let place = self.title();
        let a_a = self.cell.a_a();
        let goal =
            |what: String, seen: f64, reached: bool| Goal { what: format!("{what}: {place}"), seen, reached };
        let mut goals = vec![goal("A-A within 3 %".into(), a_a, (a_a - 1.0).abs() <= 0.03)];
        let is_tcp = matches!(self.asking, Asking::Tcp(_));
        for (lane, least) in
            [(OURS, if is_tcp { 0.99 } else { 0.93 }), (OURS_TC, if is_tcp { 0.96 } else { 0.0 })]
        {
            let Some(ours) = self.cell.summary(lane) else { continue };
            let (seen, name) = (ours.ratio.median, if is_tcp { "G3" } else { "G4" });
            if least > 0.0 {
                goals.push(goal(format!("{name} {lane} >= {least} of direct"), seen, seen >= least));
            }
            for peer in [NFTABLES, IPTABLES] {
                let Some(over) = self.over(lane, peer) else { continue };
                goals.push(goal(format!("{lane} not below {peer}"), over, over >= 1.0));
                if !is_tcp && (lane, peer) == (OURS, NFTABLES) {
                    goals.push(goal(format!("G4 {lane} >= 1.15 of {peer}"), over, over >= 1.15));
                }
            }
            #[expect(clippy::cast_precision_loss, reason = "a count of requests")]
            goals.push(goal(
                format!("no failed request of {lane}"),
                ours.failures as f64,
                ours.failures == 0,
            ));
        }
        goals
    }
}
