//! Pods come and go as they do in a cluster, and the real EndpointSlice controller says so: new connections follow the rules,
//! and none fails that need not.

use lb_tests::control_plane::{ControlPlane, objects};
use lb_tests::{needs_cluster, wait_until};
use serde_json::{Value, json};

use crate::world::{SOON, World, backend, pod, service_on_nodes};

/// TE-1, TE-5: one Pod after the other is replaced, while somebody connects without a pause.
#[test]
fn a_rolling_update_fails_no_connection() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "rolling");
    world.namespace.apply(&world.service_of(1, "web")).unwrap();
    world.namespace.apply(&pod(&world, 1, "web", true)).unwrap();
    world.start();
    world.expect(1, &[1]);
    let traffic = world.begin(1);
    for (old, new) in [(1, 2), (2, 3), (3, 1)] {
        world.namespace.apply(&pod(&world, new, "web", false)).unwrap();
        world.namespace.apply(&pod(&world, new, "web", true)).unwrap();
        world.expect(1, &[old, new]);
        world.namespace.terminate(&pod(&world, old, "web", true)).unwrap();
        world.expect(1, &[new]);
        world.namespace.delete(&pod(&world, old, "web", true)).unwrap();
        world.expect(1, &[new]);
        traffic.goes_on();
    }
    traffic.end();
}

/// EP-1, NE-1: to zero and back; new connections are refused in between, and nothing else is.
#[test]
fn a_service_is_scaled_to_zero_and_back() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "zero");
    for i in [1, 2] {
        world.namespace.apply(&world.service_of(i, ["web", "other"][usize::from(i) - 1])).unwrap();
    }
    world.namespace.apply(&pod(&world, 3, "other", true)).unwrap();
    world.start();
    world.expect(2, &[3]);
    let other = world.begin(2);
    for _ in 0..3 {
        world.expect(1, &[]);
        for b in [1, 2] {
            world.namespace.apply(&pod(&world, b, "web", true)).unwrap();
        }
        world.expect(1, &[1, 2]);
        for b in [1, 2] {
            world.namespace.delete(&pod(&world, b, "web", true)).unwrap();
        }
    }
    world.expect(1, &[]);
    other.end();
}

/// TE-2, TE-3, TE-5: the last Pod serves while it terminates, not when it fails, and not beside one that is ready.
#[test]
fn the_last_pod_serves_while_it_terminates() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "terminating");
    world.namespace.apply(&world.service_of(1, "web")).unwrap();
    for b in [1, 2] {
        world.namespace.apply(&pod(&world, b, "web", true)).unwrap();
    }
    world.start();
    world.expect(1, &[1, 2]);
    let traffic = world.begin(1);
    world.namespace.terminate(&pod(&world, 1, "web", true)).unwrap();
    world.expect(1, &[2]);
    world.namespace.terminate(&pod(&world, 2, "web", true)).unwrap();
    world.expect(1, &[1, 2]);
    // One of them fails its readiness while it terminates.
    world.status(&pod(&world, 1, "web", false));
    world.expect(1, &[2]);
    world.namespace.apply(&pod(&world, 3, "web", true)).unwrap();
    world.expect(1, &[3]);
    traffic.end();
    for b in [1, 2, 3] {
        world.namespace.delete(&pod(&world, b, "web", true)).unwrap();
    }
    world.expect(1, &[]);
}

/// SY-2: a Pod whose readiness flaps is in or out, and whoever is ready all the time serves all the time.
#[test]
fn flapping_readiness_fails_no_connection_and_ends_right() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "flapping");
    world.namespace.apply(&world.service_of(1, "web")).unwrap();
    for b in [1, 2] {
        world.namespace.apply(&pod(&world, b, "web", true)).unwrap();
    }
    world.start();
    world.expect(1, &[1, 2]);
    let traffic = world.begin(1);
    for round in 0..40 {
        world.status(&pod(&world, 2, "web", round % 2 == 1));
    }
    world.expect(1, &[1, 2]);
    world.status(&pod(&world, 2, "web", false));
    world.expect(1, &[1]);
    traffic.end();
}

/// ES-16: the controller says that such endpoints are ready, whatever they are.
#[test]
fn addresses_that_are_published_though_not_ready_serve() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "published");
    let mut service = world.service_of(1, "web");
    service["spec"]["publishNotReadyAddresses"] = json!(true);
    world.namespace.apply(&service).unwrap();
    world.namespace.apply(&pod(&world, 1, "web", false)).unwrap();
    world.namespace.apply(&pod(&world, 2, "web", true)).unwrap();
    world.start();
    world.expect(1, &[1, 2]);
    world.namespace.terminate(&pod(&world, 2, "web", true)).unwrap();
    world.namespace.apply(&world.service_of(1, "web")).unwrap();
    world.status(&pod(&world, 1, "web", true));
    world.expect(1, &[1]);
    world.namespace.delete(&pod(&world, 2, "web", true)).unwrap();
}

/// TP-1, TP-3, TP-4, TP-5, TP-7, TP-8, TP-9, ND-4: the controller writes hints, the agent follows them, also when its Node moves.
#[test]
fn traffic_is_distributed_as_the_service_prefers() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "distribution");
    // Backend 1 is on the own Node, 2 in its zone, 3 in another one.
    world.set_zone(Some("a"));
    let nodes = ["distribution", "distribution-near", "distribution-far"];
    for (node, zone) in [(nodes[1], "a"), (nodes[2], "b")] {
        let mut object = objects::node(node, &["192.0.2.250"]);
        object["metadata"]["labels"]["topology.kubernetes.io/zone"] = json!(zone);
        world.control_plane.apply(&object).unwrap();
    }
    let on = |b: u8| {
        let ips = backend(b).map(|ip| ip.to_string());
        objects::pod(&format!("pod-{b}"), "web", nodes[usize::from(b) - 1], &[&ips[0], &ips[1]], true)
    };
    let service = |world: &World<'_>, distribution: Option<&str>| -> Value {
        let mut service = world.service_of(1, "web");
        if let Some(distribution) = distribution {
            service["spec"]["trafficDistribution"] = json!(distribution);
        }
        service
    };
    world.namespace.apply(&service(&world, None)).unwrap();
    for b in [1, 2, 3] {
        world.namespace.apply(&on(b)).unwrap();
    }
    world.start();
    world.expect(1, &[1, 2, 3]);
    for distribution in ["PreferClose", "PreferSameZone"] {
        world.namespace.apply(&service(&world, Some(distribution))).unwrap();
        world.expect(1, &[1, 2]);
        world.namespace.apply(&service(&world, None)).unwrap();
        world.expect(1, &[1, 2, 3]);
    }
    world.namespace.apply(&service(&world, Some("PreferSameNode"))).unwrap();
    world.expect(1, &[1]);
    // Without one on the node its zone serves, without one in the zone everybody.
    world.namespace.delete(&on(1)).unwrap();
    world.expect(1, &[2]);
    world.namespace.apply(&on(1)).unwrap();
    world.expect(1, &[1]);
    world.namespace.apply(&service(&world, Some("PreferSameZone"))).unwrap();
    world.expect(1, &[1, 2]);
    // The Node itself moves.
    world.set_zone(Some("b"));
    world.expect(1, &[3]);
    world.set_zone(Some("c"));
    world.expect(1, &[1, 2, 3]);
    world.set_zone(None);
    world.expect(1, &[1, 2, 3]);
    for b in [1, 2, 3] {
        world.namespace.delete(&on(b)).unwrap();
    }
}

/// DS-3, DS-4, DS-5: a family is added and taken away; the other one is not disturbed.
#[test]
fn a_service_becomes_dual_stack_and_single_stack_again() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "dual-stack");
    let [ipv4, ipv6] = world.ips(1);
    let single = |policy: &str| {
        let mut service = world.service_of(1, "web");
        service["spec"]["clusterIPs"] = json!([ipv4]);
        service["spec"]["ipFamilies"] = json!(["IPv4"]);
        service["spec"]["ipFamilyPolicy"] = json!(policy);
        service
    };
    let (single, dual) = (single("SingleStack"), world.service_of(1, "web"));
    let pod = pod(&world, 1, "web", true);
    world.namespace.apply(&single).unwrap();
    world.namespace.apply(&pod).unwrap();
    world.start();
    world.expect_at((ipv4, 80).into(), "backend-1");
    world.expect_at((ipv6, 80).into(), "TIMEOUT");
    let traffic = world.begin(1);
    for _ in 0..2 {
        world.namespace.apply(&dual).unwrap();
        world.expect(1, &[1]);
        world.namespace.apply(&single).unwrap();
        world.expect_at((ipv6, 80).into(), "TIMEOUT");
        world.expect_at((ipv4, 80).into(), "backend-1");
    }
    traffic.end();
    // The first family of a Service may be IPv6.
    let mut ipv6_first = world.service_of(2, "web");
    let [second, first] = world.ips(2);
    ipv6_first["spec"]["clusterIP"] = json!(first);
    ipv6_first["spec"]["clusterIPs"] = json!([first, second]);
    ipv6_first["spec"]["ipFamilies"] = json!(["IPv6", "IPv4"]);
    world.namespace.apply(&ipv6_first).unwrap();
    world.expect(2, &[1]);
}

/// SEL-5: all types after one another. The NodePort goes with its type.
#[test]
fn a_service_changes_its_type() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "all-types");
    world.write(1, &[1]);
    world.start();
    world.expect(1, &[1]);
    let own = world.own_addresses();
    let node_port = 31_000 + u16::from(world.number());
    for kind in ["NodePort", "ClusterIP", "LoadBalancer", "ClusterIP"] {
        world.namespace.apply(&service_on_nodes(&world, 1, kind, node_port)).unwrap();
        world.expect(1, &[1]);
        let wanted = if kind == "ClusterIP" { "ECONNREFUSED" } else { "backend-1" };
        for addr in own {
            world.expect_at((addr, node_port).into(), wanted);
        }
    }
    // A Service that is only a name has no address, whatever it had before.
    let external = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "service-1"},
        "spec": {"type": "ExternalName", "externalName": "example.org", "clusterIP": null, "clusterIPs": null,
            "ipFamilies": null, "ipFamilyPolicy": null, "ports": null},
    });
    world.namespace.delete(&world.service(1)).unwrap();
    world.namespace.apply(&external).unwrap();
    world.expect_gone(1);
    world.namespace.delete(&world.service(1)).unwrap();
    world.namespace.apply(&world.service(1)).unwrap();
    world.expect(1, &[1]);
    wait_until("a status without faults", SOON, || {
        world.home.status().is_ok_and(|status| status["agent"]["notices"] == json!([]))
    })
    .unwrap();
}
