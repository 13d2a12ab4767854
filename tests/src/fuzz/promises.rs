//! What compile promises of every Service, whatever the objects are.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use lb_agent::compile::{Compiled, FrontendKind, PortEntries, Target};
use lb_agent::model::{Family, Protocol, Service, Slice};

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
