//! The maps as the reconciler sees them, and three ways to have them: kernel, memory, memory with faults.
//!
//! ```text
//! Table   a hash: entries are created and deleted, never overwritten
//! Array   mmapable: aligned 8-byte words are loaded and stored, each whole
//! Grace   RCU grace periods: when may a freed slot, backend id or service id be reused
//! ```

pub mod contract;
pub mod counters;
pub mod grace;
pub mod kernel;
pub mod memory;
mod mmap;
pub mod pin;

pub mod sys;

use std::io;

use lb_common::abi::{Addr, Address, Device, Frontend, FrontendKey, RangePrefix, Words};

/// What was attempted on a map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Opening it, or its pin.
    Open,
    /// Reading entries.
    Read,
    /// Creating an entry.
    Create,
    /// Storing a word.
    Store,
    /// Deleting an entry.
    Delete,
    /// Waiting for an RCU grace period.
    Wait,
}

impl core::fmt::Display for Op {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Read => "read",
            Self::Create => "create an entry of",
            Self::Store => "store a word of",
            Self::Delete => "delete an entry of",
            Self::Wait => "wait with the",
        })
    }
}

/// Why a map did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The kernel answered `E2BIG`, or an index lies outside the array; retrying cannot help.
    #[error("{map} is full ({capacity} entries)")]
    Full {
        /// Name of the map.
        map: &'static str,
        /// Its `max_entries`.
        capacity: u32,
    },
    /// An entry to be created exists: somebody else writes this map.
    #[error("{map} already has the entry {key}")]
    Exists {
        /// Name of the map.
        map: &'static str,
        /// The key, for people.
        key: String,
    },
    /// Any other errno.
    #[error("cannot {op} {map}")]
    Kernel {
        /// Name of the map.
        map: &'static str,
        /// What was attempted.
        op: Op,
        /// The kernel's answer.
        #[source]
        errno: io::Error,
    },
}

/// A hash map. Values never change, because overwriting one in place lets a concurrent look-up miss an existing key.
pub trait Table<K, V>: Send {
    /// `max_entries`.
    fn capacity(&self) -> u32;
    /// Every entry, sorted by key.
    ///
    /// # Errors
    /// [`MapError::Kernel`].
    fn dump(&self) -> Result<Vec<(K, V)>, MapError>;
    /// Creates an entry.
    ///
    /// # Errors
    /// [`MapError::Exists`], [`MapError::Full`], [`MapError::Kernel`]; nothing was written.
    fn create(&mut self, key: &K, value: &V) -> Result<(), MapError>;
    /// Deletes an entry. A key that is not there counts as deleted.
    ///
    /// # Errors
    /// [`MapError::Kernel`].
    fn delete(&mut self, key: &K) -> Result<(), MapError>;
}

/// An array of 8-byte words that programs read concurrently. Entries are whole numbers of words.
pub trait Array: Send {
    /// Words in the whole array.
    fn words(&self) -> usize;
    /// The word at `index`, 0 if it lies outside.
    fn load(&self, index: usize) -> u64;
    /// Stores one word with release order: whoever sees it sees every earlier store.
    ///
    /// # Errors
    /// [`MapError::Full`] if `index` lies outside. Memory with faults: [`MapError::Kernel`].
    fn store(&mut self, index: usize, word: u64) -> Result<(), MapError>;

    /// Entries of `words_per_entry` words.
    fn entries(&self, words_per_entry: usize) -> u32 {
        u32::try_from(self.words() / words_per_entry).unwrap_or(u32::MAX)
    }
}

/// RCU grace periods, as tickets.
pub trait Grace: Send {
    /// Asks for a grace period that begins now. Tickets grow.
    fn request(&mut self) -> u64;
    /// The highest ticket whose grace period is over; tickets pass in order.
    fn passed(&self) -> u64;
    /// Blocks until `ticket` has passed.
    ///
    /// # Errors
    /// The kernel cannot wait now; it is tried again in the background, so a later call may succeed.
    fn wait(&mut self, ticket: u64) -> Result<(), MapError>;
}

/// Every map that the reconciler writes.
pub struct Maps {
    /// `lb_frontends`
    pub frontends: Box<dyn Table<FrontendKey, Frontend>>,
    /// `lb_addresses`
    pub addresses: Box<dyn Table<Addr, Address>>,
    /// `lb_services`
    pub services: Box<dyn Array>,
    /// `lb_slots`
    pub slots: Box<dyn Array>,
    /// `lb_backends`
    pub backends: Box<dyn Array>,
    /// `lb_config`
    pub config: Box<dyn Array>,
    /// `lb_devices`
    pub devices: Box<dyn Table<u32, Device>>,
    /// `lb_src_ranges`
    pub ranges: Box<dyn Table<RangePrefix, u32>>,
    /// `lb_ports`
    pub ports: Box<dyn Array>,
    /// `lb_meta`
    pub meta: Box<dyn Array>,
    /// Grace periods of the kernel that runs the programs.
    pub grace: Box<dyn Grace>,
}

/// The entry at `index` of an array of `N`-word values; zero words if it lies outside.
pub fn read<const N: usize, T: Words<N>>(array: &dyn Array, index: u32) -> T {
    let first = index as usize * N;
    T::from_words(core::array::from_fn(|word| array.load(first + word)))
}
