//! The rules of `compile`: a table per rule.

use core::net::IpAddr;
use std::collections::BTreeSet;

use rstest::rstest;

use super::*;
use crate::model::arbitrary::{self, OWN_NODE};
use crate::model::{
    Change, ClusterIps, Conditions, EndpointFacts, Event, Fault, Node, Protocol, Reason, ServicePort,
    ServiceType, SliceName, SlicePort, TrafficPolicy,
};

fn node(zone: &str) -> NodeContext {
    let node = Node { zone: Some(zone.into()), ..Node::new(OWN_NODE.into()) };
    NodeContext { node: Some(node), ..NodeContext::new(OWN_NODE.into()) }
}

fn port(name: &str, protocol: Protocol, port: u16) -> ServicePort {
    ServicePort { name: name.into(), protocol, port, node_port: 0 }
}

/// A Service with one unnamed TCP port 80 and the cluster IP 10.96.0.1.
fn service() -> Service {
    Service {
        cluster_ips: ClusterIps { v4: Some([10, 96, 0, 1].into()), v6: None },
        ports: Box::new([port("", Protocol::Tcp, 80)]),
        ..Service::new(ServiceName::new("ns", "web"))
    }
}

fn slice_port(name: &str, protocol: Protocol, port: u16) -> SlicePort {
    SlicePort { name: name.into(), protocol, port }
}

/// A slice of the Service; the family is that of the first endpoint.
fn slice(name: &str, ports: &[SlicePort], endpoints: &[EndpointFacts]) -> Slice {
    let family = endpoints.first().map_or(Family::V4, |endpoint| Family::of(&endpoint.addr));
    let owner = ServiceName::new("ns", "web");
    arbitrary::build(SliceName::new("ns", name), owner, family, ports, endpoints)
}

/// A ready endpoint of another node.
fn ready(addr: &str) -> EndpointFacts {
    EndpointFacts {
        addr: addr.parse().unwrap(),
        conditions: Conditions::new(None, None, None),
        node: Some("n2".into()),
        zone_hints: vec![],
        node_hints: vec![],
    }
}

/// What is known of a Service is compiled, and nothing comes of one that is not there.
#[test]
fn a_service_is_compiled_with_its_own_slices_and_on_its_node() {
    let mut state = ClusterState::new(OWN_NODE.into());
    let slices = [slice("a", &[slice_port("", Protocol::Tcp, 8080)], &[ready("10.0.0.1")])];
    let all = [Event::Service(Change::Apply(service())), Event::Slice(Change::Apply(slices[0].clone()))];
    for event in all {
        state.apply(event, &mut BTreeSet::new());
    }
    let name = ServiceName::new("ns", "web");
    let compiled = state.compile(&name);
    assert_eq!(compiled, compile(&service(), slices.iter(), state.node()));
    assert_eq!(compiled.ports[0].cluster.len(), 1);
    assert_eq!(state.compile(&ServiceName::new("ns", "other")), Compiled::default());
}

/// One word per endpoint: R(eady), T(erminating, serving), N(either), P(ublished though terminating), S(erving, neither
/// ready nor terminating) or F(ailing while it terminates); L(ocal) or r(emote); then `/zone` and `@node` hints. The n-th
/// endpoint is 10.0.0.n.
fn endpoints(words: &str) -> Vec<EndpointFacts> {
    words
        .split_whitespace()
        .zip(1..)
        .map(|(word, last)| {
            let (state, hints) = word.split_at(2);
            let (zone, node) = match hints.split_once('@') {
                Some((zone, node)) => (zone, Some(node)),
                None => (hints, None),
            };
            let conditions = match &state[..1] {
                "R" => Conditions::new(Some(true), Some(true), Some(false)),
                "T" => Conditions::new(Some(false), Some(true), Some(true)),
                "N" => Conditions::new(Some(false), Some(false), Some(false)),
                "P" => Conditions::new(Some(true), Some(true), Some(true)),
                "S" => Conditions::new(Some(false), Some(true), Some(false)),
                "F" => Conditions::new(Some(false), Some(false), Some(true)),
                other => panic!("no state {other}"),
            };
            EndpointFacts {
                addr: [10, 0, 0, last].into(),
                conditions,
                node: Some(if &state[1..] == "L" { OWN_NODE } else { "n2" }.into()),
                zone_hints: zone.strip_prefix('/').map(Into::into).into_iter().collect(),
                node_hints: node.map(Into::into).into_iter().collect(),
            }
        })
        .collect()
}

/// Last octets of the targets.
fn words(targets: &[Target]) -> String {
    let last = |target: &Target| match target.at.ip() {
        IpAddr::V4(addr) => addr.octets()[3].to_string(),
        IpAddr::V6(addr) => addr.octets()[15].to_string(),
    };
    targets.iter().map(last).collect::<Vec<_>>().join(" ")
}

/// The port flags of the vectors: `i` internalTrafficPolicy, `n` a node port, `l` a load-balancer address, `e` an external
/// IP, each with its policy C(luster) or L(ocal).
fn with_policies(flags: &str) -> Service {
    let mut service = service();
    let policy = |is_local| if is_local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
    for flag in flags.split_whitespace() {
        let policy = policy(flag.ends_with('L'));
        match &flag[..1] {
            "i" => service.internal_policy = policy,
            "n" => {
                service.kind = ServiceType::NodePort;
                service.ports[0].node_port = 30_080;
                service.external_policy = policy;
            }
            "l" => {
                service.kind = ServiceType::LoadBalancer;
                service.load_balancer_ips = [[192, 0, 2, 1].into()].into();
                service.external_policy = policy;
            }
            "e" => {
                service.external_ips = [[192, 0, 2, 2].into()].into();
                service.external_policy = policy;
            }
            other => panic!("no flag {other}"),
        }
    }
    service
}

/// The test vectors of EP-1, EP-2, EP-4, EP-7, EP-8 and TP-1 to TP-6 (kube-proxy's `CategorizeEndpoints`); the number is that
/// of the vector. This node is n1 in zone a.
#[rstest]
#[case::v01_all_ready_ones_serve("iC", "RL Rr", "1 2", "", true)]
#[case::v02_terminating_ones_wait_while_one_is_ready("iC", "Rr TL", "1", "", true)]
#[case::v03_terminating_ones_serve_when_none_is_ready("iC", "TL Tr Nr", "1 2", "", true)]
#[case::v04_nobody_serves_when_none_is_usable("iC", "NL Nr", "", "", false)]
#[case::v05_internal_local_uses_only_local_ones("iL", "RL Rr", "", "1", true)]
#[case::v06_internal_local_drops_without_local_ones("iL", "Rr", "", "", true)]
#[case::v07_internal_local_prefers_local_terminating_to_remote("iL", "TL Rr", "", "1", true)]
#[case::v08_internal_local_drops_with_remote_terminating_only("iL", "Tr", "", "", true)]
#[case::v09_internal_local_refuses_when_none_is_usable("iL", "NL", "", "", false)]
#[case::v10_external_local_keeps_both_sets("iC nL", "RL Rr", "1 2", "1", true)]
#[case::v11_the_fallbacks_of_both_sets_are_independent("iC nL", "Rr TL", "1", "2", true)]
#[case::v12_external_local_drops_without_local_ones("iC nL", "Rr", "1", "", true)]
#[case::v13_external_local_refuses_without_endpoints("iC nL", "", "", "", false)]
#[case::v14_the_own_zone_serves("iC", "Rr/a Rr/b", "1", "", true)]
#[case::v15_one_ready_one_without_hint_disables_topology("iC", "Rr/a Rr", "1 2", "", true)]
#[case::v16_no_hint_for_the_own_zone_disables_topology("iC", "Rr/b Rr/c", "1 2", "", true)]
#[case::v17_the_own_node_serves("iC", "RL/a@n1 Rr/a@n2", "1", "", true)]
#[case::v18_zone_mode_follows_when_node_mode_is_impossible("iC", "Rr/a@n2 Rr/b@n3", "1", "", true)]
#[case::v19_a_missing_node_hint_leaves_zone_mode("iC", "RL/a@n1 Rr/a", "1 2", "", true)]
#[case::v20_terminating_ones_do_not_disable_topology("iC", "Rr/a Tr", "1", "", true)]
#[case::v21_the_fallback_ignores_hints("iC", "Tr/a Tr/b", "1 2", "", true)]
#[case::v22_hints_do_not_restrict_the_local_set("lL", "RL/b Rr/a", "2", "1", true)]
#[case::v23_both_policies_at_once("iL nC", "Rr", "1", "", true)]
#[case::v24_published_though_terminating_counts_as_ready("iC", "Pr", "1", "", true)]
fn endpoints_are_chosen_as_kube_proxy_does(
    #[case] flags: &str,
    #[case] given: &str,
    #[case] cluster: &str,
    #[case] local: &str,
    #[case] has_any: bool,
) {
    let given = slice("s", &[slice_port("", Protocol::Tcp, 8080)], &endpoints(given));
    let compiled = compile(&with_policies(flags), [&given].into_iter(), &node("a"));
    let [port] = &compiled.ports[..] else { panic!("one port, not {:?}", compiled.ports) };
    assert_eq!((&*words(&port.cluster), &*words(&port.local)), (cluster, local));
    assert_eq!(port.policies.has_any, has_any);
}

/// 2.4-unusable: who is neither ready, nor both serving and terminating, is in no set, counts as nobody, and takes part in no
/// topology (TE-3).
#[rstest]
#[case::serving_only("iC nL", "SL Sr", "", "", false)]
#[case::failing_while_it_terminates("iC nL", "FL Fr", "", "", false)]
#[case::beside_ready_ones("iC nL", "RL SL Rr Sr FL", "1 3", "1", true)]
#[case::beside_terminating_ones("iC nL", "SL TL FL Sr Tr", "2 5", "2", true)]
#[case::not_even_the_only_local_one("iL", "SL FL Rr", "", "", true)]
#[case::an_internal_local_service_refuses("iL", "SL Sr FL", "", "", false)]
#[case::its_missing_hint_does_not_count("iC", "Rr/a Rr/b Sr Fr", "1", "", true)]
#[case::nor_does_its_hint_for_this_zone("iC", "Rr/b Sr/a Fr/a", "1", "", true)]
fn who_is_not_ready_serves_only_while_it_terminates(
    #[case] flags: &str,
    #[case] given: &str,
    #[case] cluster: &str,
    #[case] local: &str,
    #[case] has_any: bool,
) {
    endpoints_are_chosen_as_kube_proxy_does(flags, given, cluster, local, has_any);
    // Flows that it has do not stay either (CT-4).
    let mut service = with_policies(flags);
    service.ports[0].protocol = Protocol::Udp;
    let given = slice("s", &[slice_port("", Protocol::Udp, 8080)], &endpoints(given));
    for at in &compile(&service, [&given].into_iter(), &node("a")).ports[0].draining {
        let conditions = given.endpoints().find(|endpoint| endpoint.addr() == at.ip()).unwrap().conditions();
        assert!(conditions.is_ready() || conditions.is_terminating() && conditions.is_serving(), "{at}");
    }
}

/// EP-8, SP-2, SP-3.
#[rstest]
#[case::internal("iL", true, false)]
#[case::external("iC nL", false, true)]
#[case::external_ip_alone("iC eL", false, true)]
#[case::load_balancer_alone("iC lL", false, true)]
#[case::both("iL lL", true, true)]
#[case::neither("iC nC", false, false)]
fn the_policy_of_each_kind_of_frontend(#[case] flags: &str, #[case] internal: bool, #[case] external: bool) {
    let compiled = compile(&with_policies(flags), [].into_iter(), &node("a"));
    let policies = compiled.ports[0].policies;
    assert_eq!((policies.internal_local, policies.external_local), (internal, external));
}

/// EP-3, EP-5, SP-2, SP-5, SP-6: a set that no frontend uses is empty, so what can be reached is the other one; NodePorts and the
/// like make use of the cluster set whatever their policy is, because clients on this node use it.
#[rstest]
#[case::plain("iC", true, false)]
#[case::internal_local("iL", false, true)]
#[case::internal_local_and_reachable_from_outside("iL nC", true, true)]
#[case::external_local("iC nL", true, true)]
#[case::both_local("iL nL", true, true)]
#[case::external_local_of_a_load_balancer("iC lL", true, true)]
#[case::internal_local_and_an_external_ip_alone("iL eC", true, true)]
#[case::external_local_of_an_external_ip_alone("iC eL", true, true)]
#[case::internal_local_and_a_load_balancer_alone("iL lC", true, true)]
fn a_set_is_there_if_some_client_uses_it(#[case] flags: &str, #[case] cluster: bool, #[case] local: bool) {
    let given = slice("s", &[slice_port("", Protocol::Tcp, 8080)], &endpoints("RL Rr"));
    let compiled = compile(&with_policies(flags), [&given].into_iter(), &node("a"));
    let port = &compiled.ports[0];
    assert_eq!((!port.cluster.is_empty(), !port.local.is_empty()), (cluster, local));
}

/// ES-15: more than the API allows, and all of it counts: 2,000 endpoints, 100 ports, eight hints of each kind.
#[test]
fn the_largest_slice_is_served_whole() {
    let ports: Vec<ServicePort> = (0..100).map(|n| port(&format!("p{n}"), Protocol::Tcp, 1000 + n)).collect();
    let slice_ports: Vec<SlicePort> =
        (0..100).map(|n| slice_port(&format!("p{n}"), Protocol::Tcp, 8000 + n)).collect();
    let hints = |name: &str| (0..8).map(|n| format!("{name}-{n}").as_str().into()).collect::<Vec<_>>();
    let given: Vec<EndpointFacts> = (0..2000_u32)
        .map(|n| EndpointFacts {
            addr: std::net::Ipv4Addr::from_bits(0x0a00_0000 | n).into(),
            zone_hints: hints("zone"),
            node_hints: hints("node"),
            ..ready("10.0.0.1")
        })
        .collect();
    let service = Service { ports: ports.into(), ..service() };
    let compiled = compile(&service, [&slice("s", &slice_ports, &given)].into_iter(), &node("zone-7"));
    assert_eq!(compiled.ports.len(), 100);
    assert!(compiled.ports.iter().all(|port| port.cluster.len() == 2000));
    assert_eq!(compiled.notices, []);
}

/// ES-15: so many slices that each holds a part of all sets.
#[test]
fn many_slices_are_served_as_one() {
    let ports = [slice_port("", Protocol::Tcp, 8080)];
    let addr = |slice: u32, n: u32| std::net::Ipv4Addr::from_bits(0x0a00_0000 | slice << 8 | n);
    let slices: Vec<Slice> = (0..200)
        .map(|at| {
            let given: Vec<EndpointFacts> = (0..100)
                .map(|n| EndpointFacts {
                    node: Some(if n == 0 { OWN_NODE } else { "n2" }.into()),
                    ..ready(&addr(at, n).to_string())
                })
                .collect();
            slice(&format!("s{at}"), &ports, &given)
        })
        .collect();
    let compiled = compile(&with_policies("iC nL"), slices.iter(), &node("a"));
    let port = &compiled.ports[0];
    let all = |count: u32| (0..200).flat_map(move |at| (0..count).map(move |n| IpAddr::from(addr(at, n))));
    assert!(port.cluster.iter().map(|target| target.at.ip()).eq(all(100)));
    assert!(port.local.iter().map(|target| target.at.ip()).eq(all(1)));
    assert_eq!(compiled.notices, []);
}

/// SP-3: the field counts by type, and for a cluster IP by its external IPs.
#[test]
fn external_policy_of_a_plain_cluster_ip_does_not_count() {
    let mut service = Service { external_policy: TrafficPolicy::Local, ..service() };
    let policies = |service: &Service| compile(service, [].into_iter(), &node("a")).ports[0].policies;
    assert!(!policies(&service).external_local);
    // Reachable from outside by what a former type has left behind: the type still says that the field has no meaning.
    service.ports[0].node_port = 30_080;
    assert!(!policies(&service).external_local);
    service.external_ips = [[192, 0, 2, 1].into()].into();
    assert!(policies(&service).external_local);
}

#[test]
fn a_fallback_target_is_marked_as_terminating() {
    let given = slice("s", &[slice_port("", Protocol::Tcp, 8080)], &endpoints("TL"));
    let compiled = compile(&with_policies("iC nL"), [&given].into_iter(), &node("a"));
    assert!(compiled.ports[0].cluster[0].terminating && compiled.ports[0].local[0].terminating);
    let published = slice("s", &[slice_port("", Protocol::Tcp, 8080)], &endpoints("PL"));
    assert!(!compile(&service(), [&published].into_iter(), &node("a")).ports[0].cluster[0].terminating);
}

/// CT-4: flows of a UDP port stay with whoever serves, whatever policy, topology or readiness say of new ones.
#[rstest]
#[case::one_that_terminates("iC", Protocol::Udp, "Rr TL", "1", "2")]
#[case::one_in_another_zone("iC", Protocol::Udp, "Rr/a Rr/b", "1", "2")]
#[case::one_on_another_node("iL", Protocol::Udp, "RL Rr", "1", "2")]
#[case::not_one_that_does_not_serve("iC", Protocol::Udp, "RL NL", "1", "")]
#[case::nobody_of_the_fallback("iC", Protocol::Udp, "TL Tr", "1 2", "")]
#[case::tcp_has_no_state_to_keep("iC", Protocol::Tcp, "Rr TL", "1", "")]
fn who_serves_and_is_in_no_set_drains(
    #[case] flags: &str,
    #[case] protocol: Protocol,
    #[case] given: &str,
    #[case] chosen: &str,
    #[case] draining: &str,
) {
    let mut service = with_policies(flags);
    service.ports[0].protocol = protocol;
    let given = slice("s", &[slice_port("", protocol, 8080)], &endpoints(given));
    let compiled = compile(&service, [&given].into_iter(), &node("a"));
    let port = &compiled.ports[0];
    assert_eq!(words(if flags == "iL" { &port.local } else { &port.cluster }), chosen);
    let drains: Vec<Target> =
        port.draining.iter().map(|at| Target { at: *at, terminating: false, here: false }).collect();
    assert_eq!(words(&drains), draining);
}

/// Frontends as text, but for the other ports of cluster IPs.
fn frontends(compiled: &Compiled) -> Vec<String> {
    let all = compiled.ports.iter().flat_map(|port| {
        let served = port.frontends.iter().filter(|frontend| frontend.kind != FrontendKind::OtherPorts);
        served.map(|frontend| format!("{} {:?}", frontend.at, frontend.kind))
    });
    all.collect()
}

/// SP-1, LB-1.
#[test]
fn every_kind_of_frontend_is_served_in_both_families() {
    let mut service = Service {
        cluster_ips: ClusterIps { v4: Some([10, 96, 0, 1].into()), v6: Some("fd00::1".parse().unwrap()) },
        external_ips: ["192.0.2.2", "2001:db8::2"].map(|addr| addr.parse().unwrap()).into(),
        load_balancer_ips: ["192.0.2.1", "2001:db8::1"].map(|addr| addr.parse().unwrap()).into(),
        ..service()
    };
    service.ports[0].node_port = 30_080;
    let compiled = compile(&service, [].into_iter(), &node("a"));
    let want = [
        "0.0.0.0:30080 NodePort",
        "10.96.0.1:80 ClusterIp",
        "192.0.2.1:80 LoadBalancer",
        "192.0.2.2:80 ExternalIp",
        "[::]:30080 NodePort",
        "[fd00::1]:80 ClusterIp",
        "[2001:db8::1]:80 LoadBalancer",
        "[2001:db8::2]:80 ExternalIp",
    ];
    let mut got = frontends(&compiled);
    let mut want = want.map(str::to_owned).to_vec();
    got.sort();
    want.sort();
    assert_eq!(got, want);
    assert_eq!(compiled.notices, []);
}

/// SEL-7.
#[test]
fn a_family_without_cluster_ip_gets_nothing_and_its_addresses_are_named() {
    let mut service = Service {
        external_ips: ["2001:db8::2".parse().unwrap()].into(),
        load_balancer_ips: ["2001:db8::1".parse().unwrap()].into(),
        ..service()
    };
    service.ports[0].node_port = 30_080;
    let v6 = slice("s", &[slice_port("", Protocol::Tcp, 8080)], &[ready("fd00::1")]);
    let compiled = compile(&service, [&v6].into_iter(), &node("a"));
    assert_eq!(frontends(&compiled), ["0.0.0.0:30080 NodePort", "10.96.0.1:80 ClusterIp"]);
    assert_eq!(compiled.ports[0].cluster, []);
    let named: Vec<String> = compiled.notices.iter().map(ToString::to_string).collect();
    let want = |field: &str, addr: &str| {
        format!(
            "service ns/web: {field}: {addr} is not served, the Service has no IPv6 cluster IP; \
             add the family to spec.ipFamilies"
        )
    };
    let external = want("spec.externalIPs", "2001:db8::2");
    assert_eq!(named, [external, want("status.loadBalancer.ingress", "2001:db8::1")]);
}

/// SEL-4.
#[rstest]
#[case::headless(Service { cluster_ips: ClusterIps::default(), ..service() })]
#[case::external_name_with_a_left_over_cluster_ip(Service { kind: ServiceType::ExternalName, ..service() })]
fn what_is_not_proxied_gives_nothing(#[case] service: Service) {
    let given = slice("s", &[slice_port("", Protocol::Tcp, 8080)], &[ready("10.0.0.1")]);
    assert_eq!(compile(&service, [&given].into_iter(), &node("a")), Compiled::default());
}

/// SR-1, SR-2, SR-3: ranges count if the port has a load-balancer address and a range of the family. Whether this node is in one
/// says its own address.
#[rstest]
#[case::no_range(&[], true, [false, false])]
#[case::a_range_of_others(&["198.51.100.0/24"], true, [true, false])]
#[case::a_range_of_this_node(&["198.51.100.0/24", "172.18.0.0/16"], true, [true, true])]
#[case::a_range_of_another_address_of_this_node(&["172.19.0.0/16"], true, [true, false])]
#[case::a_range_of_the_other_family(&["2001:db8::/32"], true, [false, false])]
#[case::no_load_balancer_address(&["172.18.0.0/16"], false, [false, false])]
fn source_ranges_are_for_load_balancer_addresses(
    #[case] ranges: &[&str],
    #[case] has_address: bool,
    #[case] want: [bool; 2],
) {
    let addr: IpAddr = "192.0.2.1".parse().unwrap();
    let service = Service {
        // As an external IP as well: the ranges hold for the address, whatever else it is.
        external_ips: [addr].into(),
        load_balancer_ips: if has_address { [addr].into() } else { [].into() },
        source_ranges: ranges.iter().map(|range| range.parse().unwrap()).collect::<Vec<_>>().into(),
        ..service()
    };
    let mut node = node("a");
    node.primary = ["172.18.0.2", "2001:db8::9"].map(|addr| Some(addr.parse().unwrap()));
    let compiled = compile(&service, [].into_iter(), &node);
    let Policies { restricted, host_allowed, .. } = compiled.ports[0].policies;
    assert_eq!([restricted, host_allowed], want);
    let kind = if has_address { "LoadBalancer" } else { "ExternalIp" };
    assert_eq!(frontends(&compiled), ["10.96.0.1:80 ClusterIp".to_owned(), format!("192.0.2.1:80 {kind}")]);
    assert_eq!(compiled.notices, []);
}

/// 2.7-other-ports: the cluster IP's unused ports are refused, for the whole Service once, in each family.
#[test]
fn one_port_of_a_service_has_the_other_ports_of_its_cluster_ips() {
    let both = ClusterIps { v4: Some([10, 96, 0, 1].into()), v6: Some("fd00::1".parse().unwrap()) };
    let ports =
        [port("web", Protocol::Tcp, 80), port("api", Protocol::Tcp, 81), port("api", Protocol::Udp, 81)];
    let service = |ports: &[ServicePort]| Service { cluster_ips: both, ports: ports.into(), ..service() };
    let others = |compiled: &Compiled| -> Vec<String> {
        let ports = compiled.ports.iter();
        let other = ports.flat_map(|port| port.frontends.iter().map(move |frontend| (port, frontend)));
        other
            .filter(|(_, frontend)| frontend.kind == FrontendKind::OtherPorts)
            .map(|(port, frontend)| format!("{}/{} {}", port.key.port, port.key.protocol, frontend.at))
            .collect()
    };
    let compiled = compile(&service(&ports), [].into_iter(), &node("a"));
    assert_eq!(others(&compiled), ["api/TCP 10.96.0.1:0", "api/TCP [fd00::1]:0"]);
    let mut backwards = ports;
    backwards.reverse();
    assert_eq!(compile(&service(&backwards), [].into_iter(), &node("a")), compiled);
}

#[test]
fn an_address_given_twice_is_one_frontend() {
    let twice: [IpAddr; 3] = [[192, 0, 2, 1].into(), [192, 0, 2, 1].into(), [10, 96, 0, 1].into()];
    let service = Service { external_ips: twice.into(), ..service() };
    let compiled = compile(&service, [].into_iter(), &node("a"));
    assert_eq!(frontends(&compiled), ["10.96.0.1:80 ClusterIp", "192.0.2.1:80 ExternalIp"]);
}

/// ES-4, ES-13, SP-11, 1.2-protocols: name and protocol match; each slice has its own number.
#[test]
fn ports_match_by_name_and_protocol_and_numbers_come_from_each_slice() {
    let ports =
        [port("dns", Protocol::Udp, 53), port("dns", Protocol::Tcp, 53), port("web", Protocol::Tcp, 80)];
    let service = Service { ports: ports.into(), ..service() };
    let old = slice("old", &[slice_port("web", Protocol::Tcp, 8080)], &[ready("10.0.0.1")]);
    let new_ports = [slice_port("web", Protocol::Tcp, 9090), slice_port("dns", Protocol::Udp, 5353)];
    let new = slice("new", &new_ports, &[ready("10.0.0.1"), ready("10.0.0.2")]);
    let compiled = compile(&service, [&old, &new].into_iter(), &node("a"));
    let got: Vec<String> = compiled
        .ports
        .iter()
        .map(|port| {
            let targets: Vec<String> = port.cluster.iter().map(|target| target.at.to_string()).collect();
            format!("{}/{} {}", port.key.port, port.key.protocol, targets.join(" "))
        })
        .collect();
    assert_eq!(
        got,
        [
            "dns/TCP ",
            "dns/UDP 10.0.0.1:5353 10.0.0.2:5353",
            "web/TCP 10.0.0.1:8080 10.0.0.1:9090 10.0.0.2:9090"
        ]
    );
}

/// ES-11: of equal addresses the one that is not terminating counts, and none gets double weight.
#[rstest]
#[case::running_pod_reuses_the_address("TL RL", "1", false)]
#[case::and_in_the_other_order("RL TL", "1", false)]
#[case::unready_pod_reuses_the_address("TL NL", "", false)]
#[case::unready_pod_hides_a_published_terminating_one("PL NL", "", false)]
#[case::both_ready("RL Rr", "1", false)]
#[case::both_terminating("TL Tr", "1", true)]
fn a_duplicate_address_counts_once(#[case] given: &str, #[case] want: &str, #[case] terminating: bool) {
    let port = [slice_port("", Protocol::Tcp, 8080)];
    let slices: Vec<Slice> = endpoints(given)
        .into_iter()
        .map(|facts| slice("s", &port, &[EndpointFacts { addr: [10, 0, 0, 1].into(), ..facts }]))
        .collect();
    let compiled = compile(&service(), slices.iter(), &node("a"));
    assert_eq!(words(&compiled.ports[0].cluster), want);
    assert!(compiled.ports[0].cluster.iter().all(|target| target.terminating == terminating));
}

#[test]
fn endpoints_beyond_the_longest_run_do_not_serve_and_that_is_said() {
    let addr = |number: u32| std::net::Ipv4Addr::from_bits(0x0a00_0000 | number).to_string();
    let endpoints: Vec<EndpointFacts> = (0..65_538).map(|number| ready(&addr(number))).collect();
    let slice = slice("many", &[slice_port("", Protocol::Tcp, 8080)], &endpoints);
    let compiled = compile(&service(), [&slice].into_iter(), &node("a"));
    assert_eq!(compiled.ports[0].cluster.len(), MOST_TARGETS);
    let said: Vec<String> = compiled.notices.iter().map(ToString::to_string).collect();
    let [said] = said.as_slice() else { panic!("{said:?}") };
    assert!(said.contains("17 of its IPv4 endpoints do not serve, a port has room for 65521"), "{said}");
}

/// ES-9.
#[test]
fn an_endpoint_without_node_is_never_local() {
    let given = slice(
        "s",
        &[slice_port("", Protocol::Tcp, 8080)],
        &[EndpointFacts { node: None, ..ready("10.0.0.1") }],
    );
    let compiled = compile(&with_policies("iC nL"), [&given].into_iter(), &node("a"));
    assert_eq!(
        (words(&compiled.ports[0].cluster), words(&compiled.ports[0].local)),
        ("1".into(), String::new())
    );
}

/// TP-4: without a zone of its own a node takes part in no zone mode.
#[test]
fn a_node_without_zone_uses_all_zones() {
    let given = slice("s", &[slice_port("", Protocol::Tcp, 8080)], &endpoints("Rr/a Rr/b"));
    let unknown = NodeContext::new(OWN_NODE.into());
    assert_eq!(words(&compile(&service(), [&given].into_iter(), &unknown).ports[0].cluster), "1 2");
}

#[test]
fn notices_name_the_service_and_ignore_the_order_of_slices() {
    let mut service = service();
    service.faults = [Fault::new("spec.type", Reason::NotAnAddress("x".into()))].into();
    let faulty = |name: &str| {
        let fault =
            Fault::new(format!("endpointslice {name}: endpoints[0]"), Reason::NotAnAddress("y".into()));
        let mut slice = slice(name, &[], &[]);
        slice.faults = [fault].into();
        slice
    };
    let (one, two) = (faulty("one"), faulty("two"));
    let compiled = compile(&service, [&two, &one].into_iter(), &node("a"));
    assert_eq!(compiled, compile(&service, [&one, &two].into_iter(), &node("a")));
    assert_eq!(compiled.notices.len(), 3);
    let first = compiled.notices[0].to_string();
    assert!(first.starts_with("service ns/web: endpointslice one: endpoints[0]: \"y\" is not"), "{first}");
}
