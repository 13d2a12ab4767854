//! What a socket experiences, one rule per test.

use core::net::SocketAddr;
use std::{string::String, string::ToString as _, vec, vec::Vec};

use rstest::rstest;

use super::sock::{REFUSING_UDP_PORT, Verdict, connect, peer, received, send};
use crate::{
    abi::{
        Addr, Address, Backend, BackendId, BackendState, Config, Frontend, FrontendKey, FrontendKind, L4Addr,
        Netns, Proto, Reason, Run, Service, ServiceFlags, ServiceId, Slot, SocketLb,
    },
    host::{MemSocket, MemTables},
};

pub(super) const POD: u64 = 7;

pub(super) fn at(text: &str) -> L4Addr {
    text.parse::<SocketAddr>().unwrap().into()
}

/// A verdict as the tables below write it: `pass`, `refuse`, `refuse here`, or the address.
pub(super) fn word(verdict: Verdict) -> String {
    match verdict {
        Verdict::Pass => "pass".to_string(),
        Verdict::Refuse => "refuse".to_string(),
        Verdict::RefuseHere => "refuse here".to_string(),
        Verdict::To(target) => target.to_string(),
    }
}

impl MemTables {
    /// Adds a frontend.
    pub(super) fn accept(&mut self, kind: FrontendKind, to: &str, proto: Proto, service: u32) {
        let key = FrontendKey::new(at(to), proto);
        self.frontends.insert(key, Frontend::new(key, ServiceId { index: service }, kind));
    }

    /// Adds backends in slots of their own and returns their run.
    pub(super) fn run(&mut self, backends: &[&str]) -> Run {
        let base = u32::try_from(self.slots.len()).unwrap();
        for (index, backend) in (base..).zip(backends) {
            // Id 0 is nobody.
            let id = BackendId { index: index + 1 };
            let target = at(backend);
            let slot =
                Slot { addr: target.addr, port: target.port, flags: 0, backend: id, generation: 1, pad: 0 };
            self.slots.insert(index, slot);
            let state = BackendState::Active as u8;
            self.backends.insert(id, Backend { generation: 1, state, runs: 1, pad: 0 });
        }
        Run { base, count: u16::try_from(backends.len()).unwrap(), generation: 1 }
    }

    /// Adds a service whose two runs are the same.
    pub(super) fn serve(&mut self, service: u32, backends: &[&str]) {
        let run = self.run(backends);
        self.services
            .insert(ServiceId { index: service }, Service { cluster: run, local: run, ..Service::FREE });
    }

    /// Frees the backend id that has this address, as the agent does when an endpoint leaves.
    pub(super) fn leave(&mut self, service: u32, backend: &str) {
        let run = self.services[&ServiceId { index: service }].cluster;
        let slots = run.base..run.base + u32::from(run.count);
        let slot = slots.map(|index| self.slots[&index]).find(|slot| slot.at() == at(backend)).unwrap();
        let freed = Backend { generation: 2, state: BackendState::Free as u8, runs: 0, pad: 0 };
        self.backends.insert(slot.backend, freed);
    }

    /// Lets the next choices take these places of a run of `of`.
    pub(super) fn choose(&self, places: &[u32], of: u32) {
        let word = |place: &u32| u32::MAX / of * place + u32::MAX / of / 2;
        *self.random.borrow_mut() = places.iter().rev().map(word).collect();
    }
}

/// Two web servers and two name servers behind cluster IPs, and all other ways to reach them.
pub(super) fn world() -> MemTables {
    let mut world = MemTables::default();
    world.serve(1, &["10.1.0.1:8080", "10.1.0.2:8080"]);
    world.serve(2, &["10.1.0.1:5353", "10.1.0.2:5353"]);
    world.serve(3, &["10.1.0.1:5353"]);
    world.serve(4, &[]);
    world.serve(6, &["[fd00:1::1]:8080"]);
    world.serve(7, &["10.1.0.9:9999"]);
    let (tcp, udp) = (Proto::TCP, Proto::UDP);
    world.accept(FrontendKind::ClusterIp, "10.96.0.10:80", tcp, 1);
    world.accept(FrontendKind::ExternalIp, "192.0.2.1:80", tcp, 1);
    world.accept(FrontendKind::LoadBalancer, "198.51.100.1:80", tcp, 1);
    world.accept(FrontendKind::NodePort, "0.0.0.0:30080", tcp, 1);
    world.accept(FrontendKind::ClusterIp, "10.96.0.10:53", udp, 2);
    world.accept(FrontendKind::NodePort, "0.0.0.0:30053", udp, 2);
    world.accept(FrontendKind::ClusterIp, "10.96.0.11:53", udp, 3);
    world.accept(FrontendKind::ClusterIp, "10.96.0.12:80", tcp, 4);
    world.accept(FrontendKind::ClusterIp, "10.96.0.12:53", udp, 4);
    world.accept(FrontendKind::ClusterIp, "[fd00:96::10]:80", tcp, 6);
    world.accept(FrontendKind::ClusterIp, "[fd00:96::12]:53", udp, 4);
    world.accept(FrontendKind::NodePort, "[::]:30080", tcp, 6);
    // An external address that is one of the node's, at the number of a NodePort.
    world.accept(FrontendKind::ExternalIp, "172.18.0.9:30080", tcp, 7);
    for node in ["172.18.0.2:0", "172.18.0.9:0", "[fd00:18::2]:0"] {
        world.addresses.insert(at(node).addr, Address::NODE);
    }
    world.addresses.insert(Addr::LOOPBACK_V4, Address::LOOPBACK);
    world.addresses.insert(Addr::LOOPBACK_V6, Address::LOOPBACK);
    world.config = Some(Config {
        node_port_min: 30_053,
        node_port_max: 30_080,
        socket_lb: SocketLb::ALL,
        ..Config::OFF
    });
    world
}

/// NP-9: the exact frontend, at an address of this node and the number of a NodePort, wins.
#[rstest]
#[case::a_cluster_ip_is_translated("pod tcp 10.96.0.10:80", "10.1.0.1:8080")]
#[case::an_external_ip_is_translated("pod tcp 192.0.2.1:80", "10.1.0.1:8080")]
#[case::a_load_balancer_address_is_translated("pod tcp 198.51.100.1:80", "10.1.0.1:8080")]
#[case::ipv6_is_translated("pod tcp [fd00:96::10]:80", "[fd00:1::1]:8080")]
#[case::the_host_is_served_too("host tcp 10.96.0.10:80", "10.1.0.1:8080")]
#[case::another_address_is_left_alone("pod tcp 10.96.0.99:80", "pass")]
#[case::another_port_is_left_alone("pod tcp 10.96.0.10:81", "pass")]
#[case::another_protocol_is_left_alone("pod udp 10.96.0.10:80", "pass")]
#[case::ipv6_of_the_same_digits_is_another_address("pod tcp [::10.96.0.10]:80", "pass")]
#[case::an_empty_service_refuses_tcp("pod tcp 10.96.0.12:80", "refuse")]
#[case::an_empty_service_lets_connected_udp_ask_the_loopback_address("pod udp 10.96.0.12:53", "127.0.0.1:1")]
#[case::of_the_same_family("pod udp [fd00:96::12]:53", "[::1]:1")]
#[case::a_node_port_is_served_on_the_nodes_address_for_pods("pod tcp 172.18.0.2:30080", "10.1.0.1:8080")]
#[case::and_for_the_host("host tcp 172.18.0.2:30080", "10.1.0.1:8080")]
#[case::and_on_ipv6("pod tcp [fd00:18::2]:30080", "[fd00:1::1]:8080")]
#[case::and_on_loopback_for_the_host("host tcp 127.0.0.1:30080", "10.1.0.1:8080")]
#[case::and_on_ipv6_loopback_for_the_host("host tcp [::1]:30080", "[fd00:1::1]:8080")]
#[case::the_loopback_of_a_pod_is_its_own("pod tcp 127.0.0.1:30080", "pass")]
#[case::the_ipv6_loopback_of_a_pod_too("pod tcp [::1]:30080", "pass")]
#[case::unspecified_means_loopback_for_the_host("host tcp 0.0.0.0:30080", "10.1.0.1:8080")]
#[case::so_does_the_ipv6_one("host tcp [::]:30080", "[fd00:1::1]:8080")]
#[case::and_that_of_an_ipv4_mapped_socket("host udp [::ffff:0.0.0.0]:30053", "10.1.0.1:5353")]
#[case::and_that_loopback_of_a_pod_is_its_own_too("pod tcp 0.0.0.0:30080", "pass")]
#[case::with_ipv6("pod tcp [::]:30080", "pass")]
#[case::with_udp("pod udp 0.0.0.0:30053", "pass")]
#[case::mapped("pod udp [::ffff:0.0.0.0]:30053", "pass")]
#[case::another_nodes_node_port_is_left_alone("host tcp 172.18.0.3:30080", "pass")]
#[case::a_node_port_of_another_protocol_is_left_alone("host tcp 172.18.0.2:30053", "pass")]
#[case::a_number_inside_the_range_need_not_be_a_node_port("host tcp 172.18.0.2:30079", "pass")]
#[case::an_exact_frontend_wins_over_a_node_port("pod tcp 172.18.0.9:30080", "10.1.0.9:9999")]
fn connect_goes_to(#[case] asked: &str, #[case] want: &str) {
    let world = world();
    let words: Vec<&str> = asked.split(' ').collect();
    let mut socket = if words[0] == "host" { MemSocket::on_host() } else { MemSocket::in_pod(POD) };
    let proto = if words[1] == "tcp" { Proto::TCP } else { Proto::UDP };
    assert_eq!(word(connect(&world, &mut socket, proto, at(words[2]))), want);
}

#[test]
fn the_refusing_port_of_the_table_above_is_the_named_one() {
    assert_eq!(REFUSING_UDP_PORT, 1);
}

#[test]
fn a_node_port_outside_the_range_is_not_looked_up() {
    let mut world = world();
    world.config = Some(Config { node_port_max: 30_079, ..world.config.unwrap() });
    for asked in ["172.18.0.2:30080", "0.0.0.0:30080", "[::]:30080"] {
        let mut socket = MemSocket::on_host();
        assert_eq!(connect(&world, &mut socket, Proto::TCP, at(asked)), Verdict::Pass, "{asked}");
    }
}

/// It is reached as loopback is, and is shown as the kernel shows it.
#[rstest]
#[case("0.0.0.0:30080", "0.0.0.0:30053", "127.0.0.1:30080", "127.0.0.1:30053")]
#[case("[::]:30080", "[::]:30053", "[::1]:30080", "[::1]:30053")]
fn an_unspecified_destination_is_shown_as_loopback(
    #[case] stream: &str,
    #[case] datagram: &str,
    #[case] shown_stream: &str,
    #[case] shown_datagram: &str,
) {
    let mut world = world();
    world.accept(FrontendKind::NodePort, "[::]:30053", Proto::UDP, 2);
    let mut socket = MemSocket::on_host();
    let Verdict::To(target) = connect(&world, &mut socket, Proto::TCP, at(stream)) else {
        panic!("{stream}")
    };
    assert_eq!(peer(&socket, target), Some(at(shown_stream)));
    for connected in [false, true] {
        let mut socket = MemSocket::on_host();
        let to = at(datagram);
        let verdict = if connected {
            connect(&world, &mut socket, Proto::UDP, to)
        } else {
            send(&world, &mut socket, to)
        };
        let Verdict::To(target) = verdict else { panic!("{datagram}: {verdict:?}") };
        assert_eq!(received(&mut socket, target), Some(at(shown_datagram)));
    }
    assert_eq!(send(&world, &mut MemSocket::in_pod(POD), at(datagram)), Verdict::Pass);
}

#[test]
fn all_backends_of_a_run_are_chosen() {
    let world = world();
    world.choose(&[0, 1], 2);
    let mut socket = MemSocket::in_pod(POD);
    let mut to = || word(connect(&world, &mut socket, Proto::TCP, at("10.96.0.10:80")));
    assert_eq!([to(), to()], ["10.1.0.1:8080", "10.1.0.2:8080"]);
    assert_eq!(world.counted(Reason::Connect), 2);
}

#[rstest]
#[case::tcp_of_the_host(SocketLb::TCP_HOST, [true, false, false, false])]
#[case::tcp_of_pods(SocketLb::TCP_PODS, [false, true, false, false])]
#[case::udp_of_the_host(SocketLb::UDP_HOST, [false, false, true, false])]
#[case::udp_of_pods(SocketLb::UDP_PODS, [false, false, false, true])]
#[case::nobody(SocketLb::NONE, [false; 4])]
#[case::everybody(SocketLb::ALL, [true; 4])]
fn a_switch_serves_one_protocol_of_host_or_pods(#[case] switch: SocketLb, #[case] want: [bool; 4]) {
    let mut world = world();
    world.config = Some(Config { socket_lb: switch, ..world.config.unwrap() });
    let served = [
        (MemSocket::on_host(), Proto::TCP, "10.96.0.10:80"),
        (MemSocket::in_pod(POD), Proto::TCP, "10.96.0.10:80"),
        (MemSocket::on_host(), Proto::UDP, "10.96.0.10:53"),
        (MemSocket::in_pod(POD), Proto::UDP, "10.96.0.10:53"),
    ]
    .map(|(mut socket, proto, to)| {
        let connected = connect(&world, &mut socket, proto, at(to)) != Verdict::Pass;
        if proto == Proto::UDP {
            let sent = send(&world, &mut socket, at(to)) != Verdict::Pass;
            assert_eq!(sent, connected, "sendmsg() follows the same switch");
        }
        connected
    });
    assert_eq!(served, want);
}

#[test]
fn an_exempt_namespace_is_left_alone_and_its_neighbours_are_not() {
    let mut world = world();
    world.netns.insert(POD, Netns::EXEMPT);
    world.netns.insert(POD + 1, Netns { bits: 0 });
    world.config = Some(Config { netns_entries: 1, ..world.config.unwrap() });
    let go = |netns| connect(&world, &mut MemSocket::in_pod(netns), Proto::TCP, at("10.96.0.10:80"));
    assert_eq!(go(POD), Verdict::Pass);
    assert_ne!(go(POD + 1), Verdict::Pass);
    assert_ne!(go(POD + 2), Verdict::Pass);
    assert_eq!(send(&world, &mut MemSocket::in_pod(POD), at("10.96.0.10:53")), Verdict::Pass);
    assert_eq!(
        send(&world, &mut MemSocket::in_pod(POD), at("10.96.0.12:53")),
        Verdict::Pass,
        "an empty service does not refuse it either"
    );
}

/// Policy, kind of the frontend, and which run serves it.
#[rstest]
#[case::cluster_policy_uses_the_cluster_run(ServiceFlags { bits: 0 }, FrontendKind::ClusterIp, "10.1.0.1:80")]
#[case::internal_local_uses_the_local_run(
    ServiceFlags::INTERNAL_LOCAL,
    FrontendKind::ClusterIp,
    "10.1.0.2:80"
)]
#[case::but_not_for_an_external_ip(ServiceFlags::INTERNAL_LOCAL, FrontendKind::ExternalIp, "10.1.0.1:80")]
#[case::nor_for_a_load_balancer(ServiceFlags::INTERNAL_LOCAL, FrontendKind::LoadBalancer, "10.1.0.1:80")]
fn the_policy_chooses_the_run(#[case] flags: ServiceFlags, #[case] kind: FrontendKind, #[case] want: &str) {
    let mut world = world();
    let (cluster, local) = (world.run(&["10.1.0.1:80"]), world.run(&["10.1.0.2:80"]));
    world.services.insert(ServiceId { index: 9 }, Service { cluster, local, flags, ..Service::FREE });
    world.accept(kind, "10.96.0.9:80", Proto::TCP, 9);
    let mut socket = MemSocket::in_pod(POD);
    assert_eq!(word(connect(&world, &mut socket, Proto::TCP, at("10.96.0.9:80"))), want);
}

#[test]
fn a_node_port_ignores_internal_local() {
    let mut world = world();
    let (cluster, local) = (world.run(&["10.1.0.1:80"]), world.run(&[]));
    let flags = ServiceFlags::INTERNAL_LOCAL;
    world.services.insert(ServiceId { index: 1 }, Service { cluster, local, flags, ..Service::FREE });
    let mut socket = MemSocket::in_pod(POD);
    assert_eq!(word(connect(&world, &mut socket, Proto::TCP, at("172.18.0.2:30080"))), "10.1.0.1:80");
    assert_eq!(connect(&world, &mut socket, Proto::TCP, at("10.96.0.10:80")), Verdict::Refuse);
}

#[test]
fn a_tcp_socket_shows_the_frontend_as_its_peer() {
    let world = world();
    let mut socket = MemSocket::in_pod(POD);
    assert_eq!(peer(&socket, at("10.1.0.1:8080")), None, "before it has connected");
    connect(&world, &mut socket, Proto::TCP, at("10.96.0.10:80"));
    assert_eq!(peer(&socket, at("10.1.0.1:8080")), Some(at("10.96.0.10:80")));
    assert_eq!(peer(&socket, at("10.1.0.2:8080")), None, "another peer is shown as it is");
}

#[test]
fn a_tcp_socket_that_connects_again_without_a_service_forgets_the_frontend() {
    let world = world();
    let mut socket = MemSocket::in_pod(POD);
    connect(&world, &mut socket, Proto::TCP, at("10.96.0.10:80"));
    assert_eq!(connect(&world, &mut socket, Proto::TCP, at("10.1.0.1:8080")), Verdict::Pass);
    assert_eq!(peer(&socket, at("10.1.0.1:8080")), None, "it was reached by its own address");
}

#[test]
fn a_connected_udp_socket_shows_the_frontend() {
    let world = world();
    let mut socket = MemSocket::in_pod(POD);
    connect(&world, &mut socket, Proto::UDP, at("10.96.0.10:53"));
    assert_eq!(received(&mut socket, at("10.1.0.1:5353")), Some(at("10.96.0.10:53")));
    assert_eq!(received(&mut socket, at("10.1.0.2:5353")), None);
    assert_eq!(peer(&socket, at("10.1.0.1:5353")), None, "TCP's storage is another one");
}

#[test]
fn a_connected_udp_socket_to_an_empty_service_shows_the_frontend_too() {
    let world = world();
    let mut socket = MemSocket::in_pod(POD);
    connect(&world, &mut socket, Proto::UDP, at("10.96.0.12:53"));
    assert_eq!(received(&mut socket, at("127.0.0.1:1")), Some(at("10.96.0.12:53")));
    assert_eq!(world.counted(Reason::RefusedConnect), 1);
    assert_eq!(world.counted(Reason::Connect), 0);
}

/// From the loopback address it would hear nothing, and what a connected socket sends passes no hook.
#[test]
fn a_socket_that_is_bound_to_a_device_is_refused_by_the_hook_itself() {
    let world = world();
    let bound = || MemSocket { device: true, ..MemSocket::in_pod(POD) };
    for (proto, to) in
        [(Proto::TCP, "10.96.0.12:80"), (Proto::UDP, "10.96.0.12:53"), (Proto::UDP, "[fd00:96::12]:53")]
    {
        let mut socket = bound();
        assert_eq!(word(connect(&world, &mut socket, proto, at(to))), "refuse here", "{to}");
        assert!(socket.tcp.is_none() && socket.udp.is_none(), "nobody has to free it later");
    }
    assert_eq!(world.counted(Reason::RefusedConnect), 3);
    assert_eq!(word(send(&world, &mut bound(), at("10.96.0.12:53"))), "refuse here");
    assert_eq!(world.counted(Reason::RefusedSend), 1);
    for (proto, to, want) in
        [(Proto::TCP, "10.96.0.10:80", "10.1.0.1:8080"), (Proto::UDP, "10.96.0.10:53", "10.1.0.1:5353")]
    {
        assert_eq!(
            word(connect(&world, &mut bound(), proto, at(to))),
            want,
            "a Service with endpoints serves it"
        );
    }
}

/// The peer that it had stays its peer, because the kernel does not get to change it.
#[test]
fn connected_udp_that_is_bound_to_a_device_and_refused_shows_the_peer_that_it_has() {
    let world = world();
    let mut socket = MemSocket { device: true, ..MemSocket::in_pod(POD) };
    connect(&world, &mut socket, Proto::UDP, at("10.96.0.10:53"));
    assert_eq!(connect(&world, &mut socket, Proto::UDP, at("10.96.0.12:53")), Verdict::RefuseHere);
    assert_eq!(received(&mut socket, at("10.1.0.1:5353")), Some(at("10.96.0.10:53")));
}

#[test]
fn a_udp_socket_that_connects_to_the_backend_itself_forgets_the_frontend() {
    let world = world();
    let mut socket = MemSocket::in_pod(POD);
    connect(&world, &mut socket, Proto::UDP, at("10.96.0.10:53"));
    assert_eq!(connect(&world, &mut socket, Proto::UDP, at("10.1.0.1:5353")), Verdict::Pass);
    assert_eq!(received(&mut socket, at("10.1.0.1:5353")), None);
}

#[test]
fn a_socket_that_never_met_a_service_has_no_storage() {
    let world = world();
    let mut socket = MemSocket::in_pod(POD);
    connect(&world, &mut socket, Proto::UDP, at("10.1.0.1:5353"));
    connect(&world, &mut socket, Proto::TCP, at("10.1.0.1:5353"));
    send(&world, &mut socket, at("10.1.0.1:5353"));
    assert_eq!(received(&mut socket, at("10.1.0.1:5353")), None);
    assert!(socket.tcp.is_none() && socket.udp.is_none());
}

#[test]
fn a_foreign_frontend_is_looked_up_again() {
    let world = world();
    let other = world.frontends[&FrontendKey::new(at("10.96.0.12:80"), Proto::TCP)];
    *world.foreign.borrow_mut() = vec![other];
    let mut socket = MemSocket::in_pod(POD);
    assert_eq!(word(connect(&world, &mut socket, Proto::TCP, at("10.96.0.10:80"))), "10.1.0.1:8080");
    assert_eq!(world.counted(Reason::ForeignFrontend), 1);
}

#[test]
fn a_frontend_that_is_foreign_twice_counts_as_absent() {
    let world = world();
    let other = world.frontends[&FrontendKey::new(at("10.96.0.12:80"), Proto::TCP)];
    *world.foreign.borrow_mut() = vec![other, other];
    let mut socket = MemSocket::in_pod(POD);
    assert_eq!(connect(&world, &mut socket, Proto::TCP, at("10.96.0.10:80")), Verdict::Pass);
}

#[test]
fn a_service_outside_its_array_is_counted_and_left_alone() {
    let mut world = world();
    world.accept(FrontendKind::ClusterIp, "10.96.0.50:80", Proto::TCP, 4_000_000);
    let mut socket = MemSocket::in_pod(POD);
    assert_eq!(connect(&world, &mut socket, Proto::TCP, at("10.96.0.50:80")), Verdict::Pass);
    assert_eq!(world.counted(Reason::Dangling), 1);
}

#[test]
fn a_slot_outside_its_array_is_counted_and_refused() {
    let mut world = world();
    world.slots.clear();
    let mut socket = MemSocket::in_pod(POD);
    assert_eq!(connect(&world, &mut socket, Proto::TCP, at("10.96.0.10:80")), Verdict::Refuse);
    assert_eq!(send(&world, &mut socket, at("10.96.0.10:53")), Verdict::Refuse);
    assert_eq!(world.counted(Reason::Dangling), 2);
}

#[test]
fn without_memory_for_storage_traffic_is_translated_all_the_same() {
    let world = world();
    let mut socket = MemSocket { memory: false, ..MemSocket::in_pod(POD) };
    assert_eq!(word(connect(&world, &mut socket, Proto::TCP, at("10.96.0.10:80"))), "10.1.0.1:8080");
    assert_eq!(word(connect(&world, &mut socket, Proto::UDP, at("10.96.0.10:53"))), "10.1.0.1:5353");
    assert_eq!(word(send(&world, &mut socket, at("10.96.0.10:53"))), "10.1.0.1:5353");
    assert_eq!(world.counted(Reason::NoStorage), 3);
    assert_eq!(received(&mut socket, at("10.1.0.1:5353")), None);
    assert_eq!(peer(&socket, at("10.1.0.1:8080")), None);
}

#[test]
fn an_empty_map_serves_nobody() {
    let world = MemTables::default();
    let mut socket = MemSocket::on_host();
    assert_eq!(connect(&world, &mut socket, Proto::TCP, at("10.96.0.10:80")), Verdict::Pass);
    assert_eq!(connect(&world, &mut socket, Proto::TCP, at("127.0.0.1:30080")), Verdict::Pass);
    assert_eq!(send(&world, &mut socket, at("10.96.0.10:53")), Verdict::Pass);
    assert!(world.counts.borrow().is_empty());
}
