//! The node this agent runs on.

use core::net::IpAddr;
use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Family, Fault, Few, Name};

/// The own Node object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Name; equal to `nodeName` in slices (ND-5).
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`; absent and empty are the same (TP-4).
    pub zone: Option<Name>,
    /// `status.addresses` that are IP addresses: `InternalIP` before `ExternalIP`, each in the order of the object,
    /// so the first of a family is the primary one (NP-3).
    pub addresses: Box<[IpAddr]>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Box<[IpNet]>,
    /// Being deleted, or tainted by the cluster autoscaler: cloud load balancers should leave it (HZ-4).
    pub is_draining: bool,
    /// Fields of the object that could not be used.
    pub faults: Few<Fault>,
}

impl Node {
    /// A Node that says nothing but its name.
    pub fn new(name: Arc<str>) -> Self {
        Self {
            name,
            zone: None,
            addresses: Box::default(),
            pod_cidrs: Box::default(),
            is_draining: false,
            faults: Few::default(),
        }
    }
}

/// What is known of the own node. The name comes from the configuration, so it is known before the Node object is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeContext {
    /// Name of the own node.
    pub name: Arc<str>,
    /// The Node object, once it has been seen and as long as it exists.
    pub node: Option<Node>,
    /// The addresses that stand for this node, IPv4 and IPv6 (ND-3): the configured ones, else the first ones of the Node object, of
    /// which the last known ones stay.
    pub primary: [Option<IpAddr>; 2],
    /// Addresses on interfaces of this node, with the interface. A cluster IP among them is left alone on this node:
    /// whoever put it there serves it, as a node-local DNS cache does (design.md 3).
    pub own: BTreeMap<IpAddr, Name>,
}

impl NodeContext {
    /// Only the name is known.
    pub const fn new(name: Arc<str>) -> Self {
        Self { name, node: None, primary: [None; 2], own: BTreeMap::new() }
    }

    /// The zone, if the Node object is known and names one.
    pub fn zone(&self) -> Option<&str> {
        self.node.as_ref()?.zone.as_deref()
    }

    /// The address that stands for this node in a family.
    pub const fn primary(&self, family: Family) -> Option<IpAddr> {
        let [v4, v6] = self.primary;
        match family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }

    /// Addresses of the Node object, primary ones first in their family.
    pub fn addresses(&self) -> &[IpAddr] {
        self.node.as_ref().map_or(&[], |node| &node.addresses)
    }
}
