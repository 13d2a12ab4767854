//! Packets to an address that cluster IPs are taken from and that no Service has (2.7).
//!
//! They are dropped where they leave this node, and not where they come in: what another proxy or a node-local cache serves is
//! translated or delivered in between, and what this node sends itself is seen there too.

use super::{Flows, Verdict, parse::Headers};
use crate::{
    abi::{FlowAddr, FrontendKey, PacketLb, Reason, ServiceId},
    datapath::tables::owned_frontend,
};

/// Decides a packet that leaves this node and has no flow.
///
/// Only what may begin a flow is asked (NE-3), and nearly all of that is told by two words that it goes elsewhere.
#[inline(always)]
pub(super) fn decide<A: FlowAddr, W: Flows<A>>(world: &W, packet: &Headers<A>) -> Verdict {
    if !packet.opens() {
        return Verdict::Pass;
    }
    let config = world.config();
    let to = packet.key.dst.widen();
    let is_cluster_ip = config.packets.has(PacketLb::UNALLOCATED)
        && config.cluster_ips.may_hold(to)
        && world.allows(ServiceId::CLUSTER_IPS, to);
    // One that a Service has is served, or left to others on purpose.
    if !is_cluster_ip || owned_frontend(world, &FrontendKey::other_ports(to)).is_some() {
        return Verdict::Pass;
    }
    world.count(Reason::DroppedUnallocated);
    Verdict::Drop
}

#[cfg(test)]
mod tests {
    use std::format;

    use crate::{
        abi::{Config, Cover, PacketLb, Reason, ServiceId},
        datapath::packet::net::{Kind, Net, UPLINK, both},
    };

    /// Cluster IPs are `vip`, which a Service has, and `vip2`, which none has; `far` is no cluster IP, though it begins like one.
    fn net(mut net: Net) -> Net {
        net = net.serve(&["far"]);
        let ranges = ["vip", "vip2"].map(|name| net.addr(name));
        let len = if net.v6 { 128 } else { 32 };
        let cluster_ips = ranges.iter().fold(Cover::NOTHING, |cover, addr| cover.with(*addr, len));
        let config = net.world.config.unwrap_or(Config::OFF);
        net.world.config = Some(Config { packets: PacketLb::UNALLOCATED, cluster_ips, ..config });
        net.world.allowed.extend(ranges.map(|addr| (ServiceId::CLUSTER_IPS, addr)));
        net
    }

    /// 2.7-unallocated, NE-3.
    #[test]
    fn what_leaves_for_a_cluster_ip_that_nobody_has_is_dropped_if_it_begins_something() {
        both(|bare| {
            let net = net(bare);
            let leaves = |ends: &str, kind| net.leaves(UPLINK, ends, kind);
            for from in ["p11:4000", "node:4000", "client:4000"] {
                for kind in [Kind::SYN, Kind::UDP, Kind::INIT] {
                    assert_eq!(leaves(&format!("{from} > vip2:80"), kind), "drop", "{from}");
                }
            }
            assert_eq!(net.world.counted(Reason::DroppedUnallocated), 9);
            for kind in [Kind::ACK, Kind::SYN_ACK, Kind::FIN, Kind::RST] {
                assert_eq!(leaves("p11:4000 > vip2:80", kind), "pass", "connections of others live on");
            }
            for to in ["vip:80", "vip:81", "far:80", "client:80", "ext:81", "lost:80"] {
                assert_eq!(leaves(&format!("p11:4000 > {to}"), Kind::SYN), "pass", "{to}");
            }
            assert_eq!(net.comes(11, "p11:4000 > vip2:80", Kind::SYN), "pass", "somebody else may serve it");
            assert_eq!(net.world.counted(Reason::DroppedUnallocated), 9);
        });
    }

    /// 2.7-unallocated.
    #[test]
    fn without_the_switch_or_the_range_nothing_is_dropped() {
        both(|bare| {
            let mut net = net(bare);
            net.packets(PacketLb::default());
            assert_eq!(net.leaves(UPLINK, "p11:4000 > vip2:80", Kind::SYN), "pass");
            net.packets(PacketLb::UNALLOCATED);
            net.world.allowed.clear();
            assert_eq!(
                net.leaves(UPLINK, "p11:4000 > vip2:80", Kind::SYN),
                "pass",
                "it only begins like one"
            );
        });
    }
}
