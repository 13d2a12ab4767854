//! Maps in memory, with faults on request: every failure that the kernel can give, and a stop after any write.

use core::fmt::Debug;
use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use lb_common::abi::{
    Addr, Address, Backend, Config, Device, Frontend, FrontendKey, PortList, RangePrefix, Service, Slot,
    maps, meta,
};

use super::{Array, Grace, MapError, Maps, Op, Table};

/// Decides which writes of a set of maps fail. Clones share their state.
///
/// A process can stop after any write. Other failures are those of system calls: storing a word of mapped memory has none.
#[derive(Clone, Debug)]
pub struct Faults {
    /// Writes that still succeed; every later one fails, as if the process had stopped there.
    left: Arc<AtomicU64>,
    /// Out of 65,536: how many system calls fail at random.
    random: Arc<AtomicU64>,
    /// State of the generator behind `random`.
    seed: Arc<AtomicU64>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            left: Arc::new(AtomicU64::new(u64::MAX)),
            random: Arc::new(AtomicU64::new(0)),
            seed: Arc::new(AtomicU64::new(1)),
        }
    }
}

impl Faults {
    /// Lets `writes` more writes succeed and none after them.
    pub fn stop_after(&self, writes: u64) {
        self.left.store(writes, Ordering::Relaxed);
    }

    /// Lets `out_of_65536` of all writes to tables fail, chosen by `seed`.
    pub fn fail_randomly(&self, out_of_65536: u64, seed: u64) {
        self.random.store(out_of_65536, Ordering::Relaxed);
        self.seed.store(seed | 1, Ordering::Relaxed);
    }

    /// No faults from now on.
    pub fn heal(&self) {
        self.stop_after(u64::MAX);
        self.fail_randomly(0, 1);
    }

    /// Writes that succeeded since `stop_after(writes)`.
    pub fn used_of(&self, writes: u64) -> u64 {
        writes - self.left.load(Ordering::Relaxed)
    }

    fn check(&self, map: &'static str, op: Op) -> Result<(), MapError> {
        let left = self.left.load(Ordering::Relaxed);
        // Knuth's MMIX generator; its high bits are the random ones.
        let seed = self
            .seed
            .load(Ordering::Relaxed)
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.seed.store(seed, Ordering::Relaxed);
        let is_refused = op != Op::Store && (seed >> 48) < self.random.load(Ordering::Relaxed);
        if left == 0 || is_refused {
            return Err(MapError::Kernel { map, op, errno: io::Error::from_raw_os_error(libc::ENOMEM) });
        }
        if left != u64::MAX {
            self.left.store(left - 1, Ordering::Relaxed);
        }
        Ok(())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A hash in memory. Clones share the entries.
#[derive(Clone, Debug)]
pub struct MemTable<K, V> {
    name: &'static str,
    capacity: u32,
    entries: Arc<Mutex<BTreeMap<K, V>>>,
    faults: Faults,
}

impl<K: Clone, V: Clone> MemTable<K, V> {
    fn copy(&self, faults: &Faults) -> Self {
        let entries = Arc::new(Mutex::new(locked(&self.entries).clone()));
        Self { name: self.name, capacity: self.capacity, entries, faults: faults.clone() }
    }
}

impl<K: Copy + Ord + Debug + Send, V: Copy + Send> Table<K, V> for MemTable<K, V> {
    fn capacity(&self) -> u32 {
        self.capacity
    }

    fn dump(&self) -> Result<Vec<(K, V)>, MapError> {
        Ok(locked(&self.entries).iter().map(|(key, value)| (*key, *value)).collect())
    }

    fn create(&mut self, key: &K, value: &V) -> Result<(), MapError> {
        let mut entries = locked(&self.entries);
        if entries.contains_key(key) {
            return Err(MapError::Exists { map: self.name, key: format!("{key:?}") });
        }
        if entries.len() >= self.capacity as usize {
            return Err(MapError::Full { map: self.name, capacity: self.capacity });
        }
        self.faults.check(self.name, Op::Create)?;
        entries.insert(*key, *value);
        Ok(())
    }

    fn delete(&mut self, key: &K) -> Result<(), MapError> {
        let mut entries = locked(&self.entries);
        if entries.contains_key(key) {
            self.faults.check(self.name, Op::Delete)?;
            entries.remove(key);
        }
        Ok(())
    }
}

/// An array in memory. Clones share the words.
#[derive(Clone, Debug)]
pub struct MemArray {
    name: &'static str,
    entries: u32,
    words: Arc<[AtomicU64]>,
    faults: Faults,
}

impl MemArray {
    fn new(name: &'static str, entries: u32, words_per_entry: usize, faults: &Faults) -> Self {
        let words = (0..entries as usize * words_per_entry).map(|_| AtomicU64::new(0)).collect();
        Self { name, entries, words, faults: faults.clone() }
    }

    fn copy(&self, faults: &Faults) -> Self {
        let words = self.words.iter().map(|word| AtomicU64::new(word.load(Ordering::Acquire))).collect();
        Self { name: self.name, entries: self.entries, words, faults: faults.clone() }
    }
}

impl Array for MemArray {
    fn words(&self) -> usize {
        self.words.len()
    }

    fn load(&self, index: usize) -> u64 {
        self.words.get(index).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn store(&mut self, index: usize, value: u64) -> Result<(), MapError> {
        let full = MapError::Full { map: self.name, capacity: self.entries };
        let word = self.words.get(index).ok_or(full)?;
        self.faults.check(self.name, Op::Store)?;
        word.store(value, Ordering::Release);
        Ok(())
    }
}

/// Grace periods that end at once, or when the test says so. Clones share their state.
#[derive(Clone, Debug, Default)]
pub struct MemGrace {
    requested: Arc<AtomicU64>,
    passed: Arc<AtomicU64>,
    held: bool,
}

impl MemGrace {
    /// Grace periods that do not end before [`MemGrace::release`], or before somebody waits for them.
    pub fn held() -> Self {
        Self { held: true, ..Self::default() }
    }

    /// Ends every grace period that was requested until now.
    pub fn release(&self) {
        self.passed.fetch_max(self.requested.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl Grace for MemGrace {
    fn request(&mut self) -> u64 {
        let ticket = self.requested.fetch_add(1, Ordering::Relaxed) + 1;
        if !self.held {
            self.release();
        }
        ticket
    }

    fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    fn wait(&mut self, ticket: u64) -> Result<(), MapError> {
        self.passed.fetch_max(ticket, Ordering::Relaxed);
        Ok(())
    }
}

/// Capacities of a set of maps, in entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacities {
    /// `lb_frontends`
    pub frontends: u32,
    /// `lb_addresses`
    pub addresses: u32,
    /// `lb_services`
    pub services: u32,
    /// `lb_slots`
    pub slots: u32,
    /// `lb_backends`
    pub backends: u32,
    /// `lb_affinity`: clients that are remembered at least
    pub affinity: u32,
    /// `lb_src_ranges`
    pub ranges: u32,
    /// Flows of IPv4 that are kept whatever new ones come: `lb_flows4` has two entries for each
    pub flows4: u32,
    /// The same of IPv6
    pub flows6: u32,
}

impl Capacities {
    /// Whether flows of packets have room.
    pub const fn serves_packets(&self) -> bool {
        self.flows4 > 1 || self.flows6 > 1
    }

    /// The larger one of each.
    #[must_use]
    pub fn at_least(&self, other: &Self) -> Self {
        Self {
            frontends: self.frontends.max(other.frontends),
            addresses: self.addresses.max(other.addresses),
            services: self.services.max(other.services),
            slots: self.slots.max(other.slots),
            backends: self.backends.max(other.backends),
            affinity: self.affinity.max(other.affinity),
            ranges: self.ranges.max(other.ranges),
            flows4: self.flows4.max(other.flows4),
            flows6: self.flows6.max(other.flows6),
        }
    }
}

impl Default for Capacities {
    fn default() -> Self {
        let entries = maps::MIN_ENTRIES;
        Self {
            frontends: entries,
            addresses: entries,
            services: entries,
            slots: entries,
            backends: entries,
            affinity: maps::AFFINITY_ENTRIES,
            ranges: entries,
            flows4: 1,
            flows6: 1,
        }
    }
}

/// A set of maps in memory: what a "node" of a test keeps while its agents come and go.
#[derive(Clone, Debug)]
pub struct MemMaps {
    /// Shared by all maps of the set.
    pub faults: Faults,
    /// `lb_frontends`
    pub frontends: MemTable<FrontendKey, Frontend>,
    /// `lb_addresses`
    pub addresses: MemTable<Addr, Address>,
    /// `lb_services`
    pub services: MemArray,
    /// `lb_slots`
    pub slots: MemArray,
    /// `lb_backends`
    pub backends: MemArray,
    /// `lb_config`
    pub config: MemArray,
    /// `lb_devices`
    pub devices: MemTable<u32, Device>,
    /// `lb_src_ranges`
    pub ranges: MemTable<RangePrefix, u32>,
    /// `lb_ports`
    pub ports: MemArray,
    /// `lb_meta`
    pub meta: MemArray,
    /// Used by the next [`MemMaps::open`].
    pub grace: MemGrace,
}

impl MemMaps {
    /// Empty maps of the given sizes.
    pub fn new(capacities: Capacities) -> Self {
        let faults = Faults::default();
        let table = |name, capacity| (name, capacity, faults.clone());
        Self {
            frontends: new_table(table(maps::FRONTENDS, capacities.frontends)),
            addresses: new_table(table(maps::ADDRESSES, capacities.addresses)),
            services: MemArray::new(maps::SERVICES, capacities.services, Service::WORDS, &faults),
            slots: MemArray::new(maps::SLOTS, capacities.slots, Slot::WORDS, &faults),
            backends: MemArray::new(maps::BACKENDS, capacities.backends, size_of::<Backend>() / 8, &faults),
            config: MemArray::new(maps::CONFIG, 1, Config::WORDS, &faults),
            devices: new_table(table(maps::DEVICES, maps::MIN_ENTRIES)),
            ranges: new_table(table(maps::SRC_RANGES, capacities.ranges)),
            ports: MemArray::new(maps::PORTS, PortList::ENTRIES, 1, &faults),
            meta: MemArray::new(maps::META, meta::ENTRIES, 1, &faults),
            grace: MemGrace::default(),
            faults,
        }
    }

    /// The maps as a reconciler takes them. The entries stay shared: a second call is a restarted agent.
    pub fn open(&self) -> Maps {
        Maps {
            frontends: Box::new(self.frontends.clone()),
            addresses: Box::new(self.addresses.clone()),
            services: Box::new(self.services.clone()),
            slots: Box::new(self.slots.clone()),
            backends: Box::new(self.backends.clone()),
            config: Box::new(self.config.clone()),
            devices: Box::new(self.devices.clone()),
            ranges: Box::new(self.ranges.clone()),
            ports: Box::new(self.ports.clone()),
            meta: Box::new(self.meta.clone()),
            grace: Box::new(self.grace.clone()),
        }
    }
}

impl MemMaps {
    /// The same content in maps of their own, without faults; grace periods end at once.
    #[must_use]
    pub fn copy(&self) -> Self {
        let faults = Faults::default();
        Self {
            frontends: self.frontends.copy(&faults),
            addresses: self.addresses.copy(&faults),
            services: self.services.copy(&faults),
            slots: self.slots.copy(&faults),
            backends: self.backends.copy(&faults),
            config: self.config.copy(&faults),
            devices: self.devices.copy(&faults),
            ranges: self.ranges.copy(&faults),
            ports: self.ports.copy(&faults),
            meta: self.meta.copy(&faults),
            grace: MemGrace::default(),
            faults,
        }
    }
}

fn new_table<K, V>((name, capacity, faults): (&'static str, u32, Faults)) -> MemTable<K, V> {
    MemTable { name, capacity, entries: Arc::default(), faults }
}
