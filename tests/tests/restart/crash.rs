//! An agent that is stopped after any of its writes, or whose writes fail.

use std::collections::BTreeMap;

use lb_agent::model::Algorithm;
use lb_agent::reconcile::Desired;
use lb_common::abi::{FrontendKey, L4Addr};
use lb_tests::expected;
use lb_tests::invariants::Meant;
use proptest::prelude::*;

use crate::named::Named;
use crate::*;

/// Writes of a run that nobody stops.
const ENDLESS: u64 = 1 << 40;

/// Where every frontend sends the sockets of this node.
fn used(maps: &MemMaps) -> BTreeMap<FrontendKey, Vec<L4Addr>> {
    meaning(&maps.open()).unwrap().into_iter().map(|(key, meant)| (key, meant.used())).collect()
}

/// Panics unless every frontend that stays is served by its old endpoints or by its new ones, and at most one of those
/// that stay with their Service is away.
///
/// What its Service gives up is another matter: until it is deleted it shows what else the Service does, and it is free
/// for a moment before another Service has it.
fn assert_old_or_new(maps: &MemMaps, before: &World, after: &World) {
    let used = used(maps);
    let (old, new) = (before.meaning(), after.meaning());
    let mut missing = Vec::new();
    for (key, new) in new.iter().filter(|(key, _)| !before.gives_up(key, after)) {
        match (used.get(key), old.get(key)) {
            // A cluster IP that was an external address of the same Service: a kind changes only with its key.
            (Some(_), Some(old)) if old.kind != new.kind => {}
            (Some(now), Some(old)) => {
                assert!(*now == old.used() || *now == new.used(), "{} is sent to {now:?}", describe(key));
            }
            (Some(now), None) => assert_eq!(*now, new.used(), "{}", describe(key)),
            (None, Some(_)) if before.owner(key) == after.owner(key) => missing.push(describe(key)),
            (None, _) => {}
        }
    }
    assert!(missing.len() <= 1, "{missing:?} are missing");
}

/// The maps after all states, and the agent that still runs.
fn replay(states: &[World]) -> (MemMaps, Driver) {
    let maps = MemMaps::new(ROOMY);
    let mut agent = Driver::start(maps.open()).unwrap();
    for state in states {
        agent.follow(&state.desired()).unwrap();
        agent.settle().unwrap();
    }
    (maps, agent)
}

/// Writes from one state to the next, by a running agent and with the reuse that follows.
fn step(agent: &mut Driver, state: &World) {
    // Whatever fails is the end of this agent.
    drop(agent.follow(&state.desired()).and_then(|_| agent.settle()));
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn a_stop_after_any_write_leaves_nothing_dangling(states in history(1..4)) {
        let (last, before) = states.split_last().unwrap();
        let previous = before.last().unwrap();
        let (maps, mut agent) = replay(before);
        maps.faults.stop_after(ENDLESS);
        step(&mut agent, last);
        let writes = maps.faults.used_of(ENDLESS);
        for stop in 0..writes {
            let (maps, mut agent) = replay(before);
            maps.faults.stop_after(stop);
            step(&mut agent, last);
            drop(agent);
            assert_no_dangling(&maps.open());
            assert_old_or_new(&maps, previous, last);

            maps.faults.heal();
            start(&maps, last);
            assert_no_dangling(&maps.open());
            assert_means(&maps, last);
        }
    }

    #[test]
    fn a_stop_after_any_write_of_a_start_leaves_nothing_dangling(states in history(1..3)) {
        let (last, before) = states.split_last().unwrap();
        let previous = before.last().unwrap();
        // Without the writes that follow a grace period: the start finds what was retired.
        let maps = MemMaps::new(ROOMY);
        let mut agent = Driver::start(maps.open()).unwrap();
        for state in before {
            agent.follow(&state.desired()).unwrap();
        }
        drop(agent);
        let whole = maps.copy();
        whole.faults.stop_after(ENDLESS);
        start(&whole, last);
        for stop in 0..whole.faults.used_of(ENDLESS) {
            let maps = maps.copy();
            maps.faults.stop_after(stop);
            // Whatever fails is the end of this agent.
            drop(
                Driver::start(maps.open())
                    .and_then(|mut agent| agent.follow(&last.desired()).and_then(|_| agent.everything())),
            );
            assert_no_dangling(&maps.open());
            assert_old_or_new(&maps, previous, last);

            maps.faults.heal();
            start(&maps, last);
            assert_means(&maps, last);
        }
    }
}

proptest! {
    #![proptest_config(cases(96))]

    /// SY-3.
    #[test]
    fn one_write_in_ten_may_fail_and_the_maps_still_get_there(states in history(1..5), seed: u64) {
        let maps = MemMaps::new(ROOMY);
        let mut agent = Driver::start(maps.open()).unwrap();
        let mut previous = &World::EMPTY;
        for state in &states {
            maps.faults.fail_randomly(6554, seed);
            if agent.follow(&state.desired()).is_err() {
                assert_no_dangling(&maps.open());
                assert_old_or_new(&maps, previous, state);
                agent.recover();
            }
            maps.faults.heal();
            assert_no_dangling(&maps.open());
            assert_means(&maps, state);
            previous = state;
        }
    }
}

/// 5.9-maglev: a table has thousands of words, of which none may be met before all of them are there.
#[test]
fn a_stop_while_a_table_is_replaced_leaves_the_old_or_the_new_one() {
    let web = |endpoints, algorithm| {
        Named::new("web", 0).port("", &["10.0.0.1:80"], endpoints).by(algorithm).desired()
    };
    let roomy = Capacities { slots: 4096, ..ROOMY };
    let after = |before: &Desired| {
        let maps = MemMaps::new(roomy);
        let mut agent = Driver::start(maps.open()).unwrap();
        agent.follow(core::slice::from_ref(before)).unwrap();
        agent.settle().unwrap();
        (maps, agent)
    };
    let change = |agent: &mut Driver, to: &Desired| {
        // Whatever fails is the end of this agent.
        drop(agent.follow(core::slice::from_ref(to)).and_then(|_| agent.settle()));
    };
    for (before, to) in [
        (web(3, Algorithm::Random), web(3, Algorithm::Maglev)),
        (web(2, Algorithm::Maglev), web(3, Algorithm::Maglev)),
        (web(3, Algorithm::Maglev), web(2, Algorithm::Maglev)),
        (web(3, Algorithm::Maglev), web(3, Algorithm::RoundRobin)),
    ] {
        let (maps, mut agent) = after(&before);
        maps.faults.stop_after(ENDLESS);
        change(&mut agent, &to);
        let writes = maps.faults.used_of(ENDLESS);
        // Every write near both ends of the plan, where states and runs are, and some of those between.
        for stop in (0..writes).filter(|stop| *stop < 24 || *stop + 24 > writes || stop % 499 == 0) {
            let (maps, mut agent) = after(&before);
            maps.faults.stop_after(stop);
            change(&mut agent, &to);
            drop(agent);
            assert_no_dangling(&maps.open());
            let is: Vec<_> = used(&maps).into_values().collect();
            let used_of = |desired: &Desired| -> Vec<_> {
                expected::meaning(core::slice::from_ref(desired)).values().map(Meant::used).collect()
            };
            assert!(is == used_of(&before) || is == used_of(&to), "after {stop} of {writes} writes");

            maps.faults.heal();
            let mut agent = Driver::start(maps.open()).unwrap();
            agent.follow(core::slice::from_ref(&to)).unwrap();
            assert!(meaning(&maps.open()).unwrap() == expected::meaning(core::slice::from_ref(&to)));
        }
    }
}
