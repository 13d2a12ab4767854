//! Who may serve a port: readiness, terminating fallback, Local policy and topology hints.
//!
//! The rules are those of kube-proxy's `CategorizeEndpoints` (`pkg/proxy/topology.go`), EP-1 to EP-8, TP-2 to TP-6.

use core::net::SocketAddr;

use crate::model::{
    Endpoint, Family, NodeContext, Protocol, Service, ServicePort, ServiceType, Slice, TrafficPolicy,
};

use super::{Target, frontends::Addresses};

/// Which sets a service port needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Needs {
    /// Cluster IPs use the local set (SP-4).
    pub(super) internal_local: bool,
    /// External frontends use the local set (SP-3, SP-6).
    pub(super) external_local: bool,
    /// The cluster set is used by somebody (SP-5).
    uses_cluster: bool,
}

impl Needs {
    /// The needs of one port in the family of `addresses`.
    pub(super) fn of(service: &Service, addresses: &Addresses, port: &ServicePort) -> Self {
        // SP-3 looks at the type and at external IPs of any family.
        let policy_counts = match service.kind {
            ServiceType::NodePort | ServiceType::LoadBalancer => true,
            ServiceType::ClusterIp => !service.external_ips.is_empty(),
            ServiceType::ExternalName => false,
        };
        let is_accessible = port.node_port != 0 || addresses.has_external;
        let internal_local = service.internal_policy == TrafficPolicy::Local;
        Self {
            internal_local,
            external_local: policy_counts && is_accessible && service.external_policy == TrafficPolicy::Local,
            uses_cluster: !internal_local || is_accessible,
        }
    }

    const fn uses_local(self) -> bool {
        self.internal_local || self.external_local
    }
}

/// Who serves.
#[derive(PartialEq, Eq, Debug, Default)]
pub(super) struct Chosen {
    /// Sorted, without duplicates.
    pub(super) cluster: Vec<Target>,
    /// Sorted, without duplicates.
    pub(super) local: Vec<Target>,
    /// See [`PortEntries::draining`](super::PortEntries::draining).
    pub(super) draining: Vec<SocketAddr>,
    /// See [`Policies::has_any`](super::Policies::has_any).
    pub(super) has_any: bool,
}

/// What an endpoint's hints say about this node or its zone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Hint {
    /// It has none.
    Absent,
    /// They name others.
    Other,
    /// They name this one.
    Mine,
}

impl Hint {
    fn of<'a>(mut names: impl ExactSizeIterator<Item = &'a str>, mine: Option<&str>) -> Self {
        if names.len() == 0 {
            Self::Absent
        } else if mine.is_some_and(|mine| names.any(|name| name == mine)) {
            Self::Mine
        } else {
            Self::Other
        }
    }
}

/// An endpoint of one port, reduced to what this node asks of it.
///
/// The derived order puts equal addresses side by side and the one that counts first (ES-11): one that is not
/// terminating, then a ready one, then a serving one. The remaining fields only make the order total, so that the choice
/// does not depend on which slice came first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Candidate {
    at: SocketAddr,
    is_terminating: bool,
    is_unready: bool,
    is_failing: bool,
    is_remote: bool,
    node_hint: Hint,
    zone_hint: Hint,
}

impl Candidate {
    fn of(endpoint: &Endpoint<'_>, port: u16, node: &NodeContext) -> Self {
        let conditions = endpoint.conditions();
        Self {
            at: SocketAddr::new(endpoint.addr(), port),
            is_terminating: conditions.is_terminating(),
            is_unready: !conditions.is_ready(),
            is_failing: !conditions.is_serving(),
            is_remote: endpoint.node() != Some(&*node.name),
            node_hint: Hint::of(endpoint.node_hints(), Some(&node.name)),
            zone_hint: Hint::of(endpoint.zone_hints(), node.zone()),
        }
    }

    /// ES-16: a terminating endpoint that is said to be ready counts as ready.
    const fn is_ready(&self) -> bool {
        !self.is_unready
    }

    /// Serving and terminating: the fallback (TE-2, TE-3).
    const fn is_fallback(&self) -> bool {
        self.is_terminating && !self.is_failing
    }

    /// Ready, or serving and terminating: flows that it has may stay (CT-4).
    const fn serves(&self) -> bool {
        self.is_ready() || self.is_fallback()
    }

    const fn is_local(&self) -> bool {
        !self.is_remote
    }

    const fn target(&self) -> Target {
        Target { at: self.at, terminating: self.is_unready, here: self.is_local() }
    }
}

/// How far the endpoints of a port are restricted by their hints. One mode holds for the whole port (TP-5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Topology {
    SameNode,
    SameZone,
    Anywhere,
}

impl Topology {
    /// TP-2 to TP-5.
    fn of(candidates: &[Candidate]) -> Self {
        let ready = || candidates.iter().filter(|candidate| candidate.is_ready());
        let usable = |hint: fn(&Candidate) -> Hint| {
            ready().all(|candidate| hint(candidate) != Hint::Absent)
                && ready().any(|candidate| hint(candidate) == Hint::Mine)
        };
        if usable(|candidate| candidate.node_hint) {
            Self::SameNode
        } else if usable(|candidate| candidate.zone_hint) {
            Self::SameZone
        } else {
            Self::Anywhere
        }
    }

    fn allows(self, candidate: &Candidate) -> bool {
        match self {
            Self::SameNode => candidate.node_hint == Hint::Mine,
            Self::SameZone => candidate.zone_hint == Hint::Mine,
            Self::Anywhere => true,
        }
    }
}

/// Chooses the endpoints of one port in one family (EP-1 to EP-7).
pub(super) fn choose(
    slices: &[&Slice],
    family: Family,
    port: &ServicePort,
    needs: Needs,
    node: &NodeContext,
) -> Chosen {
    let candidates = candidates(slices, family, port, node);
    let mut chosen = Chosen::default();
    if needs.uses_cluster {
        let topology = Topology::of(&candidates);
        chosen.cluster = ready_or_fallback(&candidates, |candidate| topology.allows(candidate), |_| true);
        chosen.has_any = !chosen.cluster.is_empty();
    }
    if needs.uses_local() {
        chosen.local = ready_or_fallback(&candidates, Candidate::is_local, Candidate::is_local);
        chosen.has_any |= candidates.iter().any(Candidate::serves);
    }
    if port.protocol == Protocol::Udp {
        let is_in = |targets: &[Target], at| targets.binary_search_by_key(&at, |target| target.at).is_ok();
        let serving = candidates.iter().filter(|candidate| candidate.serves()).map(|candidate| candidate.at);
        chosen.draining =
            serving.filter(|at| !is_in(&chosen.cluster, *at) && !is_in(&chosen.local, *at)).collect();
    }
    chosen
}

/// The ready candidates that `ready_if` lets through; if there are none, the serving and terminating ones that
/// `fallback_if` lets through. The input order stays.
fn ready_or_fallback(
    candidates: &[Candidate],
    ready_if: impl Fn(&Candidate) -> bool,
    fallback_if: impl Fn(&Candidate) -> bool,
) -> Vec<Target> {
    // Nearly always all of them.
    let mut chosen = Vec::with_capacity(candidates.len());
    let ready = candidates.iter().filter(|candidate| candidate.is_ready() && ready_if(candidate));
    chosen.extend(ready.map(Candidate::target));
    if chosen.is_empty() {
        let fallback =
            candidates.iter().filter(|candidate| candidate.is_fallback() && fallback_if(candidate));
        chosen.extend(fallback.map(Candidate::target));
    }
    chosen
}

/// The endpoints of all slices that have the port (ES-4), sorted, one per address and port (ES-11, ES-12).
fn candidates(slices: &[&Slice], family: Family, port: &ServicePort, node: &NodeContext) -> Vec<Candidate> {
    let mut found = Vec::new();
    for slice in slices.iter().filter(|slice| slice.family == family) {
        for at in slice.ports.iter().filter(|at| at.name == port.name && at.protocol == port.protocol) {
            found.extend(slice.endpoints().map(|endpoint| Candidate::of(&endpoint, at.port, node)));
        }
    }
    found.sort_unstable();
    found.dedup_by_key(|candidate| candidate.at);
    found
}
