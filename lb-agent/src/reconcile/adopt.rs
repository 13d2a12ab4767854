//! Giving the ids that were found in the maps to the ports whose they were.

use lb_common::abi::{FrontendKey, FrontendKind};

use super::{Desired, Reconciler, service::identifying};
use crate::compile::PortEntries;

/// What tells whose an id was, the surest first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Proof {
    /// A frontend of this kind. The API server gives a cluster IP, and a NodePort, to one Service only.
    Owns(FrontendKind),
    /// The port wants every frontend of the id. Another address may have been another Service's, but then that one
    /// would want more than the port does.
    WantsAll,
}

impl Proof {
    const ALL: [Self; 3] =
        [Self::Owns(FrontendKind::ClusterIp), Self::Owns(FrontendKind::NodePort), Self::WantsAll];
}

impl Reconciler {
    /// Gives ids that nobody has claimed since the last restore to the ports of `desired`. Better proofs go first, for all
    /// services; where a proof holds for two ports, the earlier one in `desired` has the id.
    pub(super) fn adopt(&mut self, desired: &[&Desired]) {
        for proof in Proof::ALL {
            if self.frontends.unclaimed().is_empty() {
                return;
            }
            for service in desired {
                for entries in &service.ports {
                    if self.id_of(entries).is_none()
                        && let Some(id) = self.proven(entries, proof)
                    {
                        self.frontends.claim(id);
                        self.own(id, entries, service.created_s);
                    }
                }
            }
        }
    }

    /// The id that a port has.
    fn id_of(&self, entries: &PortEntries) -> Option<u32> {
        let ids = self.by_service.get(&entries.key.service)?;
        ids.iter().copied().find(|id| self.ports.get(id).is_some_and(|port| port.key == entries.key))
    }

    /// An unclaimed id that was the port's.
    fn proven(&self, entries: &PortEntries, proof: Proof) -> Option<u32> {
        let wants = |key: &FrontendKey| identifying(entries).any(|(wanted, _)| wanted == *key);
        identifying(entries)
            .filter_map(|(key, kind)| Some((self.frontends.owner(&key)?, kind)))
            .filter(|(owner, _)| self.frontends.unclaimed().contains(&owner.id))
            .find(|(owner, kind)| match proof {
                Proof::Owns(wanted) => *kind == wanted && owner.kind == wanted,
                Proof::WantsAll => {
                    self.frontends.of(owner.id).iter().filter(|key| !key.is_other_ports()).all(wants)
                }
            })
            .map(|(owner, _)| owner.id)
    }
}
