//! What the agent does for packets: real traffic of clients that no socket hook sees, under a real agent.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use aya::programs::tc::qdisc_add_clsact;
use lb_tests::agent::{Agent, Home, at, service, slice};
use lb_tests::packets;
use lb_tests::probe::{Serve, Tcp, Udp};
use lb_tests::wait::wait_for;
use lb_tests::{Node, Pod, Probe, Topology, Tunnel, needs, needs_root};
use serde_json::{Value, json};

/// The agent serves packets and no sockets.
const PACKETS_ONLY: [&str; 6] = ["--devices", "auto", "--pod-devices", "auto", "--socket-lb", "none"];
const SOON: Duration = Duration::from_mins(1);

/// A client outside at node 2, a client and a server in pods of node 1, and servers on node 2.
struct Set {
    net: Topology,
    home: Home,
    client: Pod,
    own: Pod,
    outside: Probe,
    pod: Probe,
    local: Probe,
    _far: Probe,
}

/// Where node 2's server is.
const FAR: [&str; 2] = ["10.2.255.1", "fd00:10:2:255::1"];

impl Set {
    fn new(label: &str) -> Self {
        let net = Topology::pair().unwrap();
        let (node, other) = (net.node(1), net.node(2));
        let client = node.add_pod("client", [10, 1, 1, 10].into()).unwrap();
        let own = node.add_pod("own", [10, 1, 1, 11].into()).unwrap();
        let far = other.probe("far").unwrap();
        for addr in FAR {
            other.add_address(addr.parse().unwrap()).unwrap();
            serve(&far, "far", addr.parse().unwrap());
        }
        let local = own.probe("local").unwrap();
        serve(&local, "own", own.ipv4.into());
        serve(&local, "own", own.ipv6.into());
        let (outside, pod) = (other.probe("outside").unwrap(), client.probe("pod").unwrap());
        Self { home: Home::new(label).unwrap(), net, client, own, outside, pod, local, _far: far }
    }

    fn node(&self) -> &Node {
        self.net.node(1)
    }

    /// Service `web`, behind node 2's servers, and `near`, behind the pod on node 1, each with TCP and UDP at NodePorts, a
    /// load-balancer address and an external IP; `more` is merged into their `spec`.
    fn apply(&self, more: &Value) {
        let mut objects = Vec::new();
        let node_name = &self.node().name;
        let near = [IpAddr::from(self.own.ipv4), self.own.ipv6.into()];
        let far = FAR.map(|addr| addr.parse().unwrap());
        for (name, number, backends, on) in
            [("web", 1_u8, far, "node2"), ("near", 2, near, node_name.as_str())]
        {
            let ips = [format!("10.0.{number}.100"), format!("fd00:10:0:{number}::100")];
            let ports = [("tcp", "TCP", 80), ("udp", "UDP", 80)];
            let mut object = service(name, &ips.each_ref().map(String::as_str), &ports);
            let spec = object["spec"].as_object_mut().unwrap();
            spec["type"] = json!("LoadBalancer");
            for port in spec["ports"].as_array_mut().unwrap().iter_mut() {
                port["nodePort"] = json!(30_080 + u16::from(number));
                port["targetPort"] = json!(8080);
            }
            spec.insert(
                "externalIPs".into(),
                json!([format!("10.0.{number}.200"), format!("fd00:10:0:{number}::200")]),
            );
            spec.extend(more.as_object().unwrap().clone());
            object["status"] = json!({"loadBalancer": {"ingress": [
                {"ip": format!("10.0.{number}.150")}, {"ip": format!("fd00:10:0:{number}::150")},
            ]}});
            objects.push(object);
            for backend in backends {
                let family = if backend.is_ipv4() { 4 } else { 6 };
                for (port, protocol) in [("tcp", "TCP"), ("udp", "UDP")] {
                    let mut part =
                        slice(&format!("{name}-{port}-{family}"), name, (port, protocol, 8080), &[backend]);
                    part["endpoints"][0]["nodeName"] = json!(on);
                    objects.push(part);
                }
            }
        }
        self.home.apply("services", &objects).unwrap();
    }

    fn start(&self, more: &[&str]) -> Agent {
        Agent::start_with(self.node(), &self.home, PACKETS_ONLY.iter().chain(more)).unwrap()
    }
}

fn serve(probe: &Probe, name: &str, addr: IpAddr) {
    probe.serve(&Serve::tcp(name, (addr, 8080).into())).unwrap();
    probe.serve(&Serve::udp(name, (addr, 8080).into())).unwrap();
}

/// Who answers at `to`, and whom it sees, by TCP and by UDP.
fn asks(probe: &Probe, to: SocketAddr) -> [String; 2] {
    [probe.tcp(&Tcp::to(to)), probe.udp(&Udp::to(to))].map(|reached| match reached {
        Ok(reached) => {
            let seen = reached.answer.as_ref().unwrap().client.ip().to_canonical();
            format!("{} sees {seen}", reached.server())
        }
        Err(error) => error.to_string(),
    })
}

/// Fails if anybody meets somebody else than expected.
fn expect(cases: &[(&Probe, &str, &str, &str, IpAddr)]) {
    let mut wrong = Vec::new();
    for (probe, who, to, server, seen) in cases {
        let wanted = format!("{server} sees {seen}");
        for said in asks(probe, at(to)) {
            if said != wanted {
                wrong.push(format!("{who} to {to}: {said} instead of {wanted}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// How often programs did something, by the reason's word.
fn count(home: &Home, reason: &str) -> u64 {
    let status = home.status().unwrap();
    let row = status["reasons"].as_array().unwrap().iter().find(|row| row["name"] == reason).unwrap().clone();
    row["count"].as_u64().unwrap()
}

/// Devices that `lb-agent status` names, with their roles.
fn served(home: &Home) -> Vec<String> {
    let status = home.status().unwrap();
    let devices = status["agent"]["devices"].as_array().unwrap();
    let word = |device: &Value, field: &str| device[field].as_str().unwrap().to_owned();
    devices.iter().map(|device| format!("{} {}", word(device, "name"), word(device, "role"))).collect()
}

/// MQ-3, MQ-6, MQ-7
#[test]
fn clients_that_no_hook_sees_reach_every_kind_of_frontend() {
    needs_root!();
    let set = Set::new("devices");
    set.apply(&json!({}));
    let agent = set.start(&["--external-ips", "on"]);
    assert_eq!(served(&set.home), ["eth0 uplink", "pod0 pods", "pod1 pods"], "{}", set.home.log());
    let Set { pod, outside, local, client, net, .. } = &set;
    let (node, other) = (net.node(1), net.node(2));
    let mut cases: Vec<(&Probe, &str, &str, &str, IpAddr)> = Vec::new();
    for to in ["10.0.1.100:80", "10.0.1.150:80", "10.0.1.200:80", "192.168.50.1:30081"] {
        cases.push((pod, "a pod", to, "far", client.ipv4.into()));
    }
    for to in [
        "[fd00:10:0:1::100]:80",
        "[fd00:10:0:1::150]:80",
        "[fd00:10:0:1::200]:80",
        "[fd00:192:168:50::1]:30081",
    ] {
        cases.push((pod, "a pod", to, "far", client.ipv6.into()));
    }
    for to in ["10.0.2.100:80", "10.0.2.150:80", "192.168.50.1:30082"] {
        cases.push((pod, "a pod", to, "own", client.ipv4.into()));
        cases.push((local, "the server", to, "own", node.ipv4.into()));
    }
    other
        .netns
        .ip("route add 10.0.0.0/16 via 192.168.50.1\nroute add fd00:10:0::/48 via fd00:192:168:50::1")
        .unwrap();
    for to in ["10.0.1.150:80", "10.0.1.200:80", "192.168.50.1:30081"] {
        cases.push((outside, "outside", to, "far", node.ipv4.into()));
    }
    for to in ["[fd00:10:0:1::150]:80", "[fd00:192:168:50::1]:30081"] {
        cases.push((outside, "outside", to, "far", node.ipv6.into()));
    }
    for to in ["10.0.2.150:80", "192.168.50.1:30082"] {
        cases.push((outside, "outside", to, "own", other.ipv4.into()));
    }
    expect(&cases);
    agent.stop().unwrap();
    expect(&cases[..1]);
    let agent = set.start(&["--external-ips", "on"]);
    expect(&cases);
    agent.stop().unwrap();
}

/// Clients and backends behind a device whose packets have no Ethernet header.
#[test]
fn tunnels_are_served() {
    needs_root!();
    let set = Set::new("devices-tunnel");
    let (node, other) = (set.net.node(1), set.net.node(2));
    let _tunnel = Tunnel::join("tun0", [&node.netns, &other.netns]).unwrap();
    for (at, number, peer) in [(node, 1, 2), (other, 2, 1)] {
        at.netns
            .ip(&format!(
                "addr add 192.168.60.{number}/32 peer 192.168.60.{peer} dev tun0
                 addr add fd00:192:168:60::{number}/64 dev tun0 nodad"
            ))
            .unwrap();
    }
    other.netns.ip("route add 10.0.0.0/16 dev tun0\nroute add fd00:10:0::/48 dev tun0").unwrap();
    set.apply(&json!({}));
    let mut nobody = service("nobody", &["10.0.3.100", "fd00:10:0:3::100"], &[("tcp", "TCP", 80)]);
    nobody["spec"]["externalIPs"] = json!(["10.0.3.200", "fd00:10:0:3::200"]);
    set.home.apply("nobody", &[nobody]).unwrap();
    let agent = set.start(&["--external-ips", "on"]);
    assert!(served(&set.home).contains(&"tun0 uplink".to_owned()), "{:?}", served(&set.home));
    let v6 = |addr: &str| addr.parse::<IpAddr>().unwrap();
    expect(&[
        (&set.outside, "outside", "10.0.2.150:80", "own", [192, 168, 60, 2].into()),
        (&set.outside, "outside", "[fd00:10:0:2::150]:80", "own", v6("fd00:192:168:60::2")),
        (&set.outside, "outside", "10.0.1.150:80", "far", node.ipv4.into()),
        (&set.outside, "outside", "[fd00:10:0:1::200]:80", "far", node.ipv6.into()),
    ]);
    node.netns.ip("route add 10.2.255.1 dev tun0\nroute add fd00:10:2:255::1 dev tun0").unwrap();
    expect(&[
        (&set.outside, "outside", "10.0.1.150:80", "far", [192, 168, 60, 1].into()),
        (&set.outside, "outside", "[fd00:10:0:1::150]:80", "far", v6("fd00:192:168:60::1")),
        (&set.outside, "outside", "192.168.50.1:30081", "far", [192, 168, 60, 1].into()),
        (&set.pod, "a pod", "10.0.1.100:80", "far", set.client.ipv4.into()),
        (&set.pod, "a pod", "[fd00:10:0:1::100]:80", "far", set.client.ipv6.into()),
    ]);
    for to in ["10.0.3.200:80", "[fd00:10:0:3::200]:80"] {
        let said = set.outside.tcp(&Tcp::to(at(to))).unwrap_err().to_string();
        assert!(said.contains("ECONNREFUSED"), "{to}: {said}");
    }
    agent.stop().unwrap();
}

/// 2.7-unallocated: by pods, the node and clients outside, but not where another proxy serves an address of the range.
#[test]
fn nobody_is_to_answer_at_a_cluster_ip_that_no_service_has() {
    needs_root!();
    let set = Set::new("devices-unallocated");
    let (node, other) = (set.node(), set.net.node(2));
    set.apply(&json!({}));
    // Without a word from us the packets would meet somebody: node 2 is the gateway, and has the addresses.
    node.netns
        .ip("route add 10.0.0.0/16 via 192.168.50.2\nroute add fd00:10:0::/48 via fd00:192:168:50::2")
        .unwrap();
    let gateway = other.probe("gateway").unwrap();
    let free = ["10.0.9.9:8080", "[fd00:10:0:9::9]:8080"];
    for to in free {
        other.add_address(at(to).ip()).unwrap();
        serve(&gateway, "gateway", at(to).ip());
    }
    // Without nft, as under old kernels in an emulated machine, there is no other proxy.
    let has_other = node.command("nft").arg("-v").output().is_ok();
    if has_other {
        node.netns
            .nft(
                "add table inet proxy
                  add chain inet proxy pre { type nat hook prerouting priority -100; }
                  add rule inet proxy pre ip daddr 10.0.9.8 dnat ip to 10.2.255.1
                  add rule inet proxy pre ip6 daddr fd00:10:0:9::8 dnat ip6 to fd00:10:2:255::1",
            )
            .unwrap();
    }
    let own = node.probe("own").unwrap();
    let Set { pod, client, home, .. } = &set;
    let meets = |drops: bool| {
        for to in free {
            for (probe, who) in [(pod, "a pod"), (&own, "the node")] {
                let tcp = probe.tcp(&Tcp::to(at(to)).timeout(Duration::from_millis(500)));
                let udp = probe.udp(&Udp::to(at(to)).timeout(Duration::from_millis(500)));
                for reached in [tcp, udp] {
                    let said =
                        reached.map(|it| it.server().to_owned()).map_err(|error| error.errno().to_owned());
                    let wanted = if drops { Err("TIMEOUT".to_owned()) } else { Ok("gateway".to_owned()) };
                    assert_eq!(said, wanted, "{who} to {to}");
                }
            }
        }
        expect(&[(pod, "a pod", "10.0.1.100:80", "far", client.ipv4.into())]);
        if has_other {
            expect(&[
                (pod, "a pod", "10.0.9.8:8080", "far", client.ipv4.into()),
                (pod, "a pod", "[fd00:10:0:9::8]:8080", "far", client.ipv6.into()),
            ]);
        }
    };
    let ranges = ["--service-cidr", "10.0.0.0/16,fd00:10:0::/48"];
    let agent = set.start(&ranges);
    meets(true);
    assert!(count(home, "dropped_unallocated") >= 8);
    agent.stop().unwrap();
    let agent = set.start(&[ranges[0], ranges[1], "--drop-unallocated", "false"]);
    meets(false);
    agent.stop().unwrap();
    let agent = set.start(&[]);
    meets(false);
    agent.stop().unwrap();
}

/// Pods come and go, and so do uplinks.
#[test]
fn devices_that_come_are_served_and_those_that_go_are_forgotten() {
    needs_root!();
    let set = Set::new("devices-come");
    set.apply(&json!({}));
    let agent = set.start(&[]);
    let late = set.node().add_pod("late", [10, 1, 1, 12].into()).unwrap();
    let has = |count: usize| {
        wait_for("the devices that are served", SOON, || {
            let now = served(&set.home);
            if now.len() == count { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .unwrap();
    };
    has(4);
    let probe = late.probe("late").unwrap();
    expect(&[(&probe, "a late pod", "10.0.1.100:80", "far", late.ipv4.into())]);
    drop(probe);
    drop(late);
    has(3);
    let pins = std::fs::read_dir(set.home.pin_dir().join("v1/links")).unwrap();
    let tc = pins.flatten().filter(|pin| pin.file_name().to_string_lossy().starts_with("lb_tc_")).count();
    assert!(tc == 6 || tc == 0, "{tc} pins of links for three devices");
    agent.stop().unwrap();
}

/// Waits until `lb-agent status` names exactly these programs of others, whatever their ids are.
fn wait_for_others(home: &Home, wanted: &[[&str; 4]]) {
    wait_for("the programs of others", SOON, || {
        let status = home.status().unwrap();
        let rows = status["agent"]["other_programs"].as_array().unwrap().clone();
        let word = |row: &Value, field: &str| row[field].as_str().unwrap().to_owned();
        let mut now: Vec<[String; 4]> = rows
            .iter()
            .map(|row| {
                let place = if row["before"] == true { "before" } else { "after" };
                [word(row, "hook"), word(row, "by"), word(row, "name"), place.to_owned()]
            })
            .collect();
        now.sort();
        if now == wanted { Ok(()) } else { Err(format!("{now:?}\n{}", home.log())) }
    })
    .unwrap();
}

/// Programs of others are named, with whoever comes first, and never touched.
#[test]
fn whoever_else_is_at_a_device_is_named() {
    needs_root!();
    let set = Set::new("devices-others");
    set.apply(&json!({}));
    let agent = set.start(&[]);
    wait_for_others(&set.home, &[]);
    let mode = set.home.status().unwrap()["agent"]["devices"][0]["mode"].as_str().unwrap().to_owned();
    let netns = &set.node().netns;
    // Programs as ours are, over maps of their own, which are empty: they leave everything alone.
    let mut filters = packets::load().unwrap();
    // A device has one such qdisc.
    let _has_one = netns.run(|| qdisc_add_clsact("eth0").map_err(anyhow::Error::from));
    packets::attach_filters(netns, &mut filters, "eth0", 40_000).unwrap();
    let behind =
        [["egress", "filter", "lb_tc_egress", "after"], ["ingress", "filter", "lb_tc_ingress", "after"]];
    wait_for_others(&set.home, &behind);
    assert!(set.home.log().contains("another program sees packets too: eth0 "), "{}", set.home.log());
    if mode == "tcx" {
        let mut links = packets::load().unwrap();
        packets::attach(netns, &mut links, "eth0", true).unwrap();
        let first =
            [["egress", "tcx", "lb_tc_egress", "before"], ["ingress", "tcx", "lb_tc_ingress", "before"]];
        let [egress, ingress] = behind;
        wait_for_others(&set.home, &[egress, first[0], ingress, first[1]]);
        let log = set.home.log();
        assert!(log.contains("another program sees packets first") && log.contains("before ours"), "{log}");
        let mut status = set.node().command(lb_tests::binary("lb-agent").unwrap());
        status.arg("status").arg("--pin-dir").arg(set.home.pin_dir()).arg("--socket").arg(set.home.socket());
        let said = String::from_utf8(status.output().unwrap().stdout).unwrap();
        assert!(said.contains("eth0 ingress: lb_tc_ingress (program "), "{said}");
        drop(links);
        wait_for_others(&set.home, &behind);
    }
    expect(&[(&set.pod, "a pod", "10.0.1.100:80", "far", set.client.ipv4.into())]);
    netns.run(move || drop(filters));
    wait_for_others(&set.home, &[]);
    assert_eq!(set.home.status().unwrap()["agent"]["put_back"], 0, "{}", set.home.log());
    agent.stop().unwrap();
}

/// Design 4: a program that somebody has detached is attached again within 10 s.
#[test]
fn programs_that_somebody_takes_off_are_put_back() {
    needs_root!();
    let set = Set::new("devices-repair");
    set.apply(&json!({}));
    let agent = set.start(&[]);
    let status = set.home.status().unwrap()["agent"].clone();
    let eth0 =
        status["devices"].as_array().unwrap().iter().find(|row| row["name"] == "eth0").unwrap().clone();
    let client = set.client.ipv4;
    for (times, program) in [(1, "lb_tc_egress"), (2, "lb_tc_ingress")] {
        if eth0["mode"] == "tcx" {
            let pin = format!("v1/links/{program}_{}", eth0["index"]);
            std::fs::remove_file(set.home.pin_dir().join(pin)).unwrap();
        } else {
            needs!(set.node().command("tc").arg("-V").output().is_ok(), "tc");
            let what = if times == 1 { "qdisc del dev eth0 clsact" } else { "filter del dev eth0 ingress" };
            let done = set.node().command("tc").args(what.split(' ')).output().unwrap();
            assert!(done.status.success(), "{done:?}");
        }
        wait_for("what was taken off", Duration::from_secs(15), || {
            let now = set.home.status().unwrap()["agent"]["put_back"].clone();
            if now == times { Ok(()) } else { Err(format!("{now}: {}", set.home.log())) }
        })
        .unwrap();
        for to in ["192.168.50.1:30081", "192.168.50.1:30082"] {
            let [tcp, udp] = asks(&set.outside, at(to));
            assert!(
                tcp.contains(" sees 192.168.50.") && udp.contains(" sees 192.168.50."),
                "{to}: {tcp}, {udp}"
            );
        }
        expect(&[(&set.pod, "a pod", "10.0.1.100:80", "far", client.into())]);
    }
    assert!(set.home.log().contains("somebody has taken programs off this device, put them back"));
    agent.stop().unwrap();
}

/// Whatever holds the programs at devices.
#[test]
fn cleanup_takes_the_programs_off() {
    needs_root!();
    let set = Set::new("devices-cleanup");
    set.apply(&json!({}));
    let agent = set.start(&[]);
    let to = at("10.0.1.100:80");
    expect(&[(&set.pod, "a pod", "10.0.1.100:80", "far", set.client.ipv4.into())]);
    agent.stop().unwrap();
    expect(&[(&set.pod, "a pod", "10.0.1.100:80", "far", set.client.ipv4.into())]);
    let mut cleanup = set.node().command(lb_tests::binary("lb-agent").unwrap());
    let done = cleanup.arg("cleanup").arg("--pin-dir").arg(set.home.pin_dir()).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    // The kernel lets go of a link a moment after its pin is gone.
    wait_for("a client that nobody serves", SOON, || {
        match set.pod.tcp(&Tcp::to(to).timeout(Duration::from_millis(500))) {
            Err(error) if error.errno() == "TIMEOUT" => Ok(()),
            other => Err(format!("{other:?} {done:?}")),
        }
    })
    .unwrap();
}

/// SR-2, SR-4, NE-5
#[test]
fn source_ranges_hold_for_packets() {
    needs_root!();
    let set = Set::new("devices-ranges");
    let other = set.net.node(2);
    other
        .netns
        .ip("route add 10.0.0.0/16 via 192.168.50.1\nroute add fd00:10:0::/48 via fd00:192:168:50::1")
        .unwrap();
    set.apply(&json!({"loadBalancerSourceRanges": ["192.168.50.2/32", "2001:db8::/64"]}));
    let agent = set.start(&[]);
    let Set { pod, outside, client, .. } = &set;
    expect(&[
        (outside, "outside", "10.0.1.150:80", "far", set.node().ipv4.into()),
        (outside, "outside", "192.168.50.1:30081", "far", set.node().ipv4.into()),
        (pod, "a pod", "10.0.1.100:80", "far", client.ipv4.into()),
    ]);
    for (probe, to) in [(outside, "[fd00:10:0:1::150]:80"), (pod, "10.0.1.150:80")] {
        let said = probe.tcp(&Tcp::to(at(to)).timeout(Duration::from_millis(500))).unwrap_err();
        assert_eq!(said.errno(), "TIMEOUT", "{to} is silent");
    }
    set.apply(&json!({"loadBalancerSourceRanges": ["10.1.1.0/24"]}));
    wait_for("the other range", SOON, || {
        let [tcp, _] = asks(pod, at("10.0.1.150:80"));
        if tcp.starts_with("far") { Ok(()) } else { Err(tcp) }
    })
    .unwrap();
    let said = outside.tcp(&Tcp::to(at("10.0.1.150:80")).timeout(Duration::from_millis(500))).unwrap_err();
    assert_eq!(said.errno(), "TIMEOUT");
    agent.stop().unwrap();
}

/// MQ-4, NE-2: who asks from outside meets the endpoints of this node, and is seen; a pod meets all.
#[test]
fn external_policy_local_serves_clients_outside_from_this_node() {
    needs_root!();
    let set = Set::new("devices-local");
    set.apply(&json!({"externalTrafficPolicy": "Local"}));
    let agent = set.start(&[]);
    let Set { pod, outside, client, .. } = &set;
    let (node, other) = (set.node(), set.net.node(2));
    expect(&[
        (outside, "outside", "192.168.50.1:30082", "own", other.ipv4.into()),
        (outside, "outside", "[fd00:192:168:50::1]:30082", "own", other.ipv6.into()),
        (pod, "a pod", "192.168.50.1:30081", "far", client.ipv4.into()),
    ]);
    let said =
        outside.tcp(&Tcp::to(at("192.168.50.1:30081")).timeout(Duration::from_millis(500))).unwrap_err();
    assert_eq!(said.errno(), "TIMEOUT", "nobody here, and others elsewhere");
    let _ = node;
    agent.stop().unwrap();
}

/// 2.25: a pod that its mesh or its own translation serves is shown Service addresses, and reaches them.
#[test]
fn a_pod_that_hooks_leave_alone_reaches_services_by_packets() {
    needs_root!();
    let set = Set::new("devices-exempt");
    set.apply(&json!({}));
    let agent =
        Agent::start_with(set.node(), &set.home, ["--devices", "auto", "--pod-devices", "auto"]).unwrap();
    let tool = |args: &[&str]| {
        let mut command = set.node().command(lb_tests::binary("lb-agent").unwrap());
        let done = command.args(args).arg("--pin-dir").arg(set.home.pin_dir()).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    let before = count(&set.home, "flow");
    expect(&[(&set.pod, "a pod", "10.0.1.100:80", "far", set.client.ipv4.into())]);
    assert_eq!(count(&set.home, "flow"), before, "its sockets are served");
    tool(&["netns", "exempt", set.client.netns.path().to_str().unwrap()]);
    let reached = set.pod.tcp(&Tcp::to(at("10.0.1.100:80"))).unwrap();
    assert_eq!((reached.server(), reached.peer), ("far", Some(at("10.0.1.100:80"))));
    assert_eq!(count(&set.home, "flow"), before + 1, "its packets are");
    agent.stop().unwrap();
}

/// 2.25: k3s' service load balancer and others translate in a pod of their own, and send the packet on to a Service.
#[test]
fn a_pod_that_forwards_to_a_cluster_ip_works() {
    needs_root!();
    let set = Set::new("devices-forward");
    set.apply(&json!({}));
    let agent =
        Agent::start_with(set.node(), &set.home, ["--devices", "auto", "--pod-devices", "auto"]).unwrap();
    let forwarder = set.node().add_pod("forwarder", [10, 1, 1, 20].into()).unwrap();
    forwarder.netns.sysctl("net.ipv4.ip_forward", "1").unwrap();
    let has_iptables = forwarder.command("iptables").arg("--version").output().is_ok();
    needs!(has_iptables, "iptables");
    for rule in [
        "PREROUTING -p tcp --dport 8000 -j DNAT --to-destination 10.0.1.100:80",
        "PREROUTING -p udp --dport 8000 -j DNAT --to-destination 10.0.1.100:80",
        "POSTROUTING -d 10.0.1.100 -j MASQUERADE",
    ] {
        let mut iptables = forwarder.command("iptables");
        let done = iptables.args(["-w", "-t", "nat", "-A"]).args(rule.split(' ')).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }
    wait_for("the forwarder's device", SOON, || {
        let now = served(&set.home);
        if now.len() == 4 { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .unwrap();
    expect(&[
        (&set.outside, "outside", "10.1.1.20:8000", "far", forwarder.ipv4.into()),
        (&set.pod, "a pod", "10.1.1.20:8000", "far", forwarder.ipv4.into()),
    ]);
    agent.stop().unwrap();
}
