//! What compile promises of every Service, whatever the objects are.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use lb_agent::compile::{Compiled, FrontendKind, PortEntries, Target, compile};
use lb_agent::model::{
    ClusterState, Endpoint, EndpointFacts, Family, Protocol, Service, ServiceName, Slice, SliceBuilder,
};

/// Panics if a promise of [`PortEntries`] is broken.
pub(super) fn check<'a>(service: &Service, slices: impl Iterator<Item = &'a Slice>, compiled: &Compiled) {
    let slices: Vec<&Slice> = slices.collect();
    assert!(service.is_proxied() || compiled.ports.is_empty(), "SEL-4");
    assert!(compiled.ports.is_sorted_by(|one, next| one.key < next.key), "sorted, without duplicates");
    for entries in &compiled.ports {
        frontends(service, entries);
        endpoints(entries, &listed(entries, &slices));
        assert!(entries.affinity_s <= 86_400, "SP-9");
    }
    assert!(compiled.notices.is_sorted());
    for notice in &compiled.notices {
        let said = notice.to_string();
        assert!(said.starts_with("service ") && said.contains("; "), "a problem and a remedy: {said}");
    }
}

fn frontends(service: &Service, entries: &PortEntries) {
    let family = entries.key.family;
    assert!(service.cluster_ips.of(family).is_some(), "SEL-7");
    assert!(!entries.frontends.is_empty());
    assert!(
        entries.frontends.is_sorted_by(|one, next| one.at < next.at),
        "sorted, one per address and port: {:?}",
        entries.frontends
    );
    for frontend in &entries.frontends {
        assert_eq!(Family::of(&frontend.at.ip()), family, "SEL-6");
        assert_eq!(frontend.at.port() == 0, frontend.kind == FrontendKind::OtherPorts);
        assert_eq!(frontend.at.ip().is_unspecified(), frontend.kind == FrontendKind::NodePort);
    }
}

fn endpoints(entries: &PortEntries, listed: &BTreeSet<SocketAddr>) {
    let sets: [&[Target]; 2] = [&entries.cluster, &entries.local];
    for set in sets {
        assert!(set.is_sorted_by(|one, next| one.at < next.at), "sorted, without duplicates");
        assert!(entries.policies.has_any || set.is_empty(), "NE-2");
        for target in set {
            assert!(listed.contains(&target.at), "{target:?} is no endpoint");
        }
        let terminating = set.iter().filter(|target| target.terminating).count();
        assert!(terminating == 0 || terminating == set.len(), "TE-2");
    }
    assert!(entries.draining.is_empty() || entries.key.protocol == Protocol::Udp, "CT-4");
    assert!(entries.draining.is_sorted_by(|one, next| one < next));
    for at in &entries.draining {
        assert!(listed.contains(at), "{at} is no endpoint");
        assert!(sets.into_iter().flatten().all(|target| target.at != *at), "{at} serves, it does not drain");
    }
}

/// The endpoints that slices of the family list under name and protocol of the port (ES-4).
fn listed(entries: &PortEntries, slices: &[&Slice]) -> BTreeSet<SocketAddr> {
    let key = &entries.key;
    let mut listed = BTreeSet::new();
    for slice in slices.iter().filter(|slice| slice.family == key.family) {
        let meant = slice.ports.iter().filter(|port| port.name == key.port && port.protocol == key.protocol);
        for port in meant {
            listed.extend(slice.endpoints().map(|endpoint| SocketAddr::new(endpoint.addr(), port.port)));
        }
    }
    listed
}

/// Panics if the endpoints come to something else in other slices and in another order (ES-12, ES-14).
pub(super) fn check_grouping(state: &ClusterState, name: &ServiceName) {
    let Some(service) = state.service(name) else { return };
    let mut slices: Vec<Slice> = state.serving_slices(name).flat_map(halves).collect();
    slices.reverse();
    assert_eq!(compile(service, slices.iter(), state.node()), state.compile(name), "{name}");
}

/// Every second endpoint of a slice and the rest, the last ones first.
fn halves(slice: &Slice) -> [Slice; 2] {
    let empty = || {
        let mut half = SliceBuilder::new(slice.name.clone(), slice.service.clone(), slice.family);
        half.ports(slice.ports.clone());
        half
    };
    let mut halves = [empty(), empty()];
    let endpoints: Vec<Endpoint<'_>> = slice.endpoints().collect();
    for (at, endpoint) in endpoints.iter().enumerate().rev() {
        halves[at % 2].endpoint(&facts(endpoint));
    }
    halves[0].faults(slice.faults.clone());
    halves.map(SliceBuilder::build)
}

fn facts(endpoint: &Endpoint<'_>) -> EndpointFacts {
    EndpointFacts {
        addr: endpoint.addr(),
        conditions: endpoint.conditions(),
        node: endpoint.node().map(Into::into),
        zone_hints: endpoint.zone_hints().map(Into::into).collect(),
        node_hints: endpoint.node_hints().map(Into::into).collect(),
    }
}
