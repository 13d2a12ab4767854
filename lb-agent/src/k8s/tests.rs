//! Conversion: what each field becomes, and that no object makes it panic.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1 as core_api;
use k8s_openapi::api::discovery::v1 as discovery_api;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use rstest::rstest;
use serde_json::{Value, json};

use super::{Refused, node, service, slice};
use crate::compile::FrontendKind;
use crate::compile::compile;
use crate::model::{
    Algorithm, Change, ClusterState, Event, Family, Names, Node, NodeContext, Service, ServiceType, Slice,
    TrafficPolicy,
};

fn read_service(object: Value) -> Service {
    service(&serde_json::from_value(object).unwrap(), &mut Names::default()).unwrap()
}

fn read_slice(object: Value) -> Result<Slice, Refused> {
    slice(&serde_json::from_value(object).unwrap(), &mut Names::default())
}

fn read_node(object: Value) -> Node {
    node(&serde_json::from_value(object).unwrap(), &mut Names::default()).unwrap()
}

/// A Service with the given spec.
fn spec(spec: &Value) -> Service {
    read_service(json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": spec}))
}

fn faults(service: &Service) -> Vec<String> {
    service.faults.iter().map(|fault| format!("{}: {}", fault.field, fault.reason)).collect()
}

/// SR-6.
#[test]
fn ranges_in_the_annotation_of_cloud_controllers_are_not_ours() {
    let annotation = "service.beta.kubernetes.io/load-balancer-source-ranges";
    let object = |ranges: &Value| {
        json!({
            "metadata": {"name": "web", "namespace": "ns", "annotations": {annotation: "198.51.100.0/24"}},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1", "loadBalancerSourceRanges": ranges},
        })
    };
    assert!(read_service(object(&json!([]))).source_ranges.is_empty());
    let both = read_service(object(&json!(["203.0.113.0/24"])));
    assert_eq!(both.source_ranges.iter().map(ToString::to_string).collect::<Vec<_>>(), ["203.0.113.0/24"]);
}

/// SP-1, LB-1.
#[test]
fn every_field_that_steers_traffic_is_kept() {
    let service = read_service(json!({
        "metadata": {"name": "web", "namespace": "ns", "creationTimestamp": "2020-01-02T03:04:05Z"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"], "ipFamilies": ["IPv4", "IPv6"],
            "externalIPs": ["192.0.2.2"],
            "loadBalancerSourceRanges": [" 198.51.100.0/24 "],
            "ports": [
                {"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080},
                {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 5353},
            ],
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 31000,
        },
        "status": {"loadBalancer": {"ingress": [
            {"ip": "192.0.2.1"}, {"ip": "192.0.2.3", "ipMode": "VIP"}, {"ip": "192.0.2.4", "ipMode": "Proxy"},
            {"hostname": "lb.example"}, {"ip": ""},
        ]}},
    }));
    assert_eq!(service.name.to_string(), "ns/web");
    assert_eq!(service.created_s, 1_577_934_245);
    assert_eq!(service.kind, ServiceType::LoadBalancer);
    assert_eq!(service.cluster_ips.of(Family::V4), Some("10.96.0.1".parse().unwrap()));
    assert_eq!(service.cluster_ips.of(Family::V6), Some("fd00::1".parse().unwrap()));
    let served: Vec<String> = service.load_balancer_ips.iter().map(ToString::to_string).collect();
    assert_eq!(served, ["192.0.2.1", "192.0.2.3"]);
    assert_eq!(service.external_ips.len(), 1);
    assert_eq!(service.source_ranges[0].to_string(), "198.51.100.0/24");
    let ports: Vec<String> = service
        .ports
        .iter()
        .map(|port| format!("{} {}/{} {}", port.name, port.port, port.protocol, port.node_port))
        .collect();
    assert_eq!(ports, ["http 80/TCP 30080", "dns 53/UDP 0"]);
    assert_eq!(service.affinity_s, 60);
    assert_eq!(
        (service.internal_policy, service.external_policy),
        (TrafficPolicy::Local, TrafficPolicy::Local)
    );
    assert_eq!(service.health_check_node_port, 31_000);
    assert_eq!(faults(&service), [""; 0]);
}

/// SEL-4, SEL-6: which cluster IPs a Service has.
#[rstest]
#[case::single(json!({"clusterIP": "10.96.0.1"}), "10.96.0.1", "")]
#[case::dual(
    json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1", "10.96.0.1"], "ipFamilies": ["IPv6", "IPv4"]}),
    "10.96.0.1", "fd00::1"
)]
#[case::v6_only(json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1"]}), "", "fd00::1")]
#[case::headless(json!({"clusterIP": "None", "clusterIPs": ["None"]}), "", "")]
#[case::headless_with_a_left_over_address(json!({"clusterIP": "None", "clusterIPs": ["10.96.0.1"]}), "", "")]
#[case::not_allocated(json!({"clusterIP": ""}), "", "")]
#[case::external_name(json!({"type": "ExternalName", "clusterIP": "10.96.0.1"}), "", "")]
#[case::no_spec(json!({}), "", "")]
fn cluster_ips_by_family(#[case] given: Value, #[case] v4: &str, #[case] v6: &str) {
    let service = spec(&given);
    let text = |family| service.cluster_ips.of(family).map(|addr| addr.to_string()).unwrap_or_default();
    assert_eq!((&*text(Family::V4), &*text(Family::V6)), (v4, v6));
    assert_eq!(service.is_proxied(), !(v4.is_empty() && v6.is_empty()));
    assert_eq!(faults(&service), [""; 0]);
}

/// What cannot be used is named with its path, and the rest is used.
#[rstest]
#[case::port_zero(json!({"ports": [{"port": 0}]}), "spec.ports[0].port: port 0 is not in 1..=65535; correct the number")]
#[case::protocol(
    json!({"ports": [{"port": 80, "protocol": "tcp"}]}),
    "spec.ports[0].protocol: protocol \"tcp\" is not known; use TCP, UDP or SCTP"
)]
#[case::same_name(
    json!({"ports": [{"port": 80}, {"port": 81}]}),
    "spec.ports[1].name: an earlier port of the same protocol is called \"\" too; give each port its own name"
)]
#[case::same_number(
    json!({"ports": [{"name": "a", "port": 80}, {"name": "b", "port": 80}]}),
    "spec.ports[1].port: an earlier port uses 80/TCP too; give each port its own number"
)]
#[case::same_node_port(
    json!({"ports": [{"name": "a", "port": 80, "nodePort": 30000}, {"name": "b", "port": 81, "nodePort": 30000}]}),
    "spec.ports[1].nodePort: an earlier port uses 30000/TCP too; give each port its own number"
)]
#[case::second_cluster_ip(
    json!({"clusterIPs": ["10.96.0.1", "10.96.0.2"]}),
    "spec.clusterIPs[1]: 10.96.0.2 is a second IPv4 cluster IP; keep one for each family"
)]
#[case::external_ip(
    json!({"externalIPs": ["192.0.2.1", "web"]}),
    "spec.externalIPs[1]: \"web\" is not an IP address; write it like 192.0.2.1 or 2001:db8::1"
)]
#[case::loopback(
    json!({"externalIPs": ["127.0.0.1"]}),
    "spec.externalIPs[0]: 127.0.0.1 is a loopback, unspecified or multicast address; use the unicast address of a host"
)]
#[case::range(
    json!({"loadBalancerSourceRanges": ["10.0.0.0"]}),
    "spec.loadBalancerSourceRanges[0]: \"10.0.0.0\" is not an address range; \
     write it like 192.0.2.0/24 or 2001:db8::/32"
)]
#[case::timeout(
    json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}}),
    "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 86401 s is not in 1..=86400, 10800 s is used; \
     correct the number"
)]
#[case::kind(
    json!({"type": "Anycast"}),
    "spec.type: \"Anycast\" is not known, ClusterIP is used; correct it, or update the agent"
)]
#[case::policy(
    json!({"internalTrafficPolicy": "Zone"}),
    "spec.internalTrafficPolicy: \"Zone\" is not known, Cluster is used; correct it, or update the agent"
)]
fn what_cannot_be_used_is_named(#[case] mut given: Value, #[case] want: &str) {
    given["clusterIP"] = "10.96.0.1".into();
    let service = spec(&given);
    assert_eq!(faults(&service), [want]);
    assert!(service.is_proxied());
}

/// SP-9.
#[rstest]
#[case::absent(json!({}), 0)]
#[case::none_has_no_timeout(json!({"sessionAffinity": "None", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}), 0)]
#[case::no_config(json!({"sessionAffinity": "ClientIP"}), 10_800)]
#[case::no_timeout(json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {}}}), 10_800)]
fn affinity_without_a_timeout(#[case] mut given: Value, #[case] want: u32) {
    given["clusterIP"] = "10.96.0.1".into();
    let service = spec(&given);
    assert_eq!((service.affinity_s, faults(&service)), (want, vec![]));
}

/// SP-9: 1 to 86400 seconds; anything else is named, and the default is used.
#[test]
fn affinity_timeouts() {
    for (given, want) in [
        (i32::MIN, 10_800),
        (-1, 10_800),
        (0, 10_800),
        (1, 1),
        (60, 60),
        (86_400, 86_400),
        (86_401, 10_800),
        (i32::MAX, 10_800),
    ] {
        let service = spec(&json!({
            "clusterIP": "10.96.0.1", "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": given}},
        }));
        assert_eq!(service.affinity_s, want, "{given}");
        let named: &[String] = &faults(&service);
        let is_wrong = !(1..=86_400).contains(&given);
        assert_eq!(named.len(), usize::from(is_wrong), "{given}: {named:?}");
        assert!(
            named.iter().all(|fault| fault.contains(&format!("timeoutSeconds: {given} s is not in"))),
            "{named:?}"
        );
    }
}

fn slice_of(address_type: &str, ports: &Value, endpoints: &Value) -> Value {
    json!({
        "metadata": {"name": "web-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": address_type, "ports": ports, "endpoints": endpoints,
    })
}

/// ES-4, ES-5.
#[test]
fn slice_ports_without_name_or_number_are_ignored() {
    let ports = json!([
        {"name": "a", "port": 8080}, {"port": 8081}, {"name": "b"}, {"name": "c", "port": 0},
        {"name": "", "port": 8082, "protocol": "UDP"}, {"name": "d", "port": 70000},
    ]);
    let slice = read_slice(slice_of("IPv4", &ports, &json!([]))).unwrap();
    let ports: Vec<String> =
        slice.ports.iter().map(|port| format!("{} {}/{}", port.name, port.port, port.protocol)).collect();
    assert_eq!(ports, ["a 8080/TCP", " 8082/UDP"]);
    let [fault] = &slice.faults[..] else { panic!("{:?}", slice.faults) };
    assert_eq!(&*fault.field, "endpointslice web-1: ports[5].port");
}

/// ES-17.
#[test]
fn the_trigger_time_of_a_slice_is_read_and_a_broken_one_is_none() {
    let with = |text: &str| {
        let mut object = slice_of("IPv4", &json!([]), &json!([]));
        object["metadata"]["annotations"] = json!({"endpoints.kubernetes.io/last-change-trigger-time": text});
        slice(&serde_json::from_value(object).unwrap(), &mut Names::default()).unwrap()
    };
    assert_eq!(with("1970-01-01T00:00:01.5Z").trigger.unix_us(), Some(1_500_000));
    assert_eq!(with("1970-01-01T02:00:00.000001+02:00").trigger.unix_us(), Some(1));
    for broken in ["", "yesterday", "1970-01-01"] {
        let slice = with(broken);
        assert_eq!(slice.trigger.unix_us(), None, "{broken}");
        assert!(slice.faults.is_empty(), "it is for measurements only");
    }
}

/// ES-6, ES-7, ES-8, ES-9, ES-10.
#[test]
fn endpoints_keep_address_conditions_node_and_hints() {
    let endpoints = json!([
        {"addresses": ["010.0.0.1", "10.0.0.9"], "nodeName": "n1", "zone": "ignored",
         "conditions": {"ready": false, "serving": true, "terminating": true},
         "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "n1"}]}},
        {"addresses": ["10.0.0.2"], "nodeName": ""},
        {"addresses": []},
        {"addresses": ["fd00::1"]},
    ]);
    let slice = read_slice(slice_of("IPv4", &json!([]), &endpoints)).unwrap();
    let [first, second] = &slice.endpoints().collect::<Vec<_>>()[..] else { panic!("two endpoints") };
    assert_eq!(first.addr().to_string(), "10.0.0.1");
    let conditions = first.conditions();
    assert_eq!(
        (conditions.is_ready(), conditions.is_serving(), conditions.is_terminating()),
        (false, true, true)
    );
    assert_eq!(first.node(), Some("n1"));
    assert_eq!(first.zone_hints().collect::<Vec<_>>(), ["a"]);
    assert_eq!(first.node_hints().collect::<Vec<_>>(), ["n1"]);
    assert_eq!((second.node(), second.zone_hints().len()), (None, 0));
    let faults: Vec<String> =
        slice.faults.iter().map(|fault| format!("{}: {}", fault.field, fault.reason)).collect();
    assert_eq!(
        faults,
        [
            "endpointslice web-1: endpoints[2].addresses[0]: \"\" is not an IP address; \
             write it like 192.0.2.1 or 2001:db8::1",
            "endpointslice web-1: endpoints[3].addresses[0]: fd00::1 is not of the addressType of its slice; \
             put it into a slice of its own addressType",
        ]
    );
}

/// ES-1, ES-2.
#[test]
fn slices_without_owner_or_family_are_refused() {
    let mut orphan = slice_of("IPv4", &json!([]), &json!([]));
    orphan["metadata"]["labels"] = json!({"kubernetes.io/service-name": ""});
    assert_eq!(read_slice(orphan), Err(Refused::NoOwner));
    assert_eq!(
        read_slice(slice_of("FQDN", &json!([]), &json!([]))),
        Err(Refused::AddressType("FQDN".into()))
    );
}

/// NP-3, TP-4, HZ-4.
#[test]
fn a_node_keeps_zone_addresses_and_whether_it_goes_away() {
    let node = read_node(json!({
        "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "a"}},
        "spec": {
            "podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64"],
            "taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}],
        },
        "status": {"addresses": [
            {"type": "Hostname", "address": "n1"}, {"type": "ExternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "10.0.0.1"}, {"type": "InternalIP", "address": "fd00::1"},
        ]},
    }));
    assert_eq!(node.zone.as_deref(), Some("a"));
    let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.1", "fd00::1", "192.0.2.1"]);
    assert_eq!(node.pod_cidrs.len(), 2);
    assert!(node.is_draining);
    let plain = read_node(json!({"metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": ""}}}));
    assert_eq!((plain.zone, plain.is_draining), (None, false));
}

/// Texts that mean something somewhere, and texts that do not.
fn text() -> impl Strategy<Value = Value> {
    let known = select(
        &[
            "",
            "None",
            "ClusterIP",
            "NodePort",
            "LoadBalancer",
            "ExternalName",
            "ClientIP",
            "Local",
            "Cluster",
            "VIP",
            "Proxy",
            "TCP",
            "UDP",
            "SCTP",
            "IPv4",
            "IPv6",
            "FQDN",
            "10.0.0.1",
            "10.0.0.2",
            "010.0.0.1",
            "fd00::1",
            "::ffff:10.0.0.1",
            "127.0.0.1",
            "::",
            "10.0.0.0/8",
            "10.0.0.0/99",
            "web",
            "n1",
            "a",
            "InternalIP",
        ][..],
    );
    prop_oneof![8 => known.prop_map(Value::from), 1 => ".{0,100}".prop_map(Value::from)]
}

fn number() -> impl Strategy<Value = Value> {
    prop_oneof![4 => 79..82_i32, 1 => any::<i32>()].prop_map(Value::from)
}

fn texts() -> impl Strategy<Value = Value> {
    vec(text(), 0..20).prop_map(Value::from)
}

/// An object with some of the given fields.
fn object(fields: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
    let fields: Vec<_> = fields
        .into_iter()
        .map(|(name, value)| option::weighted(0.8, value).prop_map(move |value| (name, value)))
        .collect();
    fields
        .prop_map(|fields| {
            let given = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
            Value::Object(given.collect())
        })
        .boxed()
}

fn metadata() -> BoxedStrategy<Value> {
    let labels = object(vec![
        ("kubernetes.io/service-name", text().boxed()),
        ("topology.kubernetes.io/zone", text().boxed()),
    ]);
    object(vec![("name", text().boxed()), ("namespace", text().boxed()), ("labels", labels)])
}

fn any_service() -> impl Strategy<Value = Value> {
    let port = object(vec![
        ("name", text().boxed()),
        ("port", number().boxed()),
        ("protocol", text().boxed()),
        ("nodePort", number().boxed()),
    ]);
    let client_ip = object(vec![("timeoutSeconds", number().boxed())]);
    let spec = object(vec![
        ("type", text().boxed()),
        ("clusterIP", text().boxed()),
        ("clusterIPs", texts().boxed()),
        ("ipFamilies", texts().boxed()),
        ("externalIPs", texts().boxed()),
        ("loadBalancerSourceRanges", texts().boxed()),
        ("sessionAffinity", text().boxed()),
        ("sessionAffinityConfig", object(vec![("clientIP", client_ip)])),
        ("internalTrafficPolicy", text().boxed()),
        ("externalTrafficPolicy", text().boxed()),
        ("healthCheckNodePort", number().boxed()),
        ("ports", vec(port, 0..5).prop_map(Value::from).boxed()),
    ]);
    let ingress =
        object(vec![("ip", text().boxed()), ("ipMode", text().boxed()), ("hostname", text().boxed())]);
    let ingress = vec(ingress, 0..4).prop_map(Value::from).boxed();
    let status = object(vec![("loadBalancer", object(vec![("ingress", ingress)]))]);
    object(vec![("metadata", metadata()), ("spec", spec), ("status", status)])
}

fn any_slice() -> impl Strategy<Value = Value> {
    let port =
        object(vec![("name", text().boxed()), ("port", number().boxed()), ("protocol", text().boxed())]);
    let flag = || any::<bool>().prop_map(Value::from).boxed();
    let conditions = object(vec![("ready", flag()), ("serving", flag()), ("terminating", flag())]);
    let named = || vec(object(vec![("name", text().boxed())]), 0..3).prop_map(Value::from).boxed();
    let hints = object(vec![("forZones", named()), ("forNodes", named())]);
    let endpoint = object(vec![
        ("addresses", texts().boxed()),
        ("conditions", conditions),
        ("nodeName", text().boxed()),
        ("hints", hints),
    ]);
    object(vec![
        ("metadata", metadata()),
        ("addressType", text().boxed()),
        ("ports", vec(port, 0..4).prop_map(Value::from).boxed()),
        ("endpoints", vec(endpoint, 0..6).prop_map(Value::from).boxed()),
    ])
}

fn any_node() -> impl Strategy<Value = Value> {
    let address = object(vec![("type", text().boxed()), ("address", text().boxed())]);
    let taint = object(vec![("key", text().boxed())]);
    let spec = object(vec![
        ("podCIDR", text().boxed()),
        ("podCIDRs", texts().boxed()),
        ("taints", vec(taint, 0..2).prop_map(Value::from).boxed()),
    ]);
    let status = object(vec![("addresses", vec(address, 0..4).prop_map(Value::from).boxed())]);
    object(vec![("metadata", metadata()), ("spec", spec), ("status", status)])
}

proptest! {
    /// Objects of the right shape and any content.
    #[test]
    fn no_object_makes_convert_or_compile_panic(
        given_service in any_service(),
        given_slices in vec(any_slice(), 0..3),
        given_node in any_node(),
    ) {
        let names = &mut Names::default();
        let object: core_api::Service = serde_json::from_value(given_service).unwrap();
        let Ok(service) = service(&object, names) else { return Ok(()) };
        let objects = given_slices.into_iter().map(|given| serde_json::from_value(given).unwrap());
        let objects: Vec<discovery_api::EndpointSlice> = objects.collect();
        let slices: Vec<Slice> = objects.iter().filter_map(|object| slice(object, names).ok()).collect();
        let object: core_api::Node = serde_json::from_value(given_node).unwrap();
        let node = NodeContext { node: node(&object, names).ok(), ..NodeContext::new("n1".into()) };

        let compiled = compile(&service, slices.iter(), &node);
        let mut taken = BTreeSet::new();
        for port in &compiled.ports {
            for frontend in &port.frontends {
                prop_assert_eq!(frontend.at.port() == 0, frontend.kind == FrontendKind::OtherPorts);
                prop_assert!(taken.insert((frontend.at, port.key.protocol)), "{:?} twice", frontend.at);
            }
            for target in port.cluster.iter().chain(&port.local) {
                prop_assert!(target.at.port() != 0 && !target.at.ip().is_unspecified());
            }
        }
        for notice in &compiled.notices {
            prop_assert!(notice.to_string().contains("; "), "{notice} does not say what to do");
        }
        let mut state = ClusterState::new("n1".into());
        for slice in slices {
            state.apply(Event::Slice(Change::Apply(slice)), &mut BTreeSet::new());
        }
        state.apply(Event::Service(Change::Apply(service.clone())), &mut BTreeSet::new());
        let _ = state.compile(&service.name);
    }
}

/// NP-3: what cannot be used is left out and named, the rest counts.
#[test]
fn addresses_of_a_node_that_are_none_are_named() {
    let node = read_node(json!({
        "metadata": {"name": "n1"},
        "spec": {"podCIDRs": ["10.1.0.0/33", "fd00:1::/64"]},
        "status": {"addresses": [
            {"type": "Hostname", "address": "n1"}, {"type": "ExternalIP", "address": "n1.example"},
            {"type": "InternalIP", "address": "127.0.0.1"}, {"type": "InternalIP", "address": "10.0.0.1"},
        ]},
    }));
    assert_eq!(*node.addresses, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
    let fields: Vec<&str> = node.faults.iter().map(|fault| &*fault.field).collect();
    assert_eq!(fields, ["status.addresses[2].address", "status.addresses[1].address", "spec.podCIDRs[0]"]);
}

#[test]
fn ranges_of_a_service_cidr_that_are_none_are_named() {
    let object =
        json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/12", "fd00::/129"]}});
    let object = serde_json::from_value(object).unwrap();
    let cidr = super::service_cidr(&object, &mut Names::default()).unwrap();
    assert_eq!(cidr.ranges.len(), 1);
    let said: Vec<String> =
        cidr.faults.iter().map(|fault| format!("{}: {}", fault.field, fault.reason)).collect();
    assert!(
        said.len() == 1 && said[0].starts_with("spec.cidrs[1]: \"fd00::/129\" is not an address range"),
        "{said:?}"
    );
}

/// 5.9-annotation.
#[rstest]
#[case::random("random", Some(Algorithm::Random), None)]
#[case::maglev("maglev", Some(Algorithm::Maglev), None)]
#[case::round_robin("round-robin", Some(Algorithm::RoundRobin), None)]
#[case::unknown(
    "Maglev",
    None,
    Some(
        "\"Maglev\" is no algorithm, the default of this node is used; write random, maglev or round-robin"
    )
)]
#[case::empty(
    "",
    None,
    Some("\"\" is no algorithm, the default of this node is used; write random, maglev or round-robin")
)]
fn the_annotation_names_an_algorithm(
    #[case] word: &str,
    #[case] want: Option<Algorithm>,
    #[case] fault: Option<&str>,
) {
    let object = json!({
        "metadata": {"name": "web", "namespace": "ns", "annotations": {"lb.io/algorithm": word}},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
    });
    let read = service(&serde_json::from_value(object).unwrap(), &mut Names::default()).unwrap();
    assert_eq!(read.algorithm, want);
    let faults: Vec<String> =
        read.faults.iter().map(|fault| format!("{}: {}", fault.field, fault.reason)).collect();
    let wanted: Vec<String> =
        fault.into_iter().map(|fault| format!("metadata.annotations[lb.io/algorithm]: {fault}")).collect();
    assert_eq!(faults, wanted);
}
