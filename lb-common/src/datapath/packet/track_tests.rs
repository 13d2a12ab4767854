//! Packets of flows that are known: which table, which state, what is written.

use std::vec::Vec;

use super::{
    Table, UDP_IDLE_S,
    net::{Kind, Net, UPLINK, both},
};
use crate::abi::{FlowState, Proto, Reason};

/// A connection to a backend on another node, as far as its handshake.
fn established(net: Net) -> Net {
    let net = net.serve(&["far"]);
    assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::SYN), "tunnel:2000 > far:8080 routed");
    assert_eq!(net.comes(4, "far:8080 > tunnel:2000", Kind::SYN_ACK), "lb:80 > client:4000 device 2");
    assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::ACK), "tunnel:2000 > far:8080 routed");
    net
}

fn table(net: &Net, ends: &str) -> Option<Table> {
    net.entry(ends, Proto::TCP).map(|(table, _)| table)
}

const REQUEST: &str = "client:4000 > lb:80";
const ANSWER: &str = "far:8080 > tunnel:2000";

#[test]
fn a_flow_is_kept_when_the_client_has_acknowledged_an_answer() {
    both(|net| {
        let net = net.serve(&["far"]);
        for kind in [Kind::SYN, Kind::SYN, Kind::ACK] {
            net.comes(UPLINK, REQUEST, kind);
            assert_eq!(table(&net, REQUEST), Some(Table::New), "nobody has answered");
        }
        net.comes(4, ANSWER, Kind::SYN_ACK);
        net.comes(UPLINK, REQUEST, Kind::SYN);
        assert_eq!(table(&net, REQUEST), Some(Table::New), "a repeated SYN acknowledges nothing");
        net.comes(UPLINK, REQUEST, Kind::ACK);
        assert_eq!([REQUEST, ANSWER].map(|ends| table(&net, ends)), [Some(Table::Kept); 2]);
        // A flood of new flows leaves it alone.
        net.tables(|tables| tables.evict_new());
        assert_eq!(net.comes(UPLINK, REQUEST, Kind::ACK), "tunnel:2000 > far:8080 routed");
        assert_eq!(net.comes(4, ANSWER, Kind::ACK), "lb:80 > client:4000 device 2");
    });
}

#[test]
fn a_udp_flow_is_kept_with_the_packet_after_an_answer() {
    both(|net| {
        let net = net.serve(&["p11"]);
        let kept = |net: &Net| net.entries(Table::Kept).len();
        net.comes(UPLINK, REQUEST, Kind::UDP);
        net.comes(UPLINK, REQUEST, Kind::UDP);
        net.leaves(UPLINK, "p11:8080 > client:4000", Kind::UDP);
        assert_eq!(kept(&net), 0);
        net.comes(UPLINK, REQUEST, Kind::UDP);
        assert_eq!(kept(&net), 2);
    });
}

#[test]
fn a_flow_that_finds_no_room_goes_on_where_it_is() {
    both(|net| {
        for room in [0, 1] {
            let net = Net::of(net.v6);
            net.tables(|tables| tables.make_room(room));
            let net = established(net);
            assert_eq!(net.entries(Table::Kept), Vec::<&str>::new(), "both entries or none");
            assert_eq!(net.world.counted(Reason::NotKept), 1);
            assert_eq!(net.comes(4, ANSWER, Kind::ACK), "lb:80 > client:4000 device 2");
            net.tables(|tables| tables.make_room(2));
            for (later, tries, entries) in [(0, 1, 0), (7, 1, 0), (1, 1, 2), (0, 1, 2)] {
                net.after_s(later);
                assert_eq!(net.comes(UPLINK, REQUEST, Kind::ACK), "tunnel:2000 > far:8080 routed");
                assert_eq!(net.world.counted(Reason::NotKept), tries);
                assert_eq!(net.entries(Table::Kept).len(), entries);
            }
        }
    });
}

#[test]
fn an_established_flow_writes_seldom_and_for_both_directions() {
    both(|net| {
        let net = established(net);
        let writes = || {
            let mut count = 0;
            net.tables(|tables| count = tables.writes());
            count
        };
        let before = writes();
        for _ in 0..100 {
            net.comes(UPLINK, REQUEST, Kind::ACK);
            net.comes(4, ANSWER, Kind::ACK);
        }
        assert_eq!(writes() - before, 0);
        net.after_s(8);
        for _ in 0..100 {
            net.comes(UPLINK, REQUEST, Kind::ACK);
            net.comes(4, ANSWER, Kind::ACK);
        }
        assert_eq!(writes() - before, 2);
    });
}

/// CT-6.
#[test]
fn a_connection_stays_with_a_backend_that_is_gone_and_its_ports_next_one_does_not() {
    both(|net| {
        let mut net = established(net);
        net.leave("far");
        let run = net.run(&["p11"]);
        net.service().cluster = run;
        assert_eq!(net.comes(UPLINK, REQUEST, Kind::ACK), "tunnel:2000 > far:8080 routed");
        assert_eq!(net.comes(4, ANSWER, Kind::ACK), "lb:80 > client:4000 device 2");
        assert_eq!(net.comes(UPLINK, REQUEST, Kind::SYN), "client:4000 > p11:8080 on");
        assert_eq!(table(&net, REQUEST), Some(Table::New), "the kept entry hides nothing");
        assert_eq!(table(&net, ANSWER), None, "what is left of the old one is gone");
        assert_eq!(net.comes(UPLINK, REQUEST, Kind::ACK), "client:4000 > p11:8080 on");
    });
}

/// CT-4, CT-9.
#[test]
fn the_next_datagram_after_a_backend_is_gone_goes_to_another_one() {
    both(|net| {
        let mut net = net.serve(&["far", "p11"]);
        net.choose(&[(0, 2)]);
        for _ in 0..2 {
            assert_eq!(net.comes(UPLINK, REQUEST, Kind::UDP), "tunnel:2000 > far:8080 routed");
            net.comes(4, ANSWER, Kind::UDP);
        }
        net.leave("far");
        net.choose(&[(1, 2)]);
        assert_eq!(net.comes(UPLINK, REQUEST, Kind::UDP), "client:4000 > p11:8080 on");
        assert_eq!(net.leaves(UPLINK, "p11:8080 > client:4000", Kind::UDP), "lb:80 > client:4000 on");
        assert_eq!(net.comes(4, ANSWER, Kind::UDP), "pass", "late answers of the old one come to nobody");
    });
}

/// CT-4, CT-10.
#[test]
fn datagrams_to_a_service_that_has_lost_its_last_endpoint_are_refused_and_served_again() {
    both(|net| {
        let mut net = net.serve(&["p11"]);
        net.comes(UPLINK, REQUEST, Kind::UDP);
        net.leave("p11");
        let served = net.service().cluster;
        net.service().cluster = crate::abi::Run::EMPTY;
        assert_eq!(net.comes(UPLINK, REQUEST, Kind::UDP), "refuse");
        assert_eq!(net.comes(UPLINK, REQUEST, Kind::UDP), "refuse");
        let run = net.run(&["p12"]);
        assert_ne!(run, served);
        net.service().cluster = run;
        assert_eq!(net.comes(UPLINK, REQUEST, Kind::UDP), "client:4000 > p12:8080 on");
    });
}

#[test]
fn a_datagram_after_a_long_silence_chooses_anew() {
    both(|net| {
        let net = net.serve(&["p11", "p12"]);
        net.choose(&[(0, 2)]);
        assert_eq!(net.comes(UPLINK, REQUEST, Kind::UDP), "client:4000 > p11:8080 on");
        net.after_s(119);
        net.choose(&[(1, 2)]);
        assert_eq!(net.comes(UPLINK, REQUEST, Kind::UDP), "client:4000 > p11:8080 on");
        net.after_s(UDP_IDLE_S.into());
        assert_eq!(net.comes(UPLINK, REQUEST, Kind::UDP), "client:4000 > p12:8080 on");
    });
}

#[test]
fn a_port_that_is_used_again_after_the_end_chooses_anew() {
    both(|net| {
        for end in [Kind::FIN, Kind::RST] {
            let net = established(Net::of(net.v6).serve(&["far", "p11"]));
            net.comes(UPLINK, REQUEST, end);
            net.choose(&[(0, 1), (50, 0)]);
            assert_eq!(net.comes(UPLINK, REQUEST, Kind::SYN), "tunnel:2050 > far:8080 routed");
        }
        let net = established(Net::of(net.v6));
        net.comes(4, ANSWER, Kind::RST);
        net.choose(&[(0, 1), (50, 0)]);
        assert_eq!(net.comes(UPLINK, REQUEST, Kind::SYN), "tunnel:2050 > far:8080 routed");
    });
}

#[test]
fn half_closed_connections_and_those_whose_reset_nobody_believed_go_on() {
    both(|net| {
        let net = established(net);
        net.comes(UPLINK, REQUEST, Kind::FIN);
        assert_eq!(net.comes(4, ANSWER, Kind::ACK), "lb:80 > client:4000 device 2");
        assert_eq!(net.comes(UPLINK, REQUEST, Kind::ACK), "tunnel:2000 > far:8080 routed");
        let net = established(Net::of(net.v6));
        net.comes(UPLINK, REQUEST, Kind::RST);
        for ends in [REQUEST, ANSWER] {
            let (_, state) = net.entry(ends, Proto::TCP).unwrap();
            assert!(state.has(FlowState::RESET), "{ends}: {state:?}");
        }
        net.comes(UPLINK, REQUEST, Kind::ACK);
        net.comes(4, ANSWER, Kind::ACK);
        for ends in [REQUEST, ANSWER] {
            let (_, state) = net.entry(ends, Proto::TCP).unwrap();
            assert!(!state.has(FlowState::RESET), "{ends}: {state:?}");
        }
    });
}

#[test]
fn connections_that_somebody_else_has_opened_are_left_alone() {
    both(|net| {
        let net = net.serve(&["far"]);
        for kind in [Kind::ACK, Kind::SYN_ACK, Kind::FIN, Kind::RST] {
            assert_eq!(net.comes(UPLINK, REQUEST, kind), "pass");
            assert_eq!(net.comes(4, ANSWER, kind), "pass");
            assert_eq!(net.leaves(UPLINK, "p11:8080 > client:4000", kind), "pass");
        }
        assert_eq!(net.entries(Table::New), Vec::<&str>::new());
    });
}

#[test]
fn what_a_frontend_hides_can_be_reached_without_it() {
    both(|net| {
        let net = established(net);
        assert_eq!(net.leaves(UPLINK, "lb:80 > client:4000", Kind::ACK), "pass", "restored before");
        assert_eq!(net.leaves(4, "tunnel:2000 > far:8080", Kind::ACK), "pass", "translated before");
        assert_eq!(net.leaves(UPLINK, REQUEST, Kind::ACK), "pass");
    });
}
