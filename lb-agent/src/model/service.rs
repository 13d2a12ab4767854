//! A Service, reduced to what decides where traffic goes (SP-1).

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::FromStr;

use ipnet::IpNet;

use super::{Fault, Few, Name, ServiceName};

/// Address family of one side of a dual-stack Service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, IPv4 first.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address. Sources turn IPv4-mapped IPv6 addresses into IPv4 before they get here.
    pub const fn of(addr: &IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The all-zero address of the family.
    pub const fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Transport protocol of a port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Protocol {
    /// TCP, and MPTCP above it.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// `spec.type`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ServiceType {
    /// Reached by its cluster IP, and by external IPs if there are any.
    ClusterIp,
    /// The same, and by a port of every node.
    NodePort,
    /// The same, and by addresses that a load balancer put into the status.
    LoadBalancer,
    /// A DNS name; never proxied, even with a left-over cluster IP (SEL-4).
    ExternalName,
}

/// `spec.internalTrafficPolicy` or `spec.externalTrafficPolicy`, as written.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TrafficPolicy {
    /// Any endpoint may serve.
    Cluster,
    /// Only endpoints on the node that the traffic reaches first.
    Local,
}

/// How the backend of a new connection is chosen. Session affinity comes first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Algorithm {
    /// Uniformly at random (SA-10).
    #[default]
    Random,
    /// By a hash of both ends that all nodes agree on, see [`crate::compile::maglev`]. Sockets choose at random: connect() comes
    /// before the choice of a source port.
    Maglev,
    /// In turn, on each CPU for itself.
    RoundRobin,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Random, Self::Maglev, Self::RoundRobin];

    /// The word for it, in the annotation and at the flag.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Maglev => "maglev",
            Self::RoundRobin => "round-robin",
        }
    }
}

/// The annotation of a Service that says one of [`Algorithm::word`].
pub const ALGORITHM: &str = "lb.io/algorithm";

/// A word that is none of [`Algorithm::word`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownAlgorithm;

impl fmt::Display for UnknownAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected one of {}", Algorithm::ALL.map(Algorithm::word).join(", "))
    }
}

impl core::error::Error for UnknownAlgorithm {}

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|algorithm| algorithm.word() == word).ok_or(UnknownAlgorithm)
    }
}

/// At most one cluster IP per family. A family without one is not served at all (SEL-7).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ClusterIps {
    /// The IPv4 one.
    pub v4: Option<Ipv4Addr>,
    /// The IPv6 one.
    pub v6: Option<Ipv6Addr>,
}

impl ClusterIps {
    /// The cluster IP of `family`.
    pub fn of(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4.map(IpAddr::V4),
            Family::V6 => self.v6.map(IpAddr::V6),
        }
    }

    /// All of them, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        Family::BOTH.into_iter().filter_map(|family| self.of(family))
    }

    /// Headless, or not allocated yet: nothing is proxied (SEL-4).
    pub const fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }
}

/// One entry of `spec.ports`. `targetPort` is not here: the number comes from the slice (SP-11).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ServicePort {
    /// Name; empty for a single unnamed port. Matches the slice port of the same name and protocol (ES-4).
    pub name: Name,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the cluster IP, external IPs and load-balancer addresses, host byte order, never 0.
    pub port: u16,
    /// Port of every node, host byte order; 0 means none (NP-14).
    pub node_port: u16,
}

/// A Service. Nothing here is checked against other services.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Namespace and name.
    pub name: ServiceName,
    /// `metadata.creationTimestamp`, seconds since 1970; `i64::MAX` when absent. The oldest Service wins a contested
    /// frontend, then the smallest name (LB-8).
    pub created_s: i64,
    /// `spec.type`.
    pub kind: ServiceType,
    /// `spec.clusterIPs` of the families in `spec.ipFamilies`, one for each (SEL-6).
    pub cluster_ips: ClusterIps,
    /// `spec.externalIPs`, both families.
    pub external_ips: Few<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` with ipMode VIP or none (LB-1), both families.
    pub load_balancer_ips: Few<IpAddr>,
    /// `spec.loadBalancerSourceRanges`, both families.
    pub source_ranges: Few<IpNet>,
    /// `spec.ports` that can be used, in the order of the object. No two have the same protocol and the same name, number or
    /// node port.
    pub ports: Box<[ServicePort]>,
    /// `ClientIP` affinity: seconds, 1..=86400; 0 means none (SP-9).
    pub affinity_s: u32,
    /// The annotation [`ALGORITHM`]; nothing if it is absent or not known: the node's default then counts.
    pub algorithm: Option<Algorithm>,
    /// `spec.internalTrafficPolicy`; Cluster when absent (SP-4).
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`; Cluster when absent. Whether it counts is SP-3.
    pub external_policy: TrafficPolicy,
    /// `spec.healthCheckNodePort`, host byte order; 0 means none.
    pub health_check_node_port: u16,
    /// Fields of the object that could not be used.
    pub faults: Few<Fault>,
}

impl Service {
    /// A Service without addresses and ports: proxied nowhere.
    pub fn new(name: ServiceName) -> Self {
        Self {
            name,
            created_s: i64::MAX,
            kind: ServiceType::ClusterIp,
            cluster_ips: ClusterIps::default(),
            external_ips: Few::default(),
            load_balancer_ips: Few::default(),
            source_ranges: Few::default(),
            ports: Box::default(),
            affinity_s: 0,
            algorithm: None,
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            health_check_node_port: 0,
            faults: Few::default(),
        }
    }

    /// Whether a service proxy has to do with it at all (SEL-4).
    pub fn is_proxied(&self) -> bool {
        self.kind != ServiceType::ExternalName && !self.cluster_ips.is_empty()
    }
}
