//! An agent that starts again on the maps of an earlier one.

use std::collections::BTreeMap;

use lb_agent::compile::PortKey;
use lb_common::abi::{Run, Service};
use proptest::prelude::*;

use crate::world::history;
use crate::*;

/// Id and runs of every port.
fn places(agent: &Driver) -> BTreeMap<PortKey, (u32, [Run; 2])> {
    let maps = agent.reconciler.maps();
    agent
        .reconciler
        .programmed()
        .map(|(id, key)| {
            let Service { cluster, local, .. } = lb_agent::maps::read(&*maps.services, id);
            (key.clone(), (id, [cluster, local]))
        })
        .collect()
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn a_restart_writes_nothing_when_nothing_changed(states in history(1..4)) {
        let maps = MemMaps::new(ROOMY);
        let mut agent = Driver::start(maps.open()).unwrap();
        for state in &states {
            agent.follow(&state.desired()).unwrap();
        }
        agent.settle().unwrap();
        let last = states.last().unwrap();
        let before = raw(&maps);
        // Every write fails, so that one which leaves the content as it was is seen too.
        maps.faults.stop_after(0);
        let mut agent = Driver::start(maps.open()).unwrap();
        prop_assert_eq!(agent.follow(&last.desired()).unwrap(), 0);
        prop_assert_eq!(agent.everything().unwrap(), 0);
        prop_assert_eq!(raw(&maps), before);
    }

    #[test]
    fn a_restart_writes_only_what_changed_while_the_agent_was_down(states in history(1..3), down in history(1..2)) {
        let maps = MemMaps::new(ROOMY);
        let before = states.last().unwrap();
        let mut agent = start(&maps, before);
        agent.settle().unwrap();
        let old = places(&agent);
        drop(agent);

        // What changes from one agent to the next is what a running one would change.
        let after = before.mixed_with(down.last().unwrap());
        let live = maps.copy();
        let mut running = start(&live, before);
        running.follow(&after.desired()).unwrap();
        let agent = start(&maps, &after);

        assert_no_dangling(&maps.open());
        assert_means(&maps, &after);
        let (restarted, running) = (places(&agent), places(&running));
        let (was, is) = (before.desired(), after.desired());
        for service in was.iter().filter(|service| is.iter().any(|other| other == *service)) {
            for key in service.ports.iter().map(|entries| &entries.key) {
                if old.get(key) == running.get(key) {
                    prop_assert_eq!(restarted.get(key), old.get(key), "{:?}", key);
                }
            }
        }
    }
}
