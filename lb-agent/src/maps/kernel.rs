//! The maps of this kernel.

use core::fmt::Debug;
use std::{io, os::fd::AsFd as _};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData, MapError as AyaError, MapInfo},
    sys::SyscallError,
};

use super::{Array, MapError, Op, Table, mmap::SharedWords};

const BPF_NOEXIST: u64 = 1;

/// A hash map, by system calls.
pub struct KernelTable<K, V> {
    name: &'static str,
    capacity: u32,
    map: HashMap<MapData, K, V>,
}

impl<K: Pod, V: Pod> KernelTable<K, V> {
    /// Wraps a map of the object or of a pin.
    ///
    /// # Errors
    /// [`MapError::Kernel`] if its key or value has another size.
    pub fn new(name: &'static str, map: MapData) -> Result<Self, MapError> {
        let capacity = map.info().map_err(|error| from_aya(name, Op::Open, error))?.max_entries();
        let map = HashMap::try_from(Map::HashMap(map)).map_err(|error| from_aya(name, Op::Open, error))?;
        Ok(Self { name, capacity, map })
    }
}

impl<K: Pod + Ord + Debug + Send, V: Pod + Send> Table<K, V> for KernelTable<K, V> {
    fn capacity(&self) -> u32 {
        self.capacity
    }

    fn dump(&self) -> Result<Vec<(K, V)>, MapError> {
        let mut entries: Vec<(K, V)> = self
            .map
            .iter()
            .collect::<Result<_, _>>()
            .map_err(|error| from_aya(self.name, Op::Read, error))?;
        entries.sort_unstable_by_key(|(key, _)| *key);
        Ok(entries)
    }

    fn create(&mut self, key: &K, value: &V) -> Result<(), MapError> {
        self.map.insert(key, value, BPF_NOEXIST).map_err(|error| {
            match errno_of(&error).and_then(io::Error::raw_os_error) {
                Some(libc::E2BIG) => MapError::Full { map: self.name, capacity: self.capacity },
                Some(libc::EEXIST) => MapError::Exists { map: self.name, key: format!("{key:?}") },
                _ => from_aya(self.name, Op::Create, error),
            }
        })
    }

    fn delete(&mut self, key: &K) -> Result<(), MapError> {
        match self.map.remove(key) {
            Err(error) if errno_of(&error).and_then(io::Error::raw_os_error) == Some(libc::ENOENT) => Ok(()),
            Err(AyaError::KeyNotFound) => Ok(()),
            result => result.map_err(|error| from_aya(self.name, Op::Delete, error)),
        }
    }
}

/// A mmapable array, by memory.
pub struct KernelArray {
    name: &'static str,
    capacity: u32,
    words: SharedWords,
}

impl KernelArray {
    /// Maps an array of the object or of a pin into memory.
    ///
    /// # Errors
    /// [`MapError::Kernel`] if it is not mmapable.
    pub fn new(name: &'static str, map: &MapData) -> Result<Self, MapError> {
        let info: MapInfo = map.info().map_err(|error| from_aya(name, Op::Open, error))?;
        let words = info.max_entries() as usize * info.value_size().div_ceil(8) as usize;
        let words =
            SharedWords::map(map.fd().as_fd(), words).map_err(|errno| failed(name, Op::Open, errno))?;
        Ok(Self { name, capacity: info.max_entries(), words })
    }
}

impl Array for KernelArray {
    fn words(&self) -> usize {
        self.words.len()
    }

    fn load(&self, index: usize) -> u64 {
        self.words.load(index).unwrap_or(0)
    }

    fn store(&mut self, index: usize, word: u64) -> Result<(), MapError> {
        self.words.store(index, word).ok_or(MapError::Full { map: self.name, capacity: self.capacity })
    }
}

fn failed(map: &'static str, op: Op, errno: io::Error) -> MapError {
    MapError::Kernel { map, op, errno }
}

/// The kernel's answer inside aya's error.
fn errno_of(error: &AyaError) -> Option<&io::Error> {
    match error {
        AyaError::SyscallError(SyscallError { io_error, .. }) => Some(io_error),
        _ => None,
    }
}

/// An error of aya as ours, with the kernel's answer if there is one.
pub(crate) fn from_aya(map: &'static str, op: Op, error: AyaError) -> MapError {
    match error {
        AyaError::SyscallError(SyscallError { io_error, .. }) => failed(map, op, io_error),
        other => failed(map, op, io::Error::other(other)),
    }
}
