//! Which slot a new connection meets, by algorithm.

use core::net::SocketAddr;
use std::{format, string::String, vec::Vec};

use super::{
    select::{Algorithm, spread},
    sock::connect,
    sock_tests::{POD, at, word, world},
};
use crate::{
    abi::{FrontendKind, Proto, Run, Service, ServiceFlags, ServiceId, Turn},
    host::{MemSocket, MemTables},
};

const WEB: &str = "10.96.0.10:80";
const WEB_ID: ServiceId = ServiceId { index: 1 };

fn with(flags: ServiceFlags, affinity_s: u32) -> MemTables {
    let mut world = world();
    let web = world.services[&WEB_ID];
    world.services.insert(WEB_ID, Service { flags, affinity_s, ..web });
    world
}

fn web(world: &MemTables, netns: u64) -> String {
    word(connect(world, &mut MemSocket::in_pod(netns), Proto::TCP, at(WEB)))
}

const TWO: [&str; 2] = ["10.1.0.1:8080", "10.1.0.2:8080"];

/// 5.9-round-robin.
#[test]
fn connections_go_to_all_backends_in_turn() {
    let world = with(ServiceFlags::ROUND_ROBIN, 0);
    let seen: Vec<String> = (0..6).map(|netns| web(&world, netns)).collect();
    assert_eq!(seen, [TWO, TWO, TWO].concat());
}

/// 5.9-round-robin: else each of two services that are asked by turns would meet one backend for ever.
#[test]
fn a_service_that_shares_its_turns_with_another_one_chooses_at_random() {
    let mut world = with(ServiceFlags::ROUND_ROBIN, 0);
    let (other, web_service) = (WEB_ID.index + Turn::ENTRIES, world.services[&WEB_ID]);
    world.services.insert(ServiceId { index: other }, web_service);
    world.accept(FrontendKind::ClusterIp, "10.96.0.99:80", Proto::TCP, other);
    *world.random.borrow_mut() = std::vec![0, 1, 1, 0, 1, 0];
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(web(&world, POD));
        connect(&world, &mut MemSocket::in_pod(POD), Proto::TCP, at("10.96.0.99:80"));
    }
    assert_eq!(seen, [TWO[0], TWO[0], TWO[1]], "as the random numbers say: 0, 0, 1");
}

/// 5.9-maglev: a socket has no source port when it connects.
#[test]
fn sockets_choose_at_random_where_packets_are_hashed() {
    let world = with(ServiceFlags::MAGLEV, 0);
    world.choose(&[1, 0, 1], 2);
    let seen: Vec<String> = (0..3).map(|_| web(&world, POD)).collect();
    assert_eq!(seen, [TWO[1], TWO[0], TWO[1]]);
}

/// 5.9-affinity.
#[test]
fn a_client_with_affinity_stays_whatever_the_algorithm_is() {
    for flags in [ServiceFlags::default(), ServiceFlags::ROUND_ROBIN, ServiceFlags::MAGLEV] {
        let world = with(flags, 60);
        let first = web(&world, POD);
        web(&world, POD + 1);
        assert_eq!([web(&world, POD), web(&world, POD)], [&*first; 2], "{flags:?}");
    }
}

/// 5.9-affinity: the algorithm is no part of what affinity remembers.
#[test]
fn another_algorithm_takes_no_affinity_away() {
    let mut world = with(ServiceFlags::ROUND_ROBIN, 60);
    let first = [web(&world, POD), web(&world, POD + 1)];
    assert_ne!(first[0], first[1]);
    for flags in [ServiceFlags::MAGLEV, ServiceFlags::default(), ServiceFlags::ROUND_ROBIN] {
        let now = world.services[&WEB_ID];
        world.services.insert(WEB_ID, Service { flags, ..now });
        assert_eq!([web(&world, POD), web(&world, POD + 1)], first, "{flags:?}");
    }
}

#[test]
fn an_algorithm_is_a_flag_of_the_service() {
    let (from, to) = (at("198.51.100.7:4000"), at("203.0.113.1:80"));
    let of_packet = |flags| Algorithm::of_packet(flags, from, to, Proto::TCP);
    assert_eq!(of_packet(ServiceFlags::INTERNAL_LOCAL), Algorithm::RANDOM);
    assert_eq!(of_packet(ServiceFlags::ROUND_ROBIN), Algorithm::of_socket(ServiceFlags::ROUND_ROBIN));
    assert_ne!(of_packet(ServiceFlags::ROUND_ROBIN), Algorithm::RANDOM);
    let other = Algorithm::of_packet(ServiceFlags::MAGLEV, to, from, Proto::TCP);
    assert_ne!(of_packet(ServiceFlags::MAGLEV), other);
    assert_eq!(Algorithm::of_socket(ServiceFlags::MAGLEV), Algorithm::RANDOM);
}

/// 5.9-same-everywhere: nodes of different versions must agree. These were computed by the same formula in Python.
#[test]
fn the_number_of_two_ends_stays_as_it_is() {
    assert_eq!(spread(at("198.51.100.7:4000"), at("203.0.113.1:80"), Proto::TCP), 0xc5bd_5730);
    assert_eq!(spread(at("[2001:db8:7::7]:4000"), at("[2001:db8:1::1]:80"), Proto::UDP), 0xdb22_e2fb);
}

/// 5.9-maglev: consecutive ports of few clients, and few ports of consecutive clients, fill all slots alike. The sum of squares of
/// what differs, over what is expected, has a mean of the number of slots (chi-square), and a deviation of 45 for 1021.
#[test]
fn packets_are_spread_evenly() {
    const SLOTS: u16 = 1021;
    const ENDS: u32 = 64 * SLOTS as u32;
    let run = Run { base: 0, count: SLOTS, generation: 0 };
    let to = at("203.0.113.1:80");
    for (what, clients) in [("ports", 2), ("clients", ENDS / 4)] {
        for v6 in [false, true] {
            let mut slots = std::vec![0_u32; usize::from(SLOTS)];
            for end in 0..ENDS {
                let (client, port) = (end % clients, 1024 + end / clients);
                let client = if v6 {
                    format!("[2001:db8:7::{client:x}]:{port}")
                } else {
                    let [_, b, c, d] = client.to_be_bytes();
                    format!("198.{b}.{c}.{d}:{port}")
                };
                let from: SocketAddr = client.parse().unwrap();
                let number = spread(from.into(), to, Proto::TCP);
                slots[run.pick(number).unwrap() as usize] += 1;
            }
            let squares: f64 = slots.iter().map(|count| (f64::from(*count) - 64.0).powi(2) / 64.0).sum();
            assert!((f64::from(SLOTS) - squares).abs() < 5.0 * 45.0, "{what}, IPv6 {v6}: {squares}");
        }
    }
}
