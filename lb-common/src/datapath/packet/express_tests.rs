//! Packets at XDP: what is sent on there is what tc would do, and everything else is left to tc.

use etherparse::{IpNumber, Ipv6Extensions};
use proptest::prelude::*;

use super::{
    Table,
    express::is_unfinished,
    net::{Kind, UPLINK, both},
    parse::{Fragment, TcpFlags, v4, v6},
    parse_tests::{Inner, frame, ipv4, ipv6},
    refuse::Answers,
    rewrite::PacketMut as _,
};
use crate::{
    abi::{FlowState, Proto},
    host::Frame,
};

const REQUEST: &str = "client:4000 > node:30080";
const ANSWER: &str = "far:8080 > tunnel:2000";

#[test]
fn packets_of_masqueraded_flows_are_sent_on_as_tc_would() {
    both(|net| {
        let net = net.serve(&["far"]);
        assert_eq!(net.expressed(REQUEST, Kind::SYN, 0), "pass", "tc opens flows");
        assert_eq!(net.comes(UPLINK, REQUEST, Kind::SYN), "tunnel:2000 > far:8080 routed");
        assert_eq!(net.expressed(ANSWER, Kind::SYN_ACK, 0), "node:30080 > client:4000 device 2");
        assert_eq!(net.expressed(REQUEST, Kind::ACK, 0), "tunnel:2000 > far:8080 routed");
        assert_eq!(
            net.entry(REQUEST, Proto::TCP).map(|(table, _)| table),
            Some(Table::Kept),
            "it is noted here too"
        );
        for (ends, kind) in [(REQUEST, Kind::ACK), (ANSWER, Kind::ACK), (REQUEST, Kind::FIN)] {
            assert_eq!(net.expressed(ends, kind, 0), net.comes(UPLINK, ends, kind), "{ends}");
        }
        let closing = net.entry(REQUEST, Proto::TCP).is_some_and(|(_, state)| state.has(FlowState::FIN));
        assert!(closing, "what is noted is noted");
    });
}

#[test]
fn what_the_stack_delivers_is_left_to_tc() {
    both(|net| {
        let net = net.serve(&["p11"]);
        net.comes(UPLINK, REQUEST, Kind::SYN);
        net.leaves(UPLINK, "p11:8080 > client:4000", Kind::SYN_ACK);
        assert_eq!(net.comes(UPLINK, REQUEST, Kind::ACK), "client:4000 > p11:8080 on");
        assert_eq!(net.expressed(REQUEST, Kind::ACK, 0), "pass");
    });
}

#[test]
fn what_is_unusual_is_left_to_tc() {
    both(|net| {
        let net = net.serve(&["far"]);
        net.comes(UPLINK, REQUEST, Kind::UDP);
        assert_eq!(net.expressed(REQUEST, Kind::UDP, 0), "tunnel:2000 > far:8080 routed");
        assert_eq!(net.expressed(REQUEST, Kind::UDP, 8), "pass", "options, or an extension header");
        assert_eq!(net.expressed(REQUEST, Kind::UDP.piece(Fragment::first(7)), 0), "pass");
        assert_eq!(net.expressed(REQUEST, Kind::UDP.ttl(1), 0), "pass", "somebody is to be told");
        net.after_s(200);
        assert_eq!(net.expressed(REQUEST, Kind::UDP, 0), "pass", "another flow begins");
        assert_eq!(net.expressed(REQUEST, Kind::INIT, 0), "pass");
    });
}

/// What a sender's kernel leaves in the place of a checksum for its network card.
fn unfinished<A: Answers>(frame: &mut Frame, proto: Proto, key: &crate::abi::FlowKey<A>, l4: usize) {
    let len = A::length(frame, 14).unwrap();
    let sum = !A::pseudo(key, len).checksum();
    let at = if proto == Proto::TCP { 16 } else { 6 };
    assert!(frame.store(l4 + at, sum.to_ne_bytes()));
}

proptest! {
    #[test]
    fn checksums_that_are_none_yet_are_known(is_v6: bool, is_tcp: bool, ports: (u16, u16), payload in prop::collection::vec(any::<u8>(), 2..64)) {
        let inner = if is_tcp { Inner::Tcp(TcpFlags::ACK) } else { Inner::Udp };
        let ip = if is_v6 { ipv6(64, Ipv6Extensions::default()) } else { ipv4(64, IpNumber::UDP) };
        let mut frame = frame(ip, inner, ports, &payload);
        if is_v6 {
            let headers = v6(&frame, 14).unwrap();
            let finished = is_unfinished(&frame, 14, &headers);
            unfinished(&mut frame, headers.key.proto, &headers.key, headers.l4);
            prop_assert!(is_unfinished(&frame, 14, &headers));
            // One of 65,536 is taken for one.
            prop_assume!(!finished);
        } else {
            let headers = v4(&frame, 14).unwrap();
            let finished = is_unfinished(&frame, 14, &headers);
            unfinished(&mut frame, headers.key.proto, &headers.key, headers.l4);
            prop_assert!(is_unfinished(&frame, 14, &headers));
            prop_assume!(!finished);
        }
    }
}
