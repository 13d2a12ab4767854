//! Clients behind a VLAN, whose frames pass the device below it too, under a real agent. Most kernels of this project's machines have no
//! VLANs: `cargo xtask test --kernel 5.10 --test vlan`.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::net::{IpAddr, SocketAddr};

use lb_tests::agent::{Agent, Home, service, slice};
use lb_tests::probe::{Serve, Tcp, Udp};
use lb_tests::{Netns, Pod, Probe, Topology, needs, needs_root};
use serde_json::json;

/// Whether this kernel makes VLAN devices.
fn has_vlans() -> bool {
    let netns = Netns::new("vlans").unwrap();
    let lines = "link add one type veth peer name other\nlink add link one name one.5 type vlan id 5";
    netns.ip(lines).is_ok()
}

/// Node 1, whose `eth0` is a trunk: itself served, and below `eth0.5`. At its other end `eth0.5` is in a namespace of its own, so that a
/// frame that has lost its tag reaches nobody.
struct Set {
    net: Topology,
    home: Home,
    _behind: Netns,
    own: Pod,
    client: Probe,
    native: Probe,
    _servers: [Probe; 2],
}

const CLIENT: [&str; 2] = ["10.50.5.2", "fd00:50:5::2"];
const NODE: [&str; 2] = ["10.50.5.1", "fd00:50:5::1"];
/// Where node 2's server is, without a tag.
const FAR: [&str; 2] = ["10.2.255.1", "fd00:10:2:255::1"];

fn serve(probe: &Probe, name: &str, addr: IpAddr) {
    probe.serve(&Serve::tcp(name, (addr, 8080).into())).unwrap();
    probe.serve(&Serve::udp(name, (addr, 8080).into())).unwrap();
}

impl Set {
    fn new() -> Self {
        let net = Topology::pair().unwrap();
        let behind = Netns::new("behind").unwrap();
        let (node, other) = (net.node(1), net.node(2));
        let add = "link add link eth0 name eth0.5 type vlan id 5\n";
        node.netns.ip(&format!("{add}link set eth0.5 up")).unwrap();
        other.netns.ip(&format!("{add}link set eth0.5 netns {}", behind.path().display())).unwrap();
        behind.ip("link set eth0.5 up").unwrap();
        for (netns, addrs) in [(&*node.netns, NODE), (&behind, CLIENT)] {
            netns
                .ip(&format!(
                    "addr add {}/24 dev eth0.5\naddr add {}/64 dev eth0.5 nodad",
                    addrs[0], addrs[1]
                ))
                .unwrap();
        }
        behind.ip(&format!("route add default via {}\nroute add default via {}", NODE[0], NODE[1])).unwrap();
        let own = node.add_pod("own", [10, 1, 1, 11].into()).unwrap();
        let (near, far) = (own.probe("near").unwrap(), other.probe("far").unwrap());
        serve(&near, "near", own.ipv4.into());
        serve(&near, "near", own.ipv6.into());
        for addr in FAR {
            other.add_address(addr.parse().unwrap()).unwrap();
            serve(&far, "far", addr.parse().unwrap());
        }
        let client = Probe::start("client", &behind, &other.cgroup).unwrap();
        let native = other.probe("native").unwrap();
        let home = Home::new("vlan").unwrap();
        Self { net, home, _behind: behind, own, client, native, _servers: [near, far] }
    }

    /// Service `near` at NodePort 30081 and `far` at 30082, each in both families by TCP and UDP.
    fn apply(&self) {
        let near = [IpAddr::from(self.own.ipv4), self.own.ipv6.into()];
        let far = FAR.map(|addr| addr.parse().unwrap());
        let mut objects = Vec::new();
        for (name, number, backends, on) in [("near", 1, near, "node1"), ("far", 2, far, "node2")] {
            let ips = [format!("10.0.{number}.100"), format!("fd00:10:0:{number}::100")];
            let mut object =
                service(name, &ips.each_ref().map(String::as_str), &[("tcp", "TCP", 80), ("udp", "UDP", 80)]);
            object["spec"]["type"] = json!("NodePort");
            for port in object["spec"]["ports"].as_array_mut().unwrap().iter_mut() {
                port["nodePort"] = json!(30_080 + number);
                port["targetPort"] = json!(8080);
            }
            objects.push(object);
            for backend in backends {
                let family = if backend.is_ipv4() { 4 } else { 6 };
                for (port, protocol) in [("tcp", "TCP"), ("udp", "UDP")] {
                    let label = format!("{name}-{port}-{family}");
                    let mut part = slice(&label, name, (port, protocol, 8080), &[backend]);
                    part["endpoints"][0]["nodeName"] = json!(on);
                    objects.push(part);
                }
            }
        }
        self.home.apply("services", &objects).unwrap();
    }
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

/// MQ-3.
#[test]
fn clients_behind_a_vlan_are_answered_behind_it_and_met_once() {
    needs_root!();
    needs!(has_vlans(), "VLAN devices in the kernel (8021q): cargo xtask test --kernel 5.10 --test vlan");
    let set = Set::new();
    set.apply();
    let options = [
        ["--devices", "auto"],
        ["--pod-devices", "auto"],
        ["--socket-lb", "none"],
        ["--nodeport-addresses", "all"],
    ];
    let _agent = Agent::start_with(set.net.node(1), &set.home, options.iter().flatten()).unwrap();
    let native = [set.net.node(1).ipv4.to_string(), set.net.node(1).ipv6.to_string()];
    let mut wrong = Vec::new();
    for (family, node) in NODE.into_iter().enumerate() {
        let to = |addr: &str, port: u16| -> SocketAddr { (addr.parse::<IpAddr>().unwrap(), port).into() };
        for (probe, to, wanted) in [
            (&set.client, to(node, 30_081), format!("near sees {}", CLIENT[family])),
            (&set.client, to(node, 30_082), format!("far sees {}", native[family])),
            // By the same cable, without a tag.
            (
                &set.native,
                to(&native[family], 30_081),
                format!("near sees {}", ["192.168.50.2", "fd00:192:168:50::2"][family]),
            ),
        ] {
            for said in asks(probe, to) {
                if said != wanted {
                    wrong.push(format!("{to}: {said} instead of {wanted}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let status = set.home.status().unwrap();
    let rows = status["reasons"].as_array().unwrap().clone();
    let flows = rows.iter().find(|row| row["name"] == "flow").unwrap()["count"].as_u64().unwrap();
    assert_eq!(flows, 12, "one for each question");
}
