//! From the agent's words to the maps' words: the only place that knows both.

use ipnet::IpNet;
use lb_common::abi::{self, Addr, FrontendKey, L4Addr, Proto, RangePrefix, ServiceFlags, ServiceId};

use crate::{
    compile::{Frontend, FrontendKind, Policies, PortEntries},
    model::{Algorithm, Protocol},
};

/// IP protocol number of a port.
pub(super) const fn proto(protocol: Protocol) -> Proto {
    match protocol {
        Protocol::Tcp => Proto::TCP,
        Protocol::Udp => Proto::UDP,
        Protocol::Sctp => Proto::SCTP,
    }
}

/// A source range of a service port.
pub(super) fn range(service: ServiceId, range: &IpNet) -> RangePrefix {
    RangePrefix::new(service, Addr::from(range.network()), range.prefix_len())
}

/// The map's number for a kind.
pub(super) const fn kind(kind: FrontendKind) -> abi::FrontendKind {
    match kind {
        FrontendKind::ClusterIp => abi::FrontendKind::ClusterIp,
        FrontendKind::ExternalIp => abi::FrontendKind::ExternalIp,
        FrontendKind::LoadBalancer => abi::FrontendKind::LoadBalancer,
        FrontendKind::NodePort => abi::FrontendKind::NodePort,
        FrontendKind::OtherPorts => abi::FrontendKind::OtherPorts,
    }
}

/// Key and kind of a frontend.
pub(super) fn frontend(frontend: &Frontend, protocol: Protocol) -> (FrontendKey, abi::FrontendKind) {
    let at = L4Addr::from(frontend.at);
    let key = match frontend.kind {
        FrontendKind::OtherPorts => FrontendKey::other_ports(at.addr),
        _ => FrontendKey::new(at, proto(protocol)),
    };
    (key, kind(frontend.kind))
}

/// Policy bits of a service port.
pub(super) fn flags(policies: Policies) -> ServiceFlags {
    let Policies { internal_local, external_local, restricted, host_allowed, .. } = policies;
    [
        (internal_local, ServiceFlags::INTERNAL_LOCAL),
        (restricted, ServiceFlags::RESTRICTED),
        (host_allowed, ServiceFlags::HOST_ALLOWED),
        (external_local, ServiceFlags::EXTERNAL_LOCAL),
    ]
    .into_iter()
    .filter(|(is_set, _)| *is_set)
    .fold(ServiceFlags::default(), |bits, (_, flag)| bits.with(flag))
}

/// The bit of an algorithm.
pub(super) const fn algorithm(algorithm: Algorithm) -> ServiceFlags {
    match algorithm {
        Algorithm::Random => ServiceFlags { bits: 0 },
        Algorithm::RoundRobin => ServiceFlags::ROUND_ROBIN,
        Algorithm::Maglev => ServiceFlags::MAGLEV,
    }
}

/// Which of the two runs any frontend of the port uses. The other one repeats it, so that a hook that reads policy and
/// run at different moments always finds a run that is valid.
pub(super) fn used_runs(entries: &PortEntries) -> UsedRuns {
    let internal = [FrontendKind::ClusterIp, FrontendKind::OtherPorts];
    let external = entries.frontends.iter().any(|frontend| !internal.contains(&frontend.kind));
    let policies = entries.policies;
    UsedRuns {
        cluster: !policies.internal_local || external,
        local: policies.internal_local || (policies.external_local && external),
    }
}

/// See [`used_runs`]. At least one is true.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct UsedRuns {
    /// Some frontend uses the cluster run.
    pub(super) cluster: bool,
    /// Some frontend uses the local run.
    pub(super) local: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compile::PortKey,
        model::{Family, ServiceName},
    };

    #[test]
    fn protocols_have_their_numbers() {
        let numbers = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|protocol| proto(protocol).number);
        assert_eq!(numbers, [6, 17, 132]);
    }

    #[test]
    fn a_frontend_keeps_its_address_port_and_kind() {
        let cases = [
            (FrontendKind::ClusterIp, "10.0.0.1:80", Addr::from_v4([10, 0, 0, 1]), 1),
            (FrontendKind::ExternalIp, "192.0.2.1:81", Addr::from_v4([192, 0, 2, 1]), 2),
            (FrontendKind::LoadBalancer, "[::1]:82", Addr::LOOPBACK_V6, 3),
            (FrontendKind::NodePort, "0.0.0.0:30000", Addr::ANY_V4, 4),
            (FrontendKind::NodePort, "[::]:30000", Addr::ANY_V6, 4),
        ];
        for (kind, at, addr, number) in cases {
            let (key, lowered) = frontend(&Frontend { at: at.parse().unwrap(), kind }, Protocol::Udp);
            assert_eq!((key.addr, key.proto.number, lowered as u8), (addr, 17, number), "{at}");
            assert!(at.ends_with(&format!(":{}", key.port)), "{at}");
        }
    }

    #[test]
    fn programs_need_both_policies_and_whether_source_ranges_hold_the_host() {
        let none = Policies { has_any: true, ..Policies::default() };
        assert_eq!(flags(none).bits, 0);
        for (policies, bits) in [
            (Policies { internal_local: true, ..none }, 1),
            (Policies { restricted: true, ..none }, 2),
            (Policies { restricted: true, host_allowed: true, ..none }, 6),
            (Policies { external_local: true, ..none }, 8),
        ] {
            assert_eq!(flags(policies).bits, bits, "{policies:?}");
        }
    }

    /// 5.9-annotation.
    #[test]
    fn programs_need_the_algorithm() {
        assert_eq!(Algorithm::ALL.map(|one| algorithm(one).bits), [0, 32, 16]);
    }

    #[test]
    fn all_other_ports_of_an_address_are_one_key() {
        let other = Frontend { at: "10.0.0.1:0".parse().unwrap(), kind: FrontendKind::OtherPorts };
        let keys =
            [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|protocol| frontend(&other, protocol).0);
        assert_eq!(keys, [FrontendKey::other_ports(Addr::from_v4([10, 0, 0, 1])); 3]);
    }

    /// EP-8 and MQ-4: a ClusterIP follows the internal policy. The others serve clients of this node from the cluster run
    /// whatever their policy is, and other clients from the local run if it is Local.
    #[test]
    fn a_run_is_used_if_some_frontend_uses_it() {
        let key = PortKey {
            service: ServiceName::new("ns", "web"),
            port: "".into(),
            protocol: Protocol::Tcp,
            family: Family::V4,
        };
        let at = "10.0.0.1:80".parse().unwrap();
        for kind in [FrontendKind::ExternalIp, FrontendKind::LoadBalancer, FrontendKind::NodePort] {
            // internal Local, external Local, another kind beside the ClusterIP -> cluster, local
            for ((internal_local, external_local, has_other), (cluster, local)) in [
                ((false, false, false), (true, false)),
                ((false, false, true), (true, false)),
                ((false, true, false), (true, false)),
                ((false, true, true), (true, true)),
                ((true, false, false), (false, true)),
                ((true, false, true), (true, true)),
                ((true, true, false), (false, true)),
                ((true, true, true), (true, true)),
            ] {
                let mut frontends = vec![Frontend { at, kind: FrontendKind::ClusterIp }];
                frontends.extend(has_other.then_some(Frontend { at, kind }));
                let entries = PortEntries {
                    key: key.clone(),
                    frontends,
                    cluster: Vec::new(),
                    local: Vec::new(),
                    draining: Vec::new(),
                    policies: Policies { internal_local, external_local, ..Policies::default() },
                    ranges: Vec::new(),
                    affinity_s: 0,
                    algorithm: Algorithm::Random,
                };
                let used = UsedRuns { cluster, local };
                assert_eq!(used_runs(&entries), used, "{:?} and {has_other} {kind:?}", entries.policies);
            }
        }
    }
}
