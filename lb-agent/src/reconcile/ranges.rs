//! Source ranges of service ports, as `lb_src_ranges` holds them.
//!
//! A port that is restricted has all its ranges before its policy says so, and loses none before its frontends are gone: a
//! client that may connect is never turned away in between.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use lb_common::abi::{RangePrefix, ServiceId};

use super::{
    NoRoom, Reconciler, lower,
    plan::{Phase, Plan, Write},
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
        let id = id.map(|index| ServiceId { index });
        let known = id.and_then(|id| self.ranges.by_id.get(&id.index));
        let is_new = |range: &&IpNet| match (id, known) {
            (Some(id), Some(known)) => !known.contains(&lower::range(id, range)),
            _ => true,
        };
        let news = entries.ranges.iter().filter(is_new).count();
        if news <= self.free_ranges() { Ok(()) } else { Err(NoRoom::Ranges(news)) }
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
        if ranges.len() > self.free_ranges() {
            let capacity = self.maps.ranges.capacity();
            return Err(MapError::Full { map: lb_common::abi::maps::SRC_RANGES, capacity });
        }
        let mut plan = Plan::default();
        self.plan_ranges(ServiceId::PODS, ranges, &mut plan);
        self.write(|maps| plan.apply(maps))?;
        Ok(plan.len())
    }
}
