//! Session affinity, one rule per test. The random numbers say which backend a client gets that has none.

use super::{
    sock::{Verdict, connect, send},
    sock_tests::{POD, at, word, world},
};
use crate::{
    abi::{Backend, BackendState, FrontendKind, Proto, Reason, Service, ServiceFlags, ServiceId},
    host::{MemSocket, MemTables},
};
use std::{string::String, vec::Vec};

const WEB: &str = "10.96.0.10:80";
const TIMEOUT_S: u32 = 60;

/// [`world`], in which the web and the name servers have affinity, and the next clients would get the backends in turn.
fn sticky() -> MemTables {
    let mut world = world();
    for id in [1, 2] {
        change(&mut world, id, |service| service.affinity_s = TIMEOUT_S);
    }
    world.choose(&[0, 1, 0, 1, 0, 1, 0, 1], 2);
    world
}

fn change(world: &mut MemTables, id: u32, change: impl FnOnce(&mut Service)) {
    change(world.services.get_mut(&ServiceId { index: id }).unwrap());
}

fn web(world: &MemTables, netns: u64) -> String {
    to(world, netns, WEB)
}

fn to(world: &MemTables, netns: u64, to: &str) -> String {
    word(connect(world, &mut MemSocket::in_pod(netns), Proto::TCP, at(to)))
}

/// SA-1, SA-13.
#[test]
fn each_client_keeps_its_backend() {
    let world = sticky();
    let (first, second) = ("10.1.0.1:8080", "10.1.0.2:8080");
    assert_eq!([web(&world, POD), web(&world, POD), web(&world, POD)], [first; 3]);
    assert_eq!([web(&world, 8), web(&world, 8)], [second; 2], "another pod is another client");
    let mut host = MemSocket::on_host();
    for _ in 0..2 {
        assert_eq!(word(connect(&world, &mut host, Proto::TCP, at(WEB))), first, "the host is one client");
    }
    assert_eq!(web(&world, POD), first);
}

/// Without affinity, clients do not stay: each choice is a random number (SA-10).
#[test]
fn without_affinity_nobody_stays() {
    let world = world();
    world.choose(&[0, 1, 0], 2);
    let seen: Vec<String> = (0..3).map(|_| web(&world, POD)).collect();
    assert_eq!(seen, ["10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.1:8080"]);
    assert!(world.affinity.borrow().is_empty());
}

/// SA-1: all addresses of a service port share the entry, other ports of the Service do not.
#[test]
fn all_addresses_of_a_service_port_lead_to_the_same_backend() {
    let world = sticky();
    for at in [WEB, "192.0.2.1:80", "198.51.100.1:80", "172.18.0.2:30080"] {
        assert_eq!(to(&world, POD, at), "10.1.0.1:8080", "{at}");
    }
    let mut socket = MemSocket::in_pod(POD);
    assert_eq!(word(connect(&world, &mut socket, Proto::UDP, at("10.96.0.10:53"))), "10.1.0.2:5353");
}

/// SA-2.
#[test]
fn an_entry_ends_its_timeout_after_the_last_connection() {
    let world = sticky();
    for seconds in [0, 50, 100, 150] {
        world.now_ms.set(seconds * 1000);
        assert_eq!(web(&world, POD), "10.1.0.1:8080", "after {seconds} s");
    }
    world.now_ms.set(150_000 + 60_000);
    assert_eq!(web(&world, POD), "10.1.0.1:8080");
    world.now_ms.set(210_000 + 60_001);
    assert_eq!(web(&world, POD), "10.1.0.2:8080");
    assert_eq!(web(&world, POD), "10.1.0.2:8080", "and has a new one");
}

/// SA-2: what established flows send is no new connection.
#[test]
fn datagrams_of_a_socket_that_has_a_backend_do_not_prolong_the_entry() {
    let world = sticky();
    let mut socket = MemSocket::in_pod(POD);
    for seconds in [0, 50, 100] {
        world.now_ms.set(seconds * 1000);
        assert_eq!(word(send(&world, &mut socket, at("10.96.0.10:53"))), "10.1.0.1:5353");
    }
    assert_eq!(word(send(&world, &mut MemSocket::in_pod(POD), at("10.96.0.10:53"))), "10.1.0.2:5353");
}

/// SA-14.
#[test]
fn unconnected_sockets_of_one_client_meet_one_backend() {
    let world = sticky();
    for _ in 0..3 {
        assert_eq!(word(send(&world, &mut MemSocket::in_pod(POD), at("10.96.0.10:53"))), "10.1.0.1:5353");
    }
}

/// SA-3, SA-12: also for a client that never stops asking.
#[test]
fn an_entry_is_void_when_its_backend_is_gone() {
    let mut world = sticky();
    assert_eq!([web(&world, POD), web(&world, 8)], ["10.1.0.1:8080", "10.1.0.2:8080"]);
    world.leave(1, "10.1.0.1:8080");
    world.choose(&[1, 0], 2);
    assert_eq!([web(&world, POD), web(&world, POD)], ["10.1.0.2:8080"; 2]);
    assert_eq!(web(&world, 8), "10.1.0.2:8080", "others stay");
    assert_eq!(world.counted(Reason::AffinityMoved), 1);
}

/// SA-3: the id lives on as another endpoint.
#[test]
fn an_entry_is_void_when_the_id_of_its_backend_is_another_endpoint() {
    let mut world = sticky();
    assert_eq!(web(&world, POD), "10.1.0.1:8080");
    for backend in world.backends.values_mut() {
        backend.generation += 1;
    }
    assert_eq!(web(&world, POD), "10.1.0.2:8080");
}

/// SA-4: a backend that is alive but not in the set that this client uses does not count (TE-2: nor does one that
/// terminates while others are ready).
#[test]
fn an_entry_counts_only_in_the_set_that_is_used() {
    let mut world = sticky();
    assert_eq!(web(&world, POD), "10.1.0.1:8080");
    let outside = Backend { generation: 1, state: BackendState::Terminating as u8, runs: 0, pad: 0 };
    let id = world.slots[&0].backend;
    world.backends.insert(id, outside);
    assert_eq!(web(&world, POD), "10.1.0.2:8080");
    // Of the other set only.
    let local = Backend { runs: Backend::IN_LOCAL, ..outside };
    let id = world.slots[&1].backend;
    world.backends.insert(id, local);
    assert_eq!(web(&world, POD), "10.1.0.1:8080");
    change(&mut world, 1, |service| service.flags = ServiceFlags::INTERNAL_LOCAL);
    world.affinity.borrow_mut().clear();
    world.choose(&[1], 2);
    assert_eq!([web(&world, POD), web(&world, POD)], ["10.1.0.2:8080"; 2], "as a client of the local set");
}

/// SA-5.
#[test]
fn entries_of_an_earlier_time_with_affinity_do_not_come_back() {
    let mut world = sticky();
    assert_eq!(web(&world, POD), "10.1.0.1:8080");
    change(&mut world, 1, |service| service.affinity_s = 0);
    world.choose(&[1, 0], 2);
    assert_eq!([web(&world, POD), web(&world, POD)], ["10.1.0.2:8080", "10.1.0.1:8080"], "at once");
    change(&mut world, 1, |service| {
        service.affinity_s = TIMEOUT_S;
        service.generation += 1;
    });
    world.choose(&[1], 2);
    assert_eq!([web(&world, POD), web(&world, POD)], ["10.1.0.2:8080"; 2]);
}

/// SA-7.
#[test]
fn a_new_timeout_holds_for_what_is_decided_from_then_on() {
    let mut world = sticky();
    assert_eq!(web(&world, POD), "10.1.0.1:8080");
    world.now_ms.set(30_000);
    change(&mut world, 1, |service| service.affinity_s = 10);
    assert_eq!(web(&world, POD), "10.1.0.2:8080");
    world.now_ms.set(130_000);
    change(&mut world, 1, |service| service.affinity_s = 86_400);
    assert_eq!(web(&world, POD), "10.1.0.2:8080");
}

/// Adding endpoints does not disturb anybody (SA-3).
#[test]
fn a_new_endpoint_leaves_clients_where_they_are() {
    let mut world = sticky();
    assert_eq!(web(&world, POD), "10.1.0.1:8080");
    let run = world.run(&["10.1.0.9:8080"]);
    let known = world.slots[&0].backend;
    change(&mut world, 1, |service| (service.cluster, service.local) = (run, run));
    assert!(world.backends.contains_key(&known));
    assert_eq!([web(&world, POD), web(&world, 8)], ["10.1.0.1:8080", "10.1.0.9:8080"]);
}

/// Two connections of one client at the same moment do not part.
#[test]
fn the_slower_of_two_first_connections_follows_the_faster_one() {
    let world = sticky();
    assert_eq!(web(&world, POD), "10.1.0.1:8080");
    // It looks before the other one has written, and would go to the second backend.
    world.late_affinity.set(1);
    assert_eq!(web(&world, POD), "10.1.0.1:8080");
    assert_eq!(web(&world, POD), "10.1.0.1:8080");
}

/// A freed element may be another key's a moment later.
#[test]
fn an_entry_of_another_key_is_nobodys() {
    let world = sticky();
    assert_eq!([web(&world, POD), web(&world, 8)], ["10.1.0.1:8080", "10.1.0.2:8080"]);
    let mut entries = world.affinity.borrow_mut();
    let mut all = entries.values_mut();
    let (one, other) = (all.next().unwrap(), all.next().unwrap());
    core::mem::swap(one, other);
    drop(entries);
    world.choose(&[1], 2);
    assert_eq!(web(&world, POD), "10.1.0.2:8080", "chosen anew, not the other one's");
}

#[test]
fn an_empty_service_with_affinity_refuses() {
    let mut world = sticky();
    world.accept(FrontendKind::ClusterIp, "10.96.0.77:80", Proto::TCP, 4);
    change(&mut world, 4, |service| service.affinity_s = TIMEOUT_S);
    let verdict = connect(&world, &mut MemSocket::in_pod(POD), Proto::TCP, at("10.96.0.77:80"));
    assert_eq!(verdict, Verdict::Refuse);
    assert!(world.affinity.borrow().is_empty());
}
