//! When sockets that were refused are to be freed.

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::SocketLb;
use rstest::rstest;

use super::*;
use crate::{
    compile::{self, Frontend, Policies, Target},
    maps::memory::{Capacities, MemMaps},
    model::{Algorithm, Family},
};

const ROOMY: Capacities = Capacities {
    frontends: 16,
    addresses: 1,
    services: 16,
    slots: 64,
    backends: 64,
    affinity: 1,
    ranges: 16,
    flows4: 1,
    flows6: 1,
};

/// A Service port: name of the Service, frontends, numbers of endpoints in the cluster and in the local set.
#[derive(Clone, Copy)]
struct Port<'a> {
    name: &'a str,
    protocol: Protocol,
    /// The first one is a ClusterIP, the others are externalIPs.
    frontends: &'a [&'a str],
    cluster: u8,
    local: u8,
    internal_local: bool,
    external_local: bool,
}

const OWN: &[&str] = &["10.0.0.1:53"];
const BOTH: &[&str] = &["10.0.0.1:53", "192.0.2.1:53"];

/// A name server with a ClusterIP and without endpoints.
const DNS: Port<'_> = Port {
    name: "dns",
    protocol: Protocol::Udp,
    frontends: OWN,
    cluster: 0,
    local: 0,
    internal_local: false,
    external_local: false,
};
const SERVED: Port<'_> = Port { cluster: 2, ..DNS };
/// Another Service, which claims the external address of [`BOTH`].
const RIVAL: Port<'_> = Port { name: "rival", frontends: &["10.0.0.2:53", "192.0.2.1:53"], ..DNS };

impl Port<'_> {
    fn desired(&self) -> Desired {
        let name = ServiceName::new("ns", self.name);
        let frontends = self.frontends.iter().enumerate().map(|(at, text)| Frontend {
            at: text.parse().unwrap(),
            kind: if at == 0 { compile::FrontendKind::ClusterIp } else { compile::FrontendKind::ExternalIp },
        });
        let targets = |count: u8| -> Vec<Target> {
            let target = |last| SocketAddr::new(IpAddr::from([10, 1, 0, last]), 5353);
            (0..count).map(|last| Target { at: target(last), terminating: false, here: false }).collect()
        };
        let entries = PortEntries {
            key: PortKey {
                service: name.clone(),
                port: "".into(),
                protocol: self.protocol,
                family: Family::V4,
            },
            frontends: frontends.collect(),
            cluster: targets(self.cluster),
            local: targets(self.local),
            draining: Vec::new(),
            policies: Policies {
                internal_local: self.internal_local,
                external_local: self.external_local,
                has_any: self.cluster != 0,
                ..Policies::default()
            },
            ranges: Vec::new(),
            affinity_s: 0,
            algorithm: Algorithm::Random,
        };
        Desired { name, created_s: 1, ports: vec![entries] }
    }

    const fn tcp(self) -> Self {
        Self { protocol: Protocol::Tcp, ..self }
    }
}

fn start(maps: &MemMaps) -> Reconciler {
    Reconciler::restore(maps.open(), SocketLb::ALL).unwrap()
}

fn applied(reconciler: &mut Reconciler, ports: &[Port<'_>]) -> bool {
    let desired: Vec<Desired> = ports.iter().map(Port::desired).collect();
    reconciler.apply(&desired).unwrap().opened_udp
}

/// Both sets are used whatever the internal policy is, so only a flag tells the policies apart.
const LOCAL: Port<'_> =
    Port { frontends: BOTH, cluster: 2, internal_local: true, external_local: true, ..DNS };

#[rstest]
#[case::the_first_endpoints(&[DNS], SERVED, true)]
#[case::more_endpoints(&[Port { cluster: 1, ..DNS }], SERVED, false)]
#[case::fewer_endpoints(&[SERVED], Port { cluster: 1, ..DNS }, false)]
#[case::no_endpoints(&[SERVED], DNS, false)]
#[case::nothing(&[SERVED], SERVED, false)]
#[case::the_first_local_endpoint(&[LOCAL], Port { local: 1, ..LOCAL }, true)]
#[case::only_the_policy(&[LOCAL], Port { internal_local: false, ..LOCAL }, true)]
#[case::only_the_policy_while_all_were_served(
    &[Port { local: 1, ..LOCAL }], Port { internal_local: false, local: 1, ..LOCAL }, false
)]
#[case::the_policy_back(&[Port { internal_local: false, ..LOCAL }], LOCAL, false)]
#[case::a_local_endpoint_for_other_nodes_clients_only(
    &[Port { frontends: BOTH, external_local: true, ..SERVED }],
    Port { frontends: BOTH, external_local: true, local: 1, ..SERVED },
    false
)]
#[case::a_service_with_endpoints_is_made(&[], SERVED, true)]
#[case::a_service_without_endpoints_is_made(&[], DNS, false)]
#[case::a_frontend_is_added_to_one_with_endpoints(&[SERVED], Port { frontends: BOTH, ..SERVED }, true)]
#[case::a_frontend_is_added_to_one_without(&[DNS], Port { frontends: BOTH, ..DNS }, false)]
#[case::a_frontend_is_taken_from_one_that_refused(&[SERVED, RIVAL], Port { frontends: BOTH, ..SERVED }, true)]
#[case::a_frontend_is_taken_by_one_that_refuses(&[DNS, RIVAL], Port { frontends: BOTH, ..DNS }, false)]
#[case::a_frontend_that_the_older_service_keeps(
    &[Port { frontends: BOTH, ..DNS }, Port { cluster: 1, ..RIVAL }], Port { cluster: 2, ..RIVAL }, false
)]
fn refused_sockets_are_to_be_freed(
    #[case] before: &[Port<'_>],
    #[case] after: Port<'_>,
    #[case] opens: bool,
) {
    let maps = MemMaps::new(ROOMY);
    let mut reconciler = start(&maps);
    applied(&mut reconciler, before);
    assert_eq!(applied(&mut reconciler, &[after]), opens);
    assert!(!applied(&mut reconciler, &[after]), "it is said once");
    let others = before.iter().filter(|port| port.name != after.name).copied();
    let all: Vec<Port<'_>> = others.chain([after]).collect();
    assert!(!applied(&mut start(&maps), &all), "and a start cannot know whether anybody has heard it");
}

/// [`Port::frontends`] of an owner that is gone belong to nobody.
#[test]
fn a_frontend_whose_former_owner_is_gone_opens_for_the_next_one() {
    let mut reconciler = start(&MemMaps::new(ROOMY));
    applied(&mut reconciler, &[SERVED, RIVAL]);
    let gone = Desired { ports: Vec::new(), ..RIVAL.desired() };
    assert!(!reconciler.apply(&[gone]).unwrap().opened_udp);
    assert!(applied(&mut reconciler, &[Port { frontends: BOTH, ..SERVED }]));
}

#[test]
fn nobody_connects_a_udp_socket_to_a_tcp_port() {
    let mut reconciler = start(&MemMaps::new(ROOMY));
    for port in
        [DNS, SERVED, Port { frontends: BOTH, ..SERVED }, LOCAL, Port { internal_local: false, ..LOCAL }]
    {
        assert!(!applied(&mut reconciler, &[port.tcp()]));
    }
}

/// The words may be written and the write after them fail: what is read back looks as if nothing had happened.
#[test]
fn a_failed_pass_is_followed_by_one_that_says_what_it_has_opened() {
    for writes in 0.. {
        let maps = MemMaps::new(ROOMY);
        let mut reconciler = start(&maps);
        applied(&mut reconciler, &[DNS]);
        maps.faults.stop_after(writes);
        if reconciler.apply(&[SERVED.desired()]).is_ok() {
            assert!(writes > 2, "backends and slots come before the words");
            break;
        }
        maps.faults.heal();
        reconciler.reload().unwrap();
        assert!(applied(&mut reconciler, &[SERVED]), "after {writes} writes");
        assert!(!applied(&mut reconciler, &[SERVED]), "it is said once");
    }
}

/// CT-1, CT-2, CT-6: addresses that a UDP port had and has no more are told once, when nobody can be sent there any more; TCP has
/// nothing to clean.
#[test]
fn addresses_of_udp_backends_that_are_gone_are_told_when_they_are_free() {
    let maps = MemMaps::new(ROOMY);
    let mut reconciler = start(&maps);
    let gone = |reconciler: &mut Reconciler| {
        reconciler.settle().unwrap();
        let mut gone: Vec<String> = reconciler.take_gone().iter().map(ToString::to_string).collect();
        gone.sort();
        gone
    };
    let tcp = Port { name: "web", frontends: &["10.0.0.3:53"], ..SERVED }.tcp();
    applied(&mut reconciler, &[SERVED, tcp]);
    assert_eq!(gone(&mut reconciler), [""; 0]);
    applied(&mut reconciler, &[Port { cluster: 1, ..SERVED }, Port { cluster: 1, ..tcp }]);
    assert_eq!(gone(&mut reconciler), ["10.1.0.1:5353"]);
    assert_eq!(gone(&mut reconciler), [""; 0], "once");
    let removed = [SERVED, tcp].map(|port| Desired { ports: Vec::new(), ..port.desired() });
    reconciler.apply(&removed).unwrap();
    assert_eq!(gone(&mut reconciler), [""; 0], "of a Service that is gone nobody knows whether they serve");
    assert_eq!(abandoned(&mut reconciler), ["ns/dns 10.1.0.0:5353"]);
    assert_eq!(abandoned(&mut reconciler), [""; 0], "once");
}

fn abandoned(reconciler: &mut Reconciler) -> Vec<String> {
    let mut all: Vec<String> =
        reconciler.take_abandoned().iter().map(|(service, at)| format!("{service} {at}")).collect();
    all.sort();
    all
}

/// NE-3, CT-4, CT-5: also when another Service takes the last frontend away, as under a new name.
#[test]
fn backends_of_a_service_that_lost_everything_are_told() {
    let mut reconciler = start(&MemMaps::new(ROOMY));
    applied(&mut reconciler, &[Port { frontends: OWN, ..SERVED }]);
    let renamed = Port { name: "dns-2", cluster: 1, ..SERVED };
    let older = Desired { created_s: 0, ..renamed.desired() };
    reconciler.apply(&[older]).unwrap();
    reconciler.settle().unwrap();
    assert_eq!(reconciler.take_gone(), []);
    assert_eq!(abandoned(&mut reconciler), ["ns/dns 10.1.0.0:5353", "ns/dns 10.1.0.1:5353"]);
}
