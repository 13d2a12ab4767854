//! Maps that are too small.

use std::net::SocketAddr;

use lb_agent::maps::memory::MemGrace;
use lb_agent::model::Family;
use lb_agent::reconcile::NoRoom;
use proptest::prelude::*;

use crate::named::{Named, key};
use crate::world::history;
use crate::*;

fn service(number: u8, endpoints: u16) -> Named {
    Named::new(&format!("s{number}"), i64::from(number)).port(
        "http",
        &[&format!("10.0.0.{number}:80")],
        endpoints,
    )
}

fn gone(number: u8) -> Named {
    Named::new(&format!("s{number}"), i64::MAX)
}

/// What the ports without room lack.
fn lacks(agent: &Driver) -> Vec<NoRoom> {
    agent.left_out.values().copied().collect()
}

fn is_served(maps: &MemMaps, number: u8, endpoints: usize) -> bool {
    let meaning = meaning(&maps.open()).unwrap();
    meaning.get(&key(&format!("10.0.0.{number}:80"))).is_some_and(|meant| meant.used().len() == endpoints)
}

/// Lets grace periods pass until nothing waits for one: what is planned after the first may retire something too.
fn rest(agent: &mut Driver, maps: &MemMaps) {
    for _ in 0..20 {
        maps.grace.release();
        agent.settle().unwrap();
        assert_no_dangling(&maps.open());
        if agent.reconciler.is_settled() {
            assert!(
                agent.later.is_empty(),
                "{:?} wait for a grace period that nobody asked for",
                agent.later
            );
            return;
        }
    }
    panic!("grace period after grace period, and still {:?} wait", agent.later);
}

/// 2.25-map-full: named, and not half applied.
#[test]
fn each_full_map_is_named_and_the_others_stay_as_they_were() {
    let cases = [
        (Capacities { frontends: 2, ..ROOMY }, NoRoom::Frontends(1)),
        (Capacities { services: 2, ..ROOMY }, NoRoom::Services),
        (Capacities { slots: 8, ..ROOMY }, NoRoom::Slots(3)),
        (Capacities { backends: 8, ..ROOMY }, NoRoom::Backends(3)),
    ];
    for (capacities, no_room) in cases {
        let maps = MemMaps::new(capacities);
        let mut agent = Driver::start(maps.open()).unwrap();
        agent.follow(&[service(1, 3).desired(), service(2, 3).desired()]).unwrap();
        let before = raw(&maps);
        let outcome = agent.reconciler.apply(&[service(3, 3).desired()]).unwrap();
        assert_eq!(outcome.left_out.len(), 1, "{no_room}");
        assert_eq!(outcome.left_out[0].1, no_room);
        assert_eq!(outcome.left_out[0].0.service, service(3, 3).name());
        assert!(outcome.later.is_empty() && outcome.again.is_empty(), "{no_room}: nothing would help");
        assert_eq!(outcome.writes, 0, "{no_room}");
        assert_eq!(raw(&maps), before, "{no_room}");
    }
}

/// DS-1: both families share the maps, and what can fail in one is that its port finds no room.
#[test]
fn a_family_without_room_does_not_stop_the_other_one() {
    for [small, large] in [["10.0.0.1:80", "[fd00::1]:80"], ["[fd00::1]:80", "10.0.0.1:80"]] {
        let maps = MemMaps::new(Capacities { slots: 8, ..ROOMY });
        let mut agent = Driver::start(maps.open()).unwrap();
        let web = |fits, too_many| {
            Named::new("web", 1).port("http", &[small], fits).port("http", &[large], too_many).desired()
        };
        for fits in [1, 2, 3, 0, 1] {
            agent.put(web(fits, 20)).unwrap();
            rest(&mut agent, &maps);
            assert_eq!(lacks(&agent), [NoRoom::Slots(20)], "{large}");
            let families: Vec<Family> = agent.left_out.keys().map(|port| port.family).collect();
            assert_eq!(families, [Family::of(&large.parse::<SocketAddr>().unwrap().ip())]);
            let meaning = meaning(&maps.open()).unwrap();
            assert_eq!(meaning[&key(small)].used().len(), usize::from(fits), "{small}");
            assert!(!meaning.contains_key(&key(large)), "{large}");
        }
        agent.put(web(1, 2)).unwrap();
        rest(&mut agent, &maps);
        assert_eq!(meaning(&maps.open()).unwrap()[&key(large)].used().len(), 2, "{large}");
    }
}

#[test]
fn a_service_that_is_gone_lacks_nothing() {
    let maps = MemMaps::new(Capacities { slots: 8, ..ROOMY });
    let mut agent = Driver::start(maps.open()).unwrap();
    agent.follow(&[service(1, 4).desired(), service(2, 4).desired(), service(3, 4).desired()]).unwrap();
    assert_eq!(lacks(&agent), [NoRoom::Slots(4)]);
    agent.put(gone(3).desired()).unwrap();
    let outcome = agent.reconciler.apply(&[gone(1).desired()]).unwrap();
    let again = agent.reconciler.settle().unwrap();
    assert!(outcome.again.is_empty() && again.is_empty(), "{:?}, then {again:?}", outcome.again);
}

#[test]
fn a_service_without_room_for_its_new_endpoints_keeps_the_old_ones() {
    let maps = MemMaps::new(Capacities { slots: 8, ..ROOMY });
    let mut agent = Driver::start(maps.open()).unwrap();
    agent.follow(&[service(1, 3).desired(), service(2, 2).desired()]).unwrap();
    agent.put(service(2, 5).desired()).unwrap();
    assert_eq!(lacks(&agent), [NoRoom::Slots(5)]);
    assert!(is_served(&maps, 2, 2));
    agent.put(service(2, 1).desired()).unwrap();
    assert_eq!(lacks(&agent), []);
    assert!(is_served(&maps, 2, 1));
}

#[test]
fn what_waits_for_a_grace_period_is_not_called_full_and_is_planned_again_after_it() {
    let mut maps = MemMaps::new(Capacities { slots: 8, ..ROOMY });
    maps.grace = MemGrace::held();
    let mut agent = Driver::start(maps.open()).unwrap();
    agent.follow(&[service(1, 4).desired(), service(2, 4).desired()]).unwrap();
    agent.put(gone(1).desired()).unwrap();
    agent.put(service(3, 3).desired()).unwrap();
    assert_eq!(lacks(&agent), []);
    assert!(agent.later.contains(&service(3, 3).name()));
    assert_eq!(agent.settle().unwrap(), 0, "no grace period has passed");

    maps.grace.release();
    assert_ne!(agent.settle().unwrap(), 0);
    assert!(is_served(&maps, 3, 3));
    assert!(agent.later.is_empty());
}

#[test]
fn a_full_map_is_tried_again_when_somebody_makes_room() {
    let maps = MemMaps::new(Capacities { slots: 8, services: 2, ..ROOMY });
    let mut agent = Driver::start(maps.open()).unwrap();
    agent.follow(&[service(1, 4).desired(), service(2, 4).desired(), service(3, 3).desired()]).unwrap();
    assert_eq!(lacks(&agent), [NoRoom::Services]);
    agent.put(gone(1).desired()).unwrap();
    agent.settle().unwrap();
    assert_eq!(lacks(&agent), []);
    assert!(is_served(&maps, 3, 3));
}

#[test]
fn who_waited_in_vain_is_told_what_is_full() {
    let mut maps = MemMaps::new(Capacities { slots: 4, ..ROOMY });
    maps.grace = MemGrace::held();
    let mut agent = Driver::start(maps.open()).unwrap();
    agent.put(service(1, 2).desired()).unwrap();
    agent.put_all(vec![gone(1).desired(), service(2, 3).desired()]).unwrap();
    agent.put(service(2, 3).desired()).unwrap();
    assert!(agent.later.contains(&service(2, 3).name()) && agent.left_out.is_empty());
    // Somebody else takes the other half meanwhile.
    agent.put(service(3, 2).desired()).unwrap();
    rest(&mut agent, &maps);
    assert_eq!(lacks(&agent), [NoRoom::Slots(3)]);
}

#[test]
fn a_frontend_that_is_given_up_makes_room_at_once() {
    let mut maps = MemMaps::new(Capacities { frontends: 2, ..ROOMY });
    maps.grace = MemGrace::held();
    let mut agent = Driver::start(maps.open()).unwrap();
    agent.follow(&[service(1, 1).desired(), service(2, 1).desired(), service(3, 1).desired()]).unwrap();
    assert_eq!(lacks(&agent), [NoRoom::Frontends(1)]);
    agent.put(gone(2).desired()).unwrap();
    assert_eq!(lacks(&agent), []);
    assert!(is_served(&maps, 3, 1), "no grace period has passed, and none was needed");
}

#[test]
fn a_start_without_room_for_a_change_keeps_what_it_found() {
    let maps = MemMaps::new(Capacities { slots: 8, ..ROOMY });
    let mut agent = Driver::start(maps.open()).unwrap();
    agent.follow(&[service(1, 4).desired(), service(2, 2).desired()]).unwrap();
    agent.settle().unwrap();
    let mut agent = Driver::start(maps.open()).unwrap();
    agent.follow(&[service(1, 4).desired(), service(2, 5).desired()]).unwrap();
    agent.everything().unwrap();
    assert_eq!(lacks(&agent), [NoRoom::Slots(5)]);
    assert!(is_served(&maps, 2, 2));
    agent.put(gone(2).desired()).unwrap();
    agent.settle().unwrap();
    assert!(!is_served(&maps, 2, 2), "it still has an owner that can be removed");
}

#[test]
fn usage_counts_what_is_taken_and_what_still_waits() {
    let mut maps = MemMaps::new(ROOMY);
    maps.grace = MemGrace::held();
    let mut agent = Driver::start(maps.open()).unwrap();
    agent.put(service(1, 3).desired()).unwrap();
    let used = |agent: &Driver| agent.reconciler.usage().map(|usage| usage.used);
    // Frontends, addresses, services, slots (regions are powers of two), backends.
    assert_eq!(used(&agent), [1, 0, 1, 4, 3, 0]);
    agent.put(gone(1).desired()).unwrap();
    assert_eq!(used(&agent), [0, 0, 1, 4, 3, 0], "until a grace period has passed");
    maps.grace.release();
    agent.settle().unwrap();
    assert_eq!(used(&agent), [0; 6]);
    assert_eq!(agent.reconciler.usage().map(|usage| usage.capacity), [256, 16, 64, 1024, 511, 128]);
}

#[test]
fn more_addresses_than_the_map_can_hold_change_nothing() {
    use lb_common::abi::{Addr, Address};
    let maps = MemMaps::new(ROOMY);
    let mut agent = Driver::start(maps.open()).unwrap();
    let addresses = |count: u8| (0..count).map(|n| (Addr::from_v4([10, 0, 0, n]), Address::NODE)).collect();
    assert_eq!(agent.reconciler.set_addresses(&addresses(16)).unwrap(), 16);
    agent.reconciler.set_addresses(&addresses(17)).unwrap_err();
    let others = (1..18).map(|n| (Addr::from_v4([10, 0, 1, n]), Address::NODE)).collect();
    agent.reconciler.set_addresses(&others).unwrap_err();
    assert_eq!(agent.reconciler.addresses().unwrap(), addresses(16));
    assert_eq!(agent.reconciler.set_addresses(&addresses(16)).unwrap(), 0);
    // A value never changes in place.
    let mut next: std::collections::BTreeMap<_, _> = addresses(3);
    next.insert(Addr::from_v4([10, 0, 0, 1]), Address::LOOPBACK);
    assert_eq!(agent.reconciler.set_addresses(&next).unwrap(), 13 + 2);
    assert_eq!(agent.reconciler.addresses().unwrap(), next);
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn small_maps_break_nothing_and_leak_nothing(
        states in history(1..6),
        (frontends, services, slots, backends) in (1_u32..12, 1_u32..6, 1_u32..24, 2_u32..16),
        is_held: bool,
    ) {
        let mut maps = MemMaps::new(Capacities { frontends, addresses: 16, services, slots, backends, affinity: 1, ranges: 16, flows4: 1, flows6: 1 });
        if is_held {
            maps.grace = MemGrace::held();
        }
        let mut agent = Driver::start(maps.open()).unwrap();
        for state in &states {
            agent.follow(&state.desired()).unwrap();
            assert_no_dangling(&maps.open());
            rest(&mut agent, &maps);
            if agent.left_out.is_empty() {
                assert_means(&maps, state);
            }
        }
        agent.follow(&[]).unwrap();
        rest(&mut agent, &maps);
        for usage in agent.reconciler.usage() {
            prop_assert_eq!(usage.used, 0, "{}", usage.map);
        }
    }
}
