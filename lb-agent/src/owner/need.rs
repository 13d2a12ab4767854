//! How large the maps must be for what is listed.

use lb_common::abi::maps::MIN_ENTRIES;

use crate::{compile::PortEntries, maps::memory::Capacities, model::ClusterState, reconcile::NoRoom};

/// Entries of each map, counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Need {
    frontends: u64,
    addresses: u64,
    services: u64,
    slots: u64,
    backends: u64,
    ranges: u64,
    /// Largest region of one run: while it is replaced, old and new exist.
    largest: u64,
    /// Most backends of one port, likewise.
    most: u64,
}

impl Need {
    /// What the listed objects and the node's own addresses need.
    pub(super) fn of(state: &ClusterState, addresses: usize) -> Self {
        let mut need = Self { addresses: addresses as u64, ..Self::default() };
        for name in state.services() {
            state.compile(name).ports.iter().for_each(|port| need.add(port));
        }
        need
    }

    fn add(&mut self, port: &PortEntries) {
        self.services += 1;
        self.frontends += port.frontends.len() as u64;
        self.ranges += port.ranges.len() as u64;
        let runs = [&port.cluster, &port.local].map(|targets| region(port.run_length(targets)));
        self.slots += runs.iter().sum::<u64>();
        self.largest = self.largest.max(runs.into_iter().max().unwrap_or(0));
        // Both sets are sorted. An endpoint of both has one id.
        let only_local = port.local.iter().filter(|target| port.cluster.binary_search(target).is_err());
        let backends = (port.cluster.len() + only_local.count()) as u64;
        self.backends += backends;
        self.most = self.most.max(backends);
    }

    /// The same with room for changes, in steps, and never below the smallest useful size.
    pub(super) fn capacities(self) -> Capacities {
        Capacities {
            frontends: roomy(self.frontends),
            addresses: roomy(self.addresses),
            services: roomy(self.services),
            slots: roomy(self.slots + 2 * self.largest),
            backends: roomy(self.backends + self.most),
            ranges: roomy(self.ranges),
            ..Capacities::default()
        }
    }
}

/// `need` with room for what did not fit into maps of `now` entries that are large enough by number: free slots may lie apart, and
/// what a grace period will free may be wanted before.
pub(super) fn with_room<'a>(
    mut need: Capacities,
    now: &Capacities,
    lacks: impl Iterator<Item = &'a NoRoom>,
) -> Capacities {
    let more = |entries: u32, lack: usize| roomy(u64::from(entries) + lack as u64);
    for lack in lacks {
        match *lack {
            NoRoom::Frontends(lack) if need.frontends == now.frontends => {
                need.frontends = more(now.frontends, lack);
            }
            NoRoom::Services if need.services == now.services => need.services = more(now.services, 1),
            NoRoom::Slots(count) if need.slots == now.slots => {
                need.slots = more(now.slots, 2 * usize::from(count).next_power_of_two());
            }
            NoRoom::Ranges(lack) if need.ranges == now.ranges => need.ranges = more(now.ranges, lack),
            NoRoom::Backends(lack) if need.backends == now.backends => {
                need.backends = more(now.backends, lack);
            }
            _ => {}
        }
    }
    need
}

/// Slots of the region that a run of so many lives in.
const fn region(slots: usize) -> u64 {
    if slots == 0 { 0 } else { (slots as u64).next_power_of_two() }
}

/// A quarter more, rounded up to a multiple of the smallest size.
fn roomy(entries: u64) -> u32 {
    let step = u64::from(MIN_ENTRIES);
    let with_room = entries + entries / 4;
    u32::try_from(with_room.div_ceil(step).max(1) * step).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compile::{Policies, PortKey, Target},
        model::{Algorithm, Family, Protocol, ServiceName},
    };

    /// A node that was served by IPVS has every cluster IP on an interface.
    #[test]
    fn a_node_of_many_addresses_has_room_for_them() {
        let need = Need::of(&ClusterState::new("n1".into()), 20_000);
        let capacities = need.capacities();
        assert_eq!((capacities.addresses, capacities.services), (28_672, 4096));
    }

    /// Free slots may lie apart, and all endpoints of a port may be replaced at once.
    #[test]
    fn what_lacks_room_in_maps_that_are_large_enough_makes_them_larger() {
        let now = Capacities { slots: 8192, ..Capacities::default() };
        let with = |need, lacks: &[NoRoom]| with_room(need, &now, lacks.iter());
        assert_eq!(with(now, &[]), now);
        assert_eq!(with(now, &[NoRoom::Slots(64), NoRoom::Slots(64)]), Capacities { slots: 12_288, ..now });
        assert_eq!(with(now, &[NoRoom::Slots(4000)]), Capacities { slots: 20_480, ..now });
        assert_eq!(with(now, &[NoRoom::Backends(3000)]), Capacities { backends: 12_288, ..now });
        let grown = with(now, &[NoRoom::Services, NoRoom::Frontends(2)]);
        assert_eq!(grown, Capacities { services: 8192, frontends: 8192, ..now });
        // What is counted already is not counted twice.
        let counted = Capacities { slots: 16_384, ..now };
        assert_eq!(with(counted, &[NoRoom::Slots(64)]), counted);
    }

    #[test]
    fn the_largest_port_has_room_for_its_next_generation() {
        let target = |n: u16| Target { at: ([10, 0, 0, 1], n).into(), terminating: false, here: false };
        let port = |cluster: u16, local: u16| PortEntries {
            key: PortKey {
                service: ServiceName::new("ns", "s"),
                port: "".into(),
                protocol: Protocol::Tcp,
                family: Family::V4,
            },
            frontends: Vec::new(),
            cluster: (0..cluster).map(target).collect(),
            local: (0..local).map(target).collect(),
            draining: Vec::new(),
            policies: Policies::default(),
            ranges: Vec::new(),
            affinity_s: 0,
            algorithm: Algorithm::Random,
        };
        // 5.9-maglev: while a table is replaced, two exist.
        let mut need = Need::default();
        need.add(&PortEntries { algorithm: Algorithm::Maglev, ..port(2, 0) });
        need.add(&PortEntries { algorithm: Algorithm::Maglev, ..port(20, 1) });
        assert_eq!((need.slots, need.largest, need.backends), (1024 + 16_384 + 1, 16_384, 22));
        let mut need = Need::default();
        need.add(&port(3000, 0));
        need.add(&port(10, 20));
        assert_eq!((need.backends, need.most, need.largest), (3020, 3000, 4096));
        assert_eq!(need.capacities().backends, 8192);
    }

    #[test]
    fn capacities_have_room_and_grow_in_steps() {
        assert_eq!(roomy(0), 4096);
        assert_eq!(roomy(3000), 4096);
        assert_eq!(roomy(4096), 8192);
        assert_eq!(roomy(30_000), 40_960);
    }
}
