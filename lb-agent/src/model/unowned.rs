//! What cannot be used of objects that belong to no Service: a slice without an owner, the own Node, a ServiceCIDR.

use core::{fmt, mem};
use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Fault, Few, Name, SliceName};

/// An object whose faults no Service has.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Unowned {
    /// An `EndpointSlice` that names no Service (ES-2).
    Slice(SliceName),
    /// The own Node.
    Node(Arc<str>),
    /// A ServiceCIDR.
    ServiceCidr(Name),
}

impl fmt::Display for Unowned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slice(name) => write!(f, "endpointslice {name}"),
            Self::Node(name) => write!(f, "node {name}"),
            Self::ServiceCidr(name) => write!(f, "servicecidr {name}"),
        }
    }
}

/// The faults of all such objects, and which of them are news.
#[derive(Debug, Default)]
pub(super) struct UnownedFaults {
    known: BTreeMap<Unowned, Few<Fault>>,
    news: Vec<(Unowned, Fault)>,
    has_changed: bool,
}

impl UnownedFaults {
    /// `object` has these faults now. One that it had before is no news, however often the object changes.
    pub(super) fn set(&mut self, object: Unowned, faults: Few<Fault>) {
        let before = self.known.remove(&object).unwrap_or_default();
        self.has_changed |= before != faults;
        let new = faults.iter().filter(|fault| !before.contains(fault));
        self.news.extend(new.map(|fault| (object.clone(), fault.clone())));
        if !faults.is_empty() {
            self.known.insert(object, faults);
        }
    }

    /// `object` is gone, or has none any more.
    pub(super) fn clear(&mut self, object: Unowned) {
        self.set(object, Few::default());
    }

    /// All of them, by object.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Unowned, &Fault)> {
        self.known.iter().flat_map(|(object, faults)| faults.iter().map(move |fault| (object, fault)))
    }

    /// The slices among the objects.
    pub(super) fn slices(&self) -> impl Iterator<Item = &SliceName> {
        self.known.keys().filter_map(|object| match object {
            Unowned::Slice(name) => Some(name),
            Unowned::Node(_) | Unowned::ServiceCidr(_) => None,
        })
    }

    /// What is new since it was asked for last; nothing if nothing has changed, so also when a fault is gone.
    pub(super) fn take_news(&mut self) -> Option<Vec<(Unowned, Fault)>> {
        mem::take(&mut self.has_changed).then(|| mem::take(&mut self.news))
    }
}
