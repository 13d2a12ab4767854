//! Source ranges of service ports, as `lb_src_ranges` holds them.
//!
//! A port that is restricted has all its ranges before its policy says so, and loses none before its frontends are gone: a
//! client that may connect is never turned away in between.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use lb_common::abi::{Config, Cover, RangePrefix, ServiceId, Words as _, maps::SRC_RANGES};

use super::{
    NoRoom, Reconciler, lower,
    plan::{Phase, Plan, Write},
    restore::store_if_new,
};
use crate::{
    compile::PortEntries,
    maps::{MapError, Maps},
};

/// The ranges of all ids that have some.
#[derive(Clone, Debug, Default)]
pub(super) struct SourceRanges {
    by_id: BTreeMap<u32, BTreeSet<RangePrefix>>,
    /// Of all ids together.
    count: usize,
}

impl SourceRanges {
    /// What the map holds.
    ///
    /// # Errors
    /// Those of the map.
    pub(super) fn read(maps: &Maps) -> Result<Self, MapError> {
        let mut ranges = Self::default();
        for (range, _) in maps.ranges.dump()? {
            ranges.by_id.entry(range.key.service.index).or_default().insert(range);
            ranges.count += 1;
        }
        Ok(ranges)
    }

    /// Ids that have ranges.
    pub(super) fn ids(&self) -> Vec<u32> {
        self.by_id.keys().copied().collect()
    }

    /// How many there are.
    pub(super) const fn len(&self) -> usize {
        self.count
    }

    fn set(&mut self, id: u32, ranges: BTreeSet<RangePrefix>) -> BTreeSet<RangePrefix> {
        self.count += ranges.len();
        let before = if ranges.is_empty() { self.by_id.remove(&id) } else { self.by_id.insert(id, ranges) };
        let before = before.unwrap_or_default();
        self.count -= before.len();
        before
    }
}

impl Reconciler {
    /// Fails if the ranges of a port, which may have `id` already, have no room beside what is there: new ones are created before
    /// old ones go.
    pub(super) fn check_ranges(&self, id: Option<u32>, entries: &PortEntries) -> Result<(), NoRoom> {
        let news = self.new_ranges(id.map(|index| ServiceId { index }), &entries.ranges);
        if news <= self.free_ranges() { Ok(()) } else { Err(NoRoom::Ranges(news)) }
    }

    /// How many of these ranges an id does not have yet.
    fn new_ranges(&self, id: Option<ServiceId>, ranges: &[IpNet]) -> usize {
        let known = id.and_then(|id| self.ranges.by_id.get(&id.index));
        let is_new = |range: &&IpNet| match (id, known) {
            (Some(id), Some(known)) => !known.contains(&lower::range(id, range)),
            _ => true,
        };
        ranges.iter().filter(is_new).count()
    }

    /// Entries that `lb_src_ranges` can still take.
    pub(super) fn free_ranges(&self) -> usize {
        (self.maps.ranges.capacity() as usize).saturating_sub(self.ranges.len())
    }

    /// Plans that an id has exactly these ranges.
    pub(super) fn plan_ranges(&mut self, id: ServiceId, ranges: &[IpNet], plan: &mut Plan) {
        if ranges.is_empty() && !self.ranges.by_id.contains_key(&id.index) {
            return;
        }
        let wanted: BTreeSet<RangePrefix> = ranges.iter().map(|range| lower::range(id, range)).collect();
        let before = self.ranges.set(id.index, wanted.clone());
        for range in wanted.difference(&before) {
            plan.push(Phase::Slots, Write::CreateRange(*range));
        }
        for range in before.difference(&wanted) {
            plan.push(Phase::States, Write::DeleteRange(*range));
        }
    }

    /// Lets clients in these ranges count as pods; returns the number of writes.
    ///
    /// # Errors
    /// Those of the maps; [`MapError::Full`] if there is no room, and nothing was written.
    pub fn set_pod_ranges(&mut self, ranges: &[IpNet]) -> Result<usize, MapError> {
        self.set_ranges(ServiceId::PODS, ranges)
    }

    /// Says from which ranges cluster IPs are taken; returns the number of writes. No order matters: whoever has heard of a part of it
    /// leaves packets alone.
    ///
    /// # Errors
    /// As [`Reconciler::set_pod_ranges`].
    pub fn set_cluster_ips(&mut self, ranges: &[IpNet]) -> Result<usize, MapError> {
        let mut writes = self.set_ranges(ServiceId::CLUSTER_IPS, ranges)?;
        let add = |cover: Cover, range: &IpNet| cover.with(range.network().into(), range.prefix_len());
        let cluster_ips = ranges.iter().fold(Cover::NOTHING, add);
        let words = Config { cluster_ips, ..Config::OFF }.to_words();
        for (at, word) in words.into_iter().enumerate().skip(Config::CLUSTER_IPS_WORD) {
            writes += store_if_new(&mut *self.maps.config, at, word)?;
        }
        Ok(writes)
    }

    fn set_ranges(&mut self, id: ServiceId, ranges: &[IpNet]) -> Result<usize, MapError> {
        if self.new_ranges(Some(id), ranges) > self.free_ranges() {
            return Err(MapError::Full { map: SRC_RANGES, capacity: self.maps.ranges.capacity() });
        }
        let mut plan = Plan::default();
        self.plan_ranges(id, ranges, &mut plan);
        self.write(|maps| plan.apply(maps))?;
        Ok(plan.len())
    }
}

#[cfg(test)]
mod tests {
    use lb_common::abi::{Addr, SocketLb};

    use super::*;
    use crate::maps::{
        memory::{Capacities, MemMaps},
        read,
    };

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// 2.7-unallocated: what a restart finds is what was said, and what is said again is not written again.
    #[test]
    fn ranges_of_cluster_ips_are_what_was_said_last() {
        let maps = MemMaps::new(Capacities::default());
        let mut reconciler = Reconciler::restore(maps.open(), SocketLb::ALL).unwrap();
        let of_pods = nets(&["10.1.0.0/16"]);
        reconciler.set_pod_ranges(&of_pods).unwrap();
        assert!(reconciler.set_cluster_ips(&nets(&["10.96.0.0/16", "fd00:96::/112"])).unwrap() > 0);
        let mut reconciler = Reconciler::restore(maps.open(), SocketLb::ALL).unwrap();
        assert_eq!(reconciler.set_cluster_ips(&nets(&["fd00:96::/112", "10.96.0.0/16"])).unwrap(), 0);
        assert_eq!(reconciler.set_pod_ranges(&of_pods).unwrap(), 0);
        let may = |addrs: [&str; 3]| {
            let config: Config = read(&maps.config, 0);
            addrs.map(|addr| {
                config.cluster_ips.may_hold(Addr::from(addr.parse::<std::net::IpAddr>().unwrap()))
            })
        };
        assert_eq!(may(["10.96.0.1", "10.97.0.1", "fd00:96::1"]), [true, false, true]);
        reconciler.set_cluster_ips(&nets(&["10.97.0.0/16"])).unwrap();
        assert_eq!(may(["10.96.0.1", "10.97.0.1", "fd00:96::1"]), [false, true, false]);
        let held = SourceRanges::read(&maps.open()).unwrap().by_id;
        assert_eq!(held[&ServiceId::CLUSTER_IPS.index].len(), 1);
        assert_eq!(held[&ServiceId::PODS.index].len(), 1);
    }

    /// What has no room is refused before anything is written, and what is there counts once.
    #[test]
    fn ranges_without_room_change_nothing() {
        let maps = MemMaps::new(Capacities { ranges: 2, ..Capacities::default() });
        let mut reconciler = Reconciler::restore(maps.open(), SocketLb::ALL).unwrap();
        let two = nets(&["10.96.0.0/16", "10.97.0.0/16"]);
        reconciler.set_cluster_ips(&two).unwrap();
        assert_eq!(reconciler.set_cluster_ips(&two).unwrap(), 0);
        let error = reconciler.set_pod_ranges(&nets(&["10.1.0.0/16"])).unwrap_err();
        assert!(matches!(error, MapError::Full { .. }), "{error}");
        assert_eq!(SourceRanges::read(&maps.open()).unwrap().len(), 2);
    }
}
