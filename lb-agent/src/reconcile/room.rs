//! What does not fit into the maps, and when it may.
//!
//! A port without room stays as it was. It is planned again when something that it lacks has come back: after a
//! grace period if it waits in retirement, at once if it was a frontend, and not before the next full pass if the map is
//! really full.

use std::collections::BTreeSet;

use lb_common::abi::maps;

use super::{Ids, Outcome, Pass, Pool, Reconciler};
use crate::model::ServiceName;

/// Which map is too small for a service port, and what it needs of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoRoom {
    /// No region of `lb_slots` is long enough.
    #[error("lb_slots has no free region for {0} slots")]
    Slots(u16),
    /// Too few entries of `lb_backends` are free.
    #[error("lb_backends has no {0} free entries")]
    Backends(usize),
    /// All of `lb_services` is taken.
    #[error("lb_services has no free entry")]
    Services,
    /// Too few entries of `lb_frontends` are free.
    #[error("lb_frontends has no {0} free entries")]
    Frontends(usize),
    /// Too few entries of `lb_src_ranges` are free.
    #[error("lb_src_ranges has no {0} free entries")]
    Ranges(usize),
}

/// How full a map is, in entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// Name of the map.
    pub map: &'static str,
    /// Entries that are taken, that wait for a grace period, or that fill up a region of slots.
    pub used: usize,
    /// Entries that can be taken.
    pub capacity: usize,
}

impl Reconciler {
    /// How full each map is.
    pub fn usage(&self) -> [Usage; 6] {
        let usage = |map, capacity: u32, left: usize| {
            let capacity = capacity as usize;
            Usage { map, used: capacity.saturating_sub(left), capacity }
        };
        let table = |map, used, capacity: u32| Usage { map, used, capacity: capacity as usize };
        [
            table(maps::FRONTENDS, self.frontends.len(), self.maps.frontends.capacity()),
            table(maps::ADDRESSES, self.addresses, self.maps.addresses.capacity()),
            usage(maps::SERVICES, self.service_ids.capacity(), self.service_ids.left()),
            usage(maps::SLOTS, self.pool.slots.capacity(), self.pool.slots.left()),
            usage(maps::BACKENDS, self.pool.backends.capacity(), self.pool.backends.left()),
            table(maps::SRC_RANGES, self.ranges.len(), self.maps.ranges.capacity()),
        ]
    }

    /// Notes that a port has no room.
    pub(super) fn starve(&mut self, service: &ServiceName, no_room: NoRoom) {
        self.starved.entry(service.clone()).or_default().push(no_room);
    }

    /// Services with a port that had no room and has it now.
    pub(super) fn sated(&self) -> BTreeSet<ServiceName> {
        let has_room = |no_room: &NoRoom| self.has_room(*no_room, &self.pool, &self.service_ids);
        self.starved
            .iter()
            .filter(|(_, lacks)| lacks.iter().any(has_room))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Tells what is really full from what a later pass has room for.
    pub(super) fn sort_left_out(&self, pass: &mut Pass) {
        let Outcome { left_out, later, again, .. } = &mut pass.outcome;
        if pass.released {
            let fits = |no_room: &NoRoom| {
                matches!(no_room, NoRoom::Frontends(_) | NoRoom::Ranges(_))
                    && self.has_room(*no_room, &self.pool, &self.service_ids)
            };
            let sated = self.starved.iter().filter(|(_, lacks)| lacks.iter().any(fits));
            again.extend(sated.map(|(name, _)| name.clone()));
            left_out.retain(|(_, no_room)| !fits(no_room));
        }
        if left_out.is_empty() || self.retirement.is_empty() {
            return;
        }
        let (mut pool, mut services) = (self.pool.clone(), self.service_ids.clone());
        for retired in self.retirement.waiting() {
            retired.give_back(&mut pool, &mut services);
        }
        left_out.retain(|(key, no_room)| {
            let fits = self.has_room(*no_room, &pool, &services);
            if fits {
                later.insert(key.service.clone());
            }
            !fits
        });
    }

    /// Whether there is room now, given what is free.
    fn has_room(&self, no_room: NoRoom, pool: &Pool, services: &Ids) -> bool {
        match no_room {
            NoRoom::Slots(count) => pool.slots.fits(count),
            NoRoom::Backends(count) => pool.backends.left() >= count,
            NoRoom::Services => services.left() > 0,
            NoRoom::Frontends(count) => self.free_frontends() >= count,
            NoRoom::Ranges(count) => self.free_ranges() >= count,
        }
    }

    /// Entries that `lb_frontends` can still take.
    pub(super) fn free_frontends(&self) -> usize {
        (self.maps.frontends.capacity() as usize).saturating_sub(self.frontends.len())
    }
}

#[cfg(test)]
mod tests {
    use lb_common::abi::SocketLb;

    use super::*;
    use crate::{
        compile::PortKey,
        maps::memory::{Capacities, MemGrace, MemMaps},
        model::{Family, Protocol},
        reconcile::{Desired, Retired},
    };

    /// Eight slots; four backends, as nobody has id 0.
    const SMALL: Capacities = Capacities {
        frontends: 3,
        addresses: 1,
        services: 2,
        slots: 8,
        backends: 5,
        affinity: 1,
        ranges: 16,
        flows4: 1,
        flows6: 1,
    };

    fn empty(grace: &MemGrace) -> Reconciler {
        let maps = MemMaps { grace: grace.clone(), ..MemMaps::new(SMALL) };
        Reconciler::restore(maps.open(), SocketLb::ALL).unwrap()
    }

    fn name(name: &str) -> ServiceName {
        ServiceName::new("ns", name)
    }

    fn left_out(service: &str, no_room: NoRoom) -> (PortKey, NoRoom) {
        let key =
            PortKey { service: name(service), port: "".into(), protocol: Protocol::Tcp, family: Family::V4 };
        (key, no_room)
    }

    #[test]
    fn there_is_room_for_exactly_what_is_free() {
        let reconciler = empty(&MemGrace::default());
        let has = |no_room| reconciler.has_room(no_room, &reconciler.pool, &reconciler.service_ids);
        for (fits, does_not) in [
            (NoRoom::Slots(8), NoRoom::Slots(9)),
            (NoRoom::Backends(4), NoRoom::Backends(5)),
            (NoRoom::Frontends(3), NoRoom::Frontends(4)),
        ] {
            assert!(has(fits), "{fits}");
            assert!(!has(does_not), "{does_not}");
        }
        let mut services = reconciler.service_ids.clone();
        for _ in 0..2 {
            assert!(reconciler.has_room(NoRoom::Services, &reconciler.pool, &services));
            services.take().unwrap();
        }
        assert!(!reconciler.has_room(NoRoom::Services, &reconciler.pool, &services));
    }

    #[test]
    fn whoever_lacks_what_is_free_now_is_sated_and_nobody_else() {
        let mut reconciler = empty(&MemGrace::default());
        reconciler.starve(&name("hungry"), NoRoom::Slots(9));
        reconciler.starve(&name("hungry"), NoRoom::Backends(5));
        reconciler.starve(&name("one-of-two"), NoRoom::Slots(9));
        reconciler.starve(&name("one-of-two"), NoRoom::Slots(8));
        assert_eq!(reconciler.sated(), BTreeSet::from([name("one-of-two")]));
    }

    #[test]
    fn who_fits_into_what_waits_for_a_grace_period_is_told_to_come_later() {
        let grace = MemGrace::held();
        let mut reconciler = empty(&grace);
        for _ in 0..4 {
            reconciler.pool.backends.take().unwrap();
        }
        let mut pass = Pass::default();
        let lacks = [left_out("two", NoRoom::Backends(2)), left_out("three", NoRoom::Backends(3))];
        pass.outcome.left_out = lacks.to_vec();
        reconciler.sort_left_out(&mut pass);
        assert_eq!(pass.outcome.left_out, lacks, "nothing waits");
        assert!(pass.outcome.later.is_empty());

        let ids = [1, 2].map(|index| lb_common::abi::BackendId { index });
        let retired = Retired { backends: ids.to_vec(), ..Retired::default() };
        reconciler.retirement.retire(retired, &mut *reconciler.maps.grace);
        reconciler.sort_left_out(&mut pass);
        assert_eq!(pass.outcome.later, BTreeSet::from([name("two")]));
        assert_eq!(pass.outcome.left_out, lacks[1..], "its map is really full");
        assert!(pass.outcome.again.is_empty(), "nobody has room now");
        assert_eq!(reconciler.pool.backends.left(), 0, "nothing is given back before its time");
    }

    #[test]
    fn who_lacks_frontends_that_were_given_up_comes_again_at_once() {
        let mut reconciler = empty(&MemGrace::default());
        for (service, no_room) in
            [("three", NoRoom::Frontends(3)), ("four", NoRoom::Frontends(4)), ("slots", NoRoom::Slots(8))]
        {
            reconciler.starve(&name(service), no_room);
        }
        for (released, again) in [(false, BTreeSet::new()), (true, BTreeSet::from([name("three")]))] {
            let mut pass = Pass { released, ..Pass::default() };
            let lacks = [left_out("three", NoRoom::Frontends(3)), left_out("four", NoRoom::Frontends(4))];
            pass.outcome.left_out = lacks.to_vec();
            reconciler.sort_left_out(&mut pass);
            assert_eq!(pass.outcome.again, again, "given up: {released}");
            assert_eq!(pass.outcome.left_out, lacks[usize::from(released)..], "given up: {released}");
        }
    }

    #[test]
    fn empty_maps_have_their_whole_capacity_left() {
        let mut reconciler = empty(&MemGrace::default());
        reconciler.apply(&[Desired { name: name("gone"), created_s: 0, ports: Vec::new() }]).unwrap();
        let usage = reconciler.usage().map(|usage| (usage.map, usage.used, usage.capacity));
        assert_eq!(
            usage,
            [
                ("lb_frontends", 0, 3),
                ("lb_addresses", 0, 1),
                ("lb_services", 0, 2),
                ("lb_slots", 0, 8),
                ("lb_backends", 0, 4),
                ("lb_src_ranges", 0, 16)
            ]
        );
    }
}
