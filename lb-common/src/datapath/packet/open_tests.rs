//! First packets: who is served by whom, from which address.

use std::{borrow::ToOwned as _, collections::BTreeSet, format, vec, vec::Vec};

use super::{
    Table, UDP_IDLE_S,
    net::{BRIDGE, DARK, Kind, Net, SERVICE, UPLINK, both},
};
use crate::abi::{
    Address, Device, FrontendKey, FrontendKind, PacketLb, Proto, Reason, Run, Service, ServiceFlags,
    ServiceId,
};

/// MQ-3, MQ-7, 2.8-external.
#[test]
fn a_backend_elsewhere_sees_the_address_of_the_device_that_leads_there() {
    both(|net| {
        let net = net.serve(&["far"]);
        for (port, to) in (4000..).zip(["lb:80", "ext:80", "node:30080"]) {
            net.choose(&[(0, 1), (port, 0)]);
            let port_out = 2000 + port % 100;
            let came = net.comes(UPLINK, &format!("client:{port} > {to}"), Kind::SYN);
            assert_eq!(came, format!("tunnel:{port_out} > far:8080 routed"));
            let back = net.comes(4, &format!("far:8080 > tunnel:{port_out}"), Kind::SYN_ACK);
            assert_eq!(back, format!("{to} > client:{port} device 2"), "it leaves where the request came in");
        }
        assert_eq!(net.world.counted(Reason::Flow), 3);
    });
}

/// MQ-3, MQ-10.
#[test]
fn a_backend_here_sees_the_client_and_its_answers_are_restored_where_they_leave() {
    both(|net| {
        let net = net.serve(&["p11"]);
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::SYN), "client:4000 > p11:8080 on");
        assert_eq!(net.comes(11, "p11:8080 > client:4000", Kind::SYN_ACK), "pass");
        assert_eq!(net.leaves(UPLINK, "p11:8080 > client:4000", Kind::SYN_ACK), "lb:80 > client:4000 on");
        assert_eq!(net.leaves(3, "p11:8080 > client:4000", Kind::ACK), "lb:80 > client:4000 device 2");
    });
}

/// MQ-10, MQ-4.
#[test]
fn a_pod_keeps_its_address_wherever_the_backend_is_and_whatever_it_asks() {
    both(|net| {
        for (backend, to) in [("far", "vip:80"), ("far", "lb:80"), ("p12", "node:30080"), ("node", "vip:80")]
        {
            let net = Net::of(net.v6).serve(&[backend]);
            let came = net.comes(11, &format!("p11:4000 > {to}"), Kind::SYN);
            assert_eq!(came, format!("p11:4000 > {backend}:8080 on"));
            let back = net.leaves(11, &format!("{backend}:8080 > p11:4000"), Kind::SYN_ACK);
            assert_eq!(back, format!("{to} > p11:4000 on"));
        }
    });
}

/// MQ-6.
#[test]
fn a_pod_that_meets_itself_sees_the_nodes_address() {
    both(|net| {
        let net = net.serve(&["p11"]);
        net.choose(&[(0, 1), (7, 0)]);
        assert_eq!(net.comes(11, "p11:4000 > vip:80", Kind::SYN), "node:2007 > p11:8080 routed");
        assert_eq!(net.comes(11, "p11:8080 > node:2007", Kind::SYN_ACK), "vip:80 > p11:4000 device 11");
    });
}

#[test]
fn pods_of_one_bridge_would_answer_each_other_directly_and_see_the_bridges_address() {
    both(|net| {
        let net = net.serve(&["b2"]);
        net.choose(&[(0, 1), (7, 0)]);
        assert_eq!(net.comes(BRIDGE, "b1:4000 > vip:80", Kind::SYN), "bridge:2007 > b2:8080 routed");
        assert_eq!(net.comes(BRIDGE, "b2:8080 > bridge:2007", Kind::SYN_ACK), "vip:80 > b1:4000 device 5");
        let net = Net::of(net.v6).serve(&["p11"]);
        assert_eq!(net.comes(BRIDGE, "b1:4000 > vip:80", Kind::SYN), "b1:4000 > p11:8080 on");
    });
}

/// MQ-1.
#[test]
fn with_masquerade_all_no_backend_sees_a_client() {
    both(|net| {
        let mut net = net.serve(&["far", "p12", "node"]);
        net.packets(PacketLb::MASQUERADE_ALL);
        net.choose(&[(0, 3), (1, 0), (1, 3), (2, 0), (2, 3)]);
        assert_eq!(net.comes(11, "p11:4000 > vip:80", Kind::SYN), "tunnel:2001 > far:8080 routed");
        assert_eq!(net.comes(11, "p11:4001 > vip:80", Kind::SYN), "node:2002 > p12:8080 routed");
        // A process of this node hears only what the stack takes, and that takes nobody for itself.
        assert_eq!(net.comes(11, "p11:4002 > vip:80", Kind::SYN), "p11:4002 > node:8080 on");
    });
}

/// MQ-4, EP-8, 2.8-external.
#[test]
fn under_policy_local_strangers_use_local_endpoints_as_themselves_and_pods_use_all() {
    both(|net| {
        let mut net = net.serve(&["p12"]);
        let far = net.run(&["far"]);
        net.service().cluster = far;
        net.flags(ServiceFlags::EXTERNAL_LOCAL);
        for to in ["lb:80", "ext:80", "node:30080"] {
            let came = net.comes(UPLINK, &format!("client:4000 > {to}"), Kind::UDP);
            assert_eq!(came, "client:4000 > p12:8080 on");
            net.tables(|tables| tables.evict_new());
            let came = net.comes(11, &format!("p11:4000 > {to}"), Kind::UDP);
            assert_eq!(came, "p11:4000 > far:8080 on");
        }
        assert_eq!(net.comes(11, "p11:4001 > vip:80", Kind::SYN), "p11:4001 > far:8080 on");
    });
}

/// EP-8.
#[test]
fn an_internal_policy_of_local_is_for_the_cluster_ip() {
    both(|net| {
        let mut net = net.serve(&["p12"]);
        let far = net.run(&["far"]);
        net.service().cluster = far;
        net.flags(ServiceFlags::INTERNAL_LOCAL);
        assert_eq!(net.comes(11, "p11:4000 > vip:80", Kind::SYN), "p11:4000 > p12:8080 on");
        assert_eq!(net.comes(11, "p11:4000 > lb:80", Kind::SYN), "p11:4000 > far:8080 on");
    });
}

/// NE-1, NE-2, NE-3, 2.7-external.
#[test]
fn nobody_anywhere_is_refused_and_nobody_here_is_silent() {
    both(|net| {
        let mut net = net.serve(&[]);
        for kind in [Kind::SYN, Kind::UDP] {
            for to in ["lb:80", "ext:80", "node:30080"] {
                assert_eq!(net.comes(UPLINK, &format!("client:4000 > {to}"), kind), "refuse");
            }
            assert_eq!(net.comes(11, "p11:4000 > vip:80", kind), "refuse");
        }
        assert_eq!(net.world.counted(Reason::RefusedPacket), 8);
        net.service().local = Run::ELSEWHERE;
        net.flags(ServiceFlags::EXTERNAL_LOCAL.with(ServiceFlags::INTERNAL_LOCAL));
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::SYN), "drop");
        assert_eq!(net.comes(11, "p11:4000 > vip:80", Kind::SYN), "drop");
        assert_eq!(net.comes(11, "p11:4000 > lb:80", Kind::SYN), "refuse");
        assert_eq!(net.world.counted(Reason::DroppedElsewhere), 2);
        for kind in [Kind::ACK, Kind::SYN_ACK, Kind::RST, Kind::FIN] {
            assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", kind), "pass", "only what begins a flow");
        }
        assert_eq!(net.entries(Table::New), Vec::<&str>::new());
    });
}

/// SR-1, SR-2, SR-3, SR-4, NE-5, 2.22-order.
#[test]
fn source_ranges_hold_at_load_balancer_addresses_for_everybody_and_before_everything() {
    both(|net| {
        let mut net = net.serve(&[]);
        net.flags(ServiceFlags::RESTRICTED);
        net.world.allowed = [(SERVICE, net.addr("other")), (SERVICE, net.addr("p12"))].into();
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::SYN), "drop", "not even refused");
        assert_eq!(net.comes(11, "p11:4000 > lb:80", Kind::UDP), "drop");
        assert_eq!(net.world.counted(Reason::DroppedRestricted), 2);
        for (ifindex, ends) in [
            (UPLINK, "other:4000 > lb:80"),
            (12, "p12:4000 > lb:80"),
            (UPLINK, "client:4000 > node:30080"),
            (UPLINK, "client:4000 > ext:80"),
            (11, "p11:4000 > vip:80"),
        ] {
            assert_eq!(net.comes(ifindex, ends, Kind::SYN), "refuse", "{ends}");
        }
    });
}

/// SR-5.
#[test]
fn a_range_that_is_withdrawn_cuts_nobody_off() {
    both(|net| {
        let mut net = net.serve(&["p11"]);
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::SYN), "client:4000 > p11:8080 on");
        net.flags(ServiceFlags::RESTRICTED);
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::ACK), "client:4000 > p11:8080 on");
        assert_eq!(net.comes(UPLINK, "client:4001 > lb:80", Kind::SYN), "drop");
    });
}

/// MQ-2, 2.7-other-ports, 2.7-external.
#[test]
fn cluster_ips_are_for_the_cluster_unless_they_are_opened() {
    both(|net| {
        let mut net = net.serve(&["far"]);
        for to in ["vip:80", "vip:81"] {
            assert_eq!(net.comes(UPLINK, &format!("client:4000 > {to}"), Kind::SYN), "pass");
        }
        net.packets(PacketLb::EXTERNAL_CLUSTER_IP);
        // MQ-2: it would answer the client directly.
        assert_eq!(net.comes(UPLINK, "client:4000 > vip:80", Kind::SYN), "tunnel:2000 > far:8080 routed");
        assert_eq!(net.comes(UPLINK, "client:4000 > vip:81", Kind::SYN), "refuse");
        assert_eq!(net.comes(11, "p11:4000 > vip:81", Kind::UDP), "refuse");
    });
}

/// NP-9, 2.22-order.
#[test]
fn a_node_port_is_the_last_match_and_only_at_addresses_of_this_node() {
    both(|net| {
        let mut net = net.serve(&["p11"]);
        let run = net.run(&["p12"]);
        let other = ServiceId { index: 2 };
        net.world.services.insert(other, Service { cluster: run, local: run, ..Service::FREE });
        net.accept(FrontendKind::ExternalIp, "node3:30080", Proto::TCP, other);
        assert_eq!(net.comes(UPLINK, "client:4000 > node3:30080", Kind::SYN), "client:4000 > p12:8080 on");
        assert_eq!(net.comes(UPLINK, "client:4001 > node3:30080", Kind::UDP), "client:4001 > p11:8080 on");
        assert_eq!(net.comes(UPLINK, "client:4002 > other:30080", Kind::SYN), "pass");
        assert_eq!(net.comes(UPLINK, "client:4002 > node:30081", Kind::SYN), "pass");
        net.world.addresses.insert(net.addr("node"), Address::LOOPBACK);
        assert_eq!(net.comes(UPLINK, "client:4002 > node:30080", Kind::SYN), "pass", "not from outside");
    });
}

/// SA-1, SA-3, SA-8.
#[test]
fn affinity_is_for_the_clients_own_address_and_its_backend() {
    both(|net| {
        let mut net = net.serve(&["far", "p12"]);
        net.service().affinity_s = 60;
        net.choose(&[(0, 2), (3, 0)]);
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::SYN), "tunnel:2003 > far:8080 routed");
        net.choose(&[(9, 0)]);
        assert_eq!(net.comes(UPLINK, "client:4001 > node:30080", Kind::SYN), "tunnel:2009 > far:8080 routed");
        net.choose(&[(1, 2)]);
        assert_eq!(net.comes(UPLINK, "other:4000 > lb:80", Kind::SYN), "other:4000 > p12:8080 on");
        net.leave("far");
        net.choose(&[(1, 2)]);
        assert_eq!(net.comes(UPLINK, "client:4002 > lb:80", Kind::SYN), "client:4002 > p12:8080 on");
        assert_eq!(net.world.counted(Reason::AffinityMoved), 1);
    });
}

#[test]
fn what_comes_from_a_device_that_is_not_served_or_with_our_own_address_is_left_alone() {
    both(|net| {
        let net = net.serve(&["p11"]);
        assert_eq!(net.comes(DARK, "client:4000 > lb:80", Kind::SYN), "pass");
        assert_eq!(net.comes(UPLINK, "node:4000 > lb:80", Kind::SYN), "pass");
        assert_eq!(net.world.counted(Reason::Martian), 1);
        assert_eq!(net.entries(Table::New), Vec::<&str>::new());
    });
}

#[test]
fn a_backend_that_no_served_device_leads_to_is_named_and_gets_nothing() {
    both(|net| {
        let mut net = net.serve(&["lost"]);
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::SYN), "drop");
        assert_eq!(net.world.counted(Reason::NoRoute), 1);
        let net6 = net.v6;
        net = Net::of(net6).serve(&["far"]);
        net.world.devices.insert(4, Device::NONE);
        assert_eq!(
            net.comes(UPLINK, "client:4000 > lb:80", Kind::SYN),
            "drop",
            "no address to masquerade with"
        );
        net.world.devices.remove(&4);
        assert_eq!(net.comes(UPLINK, "client:4001 > lb:80", Kind::SYN), "drop");
        assert_eq!(net.world.counted(Reason::NoRoute), 2);
    });
}

#[test]
fn a_port_that_another_flow_has_is_not_given_again() {
    both(|net| {
        let net = net.serve(&["far"]);
        net.choose(&[(0, 1), (5, 0)]);
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::SYN), "tunnel:2005 > far:8080 routed");
        net.choose(&[(0, 1), (5, 0), (5, 0), (6, 0)]);
        assert_eq!(net.comes(UPLINK, "client:4001 > lb:80", Kind::SYN), "tunnel:2006 > far:8080 routed");
    });
}

#[test]
fn without_a_free_port_nothing_is_masqueraded_and_all_others_go_on() {
    both(|net| {
        let mut net = net.serve(&["far"]);
        net.world.ports = vec![2000];
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::SYN), "tunnel:2000 > far:8080 routed");
        assert_eq!(net.comes(UPLINK, "client:4001 > lb:80", Kind::SYN), "drop");
        assert_eq!(net.world.counted(Reason::NoPort), 1);
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::ACK), "tunnel:2000 > far:8080 routed");
        // The connection ends, and its port is free a moment later.
        net.comes(4, "far:8080 > tunnel:2000", Kind::RST);
        assert_eq!(net.comes(UPLINK, "client:4002 > lb:80", Kind::SYN), "drop");
        net.after_s(2);
        assert_eq!(net.comes(UPLINK, "client:4002 > lb:80", Kind::SYN), "tunnel:2000 > far:8080 routed");
        assert_eq!(net.comes(4, "far:8080 > tunnel:2000", Kind::SYN_ACK), "lb:80 > client:4002 device 2");
    });
}

#[test]
fn two_frontends_with_one_backend_are_told_apart_by_the_source_port() {
    both(|net| {
        let net = net.serve(&["p12"]);
        assert_eq!(net.comes(11, "p11:4000 > vip:80", Kind::SYN), "p11:4000 > p12:8080 on");
        net.choose(&[(0, 1), (8, 0)]);
        assert_eq!(net.comes(11, "p11:4000 > lb:80", Kind::SYN), "p11:2008 > p12:8080 on");
        assert_eq!(net.leaves(11, "p12:8080 > p11:4000", Kind::SYN_ACK), "vip:80 > p11:4000 on");
        assert_eq!(net.leaves(11, "p12:8080 > p11:2008", Kind::SYN_ACK), "lb:80 > p11:4000 on");
    });
}

#[test]
fn two_first_packets_at_once_are_one_flow() {
    both(|net| {
        let net = net.serve(&["far", "p12"]);
        net.choose(&[(0, 2), (5, 0)]);
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::UDP), "tunnel:2005 > far:8080 routed");
        // The other CPU has looked before that was written.
        net.tables(|tables| tables.hide(1));
        net.choose(&[(0, 2), (6, 0)]);
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::UDP), "tunnel:2005 > far:8080 routed");
        assert_eq!(net.entries(Table::New).len(), 2, "nothing is left of the second choice");
    });
}

#[test]
fn a_packet_that_has_come_too_far_is_not_sent_further() {
    both(|net| {
        let net = net.serve(&["far"]);
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::SYN.ttl(1)), "drop");
        assert_eq!(
            net.comes(UPLINK, "client:4000 > lb:80", Kind::SYN.ttl(2)),
            "tunnel:2000 > far:8080 routed"
        );
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::ACK.ttl(1)), "drop");
        assert_eq!(net.world.counted(Reason::TtlExceeded), 2);
    });
}

#[test]
fn answers_to_what_this_node_sends_from_the_number_of_a_node_port_are_its_own() {
    both(|net| {
        let net = net.serve(&["far"]);
        assert_eq!(net.leaves(UPLINK, "node:30080 > client:53", Kind::UDP), "pass");
        assert_eq!(net.comes(UPLINK, "client:53 > node:30080", Kind::UDP), "pass");
        net.after_s(119);
        assert_eq!(net.comes(UPLINK, "client:53 > node:30080", Kind::UDP), "pass");
        net.after_s(UDP_IDLE_S.into());
        assert_eq!(net.comes(UPLINK, "client:53 > node:30080", Kind::UDP), "tunnel:2000 > far:8080 routed");
        // A client that asks the NodePort is answered from there: that is no conversation of this node's.
        assert_eq!(net.comes(4, "far:8080 > tunnel:2000", Kind::UDP), "node:30080 > client:53 device 2");
        assert_eq!(net.leaves(UPLINK, "node:30080 > client:53", Kind::UDP), "pass");
        assert_eq!(net.comes(UPLINK, "client:53 > node:30080", Kind::UDP), "tunnel:2000 > far:8080 routed");
        // Neither are other ports, nor TCP, whose answers cannot open a flow.
        for (ends, kind) in [("node:29999 > client:53", Kind::UDP), ("node:30080 > other:53", Kind::SYN)] {
            let entries = net.entries(Table::New).len();
            assert_eq!(net.leaves(UPLINK, ends, kind), "pass");
            assert_eq!(net.entries(Table::New).len(), entries);
        }
    });
}

#[test]
fn what_was_sent_to_another_machine_is_left_alone() {
    both(|net| {
        let net = net.serve(&["far"]);
        net.world.overheard.set(true);
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::SYN), "pass");
        assert_eq!(
            net.comes(11, "p11:4000 > vip:80", Kind::SYN),
            "p11:4000 > far:8080 on",
            "a port of a bridge"
        );
        net.world.overheard.set(false);
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::SYN), "tunnel:2000 > far:8080 routed");
    });
}

#[test]
fn a_frontend_without_its_service_is_counted_and_left_alone() {
    both(|net| {
        let mut net = net;
        net.accept_all(SERVICE);
        assert_eq!(net.comes(UPLINK, "client:4000 > lb:80", Kind::SYN), "pass");
        assert_eq!(net.world.counted(Reason::Dangling), 1);
        let key = FrontendKey::new(net.at("lb:80"), Proto::TCP);
        assert!(net.world.frontends.contains_key(&key));
    });
}

/// [`Net::serve`] with two backends that have four slots each, where packets are hashed.
fn hashed(net: Net) -> Net {
    let mut net = net.serve(&["p11", "p12", "p11", "p12", "p11", "p12", "p11", "p12"]);
    net.flags(ServiceFlags::MAGLEV);
    net.packets(PacketLb::MAGLEV);
    net
}

/// 5.9-maglev, 5.9-same-everywhere.
#[test]
fn the_ends_of_a_packet_say_which_slot_it_meets_on_every_node() {
    both(|net| {
        let [one, other] = [net.v6, net.v6].map(|v6| hashed(Net::of(v6)));
        other.choose(&[(1, 2), (0, 2), (1, 2), (1, 2)]);
        let mut met = BTreeSet::new();
        for port in 4000..4032 {
            let ends = format!("client:{port} > lb:80");
            let came = one.comes(UPLINK, &ends, Kind::SYN);
            assert_eq!(other.comes(UPLINK, &ends, Kind::SYN), came);
            met.insert(came.split(" > ").nth(1).map(str::to_owned));
        }
        assert_eq!(met.len(), 2, "{met:?}");
        // The frontend and the protocol are among the ends.
        let differs = |with: &str, kind| {
            (4100..4132).any(|port| {
                let back_end = |to: &str, kind| {
                    let came = one.comes(UPLINK, &format!("client:{port} > {to}"), kind);
                    came.split(" > ").nth(1).map(str::to_owned)
                };
                back_end("lb:80", Kind::SYN) != back_end(with, kind)
            })
        };
        assert!(differs("ext:80", Kind::SYN) && differs("lb:80", Kind::UDP));
    });
}

/// 5.9-join.
#[test]
fn a_segment_in_the_middle_of_a_connection_meets_the_backend_that_its_first_one_met_on_another_node() {
    both(|net| {
        for kind in [Kind::ACK, Kind::SYN_ACK, Kind::FIN, Kind::RST] {
            for port in 4000..4008 {
                let [before, now] = [net.v6, net.v6].map(|v6| hashed(Net::of(v6)));
                let ends = format!("client:{port} > lb:80");
                let came = before.comes(UPLINK, &ends, Kind::SYN);
                assert_eq!(now.comes(UPLINK, &ends, kind), came);
                assert_eq!(now.comes(UPLINK, &ends, Kind::ACK), came, "from then on it is a flow");
            }
        }
    });
}

/// 5.9-join.
#[test]
fn a_segment_in_the_middle_of_a_connection_opens_nothing_elsewhere() {
    both(|net| {
        let ends = "client:4000 > lb:80";
        for flags in [ServiceFlags::default(), ServiceFlags::ROUND_ROBIN] {
            let mut random = hashed(Net::of(net.v6));
            random.flags(flags);
            assert_eq!(random.comes(UPLINK, ends, Kind::ACK), "pass", "of another Service");
        }
        let hashed = hashed(Net::of(net.v6));
        for to in ["node:30080", "vip:81", "lb:81"] {
            assert_eq!(hashed.comes(11, &format!("p11:4000 > {to}"), Kind::ACK), "pass", "{to}");
        }
        assert_eq!(hashed.comes(11, "p11:4000 > vip:81", Kind::SYN), "refuse");
        assert!(hashed.entries(Table::New).is_empty());
        let mut unasked = self::hashed(Net::of(net.v6));
        unasked.packets(PacketLb::default());
        assert_eq!(unasked.comes(UPLINK, ends, Kind::ACK), "pass", "nobody looks");
    });
}

/// 5.9-affinity: affinity comes first.
#[test]
fn a_client_with_affinity_stays_where_packets_are_hashed() {
    both(|net| {
        let mut net = hashed(net);
        net.service().affinity_s = 60;
        let met: BTreeSet<_> = (4000..4032)
            .map(|port| net.comes(UPLINK, &format!("client:{port} > lb:80"), Kind::SYN))
            .filter_map(|came| came.split(" > ").nth(1).map(str::to_owned))
            .collect();
        assert_eq!(met.len(), 1, "{met:?}");
    });
}

/// 5.9-round-robin.
#[test]
fn packets_go_to_all_backends_in_turn() {
    both(|net| {
        let mut net = net.serve(&["p11", "p12"]);
        net.flags(ServiceFlags::ROUND_ROBIN);
        for port in 4000..4008 {
            let backend = if port % 2 == 0 { "p11" } else { "p12" };
            let came = net.comes(UPLINK, &format!("client:{port} > lb:80"), Kind::SYN);
            assert_eq!(came, format!("client:{port} > {backend}:8080 on"));
        }
    });
}
