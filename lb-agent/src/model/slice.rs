//! An `EndpointSlice`, packed: 28 bytes per endpoint and each name once per slice.
//!
//! [`SliceBuilder`] packs, [`Slice::endpoints`] reads back. Node and zone names are indexes into a table of the slice,
//! whose strings the source shares between slices ([`Names`](super::Names)).

use core::net::IpAddr;
use core::num::NonZeroI64;

use crate::hash::HashMap;

use super::{Family, Fault, Few, Name, Protocol, ServiceName, SliceName};

/// Conditions of an endpoint with the defaults of ES-8 applied.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Conditions(u8);

impl Conditions {
    const READY: u8 = 1;
    const SERVING: u8 = 2;
    const TERMINATING: u8 = 4;

    /// `None` means the field is absent: ready, serving and not terminating (ES-8).
    pub const fn new(ready: Option<bool>, serving: Option<bool>, terminating: Option<bool>) -> Self {
        let mut bits = 0;
        if !matches!(ready, Some(false)) {
            bits |= Self::READY;
        }
        if !matches!(serving, Some(false)) {
            bits |= Self::SERVING;
        }
        if matches!(terminating, Some(true)) {
            bits |= Self::TERMINATING;
        }
        Self(bits)
    }

    /// May get new connections. Can be true together with terminating (ES-16).
    pub const fn is_ready(self) -> bool {
        self.0 & Self::READY != 0
    }

    /// Passes its readiness probe, terminating or not.
    pub const fn is_serving(self) -> bool {
        self.0 & Self::SERVING != 0
    }

    /// Its pod is being deleted.
    pub const fn is_terminating(self) -> bool {
        self.0 & Self::TERMINATING != 0
    }
}

/// One entry of `ports`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SlicePort {
    /// Name; matches the Service port of the same name and protocol (ES-4).
    pub name: Name,
    /// Protocol; TCP when absent (ES-5).
    pub protocol: Protocol,
    /// Port of the endpoints, host byte order, never 0.
    pub port: u16,
}

/// An endpoint before it is packed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointFacts {
    /// `addresses[0]` (ES-6).
    pub addr: IpAddr,
    /// `conditions`.
    pub conditions: Conditions,
    /// `nodeName`; empty counts as absent.
    pub node: Option<Name>,
    /// `hints.forZones[].name`.
    pub zone_hints: Vec<Name>,
    /// `hints.forNodes[].name`.
    pub node_hints: Vec<Name>,
}

/// No entry in the table that an index points into.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Packed {
    addr: IpAddr,
    conditions: Conditions,
    /// Index into `Slice::names`, or [`NONE`].
    node: u32,
    /// Index into `Slice::hints` where the set begins, or [`NONE`].
    hints: u32,
}

/// When the change happened that an object tells of; 8 bytes.
///
/// It says nothing about what the object means, so two objects that differ in it alone are equal, and the second changes nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trigger(Option<NonZeroI64>);

impl Trigger {
    /// So many microseconds after 1970; 0 means that it is not known.
    pub const fn at(unix_us: i64) -> Self {
        Self(NonZeroI64::new(unix_us))
    }

    /// Microseconds after 1970, if it is known.
    pub fn unix_us(self) -> Option<i64> {
        self.0.map(NonZeroI64::get)
    }
}

impl PartialEq for Trigger {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Trigger {}

/// An `EndpointSlice` of family IPv4 or IPv6 with an owner. Others never get here (ES-1, ES-2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slice {
    /// Namespace and name.
    pub name: SliceName,
    /// The owner: label `kubernetes.io/service-name` in the namespace of the slice (ES-2).
    pub service: ServiceName,
    /// `addressType`.
    pub family: Family,
    /// `ports` that can be used. Every endpoint of the slice has all of them.
    pub ports: Box<[SlicePort]>,
    /// Fields of the object that could not be used.
    pub faults: Few<Fault>,
    /// Annotation `endpoints.kubernetes.io/last-change-trigger-time` (ES-17).
    pub trigger: Trigger,
    endpoints: Box<[Packed]>,
    /// Node and zone names of this slice, each once.
    names: Box<[Name]>,
    /// Sets of hints, each once: number of zones, number of nodes, then that many indexes into `names`.
    hints: Few<u32>,
}

impl Slice {
    /// A slice of which nothing can be used, for its Service to say so: without endpoints, its family means nothing.
    pub fn unusable(name: SliceName, service: ServiceName, fault: Fault) -> Self {
        let mut builder = SliceBuilder::new(name, service, Family::V4);
        builder.faults([fault]);
        builder.build()
    }

    /// The endpoints, in the order of the object.
    pub fn endpoints(&self) -> impl ExactSizeIterator<Item = Endpoint<'_>> {
        self.endpoints.iter().map(|packed| Endpoint { slice: self, packed })
    }

    /// The zone hints and the node hints of a set, as indexes into `names`.
    fn hint_set(&self, at: u32) -> (&[u32], &[u32]) {
        let [zones, nodes, rest @ ..] = self.hints.get(at as usize..).unwrap_or_default() else {
            return (&[], &[]);
        };
        let (zones, nodes) = (*zones as usize, *nodes as usize);
        (rest.get(..zones).unwrap_or_default(), rest.get(zones..zones + nodes).unwrap_or_default())
    }
}

/// One endpoint of a [`Slice`].
#[derive(Clone, Copy)]
pub struct Endpoint<'a> {
    slice: &'a Slice,
    packed: &'a Packed,
}

impl<'a> Endpoint<'a> {
    /// Address; of the family of the slice.
    pub const fn addr(&self) -> IpAddr {
        self.packed.addr
    }

    /// Conditions.
    pub const fn conditions(&self) -> Conditions {
        self.packed.conditions
    }

    /// The node it runs on, if the slice says so (ES-9).
    pub fn node(&self) -> Option<&'a str> {
        self.slice.names.get(self.packed.node as usize).map(Name::as_str)
    }

    /// Zones that should use it.
    pub fn zone_hints(&self) -> impl ExactSizeIterator<Item = &'a str> {
        let names = &self.slice.names;
        self.slice.hint_set(self.packed.hints).0.iter().map(|&at| &*names[at as usize])
    }

    /// Nodes that should use it.
    pub fn node_hints(&self) -> impl ExactSizeIterator<Item = &'a str> {
        let names = &self.slice.names;
        self.slice.hint_set(self.packed.hints).1.iter().map(|&at| &*names[at as usize])
    }
}

/// So many names are searched one by one; an index pays with more.
const FEW_NAMES: usize = 8;

/// Packs a [`Slice`].
pub struct SliceBuilder {
    slice: Slice,
    endpoints: Vec<Packed>,
    names: Vec<Name>,
    /// Where the names are, once they are more than [`FEW_NAMES`].
    name_index: HashMap<Name, u32>,
    hints: Vec<u32>,
    hint_index: HashMap<Vec<u32>, u32>,
}

impl SliceBuilder {
    /// A slice without ports and endpoints.
    pub fn new(name: SliceName, service: ServiceName, family: Family) -> Self {
        let slice = Slice {
            name,
            service,
            family,
            ports: Box::default(),
            faults: Few::default(),
            trigger: Trigger::default(),
            endpoints: Box::default(),
            names: Box::default(),
            hints: Few::default(),
        };
        Self {
            slice,
            endpoints: Vec::new(),
            names: Vec::new(),
            name_index: HashMap::default(),
            hints: Vec::new(),
            hint_index: HashMap::default(),
        }
    }

    /// Sets the ports.
    pub fn ports(&mut self, ports: impl Into<Box<[SlicePort]>>) -> &mut Self {
        self.slice.ports = ports.into();
        self
    }

    /// Makes room for so many more endpoints.
    pub fn reserve(&mut self, endpoints: usize) -> &mut Self {
        self.endpoints.reserve_exact(endpoints);
        self
    }

    /// Sets what could not be used.
    pub fn faults(&mut self, faults: impl Into<Few<Fault>>) -> &mut Self {
        self.slice.faults = faults.into();
        self
    }

    /// Sets when the change happened that the slice tells of.
    pub const fn trigger(&mut self, trigger: Trigger) -> &mut Self {
        self.slice.trigger = trigger;
        self
    }

    /// Adds an endpoint. An address of the other family is left out: the caller has reported it.
    pub fn endpoint(&mut self, facts: &EndpointFacts) -> &mut Self {
        if Family::of(&facts.addr) == self.slice.family {
            let node = facts.node.as_ref().map_or(NONE, |node| self.name_at(node));
            let hints = self.hints_at(facts);
            self.endpoints.push(Packed { addr: facts.addr, conditions: facts.conditions, node, hints });
        }
        self
    }

    /// The packed slice.
    pub fn build(self) -> Slice {
        Slice {
            endpoints: self.endpoints.into(),
            names: self.names.into(),
            hints: self.hints.into(),
            ..self.slice
        }
    }

    fn name_at(&mut self, name: &Name) -> u32 {
        let known = if self.names.len() <= FEW_NAMES {
            self.names.iter().position(|known| known == name).map(index)
        } else {
            self.name_index.get(name).copied()
        };
        known.unwrap_or_else(|| {
            let at = index(self.names.len());
            self.names.push(name.clone());
            if self.names.len() > FEW_NAMES {
                // The first time, those that needed no index until now; then the new one alone.
                let from = if self.name_index.is_empty() { 0 } else { at };
                self.name_index.extend(
                    (from..).zip(self.names.iter().skip(from as usize)).map(|(at, name)| (name.clone(), at)),
                );
            }
            at
        })
    }

    fn hints_at(&mut self, facts: &EndpointFacts) -> u32 {
        if facts.zone_hints.is_empty() && facts.node_hints.is_empty() {
            return NONE;
        }
        let mut set = vec![index(facts.zone_hints.len()), index(facts.node_hints.len())];
        for name in facts.zone_hints.iter().chain(&facts.node_hints) {
            let at = self.name_at(name);
            set.push(at);
        }
        if let Some(&at) = self.hint_index.get(&set) {
            return at;
        }
        let at = index(self.hints.len());
        self.hints.extend_from_slice(&set);
        self.hint_index.insert(set, at);
        at
    }
}

/// A position in a table of one slice. The tables are far smaller: an object of four billion names would not fit into
/// any request or file that a source reads.
fn index(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(NONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_takes_28_bytes() {
        assert_eq!(size_of::<Packed>(), 28);
    }

    /// ES-8.
    #[test]
    fn absent_conditions_mean_ready_serving_and_not_terminating() {
        let absent = Conditions::new(None, None, None);
        assert!(absent.is_ready() && absent.is_serving() && !absent.is_terminating());
        let denied = Conditions::new(Some(false), Some(false), Some(true));
        assert!(!denied.is_ready() && !denied.is_serving() && denied.is_terminating());
    }

    #[test]
    fn packing_keeps_every_fact_and_stores_a_name_once() {
        let facts = |last: u8, node: Option<&str>, zones: &[&str], nodes: &[&str]| EndpointFacts {
            addr: IpAddr::from([10, 0, 0, last]),
            conditions: Conditions::new(None, None, Some(last == 3)),
            node: node.map(Into::into),
            zone_hints: zones.iter().map(|&name| name.into()).collect(),
            node_hints: nodes.iter().map(|&name| name.into()).collect(),
        };
        let given = [
            facts(1, Some("n1"), &["a", "b"], &["n1"]),
            facts(2, None, &[], &[]),
            facts(3, Some("n2"), &["a", "b"], &["n1"]),
            facts(4, Some("n1"), &[], &["n2"]),
        ];
        let mut builder =
            SliceBuilder::new(SliceName::new("ns", "s-1"), ServiceName::new("ns", "s"), Family::V4);
        for facts in &given {
            builder.endpoint(facts);
        }
        let slice = builder.build();
        let read: Vec<EndpointFacts> = slice
            .endpoints()
            .map(|endpoint| EndpointFacts {
                addr: endpoint.addr(),
                conditions: endpoint.conditions(),
                node: endpoint.node().map(Into::into),
                zone_hints: endpoint.zone_hints().map(Into::into).collect(),
                node_hints: endpoint.node_hints().map(Into::into).collect(),
            })
            .collect();
        assert_eq!(read, given);
        assert_eq!(slice.names.len(), 4);
        assert_eq!(slice.hints.len(), 5 + 3);
    }
}
