//! What a Service means whatever else it says: families, numbers and fields that a proxy does not read.

use rstest::rstest;
use serde_json::{Value, json};

use super::{Interest, service};
use crate::compile::{FrontendKind, compile};
use crate::model::{Names, NodeContext, Service};

fn read(spec: &Value, status: &Value) -> Service {
    let object = json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": spec, "status": status});
    let read = service(&serde_json::from_value(object).unwrap(), &mut Names::default()).unwrap();
    Interest::new("n1".into()).restrict(read)
}

fn frontends(spec: &Value, status: &Value) -> Vec<String> {
    let compiled = compile(&read(spec, status), [].into_iter(), &NodeContext::new("n1".into()));
    compiled
        .ports
        .iter()
        .flat_map(|port| &port.frontends)
        .filter(|frontend| frontend.kind != FrontendKind::OtherPorts)
        .map(|frontend| frontend.at.to_string())
        .collect()
}

/// DS-3, DS-5, SEL-6: the families are those of the addresses, in whatever order, whatever the policy says.
#[rstest]
#[case::single(json!({"clusterIPs": ["10.96.0.1"], "ipFamilies": ["IPv4"]}), &["10.96.0.1:80"])]
#[case::dual(
    json!({"clusterIPs": ["10.96.0.1", "fd00::1"], "ipFamilies": ["IPv4", "IPv6"]}),
    &["10.96.0.1:80", "[fd00::1]:80"]
)]
#[case::ipv6_first(
    json!({"clusterIPs": ["fd00::1", "10.96.0.1"], "ipFamilies": ["IPv6", "IPv4"]}),
    &["10.96.0.1:80", "[fd00::1]:80"]
)]
#[case::no_list(json!({"ipFamilies": []}), &["10.96.0.1:80"])]
fn families_are_those_of_the_addresses(#[case] mut spec: Value, #[case] wanted: &[&str]) {
    spec["ports"] = json!([{"port": 80}]);
    spec["clusterIP"] = spec["clusterIPs"].get(0).cloned().unwrap_or(json!("10.96.0.1"));
    for policy in ["SingleStack", "PreferDualStack", "RequireDualStack", "Unheard"] {
        spec["ipFamilyPolicy"] = json!(policy);
        assert_eq!(frontends(&spec, &json!({})), wanted, "{policy}");
    }
}

/// DS-4: a family comes and goes without touching the other one.
#[test]
fn a_family_that_comes_changes_nothing_of_the_other_one() {
    let spec = |ips: &[&str]| json!({"clusterIP": ips[0], "clusterIPs": ips, "ports": [{"port": 80}]});
    let context = NodeContext::new("n1".into());
    let single = compile(&read(&spec(&["10.96.0.1"]), &json!({})), [].into_iter(), &context);
    let dual = compile(&read(&spec(&["10.96.0.1", "fd00::1"]), &json!({})), [].into_iter(), &context);
    assert_eq!(dual.ports.len(), 2);
    assert!(single.ports.iter().all(|port| dual.ports.contains(port)));
}

/// NP-11: the range of node ports is the API server's business.
#[test]
fn every_node_port_but_zero_is_served() {
    for (number, served) in [(0, 0), (1, 1), (80, 1), (29_999, 1), (30_000, 1), (32_768, 1), (65_535, 1)] {
        let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": number}]});
        let all = frontends(&spec, &json!({}));
        assert_eq!(all.iter().filter(|at| **at == format!("0.0.0.0:{number}")).count(), served, "{all:?}");
    }
}

/// LB-6: an external IP is served wherever it belongs, also where nobody has it.
#[test]
fn an_external_ip_of_nobody_is_served() {
    let spec = json!({"clusterIP": "10.96.0.1", "externalIPs": ["203.0.113.7"], "ports": [{"port": 80}]});
    assert_eq!(frontends(&spec, &json!({})), ["10.96.0.1:80", "203.0.113.7:80"]);
}

/// NP-14, LB-3: a load balancer without node ports.
#[test]
fn a_load_balancer_may_do_without_node_ports() {
    let spec = json!({
        "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "clusterIP": "10.96.0.1",
        "ports": [{"port": 80}],
    });
    let status = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}});
    assert_eq!(frontends(&spec, &status), ["10.96.0.1:80", "203.0.113.7:80"]);
}
