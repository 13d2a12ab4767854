//! Objects of which nothing can be used: who hears of it, and how often.

use lb_tests::control_plane::{ControlPlane, objects};
use lb_tests::http::get;
use lb_tests::{needs_cluster, wait_for};
use serde_json::json;

use crate::events::expect;
use crate::world::{SOON, World, slices};

/// What `status` says of fields that cannot be used, once the metric counts as many. Every agent sees the objects of all tests.
fn notices(world: &World<'_>) -> Vec<String> {
    wait_for("status and metric to agree", SOON, || {
        let status = world.home.status().map_err(|error| error.to_string())?;
        let said = status["agent"]["notices"].as_array().cloned().unwrap_or_default();
        let scraped = get(world.netns(), "127.0.0.1:10249".parse().unwrap(), "/metrics");
        let metrics = scraped.map_err(|error| error.to_string())?.body;
        let line = format!("lbagent_notices {}", said.len());
        if metrics.lines().any(|found| found == line) {
            Ok(said.iter().filter_map(|notice| notice.as_str().map(str::to_owned)).collect())
        } else {
            Err(format!("{said:?} {metrics}"))
        }
    })
    .unwrap()
}

/// ES-1, ES-2, NE-1: a Service whose slices cannot be used refuses everything, and its people hear why: in its Events, in
/// `status`, in the log and by a metric, once. So does whoever looks at the log for a slice that is nobody's, and at the Node
/// for an address that is none.
#[test]
fn what_cannot_be_used_at_all_is_named_once_to_those_whom_it_concerns() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "unusable");
    let namespace = world.namespace.name().to_owned();
    world.namespace.apply(&world.service(1)).unwrap();
    let mut names = objects::slice("service-1-names", "service-1", &["pods.example"], 8080);
    names["addressType"] = json!("FQDN");
    world.namespace.apply(&names).unwrap();
    let mut orphan = objects::slice("orphan", "service-1", &["10.1.255.1"], 8080);
    orphan["metadata"]["labels"] = json!({});
    world.namespace.apply(&orphan).unwrap();
    let mut node = world.node();
    node["status"]["addresses"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "ExternalIP", "address": "nowhere"}));
    world.control_plane.apply(&node).unwrap();
    world.start();
    world.expect(1, &[]);

    expect(
        &world,
        &namespace,
        "service-1",
        "FieldNotUsed",
        &["service-1-names", "\"FQDN\" is neither IPv4 nor IPv6"],
    );
    expect(&world, "default", &namespace, "FieldNotUsed", &["status.addresses[2].address", "nowhere"]);
    let wanted = [
        format!("service {namespace}/service-1: endpointslice service-1-names: addressType: "),
        format!("endpointslice {namespace}/orphan: metadata.labels: the EndpointSlice has no label"),
        format!("node {namespace}: status.addresses[2].address: \"nowhere\" is not an IP address"),
    ];
    let notices = notices(&world);
    for wanted in &wanted {
        assert_eq!(
            notices.iter().filter(|notice| notice.starts_with(wanted)).count(),
            1,
            "{wanted}: {notices:?}"
        );
    }

    // An update of each changes nothing about what is wrong.
    for object in [&names, &orphan] {
        world.namespace.label(object, &json!({"touched": "yes"})).unwrap();
    }
    world.set_zone(Some("a"));
    world.write_slices(1, &[1]);
    world.expect(1, &[1]);
    let log = world.home.log();
    let lines =
        |parts: &[&str]| log.lines().filter(|line| parts.iter().all(|part| line.contains(part))).count();
    assert_eq!(lines(&["ERROR", "an object is not used", &format!("{namespace}/orphan")]), 1, "{log}");
    assert_eq!(lines(&["WARN", "service-1-names", "FQDN"]), 1, "{log}");
    assert_eq!(lines(&["WARN", "status.addresses[2]"]), 1, "{log}");
    for slice in slices(1, &[]) {
        world.namespace.delete(&slice).unwrap();
    }
}
