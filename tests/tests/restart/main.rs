//! What the reconciler promises, over random histories of random clusters.
//!
//! Nothing here knows how it works: states go in, maps come out, and an independent model says what they should mean.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod contest;
mod crash;
mod garbage;
mod grace;
mod named;
mod repair;
mod restart;
mod room;
mod world;

use lb_agent::maps::memory::{Capacities, MemMaps};
use lb_common::abi::FrontendKey;
use lb_tests::invariants::{assert_no_dangling, describe, lost_ranges, meaning};
use lb_tests::scenario::Driver;
use proptest::prelude::*;
use world::{World, history};

/// Small, so that every array can be read after every write, and large enough for every world.
const ROOMY: Capacities = Capacities {
    frontends: 256,
    addresses: 16,
    services: 64,
    slots: 1024,
    backends: 512,
    affinity: 1,
    ranges: 128,
    flows4: 1,
    flows6: 1,
};

/// So many cases, or as many as `PROPTEST_CASES` says.
fn cases(usual: u32) -> ProptestConfig {
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let default = ProptestConfig::default();
    if asked { default } else { ProptestConfig { cases: usual, ..default } }
}

/// An agent that starts on maps in any state and programs `world`.
fn start(maps: &MemMaps, world: &World) -> Driver {
    let mut agent = Driver::start(maps.open()).unwrap();
    agent.follow(&world.desired()).unwrap();
    agent.everything().unwrap();
    agent
}

/// Panics unless the maps mean what `world` says.
fn assert_means(maps: &MemMaps, world: &World) {
    let (is, should) = (meaning(&maps.open()).unwrap(), world.meaning());
    assert_eq!(lost_ranges(&maps.open()).unwrap(), []);
    let name = |keys: Vec<&FrontendKey>| keys.into_iter().map(describe).collect::<Vec<_>>();
    assert_eq!(name(is.keys().collect()), name(should.keys().collect()), "the frontends");
    for (key, meant) in &should {
        assert_eq!(is.get(key), Some(meant), "{}", describe(key));
    }
}

/// Every word and entry of the maps.
fn raw(maps: &MemMaps) -> (Vec<String>, Vec<u64>) {
    let maps = maps.open();
    let frontends = maps.frontends.dump().unwrap().iter().map(|entry| format!("{entry:?}")).collect();
    let arrays = [&maps.services, &maps.slots, &maps.backends, &maps.config, &maps.meta];
    (frontends, arrays.iter().flat_map(|array| (0..array.words()).map(|at| array.load(at))).collect())
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn the_maps_mean_what_is_desired_whatever_was_before(states in history(1..6)) {
        let maps = MemMaps::new(ROOMY);
        let mut agent = Driver::start(maps.open()).unwrap();
        for state in &states {
            agent.follow(&state.desired()).unwrap();
            assert_no_dangling(&maps.open());
            assert_means(&maps, state);
        }
    }

    /// SY-6: only what differs is written.
    #[test]
    fn applying_twice_writes_nothing_the_second_time(states in history(1..4)) {
        let maps = MemMaps::new(ROOMY);
        let mut agent = Driver::start(maps.open()).unwrap();
        for state in &states {
            agent.follow(&state.desired()).unwrap();
            agent.settle().unwrap();
            let before = raw(&maps);
            prop_assert_eq!(agent.everything().unwrap(), 0);
            prop_assert_eq!(raw(&maps), before);
        }
    }

    #[test]
    fn nothing_is_left_when_everything_is_gone(states in history(1..6), restart_at in 0_usize..6) {
        let maps = MemMaps::new(ROOMY);
        let mut agent = Driver::start(maps.open()).unwrap();
        for (at, state) in states.iter().enumerate() {
            if at == restart_at {
                agent = start(&maps, state);
            }
            agent.follow(&state.desired()).unwrap();
        }
        agent.follow(&[]).unwrap();
        agent.settle().unwrap();
        prop_assert!(agent.reconciler.is_settled());
        for usage in agent.reconciler.usage() {
            prop_assert_eq!(usage.used, 0, "{}", usage.map);
        }
    }
}
