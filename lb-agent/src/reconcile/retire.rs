//! What nobody refers to any more, and a program that started earlier may still hold.
//!
//! Quarantine ends with an RCU grace period, never by a timer: a hook inside connect() can be stopped for longer than
//! any timer.

use std::collections::VecDeque;

use lb_common::abi::{BackendId, L4Addr};

use super::{Ids, Pool, plan::Write, slots::Region};
use crate::{maps::Grace, model::ServiceName};

/// Things that leave together.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Retired {
    /// Performed when nobody can hold any of it.
    pub(super) writes: Vec<Write>,
    /// Regions of slots.
    pub(super) regions: Vec<Region>,
    /// Backend ids.
    pub(super) backends: Vec<BackendId>,
    /// Service ids.
    pub(super) services: Vec<u32>,
    /// Addresses of those backends that UDP sockets may be connected to.
    pub(super) gone: Vec<L4Addr>,
    /// Backends of a UDP port that is gone itself: they may serve all the same.
    pub(super) abandoned: Vec<(ServiceName, L4Addr)>,
}

impl Retired {
    const fn is_empty(&self) -> bool {
        self.writes.is_empty()
            && self.regions.is_empty()
            && self.backends.is_empty()
            && self.services.is_empty()
    }

    /// Makes room: everything here may be taken again.
    pub(super) fn give_back(&self, pool: &mut Pool, services: &mut Ids) {
        for region in &self.regions {
            pool.slots.give_back(*region);
        }
        for id in &self.backends {
            pool.backends.give_back(id.index);
        }
        for id in &self.services {
            services.give_back(*id);
        }
    }
}

/// The queue in front of reuse.
#[derive(Debug, Default)]
pub(super) struct Retirement {
    queue: VecDeque<(u64, Retired)>,
}

impl Retirement {
    /// Lets everything wait for a grace period that begins now.
    pub(super) fn retire(&mut self, retired: Retired, grace: &mut dyn Grace) {
        if !retired.is_empty() {
            self.queue.push_back((grace.request(), retired));
        }
    }

    /// The oldest thing whose grace period has passed.
    pub(super) fn next(&mut self, grace: &dyn Grace) -> Option<Retired> {
        let (ticket, _) = self.queue.front()?;
        if *ticket > grace.passed() {
            return None;
        }
        self.queue.pop_front().map(|(_, retired)| retired)
    }

    /// Everything that still waits.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &Retired> {
        self.queue.iter().map(|(_, retired)| retired)
    }

    /// Nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maps::memory::MemGrace;

    fn service(id: u32) -> Retired {
        Retired { services: vec![id], ..Retired::default() }
    }

    #[test]
    fn nothing_leaves_quarantine_before_its_grace_period_has_passed() {
        let mut grace = MemGrace::held();
        let mut retirement = Retirement::default();
        retirement.retire(service(1), &mut grace);
        grace.release();
        retirement.retire(service(2), &mut grace);
        assert_eq!(retirement.next(&grace), Some(service(1)));
        assert_eq!(retirement.next(&grace), None, "its grace period began after the release");
        grace.release();
        assert_eq!(retirement.next(&grace), Some(service(2)));
        assert!(retirement.is_empty());
    }

    #[test]
    fn nothing_asks_for_no_grace_period() {
        let mut grace = MemGrace::held();
        let mut retirement = Retirement::default();
        retirement.retire(Retired::default(), &mut grace);
        assert!(retirement.is_empty());
        assert_eq!(grace.request(), 1, "the first ticket");
    }
}
