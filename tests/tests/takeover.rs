//! What was there before the agent lives on: connections that kube-proxy has translated, and what pods send to others.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lb_tests::agent::{Agent, Home};
use lb_tests::control_plane::{ControlPlane, KubeProxy, ProxyMode, Trust, objects};
use lb_tests::probe::{Handle, Hold, Holding, Serve, Task, Tcp, Udp};
use lb_tests::topology::service::{Numbered, TARGET_PORT};
use lb_tests::topology::site::{Shape, Site};
use lb_tests::{Pod, Probe, binary, needs_cluster, needs_root};
use serde_json::{Value, json};

/// For what is expected to happen.
const SOON: Duration = Duration::from_mins(2);
/// The Service, in the cluster of the control plane.
const CLUSTER_IPS: [&str; 2] = ["10.0.7.10", "fd00:10::710"];
const NODE_PORT: u16 = 30_010;
const PORT: u16 = 80;
/// The Node that kube-proxy and the agent serve.
const NODE: &str = "takeover";

/// Connections of a client, and where they go.
struct Kept<'a> {
    probe: &'a Probe,
    what: String,
    handle: Handle,
    count: u64,
}

impl Kept<'_> {
    /// Fails unless all connections are there.
    fn check(&self, when: &str) {
        let Holding { alive, failed, .. } = self.probe.check(self.handle).unwrap();
        assert!(failed.is_empty() && alive == self.count, "{when}: {}: {alive} alive, {failed:?}", self.what);
    }
}

/// A Service of both families with an endpoint on each of two nodes.
fn service(pods: &[Pod; 2]) -> Vec<Value> {
    let mut all = vec![json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {
            "type": "NodePort", "clusterIP": CLUSTER_IPS[0], "clusterIPs": CLUSTER_IPS, "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
            "ports": [{"protocol": "TCP", "port": PORT, "targetPort": TARGET_PORT, "nodePort": NODE_PORT}],
        },
    })];
    let ips =
        [pods.each_ref().map(|pod| pod.ipv4.to_string()), pods.each_ref().map(|pod| pod.ipv6.to_string())];
    for (family, ips) in ["v4", "v6"].into_iter().zip(ips) {
        let ips = ips.each_ref().map(String::as_str);
        all.push(objects::slice(&format!("web-{family}"), "web", &ips, TARGET_PORT));
    }
    all
}

/// Fails unless all connections of all clients are there.
fn check(kept: &[Kept<'_>], when: &str) {
    for kept in kept {
        kept.check(when);
    }
}

/// 1,000 connections of a client outside, a pod and the node.
fn open<'a>(site: &Site, probes: &'a [(&str, Probe); 3]) -> Vec<Kept<'a>> {
    let mut kept = Vec::new();
    for family in [0, 1] {
        let node_port = SocketAddr::new(site.addresses(1)[family], NODE_PORT);
        let cluster_ip = SocketAddr::new(CLUSTER_IPS[family].parse().unwrap(), PORT);
        for (client, to, count) in
            [(0, node_port, 200), (1, cluster_ip, 100), (1, node_port, 100), (2, cluster_ip, 100)]
        {
            let (who, probe) = &probes[client];
            let (handle, opened) = probe.hold(&Hold::all(to, count)).unwrap();
            assert_eq!(opened.failed, BTreeMap::new(), "{who} to {to}");
            kept.push(Kept { probe, what: format!("{who} to {to}"), handle, count });
        }
    }
    kept
}

/// Starts the agent while the connections are used.
fn start_under_traffic(site: &Site, home: &Home, kubeconfig: &str, kept: &[Kept<'_>]) -> Agent {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                check(kept, "while the agent attaches its programs");
            }
        });
        let args = ["--kubeconfig", kubeconfig, "--devices", "auto", "--pod-devices", "auto"];
        let agent = Agent::spawn_from(site.node(1), home, args)
            .and_then(|mut agent| agent.wait_ready(home).map(|()| agent));
        done.store(true, Ordering::Relaxed);
        agent.unwrap()
    })
}

/// BS-11, NE-3: connections that kube-proxy has opened survive the agent's programs, kube-proxy's end, and the removal of its rules.
#[test]
fn no_connection_of_kube_proxy_is_lost() {
    needs_cluster!();
    let control_plane = ControlPlane::shared();
    let namespace = control_plane.namespace("takeover").unwrap();
    let mut site = Site::new(Shape::ROUTED).unwrap();
    NODE.clone_into(&mut site.net.nodes[0].name);
    let pods = [
        site.add_pod(1, "near", Ipv4Addr::new(10, 1, 1, 10)).unwrap(),
        site.add_pod(2, "far", Ipv4Addr::new(10, 2, 1, 10)).unwrap(),
    ];
    let client = site.add_pod(1, "client", Ipv4Addr::new(10, 1, 1, 11)).unwrap();
    let servers = pods.each_ref().map(|pod| pod.probe("server").unwrap());
    for (pod, server) in pods.iter().zip(&servers) {
        for addr in [IpAddr::from(pod.ipv4), pod.ipv6.into()] {
            server.serve(&Serve::tcp("server", (addr, TARGET_PORT).into()).task(Task::Echo)).unwrap();
        }
    }
    let ips = site.addresses(1).map(|addr| addr.to_string());
    control_plane.apply(&objects::node(NODE, &ips.each_ref().map(String::as_str))).unwrap();
    namespace.create_all(&service(&pods)).unwrap();
    let netns = &site.node(1).netns;
    let _link = control_plane.link(netns).unwrap();
    // As nodes have for what pods send to others. In a namespace whose last rule that translates is taken away, the kernel stops
    // translating connections that are open.
    netns
        .nft(
            "add table inet cni
              add chain inet cni post { type nat hook postrouting priority 100; }
              add rule inet cni post ip saddr 10.1.0.0/16 ip daddr 192.0.2.0/24 masquerade
              add rule inet cni post ip6 saddr fd00:10:1::/48 ip6 daddr 2001:db8:2::/64 masquerade",
        )
        .unwrap();
    let kube_proxy = KubeProxy::start(control_plane, netns, NODE, ProxyMode::Nftables).unwrap();
    for ip in CLUSTER_IPS {
        kube_proxy.wait_programmed(ip.parse().unwrap(), PORT, SOON).unwrap();
    }

    let probes = [
        ("outside", site.probe("outside").unwrap()),
        ("a pod", client.probe("pod").unwrap()),
        ("the node", site.node(1).probe("node").unwrap()),
    ];
    let kept = open(&site, &probes);
    assert_eq!(kept.iter().map(|kept| kept.count).sum::<u64>(), 1000);

    let home = Home::new("takeover").unwrap();
    let kubeconfig = control_plane.kubeconfig(&control_plane.node_urls()[0], Trust::Authority).unwrap();
    let agent = start_under_traffic(&site, &home, kubeconfig.to_str().unwrap(), &kept);
    check(&kept, "under the agent");
    drop(kube_proxy);
    check(&kept, "without kube-proxy");
    let mut cleanup = site.node(1).command(binary("lb-agent").unwrap());
    let cleaned =
        cleanup.args(["cleanup", "--kube-proxy"]).arg("--pin-dir").arg(home.pin_dir()).output().unwrap();
    assert!(cleaned.status.success(), "{cleaned:?}");
    check(&kept, "without kube-proxy's rules");
    // New ones are the agent's.
    for kept in &kept {
        let to = kept.what.rsplit(' ').next().unwrap().parse().unwrap();
        let (_, opened) = kept.probe.hold(&Hold::all(to, 20)).unwrap();
        assert_eq!(opened.failed, BTreeMap::new(), "{}", kept.what);
    }
    check(&kept, "at the end");
    agent.stop().unwrap();
}

/// MQ-9: what pods send to others is masqueraded by somebody else, with source ports that are NodePorts of Services too; its answers are
/// not the Services'.
#[test]
fn answers_to_ports_that_are_node_ports_too_are_left_alone() {
    needs_root!();
    let site = Site::new(Shape::ROUTED).unwrap();
    let pod = site.add_pod(1, "pod", Ipv4Addr::new(10, 1, 1, 10)).unwrap();
    let server = site.add_pod(2, "server", Ipv4Addr::new(10, 2, 1, 10)).unwrap();
    let backend = server.probe("backend").unwrap();
    let endpoints = [(IpAddr::from(server.ipv4), 2), (server.ipv6.into(), 2)];
    for (addr, _) in endpoints {
        backend.serve(&Serve::tcp("backend", (addr, TARGET_PORT).into())).unwrap();
        backend.serve(&Serve::udp("backend", (addr, TARGET_PORT).into())).unwrap();
    }
    let services: Vec<Numbered> = (10..18).map(Numbered).collect();
    let objects: Vec<Value> = services
        .iter()
        .flat_map(|service| service.objects(&format!("s{}", service.0), &endpoints, &json!({})))
        .collect();
    site.node(1)
        .netns
        .nft("add table inet egress
              add chain inet egress post { type nat hook postrouting priority 100; }
              add rule inet egress post ip daddr 192.0.2.0/24 ip saddr 10.1.0.0/16 meta l4proto { tcp, udp } masquerade to :30010-30017
              add rule inet egress post ip6 daddr 2001:db8:2::/64 ip6 saddr fd00:10:1::/48 meta l4proto { tcp, udp } masquerade to :30010-30017")
        .unwrap();
    let homes = ["egress-1", "egress-2"].map(|label| Home::new(label).unwrap());
    for home in &homes {
        home.apply("services", &objects).unwrap();
    }
    let _agents = site.start_agents(&homes, &[]).unwrap();
    let (outside, far) = (site.probe("outside").unwrap(), site.probe("far").unwrap());
    let probe = pod.probe("pod").unwrap();
    for addr in Site::CLIENT {
        let node_port =
            SocketAddr::new(site.addresses(1)[usize::from(addr.is_ipv6())], services[0].node_port());
        for round in 0..20_u16 {
            // Connection tracking keeps a datagram's port for a while.
            let to = SocketAddr::new(addr, 9000 + round / 4);
            if round % 4 == 0 {
                far.serve(&Serve::tcp("far", to)).unwrap();
                far.serve(&Serve::udp("far", to)).unwrap();
            }
            for reached in [probe.tcp(&Tcp::to(to).reset()), probe.udp(&Udp::to(to))] {
                let answer =
                    reached.unwrap_or_else(|error| panic!("{to}, round {round}: {error}")).answer.unwrap();
                assert_eq!(answer.server, "far");
                assert!((30_010..=30_017).contains(&answer.client.port()), "{answer:?}");
            }
            // The Service at such a port is served all the same.
            for reached in [outside.tcp(&Tcp::to(node_port)), outside.udp(&Udp::to(node_port))] {
                let reached = reached.unwrap_or_else(|error| panic!("{node_port}, round {round}: {error}"));
                assert_eq!(reached.server(), "backend");
            }
        }
    }
}

/// BS-11: what others masquerade keeps its ports. All of them but ten are reserved, so that nearly every connection would meet one.
#[test]
fn ports_of_connections_that_others_masquerade_are_left_alone() {
    needs_root!();
    let site = Site::new(Shape::ROUTED).unwrap();
    let server = site.add_pod(2, "server", Ipv4Addr::new(10, 2, 1, 10)).unwrap();
    let backend = server.probe("backend").unwrap();
    let endpoints = [(IpAddr::from(server.ipv4), 2), (server.ipv6.into(), 2)];
    for (addr, _) in endpoints {
        backend.serve(&Serve::tcp("backend", (addr, TARGET_PORT).into()).task(Task::Echo)).unwrap();
    }
    let service = Numbered(10);
    let [v4, v6] = endpoints.map(|(addr, _)| SocketAddr::new(addr, TARGET_PORT));
    let (netns, port) = (&site.node(1).netns, service.node_port());
    netns
        .nft(&format!(
            "add table inet other
              add chain inet other pre {{ type nat hook prerouting priority -100; }}
              add rule inet other pre meta nfproto ipv4 tcp dport {port} dnat ip to {v4}
              add rule inet other pre meta nfproto ipv6 tcp dport {port} dnat ip6 to {v6}
              add chain inet other post {{ type nat hook postrouting priority 100; }}
              add rule inet other post meta l4proto tcp ct status dnat masquerade to :2000-2009"
        ))
        .unwrap();
    netns.sysctl("net.ipv4.ip_local_reserved_ports", "1024-1999,2020-65535").unwrap();
    let homes = ["ports-1", "ports-2"].map(|label| Home::new(label).unwrap());
    for home in &homes {
        home.apply("services", &service.objects("web", &endpoints, &json!({}))).unwrap();
    }
    let outside = site.probe("outside").unwrap();
    let to = site.addresses(1).map(|addr| SocketAddr::new(addr, port));
    let hold = |count: u64| {
        to.map(|to| {
            let (handle, opened) = outside.hold(&Hold::all(to, count)).unwrap();
            assert_eq!(opened.failed, BTreeMap::new(), "{to}");
            Kept { probe: &outside, what: to.to_string(), handle, count }
        })
    };
    let before = hold(10);
    let _agents = site.start_agents(&homes, &[]).unwrap();
    check(&before, "under the agent");
    let after = hold(10);
    check(&before, "after the agent has masqueraded others");
    check(&after, "beside them");
}
