//! Endpoints are those that the real EndpointSlice controller makes of Pods.

use lb_tests::control_plane::{ControlPlane, Namespace, objects};
use lb_tests::{needs_cluster, wait_for};
use serde_json::json;

use crate::world::{SOON, World, pod};

/// A Pod serves from the moment it is ready until it is not, is terminating, or is gone.
#[test]
fn ready_pods_serve_and_others_do_not() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "pods");
    let namespace: &Namespace<'_> = &world.namespace;
    namespace.apply(&world.service_of(1, "web")).unwrap();
    namespace.apply(&pod(&world, 1, "web", true)).unwrap();
    namespace.apply(&pod(&world, 2, "web", false)).unwrap();
    namespace.apply(&pod(&world, 3, "other", true)).unwrap();
    world.start();
    world.expect(1, &[1]);
    let traffic = world.begin(1);
    let namespace = &world.namespace;
    namespace.apply(&pod(&world, 2, "web", true)).unwrap();
    world.expect(1, &[1, 2]);
    namespace.label(&pod(&world, 3, "other", true), &json!({"app": "web"})).unwrap();
    world.expect(1, &[1, 2, 3]);

    namespace.apply(&pod(&world, 1, "web", false)).unwrap();
    world.expect(1, &[2, 3]);
    namespace.terminate(&pod(&world, 2, "web", true)).unwrap();
    world.expect(1, &[3]);
    traffic.goes_on();
    traffic.end();
    for b in [2, 3, 1] {
        namespace.delete(&pod(&world, b, "web", true)).unwrap();
    }
    world.expect(1, &[]);
}

/// TE-6: nobody asks a node or a Pod whether it is there. What the API says of a lost Node does not count either, until the
/// node controller, whose part the test plays, says that its Pods are not ready.
#[test]
fn a_pod_of_a_lost_node_serves_until_the_api_says_that_it_is_not_ready() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "lost");
    let other = |is_ready: &str| {
        let mut node = objects::node("lost-other", &["192.0.2.251"]);
        node["status"]["conditions"][0]["status"] = json!(is_ready);
        node
    };
    // Nobody is at its addresses.
    let ips = ["10.1.255.99", "fd00:10:1:255::99"];
    let lost = |ready: bool| objects::pod("pod-lost", "web", "lost-other", &ips, ready);
    world.control_plane.apply(&other("True")).unwrap();
    world.namespace.apply(&world.service_of(1, "web")).unwrap();
    world.namespace.apply(&pod(&world, 1, "web", true)).unwrap();
    world.start();
    world.expect(1, &[1]);
    let is_tried = |when: &str| {
        wait_for(when, SOON, || match world.look((world.ips(1)[0], 80).into()) {
            seen if seen == "backend-1 connect TIMEOUT" => Ok(()),
            seen => Err(seen),
        })
        .unwrap();
    };
    world.namespace.apply(&lost(true)).unwrap();
    is_tried("the Pod of the other Node to be met");
    world.control_plane.apply(&other("Unknown")).unwrap();
    // What comes later is programmed.
    world.write(2, &[2]);
    world.expect(2, &[2]);
    is_tried("the Pod of the lost Node to be met all the same");
    world.status(&lost(false));
    world.expect(1, &[1]);
    for object in [lost(false), pod(&world, 1, "web", true)] {
        world.namespace.delete(&object).unwrap();
    }
    world.control_plane.delete(&other("Unknown")).unwrap();
}

/// The controller copies the label to the slices, so both vanish and both come back.
#[test]
fn a_label_of_a_service_takes_its_slices_along() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "pods-label");
    world.namespace.apply(&world.service_of(1, "web")).unwrap();
    world.namespace.apply(&pod(&world, 1, "web", true)).unwrap();
    world.start();
    world.expect(1, &[1]);
    let label = "service.kubernetes.io/service-proxy-name";
    world.namespace.label(&world.service(1), &json!({label: "other"})).unwrap();
    world.expect_gone(1);
    lb_tests::wait_until("labelled slices", SOON, || {
        let slices = world.namespace.slices("service-1").unwrap();
        slices
            .iter()
            .all(|slice| slice.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(label)))
    })
    .unwrap();
    world.namespace.label(&world.service(1), &json!({label: null})).unwrap();
    world.expect(1, &[1]);
}
