//! Traffic outlives the API server and the agent, and what was missed is found.

use std::time::{Duration, Instant};

use lb_tests::control_plane::{ControlPlane, Trust};
use lb_tests::{needs_cluster, wait_until};

use crate::world::{HEALTHZ, METRICS, SOON, World, restartable};

/// SY-8.
#[test]
fn traffic_flows_while_the_api_server_restarts_and_later_changes_arrive() {
    needs_cluster!();
    let control_plane = restartable();
    let mut world = World::new(&control_plane, "restarted");
    world.write(1, &[1]);
    world.start();
    world.expect(1, &[1]);
    let traffic = world.begin(1);
    control_plane.stop_api_server();
    traffic.goes_on();
    control_plane.start_api_server().unwrap();
    world.write(1, &[1, 2]);
    world.write(2, &[3]);
    world.expect(1, &[1, 2]);
    world.expect(2, &[3]);
    traffic.end();
}

/// SY-8, HZ-2: the outage is longer than the patience of an agent whose owner does not keep up. What shows it are metrics.
#[test]
fn health_stays_while_the_api_server_is_away() {
    needs_cluster!();
    let control_plane = restartable();
    let mut world = World::new(&control_plane, "healthy");
    world.write(1, &[1]);
    let kubeconfig = control_plane.kubeconfig(&control_plane.node_urls()[0], Trust::Authority).unwrap();
    // Twice this, and ten seconds at least.
    world.spawn(&kubeconfig, &["--resync-interval=1s"]);
    let patience = Duration::from_secs(10);
    world.wait_ready();
    world.expect(1, &[1]);
    let both = || ["/healthz", "/livez"].map(|path| world.ask(HEALTHZ, path).code);
    wait_until("a healthy agent", SOON, || both() == [200; 2]).unwrap();

    control_plane.stop_api_server();
    let lost = "lbagent_api_requests_total{resource=\"services\",code=\"none\"} ";
    let unanswered = || {
        let text = world.ask(METRICS, "/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix(lost)).map(str::to_owned);
        line.unwrap_or_else(|| panic!("no {lost} in {text}"))
    };
    wait_until("a request without an answer", SOON, || unanswered() != "0").unwrap();
    let begin = Instant::now();
    while begin.elapsed() < patience + patience / 2 {
        assert_eq!(both(), [200; 2], "after {:?}; log of the agent:\n{}", begin.elapsed(), world.home.log());
        std::thread::sleep(Duration::from_millis(200));
    }
    control_plane.start_api_server().unwrap();
    world.write(1, &[2]);
    world.expect(1, &[2]);
    assert_eq!(both(), [200; 2]);
}

/// SY-9: the connection breaks without a word, and the version that was last seen is too old afterwards: only a new list tells
/// what is gone.
#[test]
fn what_was_deleted_while_the_agent_could_not_see_it_is_found() {
    needs_cluster!();
    let control_plane = restartable();
    let mut world = World::new(&control_plane, "unseen");
    for i in 1..=4 {
        world.write(i, &[1]);
    }
    world.start();
    for i in 1..=4 {
        world.expect(i, &[1]);
    }
    let traffic = world.begin(1);
    control_plane.kill_api_server();
    world.unlink();
    control_plane.start_api_server().unwrap();
    world.namespace.delete(&world.service(2)).unwrap();
    for slice in crate::world::slices(3, &[]) {
        world.namespace.delete(&slice).unwrap();
    }
    world.write_slices(4, &[2]);
    world.write(5, &[3]);
    assert!(control_plane.compact().unwrap() > 0);
    control_plane.kill_api_server();
    control_plane.start_api_server().unwrap();
    traffic.goes_on();
    world.relink();
    world.expect_gone(2);
    world.expect(3, &[]);
    world.expect(4, &[2]);
    world.expect(5, &[3]);
    traffic.end();
}

/// No packet tells of a cable that was cut; the agent finds out by itself.
#[test]
fn a_connection_that_leads_to_nobody_any_more_is_given_up() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "cut");
    world.write(1, &[1]);
    world.start();
    world.expect(1, &[1]);
    let traffic = world.begin(1);
    world.unlink();
    world.relink();
    world.write_slices(1, &[1, 2]);
    world.expect(1, &[1, 2]);
    traffic.end();
}

/// SY-1, SY-5, BS-7.
#[test]
fn an_agent_that_starts_before_the_api_server_waits_and_breaks_nothing_that_is_pinned() {
    needs_cluster!();
    let control_plane = restartable();
    let mut world = World::new(&control_plane, "early");
    world.write(1, &[1]);
    world.write(2, &[2]);
    world.start();
    world.expect(1, &[1]);
    let traffic = world.begin(1);
    world.stop();
    world.namespace.delete(&world.service(2)).unwrap();
    control_plane.stop_api_server();

    world.spawn_at(&control_plane.node_urls()[0]);
    world.wait_for_line(&["WARN", "objects cannot be watched", "retrying"]);
    traffic.goes_on();
    world.expect(2, &[2]);
    control_plane.start_api_server().unwrap();
    world.wait_ready();
    world.expect_gone(2);
    world.write(3, &[3]);
    world.expect(3, &[3]);
    traffic.end();
}

/// BS-6, BS-7. In a pod the agent is told the address of the Service `kubernetes`, which it itself makes work.
#[test]
fn an_agent_that_depends_on_its_own_work_finds_the_api_server_again() {
    needs_cluster!();
    let control_plane = restartable();
    let mut world = World::new(&control_plane, "itself");
    world.write(1, &[1]);
    world.start();
    world.stop();
    world.spawn_at("https://10.0.0.1:443");
    world.wait_ready();
    control_plane.stop_api_server();
    // The first words about it may be those of a server that says itself that it ends.
    world.wait_for_line(&["WARN", "objects cannot be watched"]);
    world.wait_for_line(&["no answer from https://10.0.0.1"]);
    control_plane.start_api_server().unwrap();
    world.write(1, &[1, 2]);
    world.expect(1, &[1, 2]);
    control_plane.kill_api_server();
    control_plane.start_api_server().unwrap();
    world.write(1, &[2]);
    world.expect(1, &[2]);
}

#[test]
fn an_agent_that_starts_again_finds_what_changed_meanwhile() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "away");
    for i in 1..=3 {
        world.write(i, &[1]);
    }
    world.start();
    let traffic = world.begin(1);
    for i in 1..=3 {
        world.expect(i, &[1]);
    }
    world.stop();
    world.namespace.delete(&world.service(2)).unwrap();
    world.write_slices(3, &[2, 3]);
    world.write(4, &[2]);
    // Nobody has told the maps.
    world.expect(2, &[1]);
    world.start();
    world.expect_gone(2);
    world.expect(3, &[2, 3]);
    world.expect(4, &[2]);
    traffic.end();
}
