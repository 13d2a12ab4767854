//! A site: a client outside, a router, and two nodes with pods, wired in one of several ways.
//!
//! ```text
//!                         ┌ lan 192.168.50.0/24 ═══ eth0 node1 ── pods 10.1.0.0/16
//!  client 192.0.2.10 ── router                      eth0 node2 ── pods 10.2.0.0/16
//!                         └ far 192.168.60.0/24 ═══ eth1 of both, with two uplinks
//! ```
//!
//! IPv6 addresses have the same digits in `fd00::/16` (the client: `2001:db8:2::10`). Node `n` has the address `.n` on each network, the router
//! `.254`. The router sends what is for a Service ([`Site::SERVICES`]) to node 1; on the nodes these addresses lead to nobody, so
//! whoever is not translated waits.
//!
//! Pods behind an overlay are known there alone, so their node masquerades what they send to others (Flannel's `ip-masq`).
//!
//! With two uplinks the client reaches the nodes by `eth1`, while their routes to it leave by `eth0`, where the router takes
//! nothing that is for the client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use super::{NOWHERE, Node, Pod, Topology, same_digits};
use crate::{Agent, Cgroup, Home, Netns, Probe};

/// How pods are joined to their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodLinks {
    /// A veth pair each, with a route to the pod (Calico).
    Routed,
    /// Ports of the bridge `cni0` (the `bridge` plugin, Flannel).
    Bridged,
}

/// How the pods of one node reach those of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodNetwork {
    /// By routes on `eth0`.
    Routes,
    /// By a VXLAN device, 50 bytes smaller than `eth0` (Flannel).
    Vxlan,
}

/// Which site.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How pods are joined to their node.
    pub pod_links: PodLinks,
    /// How the pods of one node reach those of the other.
    pub pod_network: PodNetwork,
    /// MTU of the links between router and nodes. Pods and the client have 1500.
    pub mtu: u32,
    /// Each node has `eth1` as well.
    pub two_uplinks: bool,
}

impl Shape {
    /// Routes everywhere, one uplink, MTU 1500.
    pub const ROUTED: Self =
        Self { pod_links: PodLinks::Routed, pod_network: PodNetwork::Routes, mtu: 1500, two_uplinks: false };
}

/// A client, a router and two nodes. Pods are made by [`Site::add_pod`] and belong to the caller.
#[derive(Debug)]
pub struct Site {
    /// Both nodes.
    pub net: Topology,
    /// The router between client and nodes.
    pub router: Netns,
    /// Where the client outside is.
    pub client: Netns,
    /// How it is wired.
    pub shape: Shape,
    outside: Cgroup,
}

impl Site {
    /// The client's addresses.
    pub const CLIENT: [IpAddr; 2] = [
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10)),
    ];

    /// Addresses of Services.
    pub const SERVICES: [&str; 6] = [
        "10.0.0.0/16",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "fd00:10:0::/48",
        "2001:db8:51::/48",
        "2001:db8:113::/48",
    ];

    /// Wires a site.
    pub fn new(shape: Shape) -> Result<Self> {
        let (router, client) = (Netns::new("router")?, Netns::new("client")?);
        let nodes = vec![Node::new(1)?, Node::new(2)?];
        let site = Self { net: Topology { nodes }, router, client, shape, outside: Cgroup::new("outside")? };
        site.wire_router()?;
        for node in &site.net.nodes {
            site.wire_node(node)?;
        }
        // The ways between the nodes need both of them.
        for node in &site.net.nodes {
            site.wire_pods(node)?;
        }
        Ok(site)
    }

    /// Node `number`, counted from 1.
    pub fn node(&self, number: usize) -> &Node {
        self.net.node(number)
    }

    /// A probe of the client outside.
    pub fn probe(&self, label: &str) -> Result<Probe> {
        Probe::start(label, &self.client, &self.outside)
    }

    /// A probe in a pod, in a cgroup that no node's agent has programs at.
    pub fn probe_without_hooks(&self, label: &str, pod: &Pod) -> Result<Probe> {
        Probe::start(label, &pod.netns, &self.outside)
    }

    /// Addresses of node `number` at which clients outside reach it.
    pub fn seen_from_outside(&self, number: usize) -> [IpAddr; 2] {
        let network = if self.shape.two_uplinks { 60 } else { 50 };
        on_network(network, self.node(number).number)
    }

    /// Addresses of node `number` on the network between the nodes.
    pub fn addresses(&self, number: usize) -> [IpAddr; 2] {
        on_network(50, self.node(number).number)
    }

    /// Addresses from which node `number` itself speaks to pods of the other node.
    pub fn towards_other_pods(&self, number: usize) -> [IpAddr; 2] {
        match self.shape.pod_network {
            PodNetwork::Routes => self.addresses(number),
            PodNetwork::Vxlan => overlay(self.node(number).number),
        }
    }

    /// Addresses from which node `number` itself speaks to its own pods.
    pub fn towards_own_pods(&self, number: usize) -> [IpAddr; 2] {
        match self.shape.pod_links {
            PodLinks::Routed => self.addresses(number),
            PodLinks::Bridged => bridge(self.node(number).number),
        }
    }

    /// Starts a pod on node `number`, at an address in its `10.n.0.0/16`.
    pub fn add_pod(&self, number: usize, name: &str, ipv4: Ipv4Addr) -> Result<Pod> {
        match self.shape.pod_links {
            PodLinks::Routed => self.node(number).add_pod(name, ipv4),
            PodLinks::Bridged => self.node(number).add_bridged_pod(name, ipv4),
        }
    }

    /// Starts the agents of both nodes, which serve packets at all devices and NodePorts at all addresses.
    pub fn start_agents(&self, homes: &[Home; 2], more: &[&str]) -> Result<Vec<Agent>> {
        let mut agents = Vec::new();
        for (home, number) in homes.iter().zip(1..) {
            let node_ip = self.addresses(number).map(|addr| addr.to_string()).join(",");
            let mut args = vec!["--devices", "auto", "--pod-devices", "auto", "--external-ips", "on"];
            args.extend(["--nodeport-addresses", "all", "--node-ip", &node_ip]);
            args.extend(more);
            agents.push(Agent::spawn(self.node(number), home, args)?);
        }
        for (agent, home) in agents.iter_mut().zip(homes) {
            agent.wait_ready(home)?;
        }
        Ok(agents)
    }

    fn wire_router(&self) -> Result<()> {
        let Self { router, client, .. } = self;
        router.sysctl("net.ipv4.ip_forward", "1")?;
        router.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        router.join("client", client, "eth0")?;
        router.ip("addr add 192.0.2.254/24 dev client
             addr add 2001:db8:2::254/64 dev client nodad")?;
        client.ip("addr add 192.0.2.10/24 dev eth0
             addr add 2001:db8:2::10/64 dev eth0 nodad
             route add default via 192.0.2.254
             route add default via 2001:db8:2::254")?;
        self.add_network("lan", 50)?;
        let mut gateway = "lan 192.168.50.1 fd00:192:168:50::1";
        if self.shape.two_uplinks {
            self.add_network("far", 60)?;
            gateway = "far 192.168.60.1 fd00:192:168:60::1";
            router.nft(
                "add table inet edge
                 add chain inet edge forward { type filter hook forward priority 0; }
                 add rule inet edge forward iifname lan ip daddr 192.0.2.0/24 drop
                 add rule inet edge forward iifname lan ip6 daddr 2001:db8:2::/64 drop",
            )?;
        }
        let mut words = gateway.split(' ');
        let (device, v4, v6) = (words.next(), words.next(), words.next());
        let (device, gateways) =
            (device.unwrap_or_default(), [v4.unwrap_or_default(), v6.unwrap_or_default()]);
        let routes = Self::SERVICES.map(|to| {
            let gateway = gateways[usize::from(to.contains(':'))];
            format!("route add {to} via {gateway} dev {device}")
        });
        router.ip(&routes.join("\n"))
    }

    /// A bridge of the router, as a switch with nodes at it.
    fn add_network(&self, name: &str, network: u8) -> Result<()> {
        self.router.ip(&format!(
            "link add {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0
             link set {name} mtu {} up
             addr add 192.168.{network}.254/24 dev {name}
             addr add fd00:192:168:{network}::254/64 dev {name} nodad
             addr add fe80::254/64 dev {name} nodad",
            self.shape.mtu
        ))
    }

    fn wire_node(&self, node: &Node) -> Result<()> {
        let Node { netns, number, .. } = node;
        netns.sysctl("net.ipv4.ip_forward", "1")?;
        netns.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        for name in ["all", "default"] {
            netns.sysctl(&format!("net.ipv4.conf.{name}.rp_filter"), "0")?;
        }
        self.plug(node, "eth0", "lan", 50)?;
        netns.ip(&format!(
            "neigh add 192.168.50.253 lladdr {NOWHERE} dev eth0 nud permanent
             neigh add fd00:192:168:50::253 lladdr {NOWHERE} dev eth0 nud permanent
             route add default via 192.168.50.254 metric 100
             route add default via fd00:192:168:50::254 metric 100"
        ))?;
        let nowhere = Self::SERVICES.map(|to| {
            let gateway = if to.contains(':') { "fd00:192:168:50::253" } else { "192.168.50.253" };
            format!("route add {to} via {gateway}")
        });
        netns.ip(&nowhere.join("\n"))?;
        if self.shape.two_uplinks {
            self.plug(node, "eth1", "far", 60)?;
            netns.ip("route add default via 192.168.60.254 metric 200
                 route add default via fd00:192:168:60::254 metric 200")?;
        }
        if self.shape.pod_links == PodLinks::Bridged {
            let [v4, v6] = bridge(*number);
            netns.ip(&format!(
                "link add cni0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0
                 link set cni0 up
                 addr add {v4}/16 dev cni0
                 addr add {v6}/48 dev cni0 nodad
                 addr add fe80::1/64 dev cni0 nodad"
            ))?;
        }
        Ok(())
    }

    /// Joins a device of a node to a network of the router.
    fn plug(&self, node: &Node, device: &str, bridge: &str, network: u8) -> Result<()> {
        let (number, mtu) = (node.number, self.shape.mtu);
        let port = format!("{bridge}{number}");
        self.router.join(&port, &node.netns, device)?;
        self.router.ip(&format!("link set {port} mtu {mtu} master {bridge}"))?;
        let [v4, v6] = on_network(network, number);
        node.netns.ip(&format!(
            "link set {device} mtu {mtu}
             addr add {v4}/24 dev {device}
             addr add {v6}/64 dev {device} nodad
             addr add fe80::{number}/64 dev {device} nodad"
        ))
    }

    /// The way from a node to the other's pods.
    fn wire_pods(&self, node: &Node) -> Result<()> {
        let other = 3 - node.number;
        let [v4, v6] = on_network(50, other);
        if self.shape.pod_network == PodNetwork::Routes {
            return node.netns.ip(&format!(
                "route add 10.{other}.0.0/16 via {v4}\nroute add fd00:10:{other}::/48 via {v6}"
            ));
        }
        let [own4, own6] = overlay(node.number);
        let [there4, there6] = overlay(other);
        node.netns.ip(&format!(
            "link add flannel.1 type vxlan id 1 local {} remote {v4} dstport 8472 dev eth0
             link set flannel.1 mtu {} up
             addr add {own4}/32 dev flannel.1
             addr add {own6}/128 dev flannel.1 nodad
             addr add fe80::{}/64 dev flannel.1 nodad
             route add {there4}/32 dev flannel.1 src {own4}
             route add {there6}/128 dev flannel.1 src {own6}
             route add 10.{other}.0.0/16 via {there4} dev flannel.1 src {own4}
             route add fd00:10:{other}::/48 via {there6} dev flannel.1 src {own6}",
            node.ipv4,
            self.shape.mtu - 50,
            node.number,
        ))?;
        let number = node.number;
        node.netns.nft(&format!(
            "add table inet masq
             add chain inet masq post {{ type nat hook postrouting priority 100; }}
             add rule inet masq post ip saddr 10.{number}.0.0/16 ip daddr != 10.0.0.0/8 masquerade
             add rule inet masq post ip6 saddr fd00:10:{number}::/48 ip6 daddr != fd00:10::/32 masquerade"
        ))
    }
}

impl Node {
    /// A pod at the bridge `cni0`, whose address is the pod's gateway.
    fn add_bridged_pod(&self, name: &str, ipv4: Ipv4Addr) -> Result<Pod> {
        let netns = Netns::new(name)?;
        let device = self.next_pod_device();
        self.netns.join(&device, &netns, "eth0")?;
        self.netns.ip(&format!("link set {device} master cni0"))?;
        let ([gateway4, gateway6], ipv6) = (bridge(self.number), same_digits(ipv4)?);
        netns.ip(&format!(
            "addr add {ipv4}/16 dev eth0
             addr add {ipv6}/48 dev eth0 nodad
             addr add fe80::{}/64 dev eth0 nodad
             route add default via {gateway4}
             route add default via {gateway6}",
            ipv4.octets()[3]
        ))?;
        let (node, cgroup) = (std::sync::Arc::clone(&self.netns), self.cgroup.child(name)?);
        Ok(Pod { name: name.to_owned(), ipv4, ipv6, netns, cgroup, node, device })
    }
}

/// A machine's addresses on a network between router and nodes.
fn on_network(network: u8, host: u8) -> [IpAddr; 2] {
    let v6 = Ipv6Addr::new(0xfd00, 0x192, 0x168, digits(network), 0, 0, 0, digits(host));
    [Ipv4Addr::new(192, 168, network, host).into(), v6.into()]
}

/// A node's addresses on the bridge of its pods.
fn bridge(number: u8) -> [IpAddr; 2] {
    [Ipv4Addr::new(10, number, 0, 1).into(), Ipv6Addr::new(0xfd00, 0x10, number.into(), 0, 0, 0, 0, 1).into()]
}

/// A node's addresses on the overlay.
fn overlay(number: u8) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(10, number, 255, 254).into(),
        Ipv6Addr::new(0xfd00, 0x10, number.into(), 0x255, 0, 0, 0, 0x254).into(),
    ]
}

/// A decimal number of at most three digits, read as hexadecimal ones.
fn digits(number: u8) -> u16 {
    let number = u16::from(number);
    number / 100 * 256 + number / 10 % 10 * 16 + number % 10
}
