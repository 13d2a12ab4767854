//! What compiling one service gives: entries keyed by meaning, without ids and without byte order.

use core::net::SocketAddr;

use ipnet::IpNet;

use super::maglev;
use crate::model::{Algorithm, Family, Name, Protocol, ServiceName};

/// Identity of a service port in one family (SEL-8): renumbering a port is an update, renaming it is delete + add.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortKey {
    /// The Service.
    pub service: ServiceName,
    /// Name of the port; empty for a single unnamed port.
    pub port: Name,
    /// Protocol of the port.
    pub protocol: Protocol,
    /// Family of the frontends and the backends.
    pub family: Family,
}

/// Why an address accepts traffic for a service port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// `spec.externalIPs`.
    ExternalIp,
    /// `status.loadBalancer.ingress[].ip` with ipMode VIP (LB-1).
    LoadBalancer,
    /// `nodePort` on every address of this node; the address of the entry is unspecified.
    NodePort,
    /// Every other port and protocol of a cluster IP, where connections are refused (2.7); the port of the entry is 0. One
    /// port of the Service has it, whichever.
    OtherPorts,
}

/// An address and port that accepts traffic.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Frontend {
    /// Address and port, host byte order. [`FrontendKind::NodePort`] has the unspecified address of the family.
    pub at: SocketAddr,
    /// Why.
    pub kind: FrontendKind,
}

/// An endpoint that may serve, as the maps need it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Target {
    /// Address and port of the endpoint, host byte order.
    pub at: SocketAddr,
    /// Serving while terminating: it is in a set only because nothing else is (TE-2).
    pub terminating: bool,
    /// It is on this node: what it sends passes here.
    pub here: bool,
}

/// Which set serves which frontends, and what an empty one means.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Policies {
    /// [`FrontendKind::ClusterIp`] uses `local`, all clients alike (EP-8).
    pub internal_local: bool,
    /// The other kinds use `local` for clients that are neither pods nor processes of this node; those use `cluster`
    /// (EP-8, MQ-4).
    pub external_local: bool,
    /// Some endpoint on some node may serve. Where the chosen set is empty: drop if true, refuse if false (2.7, NE-2).
    pub has_any: bool,
    /// Load-balancer addresses are for clients in the source ranges only (SR-1, SR-2).
    pub restricted: bool,
    /// This node's own address is in one of those ranges (SR-3).
    pub host_allowed: bool,
}

/// Everything that one service port of one family needs in the maps. Equal input gives equal bytes on every node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortEntries {
    /// Which service port this is.
    pub key: PortKey,
    /// Sorted, one per address and port, never empty.
    pub frontends: Vec<Frontend>,
    /// Who serves connections of Cluster policy: sorted, without duplicates. Empty if no frontend uses it (SP-5), which is
    /// so only where `policies.internal_local` holds for every frontend.
    pub cluster: Vec<Target>,
    /// Who serves connections of Local policy: sorted, without duplicates. Empty if no frontend uses it (SP-6).
    pub local: Vec<Target>,
    /// Who serves and is in neither set, of a UDP port: flows that they have stay with them (CT-4). Sorted.
    pub draining: Vec<SocketAddr>,
    /// Which frontends use which set.
    pub policies: Policies,
    /// The source ranges of this family if `policies.restricted`: sorted, without duplicates.
    pub ranges: Vec<IpNet>,
    /// `ClientIP` affinity: seconds, 1..=86400; 0 means none.
    pub affinity_s: u32,
    /// How a backend is chosen.
    pub algorithm: Algorithm,
}

impl PortEntries {
    /// Which of `targets`, one of the sets of this port, each slot of their run has; nothing if each has one slot, in their order.
    pub fn table(&self, targets: &[Target]) -> Option<Vec<u16>> {
        (self.algorithm == Algorithm::Maglev).then(|| maglev::table(targets))
    }

    /// How many slots their run has.
    pub fn run_length(&self, targets: &[Target]) -> usize {
        match self.algorithm {
            Algorithm::Maglev => maglev::size(targets.len()),
            Algorithm::Random | Algorithm::RoundRobin => targets.len(),
        }
    }
}
