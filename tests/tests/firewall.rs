//! Nodes and pods with rules of their own: what packets meet that are served, and who is shown what.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use lb_tests::agent::{Agent, Home};
use lb_tests::probe::{Moved, Serve, Task, Tcp, Transfers, Udp};
use lb_tests::topology::service::{Numbered, PORT, TARGET_PORT};
use lb_tests::topology::site::{PodLinks, PodNetwork, Shape, Site};
use lb_tests::{Pod, Probe, binary, needs_root};
use serde_json::json;

/// Service of a pod on node 1.
const NEAR: Numbered = Numbered(11);
/// Service of a pod on node 2.
const FAR: Numbered = Numbered(12);
/// Service of node 2 itself.
const HOST: Numbered = Numbered(13);
/// Port of servers that transfer.
const BULK_PORT: u16 = 9090;

/// What a careful administrator has on every node: nothing is forwarded but what is between pods, and what connection tracking makes
/// nothing of is dropped.
const STRICT: &str = "
    add table inet strict
    add chain inet strict prerouting { type filter hook prerouting priority 0; }
    add rule inet strict prerouting ct state invalid counter drop
    add chain inet strict input { type filter hook input priority 0; }
    add rule inet strict input ct state invalid counter drop
    add chain inet strict forward { type filter hook forward priority 0; policy drop; }
    add rule inet strict forward ct state invalid counter drop
    add rule inet strict forward ip saddr 10.0.0.0/8 ip daddr 10.0.0.0/8 accept
    add rule inet strict forward ip6 saddr fd00:10::/32 ip6 daddr fd00:10::/32 accept";

/// Node 2's pods are reached from the other node's addresses too.
const STRICT_BACKENDS: &str = "
    add rule inet strict forward ip saddr 192.168.50.0/24 accept
    add rule inet strict forward ip daddr 192.168.50.0/24 accept
    add rule inet strict forward ip6 saddr fd00:192:168:50::/64 accept
    add rule inet strict forward ip6 daddr fd00:192:168:50::/64 accept";

struct World {
    _agents: Vec<Agent>,
    homes: [Home; 2],
    outside: Probe,
    _servers: Vec<Probe>,
    pods: [Pod; 3],
    site: Site,
}

impl World {
    /// `before` is done to the site before agents start.
    fn new(shape: Shape, before: impl FnOnce(&Site)) -> Self {
        let site = Site::new(shape).unwrap();
        before(&site);
        let pods = [
            site.add_pod(1, "near", Ipv4Addr::new(10, 1, 1, 10)).unwrap(),
            site.add_pod(2, "far", Ipv4Addr::new(10, 2, 1, 10)).unwrap(),
            site.add_pod(1, "client", Ipv4Addr::new(10, 1, 1, 11)).unwrap(),
        ];
        let of = |pod: &Pod, node: usize| [(pod.ipv4.into(), node), (pod.ipv6.into(), node)];
        let (near, far) = (of(&pods[0], 1), of(&pods[1], 2));
        let host = site.addresses(2).map(|addr| (addr, 2));
        let servers = vec![
            pods[0].probe("near").unwrap(),
            pods[1].probe("far").unwrap(),
            site.node(2).probe("host").unwrap(),
        ];
        let mut objects = Vec::new();
        for (server, (service, name, endpoints)) in
            servers.iter().zip([(NEAR, "near", near), (FAR, "far", far), (HOST, "host", host)])
        {
            for (addr, _) in endpoints {
                server.serve(&Serve::tcp(name, (addr, TARGET_PORT).into())).unwrap();
                server.serve(&Serve::udp(name, (addr, TARGET_PORT).into())).unwrap();
                server.serve(&Serve::tcp(name, (addr, BULK_PORT).into()).task(Task::Transfer)).unwrap();
            }
            objects.extend(service.objects(name, &endpoints, &json!({})));
            // The same endpoints, at the port of transfers.
            let mut bulk = Numbered(service.0 + 10).objects(&format!("{name}-bulk"), &endpoints, &json!({}));
            for slice in &mut bulk[1..] {
                slice["ports"][0]["port"] = json!(BULK_PORT);
            }
            objects.extend(bulk);
        }
        let homes = ["firewall-1", "firewall-2"].map(|label| Home::new(label).unwrap());
        for home in &homes {
            home.apply("services", &objects).unwrap();
        }
        let agents = site.start_agents(&homes, &[]).unwrap();
        let outside = site.probe("outside").unwrap();
        Self { _agents: agents, homes, outside, _servers: servers, pods, site }
    }

    fn lb_agent(&self, args: &[&str]) {
        let mut command = self.site.node(1).command(binary("lb-agent").unwrap());
        let done = command.args(args).arg("--pin-dir").arg(self.homes[0].pin_dir()).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }
}

/// Asks for `server` at `to`, by TCP and UDP.
fn expect(probe: &Probe, to: SocketAddr, server: &str, seen: IpAddr) {
    for reached in [probe.tcp(&Tcp::to(to)), probe.udp(&Udp::to(to))] {
        let reached = reached.unwrap_or_else(|error| panic!("{to}: {error}"));
        let client = reached.answer.as_ref().unwrap().client.ip();
        assert_eq!((reached.server(), client), (server, seen), "{to}");
    }
}

/// MQ-3: neither rp_filter, nor rules for what is forwarded or unknown, meet what is masqueraded.
#[test]
fn strict_nodes_serve_endpoints_elsewhere() {
    needs_root!();
    for pod_network in [PodNetwork::Routes, PodNetwork::Vxlan] {
        let world = World::new(Shape { pod_network, ..Shape::ROUTED }, |site| {
            for (number, more) in [(1, ""), (2, STRICT_BACKENDS)] {
                let netns = &site.node(number).netns;
                netns.nft(&format!("{STRICT}{more}")).unwrap();
                for name in ["all", "default", "eth0"] {
                    netns.sysctl(&format!("net.ipv4.conf.{name}.rp_filter"), "1").unwrap();
                }
            }
        });
        for family in [0, 1] {
            let node = world.site.addresses(1)[family];
            // The rules are in force: what is not masqueraded is forwarded.
            let near = Tcp::to((node, NEAR.node_port()).into()).timeout(Duration::from_millis(300));
            assert_eq!(world.outside.tcp(&near).unwrap_err().errno(), "TIMEOUT");
            let masqueraded = [world.site.towards_other_pods(1)[family], node];
            for (service, server, seen) in [(FAR, "far", masqueraded[0]), (HOST, "host", masqueraded[1])] {
                let bulk = Numbered(service.0 + 10);
                for (to, bulk) in [
                    ((node, service.node_port()), (node, bulk.node_port())),
                    ((service.balanced_ips()[family], PORT), (bulk.balanced_ips()[family], PORT)),
                ] {
                    expect(&world.outside, to.into(), server, seen);
                    let moved = world.outside.transfer(&Transfers::to(bulk.into(), 2, 1 << 20)).unwrap();
                    assert_eq!(moved, vec![Ok(Moved { up: 1 << 20, down: 1 << 20 }); 2], "{bulk:?}");
                }
            }
        }
    }
}

/// 2.25-mesh: a sidecar that has its pod's connections redirected to itself is shown the Service that was meant, and reaches it.
#[test]
fn a_redirecting_sidecar_is_shown_the_service() {
    needs_root!();
    let world = World::new(Shape { pod_links: PodLinks::Bridged, ..Shape::ROUTED }, |_| ());
    let client = &world.pods[2];
    world.lb_agent(&["netns", "exempt", client.netns.path().to_str().unwrap()]);
    let (app, sidecar) = (client.probe("app").unwrap(), client.probe("sidecar").unwrap());
    let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 15_001);
    for ip in ["127.0.0.1", "::1"] {
        sidecar.serve(&Serve::tcp("sidecar", at(ip)).task(Task::Redirected)).unwrap();
    }
    // As a mesh does: what the sidecar itself sends, which has a port of its own here, is left alone.
    client
        .netns
        .nft(
            "add table inet mesh
              add chain inet mesh output { type nat hook output priority -100; }
              add rule inet mesh output tcp sport 15100 accept
              add rule inet mesh output meta l4proto tcp ip daddr != 127.0.0.1 redirect to :15001
              add rule inet mesh output meta l4proto tcp ip6 daddr != ::1 redirect to :15001",
        )
        .unwrap();
    for family in [0, 1] {
        let own = [IpAddr::from(client.ipv4), client.ipv6.into()][family];
        for (service, server) in [(NEAR, "near"), (FAR, "far")] {
            let to = SocketAddr::new(service.cluster_ips()[family], PORT);
            let reached = app.tcp(&Tcp::to(to)).unwrap();
            assert_eq!((reached.server(), reached.peer), (&*format!("sidecar for {to}"), Some(to)));
            let onward = sidecar.tcp(&Tcp::to(to).bind((own, 15_100).into()).reset()).unwrap();
            assert_eq!((onward.server(), onward.peer), (server, Some(to)));
            assert_eq!(onward.answer.unwrap().client.ip(), own);
        }
    }
}

/// A pod translates to a Service itself, for clients outside and pods, at a bridge and over an overlay.
#[test]
fn a_pod_at_a_bridge_forwards_to_a_cluster_ip() {
    needs_root!();
    let shape = Shape { pod_links: PodLinks::Bridged, pod_network: PodNetwork::Vxlan, ..Shape::ROUTED };
    let world = World::new(shape, |site| {
        site.router
            .ip("route add 10.1.0.0/16 via 192.168.50.1\nroute add fd00:10:1::/48 via fd00:192:168:50::1")
            .unwrap();
    });
    let forwarder = &world.pods[2];
    forwarder.netns.sysctl("net.ipv4.ip_forward", "1").unwrap();
    forwarder.netns.sysctl("net.ipv6.conf.all.forwarding", "1").unwrap();
    let [v4, v6] = FAR.cluster_ips();
    forwarder
        .netns
        .nft(&format!(
            "add table inet forward
             add chain inet forward pre {{ type nat hook prerouting priority -100; }}
             add chain inet forward post {{ type nat hook postrouting priority 100; }}
             add rule inet forward pre meta l4proto {{ tcp, udp }} th dport 8000 dnat ip to {v4}:{PORT}
             add rule inet forward pre meta l4proto {{ tcp, udp }} th dport 8000 dnat ip6 to [{v6}]:{PORT}
             add rule inet forward post ip daddr {v4} masquerade
             add rule inet forward post ip6 daddr {v6} masquerade"
        ))
        .unwrap();
    let near = world.pods[0].probe("pod").unwrap();
    for addr in [IpAddr::from(forwarder.ipv4), forwarder.ipv6.into()] {
        expect(&world.outside, (addr, 8000).into(), "far", addr);
        expect(&near, (addr, 8000).into(), "far", addr);
    }
}
