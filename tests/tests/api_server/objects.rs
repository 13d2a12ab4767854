//! What is written to the API server is programmed.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use lb_tests::control_plane::{ControlPlane, objects};
use lb_tests::{needs_cluster, wait_for};
use serde_json::{Value, json};

use crate::world::{SOON, World, slices};

/// 1.1-selectorless. Several Services, of one family and of both, with several ports and with none to serve them.
#[test]
fn what_exists_before_the_agent_is_programmed() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "initial");
    world.write(1, &[1, 2]);
    world.write(2, &[3]);
    world.write(3, &[]);
    let mut ports = world.service(4);
    ports["spec"]["ports"] = json!([
        {"name": "one", "protocol": "TCP", "port": 80}, {"name": "two", "protocol": "TCP", "port": 81},
    ]);
    world.namespace.apply(&ports).unwrap();
    for mut slice in slices(4, &[1]) {
        slice["ports"][0]["name"] = json!("two");
        world.namespace.apply(&slice).unwrap();
    }
    let mut single = world.service(5);
    let [ipv4, ipv6] = world.ips(5);
    single["spec"]["clusterIP"] = json!(ipv6);
    single["spec"]["clusterIPs"] = json!([ipv6]);
    single["spec"]["ipFamilies"] = json!(["IPv6"]);
    single["spec"]["ipFamilyPolicy"] = json!("SingleStack");
    world.namespace.apply(&single).unwrap();
    world.write_slices(5, &[2]);
    world.start();
    world.expect(1, &[1, 2]);
    world.expect(2, &[3]);
    world.expect(3, &[]);
    world.expect_port(4, 80, &[]);
    world.expect_port(4, 81, &[1]);
    world.expect_at((ipv6, 80).into(), "backend-2");
    world.expect_at((ipv4, 80).into(), "TIMEOUT");
}

/// SY-10: a second for each change on average, because one slow moment of a busy machine is none of the agent.
#[test]
fn a_slice_is_followed_within_a_second() {
    const CHANGES: u32 = 40;
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "followed");
    world.write(1, &[1]);
    world.start();
    world.expect(1, &[1]);
    let to = (world.ips(1)[0], 80).into();
    let mut took = Duration::ZERO;
    for b in [2, 1].into_iter().cycle().take(CHANGES as usize) {
        let [slice, _] = slices(1, &[b]);
        world.namespace.apply(&slice).unwrap();
        // What the API server takes itself is not the agent's.
        let begin = Instant::now();
        let wanted = format!("backend-{b}");
        wait_for("the change", SOON, || match world.meets(to) {
            met if met == wanted => Ok(()),
            met => Err(met),
        })
        .unwrap();
        took += begin.elapsed();
    }
    assert!(took < Duration::from_secs(1) * CHANGES, "{CHANGES} changes took {took:?}");
}

#[test]
fn an_added_service_is_reached_and_a_deleted_one_is_not() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "add-delete");
    world.write(1, &[1]);
    world.start();
    let traffic = world.begin(1);
    world.write(2, &[2]);
    world.expect(2, &[2]);
    world.write_slices(2, &[2, 3]);
    world.expect(2, &[2, 3]);
    world.namespace.delete(&world.service(2)).unwrap();
    world.expect_gone(2);
    // Its slices are still there.
    world.namespace.apply(&world.service(2)).unwrap();
    world.expect(2, &[2, 3]);
    traffic.end();
}

/// SEL-8: another number is a change of that port alone.
#[test]
fn a_changed_port_moves_the_frontend_and_leaves_the_other_ports_alone() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "update");
    let with_ports = |world: &World<'_>, numbers: [u16; 2]| {
        let mut service = world.service(1);
        let [kept, moved] = numbers;
        service["spec"]["ports"] = json!([
            {"name": "kept", "protocol": "TCP", "port": kept}, {"name": "moved", "protocol": "TCP", "port": moved},
        ]);
        service
    };
    world.namespace.apply(&with_ports(&world, [80, 81])).unwrap();
    for mut slice in slices(1, &[1]) {
        slice["ports"] = json!([
            {"name": "kept", "protocol": "TCP", "port": 8080}, {"name": "moved", "protocol": "TCP", "port": 8080},
        ]);
        world.namespace.apply(&slice).unwrap();
    }
    world.start();
    world.expect_port(1, 81, &[1]);
    let traffic = world.begin(1);
    world.namespace.apply(&with_ports(&world, [80, 82])).unwrap();
    world.expect_port(1, 82, &[1]);
    world.expect_port_gone(1, 81);
    // The number that the other one left may be taken in the same update that frees another.
    world.namespace.apply(&with_ports(&world, [80, 81])).unwrap();
    world.expect_port(1, 81, &[1]);
    world.expect_port_gone(1, 82);
    traffic.end();
}

/// The label decides (SEL-1), whatever its value; the API server makes a deletion of adding it and an addition of
/// removing it (SEL-2).
#[test]
fn a_service_with_the_label_of_another_proxy_or_of_headless_services_is_left_alone() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "labels");
    world.write(1, &[1]);
    world.write(2, &[2]);
    world.start();
    for label in ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"] {
        world.expect(1, &[1]);
        world.namespace.label(&world.service(1), &json!({label: ""})).unwrap();
        world.expect_gone(1);
        world.namespace.label(&world.service(1), &json!({label: null})).unwrap();
        world.expect(1, &[1]);

        for slice in slices(2, &[]) {
            world.namespace.label(&slice, &json!({label: "other"})).unwrap();
        }
        world.expect(2, &[]);
        for slice in slices(2, &[]) {
            world.namespace.label(&slice, &json!({label: null})).unwrap();
        }
        world.expect(2, &[2]);
    }
}

/// A Service cannot lose its cluster IP, so one that is headless was so from the beginning (SEL-4). Its type can change (SEL-5).
#[test]
fn a_service_that_turns_into_a_name_is_removed_and_comes_back() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "types");
    world.write(1, &[1]);
    let headless = json!({"clusterIP": "None", "ports": [{"port": 80}]});
    world.namespace.apply(&objects::service("headless", &headless)).unwrap();
    world.start();
    world.expect(1, &[1]);
    let name = json!({"type": "ExternalName", "externalName": "example.org"});
    world.namespace.apply(&objects::service("service-1", &name)).unwrap();
    world.expect_gone(1);
    world.namespace.apply(&world.service(1)).unwrap();
    world.expect(1, &[1]);
}

/// LB-3, LB-5: a load balancer writes the status and nothing else.
#[test]
fn addresses_follow_a_status_that_changes_alone() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "status");
    let mut balanced = world.service(1);
    balanced["spec"]["type"] = json!("LoadBalancer");
    world.namespace.apply(&balanced).unwrap();
    world.write_slices(1, &[1]);
    world.start();
    world.expect(1, &[1]);
    let ips = [1, 2].map(|last| IpAddr::from([203, 0, 113, last]));
    for served in [&ips[..1], &ips[1..], &[]] {
        let texts: Vec<String> = served.iter().map(ToString::to_string).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        balanced["status"] = objects::load_balancer_status(&texts);
        world.namespace.status(&balanced).unwrap();
        for ip in ips {
            let wanted = if served.contains(&ip) { "backend-1" } else { "TIMEOUT" };
            world.expect_at((ip, 80).into(), wanted);
        }
        world.expect(1, &[1]);
    }
}

/// ES-3, ES-14.
#[test]
fn a_slice_belongs_to_the_service_that_its_label_names() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "moving");
    world.write(1, &[1]);
    world.write(2, &[2]);
    world.start();
    world.expect(1, &[1]);
    let owned_by = |owner: &Value| {
        for slice in slices(1, &[]) {
            world.namespace.label(&slice, &json!({"kubernetes.io/service-name": owner})).unwrap();
        }
    };
    owned_by(&json!("service-2"));
    world.expect(1, &[]);
    world.expect(2, &[1, 2]);
    owned_by(&json!("service-3"));
    world.expect(2, &[2]);
    // The owner may come later than the slice.
    world.namespace.apply(&world.service(3)).unwrap();
    world.expect(3, &[1]);
    owned_by(&Value::Null);
    world.expect(3, &[]);
    owned_by(&json!("service-1"));
    world.expect(1, &[1]);
    for slice in slices(1, &[]) {
        world.namespace.delete(&slice).unwrap();
    }
    world.expect(1, &[]);
}

/// SY-1: ServiceCIDR objects are read before the first write, and followed.
#[test]
fn the_ranges_of_cluster_ips_are_known() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "ranges");
    world.start();
    let known = |world: &World<'_>| world.home.status().unwrap()["agent"]["service_cidrs"].clone();
    let first = known(&world);
    assert!(first.as_array().is_some_and(|ranges| ranges.len() == 2), "of both families: {first}");
}

/// ND-1, ND-2, NP-3: the Node is followed as the API server shows it; without it the last known addresses serve.
#[test]
fn node_ports_are_where_the_node_object_says() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "node-address");
    let named = |addresses: &[&str]| {
        let node = world.node();
        objects::node(node["metadata"]["name"].as_str().unwrap(), addresses)
    };
    let (before, after) = (named(&["192.168.50.1", "fd00:192:168:50::1"]), named(&["192.168.50.9"]));
    world.control_plane.apply(&before).unwrap();
    world.start();
    let until = |world: &World<'_>, wanted: &Value| {
        wait_for(&format!("node ports on {wanted}"), SOON, || {
            let served = world.home.status().unwrap()["agent"]["node_port_addresses"].clone();
            if served == *wanted { Ok(()) } else { Err(served.to_string()) }
        })
        .unwrap();
    };
    until(&world, &json!(["::1", "127.0.0.1", "192.168.50.1", "fd00:192:168:50::1"]));
    world.control_plane.apply(&after).unwrap();
    until(&world, &json!(["::1", "127.0.0.1", "192.168.50.9"]));
    world.control_plane.delete(&after).unwrap();
    wait_for("the agent to see that its Node is gone", SOON, || {
        let log = world.home.log();
        if log.contains("the API server has no Node of this name") { Ok(()) } else { Err(log) }
    })
    .unwrap();
    until(&world, &json!(["::1", "127.0.0.1", "192.168.50.9"]));
    world.control_plane.apply(&before).unwrap();
    until(&world, &json!(["::1", "127.0.0.1", "192.168.50.1", "fd00:192:168:50::1"]));
}
