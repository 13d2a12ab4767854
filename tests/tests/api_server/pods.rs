//! Endpoints are those that the real EndpointSlice controller makes of Pods.

use lb_tests::control_plane::{ControlPlane, Namespace};
use lb_tests::needs_cluster;
use serde_json::json;

use crate::world::{World, pod};

/// A Pod serves from the moment it is ready until it is not, is terminating, or is gone. TE-6: of a node that is lost nobody asks
/// anything: its Pods become unready in the API.
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
    lb_tests::wait_until("labelled slices", crate::world::SOON, || {
        let slices = world.namespace.slices("service-1").unwrap();
        slices
            .iter()
            .all(|slice| slice.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(label)))
    })
    .unwrap();
    world.namespace.label(&world.service(1), &json!({label: null})).unwrap();
    world.expect(1, &[1]);
}
