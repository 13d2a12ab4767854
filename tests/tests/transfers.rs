//! Connections that move many bytes, end by halves, and come again from the same port, over links of different sizes.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use lb_tests::agent::{Agent, Home};
use lb_tests::probe::{Ends, Moved, Serve, Task, Tcp, Transfers, Udp};
use lb_tests::topology::service::{Numbered, PORT, TARGET_PORT};
use lb_tests::topology::site::{PodLinks, PodNetwork, Shape, Site};
use lb_tests::{Pod, Probe, needs_root};
use serde_json::json;

/// Service of a pod on node 1.
const NEAR: Numbered = Numbered(11);
/// Service of a pod on node 2.
const FAR: Numbered = Numbered(12);
/// Service of node 2 itself.
const HOST: Numbered = Numbered(13);
/// Service of both pods.
const BOTH: Numbered = Numbered(14);

/// Longer than a text of one frame, shorter than what servers take.
const LONG_TEXT: usize = 3000;

/// How long somebody waits for a datagram that may be lost.
const LOST: Duration = Duration::from_millis(700);

/// A site with agents, servers for lines, datagrams and transfers, and three clients.
struct World {
    site: Site,
    _agents: Vec<Agent>,
    homes: [Home; 2],
    outside: Probe,
    bare: Probe,
    pod: Probe,
    _servers: Vec<Probe>,
    _pods: Vec<Pod>,
}

impl World {
    /// Servers do `task` with TCP connections.
    fn new(shape: Shape, task: Task) -> Self {
        let site = Site::new(shape).unwrap();
        let pods: Vec<Pod> = [(1, "near", 10), (1, "bare", 11), (2, "far", 10), (1, "pod", 12)]
            .map(|(node, name, last)| {
                let addr = Ipv4Addr::new(10, u8::try_from(node).unwrap(), 1, last);
                site.add_pod(node, name, addr).unwrap()
            })
            .into();
        let of = |pod: &Pod, node: usize| [(pod.ipv4.into(), node), (pod.ipv6.into(), node)];
        let (near, far) = (of(&pods[0], 1), of(&pods[2], 2));
        let host = site.addresses(2).map(|addr| (addr, 2));
        let servers = vec![
            pods[0].probe("near").unwrap(),
            pods[2].probe("far").unwrap(),
            site.node(2).probe("host").unwrap(),
        ];
        for (server, endpoints) in servers.iter().zip([near, far, host]) {
            for (addr, _) in endpoints {
                let at: SocketAddr = (addr, TARGET_PORT).into();
                server.serve(&Serve::tcp("server", at).task(task)).unwrap();
                server.serve(&Serve::udp("server", at)).unwrap();
            }
        }
        let homes = ["transfers-1", "transfers-2"].map(|label| Home::new(label).unwrap());
        let mut objects = Vec::new();
        for (service, name, endpoints) in [
            (NEAR, "near", near.to_vec()),
            (FAR, "far", far.to_vec()),
            (HOST, "host", host.to_vec()),
            (BOTH, "both", [near, far].concat()),
        ] {
            objects.extend(service.objects(name, &endpoints, &json!({})));
        }
        for home in &homes {
            home.apply("services", &objects).unwrap();
        }
        let agents = site.start_agents(&homes, &[]).unwrap();
        Self {
            outside: site.probe("outside").unwrap(),
            bare: site.probe_without_hooks("bare", &pods[1]).unwrap(),
            pod: pods[3].probe("pod").unwrap(),
            site,
            _agents: agents,
            homes,
            _servers: servers,
            _pods: pods,
        }
    }

    /// Every way that is different for packets: of a client outside and of pods, to endpoints here and elsewhere.
    fn ways(&self) -> Vec<(&Probe, String, SocketAddr)> {
        let mut ways = Vec::new();
        for family in [0, 1] {
            let node = self.site.seen_from_outside(1)[family];
            let mut way = |probe, who: &str, to: (IpAddr, u16)| {
                ways.push((probe, format!("{who} to {}", SocketAddr::from(to)), to.into()));
            };
            way(&self.outside, "outside", (node, NEAR.node_port()));
            way(&self.outside, "outside", (node, FAR.node_port()));
            way(&self.outside, "outside", (HOST.balanced_ips()[family], PORT));
            way(&self.bare, "a pod without hooks", (NEAR.cluster_ips()[family], PORT));
            way(&self.bare, "a pod without hooks", (FAR.cluster_ips()[family], PORT));
            way(&self.bare, "a pod without hooks", (self.site.addresses(2)[family], FAR.node_port()));
            way(&self.bare, "a pod without hooks", (HOST.external_ips()[family], PORT));
            way(&self.pod, "a pod", (FAR.cluster_ips()[family], PORT));
        }
        ways
    }

    fn logs(&self) -> String {
        self.homes.each_ref().map(|home| format!("{:?}", home.status().unwrap()["reasons"])).join("\n")
    }

    /// Moves `bytes` each way in each of `flows` connections, over every way.
    fn transfer(&self, flows: u32, bytes: u64, ends: Ends) {
        let mut wrong = Vec::new();
        let wanted = if ends == Ends::Server { 0 } else { bytes };
        for (probe, what, to) in self.ways() {
            let results = probe.transfer(&Transfers::to(to, flows, bytes).ends(ends)).unwrap();
            assert_eq!(results.len(), flows as usize);
            let bad = results.into_iter().filter(|it| *it != Ok(Moved { up: wanted, down: bytes }));
            wrong.extend(bad.map(|result| format!("{what}, {ends:?}: {result:?}")));
        }
        assert!(wrong.is_empty(), "{wrong:#?}\n{}", self.logs());
    }
}

/// 2.25-icmp
#[test]
fn big_transfers_arrive_as_they_were_sent_over_routes() {
    needs_root!();
    let world = World::new(Shape { mtu: 1400, two_uplinks: true, ..Shape::ROUTED }, Task::Transfer);
    world.transfer(4, 2 << 20, Ends::Both);
    world.transfer(2, 1 << 20, Ends::Client);
    world.transfer(2, 1 << 20, Ends::Server);
}

/// The same where pods are behind an overlay that is smaller than their own links: 2.25-icmp
#[test]
fn big_transfers_arrive_as_they_were_sent_over_an_overlay() {
    needs_root!();
    let shape =
        Shape { pod_links: PodLinks::Bridged, pod_network: PodNetwork::Vxlan, mtu: 1400, ..Shape::ROUTED };
    let world = World::new(shape, Task::Transfer);
    world.transfer(4, 2 << 20, Ends::Both);
    world.transfer(2, 1 << 20, Ends::Client);
    world.transfer(2, 1 << 20, Ends::Server);
}

/// 2.25-fragments
#[test]
fn long_datagrams_arrive() {
    needs_root!();
    for pod_network in [PodNetwork::Routes, PodNetwork::Vxlan] {
        let world = World::new(Shape { mtu: 1400, pod_network, ..Shape::ROUTED }, Task::Answer);
        let text = "x".repeat(LONG_TEXT);
        let mut wrong = Vec::new();
        for (probe, what, to) in world.ways() {
            let handle = probe.open_udp(&Udp::to(to).timeout(LOST)).unwrap().handle;
            let answers = [(); 3].map(|()| probe.exchange(handle, &text));
            // In IPv6, who sends too much for a link is told so and sends smaller pieces from then on: first the client, then the
            // server.
            let lost = if to.is_ipv6() { 2 } else { 0 };
            if !answers[lost..].iter().all(Result::is_ok) {
                wrong.push(format!("{pod_network:?}, {what}: {answers:?}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}\n{}", world.logs());
    }
}

/// Connections with both ends as an earlier one had them, which the server has closed or the client has reset.
#[test]
fn a_port_is_used_again_at_once() {
    needs_root!();
    let world = World::new(Shape::ROUTED, Task::Transfer);
    let node = world.site.addresses(1)[0];
    let ways = [
        (&world.outside, Site::CLIENT[0], SocketAddr::from((node, NEAR.node_port()))),
        (&world.outside, Site::CLIENT[0], (node, FAR.node_port()).into()),
        (&world.outside, Site::CLIENT[0], (node, BOTH.node_port()).into()),
        (&world.bare, IpAddr::from([10, 1, 1, 11]), (BOTH.cluster_ips()[0], PORT).into()),
    ];
    let mut wrong = Vec::new();
    for (probe, from, to) in ways {
        for round in 0..12 {
            let transfer = Transfers::to(to, 1, 10_000).ends(Ends::Server).bind((from, 40_000).into());
            let result = probe.transfer(&transfer).unwrap().remove(0);
            if result != Ok(Moved { up: 0, down: 10_000 }) {
                wrong.push(format!("{from} to {to}, round {round}: {result:?}"));
            }
        }
        for round in 0..12 {
            let tcp = Tcp::to(to).bind((from, 40_001).into()).silent().reset();
            if let Err(error) = probe.tcp(&tcp) {
                wrong.push(format!("{from} to {to}, reset, round {round}: {error}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", world.logs());
}

/// A connection whose client is done lives on for as long as the server likes.
#[test]
fn half_closed_connections_live_on() {
    needs_root!();
    let world = World::new(Shape::ROUTED, Task::Transfer);
    let ways = world.ways();
    thread::scope(|scope| {
        for (probe, what, to) in &ways {
            scope.spawn(move || {
                let transfers = Transfers { up: 1, ..Transfers::to(*to, 2, 4 << 20).ends(Ends::Client) };
                let results = probe.transfer(&transfers).unwrap();
                assert!(
                    results.iter().all(|result| *result == Ok(Moved { up: 1, down: 4 << 20 })),
                    "{what}: {results:?}"
                );
            });
        }
    });
}
