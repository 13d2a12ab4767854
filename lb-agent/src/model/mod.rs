//! The agent's own words for what Kubernetes says: small values without API types, byte order or map ids.
//!
//! ```text
//! source (k8s/)  --Event-->  ClusterState  --service, slices, node-->  compile/
//! ```
//!
//! [`ClusterState`] is the only thing that remembers. It holds what was listed, knows whether every kind has been
//! listed once, and says which services an [`Event`] touches.
//!
//! *Invariant:* no I/O, no clock, no logging, no API types. Names that repeat are shared through [`Names`].
//!
//! Held by property tests of the same name: `any_event_order_with_the_same_end_gives_the_same_state`,
//! `complete_drops_what_was_not_listed_again`.

#[cfg(test)]
pub(crate) mod arbitrary;
mod cluster;
mod event;
mod few;
mod names;
mod node;
mod notice;
mod service;
mod slice;
#[cfg(test)]
mod tests;
mod unowned;

pub use cluster::ClusterState;
pub use event::{Change, Event, ServiceCidr};
pub use few::Few;
pub use names::{Name, Names, ServiceName, SliceName};
pub use node::{Node, NodeContext};
pub use notice::{Fault, Notice, Reason};
pub use service::{
    ALGORITHM, Algorithm, ClusterIps, Family, Protocol, Service, ServicePort, ServiceType, TrafficPolicy,
    UnknownAlgorithm,
};
pub use slice::{Conditions, Endpoint, EndpointFacts, Slice, SliceBuilder, SlicePort, Trigger};
pub use unowned::Unowned;
