//! What a Service means whatever else it says: families, numbers and fields that a proxy does not read.

use rstest::rstest;
use serde_json::{Value, json};

use super::{Interest, service};
use crate::compile::{FrontendKind, compile};
use crate::model::{Names, NodeContext, Service, TrafficPolicy};

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

/// DS-3, DS-5, SEL-6: `ipFamilies` says which addresses count, in whatever order; the policy says nothing.
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
#[case::one_family_and_two_addresses(
    json!({"clusterIPs": ["10.96.0.1", "fd00::1"], "ipFamilies": ["IPv4"]}),
    &["10.96.0.1:80"]
)]
#[case::no_family_and_two_addresses(
    json!({"clusterIPs": ["fd00::1", "10.96.0.1"], "ipFamilies": []}),
    &["[fd00::1]:80"]
)]
#[case::families_in_another_order(
    json!({"clusterIPs": ["10.96.0.1", "fd00::1"], "ipFamilies": ["IPv6", "IPv4"]}),
    &[]
)]
#[case::a_family_of_the_future(
    json!({"clusterIPs": ["10.96.0.1", "fd00::1"], "ipFamilies": ["IPv7", "IPv6"]}),
    &["[fd00::1]:80"]
)]
fn families_are_those_of_the_addresses(#[case] mut spec: Value, #[case] wanted: &[&str]) {
    spec["ports"] = json!([{"port": 80}]);
    spec["clusterIP"] = spec["clusterIPs"].get(0).cloned().unwrap_or(json!("10.96.0.1"));
    for policy in ["SingleStack", "PreferDualStack", "RequireDualStack", "Unheard"] {
        spec["ipFamilyPolicy"] = json!(policy);
        assert_eq!(frontends(&spec, &json!({})), wanted, "{policy}");
    }
}

/// SEL-6: what the families leave out is named with the remedy.
#[test]
fn a_cluster_ip_without_its_family_is_named() {
    let spec = json!({"clusterIPs": ["10.96.0.1", "fd00::1"], "ipFamilies": ["IPv4"]});
    let faults: Vec<String> = read(&spec, &json!({}))
        .faults
        .iter()
        .map(|fault| format!("{}: {}", fault.field, fault.reason))
        .collect();
    assert_eq!(
        faults,
        ["spec.clusterIPs[1]: fd00::1 is not served, spec.ipFamilies does not say IPv6 in its place; \
          list the families of spec.clusterIPs there, in their order"]
    );
}

/// SEL-8: a name or number that a refused port had is free for a later one.
#[test]
fn a_refused_port_takes_nothing_from_a_later_one() {
    let usable = |ports: Value| -> Vec<String> {
        let service = read(&json!({"clusterIP": "10.96.0.1", "ports": ports}), &json!({}));
        let all = service.ports.iter();
        all.map(|port| format!("{} {} {}", port.name, port.port, port.node_port)).collect()
    };
    let number = json!([{"name": "a", "port": 80}, {"name": "b", "port": 80}, {"name": "b", "port": 81}]);
    assert_eq!(usable(number), ["a 80 0", "b 81 0"]);
    let name = json!([{"name": "a", "port": 80}, {"name": "a", "port": 81}, {"name": "b", "port": 81}]);
    assert_eq!(usable(name), ["a 80 0", "b 81 0"]);
    let node_port = json!([
        {"name": "a", "port": 80}, {"name": "b", "port": 80, "nodePort": 30_000},
        {"name": "c", "port": 81, "nodePort": 30_000},
    ]);
    assert_eq!(usable(node_port), ["a 80 0", "c 81 30000"]);
}

/// SP-4.
#[rstest]
#[case::absent(json!({}), TrafficPolicy::Cluster)]
#[case::null(json!({"internalTrafficPolicy": null}), TrafficPolicy::Cluster)]
#[case::empty(json!({"internalTrafficPolicy": ""}), TrafficPolicy::Cluster)]
#[case::cluster(json!({"internalTrafficPolicy": "Cluster"}), TrafficPolicy::Cluster)]
#[case::local(json!({"internalTrafficPolicy": "Local"}), TrafficPolicy::Local)]
#[case::the_other_policy(json!({"externalTrafficPolicy": "Local"}), TrafficPolicy::Cluster)]
fn an_absent_internal_policy_is_cluster(#[case] mut spec: Value, #[case] wanted: TrafficPolicy) {
    spec["clusterIP"] = json!("10.96.0.1");
    let service = read(&spec, &json!({}));
    assert_eq!(service.internal_policy, wanted);
    assert_eq!(*service.faults, []);
}

/// LB-3: the addresses of the status count: neither the one that was asked for, nor the type.
#[test]
fn the_addresses_of_the_status_count_whatever_the_spec_says() {
    let status = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}});
    for kind in ["LoadBalancer", "NodePort", "ClusterIP"] {
        let mut spec = json!({
            "type": kind, "clusterIP": "10.96.0.1", "loadBalancerIP": "203.0.113.9", "ports": [{"port": 80}],
        });
        assert_eq!(frontends(&spec, &status), ["10.96.0.1:80", "203.0.113.7:80"], "{kind}");
        assert_eq!(frontends(&spec, &json!({})), ["10.96.0.1:80"], "{kind}");
        assert_eq!(frontends(&spec, &json!({"loadBalancer": {}})), ["10.96.0.1:80"], "{kind}");
        spec["loadBalancerIP"] = json!("203.0.113.7");
        assert_eq!(frontends(&spec, &status), ["10.96.0.1:80", "203.0.113.7:80"], "{kind}");
    }
}

/// DS-4: a family comes and goes without touching the other one.
#[test]
fn a_family_that_comes_changes_nothing_of_the_other_one() {
    let spec = |ips: &[&str]| {
        let families = &["IPv4", "IPv6"][..ips.len()];
        json!({"clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": families, "ports": [{"port": 80}]})
    };
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

/// NP-14: a load balancer without node ports.
#[test]
fn a_load_balancer_may_do_without_node_ports() {
    let spec = json!({
        "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "clusterIP": "10.96.0.1",
        "ports": [{"port": 80}],
    });
    let status = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}});
    assert_eq!(frontends(&spec, &status), ["10.96.0.1:80", "203.0.113.7:80"]);
}

/// SP-10, SP-11: what a proxy does not read changes nothing.
#[test]
fn fields_that_a_proxy_does_not_read_change_nothing() {
    let plain = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
    let mut full = plain.clone();
    for (field, value) in [
        ("loadBalancerClass", json!("example.org/lb")),
        ("loadBalancerIP", json!("203.0.113.9")),
        ("externalName", json!("example.org")),
        ("allocateLoadBalancerNodePorts", json!(false)),
        ("publishNotReadyAddresses", json!(true)),
        ("trafficDistribution", json!("PreferSameNode")),
        ("selector", json!({"app": "web"})),
        ("ipFamilyPolicy", json!("RequireDualStack")),
    ] {
        full[field] = value;
    }
    full["ports"][0]["appProtocol"] = json!("kubernetes.io/h2c");
    full["ports"][0]["targetPort"] = json!("http");
    assert_eq!(read(&full, &json!({})), read(&plain, &json!({})));
}

/// LB-1, LB-2: mode Proxy, a host name alone and another mode leave the address to the real load balancer, which is no fault.
#[rstest]
#[case::vip(json!({"ip": "203.0.113.7", "ipMode": "VIP"}), true)]
#[case::no_mode(json!({"ip": "203.0.113.7"}), true)]
#[case::proxy(json!({"ip": "203.0.113.7", "ipMode": "Proxy"}), false)]
#[case::a_mode_of_the_future(json!({"ip": "203.0.113.7", "ipMode": "Tunnel"}), false)]
#[case::a_name(json!({"hostname": "lb.example.org"}), false)]
#[case::an_empty_address(json!({"ip": "", "hostname": "lb.example.org"}), false)]
fn an_address_of_a_load_balancer_is_served_in_mode_vip(#[case] entry: Value, #[case] is_served: bool) {
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
    let status = json!({"loadBalancer": {"ingress": [entry]}});
    let all = frontends(&spec, &status);
    assert_eq!(all.contains(&"203.0.113.7:80".to_owned()), is_served, "{all:?}");
    assert_eq!(*read(&spec, &status).faults, []);
}

/// SP-7: zero is no port, and load balancers would take every node for one without endpoints.
#[test]
fn a_health_check_port_that_is_needed_and_missing_is_named() {
    let with = |kind: &str, policy: &str, port: Value| {
        let spec = json!({
            "type": kind, "clusterIP": "10.96.0.1", "externalTrafficPolicy": policy, "healthCheckNodePort": port,
            "ports": [{"port": 80}],
        });
        let service = read(&spec, &Value::Null);
        let fields: Vec<String> = service.faults.iter().map(|fault| fault.field.to_string()).collect();
        (service.health_check_node_port, fields)
    };
    let named = || vec!["spec.healthCheckNodePort".to_owned()];
    for missing in [json!(0), Value::Null] {
        assert_eq!(with("LoadBalancer", "Local", missing.clone()), (0, named()));
        for (kind, policy) in [("LoadBalancer", "Cluster"), ("NodePort", "Local"), ("ClusterIP", "Local")] {
            assert_eq!(with(kind, policy, missing.clone()), (0, vec![]), "{kind} {policy}");
        }
    }
    assert_eq!(with("LoadBalancer", "Local", json!(32_000)), (32_000, vec![]));
    assert_eq!(with("LoadBalancer", "Local", json!(70_000)), (0, named()), "said once");
}
