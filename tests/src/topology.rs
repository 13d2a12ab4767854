//! Nodes and pods: namespaces wired as a cluster wires them, on addresses that are easy to read.
//!
//! ```text
//!  pod 10.1.1.10 ── node1 192.168.50.1 ══ eth0 ══ 192.168.50.2 node2 ── pod 10.2.2.10
//!                       └─ default route: 192.168.50.254, where nobody is
//! ```
//!
//! What a program sees on node `n`:
//! - `eth0` with `192.168.50.n/24` and `fd00:192:168:50::n/64`, joined directly to the other node's;
//! - pod network `10.n.0.0/16` and `fd00:10:n::/48`, routed between the nodes; a pod has one address of each
//!   family, the IPv6 one with the same digits (`10.2.2.10` is `fd00:10:2:2::10`);
//! - a default route whose gateway takes packets and answers nothing. Service addresses (`10.0.0.0/16`,
//!   `fd00:10:0::/48`) have no route of their own, so they have a route, and whoever is not translated
//!   reaches nobody: a connect to one times out, as on a real network that drops.
//!
//! Forwarding is on inside the nodes. Everything a node or pod starts is in the node's cgroup.

pub mod ports;
pub mod service;
pub mod site;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};

use crate::{Cgroup, Netns, Place as _, Probe};

/// The same made-up link-layer address for every gateway that nobody has: frames to it are dropped.
const NOWHERE: &str = "02:00:00:00:00:fe";

/// One or two nodes.
#[derive(Debug)]
pub struct Topology {
    /// The nodes, number 1 first.
    pub nodes: Vec<Node>,
}

impl Topology {
    /// One node. Its `eth0` leads to a cable with nobody at the other end.
    pub fn single() -> Result<Self> {
        let node = Node::new(1)?;
        node.netns.join("eth0", &node.netns, "wire0")?;
        node.configure()?;
        Ok(Self { nodes: vec![node] })
    }

    /// Two nodes joined by a veth pair, with routes to each other's pods.
    pub fn pair() -> Result<Self> {
        let nodes = vec![Node::new(1)?, Node::new(2)?];
        nodes[0].netns.join("eth0", &nodes[1].netns, "eth0")?;
        for (node, other) in [(&nodes[0], &nodes[1]), (&nodes[1], &nodes[0])] {
            node.configure()?;
            let number = other.number;
            node.netns.ip(&format!(
                "route add 10.{number}.0.0/16 via {}\nroute add fd00:10:{number}::/48 via {}",
                other.ipv4, other.ipv6
            ))?;
        }
        Ok(Self { nodes })
    }

    /// Node `number`, counted from 1 as in its addresses.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }
}

/// A node: a namespace with forwarding and a cgroup. Pods are made by [`Node::add_pod`] and belong to the
/// caller.
#[derive(Debug)]
pub struct Node {
    /// `node1` or `node2`.
    pub name: String,
    /// `192.168.50.n`.
    pub ipv4: Ipv4Addr,
    /// `fd00:192:168:50::n`.
    pub ipv6: Ipv6Addr,
    /// The host's namespace on this node.
    pub netns: Arc<Netns>,
    /// Ancestor of the cgroup of everything on this node, and the place to attach programs.
    pub cgroup: Arc<Cgroup>,
    number: u8,
    pods: AtomicU32,
}

impl Node {
    fn new(number: u8) -> Result<Self> {
        let name = format!("node{number}");
        Ok(Self {
            ipv4: Ipv4Addr::new(192, 168, 50, number),
            ipv6: Ipv6Addr::new(0xfd00, 0x192, 0x168, 0x50, 0, 0, 0, number.into()),
            netns: Arc::new(Netns::new(&name)?),
            cgroup: Arc::new(Cgroup::new(&name)?),
            name,
            number,
            pods: AtomicU32::new(0),
        })
    }

    /// Addresses and routes of `eth0`, which must be up at both ends.
    ///
    /// The link-local address is given and not left to the kernel, which makes one when it has noticed the
    /// carrier: without it, nobody would ask for the neighbours of forwarded packets.
    fn configure(&self) -> Result<()> {
        self.netns.sysctl("net.ipv4.ip_forward", "1")?;
        self.netns.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        self.netns.ip(&format!(
            "addr add {}/24 dev eth0
             addr add {}/64 dev eth0 nodad
             addr add fe80::{}/64 dev eth0 nodad
             neigh add 192.168.50.254 lladdr {NOWHERE} dev eth0 nud permanent
             neigh add fd00:192:168:50::254 lladdr {NOWHERE} dev eth0 nud permanent
             route add default via 192.168.50.254
             route add default via fd00:192:168:50::254",
            self.ipv4, self.ipv6, self.number
        ))
    }

    /// Gives the node a further address of its own, on `lo`: a backend that needs no pod, or an address that
    /// a test wants to be local.
    pub fn add_address(&self, address: IpAddr) -> Result<()> {
        let options = if address.is_ipv6() { "/128 dev lo nodad" } else { "/32 dev lo" };
        self.netns.ip(&format!("addr add {address}{options}"))
    }

    /// Starts a pod at `ipv4`, which should lie in the node's `10.n.0.0/16`, and at the IPv6 address with the
    /// same digits.
    pub fn add_pod(&self, name: &str, ipv4: Ipv4Addr) -> Result<Pod> {
        ensure!(
            ipv4.octets()[..2] == [10, self.number],
            "pod {name} at {ipv4} is outside 10.{}.0.0/16, where {} has its pods",
            self.number,
            self.name
        );
        let ipv6 = same_digits(ipv4)?;
        let netns = Netns::new(name)?;
        let device = self.next_pod_device();
        self.netns.join(&device, &netns, "eth0")?;
        // Every pod interface has the same gateway addresses, as with Calico: they never leave the cable. An
        // interface of an earlier pod with this address may not be gone yet, therefore `replace`.
        self.netns.ip(&format!(
            "addr add 169.254.1.1/32 dev {device}
             addr add fe80::1/64 dev {device} nodad
             route replace {ipv4}/32 dev {device} src {}
             route replace {ipv6}/128 dev {device} src {}",
            self.ipv4, self.ipv6
        ))?;
        netns.ip(&format!(
            "addr add {ipv4}/32 dev eth0
             addr add {ipv6}/128 dev eth0 nodad
             addr add fe80::2/64 dev eth0 nodad
             route add 169.254.1.1 dev eth0
             route add default via 169.254.1.1
             route add default via fe80::1 dev eth0"
        ))?;
        let (node, cgroup) = (Arc::clone(&self.netns), self.cgroup.child(name)?);
        Ok(Pod { name: name.to_owned(), ipv4, ipv6, netns, cgroup, node, device })
    }

    fn next_pod_device(&self) -> String {
        format!("pod{}", self.pods.fetch_add(1, Ordering::Relaxed))
    }

    /// A probe in the host's namespace on this node.
    pub fn probe(&self, label: &str) -> Result<Probe> {
        Probe::start(label, &self.netns, &self.cgroup)
    }

    /// A command that will run in this node's namespace and cgroup.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.in_netns(&self.netns).in_cgroup(&self.cgroup);
        command
    }
}

/// A pod: a namespace behind a node, and a cgroup below the node's. Dropping it cuts the cable at once and
/// kills what runs in it.
#[derive(Debug)]
pub struct Pod {
    /// As given to [`Node::add_pod`].
    pub name: String,
    /// Its IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address: the digits of the IPv4 one in `fd00::/16`.
    pub ipv6: Ipv6Addr,
    /// The pod's namespace.
    pub netns: Netns,
    /// The pod's cgroup.
    pub cgroup: Cgroup,
    node: Arc<Netns>,
    device: String,
}

impl Pod {
    /// A probe in this pod.
    pub fn probe(&self, label: &str) -> Result<Probe> {
        Probe::start(label, &self.netns, &self.cgroup)
    }

    /// A command that will run in this pod.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.in_netns(&self.netns).in_cgroup(&self.cgroup);
        command
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // The kernel would remove the interface together with the namespace, but some time later; a pod
        // added in its place must not meet it.
        if let Err(error) = self.node.ip(&format!("link del {}", self.device)) {
            eprintln!("{error:#}");
        }
    }
}

/// `10.2.2.10` -> `fd00:10:2:2::10`: each decimal number, read as hexadecimal digits.
fn same_digits(ipv4: Ipv4Addr) -> Result<Ipv6Addr> {
    let [a, b, c, d] = ipv4.octets();
    let text = format!("fd00:{a}:{b}:{c}::{d}");
    text.parse().with_context(|| format!("{text} is no IPv6 address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_shows_the_digits_of_the_ipv4_one() {
        let address = same_digits(Ipv4Addr::new(10, 2, 2, 10)).unwrap();
        assert_eq!(address.to_string(), "fd00:10:2:2::10");
    }
}
