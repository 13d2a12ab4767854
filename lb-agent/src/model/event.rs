//! What a source says.

use std::sync::Arc;

use ipnet::IpNet;

use super::{Fault, Few, Name, Node, Service, ServiceName, Slice, SliceName};

/// One step of the stream of one kind.
///
/// A stream begins with `Restart`. After `Complete` the state equals the listed objects; between the two, objects of an
/// earlier list stay in force.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change<K, V> {
    /// A complete list begins.
    Restart,
    /// The object is there, new or changed.
    Apply(V),
    /// The object is there and cannot be used at all: as good as gone, and named.
    Refuse(K, Fault),
    /// The object is gone.
    Delete(K),
    /// What was not applied since the last `Restart` is gone.
    Complete,
}

/// A ServiceCIDR: ranges of addresses that cluster IPs are taken from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceCidr {
    /// `metadata.name`.
    pub name: Name,
    /// `spec.cidrs` that can be used.
    pub ranges: Box<[IpNet]>,
    /// Those that cannot.
    pub faults: Few<Fault>,
}

/// A change of one of the kinds that decide where traffic goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A Service.
    Service(Change<ServiceName, Service>),
    /// An `EndpointSlice`.
    Slice(Change<SliceName, Slice>),
    /// The own Node; others are ignored.
    Node(Change<Arc<str>, Node>),
    /// A ServiceCIDR. Sources that cannot list them never say `Restart` or say `Complete` at once.
    ServiceCidr(Change<Name, ServiceCidr>),
}
