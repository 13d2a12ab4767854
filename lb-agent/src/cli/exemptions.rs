//! `lb_netns`, and the word of `lb_config` that says whether it has entries.
//!
//! Programs look into `lb_netns` only while that word is not 0; the agent never stores it. So it is raised before the first
//! entry is made and cleared after the last one is deleted: wherever a writer stops, every entry is in force.

use std::fs::File;

use anyhow::Context as _;
use lb_common::abi::{Config, Netns, Words as _, maps};
use nix::fcntl::{Flock, FlockArg};

use super::pinned::Pinned;
use crate::maps::{Array, MapError, Table};

/// The namespaces that are left alone.
pub(super) struct Exemptions {
    table: Box<dyn Table<u64, Netns>>,
    config: Box<dyn Array>,
}

/// Waits until no other process changes exemptions; they stay out while the lock is held.
pub(super) fn lock(pinned: &Pinned) -> anyhow::Result<Flock<File>> {
    Flock::lock(pinned.folder()?, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .context("cannot wait for another `lb-agent netns`")
}

/// Cookies of the namespaces that are left alone.
pub(super) fn cookies(pinned: &Pinned) -> anyhow::Result<Vec<u64>> {
    let entries = pinned.table::<u64, Netns>(maps::NETNS)?.dump()?;
    Ok(entries.into_iter().filter(|(_, netns)| netns.has(Netns::EXEMPT)).map(|(cookie, _)| cookie).collect())
}

impl Exemptions {
    /// The pinned ones. Whoever changes them holds [`lock`].
    pub(super) fn open(pinned: &Pinned) -> anyhow::Result<Self> {
        let (table, config) = (pinned.table(maps::NETNS)?, pinned.array(maps::CONFIG)?);
        Ok(Self { table: Box::new(table), config: Box::new(config) })
    }

    /// Leaves a namespace alone; false if that was so before.
    pub(super) fn add(&mut self, cookie: u64) -> anyhow::Result<bool> {
        if self.config.load(Config::NETNS_WORD) == 0 {
            self.store(1)?;
        }
        let result = self.table.create(&cookie, &Netns::EXEMPT);
        self.count()?;
        match result {
            Ok(()) => Ok(true),
            Err(MapError::Exists { .. }) => Ok(false),
            Err(error @ MapError::Full { .. }) => {
                Err(error).context("include namespaces that are gone, `lb-agent netns list` shows them")
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Load-balances a namespace again; false if it was not left alone.
    pub(super) fn remove(&mut self, cookie: u64) -> anyhow::Result<bool> {
        let existed = self.table.dump()?.iter().any(|(found, _)| *found == cookie);
        self.table.delete(&cookie)?;
        self.count()?;
        Ok(existed)
    }

    /// Stores how many entries there are.
    fn count(&mut self) -> anyhow::Result<()> {
        let entries = u32::try_from(self.table.dump()?.len()).context("a map has at most 2^32 entries")?;
        self.store(entries)
    }

    fn store(&mut self, netns_entries: u32) -> anyhow::Result<()> {
        let words = Config { netns_entries, ..Config::OFF }.to_words();
        Ok(self.config.store(Config::NETNS_WORD, words[Config::NETNS_WORD])?)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        io,
        sync::{Arc, Mutex, MutexGuard},
    };

    use super::*;
    use crate::maps::Op;

    /// Both maps, and how many more writes succeed.
    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<State>>);

    #[derive(Default)]
    struct State {
        entries: BTreeSet<u64>,
        words: [u64; 2],
        writes_left: usize,
    }

    impl Memory {
        fn state(&self) -> MutexGuard<'_, State> {
            self.0.lock().unwrap()
        }

        fn write(&self) -> Result<MutexGuard<'_, State>, MapError> {
            let mut state = self.state();
            state.writes_left = state.writes_left.checked_sub(1).ok_or_else(|| {
                let errno = io::Error::from_raw_os_error(libc::ENOMEM);
                MapError::Kernel { map: maps::NETNS, op: Op::Store, errno }
            })?;
            Ok(state)
        }

        fn exemptions(&self, writes: usize) -> Exemptions {
            self.state().writes_left = writes;
            Exemptions { table: Box::new(self.clone()), config: Box::new(self.clone()) }
        }
    }

    impl Table<u64, Netns> for Memory {
        fn capacity(&self) -> u32 {
            2
        }

        fn dump(&self) -> Result<Vec<(u64, Netns)>, MapError> {
            Ok(self.state().entries.iter().map(|cookie| (*cookie, Netns::EXEMPT)).collect())
        }

        fn create(&mut self, cookie: &u64, _: &Netns) -> Result<(), MapError> {
            let mut state = self.write()?;
            if state.entries.contains(cookie) {
                return Err(MapError::Exists { map: maps::NETNS, key: cookie.to_string() });
            }
            if state.entries.len() == 2 {
                return Err(MapError::Full { map: maps::NETNS, capacity: 2 });
            }
            state.entries.insert(*cookie);
            Ok(())
        }

        fn delete(&mut self, cookie: &u64) -> Result<(), MapError> {
            self.write()?.entries.remove(cookie);
            Ok(())
        }
    }

    impl Array for Memory {
        fn words(&self) -> usize {
            2
        }

        fn load(&self, index: usize) -> u64 {
            self.state().words[index]
        }

        fn store(&mut self, index: usize, word: u64) -> Result<(), MapError> {
            self.write()?.words[index] = word;
            Ok(())
        }
    }

    #[test]
    fn wherever_a_writer_stops_every_entry_is_in_force() {
        for writes in 0..12 {
            let memory = Memory::default();
            let mut exemptions = memory.exemptions(writes);
            for (add, cookie) in [(true, 7), (true, 8), (false, 7), (false, 8)] {
                let step = if add { exemptions.add(cookie) } else { exemptions.remove(cookie) };
                if step.is_err() {
                    break;
                }
            }
            let state = memory.state();
            assert!(
                state.entries.is_empty() || state.words[1] != 0,
                "{:?} after {writes} writes",
                state.entries
            );
        }
    }

    #[test]
    fn the_word_says_how_many_entries_there_are_and_the_agents_word_stays() {
        let memory = Memory::default();
        memory.state().words[0] = 42;
        let mut exemptions = memory.exemptions(100);
        assert!(exemptions.add(7).unwrap() && exemptions.add(8).unwrap());
        assert!(!exemptions.add(8).unwrap(), "it was there");
        assert_eq!(memory.state().words, [42, 2]);
        let error = format!("{:#}", exemptions.add(9).unwrap_err());
        assert!(error.contains("include namespaces that are gone") && error.contains("full"), "{error}");
        assert!(exemptions.remove(7).unwrap() && exemptions.remove(8).unwrap());
        assert!(!exemptions.remove(8).unwrap(), "it was gone");
        assert_eq!(memory.state().words, [42, 0]);
    }
}
