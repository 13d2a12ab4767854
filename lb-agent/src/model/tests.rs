//! Tests of [`ClusterState`]: tables for single rules, properties for event orders.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::arbitrary::{self, OWN_NODE};
use super::*;
use crate::compile::Compiled;

fn state() -> ClusterState {
    ClusterState::new(OWN_NODE.into())
}

/// Applies one event and returns what it touched.
fn apply(state: &mut ClusterState, event: Event) -> Vec<String> {
    let mut touched = BTreeSet::new();
    state.apply(event, &mut touched);
    touched.iter().map(ToString::to_string).collect()
}

fn service(name: &str) -> Service {
    let cluster_ips = ClusterIps { v4: Some([10, 96, 0, 1].into()), v6: None };
    Service { cluster_ips, ..Service::new(ServiceName::new("ns", name)) }
}

fn slice(name: &str, owner: &str, last: u8) -> Slice {
    let facts = EndpointFacts {
        addr: [10, 0, 0, last].into(),
        conditions: Conditions::new(None, None, None),
        node: None,
        zone_hints: vec![],
        node_hints: vec![],
    };
    let owner = ServiceName::new("ns", owner);
    arbitrary::build(SliceName::new("ns", name), owner, Family::V4, &[], &[facts])
}

fn slices_of(state: &ClusterState, owner: &str) -> Vec<String> {
    state.slices_of(&ServiceName::new("ns", owner)).map(|slice| slice.name.name.to_string()).collect()
}

fn put_service(service: Service) -> Event {
    Event::Service(Change::Apply(service))
}

fn put_slice(slice: Slice) -> Event {
    Event::Slice(Change::Apply(slice))
}

/// ES-17: the time of a change is no part of what a slice means.
#[test]
fn a_slice_that_differs_in_its_trigger_time_alone_touches_nothing() {
    let mut state = state();
    apply(&mut state, put_service(service("s")));
    let at = |unix_us, last| {
        let mut slice = slice("s-1", "s", last);
        slice.trigger = Trigger::at(unix_us);
        slice
    };
    assert_eq!(apply(&mut state, put_slice(at(1, 1))), ["ns/s"]);
    assert!(apply(&mut state, put_slice(at(2, 1))).is_empty());
    assert_eq!(apply(&mut state, put_slice(at(2, 2))), ["ns/s"]);
    assert_eq!(size_of::<Trigger>(), 8);
}

/// BS-8.
#[test]
fn the_service_of_the_api_server_keeps_its_last_endpoints() {
    let named = |namespace: &str, name: &str| {
        let mut slice = slice("s", name, 1);
        slice.name.namespace = namespace.into();
        slice.service.namespace = namespace.into();
        (slice.service.clone(), slice)
    };
    for (namespace, name, is_kept) in
        [("default", "kubernetes", true), ("default", "web", false), ("ns", "kubernetes", false)]
    {
        let (owner, slice) = named(namespace, name);
        let mut state = state();
        let serving = |state: &ClusterState| state.serving_slices(&owner).flat_map(Slice::endpoints).count();
        apply(&mut state, put_slice(slice.clone()));
        assert_eq!(serving(&state), 1);
        apply(
            &mut state,
            put_slice(arbitrary::build(slice.name.clone(), owner.clone(), Family::V4, &[], &[])),
        );
        assert_eq!(serving(&state), usize::from(is_kept), "{owner} with an empty slice");
        apply(&mut state, Event::Slice(Change::Delete(slice.name.clone())));
        assert_eq!(serving(&state), usize::from(is_kept), "{owner} without a slice");
        let mut next = slice;
        next.name = SliceName::new(namespace, "other");
        apply(&mut state, put_slice(next));
        let slices: Vec<&str> = state.serving_slices(&owner).map(|slice| &*slice.name.name).collect();
        assert_eq!(slices, ["other"]);
    }
}

/// ES-3, ES-14.
#[test]
fn a_relabelled_slice_moves_and_touches_both_owners() {
    let mut state = state();
    assert_eq!(apply(&mut state, put_slice(slice("s", "old", 1))), ["ns/old"]);
    assert_eq!(apply(&mut state, put_slice(slice("s", "new", 1))), ["ns/new", "ns/old"]);
    assert_eq!(slices_of(&state, "old"), [""; 0]);
    assert_eq!(slices_of(&state, "new"), ["s"]);
    assert_eq!(apply(&mut state, Event::Slice(Change::Delete(SliceName::new("ns", "s")))), ["ns/new"]);
    assert_eq!(slices_of(&state, "new"), [""; 0]);
}

#[test]
fn an_apply_that_changes_nothing_touches_nothing() {
    let mut state = state();
    for event in [put_service(service("web")), put_slice(slice("s", "web", 1))] {
        assert_eq!(apply(&mut state, event.clone()), ["ns/web"]);
        assert_eq!(apply(&mut state, event), [""; 0]);
    }
}

#[test]
fn an_unknown_object_can_be_deleted() {
    let mut state = state();
    assert_eq!(apply(&mut state, Event::Service(Change::Delete(ServiceName::new("ns", "x")))), [""; 0]);
    assert_eq!(apply(&mut state, Event::Slice(Change::Delete(SliceName::new("ns", "x")))), [""; 0]);
    assert_eq!(apply(&mut state, Event::Node(Change::Delete("x".into()))), [""; 0]);
}

/// SY-1.
#[test]
fn the_state_is_complete_when_all_three_kinds_were_listed_once() {
    let mut state = state();
    assert!(!state.is_complete());
    apply(&mut state, Event::Service(Change::Complete));
    apply(&mut state, Event::Slice(Change::Complete));
    assert!(!state.is_complete());
    apply(&mut state, Event::Node(Change::Complete));
    assert!(state.is_complete());
    apply(&mut state, Event::Service(Change::Restart));
    assert!(state.is_complete());
}

/// SY-9.
#[test]
fn complete_drops_what_was_not_listed_again() {
    let mut state = state();
    for name in ["gone", "kept"] {
        apply(&mut state, put_service(service(name)));
        apply(&mut state, put_slice(slice(name, name, 1)));
    }
    assert_eq!(apply(&mut state, Event::Service(Change::Restart)), [""; 0]);
    assert_eq!(apply(&mut state, put_service(service("kept"))), [""; 0]);
    assert_eq!(state.services().count(), 2, "an earlier list stays in force until the new one is complete");
    assert_eq!(apply(&mut state, Event::Service(Change::Complete)), ["ns/gone"]);
    assert_eq!(state.services().map(ToString::to_string).collect::<Vec<_>>(), ["ns/kept"]);

    apply(&mut state, Event::Slice(Change::Restart));
    apply(&mut state, put_slice(slice("kept", "kept", 1)));
    assert_eq!(apply(&mut state, Event::Slice(Change::Complete)), ["ns/gone"]);
    assert_eq!(slices_of(&state, "gone"), [""; 0]);
}

/// TP-8, ND-4.
#[test]
fn a_new_zone_of_the_own_node_touches_every_service() {
    let own = |zone: Option<&str>| {
        let node = Node { zone: zone.map(Into::into), ..Node::new(OWN_NODE.into()) };
        Event::Node(Change::Apply(node))
    };
    let mut state = state();
    apply(&mut state, put_service(service("web")));
    assert_eq!(apply(&mut state, own(None)), [""; 0]);
    assert_eq!(apply(&mut state, own(Some("a"))), ["ns/web"]);
    assert_eq!(apply(&mut state, own(Some("a"))), [""; 0]);
    let other = Node { zone: Some("b".into()), ..Node::new("n2".into()) };
    assert_eq!(apply(&mut state, Event::Node(Change::Apply(other))), [""; 0]);
    assert_eq!(state.node().zone(), Some("a"));

    apply(&mut state, Event::Node(Change::Restart));
    assert_eq!(apply(&mut state, Event::Node(Change::Complete)), ["ns/web"]);
    assert_eq!(state.node().zone(), None);
}

/// SY-1: a source that lists ServiceCIDRs is waited for, one that does not is not.
#[test]
fn service_cidrs_are_waited_for_where_they_can_be_listed() {
    let mut state = state();
    let cidr = |change| Event::ServiceCidr(change);
    let range = |name: &str, text: &str| {
        let ranges = Box::new([text.parse().unwrap()]);
        cidr(Change::Apply(ServiceCidr { name: name.into(), ranges, faults: Few::default() }))
    };
    let shown =
        |state: &ClusterState| state.service_cidrs().map(|range| range.to_string()).collect::<Vec<_>>();
    apply(&mut state, cidr(Change::Restart));
    apply(&mut state, Event::Service(Change::Complete));
    apply(&mut state, Event::Slice(Change::Complete));
    apply(&mut state, Event::Node(Change::Complete));
    assert!(!state.is_complete());
    apply(&mut state, range("kubernetes", "10.96.0.0/12"));
    apply(&mut state, range("more", "fd00::/108"));
    apply(&mut state, cidr(Change::Complete));
    assert!(state.is_complete());
    assert_eq!(shown(&state), ["10.96.0.0/12", "fd00::/108"]);
    apply(&mut state, cidr(Change::Delete("more".into())));
    apply(&mut state, range("new", "10.112.0.0/12"));
    assert_eq!(shown(&state), ["10.96.0.0/12", "10.112.0.0/12"]);
    apply(&mut state, cidr(Change::Restart));
    apply(&mut state, range("new", "10.112.0.0/12"));
    assert_eq!(shown(&state).len(), 2, "an earlier list stays in force until the new one is complete");
    apply(&mut state, cidr(Change::Complete));
    assert_eq!(shown(&state), ["10.112.0.0/12"]);
    assert!(state.is_complete());
}

/// News of objects that belong to no Service, and all that is wrong with them now.
fn unowned(state: &mut ClusterState) -> (Option<Vec<String>>, Vec<String>) {
    let shown = |object: &Unowned, fault: &Fault| format!("{object}: {}", fault.field);
    let news = state.take_unowned_news();
    let news = news.map(|news| news.iter().map(|(object, fault)| shown(object, fault)).collect());
    (news, state.unowned_faults().map(|(object, fault)| shown(object, fault)).collect())
}

/// ES-2: once for each object and cause, whatever else changes, and no longer than it is there.
#[test]
fn a_slice_without_an_owner_is_named_once_and_as_long_as_it_is_there() {
    let mut state = state();
    let refuse = |name: &str| {
        let fault = Fault::new("metadata.labels", Reason::NoOwner);
        Event::Slice(Change::Refuse(SliceName::new("ns", name), fault))
    };
    let said = || vec!["endpointslice ns/a: metadata.labels".to_owned()];
    apply(&mut state, put_slice(slice("a", "s", 1)));
    assert_eq!(unowned(&mut state), (None, vec![]));
    assert_eq!(apply(&mut state, refuse("a")), ["ns/s"], "as good as deleted");
    assert_eq!(unowned(&mut state), (Some(said()), said()));
    // Each update of it and each list tells of it again.
    for event in [refuse("a"), Event::Slice(Change::Restart), refuse("a"), Event::Slice(Change::Complete)] {
        apply(&mut state, event);
    }
    assert_eq!(unowned(&mut state), (None, said()));
    for gone in [
        vec![Event::Slice(Change::Delete(SliceName::new("ns", "a")))],
        vec![put_slice(slice("a", "s", 1))],
        vec![Event::Slice(Change::Restart), Event::Slice(Change::Complete)],
    ] {
        for event in gone {
            apply(&mut state, event);
        }
        assert_eq!(unowned(&mut state), (Some(vec![]), vec![]));
        apply(&mut state, refuse("a"));
        assert_eq!(unowned(&mut state), (Some(said()), said()), "it is there again");
    }
}

#[test]
fn faults_of_the_own_node_and_of_service_cidrs_are_named_and_those_of_other_nodes_are_not() {
    let mut state = state();
    let faults = |field: &str| Few::from([Fault::new(field, Reason::NotAnAddress("x".into()))]);
    let node = |name: &str, faults| Event::Node(Change::Apply(Node { faults, ..Node::new(name.into()) }));
    let cidr = ServiceCidr { name: "c".into(), ranges: Box::default(), faults: faults("spec.cidrs[0]") };
    apply(&mut state, node("n2", faults("elsewhere")));
    assert_eq!(unowned(&mut state), (None, vec![]));
    apply(&mut state, node(OWN_NODE, faults("here")));
    apply(&mut state, Event::ServiceCidr(Change::Apply(cidr)));
    let said = vec![format!("node {OWN_NODE}: here"), "servicecidr c: spec.cidrs[0]".to_owned()];
    assert_eq!(unowned(&mut state), (Some(said.clone()), said));
    apply(&mut state, node(OWN_NODE, faults("there")));
    apply(&mut state, Event::ServiceCidr(Change::Delete("c".into())));
    let said = vec![format!("node {OWN_NODE}: there")];
    assert_eq!(unowned(&mut state), (Some(said.clone()), said), "another cause");
    apply(&mut state, Event::Node(Change::Delete(OWN_NODE.into())));
    assert_eq!(unowned(&mut state), (Some(vec![]), vec![]));
}

/// A cluster IP that comes to be on an interface, or leaves it, concerns its Service and nobody else.
#[test]
fn own_addresses_touch_the_services_whose_cluster_ips_they_are() {
    let mut state = state();
    let with_address = |name: &str, last: u8| Service {
        cluster_ips: ClusterIps { v4: Some([10, 96, 0, last].into()), v6: None },
        ..service(name)
    };
    apply(&mut state, put_service(with_address("dns", 10)));
    apply(&mut state, put_service(with_address("web", 11)));
    let mut set = |addresses: &[(&str, &str)]| {
        let own = addresses.iter().map(|(addr, name)| (addr.parse().unwrap(), (*name).into())).collect();
        let mut touched = BTreeSet::new();
        state.set_own_addresses(own, &mut touched);
        let alone = state.left_alone().into_iter().map(|(name, addr, at)| format!("{name} {addr} {at}"));
        (touched.iter().map(ToString::to_string).collect::<Vec<_>>(), alone.collect::<Vec<_>>())
    };
    let none: (Vec<String>, Vec<String>) = (vec![], vec![]);
    assert_eq!(set(&[("192.168.50.1", "eth0")]), none);
    let (touched, alone) = set(&[("192.168.50.1", "eth0"), ("10.96.0.10", "nodelocaldns")]);
    assert_eq!(
        (touched, alone),
        (vec!["ns/dns".to_owned()], vec!["ns/dns 10.96.0.10 nodelocaldns".to_owned()])
    );
    assert_eq!(set(&[("10.96.0.10", "nodelocaldns")]).0, [""; 0], "it is still there");
    assert_eq!(set(&[]), (vec!["ns/dns".to_owned()], vec![]));
}

/// ND-5.
#[test]
fn a_name_that_nothing_else_mentions_is_noticed() {
    let on = |node: Option<&str>| {
        let facts = EndpointFacts {
            addr: [10, 0, 0, 1].into(),
            conditions: Conditions::new(None, None, None),
            node: node.map(Into::into),
            zone_hints: vec![],
            node_hints: vec![],
        };
        arbitrary::build(SliceName::new("ns", "s"), ServiceName::new("ns", "web"), Family::V4, &[], &[facts])
    };
    let mut state = state();
    assert!(!state.lacks_own_node(), "nobody is named at all");
    for (node, lacks) in [(None, false), (Some("N1"), true), (Some("n2"), true), (Some(OWN_NODE), false)] {
        apply(&mut state, put_slice(on(node)));
        assert_eq!(state.lacks_own_node(), lacks, "{node:?}");
    }
    let mut elsewhere = on(Some("n2"));
    elsewhere.name = SliceName::new("ns", "elsewhere");
    apply(&mut state, put_slice(elsewhere));
    assert!(!state.lacks_own_node(), "one of several is here");
    apply(&mut state, put_slice(on(Some("n2"))));
    assert!(state.lacks_own_node());
    apply(&mut state, Event::Node(Change::Apply(Node::new(OWN_NODE.into()))));
    assert!(!state.lacks_own_node(), "a Node has the name");
}

/// SR-3, ND-3.
#[test]
fn another_address_of_this_node_touches_services_with_source_ranges() {
    let mut state = state();
    let restricted =
        Service { source_ranges: ["10.0.0.0/8".parse().unwrap()].into(), ..service("restricted") };
    for service in [restricted, service("open")] {
        apply(&mut state, put_service(service));
    }
    let mut set = |primary| {
        let mut touched = BTreeSet::new();
        state.set_primary(primary, &mut touched);
        touched.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(set([None; 2]), [""; 0]);
    assert_eq!(set([Some([10, 0, 0, 1].into()), None]), ["ns/restricted"]);
    assert_eq!(set([Some([10, 0, 0, 1].into()), None]), [""; 0]);
}

/// The objects that events leave behind, by the plainest means.
#[derive(Default)]
struct Reference {
    services: BTreeMap<ServiceName, Service>,
    slices: BTreeMap<SliceName, Slice>,
    nodes: BTreeMap<Arc<str>, Node>,
    seen_services: BTreeSet<ServiceName>,
    seen_slices: BTreeSet<SliceName>,
    seen_nodes: BTreeSet<Arc<str>>,
}

fn refer<K: Ord + Clone, V>(
    objects: &mut BTreeMap<K, V>,
    seen: &mut BTreeSet<K>,
    change: Change<K, V>,
    key: impl Fn(&V) -> K,
) {
    match change {
        Change::Restart => seen.clear(),
        Change::Apply(object) => {
            seen.insert(key(&object));
            objects.insert(key(&object), object);
        }
        Change::Delete(name) | Change::Refuse(name, _) => {
            objects.remove(&name);
        }
        Change::Complete => objects.retain(|name, _| seen.contains(name)),
    }
}

impl Reference {
    fn apply(&mut self, event: Event) {
        match event {
            Event::Service(change) => {
                refer(&mut self.services, &mut self.seen_services, change, |service| service.name.clone());
            }
            Event::Slice(change) => {
                refer(&mut self.slices, &mut self.seen_slices, change, |slice| slice.name.clone());
            }
            Event::Node(change) => {
                refer(&mut self.nodes, &mut self.seen_nodes, change, |node| Arc::clone(&node.name));
            }
            // Nothing is compiled from them.
            Event::ServiceCidr(_) => {}
        }
    }

    /// A state that was told only the objects that are left, last name first.
    fn fresh(self) -> ClusterState {
        let mut state = state();
        let mut touched = BTreeSet::new();
        let slices = self.slices.into_values().rev().map(put_slice);
        let services = self.services.into_values().rev().map(put_service);
        let nodes = self.nodes.into_values().map(|node| Event::Node(Change::Apply(node)));
        for event in slices.chain(services).chain(nodes) {
            state.apply(event, &mut touched);
        }
        state
    }
}

fn compiled(state: &ClusterState) -> BTreeMap<ServiceName, Compiled> {
    state.services().map(|name| (name.clone(), state.compile(name))).collect()
}

/// A stream of one kind: changes, with whole lists now and then. `Complete` follows a `Restart`, as every source keeps it.
fn changes<K: Clone + core::fmt::Debug + 'static, V: Clone + core::fmt::Debug + 'static>(
    key: impl Strategy<Value = K> + 'static,
    value: impl Strategy<Value = V> + 'static,
) -> impl Strategy<Value = Vec<Change<K, V>>> {
    let value = value.boxed();
    let single = prop_oneof![
        4 => value.clone().prop_map(|value| vec![Change::Apply(value)]),
        2 => key.prop_map(|key| vec![Change::Delete(key)]),
    ];
    let list = vec(value, 0..4).prop_map(|values| {
        let applies = values.into_iter().map(Change::Apply);
        [Change::Restart].into_iter().chain(applies).chain([Change::Complete]).collect()
    });
    vec(prop_oneof![5 => single, 1 => list], 0..8).prop_map(|parts| parts.concat())
}

/// Three streams, interleaved at random.
fn events() -> impl Strategy<Value = Vec<Event>> {
    let services = changes(arbitrary::service_name(), arbitrary::service());
    let slices = changes(arbitrary::slice_name(), arbitrary::slice());
    let nodes = changes(Just(Arc::from(OWN_NODE)), arbitrary::node());
    (services, slices, nodes, vec(0..3_u8, 64)).prop_map(|(services, slices, nodes, turns)| {
        let mut streams: [Vec<Event>; 3] = [
            services.into_iter().map(Event::Service).collect(),
            slices.into_iter().map(Event::Slice).collect(),
            nodes.into_iter().map(Event::Node).collect(),
        ];
        for stream in &mut streams {
            stream.reverse();
        }
        let drawn: Vec<Event> =
            turns.into_iter().filter_map(|turn| streams[usize::from(turn)].pop()).collect();
        let rest = streams.into_iter().flat_map(|stream| stream.into_iter().rev());
        drawn.into_iter().chain(rest).collect()
    })
}

/// An address that [`arbitrary::service`] may give.
fn cluster_ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (1..4_u8).prop_map(|last| IpAddr::from([10, 96, 0, last])),
        (1..4_u16).prop_map(|last| IpAddr::from([0xfd00, 96, 0, 0, 0, 0, 0, last])),
    ]
}

proptest! {
    /// ES-3, ES-14, SY-9.
    #[test]
    fn any_event_order_with_the_same_end_gives_the_same_state(
        events in events(),
        own in vec(cluster_ip(), 0..4),
    ) {
        let mut state = state();
        let mut reference = Reference::default();
        for event in events {
            let before = compiled(&state);
            let mut touched = BTreeSet::new();
            state.apply(event.clone(), &mut touched);
            reference.apply(event);
            // What is not touched compiles as before, so that only touched services need to be looked at.
            let after = compiled(&state);
            for name in before.keys().chain(after.keys()) {
                prop_assert!(touched.contains(name) || before.get(name) == after.get(name), "{name}");
            }
        }
        // Addresses that come to interfaces, or leave them, are no events, and touch what they concern likewise.
        for own in [&own[..], &[]] {
            let before = compiled(&state);
            let mut touched = BTreeSet::new();
            state.set_own_addresses(own.iter().map(|addr| (*addr, "eth0".into())).collect(), &mut touched);
            for (name, after) in compiled(&state) {
                prop_assert!(touched.contains(&name) || before.get(&name) == Some(&after), "{name}");
            }
        }
        let fresh = reference.fresh();
        prop_assert_eq!(compiled(&state), compiled(&fresh));
        prop_assert_eq!(state.node(), fresh.node());
    }
}
