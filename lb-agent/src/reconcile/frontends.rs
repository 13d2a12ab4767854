//! Who owns which frontend.
//!
//! Two Services can claim one address, port and protocol: the API server does not check external addresses. The older
//! one has it (LB-8: by creation time, then by name), the other waits and is planned again when it may have become free.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::abi::{FrontendKey, FrontendKind};
use smallvec::SmallVec;

use crate::{hash::HashMap, model::ServiceName};

/// Owner of a frontend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Owner {
    /// Service id.
    pub(super) id: u32,
    /// Why the address accepts traffic.
    pub(super) kind: FrontendKind,
}

/// All frontends that the maps hold.
#[derive(Debug, Default)]
pub(super) struct Frontends {
    owners: HashMap<FrontendKey, Owner>,
    /// Most ids have a cluster IP and its other ports.
    by_id: HashMap<u32, SmallVec<[FrontendKey; 2]>>,
    /// Ids that were found in the maps and that no Service has claimed.
    unclaimed: BTreeSet<u32>,
    /// Who waits for a frontend, and for what a Service waits: the same facts twice.
    waiting: HashMap<FrontendKey, BTreeSet<ServiceName>>,
    waits: HashMap<ServiceName, BTreeSet<FrontendKey>>,
    /// How many frontends have each NodePort.
    node_ports: BTreeMap<u16, u32>,
}

impl Frontends {
    /// Adds a frontend that is in the map and had no owner.
    pub(super) fn insert(&mut self, key: FrontendKey, owner: Owner) {
        self.owners.insert(key, owner);
        self.by_id.entry(owner.id).or_default().push(key);
        if owner.kind == FrontendKind::NodePort {
            *self.node_ports.entry(key.port).or_default() += 1;
        }
    }

    /// Takes a frontend away from its owner.
    pub(super) fn remove(&mut self, key: &FrontendKey) {
        let Some(owner) = self.owners.remove(key) else { return };
        if let Some(keys) = self.by_id.get_mut(&owner.id) {
            keys.retain(|other| other != key);
            if keys.is_empty() {
                self.by_id.remove(&owner.id);
            }
        }
        if owner.kind == FrontendKind::NodePort
            && let Some(count) = self.node_ports.get_mut(&key.port)
        {
            *count -= 1;
            if *count == 0 {
                self.node_ports.remove(&key.port);
            }
        }
    }

    /// Who owns a frontend.
    pub(super) fn owner(&self, key: &FrontendKey) -> Option<Owner> {
        self.owners.get(key).copied()
    }

    /// The frontends of a service id.
    pub(super) fn of(&self, id: u32) -> &[FrontendKey] {
        self.by_id.get(&id).map_or(&[], SmallVec::as_slice)
    }

    /// Number of frontends.
    pub(super) fn len(&self) -> usize {
        self.owners.len()
    }

    /// Ids that have frontends.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        self.by_id.keys().copied()
    }

    /// Notes that all ids are found, not claimed.
    pub(super) fn unclaim_all(&mut self) {
        self.unclaimed = self.by_id.keys().copied().collect();
    }

    /// Ids that no Service has claimed.
    pub(super) const fn unclaimed(&self) -> &BTreeSet<u32> {
        &self.unclaimed
    }

    /// A Service takes over an id that was found, or it is removed. False if it was not found or is taken.
    pub(super) fn claim(&mut self, id: u32) -> bool {
        self.unclaimed.remove(&id)
    }

    /// Lets a Service wait for a frontend.
    pub(super) fn wait(&mut self, key: FrontendKey, service: &ServiceName) {
        self.waiting.entry(key).or_default().insert(service.clone());
        self.waits.entry(service.clone()).or_default().insert(key);
    }

    /// A Service is planned anew, so it waits for nothing.
    pub(super) fn stop_waiting(&mut self, service: &ServiceName) {
        for key in self.waits.remove(service).unwrap_or_default() {
            if let Some(services) = self.waiting.get_mut(&key) {
                services.remove(service);
                if services.is_empty() {
                    self.waiting.remove(&key);
                }
            }
        }
    }

    /// Everybody who waits for a frontend.
    pub(super) fn waiting(&self, key: &FrontendKey) -> impl Iterator<Item = &ServiceName> {
        self.waiting.get(key).into_iter().flatten()
    }

    /// Lowest and highest NodePort.
    pub(super) fn node_port_range(&self) -> Option<(u16, u16)> {
        let (min, _) = self.node_ports.first_key_value()?;
        let (max, _) = self.node_ports.last_key_value()?;
        Some((*min, *max))
    }
}

#[cfg(test)]
mod tests {
    use lb_common::abi::{Addr, L4Addr, Proto};

    use super::*;

    fn key(last: u8, port: u16) -> FrontendKey {
        FrontendKey::new(L4Addr { addr: Addr::from_v4([10, 0, 0, last]), port }, Proto::TCP)
    }

    #[test]
    fn the_node_port_range_follows_the_node_ports_and_only_them() {
        let mut frontends = Frontends::default();
        let node_port = |id| Owner { id, kind: FrontendKind::NodePort };
        frontends.insert(key(1, 80), Owner { id: 0, kind: FrontendKind::ClusterIp });
        assert_eq!(frontends.node_port_range(), None);
        for (last, port) in [(0, 30_500), (0, 30_100), (0, 30_900), (9, 30_100)] {
            frontends.insert(key(last, port), node_port(1));
        }
        assert_eq!(frontends.node_port_range(), Some((30_100, 30_900)));
        frontends.remove(&key(0, 30_900));
        frontends.remove(&key(0, 30_100));
        assert_eq!(frontends.node_port_range(), Some((30_100, 30_500)), "the other family still has it");
        frontends.remove(&key(9, 30_100));
        assert_eq!(frontends.node_port_range(), Some((30_500, 30_500)));
    }

    #[test]
    fn a_removed_frontend_has_no_owner_and_its_owner_does_not_have_it() {
        let mut frontends = Frontends::default();
        let owner = Owner { id: 3, kind: FrontendKind::ClusterIp };
        frontends.insert(key(1, 80), owner);
        frontends.insert(key(2, 80), owner);
        frontends.remove(&key(1, 80));
        frontends.remove(&key(1, 80));
        assert_eq!(frontends.owner(&key(1, 80)), None);
        assert_eq!(frontends.of(3), [key(2, 80)]);
        assert_eq!(frontends.len(), 1);
        frontends.remove(&key(2, 80));
        assert_eq!(frontends.ids().count(), 0);
    }

    #[test]
    fn who_is_planned_anew_waits_for_nothing() {
        let mut frontends = Frontends::default();
        let (one, two) = (ServiceName::new("a", "one"), ServiceName::new("a", "two"));
        frontends.wait(key(1, 80), &one);
        frontends.wait(key(1, 80), &two);
        frontends.wait(key(2, 80), &one);
        frontends.stop_waiting(&one);
        assert_eq!(frontends.waiting(&key(1, 80)).collect::<Vec<_>>(), [&two]);
        assert_eq!(frontends.waiting(&key(2, 80)).count(), 0);
        frontends.stop_waiting(&two);
        assert!(frontends.waiting.is_empty() && frontends.waits.is_empty());
    }

    #[test]
    fn an_id_is_claimed_once() {
        let mut frontends = Frontends::default();
        frontends.insert(key(1, 80), Owner { id: 3, kind: FrontendKind::ClusterIp });
        assert!(!frontends.claim(3), "nothing was found yet");
        frontends.unclaim_all();
        assert!(frontends.claim(3));
        assert!(!frontends.claim(3));
    }
}
