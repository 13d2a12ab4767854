//! Small random clusters with as many collisions as possible, and an independent answer to what the maps should mean.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use lb_agent::compile::{Frontend, FrontendKind, Policies, PortEntries, PortKey, Target};
use lb_agent::model::{Algorithm, Family, Protocol, ServiceName};
use lb_agent::reconcile::Desired;
use lb_common::abi::FrontendKey;
use lb_tests::expected;
use lb_tests::invariants::Meant;
use proptest::prelude::*;

/// Number of Services that there can be.
const SERVICES: u8 = 4;

/// A Service port, as small numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Port {
    is_udp: bool,
    number: u16,
    /// NodePort; 0 means none.
    on_nodes: u16,
    /// Bits: which of the endpoints serve, and which of those are about to leave.
    cluster: u8,
    local: u8,
    terminating: u8,
    internal_local: bool,
    external_local: bool,
    affinity_s: u32,
    algorithm: Algorithm,
}

/// A Service, as small numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Service {
    created_s: i64,
    cluster_ip: u8,
    /// Bits: which of the shared external addresses it claims. The last one is another Service's cluster IP.
    external: u8,
    has_v6: bool,
    ports: BTreeMap<&'static str, Port>,
}

/// All Services, by number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct World(BTreeMap<u8, Service>);

fn port() -> impl Strategy<Value = Port> {
    (
        (any::<bool>(), 80_u16..83, prop_oneof![2 => Just(0_u16), 1 => 30_000_u16..30_003]),
        (any::<u8>(), any::<u8>(), any::<u8>()),
        (prop::bool::weighted(0.3), prop::bool::weighted(0.3)),
        (prop_oneof![Just(0_u32), Just(10_800)], prop::sample::select(&Algorithm::ALL[..])),
    )
        .prop_map(|((is_udp, number, on_nodes), sets, (internal_local, external_local), chosen)| {
            let (affinity_s, algorithm) = chosen;
            let (cluster, local, terminating) = sets;
            // Larger tables take a thousand slots: stories and `tables` have them.
            let one = |set: u8| if algorithm == Algorithm::Maglev { set & set.wrapping_neg() } else { set };
            let (cluster, local) = (one(cluster & 0x3f), one(local & 0x3f));
            // A third of all endpoints is about to leave.
            let terminating = terminating & sets.0.rotate_left(3);
            Port {
                is_udp,
                number,
                on_nodes,
                cluster,
                local,
                terminating,
                internal_local,
                external_local,
                affinity_s,
                algorithm,
            }
        })
}

fn service() -> impl Strategy<Value = Service> {
    let ports = prop::collection::btree_map(prop::sample::select(vec!["a", "b", "c"]), port(), 1..4);
    (0_i64..4, 0_u8..2, 0_u8..8, prop::bool::weighted(0.3), ports).prop_map(
        |(created_s, cluster_ip, external, has_v6, mut ports)| {
            // The API server refuses two ports of one number, or of one node port, with one protocol.
            let mut numbers = BTreeSet::new();
            ports.retain(|_, port| numbers.insert((port.is_udp, port.number)));
            let mut node_ports = BTreeSet::new();
            for port in ports.values_mut() {
                if !node_ports.insert((port.is_udp, port.on_nodes)) {
                    port.on_nodes = 0;
                }
            }
            Service { created_s, cluster_ip, external, has_v6, ports }
        },
    )
}

/// A cluster.
pub(crate) fn world() -> impl Strategy<Value = World> {
    prop::collection::btree_map(0..SERVICES, service(), 0..usize::from(SERVICES) + 1).prop_map(World)
}

/// A cluster and how it changes: most Services stay as they are from one state to the next.
pub(crate) fn history(states: core::ops::Range<usize>) -> impl Strategy<Value = Vec<World>> {
    let change = (0..SERVICES, prop::option::weighted(0.75, service()));
    let changes = prop::collection::vec(change, 1..4);
    (world(), prop::collection::vec(changes, states)).prop_map(|(first, steps)| {
        let mut states = vec![first];
        for changes in steps {
            let mut next = states.last().cloned().unwrap_or_else(|| World(BTreeMap::new()));
            for (number, service) in changes {
                match service {
                    Some(service) => next.0.insert(number, service),
                    None => next.0.remove(&number),
                };
            }
            states.push(next);
        }
        states
    })
}

impl World {
    /// Nothing at all.
    pub(crate) const EMPTY: Self = Self(BTreeMap::new());

    /// This world, with every other Service as `other` has it.
    pub(crate) fn mixed_with(&self, other: &Self) -> Self {
        let mut mixed = self.clone();
        for number in (0..SERVICES).step_by(2) {
            match other.0.get(&number) {
                Some(service) => mixed.0.insert(number, service.clone()),
                None => mixed.0.remove(&number),
            };
        }
        mixed
    }

    /// The Services as compile would give them.
    pub(crate) fn desired(&self) -> Vec<Desired> {
        self.0.iter().map(|(number, service)| service.desired(*number)).collect()
    }

    /// What the maps should mean: every frontend belongs to the oldest Service that wants it.
    pub(crate) fn meaning(&self) -> BTreeMap<FrontendKey, Meant> {
        expected::meaning(&self.desired())
    }

    /// Whose a frontend should be.
    pub(crate) fn owner(&self, key: &FrontendKey) -> Option<ServiceName> {
        expected::owners(&self.desired()).remove(key).map(|(entries, _)| entries.key.service.clone())
    }

    /// Whether the owner of a frontend wants it no longer in `after`, or was deleted and made again.
    pub(crate) fn gives_up(&self, key: &FrontendKey, after: &Self) -> bool {
        let Some(owner) = self.owner(key) else { return false };
        let age = |world: &Self| world.0.iter().find(|(n, _)| name(**n) == owner).map(|(_, s)| s.created_s);
        age(self) != age(after) || !after.wants(&owner, key)
    }

    /// Whether a Service wants a frontend, whoever has it.
    fn wants(&self, service: &ServiceName, key: &FrontendKey) -> bool {
        let mut only = self.clone();
        only.0.retain(|number, _| name(*number) == *service);
        only.owner(key).is_some()
    }
}

fn name(number: u8) -> ServiceName {
    ServiceName::new("ns", &format!("s{number}"))
}

impl Service {
    fn desired(&self, number: u8) -> Desired {
        let name = name(number);
        let mut ports: Vec<PortEntries> = Vec::new();
        for family in Family::BOTH {
            if family == Family::V6 && !self.has_v6 {
                continue;
            }
            for (at, (port_name, port)) in self.ports.iter().enumerate() {
                let others = (at == 0).then(|| Frontend {
                    at: SocketAddr::new(self.cluster_ip(number, family), 0),
                    kind: FrontendKind::OtherPorts,
                });
                ports.push(PortEntries {
                    key: PortKey {
                        service: name.clone(),
                        port: (*port_name).into(),
                        protocol: if port.is_udp { Protocol::Udp } else { Protocol::Tcp },
                        family,
                    },
                    frontends: others.into_iter().chain(self.frontends(number, port, family)).collect(),
                    cluster: port.targets(port.cluster, family),
                    local: port.targets(port.local, family),
                    draining: port.draining(family),
                    policies: Policies {
                        internal_local: port.internal_local,
                        external_local: port.external_local,
                        has_any: port.cluster != 0,
                        restricted: port.terminating & 1 != 0 && port.terminating & 0xe != 0,
                        host_allowed: false,
                    },
                    ranges: port.ranges(family),
                    affinity_s: port.affinity_s,
                    algorithm: port.algorithm,
                });
            }
        }
        ports.sort_by(|one, other| one.key.cmp(&other.key));
        Desired { name, created_s: self.created_s, ports }
    }

    fn cluster_ip(&self, number: u8, family: Family) -> IpAddr {
        addr(family, [10, 96, self.cluster_ip, number])
    }

    fn frontends(&self, number: u8, port: &Port, family: Family) -> Vec<Frontend> {
        let cluster_ip = self.cluster_ip(number, family);
        let mut served = vec![(cluster_ip, FrontendKind::ClusterIp)];
        let external = [[192, 0, 2, 1], [192, 0, 2, 2], [10, 96, 0, 0]];
        for (bit, octets) in external.into_iter().enumerate() {
            if self.external & (1 << bit) != 0 && addr(family, octets) != cluster_ip {
                served.push((addr(family, octets), FrontendKind::ExternalIp));
            }
        }
        served.sort();
        let node_port = (port.on_nodes != 0).then(|| Frontend {
            at: SocketAddr::new(family.unspecified(), port.on_nodes),
            kind: FrontendKind::NodePort,
        });
        let served =
            served.into_iter().map(|(addr, kind)| Frontend { at: SocketAddr::new(addr, port.number), kind });
        node_port.into_iter().chain(served).collect()
    }
}

impl Port {
    /// Of UDP ports: half of those that are in no set.
    fn draining(&self, family: Family) -> Vec<SocketAddr> {
        let bits = if self.is_udp { !self.cluster & !self.local & 0x55 } else { 0 };
        self.targets(bits, family).into_iter().map(|target| target.at).collect()
    }

    /// Up to three source ranges.
    fn ranges(&self, family: Family) -> Vec<IpNet> {
        let bits = if self.terminating & 1 != 0 { self.terminating >> 1 & 7 } else { 0 };
        let range = |bit: u8| {
            let addr = addr(family, [198, 51, bit, 0]);
            IpNet::new(addr, if addr.is_ipv4() { 24 } else { 112 }).unwrap().trunc()
        };
        let mut ranges: Vec<IpNet> = (0..3).filter(|bit| bits & (1 << bit) != 0).map(range).collect();
        ranges.sort_unstable();
        ranges.dedup();
        ranges
    }

    fn targets(&self, bits: u8, family: Family) -> Vec<Target> {
        (0..8_u8)
            .filter(|bit| bits & (1 << bit) != 0)
            .map(|bit| Target {
                at: SocketAddr::new(addr(family, [10, 1, 0, bit]), 8080),
                terminating: self.terminating & (1 << bit) != 0,
                here: bit & 2 != 0,
            })
            .collect()
    }
}

fn addr(family: Family, [a, b, c, d]: [u8; 4]) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([a, b, c, d]),
        Family::V6 => IpAddr::from([0xfd00, u16::from(a), u16::from(b), 0, 0, 0, u16::from(c), u16::from(d)]),
    }
}
