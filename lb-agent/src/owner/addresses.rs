//! What of this node's addresses the programs and the Services must know, chosen again when the kernel, the Node object
//! or both say something new.

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::abi::{Addr, Address};
use tracing::{info, warn};

use super::Owner;
use crate::{
    config::PerFamily,
    datapath::addresses::{NodePortOptions, NodePorts, OwnAddresses, classify, left_alone},
    model::Family,
};

/// Where NodePorts are served, and what that follows from.
pub(super) struct NodeAddresses {
    options: NodePortOptions,
    own: Option<OwnAddresses>,
    /// The first address of each family that the Node object named when it last named any.
    primary: PerFamily<IpAddr>,
    chosen: NodePorts,
    /// What was said last of the lack of primary addresses.
    said: (bool, Option<Family>),
    /// What was said last of addresses that serve nothing.
    said_idle: Vec<String>,
}

impl NodeAddresses {
    /// Nothing is known yet.
    pub(super) fn new(options: NodePortOptions) -> Self {
        Self {
            options,
            own: None,
            primary: PerFamily::default(),
            chosen: NodePorts::default(),
            said: (false, None),
            said_idle: Vec::new(),
        }
    }

    /// The addresses that stand for this node (ND-3).
    pub(super) fn primary(&self) -> [Option<IpAddr>; 2] {
        Family::BOTH.map(|family| self.options.node_ip.of(family).or(self.primary.of(family)))
    }

    /// The kernel has been asked.
    pub(super) const fn are_known(&self) -> bool {
        self.own.is_some()
    }

    /// What each address is to the programs.
    pub(super) const fn entries(&self) -> &BTreeMap<Addr, Address> {
        &self.chosen.addresses
    }

    /// Takes in what the kernel says; returns whether NodePorts are served elsewhere now.
    fn set_own(&mut self, own: OwnAddresses) -> bool {
        self.own = Some(own);
        self.choose()
    }

    /// Takes in what the Node object says, internal addresses first; likewise.
    ///
    /// A Node that is deleted or loses its addresses keeps the last known ones: kube-proxy would end and wait for new
    /// ones, with the old rules in force (ND-2).
    fn set_node(&mut self, addresses: &[IpAddr]) -> bool {
        if addresses.is_empty() {
            return false;
        }
        let first = |family| addresses.iter().copied().find(|addr| Family::of(addr) == family);
        self.primary = PerFamily { v4: first(Family::V4), v6: first(Family::V6) };
        self.choose()
    }

    fn choose(&mut self) -> bool {
        let Some(own) = &self.own else { return false };
        let chosen = classify(own, &self.primary, &self.options);
        let has_changed = chosen != self.chosen;
        self.chosen = chosen;
        has_changed
    }

    /// What was asked for and serves nothing, each with the remedy (NP-6).
    pub(super) fn idle(&self) -> Vec<String> {
        let flag = format!("--nodeport-addresses {}", self.options.on);
        let is_off = !self.options.localhost && !self.options.on.localhost;
        let remedy = if is_off {
            "loopback addresses are switched off: leave out --localhost-nodeports=false, or take the range out"
        } else {
            "of the loopback addresses only 127.0.0.1 and ::1 serve NodePorts: take the range out"
        };
        let ranges = self.chosen.idle.iter().map(|range| format!("{flag}: {range} serves none; {remedy}"));
        let is_nowhere = self.are_known() && self.chosen.addresses.is_empty();
        let nowhere = is_nowhere.then(|| {
            format!("{flag}: no address of this node serves NodePorts; name a range that has one, or primary or all")
        });
        ranges.chain(nowhere).collect()
    }

    /// Says once what is missing, and that it is there again.
    fn tell(&mut self, node: &str) {
        let now = (self.chosen.lacks_primary, self.chosen.unserved);
        let before = core::mem::replace(&mut self.said, now);
        if now.0 && !before.0 {
            warn!(
                node,
                "no address of this Node is known, so NodePorts are served on all addresses of this node: \
                 give it by --node-ip, or choose addresses by --nodeport-addresses"
            );
        } else if before.0 && !now.0 {
            info!(node, "NodePorts are served on the addresses that the Node names");
        }
        if let Some(family) = now.1.filter(|_| now.1 != before.1) {
            info!(
                node, %family,
                "the Node has no address of this family, so its NodePorts are not served on this node's addresses; \
                 if it should have one, give it by --node-ip"
            );
        }
        let idle = self.idle();
        for text in idle.iter().filter(|text| !self.said_idle.contains(text)) {
            warn!(node, "{text}");
        }
        self.said_idle = idle;
    }
}

impl Owner {
    /// Takes in the addresses of this node, as the kernel has them.
    pub(super) fn take_own_addresses(&mut self, own: OwnAddresses) {
        self.state.set_own_addresses(left_alone(&own), &mut self.touched);
        let has_changed = self.node_addresses.set_own(own);
        self.follow_addresses(has_changed);
    }

    /// Looks at the addresses of the Node object again.
    pub(super) fn take_node_addresses(&mut self) {
        let has_changed = self.node_addresses.set_node(self.state.node().addresses());
        self.follow_addresses(has_changed);
    }

    fn follow_addresses(&mut self, has_changed: bool) {
        self.state.set_primary(self.node_addresses.primary(), &mut self.touched);
        if has_changed {
            self.addresses_changed = true;
            self.outputs.listen_on(self.node_addresses.chosen.listen());
        }
        self.tell_of_addresses();
    }

    /// Before everything is listed, what is missing may still come.
    pub(super) fn tell_of_addresses(&mut self) {
        if self.running.is_some() {
            self.node_addresses.tell(&self.settings.node);
        }
    }

    /// ND-5: a name that nothing else mentions is a mistake in nearly every case.
    pub(super) fn tell_of_own_name(&self) {
        if self.state.lacks_own_node() {
            warn!(
                node = %self.settings.node,
                "no Node and no endpoint has this name, other nodes are named: no endpoint counts as being on this \
                 node; check --node-name"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::addresses::OwnAddress;

    fn own(addresses: &[&str]) -> OwnAddresses {
        let own =
            addresses.iter().map(|text| OwnAddress { addr: text.parse().unwrap(), interface: "eth0".into() });
        own.collect()
    }

    fn served(addresses: &NodeAddresses) -> Vec<String> {
        addresses.entries().keys().map(ToString::to_string).collect()
    }

    fn node(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// ND-1, ND-2, ND-3: what kube-proxy does by ending and starting again happens at run time.
    #[test]
    fn node_ports_follow_the_addresses_of_the_node_object() {
        let mut addresses = NodeAddresses::new(NodePortOptions::default());
        assert!(!addresses.set_node(&node(&["10.0.0.1"])), "the kernel was not asked yet");
        assert!(!addresses.are_known());
        assert!(addresses.set_own(own(&["10.0.0.1", "10.0.0.2", "fd00::1"])));
        assert_eq!(served(&addresses), ["10.0.0.1"]);
        assert!(!addresses.set_node(&node(&["10.0.0.1", "192.0.2.1"])), "the first one counts");
        assert!(addresses.set_node(&node(&["10.0.0.2", "fd00::1"])));
        assert_eq!(served(&addresses), ["10.0.0.2", "fd00::1"]);
        assert!(!addresses.set_node(&[]), "the last known ones stay");
        assert_eq!(served(&addresses), ["10.0.0.2", "fd00::1"]);
        assert!(addresses.set_node(&node(&["10.0.0.2"])), "one family was given up");
        assert_eq!(served(&addresses), ["10.0.0.2"]);
    }

    /// NP-6.
    #[test]
    fn node_ports_that_are_served_nowhere_are_named() {
        let idle = |on: &str, localhost, addresses: &[&str]| {
            let options =
                NodePortOptions { on: on.parse().unwrap(), localhost, ..NodePortOptions::default() };
            let mut chosen = NodeAddresses::new(options);
            assert_eq!(chosen.idle(), [""; 0], "the kernel was not asked yet");
            chosen.set_own(own(addresses));
            chosen.idle().join("\n")
        };
        let said = idle("127.0.0.0/8,::1/128", false, &["127.0.0.1", "10.0.0.1", "::1"]);
        let flag = "--nodeport-addresses 127.0.0.0/8,::1/128: ";
        let parts = [
            "127.0.0.0/8 serves none; loopback addresses are switched off: leave out --localhost-nodeports=false",
            "::1/128 serves none; ",
            "no address of this node serves NodePorts; ",
        ];
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), parts.len(), "{said}");
        for (line, part) in lines.iter().zip(parts) {
            assert!(line.starts_with(&format!("{flag}{part}")), "{line}");
        }
        assert_eq!(idle("127.0.0.0/8,::1/128", true, &["10.0.0.1"]), "");
        let said = idle("127.0.0.53/32,fd00::/64", true, &["10.0.0.1", "fd00::1"]);
        assert!(said.contains("only 127.0.0.1 and ::1 serve") && said.lines().count() == 1, "{said}");
        let said = idle("198.51.100.0/24,fd99::/64", true, &["10.0.0.1", "fd00::1"]);
        assert!(said.contains("no address of this node serves") && said.lines().count() == 1, "{said}");
        assert_eq!(idle("primary", false, &["10.0.0.1"]), "", "there every address serves");
    }

    /// NP-12.
    #[test]
    fn node_ports_follow_the_addresses_of_the_kernel() {
        let options =
            NodePortOptions { on: "10.0.0.0/8,fd00::/8".parse().unwrap(), ..NodePortOptions::default() };
        let mut addresses = NodeAddresses::new(options);
        assert!(addresses.set_own(own(&["10.0.0.1"])));
        assert!(!addresses.set_own(own(&["10.0.0.1", "192.0.2.1"])), "outside of the ranges");
        assert!(addresses.set_own(own(&["10.0.0.1", "10.0.0.2"])));
        assert_eq!(served(&addresses), ["10.0.0.1", "10.0.0.2"]);
        assert!(addresses.set_own(own(&["10.0.0.2"])));
        assert_eq!(served(&addresses), ["10.0.0.2"]);
    }
}
