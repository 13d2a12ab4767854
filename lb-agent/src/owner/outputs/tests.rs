use std::{collections::BTreeSet, path::Path};

use lb_common::abi::{FrontendKey, L4Addr, Proto};
use tokio::sync::mpsc::Receiver;

use super::*;
use crate::{
    model::{
        Change, ClusterIps, Conditions, EndpointFacts, Fault, Node, Protocol, Reason, Service, ServicePort,
        ServiceType, Slice, SliceBuilder, SliceName, SlicePort, TrafficPolicy, Trigger,
    },
    observe::{
        events::{Recorded, Subject},
        health::{Health, TIMEOUT},
        outlets,
    },
};

/// HZ-4.
#[test]
fn a_node_leaves_by_a_taint_by_being_deleted_and_not_by_never_having_been() {
    let with = |is_draining| {
        let node = Node { is_draining, ..Node::new("n1".into()) };
        NodeContext { node: Some(node), ..NodeContext::new("n1".into()) }
    };
    let without = NodeContext::new("n1".into());
    assert_eq!(node_state(NodeState::Unseen, &without), NodeState::Unseen);
    assert_eq!(node_state(NodeState::Unseen, &with(true)), NodeState::Leaving);
    assert_eq!(node_state(NodeState::Leaving, &with(false)), NodeState::Eligible);
    assert_eq!(node_state(NodeState::Eligible, &without), NodeState::Leaving);
    assert_eq!(node_state(NodeState::Leaving, &without), NodeState::Leaving);
}

fn name() -> ServiceName {
    ServiceName::new("ns", "web")
}

fn outputs() -> (Outputs, Outlets, Receiver<Recorded>) {
    let (outlets, notes) = outlets(Path::new("/nowhere"), true, Health::default());
    (Outputs::new(outlets.clone()), outlets, notes.unwrap())
}

/// A Service of type LoadBalancer with both policies Local, and an endpoint on node `node`.
fn state(node: &str) -> ClusterState {
    let mut service = Service::new(name());
    service.kind = ServiceType::LoadBalancer;
    service.cluster_ips = ClusterIps { v4: Some([10, 96, 0, 1].into()), v6: None };
    (service.internal_policy, service.external_policy) = (TrafficPolicy::Local, TrafficPolicy::Local);
    service.health_check_node_port = 32_000;
    let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: 30_080 };
    service.ports = [port].into();
    let mut state = ClusterState::new("n1".into());
    for event in [Event::Service(Change::Apply(service)), Event::Slice(Change::Apply(slice(node)))] {
        state.apply(event, &mut BTreeSet::new());
    }
    state
}

fn slice(node: &str) -> Slice {
    let mut slice = SliceBuilder::new(SliceName::new("ns", "web-1"), name(), Family::V4);
    slice.ports([SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }]);
    slice.endpoint(&EndpointFacts {
        addr: [10, 0, 0, 1].into(),
        conditions: Conditions::new(None, None, None),
        node: Some(node.into()),
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
    });
    slice.build()
}

/// The value of one line of the metrics.
fn metric(outlets: &Outlets, line: &str) -> u64 {
    let text = outlets.metrics.text().unwrap();
    let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' ')).unwrap();
    value.parse().unwrap()
}

fn succeed(outputs: &mut Outputs, state: &ClusterState) {
    outputs.succeeded(state, &LeftOut::new(Instant::now()), Instant::now(), false);
}

fn port(service: &ServiceName, port: &str) -> PortKey {
    PortKey { service: service.clone(), port: port.into(), protocol: Protocol::Tcp, family: Family::V4 }
}

/// These ports have no room.
fn without_room(ports: Vec<PortKey>) -> LeftOut {
    let mut left_out = LeftOut::new(Instant::now());
    let ports = ports.into_iter().map(|port| (port, NoRoom::Backends(3))).collect();
    left_out.planned(&BTreeSet::new(), ports, BTreeSet::new());
    left_out
}

/// NE-6.
#[test]
fn ports_without_local_endpoints_are_counted_by_family_and_policy() {
    let (mut outputs, ..) = outputs();
    let mut after = |state: &ClusterState| {
        outputs.compiled(&name(), &state.compile(&name()).ports);
        outputs.totals
    };
    assert_eq!(after(&state("n2")), [[1, 1], [0, 0]]);
    assert_eq!(after(&state("n2")), [[1, 1], [0, 0]], "once for each port");
    assert_eq!(after(&state("n1")), [[0, 0], [0, 0]], "one is here");
    after(&state("n2"));
    assert_eq!(after(&ClusterState::new("n1".into())), [[0, 0], [0, 0]], "the Service is gone");
    let mut none = state("n2");
    none.apply(Event::Slice(Change::Delete(SliceName::new("ns", "web-1"))), &mut BTreeSet::new());
    assert_eq!(after(&none), [[0, 0], [0, 0]], "there is none anywhere");
}

/// SY-2, SY-3, HZ-2, ES-17, HC-1: what was not written is not told, and waits.
#[test]
fn a_pass_that_fails_tells_nothing_and_the_next_one_everything() {
    let (mut outputs, outlets, _notes) = outputs();
    let state = state("n1");
    let stamp = Stamp::now();
    let mut slice = slice("n1");
    // Later than the start of this process, by any clock.
    slice.trigger = Trigger::at(stamp.time.as_microsecond() + 3_000_000);
    let event = Event::Slice(Change::Apply(slice));
    outlets.health.object_queued(&event, stamp.at);
    outlets.metrics.queued(&event, unix_s(stamp.time));
    outputs.took(&event, stamp);
    let times = outputs.receipts().times(&event, None);
    outputs.receipts().begin(times, stamp.time, [name()].iter());
    outputs.planned(&[name()]);
    outputs.failed(&anyhow::anyhow!("no memory"));

    let late = stamp.at + TIMEOUT;
    assert!(!outlets.health.judge(late).is_live());
    assert!(!outlets.health.judge(late).is_ready);
    assert_eq!(outputs.committed(|_| true), []);
    assert!(outputs.health_ports.is_empty());
    assert_eq!(metric(&outlets, "lbagent_changes_pending{object=\"endpointslice\"}"), 1);

    succeed(&mut outputs, &state);
    let judgement = outlets.health.judge(late);
    assert!(judgement.is_live() && judgement.is_ready);
    assert!(judgement.families.iter().all(|family| family.last_updated.is_some()));
    assert_eq!(outputs.committed(|_| true).len(), 1);
    assert_eq!(outputs.health_ports[&name()].ready, [Some(1), None]);
    assert_eq!(metric(&outlets, "lbagent_changes_pending{object=\"endpointslice\"}"), 0);
    let count = "lbagent_network_programming_duration_seconds_count{ip_family=\"IPv4\"}";
    assert_eq!(metric(&outlets, count), 1);
}

/// HZ-2: nothing is queued while nothing can be written yet, and that is no update either.
#[test]
fn before_everything_is_listed_what_was_taken_is_done() {
    let (mut outputs, outlets, _notes) = outputs();
    let (stamp, event) = (Stamp::now(), Event::Slice(Change::Apply(slice("n1"))));
    outlets.health.object_queued(&event, stamp.at);
    outputs.took(&event, stamp);
    outputs.idle();
    let judgement = outlets.health.judge(stamp.at + TIMEOUT);
    assert!(judgement.is_live() && !judgement.is_ready);
    assert_eq!(judgement.last_updated(), None);
}

/// SY-2, HZ-2: the owner that holds changes back is there, and its objects wait.
#[test]
fn what_is_held_back_on_purpose_settles_ticks_and_no_objects() {
    let (mut outputs, outlets, _notes) = outputs();
    let begin = Instant::now();
    let late = begin + TIMEOUT;
    outlets.health.tick_queued(begin);
    outputs.took_tick(begin);
    assert!(!outlets.health.judge(late).is_live());
    outputs.held_back();
    assert!(outlets.health.judge(late).is_live());
    assert_eq!(outlets.health.judge(late).last_updated(), None);
    let event = Event::Service(Change::Delete(name()));
    outlets.health.object_queued(&event, begin);
    outputs.took(&event, Stamp { at: begin, time: Timestamp::now() });
    outputs.held_back();
    assert!(!outlets.health.judge(late).is_live(), "longer than on purpose");
    succeed(&mut outputs, &state("n1"));
    assert!(outlets.health.judge(late).is_live());
}

/// A pass without anything to do is no sync: ticks come every second.
#[test]
fn a_tick_alone_is_no_update() {
    let (mut outputs, outlets, _notes) = outputs();
    outputs.took_tick(Instant::now());
    succeed(&mut outputs, &state("n1"));
    assert_eq!(outlets.health.judge(Instant::now()).last_updated(), None);
    assert_eq!(metric(&outlets, "lbagent_sync_duration_seconds_count{kind=\"partial\"}"), 0);
    outputs.planned(&[name()]);
    succeed(&mut outputs, &state("n1"));
    assert_eq!(metric(&outlets, "lbagent_sync_duration_seconds_count{kind=\"partial\"}"), 1);
    assert!(outlets.health.judge(Instant::now()).last_updated().is_some());
}

/// HC-4, ES-17: a port without room was not programmed, so there is nothing to certify, and load balancers are to go elsewhere.
#[test]
fn a_service_that_was_left_out_has_no_receipt_and_no_endpoint_until_it_has_room() {
    let (mut outputs, ..) = outputs();
    let state = state("n1");
    outputs.receipts().begin(super::super::receipts::Times::default(), Timestamp::now(), [name()].iter());
    outputs.planned(&[name()]);
    let left_out = without_room(vec![port(&name(), "")]);
    outputs.succeeded(&state, &left_out, Instant::now(), false);
    assert_eq!(outputs.committed(|_| true), []);
    assert_eq!(outputs.health_ports[&name()].ready, [Some(0), None], "503");
    outputs.planned(&[name()]);
    succeed(&mut outputs, &state);
    assert_eq!(outputs.committed(|_| true).len(), 1);
    assert_eq!(outputs.health_ports[&name()].ready, [Some(1), None]);
}

/// HC-4, ES-17.
#[test]
fn a_service_that_waits_for_a_grace_period_is_told_of_when_it_is_over() {
    let (mut outputs, ..) = outputs();
    let state = state("n1");
    outputs.receipts().begin(super::super::receipts::Times::default(), Timestamp::now(), [name()].iter());
    outputs.planned(&[name()]);
    let mut left_out = LeftOut::new(Instant::now());
    left_out.planned(&BTreeSet::new(), Vec::new(), BTreeSet::from([name()]));
    outputs.succeeded(&state, &left_out, Instant::now(), false);
    assert_eq!(outputs.committed(|_| true), []);
    assert!(outputs.health_ports.is_empty());
    outputs.planned(&[name()]);
    succeed(&mut outputs, &state);
    assert_eq!(outputs.committed(|_| true).len(), 1);
    assert_eq!(outputs.health_ports[&name()].ready, [Some(1), None]);
}

/// LB-8, 2.23-FieldNotUsed, 2.23-FrontendContested, 2.23-MapFull, 2.25-map-full.
#[test]
fn what_cannot_be_programmed_is_a_warning_on_its_service_with_field_and_remedy() {
    let (mut outputs, _outlets, mut notes) = outputs();
    let fault = Fault::new("spec.externalIPs[1]", Reason::NotAnAddress("x".into()));
    outputs.notice(&Notice::new(&name(), &fault), true);
    let key = port(&name(), "http");
    let at = L4Addr { addr: std::net::IpAddr::from([192, 0, 2, 1]).into(), port: 80 };
    let owner = ServiceName::new("ns", "older");
    let frontend = FrontendKey::new(at, Proto::TCP);
    outputs.contested(&Contested { port: key.clone(), frontend, owner }, true);
    outputs.left_out(&without_room(vec![key]));
    for (reason, parts) in [
        ("FieldNotUsed", ["spec.externalIPs[1]", "is not an IP address", "write it like"]),
        ("FrontendContested", ["192.0.2.1:80", "ns/older", "give one of the two"]),
        ("MapFull", ["\"http\"", "lb_backends has no 3 free entries", "more memory"]),
    ] {
        let note = notes.try_recv().unwrap().note;
        assert_eq!((note.reason, note.is_warning), (reason, true));
        assert_eq!(note.subject, Subject::Service(name()));
        assert!(parts.iter().all(|part| note.text.contains(part)), "{}", note.text);
    }
}

/// LB-6: one Event per Service and node would be told of what the operator wanted.
#[test]
fn what_the_operator_switched_off_is_no_event() {
    let (mut outputs, _outlets, mut notes) = outputs();
    let fault = Fault::new("spec.externalIPs", Reason::ExternalIpsOff);
    outputs.notice(&Notice::new(&name(), &fault), true);
    assert!(notes.try_recv().is_err());
}

#[test]
fn what_a_full_queue_dropped_is_told_by_a_full_pass_if_it_still_holds() {
    let (mut outputs, outlets, mut notes) = outputs();
    let state = ClusterState::new("n1".into());
    let notice = |port: i64| Notice::new(&name(), &Fault::new("spec.ports", Reason::PortOutOfRange(port)));
    while outlets.events.offer(Note::starting(), Timestamp::now()).is_ok() {}
    let known = [70_000, 70_001, 70_002].map(notice);
    for notice in &known {
        outputs.notice(notice, true);
    }
    succeed(&mut outputs, &state);
    let dropped_by = Timestamp::now();
    while notes.try_recv().is_ok() {}
    let mut told = |outputs: &mut Outputs, is_full: bool, still: &[Notice]| {
        outputs.is_full = is_full;
        for notice in still {
            outputs.notice(notice, false);
        }
        succeed(outputs, &state);
        let told: Vec<Recorded> = core::iter::from_fn(|| notes.try_recv().ok()).collect();
        assert!(told.iter().all(|told| told.at <= dropped_by), "when it happened: {told:?}");
        told.len()
    };
    assert_eq!(told(&mut outputs, false, &known), 0, "a pass over some Services");
    assert_eq!(told(&mut outputs, true, &known[1..]), 2, "the first does not hold any more");
    assert_eq!(told(&mut outputs, true, &known), 0, "once");
}

/// 2.23: however many there are.
#[test]
fn every_service_without_room_is_told_of_once_and_again_when_another_port_of_it_has_none() {
    let (mut outputs, outlets, mut notes) = outputs();
    let services: Vec<ServiceName> = (0..2000).map(|n| ServiceName::new("ns", &format!("s{n}"))).collect();
    let ports = |names: &[&str]| {
        services.iter().flat_map(|service| names.iter().map(|name| port(service, name))).collect()
    };
    let mut rounds = |outputs: &mut Outputs, left_out: &LeftOut| {
        let mut told = Vec::new();
        for _ in 0..10 {
            outputs.left_out(left_out);
            assert!(outlets.events.offer(Note::starting(), Timestamp::now()).is_ok(), "others find a place");
            let drained = core::iter::from_fn(|| Some(notes.try_recv().ok()?.note));
            told.extend(drained.filter(|note| note.reason == "MapFull"));
        }
        told
    };
    let left_out = without_room(ports(&["a", "b"]));
    let told = rounds(&mut outputs, &left_out);
    let subjects: BTreeSet<&Subject> = told.iter().map(|note| &note.subject).collect();
    assert_eq!((told.len(), subjects.len()), (services.len(), services.len()));
    assert!(
        told.iter().all(|note| note.text.contains("\"a\"") && note.text.contains("\"b\"")),
        "{:?}",
        told[0]
    );
    assert_eq!(rounds(&mut outputs, &left_out).len(), 0, "nothing is new");
    let more = without_room(ports(&["a", "b", "c"]));
    assert_eq!(rounds(&mut outputs, &more).len(), services.len());
    assert_eq!(outputs.told_full.len(), more.len());

    // Who had room meanwhile is told of again.
    let one = port(&services[7], "a");
    rounds(&mut outputs, &without_room(Vec::new()));
    assert_eq!(rounds(&mut outputs, &without_room(vec![one])).len(), 1);
    assert_eq!(outputs.told_full.len(), 1, "what has room is forgotten");
}

#[test]
fn an_event_names_a_few_of_many_ports() {
    let names: Vec<String> = (0..MOST_PORTS + 3).map(|n| format!("p{n}")).collect();
    let keys: Vec<PortKey> = names.iter().map(|name| port(&self::name(), name)).collect();
    let ports: Vec<(&PortKey, &NoRoom)> = keys.iter().map(|key| (key, &NoRoom::Services)).collect();
    let text = map_full(&ports).unwrap().text;
    assert!(
        text.contains("\"p4\"") && !text.contains("\"p5\"") && text.ends_with("and 3 ports more"),
        "{text}"
    );
    let text = map_full(&ports[..MOST_PORTS]).unwrap().text;
    assert!(!text.contains("more ports") && !text.contains("ports more"), "{text}");
}
