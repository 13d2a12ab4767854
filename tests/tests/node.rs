//! What the agent makes of the node that it runs on: its addresses, its Node object, its zone; and of the options that
//! say which of them and which objects count.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{net::IpAddr, process::Command, time::Duration};

use lb_tests::{
    Agent, Home, Node, Pod, Probe, Topology,
    agent::{at, service, slice},
    needs_root,
    probe::{Serve, Tcp, Udp},
    wait_for,
};
use serde_json::{Value, json};

/// For limits of things that are expected to happen.
const SOON: Duration = Duration::from_secs(30);
/// How long an answer is waited for, where one is expected.
const LONG: Duration = Duration::from_secs(10);
/// How long one is waited for where none is expected, or where it is asked again.
const SHORT: Duration = Duration::from_millis(500);

const NODE_PORT: u16 = 30_080;
/// A second address of the node.
const SECOND: &str = "192.168.51.1";
const PRIMARY: &str = "192.168.50.1";
const PRIMARY6: &str = "fd00:192:168:50::1";

/// A node with a server behind Service `web`, and a client in the host's namespace. Fields are dropped in order.
struct World {
    agent: Option<Agent>,
    host: Probe,
    _server: (Pod, Probe),
    home: Home,
    net: Topology,
}

impl World {
    /// Everything but the agent. `web` has cluster IPs 10.0.1.100 and fd00:10::1:100, TCP 80 and UDP 53, and node
    /// ports.
    fn new(label: &str) -> Self {
        let net = Topology::single().unwrap();
        let node = net.node(1);
        node.add_address(SECOND.parse().unwrap()).unwrap();
        let pod = node.add_pod("server", [10, 1, 2, 10].into()).unwrap();
        let server = pod.probe("server").unwrap();
        for addr in [IpAddr::V4(pod.ipv4), IpAddr::V6(pod.ipv6)] {
            server.serve(&Serve::tcp("web-1", (addr, 8080).into())).unwrap();
            server.serve(&Serve::udp("web-1", (addr, 5353).into())).unwrap();
        }
        let home = Home::new(label).unwrap();
        home.apply("web", &web(&pod)).unwrap();
        let host = node.probe("host").unwrap();
        Self { agent: None, host, _server: (pod, server), home, net }
    }

    fn start(&mut self, args: &[&str]) {
        self.agent = Some(Agent::start_with(self.net.node(1), &self.home, args).unwrap());
    }

    fn node(&self) -> &Node {
        self.net.node(1)
    }

    /// Puts the own Node object in place.
    fn node_object(&self, zone: &str, addresses: &[(&str, &str)]) {
        let addresses: Vec<Value> =
            addresses.iter().map(|(kind, addr)| json!({"type": kind, "address": addr})).collect();
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": self.node().name, "labels": {"topology.kubernetes.io/zone": zone}},
            "status": {"addresses": addresses},
        });
        self.home.apply("node", &[node]).unwrap();
    }

    /// Who answers at an address by TCP, or the errno.
    fn tcp(&self, to: &str) -> String {
        self.tcp_within(to, LONG)
    }

    fn tcp_within(&self, to: &str, limit: Duration) -> String {
        match self.host.tcp(&Tcp::to(at(to)).timeout(limit)) {
            Ok(reached) => reached.server().to_owned(),
            Err(error) => error.errno().to_owned(),
        }
    }

    /// Whether nobody answers and nothing refuses: the address is not translated.
    fn is_silent(&self, to: &str) -> bool {
        self.tcp_within(to, SHORT) == "TIMEOUT"
    }

    /// The same as [`World::tcp`] by UDP.
    fn udp(&self, to: &str) -> String {
        match self.host.udp(&Udp::to(at(to)).timeout(LONG)) {
            Ok(reached) => reached.server().to_owned(),
            Err(error) => error.errno().to_owned(),
        }
    }

    /// Waits until exactly these of the node's addresses serve the node port; on the others nobody listens.
    fn until_served_on(&self, wanted: &[&str]) {
        wait_for(&format!("node ports on {wanted:?}"), SOON, || {
            let all = [PRIMARY, SECOND, PRIMARY6, "127.0.0.1", "::1"];
            let answers = all.map(|addr| {
                let to = std::net::SocketAddr::new(addr.parse().unwrap(), NODE_PORT).to_string();
                (addr, self.tcp_within(&to, SHORT))
            });
            let is_known = answers.iter().all(|(_, answer)| ["web-1", "ECONNREFUSED"].contains(&&**answer));
            let served: Vec<&str> =
                answers.iter().filter(|(_, answer)| answer == "web-1").map(|(addr, _)| *addr).collect();
            if is_known && served == wanted { Ok(()) } else { Err(format!("{answers:?}")) }
        })
        .unwrap();
    }

    fn until_tcp(&self, to: &str, wanted: &str) {
        wait_for(&format!("{wanted} at {to}"), SOON, || {
            let seen = self.tcp_within(to, SHORT);
            if seen == wanted { Ok(()) } else { Err(seen) }
        })
        .unwrap();
    }

    fn status(&self) -> Value {
        self.home.status().unwrap()["agent"].clone()
    }
}

fn web(pod: &Pod) -> Vec<Value> {
    let ports = [("http", "TCP", 80), ("dns", "UDP", 53)];
    let mut web = service("web", &["10.0.1.100", "fd00:10::1:100"], &ports);
    web["spec"]["type"] = json!("NodePort");
    web["spec"]["ports"][0]["nodePort"] = json!(NODE_PORT);
    web["spec"]["ports"][1]["nodePort"] = json!(NODE_PORT);
    let mut objects = vec![web];
    for addr in [IpAddr::V4(pod.ipv4), IpAddr::V6(pod.ipv6)] {
        let family = if addr.is_ipv6() { "6" } else { "4" };
        objects.push(slice(&format!("web-http-{family}"), "web", ("http", "TCP", 8080), &[addr]));
        objects.push(slice(&format!("web-dns-{family}"), "web", ("dns", "UDP", 5353), &[addr]));
    }
    objects
}

/// NP-3, ND-1, ND-2, ND-3, DS-2: kube-proxy ends when its Node's addresses change, to be started again; here the effect
/// of the new start comes by itself. What was known stays when the Node says nothing any more.
#[test]
fn node_ports_follow_the_primary_addresses_of_the_node_object() {
    needs_root!();
    let mut world = World::new("node-primary");
    world.node_object("a", &[("ExternalIP", SECOND), ("InternalIP", PRIMARY), ("InternalIP", PRIMARY6)]);
    world.start(&["--localhost-nodeports=false"]);
    world.until_served_on(&[PRIMARY, PRIMARY6]);
    assert_eq!(world.status()["node_port_addresses"], json!([PRIMARY, PRIMARY6]));

    world.node_object("a", &[("InternalIP", SECOND)]);
    world.until_served_on(&[SECOND]);
    // A family that the node does not have loses its node ports, not its Services, and that is said.
    let mismatch = "the Node has no address of this family";
    assert_eq!(world.home.log().matches(mismatch).count(), 1, "{}", world.home.log());
    assert_eq!(world.tcp("[fd00:10::1:100]:80"), "web-1");

    world.node_object("b", &[]);
    wait_for("the Node without addresses to be read", SOON, || {
        // The zone came with it; nothing shows it but the log.
        let log = world.home.log();
        if log.matches("manifest read").count() >= 4 { Ok(()) } else { Err(log) }
    })
    .unwrap();
    world.until_served_on(&[SECOND]);
    world.home.remove("node").unwrap();
    world.home.apply("more", &[service("more", &["10.0.1.101"], &[("", "TCP", 80)])]).unwrap();
    world.until_tcp("10.0.1.101:80", "ECONNREFUSED");
    world.until_served_on(&[SECOND]);
    assert_eq!(world.home.log().matches(" ready ").count(), 1, "one start");
}

/// ND-1: without a Node object, nothing that could be reached is taken away, and it is said.
#[test]
fn without_a_node_object_node_ports_are_served_on_every_address_with_a_warning() {
    needs_root!();
    let mut world = World::new("node-none");
    world.start(&[]);
    world.until_served_on(&[PRIMARY, SECOND, PRIMARY6, "127.0.0.1", "::1"]);
    let log = world.home.log();
    assert_eq!(log.matches("no address of this Node is known").count(), 1, "{log}");

    world.agent.take().unwrap().stop().unwrap();
    world.start(&["--node-ip", SECOND, "--localhost-nodeports=false"]);
    world.until_served_on(&[SECOND]);
    assert_eq!(world.home.log().matches("no address of this Node is known").count(), 1, "only the first");
}

/// NP-1, NP-2, NP-12: addresses that come and go are looked at as they come and go.
#[test]
fn ranges_hold_for_addresses_that_come_later() {
    needs_root!();
    let mut world = World::new("node-ranges");
    world.start(&["--nodeport-addresses", "192.168.51.0/24"]);
    // Of loopback the family without a range has its address (NP-2).
    world.until_served_on(&[SECOND, PRIMARY6, "::1"]);
    let third = "192.168.51.3:30080";
    world.node().add_address("192.168.51.3".parse().unwrap()).unwrap();
    world.until_tcp(third, "web-1");
    world.node().netns.ip("addr del 192.168.51.1/32 dev lo\naddr add 192.168.52.1/32 dev lo").unwrap();
    wait_for("the second address to be gone", SOON, || {
        let served = world.status()["node_port_addresses"].to_string();
        if served.contains(SECOND) { Err(served) } else { Ok(()) }
    })
    .unwrap();
    assert_eq!(world.tcp("192.168.52.1:30080"), "ECONNREFUSED", "outside of the range");
    assert_eq!(world.tcp(third), "web-1");
}

/// NP-5, NP-6, NP-7, NP-8: the host's sockets meet node ports on loopback, by TCP and UDP alike, without a proxy in
/// between.
#[test]
fn node_ports_on_loopback_are_chosen_by_switch_and_by_name() {
    needs_root!();
    let mut world = World::new("node-loopback");
    world.node_object("a", &[("InternalIP", PRIMARY)]);
    for (args, wanted) in [
        (&["--localhost-nodeports=false"][..], &[PRIMARY][..]),
        (
            &["--localhost-nodeports=false", "--nodeport-addresses", "primary,localhost"],
            &[PRIMARY, "127.0.0.1", "::1"],
        ),
        (&["--nodeport-addresses", "127.0.0.0/8,fd99::/16"], &["127.0.0.1"]),
        (&[], &[PRIMARY, "127.0.0.1", "::1"]),
    ] {
        world.start(args);
        world.until_served_on(wanted);
        let udp = world.udp("127.0.0.1:30080");
        assert_eq!(udp == "web-1", wanted.contains(&"127.0.0.1"), "{args:?}: {udp}");
        assert_ne!(world.tcp("127.0.0.2:30080"), "web-1", "NP-4");
        world.agent.take().unwrap().stop().unwrap();
    }
}

/// NP-6: an operator who asks for loopback addresses and switches them off hears once that nothing is served.
#[test]
fn loopback_ranges_that_serve_nothing_are_named_in_the_log_and_in_status() {
    needs_root!();
    let mut world = World::new("node-idle");
    world.node_object("a", &[("InternalIP", PRIMARY)]);
    world.start(&["--nodeport-addresses", "127.0.0.0/8,::1/128", "--localhost-nodeports=false"]);
    assert_ne!(world.tcp("127.0.0.1:30080"), "web-1");
    let said = world.status()["idle_node_port_addresses"].clone();
    let said: Vec<&str> = said.as_array().unwrap().iter().filter_map(|line| line.as_str()).collect();
    let wanted =
        ["127.0.0.0/8 serves none", "::1/128 serves none", "no address of this node serves NodePorts"];
    assert_eq!(said.len(), wanted.len(), "{said:?}");
    // Another address of the Node says nothing new.
    world.node_object("a", &[("InternalIP", SECOND)]);
    world.home.apply("later", &[service("later", &["10.0.1.101"], &[("http", "TCP", 80)])]).unwrap();
    world.until_tcp("10.0.1.101:80", "ECONNREFUSED");
    let log = world.home.log();
    for (said, wanted) in said.into_iter().zip(wanted) {
        assert!(said.contains(wanted), "{said}");
        assert_eq!(
            log.lines().filter(|line| line.contains("WARN") && line.contains(said)).count(),
            1,
            "{log}"
        );
    }
}

/// NP-8, NP-10, NP-11: a node port of any number needs no listener, and one that is there does not get its connections.
#[test]
fn nothing_listens_on_a_node_port() {
    needs_root!();
    let mut world = World::new("node-listen");
    let mut low = service("low", &["10.0.1.102"], &[("http", "TCP", 80)]);
    low["spec"]["type"] = json!("NodePort");
    low["spec"]["ports"][0]["nodePort"] = json!(81);
    home_low(&world, &low);
    world.start(&[]);
    let listening = || {
        let output = world.node().command("ss").args(["-Hltun"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for port in [NODE_PORT, 81] {
        world.until_tcp(&format!("{PRIMARY}:{port}"), "web-1");
        assert!(!listening().contains(&format!(":{port} ")), "{}", listening());
    }
    let listener = world.node().probe("listener").unwrap();
    listener.serve(&Serve::tcp("squatter", (IpAddr::from([0, 0, 0, 0]), NODE_PORT).into())).unwrap();
    assert!(listening().contains(&format!(":{NODE_PORT} ")));
    assert_eq!(world.tcp(&format!("{PRIMARY}:{NODE_PORT}")), "web-1");
    world.home.remove("web").unwrap();
    world.until_tcp(&format!("{PRIMARY}:{NODE_PORT}"), "squatter");
    drop(listener);
    world.until_tcp(&format!("{PRIMARY}:{NODE_PORT}"), "ECONNREFUSED");
    assert!(!listening().contains(&format!(":{NODE_PORT} ")));
}

/// LB-6, LB-7: external and load-balancer addresses are served without being anybody's: no interface gets them, nothing answers for
/// them, no route leads to them.
#[test]
fn addresses_of_services_are_not_put_on_the_node() {
    needs_root!();
    let mut world = World::new("node-addresses");
    let mut low = service("low", &["10.0.1.102"], &[("http", "TCP", 80)]);
    low["spec"]["type"] = json!("LoadBalancer");
    low["spec"]["externalIPs"] = json!(["198.51.100.7"]);
    low["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}});
    home_low(&world, &low);
    let look = |world: &World| {
        ["address", "neighbour show proxy", "route show table all"].map(|what| {
            let words = ["-o"].into_iter().chain(what.split(' '));
            let output = world.node().command("ip").args(words).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        })
    };
    let before = look(&world);
    world.start(&[]);
    for addr in ["198.51.100.7:80", "203.0.113.9:80", "10.0.1.102:80"] {
        world.until_tcp(addr, "web-1");
    }
    let after = look(&world);
    for addr in ["198.51.100.7", "203.0.113.9", "10.0.1.102"] {
        assert!(after.iter().all(|text| !text.contains(addr)), "{addr}: {after:?}");
    }
    assert_eq!(before[1..], after[1..]);
}

/// Service `low` shares the backend of `web`.
fn home_low(world: &World, low: &Value) {
    let backend = slice("low-1", "low", ("http", "TCP", 8080), &[[10, 1, 2, 10].into()]);
    world.home.apply("low", &[low.clone(), backend]).unwrap();
}

/// ND-4, ND-6: the zone is known before the first write, and a new one steers new connections; without a Node there is
/// none.
#[test]
fn the_zone_of_the_node_is_followed_from_the_first_write_on() {
    needs_root!();
    let mut world = World::new("node-zone");
    let far = world.node().add_pod("far", [10, 1, 3, 10].into()).unwrap();
    let far_server = far.probe("far").unwrap();
    far_server.serve(&Serve::tcp("web-2", at("10.1.3.10:8080"))).unwrap();
    let mut hinted =
        slice("zoned-1", "zoned", ("", "TCP", 8080), &[[10, 1, 2, 10].into(), [10, 1, 3, 10].into()]);
    for (index, zone) in ["a", "b"].into_iter().enumerate() {
        hinted["endpoints"][index]["hints"] = json!({"forZones": [{"name": zone}]});
    }
    let zoned = service("zoned", &["10.0.1.103"], &[("", "TCP", 80)]);
    world.home.apply("zoned", &[zoned, hinted]).unwrap();
    world.node_object("b", &[("InternalIP", PRIMARY)]);
    let met = |world: &World| {
        let mut met: Vec<String> = (0..24).map(|_| world.tcp("10.0.1.103:80")).collect();
        met.sort();
        met.dedup();
        met
    };
    world.start(&[]);
    assert_eq!(met(&world), ["web-2"], "at once");
    let until = |world: &World, wanted: &[&str]| {
        wait_for(&format!("connections to meet {wanted:?}"), SOON, || {
            let met = met(world);
            if met == wanted { Ok(()) } else { Err(format!("{met:?}")) }
        })
        .unwrap();
    };
    world.node_object("a", &[("InternalIP", PRIMARY)]);
    until(&world, &["web-1"]);
    world.home.remove("node").unwrap();
    until(&world, &["web-1", "web-2"]);
}

/// ND-5.
#[test]
fn a_node_name_that_nothing_mentions_is_warned_of() {
    needs_root!();
    let mut world = World::new("node-name");
    let mut elsewhere = slice("else-1", "web", ("http", "TCP", 8080), &[[10, 1, 2, 10].into()]);
    elsewhere["endpoints"][0]["nodeName"] = json!("NODE1");
    world.home.apply("else", &[elsewhere]).unwrap();
    world.start(&[]);
    let log = world.home.log();
    assert!(
        log.contains("no Node and no endpoint has this name") && log.contains("check --node-name"),
        "{log}"
    );
    world.agent.take().unwrap().stop().unwrap();
    world.start(&["--node-name", "NODE1"]);
    assert_eq!(world.home.log().matches("no Node and no endpoint has this name").count(), 1);
}

/// A node-local DNS cache has the cluster IP of the DNS Service on an interface of its own (design.md 3).
#[test]
fn a_cluster_ip_on_an_interface_of_this_node_is_left_alone_while_it_is_there() {
    needs_root!();
    let mut world = World::new("node-local-dns");
    world.start(&[]);
    let (tcp, udp) = ("10.0.1.100:80", "10.0.1.100:53");
    world.until_tcp(tcp, "web-1");
    let netns = &world.node().netns;
    let add = |interface: &str| {
        netns
            .ip(&format!(
                "link add {interface} type veth peer name peer0
                 link set {interface} up
                 addr add 10.0.1.100/32 dev {interface}"
            ))
            .unwrap();
    };
    add("nodelocaldns");
    world.host.serve(&Serve::tcp("cache", at(tcp))).unwrap();
    world.host.serve(&Serve::udp("cache", at(udp))).unwrap();
    world.until_tcp(tcp, "cache");
    assert_eq!(world.udp(udp), "cache");
    // Other frontends of the Service.
    assert_eq!(world.tcp(&format!("{PRIMARY}:{NODE_PORT}")), "web-1");
    assert_eq!(world.tcp("[fd00:10::1:100]:80"), "web-1");
    let left = json!([{"service": "default/web", "address": "10.0.1.100", "interface": "nodelocaldns"}]);
    assert_eq!(world.status()["left_alone"], left);
    let shown = text_status(&world);
    let section =
        "cluster IPs on an interface of this node, left alone:\n  default/web  10.0.1.100  nodelocaldns";
    assert!(shown.contains(section), "{shown}");

    netns.ip("link del nodelocaldns").unwrap();
    world.until_tcp(tcp, "web-1");
    assert_eq!(world.udp(udp), "web-1");
    // kube-proxy's IPVS mode puts every cluster IP on that one.
    add("kube-ipvs0");
    world.home.apply("more", &[service("more", &["10.0.1.101"], &[("", "TCP", 80)])]).unwrap();
    world.until_tcp("10.0.1.101:80", "ECONNREFUSED");
    assert_eq!(world.tcp(tcp), "web-1");
    assert_eq!(world.status()["left_alone"], json!([]));
}

fn text_status(world: &World) -> String {
    let mut command = Command::new(lb_tests::binary("lb-agent").unwrap());
    command.arg("status").env("LB_PIN_DIR", world.home.pin_dir()).env("LB_SOCKET", world.home.socket());
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

/// A Service that has no frontend left on this node, and comes back with them.
#[test]
fn a_service_may_lose_all_of_its_frontends_to_interfaces() {
    needs_root!();
    let mut world = World::new("node-all-alone");
    home_low(&world, &service("low", &["10.0.1.102"], &[("http", "TCP", 80)]));
    world
        .node()
        .netns
        .ip("link add cache type veth peer name peer0\naddr add 10.0.1.102/32 dev cache\nlink set cache up")
        .unwrap();
    world.start(&[]);
    assert_eq!(world.tcp("10.0.1.102:80"), "ECONNREFUSED", "it is the node's own, and nobody listens");
    assert_eq!(world.status()["left_alone"][0]["service"], "default/low");
    world.node().netns.ip("addr del 10.0.1.102/32 dev cache").unwrap();
    world.until_tcp("10.0.1.102:80", "web-1");
    world.node().netns.ip("addr add 10.0.1.102/32 dev cache").unwrap();
    world.until_tcp("10.0.1.102:80", "ECONNREFUSED");
}

/// LB-6: external IPs that no node has are served, unless they are switched off, which is said of each Service that has
/// some.
#[test]
fn external_ips_can_be_switched_off() {
    needs_root!();
    let mut world = World::new("node-external");
    let mut low = service("low", &["10.0.1.102"], &[("http", "TCP", 80)]);
    low["spec"]["externalIPs"] = json!(["203.0.113.7"]);
    home_low(&world, &low);
    world.start(&[]);
    assert_eq!(world.tcp("203.0.113.7:80"), "web-1");
    world.agent.take().unwrap().stop().unwrap();
    world.start(&["--external-ips", "off"]);
    assert!(world.is_silent("203.0.113.7:80"));
    assert_eq!(world.tcp("10.0.1.102:80"), "web-1");
    let notices = world.status()["notices"].clone();
    assert_eq!(notices.as_array().unwrap().len(), 1, "{notices}");
    assert!(
        notices[0].as_str().unwrap().starts_with("service default/low: spec.externalIPs: external IPs"),
        "{notices}"
    );
}

/// SEL-1, SEL-2.
#[test]
fn a_proxy_with_a_name_serves_the_services_of_that_name() {
    needs_root!();
    let mut world = World::new("node-proxy-name");
    let put = |world: &World, label: Option<&str>| {
        let mut low = service("low", &["10.0.1.102"], &[("http", "TCP", 80)]);
        let mut backend = slice("low-1", "low", ("http", "TCP", 8080), &[[10, 1, 2, 10].into()]);
        if let Some(name) = label {
            low["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": name});
            backend["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = json!(name);
        }
        world.home.apply("low", &[low, backend]).unwrap();
    };
    put(&world, Some("mine"));
    world.start(&["--service-proxy-name", "mine"]);
    assert_eq!(world.tcp("10.0.1.102:80"), "web-1");
    assert!(world.is_silent("10.0.1.100:80"), "it has no name");
    put(&world, Some("other"));
    world.until_tcp("10.0.1.102:80", "TIMEOUT");
    put(&world, Some("mine"));
    world.until_tcp("10.0.1.102:80", "web-1");
    put(&world, None);
    world.until_tcp("10.0.1.102:80", "TIMEOUT");
}

/// SY-2, SY-5: what is held back holds up neither questions nor the end; traffic goes on, and the next start writes it.
#[test]
fn changes_that_are_held_back_hold_up_nothing_else() {
    needs_root!();
    let mut world = World::new("node-pace");
    world.start(&["--min-sync-interval", "1h", "--resync-interval", "2h"]);
    assert_eq!(world.tcp("10.0.1.100:80"), "web-1");
    home_low(&world, &service("low", &["10.0.1.102"], &[("http", "TCP", 80)]));
    wait_for("the change to be known", SOON, || {
        let services = world.status()["services"].clone();
        if services == 2 { Ok(()) } else { Err(services.to_string()) }
    })
    .unwrap();
    assert!(world.is_silent("10.0.1.102:80"));
    world.agent.take().unwrap().stop().unwrap();
    assert_eq!(world.tcp("10.0.1.100:80"), "web-1");
    world.start(&[]);
    assert_eq!(world.tcp("10.0.1.102:80"), "web-1");
    world.home.remove("low").unwrap();
    world.until_tcp("10.0.1.102:80", "TIMEOUT");
}
