//! What a program that started earlier may still hold.

use std::collections::{BTreeMap, BTreeSet};

use lb_agent::maps::memory::MemGrace;
use lb_agent::maps::{Maps, read};
use lb_common::abi::{BackendId, L4Addr, Service, Slot};
use lb_tests::invariants::slots;
use proptest::prelude::*;

use crate::*;

/// What programs may have seen since grace periods passed for the last time.
#[derive(Default)]
struct Seen {
    /// Content of every slot that a run contained.
    slots: BTreeMap<u32, Slot>,
    /// Whose every backend id was, with its generation.
    backends: BTreeMap<BackendId, (u32, L4Addr)>,
    /// Service ids that lost their last frontend.
    gone: BTreeSet<u32>,
    /// Service ids that had frontends a moment ago.
    services: BTreeSet<u32>,
}

impl Seen {
    /// Compares the maps with what was seen, and adds what they hold.
    fn look(&mut self, maps: &Maps) {
        for (index, slot) in &self.slots {
            assert_eq!(read::<4, Slot>(&*maps.slots, *index), *slot, "slot {index} was overwritten");
        }
        let now: BTreeSet<u32> =
            maps.frontends.dump().unwrap().into_iter().map(|(_, value)| value.service.index).collect();
        self.gone.extend(self.services.difference(&now));
        let again: Vec<_> = now.intersection(&self.gone).collect();
        assert!(again.is_empty(), "services {again:?} have another owner");
        for id in &now {
            let service: Service = read(&*maps.services, *id);
            for run in [service.cluster, service.local] {
                for (index, slot) in (run.base..).zip(slots(&*maps.slots, run)) {
                    self.slots.insert(index, slot);
                    let me = (slot.generation, slot.at());
                    let owner = *self.backends.entry(slot.backend).or_insert(me);
                    assert_eq!(owner, me, "{:?} has another owner", slot.backend);
                }
            }
        }
        self.services = now;
    }
}

proptest! {
    #![proptest_config(cases(96))]

    /// SY-6: what went away waits for those that may still see it.
    #[test]
    fn nothing_is_reused_before_a_grace_period(states in history(2..8), releases: u8) {
        let mut maps = MemMaps::new(ROOMY);
        maps.grace = MemGrace::held();
        let mut agent = Driver::start(maps.open()).unwrap();
        let mut seen = Seen::default();
        for (at, state) in states.iter().enumerate() {
            agent.follow(&state.desired()).unwrap();
            seen.look(&maps.open());
            if releases & (1 << at) != 0 {
                maps.grace.release();
                seen = Seen { services: seen.services, ..Seen::default() };
            }
            agent.settle().unwrap();
            assert_means(&maps, state);
        }
        maps.grace.release();
        agent.settle().unwrap();
        prop_assert!(agent.reconciler.is_settled());
    }

    #[test]
    fn a_backend_id_and_its_generation_are_never_two_endpoints(states in history(2..8), restart_at in 0_usize..8) {
        let maps = MemMaps::new(ROOMY);
        let mut agent = Driver::start(maps.open()).unwrap();
        let mut owners: BTreeMap<(BackendId, u32), L4Addr> = BTreeMap::new();
        for (at, state) in states.iter().enumerate() {
            if at == restart_at {
                agent = Driver::start(maps.open()).unwrap();
            }
            agent.follow(&state.desired()).unwrap();
            agent.everything().unwrap();
            agent.settle().unwrap();
            let maps = maps.open();
            for (_, value) in maps.frontends.dump().unwrap() {
                let service: Service = read(&*maps.services, value.service.index);
                for slot in slots(&*maps.slots, service.cluster).chain(slots(&*maps.slots, service.local)) {
                    let owner = *owners.entry((slot.backend, slot.generation)).or_insert(slot.at());
                    prop_assert_eq!(owner, slot.at());
                }
            }
        }
    }
}
