//! Which Services have a health check node port, and how many endpoints it is to tell (SP-7, HC-1, HC-3).

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};

use crate::{
    model::{
        ClusterState, Endpoint, Family, NodeContext, Service, ServiceName, ServiceType, Slice, TrafficPolicy,
    },
    observe::service_health::HealthPort,
};

/// The health check port of a Service, if it has one now.
///
/// In a family where a port of it found no room, marked in `has_no_room`, it tells of no endpoint: this node does not serve it, or
/// as it was some time ago, and load balancers are to go to others (HC-4).
pub(super) fn health_port(
    state: &ClusterState,
    name: &ServiceName,
    has_no_room: [bool; 2],
) -> Option<HealthPort> {
    let service = state.service(name)?;
    let port = wanted(service)?;
    let slices: Vec<&Slice> = state.serving_slices(name).collect();
    let ready = Family::BOTH.map(|family| {
        let is_served = !has_no_room[family as usize];
        let count = || if is_served { local_ready(&slices, family, state.node()) } else { 0 };
        service.cluster_ips.of(family).map(|_| count())
    });
    Some(HealthPort { port, ready })
}

/// SP-7: of type LoadBalancer, with policy Local, and with a number.
fn wanted(service: &Service) -> Option<u16> {
    let is_wanted = service.is_proxied()
        && service.kind == ServiceType::LoadBalancer
        && service.external_policy == TrafficPolicy::Local;
    (is_wanted && service.health_check_node_port != 0).then_some(service.health_check_node_port)
}

/// What counts where an address and port is in several slices: one that is not terminating, then a ready one (ES-11).
type Rank = (bool, bool, bool, bool);

fn rank(endpoint: &Endpoint<'_>, node: &NodeContext) -> Rank {
    let conditions = endpoint.conditions();
    let is_remote = endpoint.node() != Some(&*node.name);
    (conditions.is_terminating(), !conditions.is_ready(), !conditions.is_serving(), is_remote)
}

/// Distinct addresses of ready endpoints of a family on this node, over all ports (HC-3). Those that only serve until they
/// have ended do not count, though they get traffic where nothing else is.
fn local_ready(slices: &[&Slice], family: Family, node: &NodeContext) -> u32 {
    let mut endpoints: BTreeMap<_, Rank> = BTreeMap::new();
    for slice in slices.iter().filter(|slice| slice.family == family) {
        for port in &slice.ports {
            for endpoint in slice.endpoints() {
                let rank = rank(&endpoint, node);
                let at = (endpoint.addr(), port.port, port.protocol, port.name.as_str());
                let known = endpoints.entry(at).or_insert(rank);
                *known = rank.min(*known);
            }
        }
    }
    let counts = |(_, unready, _, remote): &Rank| !unready && !remote;
    let addresses: BTreeSet<IpAddr> =
        endpoints.iter().filter(|(_, rank)| counts(rank)).map(|((addr, ..), _)| *addr).collect();
    u32::try_from(addresses.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::model::{
        Change, ClusterIps, Conditions, EndpointFacts, Event, Protocol, SliceBuilder, SliceName, SlicePort,
    };

    /// One word per endpoint: last digit of the address, then R(eady), S(erving and terminating), B(oth ready and
    /// terminating) or N(either), then node 1 (this one), 2 or none.
    fn endpoint(word: &str, family: Family) -> EndpointFacts {
        let mut letters = word.chars();
        let mut next = || letters.next();
        let last = u8::try_from(next().and_then(|digit| digit.to_digit(10)).unwrap()).unwrap();
        let (ready, serving, terminating) = match next().unwrap() {
            'R' => (true, true, false),
            'S' => (false, true, true),
            'B' => (true, true, true),
            _ => (false, false, false),
        };
        EndpointFacts {
            addr: match family {
                Family::V4 => [10, 0, 0, last].into(),
                Family::V6 => [0xfd00, 0, 0, 0, 0, 0, 0, last.into()].into(),
            },
            conditions: Conditions::new(Some(ready), Some(serving), Some(terminating)),
            node: next().map(|node| format!("n{node}").into()),
            zone_hints: Vec::new(),
            node_hints: Vec::new(),
        }
    }

    fn slice(n: usize, family: Family, ports: &[(&str, u16)], words: &str) -> Event {
        let mut slice =
            SliceBuilder::new(SliceName::new("ns", &format!("s-{n}")), ServiceName::new("ns", "s"), family);
        let port =
            |&(name, port): &(&str, u16)| SlicePort { name: name.into(), protocol: Protocol::Tcp, port };
        slice.ports(ports.iter().map(port).collect::<Vec<_>>());
        for word in words.split_whitespace() {
            slice.endpoint(&endpoint(word, family));
        }
        Event::Slice(Change::Apply(slice.build()))
    }

    fn service(change: impl FnOnce(&mut Service)) -> Event {
        let mut service = Service::new(ServiceName::new("ns", "s"));
        service.kind = ServiceType::LoadBalancer;
        service.external_policy = TrafficPolicy::Local;
        service.health_check_node_port = 32_000;
        service.cluster_ips =
            ClusterIps { v4: Some([10, 96, 0, 1].into()), v6: Some([0xfd96, 0, 0, 0, 0, 0, 0, 1].into()) };
        change(&mut service);
        Event::Service(Change::Apply(service))
    }

    fn port_of(events: impl IntoIterator<Item = Event>) -> Option<HealthPort> {
        let mut state = ClusterState::new("n1".into());
        for event in events {
            state.apply(event, &mut BTreeSet::new());
        }
        health_port(&state, &ServiceName::new("ns", "s"), [false; 2])
    }

    const HTTP: &[(&str, u16)] = &[("http", 80)];
    const BOTH: &[(&str, u16)] = &[("http", 80), ("https", 443)];

    /// HC-3, ES-11, ES-16.
    #[rstest]
    #[case::ready_here(HTTP, &["1R1 2R1"], 2)]
    #[case::not_elsewhere(HTTP, &["1R2 2R"], 0)]
    #[case::terminating_ones_do_not_count(HTTP, &["1S1 2R1"], 1)]
    #[case::also_where_they_serve(HTTP, &["1S1"], 0)]
    #[case::unless_they_are_said_to_be_ready(HTTP, &["1B1"], 1)]
    #[case::unready(HTTP, &["1N1"], 0)]
    #[case::two_ports_are_one_endpoint(BOTH, &["1R1"], 1)]
    #[case::two_slices_are_one_endpoint(HTTP, &["1R1", "1R1"], 1)]
    #[case::the_one_that_runs_wins(HTTP, &["1S1", "1R1"], 1)]
    #[case::wherever_it_runs(HTTP, &["1B1", "1R2"], 0)]
    #[case::no_port_no_endpoint(&[], &["1R1"], 0)]
    fn distinct_local_ready_addresses_count(
        #[case] ports: &[(&str, u16)],
        #[case] slices: &[&str],
        #[case] wanted: u32,
    ) {
        let slices = slices.iter().enumerate().map(|(n, words)| slice(n, Family::V4, ports, words));
        let found = port_of(slices.chain([service(|_| ())])).unwrap();
        assert_eq!(found, HealthPort { port: 32_000, ready: [Some(wanted), Some(0)] });
    }

    /// HC-4.
    #[test]
    fn a_family_whose_ports_have_no_room_tells_of_no_endpoint() {
        let mut state = ClusterState::new("n1".into());
        let slices = [slice(4, Family::V4, HTTP, "1R1"), slice(6, Family::V6, HTTP, "1R1")];
        for event in slices.into_iter().chain([service(|_| ())]) {
            state.apply(event, &mut BTreeSet::new());
        }
        for (has_no_room, ready) in [([false, true], [1, 0]), ([true, false], [0, 1]), ([true; 2], [0; 2])] {
            let found = health_port(&state, &ServiceName::new("ns", "s"), has_no_room).unwrap();
            assert_eq!(found.ready, ready.map(Some));
        }
    }

    /// HC-10.
    #[test]
    fn each_family_counts_its_own_endpoints() {
        let slices = || [slice(4, Family::V4, HTTP, "1R1 2R1"), slice(6, Family::V6, HTTP, "1R1")];
        let found = port_of(slices().into_iter().chain([service(|_| ())])).unwrap();
        assert_eq!(found.ready, [Some(2), Some(1)]);
        let single = service(|service| service.cluster_ips.v4 = None);
        let found = port_of(slices().into_iter().chain([single])).unwrap();
        assert_eq!(found.ready, [None, Some(1)], "a family without a cluster IP is not served");
    }

    /// SP-7, HC-1, HC-11.
    #[rstest]
    #[case::node_port(|service: &mut Service| service.kind = ServiceType::NodePort)]
    #[case::policy_cluster(|service: &mut Service| service.external_policy = TrafficPolicy::Cluster)]
    #[case::no_number(|service: &mut Service| service.health_check_node_port = 0)]
    #[case::headless(|service: &mut Service| service.cluster_ips = ClusterIps::default())]
    fn only_load_balancers_with_policy_local_and_a_number_have_one(#[case] change: fn(&mut Service)) {
        assert!(port_of([service(|_| ())]).is_some());
        assert_eq!(port_of([service(change)]), None);
        assert_eq!(port_of([]), None);
    }
}
