//! What holds of every result of `compile`, whatever the objects.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::model::arbitrary::{self, OWN_NODE};
use crate::model::{ClusterIps, Conditions, EndpointFacts, Node, Protocol, SliceName, SlicePort};

fn node(zone: &str) -> NodeContext {
    let node = Node { zone: Some(zone.into()), ..Node::new(OWN_NODE.into()) };
    NodeContext { node: Some(node), ..NodeContext::new(OWN_NODE.into()) }
}

/// Endpoints of one port list, put into slices one way and another.
#[derive(Clone, Debug)]
struct Groupings {
    family: Family,
    ports: Vec<SlicePort>,
    endpoints: Vec<(EndpointFacts, usize)>,
    shuffled: Vec<(EndpointFacts, usize)>,
}

impl Groupings {
    fn slices(&self, endpoints: &[(EndpointFacts, usize)], groups: usize) -> Vec<Slice> {
        (0..groups)
            .map(|group| {
                let members: Vec<EndpointFacts> = endpoints
                    .iter()
                    .filter(|(_, of)| of % groups == group)
                    .map(|(facts, _)| facts.clone())
                    .collect();
                let name = SliceName::new("ns", &format!("s{group}"));
                arbitrary::build(name, ServiceName::new("ns", "web"), self.family, &self.ports, &members)
            })
            .collect()
    }
}

fn groupings() -> impl Strategy<Value = Groupings> {
    arbitrary::family().prop_flat_map(|family| {
        let endpoints = vec((arbitrary::endpoint(family), 0..3_usize), 0..10);
        (endpoints, vec(arbitrary::slice_port(), 0..4)).prop_flat_map(move |(endpoints, ports)| {
            (Just(endpoints.clone()), Just(endpoints).prop_shuffle()).prop_map(
                move |(endpoints, shuffled)| Groupings { family, ports: ports.clone(), endpoints, shuffled },
            )
        })
    })
}

/// What must hold of every result.
fn check(service: &Service, slices: &[Slice], compiled: &Compiled) {
    let keys: BTreeSet<_> = compiled.ports.iter().map(|port| &port.key).collect();
    assert_eq!(keys.len(), compiled.ports.len(), "a port has one entry");
    assert!(compiled.ports.is_sorted_by_key(|port| &port.key));
    for port in &compiled.ports {
        assert!(port.frontends.is_sorted_by(|one, next| one.at < next.at) && !port.frontends.is_empty());
        assert!(service.cluster_ips.of(port.key.family).is_some(), "SEL-7");
        for frontend in &port.frontends {
            assert_eq!(frontend.at.port() == 0, frontend.kind == FrontendKind::OtherPorts);
            assert_eq!(Family::of(&frontend.at.ip()), port.key.family);
            assert_eq!(frontend.at.ip().is_unspecified(), frontend.kind == FrontendKind::NodePort);
        }
        for set in [&port.cluster, &port.local] {
            assert!(set.is_sorted_by(|one, next| one.at < next.at), "sorted, without duplicates");
            assert!(port.policies.has_any || set.is_empty());
            for target in set {
                assert!(is_listed(target, port, slices), "{target:?}");
            }
            assert!(
                set.iter().all(|target| target.terminating) || set.iter().all(|target| !target.terminating)
            );
        }
    }
}

/// Whether a slice of the family lists the target under the name and protocol of the port, and as somebody who may serve:
/// ready, or as what it is marked, serving and terminating (2.4).
fn is_listed(target: &Target, port: &PortEntries, slices: &[Slice]) -> bool {
    slices.iter().filter(|slice| slice.family == port.key.family).any(|slice| {
        let has_port = slice.ports.iter().any(|at| {
            at.name == port.key.port && at.protocol == port.key.protocol && at.port == target.at.port()
        });
        let may_serve = |conditions: Conditions| {
            let is_fallback = conditions.is_serving() && conditions.is_terminating();
            conditions.is_ready() != target.terminating && (conditions.is_ready() || is_fallback)
        };
        let mut endpoints = slice.endpoints();
        has_port
            && endpoints.any(|endpoint| endpoint.addr() == target.at.ip() && may_serve(endpoint.conditions()))
    })
}

proptest! {
    /// ES-12, ES-14.
    #[test]
    fn output_ignores_the_order_and_grouping_of_slices(
        service in arbitrary::service(),
        groupings in groupings(),
        groups in 1..4_usize,
        backwards in any::<bool>(),
        zone in select(&["a", "b"][..]),
    ) {
        let one = groupings.slices(&groupings.endpoints, 1);
        let mut many = groupings.slices(&groupings.shuffled, groups);
        if backwards {
            many.reverse();
        }
        let want = compile(&service, one.iter(), &node(zone));
        prop_assert_eq!(&want, &compile(&service, many.iter(), &node(zone)));
    }

    /// 2.4-unusable, and the rest of the invariants of `PortEntries`.
    #[test]
    fn every_target_is_a_listed_endpoint(
        service in arbitrary::service(),
        slices in vec(arbitrary::slice(), 0..4),
        zone in select(&["a", "b"][..]),
    ) {
        let compiled = compile(&service, slices.iter(), &node(zone));
        check(&service, &slices, &compiled);
    }

    /// TE-2, TE-3, 2.4-unusable: a terminating target is there only if no ready one could be, and never a failing one; nobody
    /// else that is not ready is.
    #[test]
    fn terminating_endpoints_serve_only_when_nothing_is_ready(slices in vec(arbitrary::slice(), 0..4)) {
        let service = Service {
            cluster_ips: ClusterIps { v4: Some([10, 96, 0, 1].into()), v6: None },
            ports: Box::new([ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 }]),
            ..Service::new(ServiceName::new("ns", "web"))
        };
        let compiled = compile(&service, slices.iter(), &node("a"));
        check(&service, &slices, &compiled);
        let targets = &compiled.ports[0].cluster;
        if targets.iter().any(|target| target.terminating) {
            // Nobody that is ready and running has the port; a ready one that terminates may be hidden by a duplicate.
            let someone = slices.iter().filter(|slice| slice.family == Family::V4).any(|slice| {
                let has_port = slice.ports.iter().any(|at| at.name.is_empty() && at.protocol == Protocol::Tcp);
                has_port && slice.endpoints().any(|endpoint| {
                    endpoint.conditions().is_ready() && !endpoint.conditions().is_terminating()
                })
            });
            prop_assert!(!someone);
        }
    }
}
