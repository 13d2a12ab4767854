//! Algorithms: which tables nodes have, what does not fit, and what a change of them leaves alone.

use lb_common::abi::{Config, PacketLb, SocketLb};
use std::net::IpAddr;

use super::*;
use crate::{
    maps::memory::{Capacities, MemMaps},
    model::{
        Algorithm, Change, ClusterIps, ClusterState, Conditions, EndpointFacts, Event, Family,
        Service as Object, ServicePort, SliceName, SlicePort, arbitrary,
    },
    reconcile::{Outcome, slots_of},
};

const ROOMY: Capacities = Capacities {
    frontends: 16,
    addresses: 1,
    services: 16,
    slots: 4096,
    backends: 64,
    affinity: 1,
    ranges: 16,
    flows4: 1,
    flows6: 1,
};

/// An agent on memory.
struct Agent {
    state: ClusterState,
    reconciler: Reconciler,
}

impl Agent {
    fn new(node: &str, capacities: Capacities) -> Self {
        let maps = MemMaps::new(capacities).open();
        let reconciler = Reconciler::restore(maps, SocketLb::ALL).unwrap();
        Self { state: ClusterState::new(node.into()), reconciler }
    }

    fn hear(&mut self, event: Event) -> Outcome {
        let mut touched = BTreeSet::new();
        self.state.apply(event, &mut touched);
        let desired: Vec<Desired> = touched
            .into_iter()
            .map(|name| {
                let ports = self.state.compile(&name).ports;
                Desired { name, created_s: 0, ports }
            })
            .collect();
        self.reconciler.apply(&desired).unwrap()
    }

    fn service(&mut self, last: u8, algorithm: Algorithm, affinity_s: u32) -> Outcome {
        let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 };
        self.hear(Event::Service(Change::Apply(Object {
            cluster_ips: ClusterIps { v4: Some([10, 96, 0, last].into()), v6: None },
            ports: [port].into(),
            algorithm: Some(algorithm),
            affinity_s,
            ..Object::new(name(last))
        })))
    }

    /// Endpoints of a Service, in this order.
    fn endpoints(&mut self, last: u8, endpoints: &[u8]) -> Outcome {
        let facts: Vec<EndpointFacts> = endpoints
            .iter()
            .map(|endpoint| EndpointFacts {
                addr: IpAddr::from([10, 1, last, *endpoint]),
                conditions: Conditions::new(None, None, None),
                node: None,
                zone_hints: vec![],
                node_hints: vec![],
            })
            .collect();
        let port = SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 };
        let slice = SliceName::new("ns", &format!("s{last}"));
        let slice = arbitrary::build(slice, name(last), Family::V4, &[port], &facts);
        self.hear(Event::Slice(Change::Apply(slice)))
    }

    fn words(&self, last: u8) -> Service {
        let programmed = self.reconciler.programmed();
        let id = programmed.filter(|(_, key)| key.service == name(last)).map(|(id, _)| id).next();
        read(&*self.reconciler.maps().services, id.unwrap())
    }

    /// Who has each slot of a Service: its address, and which id that is.
    fn table(&self, last: u8) -> Vec<(L4Addr, BackendId)> {
        let slots = slots_of(&*self.reconciler.maps().slots, self.words(last).cluster);
        slots.map(|slot| (slot.at(), slot.backend)).collect()
    }

    fn joins(&self) -> bool {
        read::<_, Config>(&*self.reconciler.maps().config, 0).packets.has(PacketLb::MAGLEV)
    }
}

fn name(last: u8) -> ServiceName {
    ServiceName::new("ns", &format!("s{last}"))
}

/// 5.9-same-everywhere: whatever nodes have seen before, and whatever ids they have given.
#[test]
fn agents_that_see_the_same_endpoints_have_the_same_table() {
    let mut one = Agent::new("n1", ROOMY);
    one.service(1, Algorithm::Maglev, 0);
    one.endpoints(1, &[1, 2, 3, 4]);
    let mut other = Agent::new("n2", ROOMY);
    other.endpoints(2, &[7, 8]);
    other.service(2, Algorithm::Random, 0);
    other.endpoints(1, &[9, 4, 2, 5]);
    other.service(1, Algorithm::RoundRobin, 0);
    other.service(1, Algorithm::Maglev, 0);
    other.endpoints(1, &[3, 2, 4]);
    other.endpoints(1, &[4, 3, 1, 2]);
    let ids = |agent: &Agent| agent.table(1).into_iter().map(|(_, id)| id).collect::<Vec<_>>();
    let addresses = |agent: &Agent| agent.table(1).into_iter().map(|(at, _)| at).collect::<Vec<_>>();
    assert_eq!((one.table(1).len(), other.table(1).len()), (1021, 1021));
    assert!(addresses(&one) == addresses(&other));
    assert!(ids(&one) != ids(&other), "else the test shows nothing");
}

/// 5.9-affinity, CT-4: a change of the algorithm takes neither backends nor remembered choices away.
#[test]
fn another_algorithm_keeps_backends_and_the_generation_of_affinity() {
    let mut agent = Agent::new("n1", ROOMY);
    agent.service(1, Algorithm::Random, 600);
    agent.endpoints(1, &[1, 2, 3]);
    let before = (agent.table(1), agent.words(1).generation);
    let ids: BTreeSet<_> = before.0.iter().copied().collect();
    for (algorithm, flags) in [
        (Algorithm::Maglev, ServiceFlags::MAGLEV),
        (Algorithm::RoundRobin, ServiceFlags::ROUND_ROBIN),
        (Algorithm::Maglev, ServiceFlags::MAGLEV),
        (Algorithm::Random, ServiceFlags::default()),
    ] {
        agent.service(1, algorithm, 600);
        assert_eq!(agent.table(1).into_iter().collect::<BTreeSet<_>>(), ids, "{algorithm:?}");
        let Service { generation, flags: now, .. } = agent.words(1);
        assert_eq!((generation, now), (before.1, flags), "{algorithm:?}");
        assert_eq!(agent.joins(), algorithm == Algorithm::Maglev);
    }
    assert_eq!(agent.table(1), before.0);
}

/// 5.9-maglev: what has no room is named and stays as it was; the others are served.
#[test]
fn a_table_without_room_is_named_and_the_service_stays_as_it_was() {
    let mut agent = Agent::new("n1", Capacities { slots: 1024, ..ROOMY });
    agent.endpoints(1, &[1, 2]);
    agent.endpoints(2, &[1, 2]);
    agent.service(2, Algorithm::Random, 0);
    agent.service(1, Algorithm::Random, 0);
    let outcome = agent.service(1, Algorithm::Maglev, 0);
    let left_out: Vec<String> =
        outcome.left_out.iter().map(|(key, no_room)| format!("{}: {no_room}", key.service)).collect();
    assert_eq!(left_out, ["ns/s1: lb_slots has no free region for 1021 slots"]);
    assert_eq!((agent.words(1).flags, agent.table(1).len()), (ServiceFlags::default(), 2));
    assert!(!agent.joins());
    agent.endpoints(1, &[1]);
    assert_eq!((agent.words(1).flags, agent.table(1).len()), (ServiceFlags::MAGLEV, 1), "one needs one slot");
}

/// 5.9-join: programs look whose a segment is while some Service is hashed, also after a restart.
#[test]
fn the_switch_is_on_while_some_service_is_hashed() {
    let maps = MemMaps::new(ROOMY);
    let mut agent = Agent::new("n1", ROOMY);
    agent.reconciler = Reconciler::restore(maps.open(), SocketLb::ALL).unwrap();
    assert!(!agent.joins());
    agent.service(1, Algorithm::Maglev, 0);
    agent.service(2, Algorithm::Maglev, 0);
    assert!(agent.joins());
    agent.hear(Event::Service(Change::Delete(name(1))));
    assert!(agent.joins());
    agent.reconciler = Reconciler::restore(maps.open(), SocketLb::ALL).unwrap();
    assert!(agent.joins());
    agent.service(2, Algorithm::Maglev, 60);
    agent.hear(Event::Service(Change::Delete(name(2))));
    assert!(!agent.joins());
}
