//! Later pieces of datagrams go where the first one goes.

use super::{
    net::{Kind, Net, OVERLAY, UPLINK, both},
    parse::Fragment,
};
use crate::abi::{FragmentKey, FragmentPorts, Proto};

const FIRST: Kind = Kind::UDP.piece(Fragment::first(7));
const LATER: Kind = Kind::UDP.piece(Fragment::later(7));

/// 2.25-fragments.
#[test]
fn later_pieces_follow_the_first_one_in_both_directions() {
    both(|net| {
        let net = net.serve(&["far"]);
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", FIRST), "tunnel:2000 > far:8080 routed");
        for _ in 0..2 {
            assert_eq!(net.comes(UPLINK, "client:0 > lb:0", LATER), "tunnel:2000 > far:8080 routed");
        }
        assert_eq!(net.comes(OVERLAY, "far:8080 > tunnel:2000", FIRST), "lb:80 > client:4000 device 2");
        assert_eq!(net.comes(OVERLAY, "far:0 > tunnel:0", LATER), "lb:80 > client:4000 device 2");
        let net = Net::of(net.v6).serve(&["p11"]);
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", FIRST), "client:4000 > p11:8080 on");
        assert_eq!(net.comes(UPLINK, "client:0 > lb:0", LATER), "client:4000 > p11:8080 on");
        assert_eq!(net.leaves(UPLINK, "p11:8080 > client:4000", FIRST), "lb:80 > client:4000 on");
        assert_eq!(net.leaves(UPLINK, "p11:0 > client:0", LATER), "lb:80 > client:4000 on");
    });
}

#[test]
fn pieces_of_other_datagrams_are_left_alone() {
    both(|net| {
        let net = net.serve(&["far"]);
        assert_eq!(net.comes(UPLINK, "client:0 > lb:0", LATER), "pass", "before the first one");
        net.comes(UPLINK, "client:4000 > lb:80", FIRST);
        let other = Kind::UDP.piece(Fragment::later(8));
        assert_eq!(net.comes(UPLINK, "client:0 > lb:0", other), "pass");
        assert_eq!(net.comes(UPLINK, "other:0 > lb:0", LATER), "pass");
        assert_eq!(net.comes(UPLINK, "client:0 > ext:0", LATER), "pass");
        assert_eq!(net.leaves(UPLINK, "client:0 > lb:0", LATER), "pass");
    });
}

#[test]
fn only_what_is_translated_is_remembered() {
    both(|net| {
        let net = net.serve(&["far"]);
        net.comes(UPLINK, "client:4000 > other:80", FIRST);
        net.comes(UPLINK, "client:4000 > vip:81", FIRST);
        net.leaves(UPLINK, "p11:4000 > other:80", FIRST);
        net.comes(UPLINK, "client:4000 > lb:80", Kind::UDP);
        assert!(net.world.fragments.borrow().is_empty());
    });
}

#[test]
fn an_entry_of_another_key_is_noticed() {
    let key = |id, last| FragmentKey {
        src: crate::abi::Addr::from_v4([10, 0, 0, 1]),
        dst: crate::abi::Addr::from_v4([10, 0, 0, last]),
        id,
        proto: Proto::UDP,
        pad: [0; 3],
    };
    let ports = FragmentPorts::new(&key(1, 2), 4000, 80);
    assert!(ports.is_of(&key(1, 2)));
    for other in [key(2, 2), key(1, 3), FragmentKey { proto: Proto::TCP, ..key(1, 2) }] {
        assert!(!ports.is_of(&other));
    }
    assert!(!FragmentPorts { dport: 81, ..ports }.is_of(&key(1, 2)));
}
