//! At which devices packets are served, and from which address each of them masquerades. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

use lb_common::abi::{Addr, Addr4, Device, FlowAddr as _};

use super::Layer;
use crate::{
    config::{DetectLocal, DeviceOptions, Devices},
    model::{Family, Name},
};

/// The interface on which kube-proxy's IPVS mode puts every cluster IP. Nothing passes it.
const IPVS_INTERFACE: &str = "kube-ipvs0";

/// A network device of this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Its name.
    pub name: Name,
    /// What it is.
    pub kind: LinkKind,
    /// Interface index of the bridge, bond or other device that it is a port of.
    pub controller: Option<u32>,
    /// What its packets begin with; nothing if that is something else.
    pub layer: Option<Layer>,
    /// Its addresses, in the order in which the kernel prefers them.
    pub addrs: Vec<LinkAddress>,
    /// A route through a gateway leads out of it: other machines are behind it.
    pub has_gateway: bool,
    /// The router of the most general IPv6 route out of it.
    pub router: Option<Ipv6Addr>,
    /// Largest packet that it takes, in bytes with the IP header.
    pub mtu: u32,
}

/// An address of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkAddress {
    /// The address.
    pub addr: IpAddr,
    /// Bits of it that the neighbours share.
    pub prefix_len: u8,
}

/// What a device is, as far as it matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkKind {
    /// `lo`.
    Loopback,
    /// Its ports are joined to each other.
    Bridge,
    /// Its other end is in another network namespace: a pod's, or a machine's.
    Tethered,
    /// Anything else.
    Other,
}

/// All devices of this node, by interface index.
pub type Links = BTreeMap<u32, Link>;

/// Who is behind a device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// Other machines.
    Uplink,
    /// A pod of this node, or some.
    Pods,
}

/// A device at which packets are served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Served {
    /// Its name.
    pub name: Name,
    /// What its packets begin with.
    pub layer: Layer,
    /// Who is behind it.
    pub role: Role,
}

/// Why a device that was asked for, or would be chosen, is not served.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, thiserror::Error)]
pub enum Unserved {
    /// InfiniBand, for one.
    #[error("its packets begin with neither an Ethernet nor an IP header")]
    UnknownLayer,
}

/// What [`choose`] came to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Chosen {
    /// Devices at which packets are served, by interface index.
    pub served: BTreeMap<u32, Served>,
    /// Entries of `lb_devices`: also of devices that packets only leave by.
    pub entries: BTreeMap<u32, Device>,
    /// Devices that should be served and cannot.
    pub unserved: BTreeSet<(Name, Unserved)>,
}

/// Chooses devices. `primary` are the node's own addresses (ND-3): what is masqueraded and leaves by a device without an address
/// has them.
///
/// By default those that lead to other machines, and those towards pods: each port of a bridge, because what one pod sends to
/// another does not pass the bridge itself.
pub fn choose(links: &Links, options: &DeviceOptions, primary: [Option<IpAddr>; 2]) -> Chosen {
    let pods: BTreeSet<u32> =
        links.iter().filter(|(_, link)| is_pods(links, link, options)).map(|(index, _)| *index).collect();
    let mut chosen = Chosen::default();
    let fallback = primary_or_uplink(links, &pods, primary);
    for (index, link) in links {
        if link.kind == LinkKind::Loopback || &*link.name == IPVS_INTERFACE {
            continue;
        }
        let role = if pods.contains(index) {
            Some(Role::Pods)
        } else {
            is_uplink(links, &pods, (*index, link), options).then_some(Role::Uplink)
        };
        chosen.entries.insert(*index, entry(links, link, role, fallback));
        match (role, link.layer) {
            (Some(role), Some(layer)) => {
                chosen.served.insert(*index, Served { name: link.name.clone(), layer, role });
            }
            (Some(_), None) => {
                chosen.unserved.insert((link.name.clone(), Unserved::UnknownLayer));
            }
            (None, _) => {}
        }
    }
    chosen
}

/// Whether local pods are behind a device.
fn is_pods(links: &Links, link: &Link, options: &DeviceOptions) -> bool {
    let is_port_of = |name: &str| {
        let controller = link.controller.and_then(|index| links.get(&index));
        controller.is_some_and(|controller| &*controller.name == name)
    };
    match (&options.pods, &options.detect_local) {
        (Devices::Only(patterns), _) => patterns.iter().any(|pattern| pattern.is_like(&link.name)),
        (Devices::Auto, DetectLocal::InterfaceNamePrefix(prefix)) => link.name.starts_with(prefix.as_str()),
        (Devices::Auto, DetectLocal::BridgeInterface(bridge)) => is_port_of(bridge.as_str()),
        (Devices::Auto, _) => link.kind == LinkKind::Tethered && !link.has_neighbours(),
    }
}

/// Whether other machines are behind a device that is not one of `pods`.
fn is_uplink(
    links: &Links,
    pods: &BTreeSet<u32>,
    (index, link): (u32, &Link),
    options: &DeviceOptions,
) -> bool {
    if let Devices::Only(patterns) = &options.uplinks {
        return patterns.iter().any(|pattern| pattern.is_like(&link.name));
    }
    if link.controller.is_some_and(|controller| links.contains_key(&controller)) {
        // What comes in by a port comes in by the bridge or bond as well, where the addresses are.
        return false;
    }
    // A bridge of pods only: what they send is served where it enters.
    let mut ports = links.iter().filter(|(_, port)| port.controller == Some(index)).peekable();
    let has_ports = ports.peek().is_some();
    if link.kind == LinkKind::Bridge && has_ports && ports.all(|(port, _)| pods.contains(port)) {
        return false;
    }
    link.has_neighbours()
}

impl Link {
    /// Whether this node is one of several machines on the link, as far as its addresses and routes tell. A pod's gateway may be
    /// an address that is nobody's network; a tunnel leads to others in any case.
    fn has_neighbours(&self) -> bool {
        let is_network = |own: &LinkAddress| {
            let bits = if own.addr.is_ipv4() { 32 } else { 128 };
            (own.prefix_len < bits || self.layer == Some(Layer::Ip)) && is_global(&own.addr)
        };
        self.has_gateway || self.addrs.iter().any(is_network)
    }

    fn source(&self, family: Family) -> Option<IpAddr> {
        let mut own = self.addrs.iter().map(|own| own.addr);
        own.find(|addr| Family::of(addr) == family && is_global(addr))
    }
}

/// Whether others than direct neighbours may know an address.
fn is_global(addr: &IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => !addr.is_link_local() && !addr.is_loopback(),
        IpAddr::V6(addr) => !addr.is_unicast_link_local() && !addr.is_loopback(),
    }
}

/// The source of what leaves by a device without an address.
fn primary_or_uplink(
    links: &Links,
    pods: &BTreeSet<u32>,
    primary: [Option<IpAddr>; 2],
) -> [Option<IpAddr>; 2] {
    let mut uplinks: Vec<&Link> =
        links.iter().filter(|(index, _)| !pods.contains(index)).map(|(_, link)| link).collect();
    uplinks.sort_by_key(|link| !link.has_gateway);
    let any = Family::BOTH.map(|family| uplinks.iter().find_map(|link| link.source(family)));
    [primary[0].or(any[0]), primary[1].or(any[1])]
}

fn entry(links: &Links, link: &Link, role: Option<Role>, fallback: [Option<IpAddr>; 2]) -> Device {
    let [v4, v6] = Family::BOTH.map(|family| {
        let own = link.source(family).or(fallback[usize::from(family == Family::V6)]);
        own.map(Addr::from)
    });
    let mut bits = 0;
    if role == Some(Role::Pods) {
        bits |= Device::PODS;
        if link.kind == LinkKind::Bridge {
            // Somebody has named the bridge itself.
            bits |= Device::SHARED;
        }
    }
    Device {
        router: link.router.map_or(Device::NONE.router, |router| Addr::from(IpAddr::from(router))),
        v6: v6.unwrap_or(Device::NONE.v6),
        v4: v4.map_or(Device::NONE.v4, Addr4::narrow),
        bits,
        controller: link.controller.filter(|controller| links.contains_key(controller)).unwrap_or(0),
        mtu: link.mtu,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, kind: LinkKind, addrs: &[&str]) -> Link {
        let address = |text: &&str| {
            let net: ipnet::IpNet = text.parse().unwrap();
            LinkAddress { addr: net.addr(), prefix_len: net.prefix_len() }
        };
        Link {
            name: name.into(),
            kind,
            controller: None,
            layer: Some(Layer::Ethernet),
            addrs: addrs.iter().map(address).collect(),
            has_gateway: false,
            router: None,
            mtu: 1500,
        }
    }

    fn port(name: &str, controller: u32) -> Link {
        Link { controller: Some(controller), ..link(name, LinkKind::Tethered, &[]) }
    }

    /// A node with a bridge for pods, an overlay, and an uplink.
    fn node() -> Links {
        let uplink = Link {
            has_gateway: true,
            ..link("eth0", LinkKind::Tethered, &["192.0.2.1/24", "2001:db8::1/64", "fe80::1/64"])
        };
        BTreeMap::from([
            (1, link("lo", LinkKind::Loopback, &["127.0.0.1/8", "::1/128"])),
            (2, uplink),
            (3, link("cni0", LinkKind::Bridge, &["10.1.0.1/24"])),
            (4, port("veth1", 3)),
            (5, port("veth2", 3)),
            (6, link("flannel.1", LinkKind::Other, &["10.1.0.0/16"])),
        ])
    }

    fn served(chosen: &Chosen) -> Vec<(&str, Role)> {
        chosen.served.values().map(|served| (&*served.name, served.role)).collect()
    }

    fn options(uplinks: &str, pods: &str) -> DeviceOptions {
        DeviceOptions {
            uplinks: uplinks.parse().unwrap(),
            pods: pods.parse().unwrap(),
            detect_local: DetectLocal::Off,
        }
    }

    #[test]
    fn uplinks_overlays_and_the_ports_of_pods_are_served() {
        let chosen = choose(&node(), &DeviceOptions::default(), [None; 2]);
        let expected = [
            ("eth0", Role::Uplink),
            ("veth1", Role::Pods),
            ("veth2", Role::Pods),
            ("flannel.1", Role::Uplink),
        ];
        assert_eq!(served(&chosen), expected);
        let bits: Vec<u32> = chosen.entries.values().map(|entry| entry.bits).collect();
        assert_eq!(bits, [0, 0, Device::PODS, Device::PODS, 0], "eth0, cni0, both ports, flannel.1");
        assert_eq!(chosen.entries[&4].controller, 3);
    }

    #[test]
    fn pods_behind_routes_are_known_by_gateways_that_are_nobody_s_network() {
        let mut links = node();
        links.insert(7, link("cali1", LinkKind::Tethered, &["fe80::2/64"]));
        links.insert(8, link("ptp1", LinkKind::Tethered, &["10.1.9.1/32"]));
        links.insert(9, link("to-lan", LinkKind::Tethered, &["198.51.100.1/24"]));
        let chosen = choose(&links, &DeviceOptions::default(), [None; 2]);
        let roles = [7, 8, 9].map(|index| chosen.served[&index].role);
        assert_eq!(roles, [Role::Pods, Role::Pods, Role::Uplink]);
    }

    #[test]
    fn a_bridge_to_other_machines_is_served_and_its_uplink_port_is_not() {
        let mut links = node();
        links.insert(7, Link { has_gateway: true, ..link("br0", LinkKind::Bridge, &["198.51.100.1/24"]) });
        links.insert(8, Link { controller: Some(7), ..link("eth1", LinkKind::Other, &[]) });
        let chosen = choose(&links, &DeviceOptions::default(), [None; 2]);
        assert_eq!(chosen.served.get(&7).map(|served| served.role), Some(Role::Uplink));
        assert!(!chosen.served.contains_key(&8));
    }

    /// MQ-5: what is masqueraded has an address of the device that it leaves by.
    #[test]
    fn what_leaves_by_a_device_has_its_address_or_the_node_s() {
        let chosen = choose(&node(), &DeviceOptions::default(), [Some([203, 0, 113, 1].into()), None]);
        let source = |index| {
            let Device { v4, v6, .. } = chosen.entries[&index];
            (v4.octets, v6)
        };
        let own = Addr::from("2001:db8::1".parse::<IpAddr>().unwrap());
        assert_eq!(source(2), ([192, 0, 2, 1], own));
        assert_eq!(source(3), ([10, 1, 0, 1], own), "without an IPv6 address: the uplink's");
        assert_eq!(source(4), ([203, 0, 113, 1], own), "without any: the node's");
        let chosen = choose(&node(), &DeviceOptions::default(), [None; 2]);
        assert_eq!(chosen.entries[&4].v4.octets, [192, 0, 2, 1], "and that of the way to other machines");
    }

    #[test]
    fn lists_and_patterns_override_what_would_be_chosen() {
        let named = |uplinks, pods| {
            let chosen = choose(&node(), &options(uplinks, pods), [None; 2]);
            served(&chosen).into_iter().map(|(name, role)| (name.to_owned(), role)).collect::<Vec<_>>()
        };
        assert_eq!(named("none", "none"), []);
        assert_eq!(named("eth*", "none"), [("eth0".into(), Role::Uplink)]);
        assert_eq!(named("eth0,flannel.1", "veth2")[1], ("veth2".into(), Role::Pods));
        let chosen = choose(&node(), &options("none", "cni0"), [None; 2]);
        assert_eq!(chosen.entries[&3].bits, Device::PODS | Device::SHARED);
    }

    /// 2.9
    #[test]
    fn local_pods_are_behind_the_interfaces_that_detect_local_names() {
        let mut links = node();
        links.insert(7, link("tap1", LinkKind::Other, &[]));
        links.insert(8, Link { controller: Some(9), ..link("tap2", LinkKind::Other, &[]) });
        links.insert(9, link("br9", LinkKind::Bridge, &["10.1.9.1/24"]));
        let pods = |detect_local| {
            let options = DeviceOptions { detect_local, ..DeviceOptions::default() };
            let chosen = choose(&links, &options, [None; 2]);
            let pods = chosen.served.into_values().filter(|served| served.role == Role::Pods);
            pods.map(|served| served.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(pods(DetectLocal::InterfaceNamePrefix("tap".into())), ["tap1", "tap2"]);
        assert_eq!(pods(DetectLocal::BridgeInterface("br9".into())), ["tap2"]);
    }

    #[test]
    fn tunnels_are_served_and_devices_with_other_headers_are_named() {
        let mut links = node();
        let like = |layer, name, addr| Link { layer, ..link(name, LinkKind::Other, &[addr]) };
        links.insert(7, like(Some(Layer::Ip), "tun0", "10.9.0.1/32"));
        links.insert(8, like(None, "ib0", "10.8.0.1/24"));
        let chosen = choose(&links, &DeviceOptions::default(), [None; 2]);
        let tunnel = Served { name: "tun0".into(), layer: Layer::Ip, role: Role::Uplink };
        assert_eq!(chosen.served.get(&7), Some(&tunnel));
        assert_eq!(chosen.unserved.into_iter().collect::<Vec<_>>(), [("ib0".into(), Unserved::UnknownLayer)]);
    }
}
