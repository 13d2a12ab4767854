//! ICMP errors about flows: who gets them, and that every byte is what somebody would have sent who has met the other packet.

use core::net::IpAddr;
use std::{format, string::String, vec, vec::Vec};

use etherparse::{
    Icmpv4Type, Icmpv6Type, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header,
    PacketBuilder, icmpv4, icmpv6,
};
use proptest::prelude::*;

use super::{
    Side, Verdict, Way, Work, icmp,
    net::{Kind, Net, OVERLAY, UPLINK, UPLINK3, both},
    parse::{Headers, v4, v6},
    retell,
};
use crate::{
    abi::{Addr, Addr4, FlowState, Proto, Reason},
    host::{Family, Frame},
};

const L3: usize = 14;

fn ip(from: Addr, to: Addr, ttl: u8) -> IpHeaders {
    match (IpAddr::from(from), IpAddr::from(to)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let header = Ipv4Header::new(0, ttl, IpNumber::UDP, from.octets(), to.octets()).unwrap();
            IpHeaders::Ipv4(header, Ipv4Extensions::default())
        }
        (from, to) => {
            let [source, destination] = [from, to].map(|addr| Addr::from(addr).octets);
            let header = Ipv6Header { hop_limit: ttl, source, destination, ..Ipv6Header::default() };
            IpHeaders::Ipv6(header, Ipv6Extensions::default())
        }
    }
}

/// An error from one address to another about a packet: `from > to | from:port > to:port`.
#[derive(Clone, Copy, Debug)]
struct Message<'a> {
    text: &'a str,
    proto: Proto,
    ttl: u8,
    /// Bytes of the packet that are quoted behind its IP header, at least eight.
    quoted: usize,
    /// Fragmentation needed or packet too big; time exceeded; port unreachable.
    kind: u8,
}

impl<'a> Message<'a> {
    const fn new(text: &'a str) -> Self {
        Self { text, proto: Proto::UDP, ttl: 64, quoted: 20, kind: 0 }
    }

    fn bytes(self, net: &Net) -> Vec<u8> {
        let (ends, quoted) = self.text.split_once(" | ").unwrap();
        let (from, to) = ends.split_once(" > ").unwrap();
        let (quoted_from, quoted_to) = quoted.split_once(" > ").map(|(a, b)| (net.at(a), net.at(b))).unwrap();
        let inner = PacketBuilder::ip(ip(quoted_from.addr, quoted_to.addr, 9));
        let mut packet = Vec::new();
        let (sport, dport) = (quoted_from.port, quoted_to.port);
        match self.proto {
            Proto::UDP => inner.udp(sport, dport).write(&mut packet, b"what was said").unwrap(),
            _ => inner.tcp(sport, dport, 7, 8).write(&mut packet, b"what was said").unwrap(),
        }
        let header = if net.v6 { 40 } else { 20 };
        packet.truncate(header + self.quoted);
        let outer = PacketBuilder::ethernet2([2; 6], [4; 6]).ip(ip(net.addr(from), net.addr(to), self.ttl));
        let mut bytes = Vec::new();
        if net.v6 {
            outer.icmpv6(self.kind_v6()).write(&mut bytes, &packet).unwrap();
        } else {
            outer.icmpv4(self.kind_v4()).write(&mut bytes, &packet).unwrap();
        }
        bytes
    }

    fn kind_v4(self) -> Icmpv4Type {
        use icmpv4::{DestUnreachableHeader as Unreachable, TimeExceededCode};
        match self.kind {
            0 => Icmpv4Type::DestinationUnreachable(Unreachable::FragmentationNeeded { next_hop_mtu: 1400 }),
            1 => Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit),
            _ => Icmpv4Type::DestinationUnreachable(Unreachable::Port),
        }
    }

    fn kind_v6(self) -> Icmpv6Type {
        match self.kind {
            0 => Icmpv6Type::PacketTooBig { mtu: 1400 },
            1 => Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded),
            _ => Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port),
        }
    }
}

/// What becomes of a message, and what it is then.
fn decide(net: &Net, side: Side, ifindex: u32, bytes: Vec<u8>) -> (String, Vec<u8>) {
    fn verdict<A: super::Errors + Family>(
        net: &Net,
        side: Side,
        ifindex: u32,
        (headers, frame): (Option<Headers<A>>, &mut Frame),
    ) -> Verdict {
        let mut work = Work::new(headers.unwrap());
        let verdict = icmp(&net.world, side, ifindex, frame, &mut work);
        if let Verdict::Translate(way) = verdict {
            assert!(retell(frame, L3, &work, way != Way::On));
        }
        verdict
    }
    let mut frame = Frame { bytes };
    let verdict = if net.v6 {
        verdict::<Addr>(net, side, ifindex, (v6(&frame, L3), &mut frame))
    } else {
        verdict::<Addr4>(net, side, ifindex, (v4(&frame, L3), &mut frame))
    };
    let said = match verdict {
        Verdict::Pass => "pass".into(),
        Verdict::Drop => "drop".into(),
        Verdict::Refuse => "refuse".into(),
        Verdict::Translate(Way::On) => "on".into(),
        Verdict::Translate(Way::Routed) => "routed".into(),
        Verdict::Translate(Way::Device { ifindex }) => format!("device {ifindex}"),
    };
    (said, frame.bytes)
}

/// That a message becomes another one and goes some way, of every protocol.
fn becomes(net: &Net, side: Side, ifindex: u32, (before, after): (&str, &str), way: &str) {
    for (proto, quoted) in [(Proto::UDP, 20), (Proto::UDP, 8), (Proto::TCP, 8)] {
        for kind in 0..3 {
            let before = Message { proto, quoted, kind, ..Message::new(before) };
            let ttl = if way == "on" { 64 } else { 63 };
            let after = Message { proto, ttl, quoted, kind, ..Message::new(after) };
            let (said, bytes) = decide(net, side, ifindex, before.bytes(net));
            assert_eq!(said, way, "{before:?}");
            assert_eq!(bytes, after.bytes(net), "{before:?}");
        }
    }
}

fn is_left(net: &Net, side: Side, ifindex: u32, text: &str) {
    let bytes = Message::new(text).bytes(net);
    assert_eq!(decide(net, side, ifindex, bytes.clone()), (String::from("pass"), bytes), "{text}");
}

/// `client:4000 > lb:80` is served by `to`, over TCP and UDP.
fn opened(net: Net, to: &str) -> Net {
    let net = net.serve(&[to]);
    net.comes(UPLINK, "client:4000 > lb:80", Kind::UDP);
    net.comes(UPLINK, "client:4000 > lb:80", Kind::SYN);
    net
}

const ABOUT_REQUEST: &str = "client:4000 > lb:80";
const ABOUT_ANSWER: &str = "lb:80 > client:4000";

/// 2.25-icmp.
#[test]
fn the_client_of_a_masqueraded_flow_hears_of_the_backends_side() {
    both(|net| {
        let net = opened(net, "far");
        for teller in ["far", "other"] {
            let before = format!("{teller} > tunnel | tunnel:2000 > far:8080");
            let after = format!("lb > client | {ABOUT_REQUEST}");
            becomes(&net, Side::Ingress, OVERLAY, (&before, &after), "device 2");
            is_left(&net, Side::Egress, OVERLAY, &before);
        }
        assert_eq!(net.world.counted(Reason::IcmpError), 18);
    });
}

/// 2.25-icmp.
#[test]
fn the_backend_of_a_masqueraded_flow_hears_of_the_clients_side() {
    both(|net| {
        let net = opened(net, "far");
        for teller in ["client", "other"] {
            let before = format!("{teller} > lb | {ABOUT_ANSWER}");
            becomes(
                &net,
                Side::Ingress,
                UPLINK,
                (&before, "tunnel > far | far:8080 > tunnel:2000"),
                "routed",
            );
            is_left(&net, Side::Egress, UPLINK, &before);
        }
    });
}

#[test]
fn the_client_of_a_plain_flow_hears_of_it_where_answers_leave() {
    both(|net| {
        let net = opened(net, "p11");
        for teller in ["p11", "node"] {
            let before = format!("{teller} > client | client:4000 > p11:8080");
            let after = format!("lb > client | {ABOUT_REQUEST}");
            is_left(&net, Side::Ingress, 11, &before);
            becomes(&net, Side::Egress, UPLINK, (&before, &after), "on");
            becomes(&net, Side::Egress, UPLINK3, (&before, &after), "device 2");
        }
    });
}

#[test]
fn the_backend_of_a_plain_flow_hears_of_it_from_whoever_tells() {
    both(|net| {
        let net = opened(net, "p11");
        for teller in ["client", "other"] {
            let before = format!("{teller} > lb | {ABOUT_ANSWER}");
            let after = format!("{teller} > p11 | p11:8080 > client:4000");
            becomes(&net, Side::Ingress, UPLINK, (&before, &after), "on");
        }
    });
}

#[test]
fn what_is_no_error_about_a_flow_is_left_alone() {
    both(|net| {
        let net = opened(net, "far");
        is_left(&net, Side::Ingress, UPLINK, "other > lb | lb:80 > client:4001");
        is_left(&net, Side::Ingress, UPLINK, "other > ext | lb:80 > client:4000");
        // No error, or none that quotes: echo, redirect, neighbours.
        let bytes = Message::new("other > lb | lb:80 > client:4000").bytes(&net);
        let at = L3 + if net.v6 { 40 } else { 20 };
        for kind in if net.v6 { vec![128, 129, 135, 137, 0, 5] } else { vec![0, 8, 5, 4, 13] } {
            let mut bytes = bytes.clone();
            bytes[at] = kind;
            assert_eq!(decide(&net, Side::Ingress, UPLINK, bytes.clone()), ("pass".into(), bytes), "{kind}");
        }
    });
}

#[test]
fn errors_neither_live_for_ever_nor_keep_flows_alive() {
    both(|net| {
        let net = opened(net, "far");
        let message = Message { ttl: 1, ..Message::new("other > lb | lb:80 > client:4000") };
        assert_eq!(decide(&net, Side::Ingress, UPLINK, message.bytes(&net)).0, "drop");
        let before = net.entry(ABOUT_REQUEST, Proto::UDP);
        net.after_s(100);
        becomes(
            &net,
            Side::Ingress,
            OVERLAY,
            ("far > tunnel | tunnel:2000 > far:8080", "lb > client | client:4000 > lb:80"),
            "device 2",
        );
        assert_eq!(net.entry(ABOUT_REQUEST, Proto::UDP), before);
        assert_eq!(before.unwrap().1, FlowState::NEW);
        let mut writes = 0;
        net.tables(|tables| writes = tables.writes());
        assert_eq!(writes, 4, "two entries for each protocol");
    });
}

proptest! {
    /// Whatever is quoted, and however it is cut, is left alone or written inside the packet.
    #[test]
    fn no_bytes_are_too_strange(
        is_v6: bool,
        place in 0_usize..90,
        byte: u8,
        cut in 34_usize..120,
    ) {
        let net = opened(Net::of(is_v6), "far");
        let mut bytes = Message::new("other > lb | lb:80 > client:4000").bytes(&net);
        if let Some(at) = bytes.get_mut(L3 + 2 + place) {
            *at = byte;
        }
        bytes.truncate(cut);
        let frame = Frame { bytes };
        let readable = if is_v6 { v6(&frame, L3).is_some() } else { v4(&frame, L3).is_some() };
        if readable && frame.bytes[if is_v6 { 20 } else { 23 }] == if is_v6 { 58 } else { 1 } {
            decide(&net, Side::Ingress, UPLINK, frame.bytes);
        }
    }
}
