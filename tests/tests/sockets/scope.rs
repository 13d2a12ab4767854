//! Whose sockets are served.

use std::net::SocketAddr;

use lb_tests::probe::{Tcp, Udp};
use lb_tests::{Probe, binary, needs_root};
use serde_json::{Value, json};

use crate::park::{Park, SHORT, SOON, cluster_ips, none_of};

/// Whether sockets of `probe` are translated: TCP, UDP. An untranslated one reaches nobody, so what is expected decides
/// how long to wait.
fn served(probe: &Probe, expected: [bool; 2]) -> [bool; 2] {
    let to = |port| SocketAddr::new(cluster_ips(1)[0], port);
    let limit = |expected| if expected { SOON } else { SHORT };
    let tcp = probe.tcp(&Tcp::to(to(80)).timeout(limit(expected[0])));
    let udp = probe.udp(&Udp::to(to(53)).timeout(limit(expected[1])));
    let connected = probe.udp(&Udp::connected(to(53)).timeout(limit(expected[1])));
    assert_eq!(udp.is_ok(), connected.is_ok(), "connected and unconnected UDP are served alike");
    [tcp.is_ok(), udp.is_ok()]
}

/// 1.4-host-only, 2.25-kernel-sockets: hosts alone, pods alone, or neither.
#[test]
fn each_switch_of_socket_lb_leaves_exactly_those_sockets_alone() {
    needs_root!();
    let mut park = Park::new("switches");
    park.serve(1);
    park.program(1, &[1]);
    park.start(&[]);
    let mut wrong = Vec::new();
    // Words of the flag; whether TCP and UDP of the host, and of pods, are served. Each start adopts what the one
    // before has pinned.
    for (words, host, pod) in [
        ("all", [true, true], [true, true]),
        ("tcp:pods,udp", [false, true], [true, true]),
        ("tcp:host,udp", [true, true], [false, true]),
        ("tcp,udp:pods", [true, false], [true, true]),
        ("tcp,udp:host", [true, true], [true, false]),
        ("none", [false, false], [false, false]),
        ("all", [true, true], [true, true]),
    ] {
        park.restart(&["--socket-lb", words]);
        for (client, probe, expected) in [("host", &park.host, host), ("pod", &park.pod, pod)] {
            let seen = served(probe, expected);
            if seen != expected {
                wrong.push(format!("{words}, {client}: [TCP, UDP] {seen:?}, expected {expected:?}"));
            }
        }
    }
    none_of(&wrong);
}

/// `lb-agent netns`, run in the cgroup of node 1; what it prints.
fn netns(park: &Park, args: &[&str]) -> String {
    let mut command = park.net.node(1).command(binary("lb-agent").unwrap());
    command.arg("netns").args(args).env("LB_PIN_DIR", park.home.pin_dir());
    let output = command.output().unwrap();
    assert!(output.status.success(), "netns {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// 2.25-mesh. Below kernel 5.14 the command asks a program which namespace is which.
#[test]
fn an_exempt_pod_is_left_alone_until_it_is_included() {
    needs_root!();
    let mut park = Park::new("exempt");
    park.serve(1);
    park.program(1, &[1]);
    park.start(&[]);
    let path = park.client.netns.path();
    let path = path.to_str().unwrap();
    let (all, none) = ([true, true], [false, false]);
    let seen = |pod| [served(&park.host, all), served(&park.pod, pod)];
    assert_eq!(seen(all), [all, all]);

    assert!(netns(&park, &["exempt", path]).ends_with("is left alone from now on\n"));
    assert_eq!(seen(none), [all, none]);
    let rows: Value = serde_json::from_str(&netns(&park, &["list", "-o", "json"])).unwrap();
    assert_eq!(rows.as_array().unwrap().len(), 1, "{rows:#}");
    assert!(rows[0]["namespaces"].as_array().unwrap().contains(&json!(path)), "{rows:#}");

    assert!(netns(&park, &["include", path]).ends_with("is load-balanced again\n"));
    assert_eq!(seen(all), [all, all]);
}
