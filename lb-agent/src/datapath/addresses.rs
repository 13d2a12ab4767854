//! On which of this node's addresses NodePorts are served. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use lb_common::abi::{Addr, Address};

use crate::{
    config::{NodePortAddresses, NodePortsOn, PerFamily},
    model::{Family, Name},
};

/// The interface on which kube-proxy's IPVS mode puts every cluster IP. What is there says nothing about the node.
const IPVS_INTERFACE: &str = "kube-ipvs0";

/// An address of this node, as the kernel has it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct OwnAddress {
    /// The address.
    pub addr: IpAddr,
    /// Name of the interface that has it.
    pub interface: Name,
}

/// All addresses of this node, on all interfaces.
pub type OwnAddresses = BTreeSet<OwnAddress>;

/// What was configured about NodePorts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodePortOptions {
    /// `--nodeport-addresses`
    pub on: NodePortAddresses,
    /// `--localhost-nodeports`
    pub localhost: bool,
    /// `--node-ip`
    pub node_ip: PerFamily<IpAddr>,
}

/// Where NodePorts are served.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodePorts {
    /// What each address is to the programs.
    pub addresses: BTreeMap<Addr, Address>,
    /// See [`Listen`], for IPv4 and IPv6.
    listen: [Listen; 2],
    /// The primary address was asked for and none is known in any family: every address serves in its place.
    pub lacks_primary: bool,
    /// The primary address was asked for and one family has none: NodePorts of this family are served nowhere (DS-2).
    pub unserved: Option<Family>,
    /// Ranges of loopback addresses that were asked for and serve nothing: it is switched off, or they have neither 127.0.0.1
    /// nor ::1 (NP-6).
    pub idle: Vec<IpNet>,
}

/// Where servers of this node listen that belong to NodePorts (NP-13), for one family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Listen {
    /// At the unspecified address.
    All,
    /// At each of these.
    Set(BTreeSet<IpAddr>),
}

impl Default for Listen {
    fn default() -> Self {
        Self::Set(BTreeSet::new())
    }
}

impl NodePorts {
    /// Where servers that belong to NodePorts listen (NP-13), for IPv4 and IPv6.
    pub const fn listen(&self) -> &[Listen; 2] {
        &self.listen
    }
}

/// Chooses where NodePorts are served, from what the kernel and the Node object (`primary`) say and what was asked for.
///
/// Loopback addresses other than 127.0.0.1 and ::1 serve none, and these two only for the host itself (NP-4). A primary
/// address is served whether an interface has it or not, as under kube-proxy.
pub fn classify(own: &OwnAddresses, primary: &PerFamily<IpAddr>, options: &NodePortOptions) -> NodePorts {
    let mut chosen = NodePorts { idle: idle(options), ..NodePorts::default() };
    let primary = PerFamily { v4: options.node_ip.v4.or(primary.v4), v6: options.node_ip.v6.or(primary.v6) };
    if options.on.on == NodePortsOn::Primary {
        chosen.lacks_primary = primary.is_empty();
        let missing = Family::BOTH.into_iter().find(|family| primary.of(*family).is_none());
        chosen.unserved = missing.filter(|_| !chosen.lacks_primary);
    }
    for family in Family::BOTH {
        let all = own.iter().filter(|own| is_candidate(own, family)).map(|own| own.addr);
        let is_all = chosen.lacks_primary || is_all(&options.on, family);
        let mut served: BTreeSet<IpAddr> = match &options.on.on {
            _ if is_all => all.collect(),
            NodePortsOn::Primary => primary.of(family).into_iter().collect(),
            _ => all.filter(|addr| options.on.ranges(family).any(|range| range.contains(addr))).collect(),
        };
        chosen.addresses.extend(served.iter().map(|addr| (Addr::from(*addr), Address::NODE)));
        let loopback = loopback(family);
        if serves_loopback(options, family) {
            chosen.addresses.insert(Addr::from(loopback), Address::LOOPBACK);
        }
        let listen = match family {
            Family::V4 => &mut chosen.listen[0],
            Family::V6 => &mut chosen.listen[1],
        };
        served.extend(options.on.localhost.then_some(loopback));
        *listen = if is_all { Listen::All } else { Listen::Set(served) };
    }
    chosen
}

/// Addresses of this node that a ClusterIP is looked for among, with their interfaces.
pub fn left_alone(own: &OwnAddresses) -> BTreeMap<IpAddr, Name> {
    let own = own.iter().filter(|own| own.interface != IPVS_INTERFACE);
    own.map(|own| (own.addr, own.interface.clone())).collect()
}

fn is_candidate(own: &OwnAddress, family: Family) -> bool {
    let addr = &own.addr;
    Family::of(addr) == family
        && !(addr.is_loopback() || addr.is_unspecified() || addr.is_multicast())
        && own.interface != IPVS_INTERFACE
}

/// NP-2, NP-4: whether every address of the family serves.
fn is_all(on: &NodePortAddresses, family: Family) -> bool {
    match &on.on {
        NodePortsOn::All => true,
        NodePortsOn::Ranges(_) => {
            let mut ranges = on.ranges(family).peekable();
            ranges.peek().is_none() || ranges.any(|range| range.prefix_len() == 0)
        }
        NodePortsOn::Primary | NodePortsOn::Nowhere => false,
    }
}

/// NP-5, NP-6, NP-7: whether the host's own loopback address serves. As under kube-proxy's iptables mode, ranges
/// without it leave it out.
fn serves_loopback(options: &NodePortOptions, family: Family) -> bool {
    let is_in_list = match &options.on.on {
        NodePortsOn::Primary | NodePortsOn::All => true,
        NodePortsOn::Ranges(_) => {
            is_all(&options.on, family)
                || options.on.ranges(family).any(|range| range.contains(&loopback(family)))
        }
        NodePortsOn::Nowhere => false,
    };
    options.on.localhost || (options.localhost && is_in_list)
}

/// NP-6: ranges within loopback that serve nothing.
fn idle(options: &NodePortOptions) -> Vec<IpNet> {
    let is_idle = |family, range: &IpNet| {
        let is_loopback = range.network().is_loopback() && range.broadcast().is_loopback();
        is_loopback && !(range.contains(&loopback(family)) && serves_loopback(options, family))
    };
    let of = |family| options.on.ranges(family).copied().filter(move |range| is_idle(family, range));
    Family::BOTH.into_iter().flat_map(of).collect()
}

const fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn own(words: &str) -> OwnAddresses {
        let own = words.split_whitespace().map(|word| {
            let (addr, interface) = word.split_once('@').unwrap_or((word, "eth0"));
            OwnAddress { addr: addr.parse().unwrap(), interface: interface.into() }
        });
        own.collect()
    }

    /// Every kind of address that a node has.
    fn node() -> OwnAddresses {
        own(
            "127.0.0.1@lo 127.0.0.53@lo ::1@lo 10.0.0.1 10.0.0.2 192.0.2.1@eth1 fd00::1 2001:db8::1@eth1 fe80::1 \
             10.96.0.10@kube-ipvs0",
        )
    }

    fn classified(node_ip: &str, primary: &str, on: &str, localhost: bool) -> NodePorts {
        let options =
            NodePortOptions { on: on.parse().unwrap(), localhost, node_ip: node_ip.parse().unwrap() };
        classify(&node(), &primary.parse().unwrap(), &options)
    }

    /// Addresses in order; those of loopback in brackets.
    fn shown(chosen: &NodePorts) -> String {
        let mut known: Vec<(IpAddr, Address)> =
            chosen.addresses.iter().map(|(addr, kind)| (IpAddr::from(*addr), *kind)).collect();
        known.sort_unstable();
        let words = known.iter().map(|(addr, kind)| match *kind {
            Address::LOOPBACK => format!("({addr})"),
            _ => addr.to_string(),
        });
        words.collect::<Vec<_>>().join(" ")
    }

    const BOTH: &str = "10.0.0.1,fd00::1";
    const V4: &str = "10.0.0.1 10.0.0.2 192.0.2.1";

    /// NP-1, NP-2, NP-3, NP-4.
    #[rstest]
    #[case::primary_of_both("primary", BOTH, "10.0.0.1 fd00::1")]
    #[case::a_family_without_a_primary_has_none("primary", "10.0.0.1", "10.0.0.1")]
    #[case::ranges("10.0.0.0/31,fd00::/16", BOTH, "10.0.0.1 fd00::1")]
    #[case::several_ranges("10.0.0.2/32,192.0.2.0/24,fd00::/16", BOTH, "10.0.0.2 192.0.2.1 fd00::1")]
    #[case::ranges_of_nobody("198.51.100.0/24,fd99::/16", BOTH, "")]
    #[case::an_unmentioned_family_is_served_whole(
        "10.0.0.0/31",
        BOTH,
        "10.0.0.1 2001:db8::1 fd00::1 fe80::1"
    )]
    #[case::a_range_of_everything("0.0.0.0/0,fd00::/16", BOTH, &format!("{V4} fd00::1"))]
    #[case::all("all", "", &format!("{V4} 2001:db8::1 fd00::1 fe80::1"))]
    #[case::localhost_alone("localhost", BOTH, "")]
    fn node_ports_are_served_where_it_was_asked_for(
        #[case] on: &str,
        #[case] primary: &str,
        #[case] wanted: &str,
    ) {
        let chosen = classified("", primary, on, false);
        let kept: Vec<String> = shown(&chosen)
            .split_whitespace()
            .filter(|word| !word.starts_with('('))
            .map(str::to_owned)
            .collect();
        assert_eq!(kept.join(" "), wanted);
        assert!(!chosen.lacks_primary);
    }

    /// NP-4, NP-5, NP-6, NP-7. Behind `idle` are the ranges that are named because they serve nothing.
    #[rstest]
    #[case::as_it_comes("primary", true, "10.0.0.1 (127.0.0.1) (::1)", "")]
    #[case::switched_off("primary", false, "10.0.0.1", "")]
    #[case::asked_for_by_name("primary,localhost", false, "10.0.0.1 (127.0.0.1) (::1)", "")]
    #[case::nothing_else("localhost", false, "(127.0.0.1) (::1)", "")]
    #[case::ranges_without_it("10.0.0.0/31,fd00::/64", true, "10.0.0.1 fd00::1", "")]
    #[case::a_range_of_loopback("127.0.0.0/8,::1/128", true, "(127.0.0.1) (::1)", "")]
    #[case::a_range_of_loopback_that_is_switched_off("127.0.0.0/8,::1/128", false, "", "127.0.0.0/8 ::1/128")]
    #[case::beside_ranges_that_serve(
        "10.0.0.0/31,127.0.0.0/8,fd00::/64",
        false,
        "10.0.0.1 fd00::1",
        "127.0.0.0/8"
    )]
    #[case::switched_off_and_asked_for_by_name(
        "127.0.0.0/8,::1/128,localhost",
        false,
        "(127.0.0.1) (::1)",
        ""
    )]
    #[case::loopback_addresses_that_serve_nothing(
        "127.0.0.53/32,fd00::/64",
        true,
        "fd00::1",
        "127.0.0.53/32"
    )]
    #[case::more_than_loopback("0.0.0.0/0,::/0", false, &format!("{V4} 2001:db8::1 fd00::1 fe80::1"), "")]
    #[case::all_but_the_host_itself("all", false, &format!("{V4} 2001:db8::1 fd00::1 fe80::1"), "")]
    fn the_host_itself_meets_node_ports_on_its_two_loopback_addresses(
        #[case] on: &str,
        #[case] localhost: bool,
        #[case] wanted: &str,
        #[case] idle: &str,
    ) {
        let chosen = classified("", "10.0.0.1", on, localhost);
        assert_eq!(shown(&chosen), wanted);
        let named: Vec<String> = chosen.idle.iter().map(ToString::to_string).collect();
        assert_eq!(named.join(" "), idle);
    }

    /// ND-1: where nothing is known of the Node, what NodePorts reach is not taken away.
    #[test]
    fn without_any_primary_address_every_address_serves() {
        let chosen = classified("", "", "primary", false);
        assert!(chosen.lacks_primary);
        assert_eq!(chosen.addresses, classified("", "", "all", false).addresses);
        assert!(!classified("", "", "all", false).lacks_primary);
    }

    /// DS-2.
    #[test]
    fn a_family_that_the_node_does_not_have_is_named() {
        for (primary, unserved) in
            [("10.0.0.1", Some(Family::V6)), ("fd00::1", Some(Family::V4)), (BOTH, None)]
        {
            assert_eq!(classified("", primary, "primary", true).unserved, unserved, "{primary}");
        }
        assert_eq!(classified("fd00::1", "10.0.0.1", "primary", true).unserved, None);
        assert_eq!(classified("", "10.0.0.1", "all", true).unserved, None);
        assert_eq!(classified("", "", "primary", true).unserved, None);
    }

    /// ND-1, ND-3.
    #[test]
    fn the_configured_address_wins_over_the_node_object() {
        assert_eq!(shown(&classified("192.0.2.1", BOTH, "primary", false)), "192.0.2.1 fd00::1");
        assert_eq!(shown(&classified("192.0.2.1", "", "primary", false)), "192.0.2.1");
    }

    /// NP-13.
    #[rstest]
    #[case::primary("primary", "10.0.0.1", Some("10.0.0.1"), Some(""))]
    #[case::no_primary("primary", "", None, None)]
    #[case::all("all", BOTH, None, None)]
    #[case::ranges("10.0.0.0/8", BOTH, Some("10.0.0.1 10.0.0.2"), None)]
    #[case::a_range_of_everything("0.0.0.0/0,fd00::/64", BOTH, None, Some("fd00::1"))]
    #[case::localhost_is_listened_on_when_it_is_named(
        "primary,localhost",
        BOTH,
        Some("10.0.0.1 127.0.0.1"),
        Some("::1 fd00::1")
    )]
    fn servers_listen_where_node_ports_are_served(
        #[case] on: &str,
        #[case] primary: &str,
        #[case] v4: Option<&str>,
        #[case] v6: Option<&str>,
    ) {
        let chosen = classified("", primary, on, true);
        for (listen, wanted) in chosen.listen().iter().zip([v4, v6]) {
            let wanted = wanted.map_or(Listen::All, |words| {
                Listen::Set(words.split_whitespace().map(|word| word.parse().unwrap()).collect())
            });
            assert_eq!(*listen, wanted);
        }
    }

    #[test]
    fn what_is_on_the_interface_of_ipvs_is_no_address_of_the_node() {
        let alone = left_alone(&own("10.96.0.10@kube-ipvs0 10.96.0.53@nodelocaldns"));
        assert_eq!(
            alone.into_iter().collect::<Vec<_>>(),
            [("10.96.0.53".parse().unwrap(), "nodelocaldns".into())]
        );
    }
}
