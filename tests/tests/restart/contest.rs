//! Two Services that claim one frontend.

use lb_agent::compile::{self, Frontend};
use lb_agent::maps::read;
use lb_agent::model::ServiceName;
use lb_agent::reconcile::Contested;
use lb_common::abi::{FrontendKey, FrontendKind, Service};

use crate::named::{Named, key};
use crate::*;

const SHARED: &str = "192.0.2.1:80";

fn service(name: &str, created_s: i64, cluster_ip: &str, endpoints: u16) -> Named {
    Named::new(name, created_s).port("http", &[cluster_ip, SHARED], endpoints)
}

fn empty(name: &str) -> Named {
    Named::new(name, i64::MAX)
}

/// Who has a frontend.
fn owner(agent: &Driver, key: &FrontendKey) -> Option<ServiceName> {
    let reconciler = &agent.reconciler;
    let (_, port) = reconciler.programmed().find(|(id, _)| reconciler.frontends_of(*id).contains(key))?;
    Some(port.service.clone())
}

fn contested(agent: &Driver) -> Vec<(ServiceName, FrontendKey, ServiceName)> {
    let all = agent.contested.values().flatten();
    all.map(|Contested { port, frontend, owner }| (port.service.clone(), *frontend, owner.clone())).collect()
}

#[test]
fn the_older_service_keeps_a_contested_frontend_and_the_younger_one_keeps_its_others() {
    let maps = MemMaps::new(ROOMY);
    let mut agent = Driver::start(maps.open()).unwrap();
    let (old, young) = (service("old", 1, "10.0.0.1:80", 1), service("young", 2, "10.0.0.2:80", 2));
    agent.follow(&[old.desired(), young.desired()]).unwrap();
    assert_eq!(owner(&agent, &key(SHARED)), Some(old.name()));
    assert_eq!(owner(&agent, &key("10.0.0.2:80")), Some(young.name()));
    assert_eq!(contested(&agent), [(young.name(), key(SHARED), old.name())]);
}

#[test]
fn of_two_services_of_one_age_the_smaller_name_wins() {
    let maps = MemMaps::new(ROOMY);
    let mut agent = Driver::start(maps.open()).unwrap();
    let (a, b) = (service("a", 1, "10.0.0.1:80", 1), service("b", 1, "10.0.0.2:80", 2));
    agent.put(b.desired()).unwrap();
    assert_eq!(owner(&agent, &key(SHARED)), Some(b.name()), "alone");
    agent.put(a.desired()).unwrap();
    assert_eq!(owner(&agent, &key(SHARED)), Some(a.name()));
}

#[test]
fn an_older_service_that_appears_takes_over_and_the_loser_is_told() {
    let maps = MemMaps::new(ROOMY);
    let mut agent = Driver::start(maps.open()).unwrap();
    let (old, young) = (service("old", 1, "10.0.0.1:80", 1), service("young", 2, "10.0.0.2:80", 2));
    agent.put(young.desired()).unwrap();
    assert_eq!(contested(&agent), []);
    agent.put(old.desired()).unwrap();
    assert_eq!(owner(&agent, &key(SHARED)), Some(old.name()));
    assert_eq!(contested(&agent), [(young.name(), key(SHARED), old.name())]);
    assert_no_dangling(&maps.open());
}

/// NE-1: whoever keeps a cluster IP keeps the refusal of its other ports, whichever of its ports another Service has.
#[test]
fn a_service_that_lost_one_port_still_refuses_unused_ones() {
    let maps = MemMaps::new(ROOMY);
    let mut agent = Driver::start(maps.open()).unwrap();
    let old = Named::new("old", 1).port("http", &["10.0.0.9:80", "10.0.0.1:80"], 1);
    let mut young =
        Named::new("young", 2).port("a", &["10.0.0.1:80"], 1).port("b", &["10.0.0.1:81"], 1).desired();
    let other = Frontend { at: "10.0.0.1:0".parse().unwrap(), kind: compile::FrontendKind::OtherPorts };
    young.ports[0].frontends.push(other);
    let unused = FrontendKey::other_ports(key("10.0.0.1:80").addr);
    agent.put(young.clone()).unwrap();
    assert_eq!(owner(&agent, &unused), Some(young.name.clone()));
    agent.put(old.desired()).unwrap();
    assert_eq!(owner(&agent, &key("10.0.0.1:80")), Some(old.name()));
    assert_eq!(owner(&agent, &unused), Some(young.name.clone()));
    let mut agent = Driver::start(maps.open()).unwrap();
    assert_eq!(agent.follow(&[old.desired(), young.clone()]).unwrap(), 0, "a start finds it so");
    // The only port that is left goes too.
    young.ports.truncate(1);
    agent.put(young).unwrap();
    assert_eq!(owner(&agent, &unused), None);
}

/// LB-8: nobody is told of an owner that is none any more.
#[test]
fn who_waits_for_a_frontend_is_told_of_its_next_owner() {
    let maps = MemMaps::new(ROOMY);
    let mut agent = Driver::start(maps.open()).unwrap();
    let [first, old, young] =
        [1, 2, 3].map(|age| service(&format!("s{age}"), age, &format!("10.0.0.{age}:80"), 1));
    for service in [&old, &young] {
        agent.put(service.desired()).unwrap();
    }
    assert_eq!(contested(&agent), [(young.name(), key(SHARED), old.name())]);
    agent.put(first.desired()).unwrap();
    let losers = [&old, &young].map(|loser| (loser.name(), key(SHARED), first.name()));
    assert_eq!(contested(&agent), losers);
}

#[test]
fn a_frontend_that_is_taken_away_never_shows_the_next_endpoints_of_the_one_who_loses_it() {
    let old = service("old", 1, "10.0.0.1:80", 3);
    let young = |endpoints| service("young", 2, "10.0.0.2:80", endpoints);
    for stop in 0.. {
        let maps = MemMaps::new(ROOMY);
        let mut agent = Driver::start(maps.open()).unwrap();
        agent.put(young(1).desired()).unwrap();
        maps.faults.stop_after(stop);
        let is_done = agent.put_all(vec![old.desired(), young(2).desired()]).is_ok();
        let meaning = meaning(&maps.open()).unwrap();
        let endpoints = meaning.get(&key(SHARED)).map(|meant| meant.used().len());
        assert!(matches!(endpoints, None | Some(1 | 3)), "{endpoints:?} endpoints after {stop} writes");
        if is_done {
            assert_eq!(endpoints, Some(3));
            return;
        }
    }
}

#[test]
fn who_waits_gets_a_frontend_that_is_given_up() {
    let maps = MemMaps::new(ROOMY);
    let mut agent = Driver::start(maps.open()).unwrap();
    let (old, young) = (service("old", 1, "10.0.0.1:80", 1), service("young", 2, "10.0.0.2:80", 2));
    agent.follow(&[old.desired(), young.desired()]).unwrap();
    agent.put(Named::new("old", 1).port("http", &["10.0.0.1:80"], 1).desired()).unwrap();
    assert_eq!(
        owner(&agent, &key(SHARED)),
        Some(young.name()),
        "the other Service does not want it any more"
    );
    assert_eq!(contested(&agent), []);

    agent.put(old.desired()).unwrap();
    assert_eq!(owner(&agent, &key(SHARED)), Some(old.name()));
    agent.put(empty("old").desired()).unwrap();
    assert_eq!(owner(&agent, &key(SHARED)), Some(young.name()), "the other Service is gone");
    assert_eq!(contested(&agent), []);
}

#[test]
fn who_wants_a_frontend_no_longer_does_not_wait_for_it() {
    let maps = MemMaps::new(ROOMY);
    let mut agent = Driver::start(maps.open()).unwrap();
    let (old, young) = (service("old", 1, "10.0.0.1:80", 1), service("young", 2, "10.0.0.2:80", 2));
    agent.follow(&[old.desired(), young.desired()]).unwrap();
    agent.put(Named::new("young", 2).port("http", &["10.0.0.2:80"], 2).desired()).unwrap();
    let outcome = agent.reconciler.apply(&[empty("old").desired()]).unwrap();
    assert!(outcome.again.is_empty(), "{:?}", outcome.again);
}

#[test]
fn a_port_that_gives_up_its_frontends_for_a_contested_one_has_none() {
    let maps = MemMaps::new(ROOMY);
    let mut agent = Driver::start(maps.open()).unwrap();
    let young = |at| Named::new("young", 2).port("http", &[at], 2);
    agent.follow(&[service("old", 1, "10.0.0.1:80", 1).desired(), young("10.0.0.2:80").desired()]).unwrap();
    agent.put(young(SHARED).desired()).unwrap();
    assert_eq!(owner(&agent, &key("10.0.0.2:80")), None);
    assert!(!meaning(&maps.open()).unwrap().contains_key(&key("10.0.0.2:80")));
    assert!(agent.reconciler.ids_of(&young(SHARED).name()).is_empty());
}

#[test]
fn a_service_that_was_deleted_and_made_again_is_the_younger_one() {
    let maps = MemMaps::new(ROOMY);
    let mut agent = Driver::start(maps.open()).unwrap();
    let (first, second) = (service("first", 1, "10.0.0.1:80", 1), service("second", 2, "10.0.0.2:80", 2));
    agent.follow(&[first.desired(), second.desired()]).unwrap();
    agent.put(service("first", 3, "10.0.0.1:80", 1).desired()).unwrap();
    assert_eq!(owner(&agent, &key(SHARED)), Some(second.name()));
    assert_eq!(contested(&agent), [(first.name(), key(SHARED), second.name())]);
}

#[test]
fn a_service_that_loses_its_only_frontend_loses_its_id_and_gets_one_again() {
    let maps = MemMaps::new(ROOMY);
    let mut agent = Driver::start(maps.open()).unwrap();
    let young = Named::new("young", 2).port("http", &[SHARED], 2);
    agent.put(young.desired()).unwrap();
    agent.put(service("old", 1, "10.0.0.1:80", 1).desired()).unwrap();
    assert!(agent.reconciler.ids_of(&young.name()).is_empty());
    agent.put(empty("old").desired()).unwrap();
    assert_eq!(owner(&agent, &key(SHARED)), Some(young.name()));
    assert_eq!(agent.reconciler.ids_of(&young.name()).len(), 1);
    assert_no_dangling(&maps.open());
}

#[test]
fn a_restart_gives_a_contested_frontend_to_its_owner_whoever_is_named_first() {
    let maps = MemMaps::new(ROOMY);
    // The younger one is named first, and its name sorts first.
    let services = [service("a-young", 2, "10.0.0.2:80", 2), service("b-old", 1, "10.0.0.1:80", 1)];
    let desired = services.map(|service| service.desired());
    let mut agent = Driver::start(maps.open()).unwrap();
    agent.follow(&desired).unwrap();
    agent.settle().unwrap();
    maps.faults.stop_after(0);
    let mut agent = Driver::start(maps.open()).unwrap();
    assert_eq!(agent.reconciler.apply(&desired).unwrap().writes, 0);
}

#[test]
fn a_start_gives_no_id_to_a_service_that_wants_only_some_of_its_frontends() {
    let maps = MemMaps::new(ROOMY);
    let mut agent = Driver::start(maps.open()).unwrap();
    let (gone, new) = (service("gone", 1, "10.0.0.1:80", 1), service("new", 2, "10.0.0.3:80", 2));
    agent.put(gone.desired()).unwrap();
    let ids = agent.reconciler.ids_of(&gone.name()).to_vec();
    let mut agent = Driver::start(maps.open()).unwrap();
    agent.put(new.desired()).unwrap();
    assert_eq!(owner(&agent, &key(SHARED)), Some(new.name()));
    assert_ne!(
        agent.reconciler.ids_of(&new.name()),
        ids,
        "10.0.0.1:80 must not show the endpoints of another one"
    );
}

#[test]
fn a_renamed_port_keeps_its_id() {
    let maps = MemMaps::new(ROOMY);
    let mut agent = Driver::start(maps.open()).unwrap();
    let named = |name| Named::new("web", 1).port(name, &["10.0.0.1:80", "0.0.0.0:30000"], 2);
    agent.put(named("http").desired()).unwrap();
    let ids = agent.reconciler.ids_of(&named("http").name()).to_vec();
    assert_eq!(agent.put(named("www").desired()).unwrap(), 0, "the name is not in the maps");
    assert_eq!(agent.reconciler.ids_of(&named("www").name()), ids);
    assert!(agent.reconciler.programmed().all(|(_, key)| &*key.port == "www"));
}

/// SEL-8, SA-1: another name is another port, and nobody is bound to its backends yet.
#[test]
fn a_renamed_port_forgets_which_client_had_which_backend() {
    let maps = MemMaps::new(ROOMY);
    let mut agent = Driver::start(maps.open()).unwrap();
    let named = |name: &str, affinity_s| {
        let mut desired = Named::new("web", 1).port(name, &["10.0.0.1:80"], 2).desired();
        desired.ports[0].affinity_s = affinity_s;
        desired
    };
    agent.put(named("http", 60)).unwrap();
    let [id] = *agent.reconciler.ids_of(&Named::new("web", 1).name()) else { panic!("one port") };
    let generation = || read::<{ Service::WORDS }, Service>(&*maps.open().services, id).generation;
    let before = generation();
    agent.put(named("http", 90)).unwrap();
    assert_eq!(generation(), before);
    agent.put(named("www", 90)).unwrap();
    assert_eq!(generation(), before.wrapping_add(1));
    agent.put(named("www", 60)).unwrap();
    assert_eq!(generation(), before.wrapping_add(1), "once");
}

/// SEL-8: another number is a change.
#[test]
fn a_renumbered_port_keeps_its_id_and_its_slots() {
    let maps = MemMaps::new(ROOMY);
    let mut agent = Driver::start(maps.open()).unwrap();
    let numbered = |at| Named::new("web", 1).port("http", &[at], 2);
    agent.put(numbered("10.0.0.1:80").desired()).unwrap();
    let before = raw(&maps).1;
    assert_eq!(agent.put(numbered("10.0.0.1:81").desired()).unwrap(), 2, "one deletion and one creation");
    let after = raw(&maps).1;
    assert_eq!(before.iter().zip(&after).filter(|(one, other)| one != other).count(), 1, "the revision");
    assert_eq!(owner(&agent, &key("10.0.0.1:80")), None);
}

#[test]
fn a_change_of_endpoints_touches_no_frontend() {
    let maps = MemMaps::new(ROOMY);
    let mut agent = Driver::start(maps.open()).unwrap();
    let web = |endpoints| Named::new("web", 1).port("http", &["10.0.0.1:80", "0.0.0.0:30000"], endpoints);
    agent.put(web(2).desired()).unwrap();
    // No entry can be created or deleted; words can be stored.
    maps.faults.fail_randomly(1 << 16, 1);
    for endpoints in [3, 0, 1] {
        agent.put(web(endpoints).desired()).unwrap();
    }
}

#[test]
fn an_address_that_is_named_twice_is_one_frontend_of_its_first_kind() {
    let maps = MemMaps::new(ROOMY);
    let mut agent = Driver::start(maps.open()).unwrap();
    let web = Named::new("web", 1).port("http", &["10.0.0.1:80", "10.0.0.1:80"], 1);
    agent.put(web.desired()).unwrap();
    assert_eq!(meaning(&maps.open()).unwrap()[&key("10.0.0.1:80")].kind, FrontendKind::ClusterIp as u8);
    assert_eq!(agent.everything().unwrap(), 0);
}

#[test]
fn ports_that_swap_their_numbers_are_both_served_by_their_own_endpoints() {
    let maps = MemMaps::new(ROOMY);
    let mut agent = Driver::start(maps.open()).unwrap();
    let ports = |one, two| Named::new("web", 1).port("a", &[one], 1).port("b", &[two], 3);
    agent.put(ports("10.0.0.1:80", "10.0.0.1:81").desired()).unwrap();
    agent.put(ports("10.0.0.1:81", "10.0.0.1:80").desired()).unwrap();
    let meaning = meaning(&maps.open()).unwrap();
    assert_eq!(meaning[&key("10.0.0.1:81")].used().len(), 1);
    assert_eq!(meaning[&key("10.0.0.1:80")].used().len(), 3);
    agent.settle().unwrap();
    assert_eq!(agent.reconciler.programmed().count(), 2);
}
