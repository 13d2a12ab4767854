//! A cluster IP that an interface of this node has (design.md 3): a node-local DNS cache.

use core::net::IpAddr;

use rstest::rstest;

use super::*;
use crate::model::{ClusterIps, Protocol, ServiceType, TrafficPolicy};

fn dns() -> Service {
    let port = |name: &str, protocol| ServicePort { name: name.into(), protocol, port: 53, node_port: 0 };
    Service {
        cluster_ips: ClusterIps { v4: Some([10, 96, 0, 10].into()), v6: Some("fd00::10".parse().unwrap()) },
        ports: Box::new([port("dns", Protocol::Udp), port("dns-tcp", Protocol::Tcp)]),
        ..Service::new(ServiceName::new("kube-system", "kube-dns"))
    }
}

fn node(own: &str) -> NodeContext {
    let own = own.split_whitespace().map(|addr| (addr.parse().unwrap(), "nodelocaldns".into()));
    NodeContext { own: own.collect(), ..NodeContext::new("n1".into()) }
}

/// Frontends as text, each once.
fn frontends(service: &Service, own: &str) -> Vec<String> {
    let compiled = compile(service, [].into_iter(), &node(own));
    assert!(compiled.ports.iter().all(|port| !port.frontends.is_empty()), "no port without frontends");
    let all = compiled.ports.iter().flat_map(|port| {
        let served = port.frontends.iter().filter(|frontend| frontend.kind != FrontendKind::OtherPorts);
        served.map(|frontend| format!("{}/{}", frontend.at, port.key.protocol))
    });
    all.collect()
}

const BOTH: [&str; 4] = ["10.96.0.10:53/UDP", "[fd00::10]:53/UDP", "10.96.0.10:53/TCP", "[fd00::10]:53/TCP"];

#[rstest]
#[case::no_address("", &BOTH)]
#[case::other_addresses("10.96.0.11 169.254.20.10", &BOTH)]
#[case::one_family("10.96.0.10 169.254.20.10", &[BOTH[1], BOTH[3]])]
#[case::both_families("10.96.0.10 fd00::10", &[])]
fn a_cluster_ip_on_an_interface_of_this_node_is_left_alone(#[case] own: &str, #[case] wanted: &[&str]) {
    assert_eq!(frontends(&dns(), own), wanted);
    // Nor are the other ports of the address refused.
    let compiled = compile(&dns(), [].into_iter(), &node(own));
    let others = compiled.ports.iter().flat_map(|port| &port.frontends);
    let others = others.filter(|frontend| frontend.kind == FrontendKind::OtherPorts).count();
    assert_eq!(others, wanted.len() / 2);
}

#[test]
fn other_frontends_of_the_service_are_served() {
    let mut service = Service {
        kind: ServiceType::LoadBalancer,
        external_ips: ["192.0.2.2", "10.96.0.10"].map(|addr| addr.parse::<IpAddr>().unwrap()).into(),
        load_balancer_ips: ["192.0.2.1".parse().unwrap()].into(),
        external_policy: TrafficPolicy::Local,
        ..dns()
    };
    service.ports = Box::new([ServicePort { node_port: 30_053, ..service.ports[0].clone() }]);
    service.cluster_ips.v6 = None;
    let wanted = ["0.0.0.0:30053/UDP", "192.0.2.1:53/UDP", "192.0.2.2:53/UDP"];
    assert_eq!(frontends(&service, "10.96.0.10"), wanted, "the address itself, whatever else it is");
    // An external IP is often an address of the node, and served.
    assert!(frontends(&service, "192.0.2.2").contains(&"192.0.2.2:53/UDP".to_owned()));
}

/// NP-14: without a node port a load-balancer address works all the same.
#[test]
fn a_load_balancer_without_node_ports_has_its_other_frontends() {
    let service = Service {
        kind: ServiceType::LoadBalancer,
        load_balancer_ips: ["192.0.2.1".parse().unwrap()].into(),
        ..dns()
    };
    let all = frontends(&service, "");
    assert!(all.contains(&"192.0.2.1:53/UDP".to_owned()), "{all:?}");
    assert!(all.iter().all(|frontend| !frontend.starts_with("0.0.0.0")), "{all:?}");
}
