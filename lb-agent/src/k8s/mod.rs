//! Where objects come from: an API server or a folder of manifests, both through the same conversion.
//!
//! ```text
//! connect.rs, api.rs   list and watch     \
//!                                          >  service.rs, slice.rs, ..  -->  model::Event
//! manifests/           read, read again   /
//! events.rs            the way back: Events for Services and the own Node
//! ```
//!
//! Objects are converted at the edge and dropped; nothing behind this module knows an API type. Conversion is pure and
//! total: a field that cannot be used becomes a [`Fault`] of the result, an object that cannot be used
//! at all is [`Refused`].
//!
//! *Invariant:* only this module names `kube` or `k8s_openapi`.

pub mod api;
#[cfg(test)]
mod api_tests;
mod connect;
pub mod events;
mod fields;
mod heard;
pub mod manifests;
mod node;
mod outage;
mod pace;
mod select;
mod service;
mod service_cidr;
#[cfg(test)]
mod service_tests;
mod slice;
#[cfg(test)]
mod tests;
mod transport;

pub use connect::{Access, ConnectError, connect};
pub use node::node;
pub use select::Interest;
pub use service::service;
pub use service_cidr::service_cidr;
pub use slice::slice;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::model::{Fault, Reason};

/// Why an object as a whole is not taken in.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// `metadata.name` is missing.
    #[error("the object has no metadata.name")]
    NoName,
    /// A slice without an owner (ES-2).
    #[error("the EndpointSlice has no label kubernetes.io/service-name")]
    NoOwner,
    /// A slice of host names or of an unknown type (ES-1).
    #[error("addressType {0:?} is neither IPv4 nor IPv6")]
    AddressType(Box<str>),
}

impl Refused {
    /// The same as a fault of a field.
    fn fault(self) -> Fault {
        match self {
            Self::NoName => Fault::new("metadata.name", Reason::NoName),
            Self::NoOwner => Fault::new("metadata.labels", Reason::NoOwner),
            Self::AddressType(text) => Fault::new("addressType", Reason::AddressType(text)),
        }
    }
}

/// The namespace of an object; where none is given, the one kubectl would use.
fn namespace(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or("default")
}
