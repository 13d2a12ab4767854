//! Which addresses accept traffic for a Service.

use core::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::model::{Family, Fault, NodeContext, Notice, Reason, Service, ServicePort};

use super::{Frontend, FrontendKind};

/// The addresses of one family, without ports.
pub(super) struct Addresses {
    family: Family,
    /// Sorted by address, each once.
    served: Vec<(IpAddr, FrontendKind)>,
    /// There is an external IP or a load-balancer address (SP-2), whether it is served here or not.
    pub(super) has_external: bool,
    /// See [`Policies::restricted`](super::Policies::restricted).
    pub(super) restricted: bool,
    /// See [`Policies::host_allowed`](super::Policies::host_allowed).
    pub(super) host_allowed: bool,
    /// See [`PortEntries::ranges`](super::PortEntries::ranges).
    pub(super) ranges: Vec<IpNet>,
}

impl Addresses {
    /// Collects them. `None` if the Service has no cluster IP of `family`: then the family gets nothing at all (SEL-7), and
    /// each address that is left out for it is named.
    ///
    /// A cluster IP that an interface of this node has is left out: whoever put it there serves it (design.md 3).
    pub(super) fn of(
        service: &Service,
        family: Family,
        node: &NodeContext,
        notices: &mut Vec<Notice>,
    ) -> Option<Self> {
        let in_family = |addr: &&IpAddr| Family::of(addr) == family;
        let external = || service.external_ips.iter().filter(in_family);
        let balanced = || service.load_balancer_ips.iter().filter(in_family);
        let mut report =
            |field: &str, reason| notices.push(Notice::new(&service.name, &Fault::new(field, reason)));

        let Some(cluster_ip) = service.cluster_ips.of(family) else {
            external().for_each(|addr| report("spec.externalIPs", Reason::NoClusterIp(*addr)));
            balanced().for_each(|addr| report("status.loadBalancer.ingress", Reason::NoClusterIp(*addr)));
            return None;
        };
        let mut served = vec![(cluster_ip, FrontendKind::ClusterIp)];
        served.extend(balanced().map(|addr| (*addr, FrontendKind::LoadBalancer)));
        served.extend(external().map(|addr| (*addr, FrontendKind::ExternalIp)));
        // Stable: of an address with two kinds the first stays. A load-balancer address stays one when it is an external
        // IP as well, because its source ranges hold for both (SR-4).
        served.sort_by_key(|(addr, _)| *addr);
        served.dedup_by_key(|(addr, _)| *addr);
        if node.own.contains_key(&cluster_ip) {
            served.retain(|(addr, _)| *addr != cluster_ip);
        }
        let has_external = external().next().is_some() || balanced().next().is_some();

        // Ranges of the other family alone mean no filter for this one (SR-2).
        let in_ranges = |range: &&IpNet| Family::of(&range.addr()) == family;
        let mut ranges: Vec<IpNet> =
            service.source_ranges.iter().filter(in_ranges).map(IpNet::trunc).collect();
        if balanced().next().is_none() {
            ranges.clear();
        }
        ranges.sort_unstable();
        ranges.dedup();
        let restricted = !ranges.is_empty();
        let own = node.primary(family);
        let host_allowed = own.is_some_and(|own| ranges.iter().any(|range| range.contains(&own)));
        Some(Self { family, served, has_external, restricted, host_allowed, ranges })
    }

    /// What becomes of the cluster IP's other ports: once for the whole Service.
    pub(super) fn other_ports(&self) -> Option<Frontend> {
        let cluster_ip = self.served.iter().find(|(_, kind)| *kind == FrontendKind::ClusterIp)?;
        Some(Frontend { at: SocketAddr::new(cluster_ip.0, 0), kind: FrontendKind::OtherPorts })
    }

    /// The frontends of one port: sorted, one per address and port.
    pub(super) fn frontends(&self, port: &ServicePort) -> Vec<Frontend> {
        let node_port = (port.node_port != 0).then(|| Frontend {
            at: SocketAddr::new(self.family.unspecified(), port.node_port),
            kind: FrontendKind::NodePort,
        });
        let served =
            self.served.iter().map(|&(addr, kind)| Frontend { at: SocketAddr::new(addr, port.port), kind });
        // Already sorted: the unspecified address is the smallest of its family.
        node_port.into_iter().chain(served).collect()
    }
}
