//! What the maps should mean, worked out from what is desired without anything of the reconciler.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use lb_agent::compile::{FrontendKind, Policies, PortEntries, Target};
use lb_agent::model::{Algorithm, Protocol};
use lb_agent::reconcile::Desired;
use lb_common::abi::{self, Addr, Backend, FrontendKey, L4Addr, Proto, RangePrefix, ServiceFlags, ServiceId};

use crate::invariants::{Meant, Seat};

/// What every frontend should be: each belongs to the oldest Service that wants it (LB-8).
pub fn meaning(desired: &[Desired]) -> BTreeMap<FrontendKey, Meant> {
    owners(desired).into_iter().map(|(key, (entries, kind))| (key, meant(entries, kind))).collect()
}

/// Whose every frontend should be, and why.
pub fn owners(desired: &[Desired]) -> BTreeMap<FrontendKey, (&PortEntries, FrontendKind)> {
    let mut by_age: Vec<&Desired> = desired.iter().collect();
    by_age.sort_by_key(|service| (service.created_s, &service.name));
    let ports = || by_age.iter().flat_map(|service| &service.ports);
    let (mut owners, mut served) = (BTreeMap::new(), BTreeSet::new());
    for entries in ports() {
        for frontend in entries.frontends.iter().filter(|frontend| frontend.kind != FrontendKind::OtherPorts)
        {
            let key = FrontendKey::new(L4Addr::from(frontend.at), proto(entries.key.protocol));
            owners.entry(key).or_insert_with(|| {
                served.insert((&entries.key.service, entries.key.family));
                (entries, frontend.kind)
            });
        }
    }
    // Who has nothing else of a family does not have the other ports either.
    for entries in ports().filter(|entries| served.contains(&(&entries.key.service, entries.key.family))) {
        for frontend in entries.frontends.iter().filter(|frontend| frontend.kind == FrontendKind::OtherPorts)
        {
            let key = FrontendKey::other_ports(L4Addr::from(frontend.at).addr);
            owners.entry(key).or_insert((entries, frontend.kind));
        }
    }
    owners
}

const fn proto(protocol: Protocol) -> Proto {
    match protocol {
        Protocol::Tcp => Proto::TCP,
        Protocol::Udp => Proto::UDP,
        Protocol::Sctp => Proto::SCTP,
    }
}

fn meant(entries: &PortEntries, kind: FrontendKind) -> Meant {
    if kind == FrontendKind::OtherPorts {
        return Meant::REFUSED;
    }
    let Policies { internal_local, external_local, restricted, host_allowed, .. } = entries.policies;
    let internal = [FrontendKind::ClusterIp, FrontendKind::OtherPorts];
    let has_external = entries.frontends.iter().any(|frontend| !internal.contains(&frontend.kind));
    let uses_cluster = !internal_local || has_external;
    let uses_local = internal_local || (external_local && has_external);
    let cluster: &[Target] = if uses_cluster { &entries.cluster } else { &[] };
    let local: &[Target] = if uses_local { &entries.local } else { &[] };
    // Both are sorted.
    let lists = |targets: &[Target], at| targets.binary_search_by_key(&at, |target| target.at).is_ok();
    let seats = |targets: &[Target]| {
        let listed = match entries.table(targets) {
            Some(table) => table.into_iter().map(|index| targets[usize::from(index)]).collect(),
            None => targets.to_vec(),
        };
        listed
            .iter()
            .map(|target| {
                let in_cluster = if lists(cluster, target.at) { Backend::IN_CLUSTER } else { 0 };
                let in_local = if lists(local, target.at) { Backend::IN_LOCAL } else { 0 };
                let here = if target.here { Backend::HERE } else { 0 };
                Seat {
                    at: target.at.into(),
                    terminating: target.terminating,
                    runs: in_cluster | in_local | here,
                }
            })
            .collect::<Vec<_>>()
    };
    Meant {
        kind: match kind {
            FrontendKind::ClusterIp => abi::FrontendKind::ClusterIp,
            FrontendKind::ExternalIp => abi::FrontendKind::ExternalIp,
            FrontendKind::LoadBalancer => abi::FrontendKind::LoadBalancer,
            FrontendKind::NodePort => abi::FrontendKind::NodePort,
            FrontendKind::OtherPorts => abi::FrontendKind::OtherPorts,
        } as u8,
        // The run that is not used repeats the other one.
        cluster: seats(if uses_cluster { cluster } else { local }),
        local: seats(if uses_local { local } else { cluster }),
        elsewhere: uses_local && local.is_empty() && entries.policies.has_any,
        flags: ServiceFlags {
            bits: u32::from(internal_local)
                | u32::from(restricted) << 1
                | u32::from(host_allowed) << 2
                | u32::from(external_local) << 3
                | match entries.algorithm {
                    Algorithm::Random => 0,
                    Algorithm::RoundRobin => 16,
                    Algorithm::Maglev => 32,
                },
        },
        affinity_s: entries.affinity_s,
        ranges: ranges(&entries.ranges),
    }
}

fn ranges(ranges: &[IpNet]) -> Vec<RangePrefix> {
    let id = ServiceId { index: 0 };
    let mut all: Vec<RangePrefix> = ranges
        .iter()
        .map(|range| RangePrefix::new(id, Addr::from(range.network()), range.prefix_len()))
        .collect();
    all.sort_unstable();
    all
}
