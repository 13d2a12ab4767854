//! Hash tables whose keys are names, addresses and ids of objects.
//!
//! The standard library's hasher took a tenth of the time of a fill. This one is seeded anew in every process too, so that whoever
//! chooses names and addresses cannot choose what collides.

/// A map.
pub(crate) type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::quality::RandomState>;

/// A set.
pub(crate) type HashSet<T> = std::collections::HashSet<T, foldhash::quality::RandomState>;
