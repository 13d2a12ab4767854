//! Who counts as a pod of this node, and what follows from it.

use std::format;

use super::{
    Verdict, Work, ingress,
    net::{Kind, Net, SERVICE, UPLINK, both},
    parse::{Fragment, Headers, TcpFlags},
};
use crate::abi::{Addr, FlowKey, PacketLb, Proto, Reason, Run, ServiceFlags, ServiceId};

/// A Service whose endpoints are all on other nodes, under policy Local.
fn elsewhere(net: Net) -> Net {
    let mut net = net.serve(&["far"]);
    net.service().local = Run::ELSEWHERE;
    net.flags(ServiceFlags::EXTERNAL_LOCAL);
    net
}

/// MQ-8b, MQ-5: a pod's own node answers for the cluster, whether or not somebody here serves it; strangers hear nothing.
#[test]
fn pods_reach_the_cluster_set_while_the_local_one_is_empty() {
    both(|net| {
        let net = elsewhere(net);
        for (port, to) in (4000..).zip(["lb:80", "ext:80", "node:30080"]) {
            let came = net.comes(11, &format!("p11:{port} > {to}"), Kind::SYN);
            assert_eq!(came, format!("p11:{port} > far:8080 on"));
            assert_eq!(net.comes(UPLINK, &format!("client:{port} > {to}"), Kind::SYN), "drop");
        }
        assert_eq!(net.world.counted(Reason::DroppedElsewhere), 3);
    });
}

/// MQ-8a, MQ-5, 2.9-detector: who comes by no device of pods is one only where ranges of addresses say so.
#[test]
fn a_pod_behind_another_device_is_a_stranger_unless_its_address_is_told() {
    both(|net| {
        let mut net = elsewhere(net);
        net.world.allowed.insert((ServiceId::PODS, net.addr("p11")));
        assert_eq!(net.comes(UPLINK, "p11:4000 > lb:80", Kind::SYN), "drop");
        assert_eq!(net.comes(UPLINK, "p11:4000 > vip:80", Kind::SYN), "pass");
        net.packets(PacketLb::MAGLEV);
        assert_eq!(net.comes(UPLINK, "p11:4000 > lb:80", Kind::SYN), "drop", "another switch");
        net.packets(PacketLb::POD_RANGES);
        assert_eq!(net.comes(UPLINK, "p11:4000 > lb:80", Kind::SYN), "tunnel:2000 > far:8080 routed");
        assert_eq!(net.comes(UPLINK, "p12:4000 > lb:80", Kind::SYN), "drop");
        net.choose(&[(0, 1), (1, 0)]);
        assert_eq!(net.comes(UPLINK, "p11:4000 > vip:80", Kind::SYN), "tunnel:2001 > far:8080 routed");
        // A detector of pods has no say in who meets source ranges.
        net.flags(ServiceFlags::RESTRICTED);
        assert_eq!(net.comes(UPLINK, "p11:4001 > lb:80", Kind::SYN), "drop");
        assert_eq!(net.world.services[&SERVICE].flags, ServiceFlags::RESTRICTED);
    });
}

/// MQ-9: of a flow that was not masqueraded nothing ever is, and what no Service has stays as it is.
#[test]
fn answers_and_what_hits_no_service_keep_their_source() {
    both(|net| {
        let mut net = net.serve(&["p12"]);
        net.packets(PacketLb::EXTERNAL_CLUSTER_IP.with(PacketLb::POD_RANGES));
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::SYN), "client:4000 > p12:8080 on");
        net.packets(PacketLb::MASQUERADE_ALL);
        for kind in [Kind::SYN_ACK, Kind::ACK, Kind::FIN, Kind::RST] {
            assert_eq!(net.comes(12, "p12:8080 > client:4000", kind), "pass");
            assert_eq!(net.leaves(UPLINK, "p12:8080 > client:4000", kind), "lb:80 > client:4000 on");
        }
        for ends in
            ["p11:4000 > client:80", "p11:4000 > p12:8080", "client:4000 > p12:8080", "p11:4000 > node:22"]
        {
            for kind in [Kind::SYN, Kind::UDP, Kind::ACK] {
                assert_eq!(net.comes(11, ends, kind), "pass", "{ends}");
                assert_eq!(net.leaves(UPLINK, ends, kind), "pass", "{ends}");
            }
        }
    });
}

#[test]
fn an_ipv4_address_in_a_packet_of_ipv6_is_nobodys() {
    let net = Net::of(false).serve(&["far"]);
    for (from, to) in [("client:4000", "lb:80"), ("client:4000", "node:30080"), ("p11:4000", "vip:81")] {
        let key = FlowKey::<Addr>::new(net.at(from), net.at(to), Proto::TCP);
        let packet = Headers { key, l4: 54, tcp: TcpFlags::SYN, ttl: 64, fragment: Fragment::WHOLE };
        assert_eq!(ingress(&net.world, UPLINK, &mut Work::new(packet)), Verdict::Pass);
        assert_eq!(ingress(&net.world, 11, &mut Work::new(packet)), Verdict::Pass);
    }
}
