//! A list or watch that fails is taken up again: nothing is lost, and nothing that worked breaks.
//!
//! Between the agent and the API server stands a proxy that does what a real server does not do on demand.

use std::time::{Duration, Instant};

use lb_tests::control_plane::{ControlPlane, Fault, FaultProxy, Verb};
use lb_tests::{needs_cluster, wait_until};
use rstest::rstest;

use crate::world::{SOON, Traffic, World};

/// The kinds of objects that decide about Services.
const KINDS: [&str; 2] = ["services", "endpointslices"];

/// The agent's shortest time from one watch to the next, if the first one breaks off.
const PAUSE: Duration = Duration::from_secs(1);

/// A world with Service 1, whose agent works behind a proxy.
fn behind_proxy(label: &str) -> (World<'static>, FaultProxy) {
    let control_plane = ControlPlane::shared();
    let proxy = FaultProxy::start(control_plane).unwrap();
    let mut world = World::new(control_plane, label);
    world.write(1, &[1]);
    world.start_behind(&proxy);
    world.expect(1, &[1]);
    (world, proxy)
}

/// How often `resource` was asked for in this way.
fn count(proxy: &FaultProxy, verb: Verb, resource: &str) -> usize {
    proxy.seen().iter().filter(|request| request.verb == verb && request.resource == resource).count()
}

#[test]
fn a_watch_that_the_server_closes_goes_on_where_it_was() {
    needs_cluster!();
    let control_plane = ControlPlane::shared();
    let proxy = FaultProxy::start(control_plane).unwrap();
    proxy.set_watch_seconds(1);
    let mut world = World::new(control_plane, "closed");
    world.write(1, &[1]);
    world.start_behind(&proxy);
    let traffic = world.begin(1);
    for backends in [&[1, 2][..], &[2], &[1, 2, 3], &[1]] {
        let before = count(&proxy, Verb::Watch, "endpointslices");
        world.write_slices(1, backends);
        world.expect(1, backends);
        wait_until("the next watch", SOON, || count(&proxy, Verb::Watch, "endpointslices") > before).unwrap();
    }
    for kind in KINDS {
        assert_eq!(count(&proxy, Verb::List, kind), 1, "a new list of {kind} was not necessary");
    }
    traffic.end();
}

/// Each answer once, to lists that find the agent with nothing and with something.
#[rstest]
#[case::a_server_error(Fault::Status(500))]
#[case::garbage(Fault::Garbage)]
#[case::a_truncated_answer(Fault::CutAfter(200))]
#[case::an_expired_version(Fault::Expired)]
fn a_list_that_fails_is_asked_for_again_and_deletes_nothing(#[case] fault: Fault) {
    needs_cluster!();
    let control_plane = ControlPlane::shared();
    let proxy = FaultProxy::start(control_plane).unwrap();
    let mut world = World::new(control_plane, &label("list", fault));
    world.write(1, &[1]);
    world.write(2, &[2]);
    for kind in ["services", "endpointslices", "nodes"] {
        proxy.plan(Verb::List, kind, fault, 1);
    }
    world.start_behind(&proxy);
    world.expect(1, &[1]);
    assert_eq!(proxy.planned(), 0);

    let traffic = world.begin(1);
    for kind in KINDS {
        proxy.plan(Verb::Watch, kind, Fault::Expired, 1);
        proxy.plan(Verb::List, kind, fault, 1);
    }
    proxy.cut();
    world.namespace.delete(&world.service(2)).unwrap();
    world.write(3, &[3]);
    world.expect(3, &[3]);
    world.expect_gone(2);
    wait_until("every fault", SOON, || proxy.planned() == 0).unwrap();
    traffic.end();
}

#[rstest]
#[case::a_server_error(Fault::Status(500))]
#[case::garbage(Fault::Garbage)]
#[case::a_truncated_answer(Fault::CutAfter(40))]
#[case::an_expired_version(Fault::Expired)]
#[case::an_expired_version_in_the_stream(Fault::ExpiredEvent)]
fn what_happens_while_a_watch_fails_is_found(#[case] fault: Fault) {
    needs_cluster!();
    let (world, proxy) = behind_proxy(&label("watch", fault));
    world.write(2, &[2]);
    world.expect(2, &[2]);
    let traffic = world.begin(1);
    for kind in KINDS {
        proxy.plan(Verb::Watch, kind, fault, 1);
    }
    proxy.cut();
    world.namespace.delete(&world.service(2)).unwrap();
    world.write(1, &[1, 3]);
    world.write(3, &[3]);
    world.expect_gone(2);
    world.expect(1, &[1, 3]);
    world.expect(3, &[3]);
    wait_until("every fault", SOON, || proxy.planned() == 0).unwrap();
    traffic.end();
}

/// The first pages of the broken list are no reason to forget what the others held.
#[test]
fn a_list_that_expires_in_the_middle_begins_again() {
    needs_cluster!();
    let control_plane = ControlPlane::shared();
    let proxy = FaultProxy::start(control_plane).unwrap();
    proxy.set_page_size(2);
    let mut world = World::new(control_plane, "pages");
    for i in 1..=5 {
        world.write(i, &[1]);
    }
    for kind in KINDS {
        proxy.plan(Verb::NextPage, kind, Fault::Expired, 1);
    }
    world.start_behind(&proxy);
    assert_eq!(proxy.planned(), 0, "the lists had pages");
    for i in 1..=5 {
        world.expect(i, &[1]);
    }

    let traffic: Vec<_> = (1..=4).map(|i| world.begin(i)).collect();
    for kind in KINDS {
        proxy.plan(Verb::Watch, kind, Fault::Expired, 1);
        proxy.plan(Verb::NextPage, kind, Fault::Expired, 1);
    }
    proxy.cut();
    world.namespace.delete(&world.service(5)).unwrap();
    world.expect_gone(5);
    wait_until("every fault", SOON, || proxy.planned() == 0).unwrap();
    traffic.into_iter().for_each(Traffic::end);
}

#[test]
fn a_silent_watch_of_services_does_not_hold_up_their_endpoints() {
    needs_cluster!();
    let control_plane = ControlPlane::shared();
    let proxy = FaultProxy::start(control_plane).unwrap();
    let mut world = World::new(control_plane, "silence");
    world.write(1, &[1]);
    proxy.plan(Verb::Watch, "services", Fault::Silence, 1);
    world.start_behind(&proxy);
    wait_until("the silent watch", SOON, || proxy.planned() == 0).unwrap();
    let traffic = world.begin(1);
    world.write_slices(1, &[1, 2]);
    world.expect(1, &[1, 2]);
    traffic.end();
}

/// A proxy on the way may accept every watch and close it.
#[test]
fn a_server_that_closes_watches_at_once_is_not_asked_without_a_pause() {
    needs_cluster!();
    let (world, proxy) = behind_proxy("hasty");
    let traffic = world.begin(1);
    let (begin, before) = (Instant::now(), count(&proxy, Verb::Watch, "services"));
    proxy.plan(Verb::Watch, "services", Fault::CutAfter(0), 10_000);
    proxy.cut();
    let asked = || u32::try_from(count(&proxy, Verb::Watch, "services") - before).unwrap();
    wait_until("some watches", SOON, || asked() >= 3).unwrap();
    // Every one after the first waits; who does not asks thousands of times meanwhile.
    let (asked, took) = (asked(), begin.elapsed());
    assert!(took >= PAUSE * (asked - 1), "{asked} requests in {took:?}");
    world.write(2, &[2]);
    proxy.heal();
    world.expect(2, &[2]);
    traffic.end();
}

fn label(prefix: &str, fault: Fault) -> String {
    let fault = format!("{fault:?}").to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    format!("{prefix}-{}", fault.trim_end_matches('-'))
}
