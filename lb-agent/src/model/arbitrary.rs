//! Random objects for property tests: few names and addresses, so that they meet often.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::{
    Algorithm, ClusterIps, Conditions, EndpointFacts, Family, Name, Node, Protocol, Service, ServiceName,
    ServicePort, ServiceType, Slice, SliceBuilder, SliceName, SlicePort, TrafficPolicy,
};

/// The node that the tests run on.
pub(crate) const OWN_NODE: &str = "n1";

/// One of three services in two namespaces.
pub(crate) fn service_name() -> impl Strategy<Value = ServiceName> {
    select(&[("blue", "db"), ("blue", "web"), ("red", "web")][..])
        .prop_map(|(namespace, name)| ServiceName::new(namespace, name))
}

/// One of eight slices in two namespaces.
pub(crate) fn slice_name() -> impl Strategy<Value = SliceName> {
    (select(&["blue", "red"][..]), 0..4)
        .prop_map(|(namespace, n)| SliceName::new(namespace, &format!("slice-{n}")))
}

fn name(choices: &'static [&'static str]) -> impl Strategy<Value = Name> {
    select(choices).prop_map(Name::from)
}

fn protocol() -> impl Strategy<Value = Protocol> {
    select(&[Protocol::Tcp, Protocol::Udp, Protocol::Sctp][..])
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    select(&[TrafficPolicy::Cluster, TrafficPolicy::Local][..])
}

/// Ports that differ in name and number, as conversion guarantees.
fn service_ports() -> impl Strategy<Value = Box<[ServicePort]>> {
    vec((protocol(), option::of(30_000..30_004_u16)), 0..3).prop_map(|ports| {
        let names = ["", "dns", "http"];
        let mut taken = Vec::new();
        ports
            .into_iter()
            .zip(names)
            .zip(80..)
            .map(|(((protocol, node_port), name), port)| {
                let node_port = node_port.filter(|port| !taken.contains(&(protocol, *port))).unwrap_or(0);
                taken.push((protocol, node_port));
                ServicePort { name: name.into(), protocol, port, node_port }
            })
            .collect()
    })
}

/// An address of `family` out of five.
pub(crate) fn addr(family: Family) -> impl Strategy<Value = IpAddr> {
    (1..6_u8).prop_map(move |last| match family {
        Family::V4 => IpAddr::from([10, 0, 0, last]),
        Family::V6 => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)]),
    })
}

/// IPv4 or IPv6.
pub(crate) fn family() -> impl Strategy<Value = Family> {
    select(&Family::BOTH[..])
}

/// A Service with any mixture of fields.
pub(crate) fn service() -> impl Strategy<Value = Service> {
    let any_addr = || family().prop_flat_map(addr);
    let kind = select(
        &[
            ServiceType::ClusterIp,
            ServiceType::NodePort,
            ServiceType::LoadBalancer,
            ServiceType::ExternalName,
        ][..],
    );
    let cluster_ips = (option::of(1..4_u8), option::of(1..4_u16)).prop_map(|(v4, v6)| ClusterIps {
        v4: v4.map(|last| Ipv4Addr::new(10, 96, 0, last)),
        v6: v6.map(|last| Ipv6Addr::new(0xfd00, 96, 0, 0, 0, 0, 0, last)),
    });
    let lists = (vec(any_addr(), 0..3), vec(any_addr(), 0..3), vec(any_addr(), 0..2));
    let algorithm = option::of(select(&Algorithm::ALL[..]));
    let scalars = (policy(), policy(), 0..3_u32, algorithm, 0..5_i64);
    (service_name(), kind, cluster_ips, service_ports(), lists, scalars).prop_map(
        |(
            name,
            kind,
            cluster_ips,
            ports,
            lists,
            (internal_policy, external_policy, affinity_s, algorithm, created_s),
        )| {
            let (external_ips, load_balancer_ips, ranges) = lists;
            Service {
                created_s,
                kind,
                cluster_ips,
                external_ips: external_ips.into(),
                load_balancer_ips: load_balancer_ips.into(),
                source_ranges: ranges.into_iter().map(Into::into).collect(),
                ports,
                affinity_s,
                algorithm,
                internal_policy,
                external_policy,
                ..Service::new(name)
            }
        },
    )
}

/// An endpoint of `family`.
pub(crate) fn endpoint(family: Family) -> impl Strategy<Value = EndpointFacts> {
    let flag = || option::of(any::<bool>());
    let conditions = (flag(), flag(), flag())
        .prop_map(|(ready, serving, terminating)| Conditions::new(ready, serving, terminating));
    let node = option::of(name(&["n1", "n2"]));
    let zones = prop_oneof![2 => Just(vec![]), 5 => vec(name(&["a", "b"]), 1..3)];
    let nodes = prop_oneof![2 => Just(vec![]), 2 => vec(name(&["n1", "n2"]), 1..3)];
    (addr(family), conditions, node, zones, nodes).prop_map(
        |(addr, conditions, node, zone_hints, node_hints)| EndpointFacts {
            addr,
            conditions,
            node,
            zone_hints,
            node_hints,
        },
    )
}

/// A port of a slice; the names are those of [`service`].
pub(crate) fn slice_port() -> impl Strategy<Value = SlicePort> {
    (name(&["", "dns", "http"]), protocol(), 8080..8083_u16).prop_map(|(name, protocol, port)| SlicePort {
        name,
        protocol,
        port,
    })
}

/// A slice of any owner in its namespace.
pub(crate) fn slice() -> impl Strategy<Value = Slice> {
    let content = family().prop_flat_map(|family| (Just(family), vec(endpoint(family), 0..6)));
    (slice_name(), select(&["db", "web"][..]), vec(slice_port(), 0..3), content).prop_map(
        |(name, owner, ports, (family, endpoints))| {
            let service = ServiceName { namespace: name.namespace.clone(), name: owner.into() };
            build(name, service, family, &ports, &endpoints)
        },
    )
}

/// A slice of the given content.
pub(crate) fn build(
    name: SliceName,
    service: ServiceName,
    family: Family,
    ports: &[SlicePort],
    endpoints: &[EndpointFacts],
) -> Slice {
    let mut builder = SliceBuilder::new(name, service, family);
    builder.ports(ports);
    for endpoint in endpoints {
        builder.endpoint(endpoint);
    }
    builder.build()
}

/// The own node or another one.
pub(crate) fn node() -> impl Strategy<Value = Node> {
    let addresses = vec(addr(Family::V4), 0..2).prop_map(Into::into);
    (name(&[OWN_NODE, OWN_NODE, "n2"]), option::of(name(&["a", "b"])), addresses)
        .prop_map(|(name, zone, addresses)| Node { zone, addresses, ..Node::new(name.as_str().into()) })
}
