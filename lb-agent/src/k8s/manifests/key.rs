//! What makes two objects of a folder the same one: kind, namespace and name.

use core::fmt;
use std::sync::Arc;

use super::parse::Object;
use crate::model::{Change, Event, ServiceName, SliceName};

/// The name of an object, with its kind.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Key {
    Service(ServiceName),
    Slice(SliceName),
    Node(Arc<str>),
}

impl Key {
    pub(super) fn of(object: &Object) -> Self {
        match object {
            Object::Service(service) => Self::Service(service.name.clone()),
            Object::Slice(slice) => Self::Slice(slice.name.clone()),
            Object::Node(node) => Self::Node(Arc::clone(&node.name)),
        }
    }

    pub(super) fn delete(self) -> Event {
        match self {
            Self::Service(name) => Event::Service(Change::Delete(name)),
            Self::Slice(name) => Event::Slice(Change::Delete(name)),
            Self::Node(name) => Event::Node(Change::Delete(name)),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "Service {name}"),
            Self::Slice(name) => write!(f, "EndpointSlice {name}"),
            Self::Node(name) => write!(f, "Node {name}"),
        }
    }
}
