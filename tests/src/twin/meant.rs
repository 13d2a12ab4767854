//! Where the nodes are meant to differ.
//!
//! An entry that a whole soak has not met is wrong or out of date, and fails it.

use std::net::{IpAddr, Ipv4Addr};

use super::compare::{Aspect, Difference, Failure};
use super::model::NODE_IPS;
use super::nodes::{Client, DetectLocal};
use super::targets::{How, Place};

/// A difference that does not fail a seed.
pub(super) struct Entry {
    pub(super) rule: &'static str,
    pub(super) reason: &'static str,
    /// None: under both.
    pub(super) detect: Option<DetectLocal>,
    matches: fn(&Difference<'_>) -> bool,
}

impl Entry {
    pub(super) fn is_met_by(&self, difference: &Difference<'_>) -> bool {
        self.detect.is_none_or(|detect| detect == difference.detect) && (self.matches)(difference)
    }
}

/// All of them.
pub(super) const ENTRIES: &[Entry] = &[
    Entry {
        rule: "NP-4",
        reason: "NodePorts at loopback addresses are served to sockets of the node; kube-proxy's nftables mode has none",
        detect: None,
        matches: |it| {
            it.aspect == Aspect::Answer
                && it.question.target.place == Place::LocalNodePort
                && it.port.is_some()
                && it.kube_proxy.backends.is_empty()
        },
    },
    Entry {
        rule: "NE-7",
        reason: "sendto() of an unconnected socket is told at once; under kube-proxy only a socket that asks for errors hears of it",
        detect: None,
        matches: |it| {
            it.aspect == Aspect::Answer
                && it.question.target.how == How::Datagram
                && it.kube_proxy.is_only(&Failure::Silent)
                && it.agent.is_only(&Failure::Refused)
        },
    },
    Entry {
        rule: "MQ-2",
        reason: "without a range of pods kube-proxy masquerades nobody at cluster IPs: a client outside that is a backend's neighbour \
                 is answered past the node",
        detect: Some(DetectLocal::Off),
        matches: |it| {
            it.question.client == Client::Outside
                && it.question.target.place == Place::ClusterIp
                && it.port.is_some()
                && it.agent.is_served()
                && has_mixed_sources(it)
        },
    },
    Entry {
        rule: "MQ-2",
        reason: "who is answered by way of the node keeps its own address at cluster IPs, as at other addresses",
        detect: Some(DetectLocal::ByRange),
        matches: |it| {
            it.aspect == Aspect::Source
                && it.question.client == Client::Outside
                && it.question.target.place == Place::ClusterIp
                && has_mixed_sources(it)
        },
    },
    Entry {
        rule: "MQ-2",
        reason: "with a range of pods kube-proxy masquerades the node itself at cluster IPs; our node keeps its own address",
        detect: Some(DetectLocal::ByRange),
        matches: |it| {
            it.aspect == Aspect::Source
                && it.question.client == Client::Node
                && it.question.target.place == Place::ClusterIp
                && has_own_source(it)
        },
    },
    Entry {
        rule: "MQ-3",
        reason: "who is translated at connect(), or is answered by way of this node, keeps its address, which the rule allows; \
                 kube-proxy masquerades",
        detect: None,
        matches: |it| {
            it.aspect == Aspect::Source
                && is_external(it.question.target.place)
                && !it.service.external_local
                && (has_own_source(it) || (it.question.client == Client::Outside && has_mixed_sources(it)))
        },
    },
    Entry {
        rule: "MQ-4",
        reason: "under Local the same holds for the node itself: kube-proxy masquerades to the address of the way out",
        detect: None,
        matches: |it| {
            it.aspect == Aspect::Source
                && it.question.client == Client::Node
                && is_external(it.question.target.place)
                && it.service.external_local
                && has_own_source(it)
        },
    },
    Entry {
        rule: "MQ-6",
        reason: "a pod that meets itself sees its own address, without a detour over the node",
        detect: None,
        matches: |it| {
            it.aspect == Aspect::Source
                && it.question.client == Client::Pod
                && it.kube_proxy.sources.keys().any(|server| server.starts_with("a:"))
                && has_own_source(it)
        },
    },
    Entry {
        rule: "MQ-6",
        reason: "a pod that meets itself by packets sees the node's address, and not the one that only its own gateway has",
        detect: None,
        matches: |it| {
            it.aspect == Aspect::Source
                && it.question.client == Client::Pod
                && it.kube_proxy.sources.values().flatten().any(|ip| *ip == GATEWAY)
                && it.agent.sources.values().flatten().all(|ip| NODE_IPS.contains(ip))
        },
    },
    Entry {
        rule: "MQ-8a",
        reason: "without a range of pods kube-proxy takes pods for strangers to external addresses under Local; we know pods",
        detect: Some(DetectLocal::Off),
        matches: |it| {
            it.aspect == Aspect::Answer
                && matches!(it.question.client, Client::Pod | Client::Bare)
                && is_external(it.question.target.place)
                && it.service.external_local
                && it.port.is_some()
                && (it.kube_proxy.is_only(&Failure::Silent) || it.kube_proxy.is_served())
                && it.agent.is_served()
        },
    },
];

/// What every pod of [`crate::Topology`] has as its gateway.
const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));

/// NodePorts, external IPs and load-balancer addresses.
fn is_external(place: Place) -> bool {
    matches!(place, Place::NodePort | Place::ExternalIp | Place::Balanced)
}

/// The backends of our node see the client's own address.
fn has_own_source(it: &Difference<'_>) -> bool {
    let own = it.question.client.addresses();
    it.agent.sources.values().flatten().all(|ip| own.contains(ip))
}

/// Our node's backends see the client's own address, those elsewhere or of an unknown node see the node's.
fn has_mixed_sources(it: &Difference<'_>) -> bool {
    let own = it.question.client.addresses();
    it.agent.sources.values().flatten().all(|ip| own.contains(ip) || NODE_IPS.contains(ip))
}
