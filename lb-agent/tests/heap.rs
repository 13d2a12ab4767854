//! Heap of the cluster state: what an agent keeps for as long as it runs, so a field that grows is paid on every node.
//!
//! The figures are bytes asked for; what the allocator adds is not in them.

#![expect(clippy::unwrap_used, reason = "a test; the lint spares only functions that are marked as one")]

use std::collections::BTreeSet;

use lb_agent::k8s;
use lb_agent::model::{Change, ClusterState, Event, Names};
use serde_json::json;

#[global_allocator]
static ALLOC: dhat::Alloc = dhat::Alloc;

const SERVICES: usize = 400;
/// Bytes for a Service with one port, one slice and no endpoint. The name of the slice is part of it.
const MOST_PER_SERVICE: usize = 470;
/// Bytes for one more endpoint of a slice.
const MOST_PER_ENDPOINT: usize = 40;

fn service(n: usize, names: &mut Names) -> Event {
    let object = json!({
        "metadata": {
            "name": format!("service-{n}"), "namespace": format!("namespace-{}", n % 20),
            "creationTimestamp": "2020-01-02T03:04:05Z",
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255),
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        },
    });
    let object = serde_json::from_value(object).unwrap();
    Event::Service(Change::Apply(k8s::service(&object, names).unwrap()))
}

fn slice(n: usize, endpoints: usize, names: &mut Names) -> Event {
    let endpoint = |last: usize| {
        json!({
            "addresses": [format!("10.{}.{}.{last}", n >> 8 & 255, n & 255)],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            // A pod of the same Service often shares its node with another one, and each node with all services.
            "nodeName": format!("node-{}", (n + last) % 100),
            "zone": "zone-a",
            "targetRef": {"kind": "Pod", "name": format!("pod-{n}-{last}"), "uid": "0a0b0c0d"},
        })
    };
    let object = json!({
        "metadata": {
            "name": format!("service-{n}-x7k2p"), "namespace": format!("namespace-{}", n % 20),
            "labels": {"kubernetes.io/service-name": format!("service-{n}")},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": (1..=endpoints).map(endpoint).collect::<Vec<_>>(),
    });
    let object = serde_json::from_value(object).unwrap();
    Event::Slice(Change::Apply(k8s::slice(&object, names).unwrap()))
}

/// Heap bytes of a state of [`SERVICES`] services, in the order in which a server lists them.
fn heap(endpoints: usize) -> usize {
    let before = dhat::HeapStats::get().curr_bytes;
    let mut state = ClusterState::new("node-1".into());
    let mut names = Names::default();
    let mut touched = BTreeSet::new();
    for n in 0..SERVICES {
        state.apply(service(n, &mut names), &mut touched);
        state.apply(slice(n, endpoints, &mut names), &mut touched);
    }
    drop((names, touched));
    let after = dhat::HeapStats::get().curr_bytes;
    assert_eq!(state.services().count(), SERVICES);
    after - before
}

/// Ten per cent above what was measured when a change to it was last accepted.
#[test]
fn a_service_and_an_endpoint_stay_within_their_bytes() {
    let _profiler = dhat::Profiler::builder().testing().build();
    let (none, eleven) = (heap(0), heap(11));
    let per_service = none / SERVICES;
    // The first endpoint of a node pays for the node's name in the slice; the eleven here are on eleven nodes.
    let per_endpoint = (eleven - none) / SERVICES / 11;
    println!("bytes per service: {per_service}, per endpoint: {per_endpoint}");
    assert!(per_service <= MOST_PER_SERVICE, "{per_service} bytes per service");
    assert!(per_endpoint <= MOST_PER_ENDPOINT, "{per_endpoint} bytes per endpoint");
}
