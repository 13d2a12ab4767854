//! A plan: every write that takes the maps from what they hold to what they should, in an order that is safe to stop
//! anywhere.
//!
//! | # | phase | writes | what holds after every single write |
//! |---|---|---|---|
//! | 1 | backends | new ids: generation, active | no run names an id that is not active |
//! | 2 | slots | new runs, into free regions; source ranges that are added | no run contains a slot that is being written |
//! | 3 | switches | NodePort range, widened | every NodePort frontend lies in the range |
//! | 4 | services | new ids: generation, policy, runs; known ids: runs, policy | every frontend names a service whose runs are whole |
//! | 5 | frontends | deletions, then creations | every frontend has one owner, and its service is ready |
//! | 6 | states | backends that left: free, next generation; source ranges that left | no run names an id that is not active |
//! | 7 | narrowed | NodePort range, exact | every NodePort frontend lies in the range |
//! | later | retired | words of services that are gone, after a grace period | no program can still hold the id |
//!
//! A takeover (a frontend changes its owner) is one deletion and one creation, next to each other in phase 5.

use lb_common::abi::{Addr, Address, Frontend, FrontendKey, RangePrefix};

use crate::maps::{MapError, Maps};

/// Which array a word belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ArrayId {
    /// `lb_services`
    Services,
    /// `lb_slots`
    Slots,
    /// `lb_backends`
    Backends,
    /// `lb_config`
    Config,
}

/// One write: one system call, or one 8-byte store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Write {
    /// Stores a word of an array.
    Word {
        /// The array.
        array: ArrayId,
        /// Index of the word in the whole array.
        index: usize,
        /// Its value.
        word: u64,
    },
    /// Creates an entry of `lb_frontends`.
    CreateFrontend(FrontendKey, Frontend),
    /// Deletes an entry of `lb_frontends`.
    DeleteFrontend(FrontendKey),
    /// Creates an entry of `lb_addresses`.
    CreateAddress(Addr, Address),
    /// Deletes an entry of `lb_addresses`.
    DeleteAddress(Addr),
    /// Creates an entry of `lb_src_ranges`.
    CreateRange(RangePrefix),
    /// Deletes an entry of `lb_src_ranges`.
    DeleteRange(RangePrefix),
}

impl Write {
    /// Performs the write.
    ///
    /// # Errors
    /// Those of the map; nothing was written.
    pub fn apply(&self, maps: &mut Maps) -> Result<(), MapError> {
        match self {
            Self::Word { array, index, word } => {
                let array = match array {
                    ArrayId::Services => &mut maps.services,
                    ArrayId::Slots => &mut maps.slots,
                    ArrayId::Backends => &mut maps.backends,
                    ArrayId::Config => &mut maps.config,
                };
                array.store(*index, *word)
            }
            Self::CreateFrontend(key, value) => maps.frontends.create(key, value),
            Self::DeleteFrontend(key) => maps.frontends.delete(key),
            Self::CreateAddress(key, value) => maps.addresses.create(key, value),
            Self::DeleteAddress(key) => maps.addresses.delete(key),
            Self::CreateRange(key) => maps.ranges.create(key, &1),
            Self::DeleteRange(key) => maps.ranges.delete(key),
        }
    }
}

/// The phases of the table above, in its order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Phase {
    /// 1
    Backends = 0,
    /// 2
    Slots = 1,
    /// 3
    Switches = 2,
    /// 4
    Services = 3,
    /// 5
    Frontends = 4,
    /// 6
    States = 5,
    /// 7
    Narrowed = 6,
}

/// Number of phases.
const PHASES: usize = 7;

/// Writes by phase.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    phases: [Vec<Write>; PHASES],
}

impl Plan {
    /// Adds a write to a phase, after those that the phase already has.
    pub fn push(&mut self, phase: Phase, write: Write) {
        self.phases[phase as usize].push(write);
    }

    /// Adds a word to a phase.
    pub fn word(&mut self, phase: Phase, array: ArrayId, index: usize, word: u64) {
        self.push(phase, Write::Word { array, index, word });
    }

    /// All writes in order.
    pub fn writes(&self) -> impl Iterator<Item = &Write> {
        self.phases.iter().flatten()
    }

    /// Number of writes.
    pub fn len(&self) -> usize {
        self.phases.iter().map(Vec::len).sum()
    }

    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.phases.iter().all(Vec::is_empty)
    }

    /// Forgets all writes, and keeps memory for `kept` writes of each phase.
    pub fn clear(&mut self, kept: usize) {
        for writes in &mut self.phases {
            writes.clear();
            writes.shrink_to(kept);
        }
    }

    /// Performs all writes in order.
    ///
    /// # Errors
    /// The first write that failed; those before it were performed, no later one was.
    pub fn apply(&self, maps: &mut Maps) -> Result<(), MapError> {
        self.writes().try_for_each(|write| write.apply(maps))
    }
}

#[cfg(test)]
mod tests {
    use lb_common::abi::{FrontendKind, L4Addr, Proto, ServiceId};

    use super::*;
    use crate::maps::memory::{Capacities, MemMaps};

    /// The table above, from the first phase to the last one.
    const TABLE: [Phase; PHASES] = [
        Phase::Backends,
        Phase::Slots,
        Phase::Switches,
        Phase::Services,
        Phase::Frontends,
        Phase::States,
        Phase::Narrowed,
    ];

    fn maps() -> MemMaps {
        MemMaps::new(Capacities {
            frontends: 2,
            addresses: 2,
            services: 2,
            slots: 2,
            backends: 4,
            affinity: 1,
            ranges: 16,
            flows4: 1,
            flows6: 1,
        })
    }

    fn slot_word(index: usize) -> Write {
        Write::Word { array: ArrayId::Slots, index, word: 7 }
    }

    fn frontend() -> (FrontendKey, Frontend) {
        let key = FrontendKey::new(L4Addr { addr: Addr::from_v4([10, 0, 0, 1]), port: 80 }, Proto::TCP);
        (key, Frontend::new(key, ServiceId { index: 1 }, FrontendKind::ClusterIp))
    }

    #[test]
    fn writes_are_in_the_order_of_the_table_whatever_was_planned_first() {
        let mut plan = Plan::default();
        for round in 0..2 {
            for (at, phase) in TABLE.into_iter().enumerate().rev() {
                plan.word(phase, ArrayId::Slots, 2 * at + round, 7);
            }
        }
        let order: Vec<Write> = (0..2 * PHASES).map(slot_word).collect();
        assert_eq!(plan.writes().copied().collect::<Vec<_>>(), order, "within a phase as they were planned");
        assert_eq!((plan.len(), plan.is_empty()), (2 * PHASES, false));
        assert!(Plan::default().is_empty());
    }

    #[test]
    fn nothing_is_written_after_a_write_that_failed() {
        let mut maps = maps().open();
        let mut plan = Plan::default();
        let outside = maps.slots.words();
        for (at, phase) in TABLE.into_iter().enumerate() {
            plan.word(phase, ArrayId::Slots, if at == 4 { outside } else { at }, 7);
        }
        plan.apply(&mut maps).unwrap_err();
        let written: Vec<u64> = (0..PHASES).map(|at| maps.slots.load(at)).collect();
        assert_eq!(written, [7, 7, 7, 7, 0, 0, 0]);
    }

    #[test]
    fn a_word_is_stored_in_its_array_and_in_no_other() {
        let arrays = [ArrayId::Services, ArrayId::Slots, ArrayId::Backends, ArrayId::Config];
        for (at, array) in arrays.into_iter().enumerate() {
            let mut maps = maps().open();
            Write::Word { array, index: 1, word: 7 }.apply(&mut maps).unwrap();
            let all = [&maps.services, &maps.slots, &maps.backends, &maps.config];
            let stored: Vec<usize> = (0..all.len()).filter(|other| all[*other].load(1) == 7).collect();
            assert_eq!(stored, [at], "{array:?}");
        }
    }

    #[test]
    fn entries_are_created_once_and_deleted() {
        let mut maps = maps().open();
        let (key, value) = frontend();
        let addr = Addr::from_v4([192, 0, 2, 1]);
        let creations = [Write::CreateFrontend(key, value), Write::CreateAddress(addr, Address::NODE)];
        for write in creations {
            write.apply(&mut maps).unwrap();
            let again = write.apply(&mut maps).unwrap_err();
            assert!(matches!(again, MapError::Exists { .. }), "a value is never overwritten: {again}");
        }
        assert_eq!(maps.frontends.dump().unwrap(), [(key, value)]);
        assert_eq!(maps.addresses.dump().unwrap(), [(addr, Address::NODE)]);
        for write in [Write::DeleteFrontend(key), Write::DeleteAddress(addr)] {
            write.apply(&mut maps).unwrap();
            write.apply(&mut maps).unwrap();
        }
        assert!(maps.frontends.dump().unwrap().is_empty() && maps.addresses.dump().unwrap().is_empty());
    }
}
