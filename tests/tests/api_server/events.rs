//! What an operator finds by `kubectl describe`: Events of the agent on its Node and on Services (2.23).

use std::fs;

use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams};
use lb_common::abi::maps;
use lb_tests::agent::pinned;
use lb_tests::control_plane::{ControlPlane, objects};
use lb_tests::{needs_cluster, wait_for};
use serde_json::json;

use crate::access::{binding, rights, service_account};
use crate::world::{HEALTHZ, METRICS, SOON, World};

/// Events of a Kubernetes namespace that an agent of node `node` has sent.
fn events(control_plane: &ControlPlane, namespace: &str, node: &str) -> Vec<Event> {
    let api: Api<Event> = Api::namespaced(control_plane.client(), namespace);
    let list = control_plane.run(async move { api.list(&ListParams::default()).await }).unwrap();
    let is_ours = |event: &Event| {
        event.reporting_controller.as_deref() == Some("lb-agent")
            && event.reporting_instance.as_deref() == Some(node)
    };
    list.items.into_iter().filter(is_ours).collect()
}

/// Waits for an Event of this reason about `name`, whose text has these parts.
pub(crate) fn expect(world: &World<'_>, namespace: &str, name: &str, reason: &str, parts: &[&str]) -> Event {
    let is_meant = |event: &Event| {
        let text = event.note.as_deref().unwrap_or_default();
        event.reason.as_deref() == Some(reason)
            && event.regarding.as_ref().and_then(|object| object.name.as_deref()) == Some(name)
            && parts.iter().all(|part| text.contains(part))
    };
    wait_for(&format!("{reason} about {name}"), SOON, || {
        let found = events(world.control_plane, namespace, world.namespace.name());
        found.iter().find(|event| is_meant(event)).cloned().ok_or_else(|| format!("{found:?}"))
    })
    .unwrap_or_else(|error| panic!("{error:#}; log of the agent:\n{}", world.home.log()))
}

/// 2.23-Starting, 2.23-FieldNotUsed, 2.23-FrontendContested, 2.23-FailedToStartServiceHealthcheck, HC-8, LB-8.
#[test]
fn what_cannot_be_programmed_is_an_event_on_its_service_and_a_start_one_on_the_node() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "events");
    let namespace = world.namespace.name().to_owned();
    let outside = "192.0.2.77";
    let with = |world: &World<'_>, i: u8, change: &serde_json::Value| {
        let mut service = world.service(i);
        for (field, value) in change.as_object().unwrap() {
            service["spec"][field] = value.clone();
        }
        world.namespace.apply(&service).unwrap();
    };
    // An address of a family that the Service does not have, one address of two Services, and a port that is taken.
    let [v4, _] = world.ips(1);
    let single = json!({
        "clusterIPs": [v4], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "externalIPs": ["2001:db8::7"],
    });
    with(&world, 1, &single);
    with(&world, 2, &json!({"externalIPs": [outside]}));
    // The older one is told by whole seconds.
    std::thread::sleep(core::time::Duration::from_millis(1100));
    with(&world, 3, &json!({"externalIPs": [outside]}));
    let port = 32_201;
    let _taken = world.bind(port);
    with(
        &world,
        4,
        &json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": port}),
    );
    world.start();

    let started = expect(&world, "default", &namespace, "Starting", &["lb-agent"]);
    assert_eq!(started.type_.as_deref(), Some("Normal"));
    let field = expect(&world, &namespace, "service-1", "FieldNotUsed", &["2001:db8::7", "spec.ipFamilies"]);
    assert_eq!(field.type_.as_deref(), Some("Warning"));
    assert!(field.regarding.unwrap().uid.is_some_and(|uid| uid.len() > 30), "kubectl describe looks for it");
    expect(&world, &namespace, "service-3", "FrontendContested", &[outside, "service-2"]);
    expect(&world, &namespace, "service-4", "FailedToStartServiceHealthcheck", &["32201", "in use"]);
    let about = |name: &str| {
        let all = events(world.control_plane, &namespace, &namespace);
        all.iter().filter(|event| event.regarding.as_ref().unwrap().name.as_deref() == Some(name)).count()
    };
    assert_eq!(about("service-2"), 0, "nothing is wrong with it");

    // Said again by a change that leaves the fault, it is no second Event.
    let mut again = single.clone();
    again["ports"] = json!([{"protocol": "TCP", "port": 81, "targetPort": 8080}]);
    with(&world, 1, &again);
    with(&world, 5, &json!({"externalIPs": ["192.0.2.78"]}));
    std::thread::sleep(core::time::Duration::from_millis(1100));
    with(&world, 6, &json!({"externalIPs": ["192.0.2.78"]}));
    // Notes are sent in their order.
    expect(&world, &namespace, "service-6", "FrontendContested", &["192.0.2.78"]);
    assert_eq!(about("service-1"), 1);
}

/// 2.23-FailedToStartProxierHealthcheck, 2.23-FailedToStartMetricServer, HZ-9.
#[test]
fn ports_of_the_agent_that_are_taken_are_events_on_the_node() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "taken");
    let node = world.namespace.name().to_owned();
    let _taken = [HEALTHZ, METRICS].map(|port| world.bind(port));
    world.start();
    for (reason, flag, port) in [
        ("FailedToStartProxierHealthcheck", "--healthz-address", HEALTHZ),
        ("FailedToStartMetricServer", "--metrics-address", METRICS),
    ] {
        let event = expect(&world, "default", &node, reason, &[flag, &port.to_string(), "in use"]);
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        assert_eq!(event.regarding.unwrap().kind.as_deref(), Some("Node"));
    }
}

/// 2.23-MapFull: more endpoints than the maps have room for, and what stands in the way of bigger ones.
#[test]
fn a_service_without_room_is_an_event_on_it_and_fails_its_health_check() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "no-room");
    let namespace = world.namespace.name().to_owned();
    world.write(1, &[1]);
    world.start();
    world.expect(1, &[1]);
    let block = pinned(&world.home, &format!("{}_next", maps::SLOTS));
    fs::create_dir(&block).unwrap();
    let port = 32_202;
    let mut service = world.service(2);
    service["spec"]["type"] = json!("LoadBalancer");
    service["spec"]["externalTrafficPolicy"] = json!("Local");
    service["spec"]["healthCheckNodePort"] = json!(port);
    world.namespace.apply(&service).unwrap();
    // The API takes a thousand in a slice.
    for n in 0..5_u8 {
        let ips: Vec<String> =
            (0..1000_u16).map(|i| format!("10.9.{}.{}", u16::from(n) * 4 + i / 250, 1 + i % 250)).collect();
        let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
        let mut slice = objects::slice(&format!("service-2-{n}"), "service-2", &ips, 8080);
        for endpoint in slice["endpoints"].as_array_mut().unwrap() {
            endpoint["nodeName"] = json!(namespace);
        }
        world.namespace.apply(&slice).unwrap();
    }
    let event = expect(&world, &namespace, "service-2", "MapFull", &[maps::SLOTS, "more memory", "IPv4"]);
    assert!(event.regarding.unwrap().uid.is_some(), "kubectl describe looks for it");
    // HC-4: it is not served as it should be.
    let expect_code = |wanted| {
        wait_for(&format!("{wanted} of the health check"), SOON, || {
            match world.try_ask((world.own_addresses()[0], port).into(), "/") {
                Ok(answer) if answer.code == wanted => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .unwrap();
    };
    expect_code(503);
    world.expect(1, &[1]);
    fs::remove_dir(&block).unwrap();
    expect_code(200);
}

/// What the agent does does not depend on it.
#[test]
fn events_that_may_not_be_sent_are_said_once_with_the_missing_right() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "no-events");
    let kubeconfig = service_account(&world, "agent");
    let mut role = rights("lb-agent-no-events");
    let rules = role["rules"].as_array_mut().unwrap();
    rules.retain(|rule| rule["apiGroups"] != json!(["events.k8s.io"]));
    world.control_plane.apply(&role).unwrap();
    world.control_plane.apply(&binding(&role, world.namespace.name(), "agent")).unwrap();
    for i in 1..=3 {
        let mut service = world.service(i);
        service["spec"]["externalIPs"] = json!(["192.0.2.90"]);
        world.namespace.apply(&service).unwrap();
    }
    world.spawn(&kubeconfig, &[]);
    world.wait_ready();
    let line = world.wait_for_line(&["WARN", "Events are refused", "events.k8s.io", "create"]);
    assert!(line.contains("403"), "{line}");
    // Two Services lose the address, and the start is told too.
    wait_for("three refused Events", SOON, || {
        let log = world.home.log();
        let refused = log.matches("an Event was refused").count() + log.matches("Events are refused").count();
        if refused >= 3 { Ok(()) } else { Err(log) }
    })
    .unwrap();
    assert_eq!(world.home.log().matches("Events are refused").count(), 1, "{}", world.home.log());
    world.write(4, &[1]);
    world.expect(4, &[1]);
}
