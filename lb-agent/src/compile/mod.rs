//! Desired state: from one Service to what the maps need for it.
//!
//! [`compile`] is everything this module does. It performs no I/O, reads no clock and does not log: what a person should
//! hear comes back as [`Notice`]s.
//!
//! ```text
//! Service + slices + NodeContext
//!     | frontends.rs   which addresses accept traffic
//!     | endpoints.rs   who may serve them
//!     v
//! [PortEntries]        host byte order, sorted, without ids
//!     | maglev.rs      which of them each slot of a run has, for those who want that
//! ```
//!
//! One Service is the unit of change, of blame and of test. A Service without usable endpoints is a value (frontends
//! with empty sets, which refuse), not the absence of a change.
//!
//! Held by property tests of the same name: `output_ignores_the_order_and_grouping_of_slices`,
//! `every_target_is_a_listed_endpoint`, `no_object_makes_convert_or_compile_panic`.

mod endpoints;
mod entries;
mod frontends;
pub mod maglev;
#[cfg(test)]
mod maglev_tests;
#[cfg(test)]
mod own_address_tests;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use crate::model::{
    ClusterState, Family, Fault, NodeContext, Notice, Reason, Service, ServiceName, ServicePort, Slice,
};

use endpoints::Needs;
use frontends::Addresses;

pub use entries::{Frontend, FrontendKind, Policies, PortEntries, PortKey, Target};

/// Everything one Service gives.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Compiled {
    /// One entry per port and family that has a frontend, sorted by key. Empty for a Service that is not proxied (SEL-4).
    pub ports: Vec<PortEntries>,
    /// What could not be used, of the Service and of its slices.
    pub notices: Vec<Notice>,
}

/// Compiles one Service with the slices it owns, as seen from one node.
///
/// Pure: equal objects give equal results, whatever the order of slices, of endpoints in them and the way endpoints are
/// spread over them.
pub fn compile<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a Slice>,
    node: &NodeContext,
) -> Compiled {
    let slices: Vec<&Slice> = slices.collect();
    let mut notices: Vec<Notice> =
        service.faults.iter().map(|fault| Notice::new(&service.name, fault)).collect();
    let mut ports = Vec::new();
    if service.is_proxied() {
        for family in Family::BOTH {
            let Some(addresses) = Addresses::of(service, family, node, &mut notices) else { continue };
            let from = ports.len();
            ports.extend(service.ports.iter().map(|port| {
                let needs = Needs::of(service, &addresses, port);
                let mut chosen = endpoints::choose(&slices, family, port, needs, node);
                if let Some(fault) = cut([&mut chosen.cluster, &mut chosen.local], port, family) {
                    notices.push(Notice::new(&service.name, &fault));
                }
                PortEntries {
                    key: PortKey {
                        service: service.name.clone(),
                        port: port.name.clone(),
                        protocol: port.protocol,
                        family,
                    },
                    frontends: addresses.frontends(port),
                    cluster: chosen.cluster,
                    local: chosen.local,
                    draining: chosen.draining,
                    policies: Policies {
                        internal_local: needs.internal_local,
                        external_local: needs.external_local,
                        has_any: chosen.has_any,
                        restricted: addresses.restricted,
                        host_allowed: addresses.host_allowed,
                    },
                    ranges: addresses.ranges.clone(),
                    affinity_s: service.affinity_s,
                    algorithm: service.algorithm.unwrap_or_default(),
                }
            }));
            // That of the smallest key, so that the order of ports in the object does not matter.
            if let Some(first) = ports[from..].iter_mut().min_by(|one, other| one.key.cmp(&other.key)) {
                insert(first, addresses.other_ports());
            }
        }
        // All that is left of it on this node is a cluster IP that somebody else serves.
        ports.retain(|port| !port.frontends.is_empty());
        ports.sort_unstable_by(|one, other| one.key.cmp(&other.key));
    }
    notices.extend(
        slices.iter().flat_map(|slice| slice.faults.iter()).map(|fault| Notice::new(&service.name, fault)),
    );
    notices.sort_unstable();
    Compiled { ports, notices }
}

/// Adds a frontend where it belongs.
fn insert(port: &mut PortEntries, frontend: Option<Frontend>) {
    if let Some(frontend) = frontend {
        let at = port.frontends.partition_point(|other| other.at < frontend.at);
        port.frontends.insert(at, frontend);
    }
}

/// Endpoints of one port that can serve in one family: the length of a run has 16 bits, and all of them have a slot of the longest
/// [`maglev`] table too.
pub const MOST_TARGETS: usize = maglev::LONGEST as usize;

/// Cuts sets that are longer than a run can be, and says so.
fn cut(sets: [&mut Vec<Target>; 2], port: &ServicePort, family: Family) -> Option<Fault> {
    let longest = sets.iter().map(|targets| targets.len()).max()?;
    for targets in sets {
        targets.truncate(MOST_TARGETS);
    }
    let left_out = longest.saturating_sub(MOST_TARGETS);
    let field = || format!("spec.ports[{}/{}]", port.port, port.protocol);
    (left_out != 0).then(|| Fault::new(field(), Reason::TooManyEndpoints { family, left_out }))
}

impl ClusterState {
    /// Compiles the Service of that name; nothing if there is none.
    pub fn compile(&self, name: &ServiceName) -> Compiled {
        self.service(name)
            .map(|service| compile(service, self.serving_slices(name), self.node()))
            .unwrap_or_default()
    }
}
