//! Names of objects, and the table that shares the ones that repeat.

use core::cmp::Ordering;
use core::fmt;

use arcstr::ArcStr;

use crate::hash::HashSet;

/// A string that is shared and does not change; one pointer wide.
pub type Name = ArcStr;

/// Namespace and name of a Service.
///
/// A clone copies two pointers. Ordered by namespace, then name.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ServiceName {
    /// Namespace.
    pub namespace: Name,
    /// Name inside the namespace.
    pub name: Name,
}

impl ServiceName {
    /// A name that shares nothing yet; sources use [`Names::service`].
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Ord for ServiceName {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(&self.namespace, &other.namespace).then_with(|| self.name.cmp(&other.name))
    }
}

impl PartialOrd for ServiceName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Compares names that are nearly always one and the same, and then shared.
fn compare(one: &Name, other: &Name) -> Ordering {
    if Name::ptr_eq(one, other) { Ordering::Equal } else { one.cmp(other) }
}

/// Namespace and name of an `EndpointSlice`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SliceName {
    /// Namespace; the owning Service is in the same one (ES-2).
    pub namespace: Name,
    /// Name inside the namespace. It says nothing about the owner.
    pub name: Name,
}

impl SliceName {
    /// A name that shares nothing yet; sources use [`Names::slice`].
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for SliceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for SliceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Ord for SliceName {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(&self.namespace, &other.namespace).then_with(|| self.name.cmp(&other.name))
    }
}

impl PartialOrd for SliceName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Shares the strings that many objects repeat: namespaces, port names, nodes, zones.
///
/// Held by a source, not by the model: equal names are equal whether they are shared or not.
#[derive(Default)]
pub struct Names {
    known: HashSet<Name>,
    /// The table drops names that nobody uses any more when it has grown to this size.
    sweep_at: usize,
}

/// Below this size a sweep cannot free anything worth the walk.
const SWEEP_FLOOR: usize = 1024;

impl Names {
    /// The shared copy of `text`.
    pub fn share(&mut self, text: &str) -> Name {
        if let Some(known) = self.known.get(text) {
            return known.clone();
        }
        if self.known.len() >= self.sweep_at.max(SWEEP_FLOOR) {
            self.known.retain(|name| Name::strong_count(name).is_none_or(|holders| holders > 1));
            self.sweep_at = self.known.len() * 2;
        }
        let fresh: Name = text.into();
        self.known.insert(fresh.clone());
        fresh
    }

    /// A Service name with a shared namespace. The name itself occurs once per Service and is not kept here.
    pub fn service(&mut self, namespace: &str, name: &str) -> ServiceName {
        ServiceName { namespace: self.share(namespace), name: name.into() }
    }

    /// A slice name with a shared namespace.
    pub fn slice(&mut self, namespace: &str, name: &str) -> SliceName {
        SliceName { namespace: self.share(namespace), name: name.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_name_is_stored_once() {
        let mut names = Names::default();
        assert!(Name::ptr_eq(&names.share("kube-system"), &names.share("kube-system")));
    }

    #[test]
    fn names_that_nobody_uses_are_swept() {
        let mut names = Names::default();
        let kept = names.share("kept");
        for n in 0..SWEEP_FLOOR * 4 {
            drop(names.share(&n.to_string()));
        }
        assert!(names.known.len() <= SWEEP_FLOOR);
        assert!(Name::ptr_eq(&kept, &names.share("kept")));
    }
}
