//! Whom a hook serves, refuses, or leaves to others: empty sets, unused ports, source ranges.

use rstest::rstest;

use super::{
    sock::{connect, send},
    sock_tests::{POD, at, word, world},
};
use crate::{
    abi::{
        BackendId, Frontend, FrontendKey, FrontendKind, Proto, Reason, Run, ServiceFlags, ServiceId, SocketLb,
    },
    host::{MemSocket, MemTables},
};
use std::string::String;

/// [`world`] with unused ports of cluster IPs refused, as the agent sets it up.
fn with_other_ports() -> MemTables {
    let mut world = world();
    for (addr, service) in [("10.96.0.10:0", 1), ("[fd00:96::10]:0", 6), ("10.96.0.12:0", 4)] {
        let key = FrontendKey::other_ports(at(addr).addr);
        let value = Frontend::new(key, ServiceId { index: service }, FrontendKind::OtherPorts);
        world.frontends.insert(key, value);
    }
    world
}

fn ask(world: &MemTables, who: &str, proto: Proto, to: &str) -> String {
    let mut socket = if who == "host" { MemSocket::on_host() } else { MemSocket::in_pod(POD) };
    word(connect(world, &mut socket, proto, at(to)))
}

/// 2.7-other-ports. An address that no Service has is left alone, and packets go on where the routes lead (2.7).
#[rstest]
#[case::a_used_port_is_served("pod", Proto::TCP, "10.96.0.10:80", "10.1.0.1:8080")]
#[case::an_unused_one_is_refused("pod", Proto::TCP, "10.96.0.10:81", "refuse")]
#[case::for_the_host_too("host", Proto::TCP, "10.96.0.10:81", "refuse")]
#[case::and_on_ipv6("pod", Proto::TCP, "[fd00:96::10]:81", "refuse")]
#[case::of_another_protocol_too("pod", Proto::UDP, "10.96.0.10:80", "127.0.0.1:1")]
#[case::and_in_the_range_of_node_ports("pod", Proto::TCP, "10.96.0.10:30080", "refuse")]
#[case::port_zero_is_unused("pod", Proto::TCP, "10.96.0.10:0", "refuse")]
#[case::an_unallocated_address_is_left_alone("pod", Proto::TCP, "10.96.0.99:80", "pass")]
#[case::other_ports_of_external_addresses_are_not_ours("pod", Proto::TCP, "192.0.2.1:81", "pass")]
#[case::nor_those_of_load_balancers("pod", Proto::TCP, "198.51.100.1:81", "pass")]
#[case::nor_those_of_the_node("pod", Proto::TCP, "172.18.0.2:81", "pass")]
fn unused_ports_of_a_cluster_ip_are_refused(
    #[case] who: &str,
    #[case] proto: Proto,
    #[case] to: &str,
    #[case] want: &str,
) {
    assert_eq!(ask(&with_other_ports(), who, proto, to), want);
}

/// 2.22-order: each address here is meant twice, and the earlier meaning counts. An address of this node with other ports to
/// refuse is none of them: compile gives it none.
#[rstest]
#[case::source_ranges_before_an_empty_set("198.51.100.1:80", "pass")]
#[case::an_exact_port_before_the_other_ports_of_its_address("10.96.0.10:80", "10.1.0.1:8080")]
#[case::an_empty_exact_one_too("10.96.0.12:80", "refuse")]
#[case::an_exact_port_before_a_node_port("172.18.0.9:30080", "10.1.0.9:9999")]
#[case::other_ports_at_the_number_of_a_node_port("10.96.0.10:30080", "refuse")]
#[case::a_node_port_at_another_address_of_this_node("172.18.0.2:30080", "10.1.0.1:8080")]
#[case::nothing_else_at_an_address_of_this_node("172.18.0.9:81", "pass")]
#[case::nothing_at_an_address_of_nobody("10.96.0.99:30080", "pass")]
fn an_exact_port_comes_before_a_node_port_and_the_rest_of_an_address(#[case] to: &str, #[case] want: &str) {
    let mut world = with_other_ports();
    // The load-balancer address is of an empty Service, which refuses wherever its ranges let somebody in.
    world.accept(FrontendKind::LoadBalancer, "198.51.100.1:80", Proto::TCP, 4);
    world.services.get_mut(&ServiceId { index: 4 }).unwrap().flags = ServiceFlags::RESTRICTED;
    assert_eq!(ask(&world, "pod", Proto::TCP, to), want);
}

/// NE-7: a datagram hears it from the hook, or by the address that refuses.
#[test]
fn a_datagram_to_an_unused_port_is_refused() {
    let world = with_other_ports();
    let verdict = send(&world, &mut MemSocket::in_pod(POD), at("10.96.0.10:99"));
    assert_eq!(word(verdict), "refuse");
    assert_eq!(world.counted(Reason::RefusedSend), 1);
}

#[test]
fn sockets_that_are_not_served_are_not_refused_either() {
    let mut world = with_other_ports();
    world.config.as_mut().unwrap().socket_lb = SocketLb::TCP_HOST;
    assert_eq!(ask(&world, "pod", Proto::TCP, "10.96.0.10:81"), "pass");
    assert_eq!(ask(&world, "host", Proto::TCP, "10.96.0.10:81"), "refuse");
}

/// NE-2, vectors 6 and 8: all endpoints are on other nodes, so nobody answers; without any endpoint it is refused (vector 9).
#[rstest]
#[case::elsewhere(Run::ELSEWHERE, "pass", 1)]
#[case::nowhere(Run::EMPTY, "refuse", 0)]
fn policy_local_without_local_endpoints_is_silent_and_without_any_refuses(
    #[case] local: Run,
    #[case] want: &str,
    #[case] counted: u64,
) {
    let mut world = world();
    let service = world.services.get_mut(&ServiceId { index: 1 }).unwrap();
    service.flags = ServiceFlags::INTERNAL_LOCAL;
    service.local = Run { generation: 7, ..local };
    assert_eq!(ask(&world, "pod", Proto::TCP, "10.96.0.10:80"), want);
    assert_eq!(world.counted(Reason::Elsewhere), counted);
    assert_eq!(
        ask(&world, "pod", Proto::TCP, "192.0.2.1:80"),
        "10.1.0.1:8080",
        "others use the cluster set (EP-8)"
    );
}

/// A socket that was translated before shows the address that it reaches now.
#[test]
fn a_socket_that_nobody_answers_forgets_what_it_was() {
    let mut world = world();
    let mut socket = MemSocket::in_pod(POD);
    assert_eq!(word(connect(&world, &mut socket, Proto::TCP, at("10.96.0.10:80"))), "10.1.0.1:8080");
    let service = world.services.get_mut(&ServiceId { index: 1 }).unwrap();
    (service.flags, service.local) = (ServiceFlags::INTERNAL_LOCAL, Run::ELSEWHERE);
    assert_eq!(word(connect(&world, &mut socket, Proto::TCP, at("10.96.0.10:80"))), "pass");
    assert_eq!(super::sock::peer(&socket, at("10.1.0.1:8080")), None);
}

/// NE-5: who may not use an address is not told that nobody serves there.
#[test]
fn source_ranges_come_before_refusal() {
    let mut world = world();
    let service = world.services.get_mut(&ServiceId { index: 1 }).unwrap();
    service.cluster = Run::EMPTY;
    for (flags, pod, host) in [
        (ServiceFlags::default(), "refuse", "refuse"),
        (ServiceFlags::RESTRICTED, "pass", "pass"),
        (ServiceFlags::RESTRICTED.with(ServiceFlags::HOST_ALLOWED), "pass", "refuse"),
    ] {
        world.services.get_mut(&ServiceId { index: 1 }).unwrap().flags = flags;
        let addr = "198.51.100.1:80";
        assert_eq!(
            [ask(&world, "pod", Proto::TCP, addr), ask(&world, "host", Proto::TCP, addr)],
            [pod, host]
        );
    }
}

/// What a connected UDP socket sends passes no hook, so it is remembered for whoever may free it later.
#[test]
fn a_connected_udp_socket_that_nobody_answers_remembers_where_it_wanted() {
    let mut world = world();
    let service = world.services.get_mut(&ServiceId { index: 2 }).unwrap();
    (service.flags, service.local) = (ServiceFlags::INTERNAL_LOCAL, Run::ELSEWHERE);
    let mut socket = MemSocket::in_pod(POD);
    let to = at("10.96.0.10:53");
    assert_eq!(word(connect(&world, &mut socket, Proto::UDP, to)), "pass");
    let pair = *socket.udp.as_ref().unwrap().behind(to).unwrap();
    assert_eq!((pair.frontend(), pair.backend), (to, BackendId::NONE));
    assert_eq!(word(send(&world, &mut MemSocket::in_pod(POD), to)), "pass");
    assert_eq!(world.counted(Reason::Elsewhere), 2);
}

/// CT-4: a flow stays with a backend that serves, whatever the policy says of new ones by now.
#[test]
fn an_unconnected_flow_stays_with_its_backend_when_others_would_meet_nobody() {
    let mut world = world();
    let mut socket = MemSocket::in_pod(POD);
    let to = at("10.96.0.10:53");
    assert_eq!(word(send(&world, &mut socket, to)), "10.1.0.1:5353");
    let service = world.services.get_mut(&ServiceId { index: 2 }).unwrap();
    (service.flags, service.local) = (ServiceFlags::INTERNAL_LOCAL, Run::ELSEWHERE);
    assert_eq!(word(send(&world, &mut socket, to)), "10.1.0.1:5353");
    assert_eq!(word(send(&world, &mut MemSocket::in_pod(POD), to)), "pass");
    world.leave(2, "10.1.0.1:5353");
    assert_eq!(word(send(&world, &mut socket, to)), "pass");
}

/// SR-1, SR-3: for load-balancer addresses only. A hook knows the address of the host, not that of a pod.
#[rstest]
#[case::no_ranges(ServiceFlags { bits: 0 }, "10.1.0.1:8080", "10.1.0.1:8080")]
#[case::ranges_without_the_host(ServiceFlags::RESTRICTED, "pass", "pass")]
#[case::ranges_with_the_host(ServiceFlags::RESTRICTED.with(ServiceFlags::HOST_ALLOWED), "pass", "10.1.0.1:8080")]
fn a_load_balancer_address_with_source_ranges_is_served_to_the_host_if_it_is_in_one(
    #[case] flags: ServiceFlags,
    #[case] pod: &str,
    #[case] host: &str,
) {
    let mut world = world();
    world.services.get_mut(&ServiceId { index: 1 }).unwrap().flags = flags;
    let addr = "198.51.100.1:80";
    assert_eq!([ask(&world, "pod", Proto::TCP, addr), ask(&world, "host", Proto::TCP, addr)], [pod, host]);
    for other in ["10.96.0.10:80", "192.0.2.1:80", "172.18.0.2:30080"] {
        assert_eq!(ask(&world, "pod", Proto::TCP, other), "10.1.0.1:8080", "{other}");
    }
}
