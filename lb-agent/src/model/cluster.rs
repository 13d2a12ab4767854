//! What the cluster looks like now: the sum of all events.

use core::net::{IpAddr, SocketAddr};
use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;

use crate::hash::HashMap;

use super::unowned::UnownedFaults;
use super::{
    Change, Endpoint, Event, Fault, Name, Node, NodeContext, Protocol, Service, ServiceCidr, ServiceName,
    Slice, SliceName, SlicePort, Unowned,
};

use ipnet::IpNet;

/// Services with their slices, and the own Node.
///
/// Slices are kept with their owner, whether the Service is known yet or not (ES-3). The state depends only on which
/// objects there are, not on the order in which they came.
pub struct ClusterState {
    node: NodeContext,
    services: HashMap<ServiceName, Entry>,
    /// The Service that each slice is kept with: name only, the namespace is the same.
    owners: HashMap<SliceName, Name>,
    service_list: Listing<ServiceName>,
    slice_list: Listing<SliceName>,
    node_list: Listing<Arc<str>>,
    service_cidrs: BTreeMap<Name, Box<[IpNet]>>,
    /// Only for sources that list them: nothing until they say so.
    cidr_list: Option<Listing<Name>>,
    /// The slices of [`API_SERVICE`] when they last had an endpoint that may serve.
    api_slices: Vec<Slice>,
    unowned: UnownedFaults,
}

/// Namespace and name of the Service by which pods reach the API server, this agent among them.
const API_SERVICE: (&str, &str) = ("default", "kubernetes");

#[derive(Default)]
struct Entry {
    service: Option<Box<Service>>,
    /// Sorted by name.
    slices: Vec<Slice>,
}

/// Progress of the list of one kind.
struct Listing<K> {
    /// A list has been complete at some time.
    is_listed: bool,
    /// While a list is under way: what was there before and has not been seen in it.
    unseen: BTreeSet<K>,
}

// A derive would ask for `K: Default`.
impl<K> Default for Listing<K> {
    fn default() -> Self {
        Self { is_listed: false, unseen: BTreeSet::new() }
    }
}

impl<K: Ord> Listing<K> {
    fn restart(&mut self, known: impl Iterator<Item = K>) {
        self.unseen = known.collect();
    }

    fn seen(&mut self, key: &K) {
        self.unseen.remove(key);
    }

    fn complete(&mut self) -> BTreeSet<K> {
        self.is_listed = true;
        mem::take(&mut self.unseen)
    }
}

impl ClusterState {
    /// An empty state for the agent of node `name`.
    pub fn new(name: Arc<str>) -> Self {
        Self {
            node: NodeContext::new(name),
            services: HashMap::default(),
            owners: HashMap::default(),
            service_list: Listing::default(),
            slice_list: Listing::default(),
            node_list: Listing::default(),
            service_cidrs: BTreeMap::new(),
            cidr_list: None,
            api_slices: Vec::new(),
            unowned: UnownedFaults::default(),
        }
    }

    /// Takes in one event and adds the services whose entries may change to `touched`.
    ///
    /// A change that leaves everything as it was touches nothing. A Node change that matters to endpoint choice touches
    /// every Service (TP-8). A touched name may have no Service any more.
    pub fn apply(&mut self, event: Event, touched: &mut BTreeSet<ServiceName>) {
        match event {
            Event::Service(change) => self.apply_service(change, touched),
            Event::Slice(change) => self.apply_slice(change, touched),
            Event::Node(change) => self.apply_node(change, touched),
            Event::ServiceCidr(change) => self.apply_service_cidr(change),
        }
    }

    /// Whether Services, slices and the own Node have each been listed to the end once, and ServiceCIDRs where the
    /// source lists them (SY-1).
    pub fn is_complete(&self) -> bool {
        self.service_list.is_listed
            && self.slice_list.is_listed
            && self.node_list.is_listed
            && self.cidr_list.as_ref().is_none_or(|list| list.is_listed)
    }

    /// What cannot be used of objects that belong to no Service, by object.
    pub fn unowned_faults(&self) -> impl Iterator<Item = (&Unowned, &Fault)> {
        self.unowned.iter()
    }

    /// Those among them that are new since this was asked for last; nothing if none came or went.
    pub fn take_unowned_news(&mut self) -> Option<Vec<(Unowned, Fault)>> {
        self.unowned.take_news()
    }

    /// The ranges of all ServiceCIDRs.
    pub fn service_cidrs(&self) -> impl Iterator<Item = IpNet> {
        self.service_cidrs.values().flatten().copied()
    }

    /// Whether endpoints name nodes and neither they nor a Node object name this one (ND-5).
    pub fn lacks_own_node(&self) -> bool {
        let slices = || self.services.values().flat_map(|entry| &entry.slices);
        let mut nodes = slices().flat_map(Slice::endpoints).filter_map(|endpoint| endpoint.node()).peekable();
        self.node.node.is_none() && nodes.peek().is_some() && nodes.all(|node| *node != *self.node.name)
    }

    /// Names of the services there are, sorted. Slices without a Service do not count.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        let there = self.services.iter().filter(|(_, entry)| entry.service.is_some());
        let mut names: Vec<&ServiceName> = there.map(|(name, _)| name).collect();
        names.sort_unstable();
        names.into_iter()
    }

    /// How many services there are.
    pub fn service_count(&self) -> usize {
        self.services.values().filter(|entry| entry.service.is_some()).count()
    }

    /// A Service by name.
    pub fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.services.get(name)?.service.as_deref()
    }

    /// The slices that `name` owns, sorted by name, whether there is such a Service or not.
    pub fn slices_of(&self, name: &ServiceName) -> impl Iterator<Item = &Slice> {
        self.services.get(name).into_iter().flat_map(|entry| &entry.slices)
    }

    /// Whether a slice of `name` says that somebody serves UDP at this address, whether there is such a Service or not.
    pub fn serves_udp(&self, name: &ServiceName, at: SocketAddr) -> bool {
        self.slices_of(name).any(|slice| {
            let has_port = |port: &SlicePort| port.protocol == Protocol::Udp && port.port == at.port();
            let serves =
                |endpoint: &Endpoint<'_>| endpoint.addr() == at.ip() && endpoint.conditions().is_serving();
            slice.ports.iter().any(has_port) && slice.endpoints().any(|endpoint| serves(&endpoint))
        })
    }

    /// The slices that say who serves `name`: its own ones, but for the Service of the API server the last ones that named
    /// anybody (BS-8).
    ///
    /// An API server takes its address out of this Service before it ends. An agent that reaches it by this Service would
    /// cut itself off for good if it followed.
    pub fn serving_slices(&self, name: &ServiceName) -> impl Iterator<Item = &Slice> {
        let own = self.services.get(name).map_or(&[][..], |entry| &entry.slices);
        let slices = if is_api_service(name) && !has_server(own) { &self.api_slices } else { own };
        slices.iter()
    }

    /// The own node.
    pub const fn node(&self) -> &NodeContext {
        &self.node
    }

    fn apply_service(&mut self, change: Change<ServiceName, Service>, touched: &mut BTreeSet<ServiceName>) {
        match change {
            Change::Restart => {
                let known = self.services.iter().filter(|(_, entry)| entry.service.is_some());
                self.service_list.restart(known.map(|(name, _)| name.clone()));
            }
            Change::Apply(service) => {
                self.service_list.seen(&service.name);
                let name = service.name.clone();
                let entry = self.services.entry(name.clone()).or_default();
                if entry.service.as_deref() != Some(&service) {
                    entry.service = Some(Box::new(service));
                    touched.insert(name);
                }
            }
            // One that cannot be used has no name to be told by.
            Change::Delete(name) | Change::Refuse(name, _) => {
                self.service_list.seen(&name);
                self.drop_service(name, touched);
            }
            Change::Complete => {
                for name in self.service_list.complete() {
                    self.drop_service(name, touched);
                }
            }
        }
    }

    fn drop_service(&mut self, name: ServiceName, touched: &mut BTreeSet<ServiceName>) {
        let Some(entry) = self.services.get_mut(&name) else { return };
        let was_there = entry.service.take().is_some();
        if entry.slices.is_empty() {
            self.services.remove(&name);
        }
        if was_there {
            touched.insert(name);
        }
    }

    fn apply_slice(&mut self, change: Change<SliceName, Slice>, touched: &mut BTreeSet<ServiceName>) {
        match change {
            Change::Restart => {
                self.slice_list.restart(self.owners.keys().chain(self.unowned.slices()).cloned());
            }
            Change::Apply(slice) => {
                self.slice_list.seen(&slice.name);
                self.unowned.clear(Unowned::Slice(slice.name.clone()));
                self.put_slice(slice, touched);
            }
            Change::Refuse(name, fault) => {
                self.slice_list.seen(&name);
                self.drop_slice(&name, touched);
                self.unowned.set(Unowned::Slice(name), [fault].into());
            }
            Change::Delete(name) => {
                self.slice_list.seen(&name);
                self.drop_slice(&name, touched);
                self.unowned.clear(Unowned::Slice(name));
            }
            Change::Complete => {
                for name in self.slice_list.complete() {
                    self.drop_slice(&name, touched);
                    self.unowned.clear(Unowned::Slice(name));
                }
            }
        }
    }

    fn put_slice(&mut self, mut slice: Slice, touched: &mut BTreeSet<ServiceName>) {
        // Re-labelled: it leaves the old owner first (ES-3, ES-14).
        if self.owners.get(&slice.name).is_some_and(|owner| *owner != slice.service.name) {
            self.drop_slice(&slice.name.clone(), touched);
        }
        let entry = self.services.entry(slice.service.clone()).or_default();
        // The names of the Service and of its slices share their memory with each other where they can.
        if let Some(service) = &entry.service {
            slice.service = service.name.clone();
        } else if let Some(first) = entry.slices.first() {
            slice.service = first.service.clone();
        }
        let owner = slice.service.clone();
        match entry.slices.binary_search_by(|known| known.name.cmp(&slice.name)) {
            Ok(at) if entry.slices[at] == slice => return,
            Ok(at) => entry.slices[at] = slice,
            Err(at) => {
                self.owners.insert(slice.name.clone(), owner.name.clone());
                if entry.slices.len() == entry.slices.capacity() {
                    // Nearly every Service has one slice for each family; a vector by itself begins with four.
                    entry.slices.reserve_exact(entry.slices.len().max(1));
                }
                entry.slices.insert(at, slice);
            }
        }
        self.remember(&owner);
        touched.insert(owner);
    }

    /// Keeps the slices of the API server's Service while they name anybody.
    fn remember(&mut self, owner: &ServiceName) {
        if !is_api_service(owner) {
            return;
        }
        if let Some(entry) = self.services.get(owner)
            && has_server(&entry.slices)
        {
            self.api_slices.clone_from(&entry.slices);
        }
    }

    fn drop_slice(&mut self, name: &SliceName, touched: &mut BTreeSet<ServiceName>) {
        let Some(owner) = self.owners.remove(name) else { return };
        let owner = ServiceName { namespace: name.namespace.clone(), name: owner };
        if let Some(entry) = self.services.get_mut(&owner) {
            entry.slices.retain(|slice| slice.name != *name);
            if entry.slices.is_empty() && entry.service.is_none() {
                self.services.remove(&owner);
            }
        }
        self.remember(&owner);
        touched.insert(owner);
    }

    fn apply_node(&mut self, change: Change<Arc<str>, Node>, touched: &mut BTreeSet<ServiceName>) {
        match change {
            Change::Restart => {
                self.node_list.restart(self.node.node.iter().map(|node| Arc::clone(&node.name)));
            }
            Change::Apply(node) if node.name == self.node.name => {
                self.node_list.seen(&node.name);
                self.set_node(Some(node), touched);
            }
            Change::Delete(name) | Change::Refuse(name, _) if name == self.node.name => {
                self.node_list.seen(&name);
                self.set_node(None, touched);
            }
            Change::Apply(_) | Change::Delete(_) | Change::Refuse(..) => {}
            Change::Complete => {
                if !self.node_list.complete().is_empty() {
                    self.set_node(None, touched);
                }
            }
        }
    }

    fn apply_service_cidr(&mut self, change: Change<Name, ServiceCidr>) {
        let list = self.cidr_list.get_or_insert_default();
        match change {
            Change::Restart => list.restart(self.service_cidrs.keys().cloned()),
            Change::Apply(ServiceCidr { name, ranges, faults }) => {
                list.seen(&name);
                self.unowned.set(Unowned::ServiceCidr(name.clone()), faults);
                self.service_cidrs.insert(name, ranges);
            }
            Change::Delete(name) | Change::Refuse(name, _) => {
                list.seen(&name);
                self.service_cidrs.remove(&name);
                self.unowned.clear(Unowned::ServiceCidr(name));
            }
            Change::Complete => {
                for name in list.complete() {
                    self.service_cidrs.remove(&name);
                    self.unowned.clear(Unowned::ServiceCidr(name));
                }
            }
        }
    }

    fn set_node(&mut self, node: Option<Node>, touched: &mut BTreeSet<ServiceName>) {
        let faults = node.as_ref().map(|node| node.faults.clone()).unwrap_or_default();
        self.unowned.set(Unowned::Node(Arc::clone(&self.node.name)), faults);
        let before = mem::replace(&mut self.node.node, node);
        if before.as_ref().and_then(|node| node.zone.as_deref()) != self.node.zone() {
            touched.extend(self.services().cloned());
        }
    }

    /// Takes in the addresses that stand for this node, and adds the Services whose source ranges may hold them (SR-3) to `touched`.
    pub fn set_primary(&mut self, primary: [Option<IpAddr>; 2], touched: &mut BTreeSet<ServiceName>) {
        if mem::replace(&mut self.node.primary, primary) != primary {
            let there = self.services.values().filter_map(|entry| entry.service.as_deref());
            let restricted = there.filter(|service| service.source_ranges.iter().next().is_some());
            touched.extend(restricted.map(|service| service.name.clone()));
        }
    }

    /// Takes in the addresses on interfaces of this node, with the interfaces, and adds the Services whose cluster IP
    /// came to be among them or left to `touched`.
    pub fn set_own_addresses(&mut self, own: BTreeMap<IpAddr, Name>, touched: &mut BTreeSet<ServiceName>) {
        let before = mem::replace(&mut self.node.own, own);
        let own = &self.node.own;
        let came_or_left = |addr: &IpAddr| before.contains_key(addr) != own.contains_key(addr);
        if before.keys().chain(own.keys()).any(came_or_left) {
            let there = self.services.values().filter_map(|entry| entry.service.as_deref());
            let meant = there.filter(|service| service.cluster_ips.iter().any(|addr| came_or_left(&addr)));
            touched.extend(meant.map(|service| service.name.clone()));
        }
    }

    /// The cluster IPs that are left alone on this node, each with its interface, sorted.
    pub fn left_alone(&self) -> Vec<(&ServiceName, IpAddr, &Name)> {
        let there = self.services.values().filter_map(|entry| entry.service.as_deref());
        let mut found: Vec<_> = there
            .filter(|service| service.is_proxied())
            .flat_map(|service| service.cluster_ips.iter().map(move |addr| (&service.name, addr)))
            .filter_map(|(name, addr)| Some((name, addr, self.node.own.get(&addr)?)))
            .collect();
        found.sort_unstable();
        found
    }
}

fn is_api_service(name: &ServiceName) -> bool {
    (name.namespace.as_str(), name.name.as_str()) == API_SERVICE
}

/// Whether an endpoint is ready, or serves until it has ended (TE-2).
fn has_server(slices: &[Slice]) -> bool {
    slices.iter().flat_map(Slice::endpoints).any(|endpoint| {
        let conditions = endpoint.conditions();
        conditions.is_ready() || (conditions.is_terminating() && conditions.is_serving())
    })
}
