//! Thousands of Services are created and deleted at a real API server, on a control plane of their own.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, ListParams};
use lb_tests::control_plane::{ControlPlane, Namespace, Trust, objects};
use lb_tests::probe::{Serve, Tcp};
use lb_tests::{Agent, Home, Topology, needs_cluster, wait_for};
use serde_json::{Value, json};

/// Services of the test.
const SERVICES: u16 = 5000;
/// Reached only by failures.
const LIMIT: Duration = Duration::from_mins(3);
const NAMESPACE: &str = "many";

/// Cluster IP of a Service: 250 of each /24 from 10.0.100.0 on.
fn cluster_ip(number: u16) -> IpAddr {
    let [third, last] = [100 + number / 250, 1 + number % 250].map(|octet| u8::try_from(octet).unwrap());
    [10, 0, third, last].into()
}

/// A Service on the port of its number, and its slice.
fn objects_of(number: u16, backend: IpAddr) -> [Value; 2] {
    let name = format!("service-{number}");
    let spec = json!({
        "clusterIP": cluster_ip(number), "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
        "ports": [{"protocol": "TCP", "port": 80}],
    });
    let backend = backend.to_string();
    [objects::service(&name, &spec), objects::slice(&format!("{name}-v4"), &name, &[&backend], 8080)]
}

/// SY-1, SY-2, SY-9: all of them are reached when the agent says so, a change among them is seen, and nothing of them is left
/// when they are deleted: neither in the maps nor for new connections.
#[test]
fn thousands_of_services_are_created_and_deleted() {
    needs_cluster!();
    let control_plane = ControlPlane::start().unwrap();
    let mut net = Topology::single().unwrap();
    NAMESPACE.clone_into(&mut net.nodes[0].name);
    let node = net.node(1);
    let backends: [IpAddr; 2] = [[10, 1, 255, 1].into(), [10, 1, 255, 2].into()];
    let (servers, client) = (node.probe("servers").unwrap(), node.probe("client").unwrap());
    for (name, addr) in ["first", "second"].into_iter().zip(backends) {
        node.add_address(addr).unwrap();
        servers.serve(&Serve::tcp(name, (addr, 8080).into())).unwrap();
    }
    let _link = control_plane.link(&node.netns).unwrap();
    control_plane
        .apply(&objects::node(NAMESPACE, &[&node.ipv4.to_string(), &node.ipv6.to_string()]))
        .unwrap();
    let namespace = control_plane.namespace(NAMESPACE).unwrap();
    let home = Home::new(NAMESPACE).unwrap();
    let kubeconfig = control_plane.kubeconfig(&control_plane.node_urls()[0], Trust::Authority).unwrap();
    let kubeconfig = kubeconfig.to_str().unwrap();
    let mut agent = Agent::spawn_from(node, &home, ["--kubeconfig", kubeconfig]).unwrap();
    agent.wait_ready(&home).unwrap();
    // The API server's own Service.
    let before = ports(&home);

    let all: Vec<Value> = (0..SERVICES).flat_map(|number| objects_of(number, backends[0])).collect();
    namespace.create_all(&all).unwrap();
    wait_for_ports(&home, before + u64::from(SERVICES));
    let meets = |number: u16| {
        let to = SocketAddr::new(cluster_ip(number), 80);
        let tcp = Tcp::to(to).timeout(Duration::from_millis(500)).reset();
        client.tcp(&tcp).map_or_else(|error| error.errno().to_owned(), |reached| reached.server().to_owned())
    };
    // A step that meets every residue of the numbers that things are grouped by.
    for number in (0..SERVICES).step_by(37) {
        wait_for("a Service of many", LIMIT, || match meets(number) {
            met if met == "first" => Ok(()),
            met => Err(format!("{number}: {met}")),
        })
        .unwrap();
    }

    namespace.apply(&objects_of(4321, backends[1])[1]).unwrap();
    wait_for("one change among many", LIMIT, || match meets(4321) {
        met if met == "second" => Ok(()),
        met => Err(met),
    })
    .unwrap();
    assert_eq!([meets(4320), meets(4322)], ["first"; 2]);

    delete_all(&namespace);
    wait_for_ports(&home, before);
    for number in (0..SERVICES).step_by(997) {
        assert_eq!(meets(number), "TIMEOUT", "{number}");
    }
    let status = home.status().unwrap();
    let used = |name: &str| {
        let maps = status["maps"].as_array().unwrap();
        maps.iter().find(|map| map["name"] == name).unwrap()["used"].as_u64().unwrap()
    };
    assert!(used("lb_backends") <= 4 && used("lb_frontends") <= 4, "{status}");
    assert_eq!(status["agent"]["left_out"], json!([]));
    agent.stop().unwrap();
}

fn delete_all(namespace: &Namespace<'_>) {
    let control_plane = namespace.control_plane();
    let services: Api<Service> = Api::namespaced(control_plane.client(), namespace.name());
    let slices: Api<EndpointSlice> = Api::namespaced(control_plane.client(), namespace.name());
    control_plane.run(async move {
        services.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
        slices.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    });
}

/// Service ports that the agent has programmed.
fn ports(home: &Home) -> u64 {
    home.status().unwrap()["agent"]["ports"].as_u64().unwrap()
}

fn wait_for_ports(home: &Home, wanted: u64) {
    wait_for("the Services to be programmed", LIMIT, || match ports(home) {
        ports if ports == wanted => Ok(()),
        ports => Err(format!("{ports} of {wanted}")),
    })
    .unwrap();
}
