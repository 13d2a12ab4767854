//! A service port of one family: which run of slots serves it.

use super::{Words, join16, join32, split16, split32};

/// Index into `lb_services`. It belongs to one (Service, port name, protocol, family) until a grace period after its
/// deletion.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServiceId {
    /// 0 .. capacity of `lb_services`.
    pub index: u32,
}

impl ServiceId {
    /// No service port's: in `lb_src_ranges` it stands for the addresses of pods.
    pub const PODS: Self = Self { index: u32::MAX };
    /// Likewise: the ranges that cluster IPs are taken from.
    pub const CLUSTER_IPS: Self = Self { index: u32::MAX - 1 };
}

/// A published range of slots, loaded and stored as one word: there is no moment between two sets of endpoints.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Run {
    /// First slot.
    pub base: u32,
    /// Number of slots; 0 means no endpoint, and then the base says what becomes of connections: [`Run::EMPTY`] or
    /// [`Run::ELSEWHERE`].
    pub count: u16,
    /// Counts the publications of this run, wrapping. For people and tests; programs do not compare it.
    pub generation: u16,
}

impl Run {
    /// No endpoint anywhere: connections are refused (2.7).
    pub const EMPTY: Self = Self { base: 0, count: 0, generation: 0 };
    /// No endpoint here, but some on other nodes: connections get no answer, so that whoever balances between nodes tries
    /// another one (2.7, NE-2). In the word of the run itself, so that no hook sees one without the other.
    pub const ELSEWHERE: Self = Self { base: 1, count: 0, generation: 0 };

    /// Whether the run is empty, and connections get no answer.
    pub const fn is_elsewhere(self) -> bool {
        self.count == 0 && self.base == Self::ELSEWHERE.base
    }

    /// From the word in the map.
    pub const fn from_word(word: u64) -> Self {
        let (base, rest) = split32(word);
        let (count, generation) = split16(rest);
        Self { base, count, generation }
    }

    /// The word in the map.
    pub const fn to_word(self) -> u64 {
        join32(self.base, join16(self.count, self.generation))
    }

    /// The slot that `random` chooses, uniformly; nothing if the run is empty.
    ///
    /// Multiply and shift instead of a remainder: no division in the program, and the bias is below 2^-16.
    pub const fn pick(self, random: u32) -> Option<u32> {
        if self.count == 0 {
            return None;
        }
        // Both factors are below 2^32 and 2^16, so the product fits in 64 bits and its high half in 16.
        let offset = (random as u64).wrapping_mul(self.count as u64) >> 32;
        Some(self.base.wrapping_add(offset as u32))
    }

    /// The slot whose turn it is; nothing if the run is empty. A remainder, because turns must not be stretched.
    pub const fn turn(self, turn: u32) -> Option<u32> {
        match turn.checked_rem(self.count as u32) {
            Some(offset) => Some(self.base.wrapping_add(offset)),
            None => None,
        }
    }
}

/// Value of `lb_turns`: whose turn is next on this CPU.
///
/// There are fewer of them than there may be services. One that another service has used since begins at a random turn: services
/// that share it and are asked by turns would else meet every other backend.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Turn {
    /// The next turn, wrapping.
    pub next: u32,
    /// Whose it is: the index of a [`ServiceId`] and 1; 0 means nobody's.
    pub owner: u32,
}

impl Turn {
    /// Entries of `lb_turns`, a power of two.
    pub const ENTRIES: u32 = 1024;

    /// Index of the entry of a service.
    pub const fn index(service: ServiceId) -> u32 {
        service.index & (Self::ENTRIES - 1)
    }

    /// The turn of a connection to `service`, and the entry after it.
    #[inline(always)]
    pub fn take(self, service: ServiceId, random: impl FnOnce() -> u32) -> (u32, Self) {
        let owner = service.index.wrapping_add(1);
        let turn = if self.owner == owner { self.next } else { random() };
        (turn, Self { next: turn.wrapping_add(1), owner })
    }
}

impl Words<1> for Turn {
    fn to_words(&self) -> [u64; 1] {
        [join32(self.next, self.owner)]
    }

    fn from_words([word]: [u64; 1]) -> Self {
        let (next, owner) = split32(word);
        Self { next, owner }
    }
}

/// Bits of [`Service::flags`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ServiceFlags {
    /// The bits.
    pub bits: u32,
}

impl ServiceFlags {
    /// ClusterIP clients use the local run (`internalTrafficPolicy: Local`).
    pub const INTERNAL_LOCAL: Self = Self { bits: 1 };
    /// Load-balancer addresses are for clients in `loadBalancerSourceRanges` only (SR-1, SR-2). A hook does not know the
    /// address of a client in a pod.
    pub const RESTRICTED: Self = Self { bits: 2 };
    /// This node's own address is in one of those ranges (SR-3).
    pub const HOST_ALLOWED: Self = Self { bits: 4 };
    /// Clients outside use the local run of every frontend but the cluster IP (`externalTrafficPolicy: Local`).
    pub const EXTERNAL_LOCAL: Self = Self { bits: 8 };
    /// Each CPU gives new connections to the slots in turn.
    pub const ROUND_ROBIN: Self = Self { bits: 16 };
    /// Both runs are Maglev tables: a packet's ends say which slot. Sockets choose at random, because connect() comes before the choice
    /// of a source port.
    pub const MAGLEV: Self = Self { bits: 32 };

    /// Whether every bit of `other` is set.
    pub const fn has(self, other: Self) -> bool {
        self.bits & other.bits == other.bits
    }

    /// Both sets of bits.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self { bits: self.bits | other.bits }
    }
}

/// Value of `lb_services`. Written by the agent in whole words, read by every program that load-balances.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Service {
    /// Who serves connections of Cluster policy.
    pub cluster: Run,
    /// Who serves connections of Local policy.
    pub local: Run,
    /// Policy bits.
    pub flags: ServiceFlags,
    /// Session affinity in seconds, 1..=86400; 0 means none.
    pub affinity_s: u32,
    /// Raised when affinity is switched on and when the id gets a new owner: older affinity entries are void.
    pub generation: u32,
    /// Backends that keep what they have and get nothing new.
    pub draining: Draining,
}

/// The slots of backends of a UDP port that serve and are in no run: flows that they have stay with them (CT-4). Only the agent
/// reads it, to know them again.
///
/// A region of slots in one word half: its first slot, and its size as a power of two. Slots of it without a backend are free.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Draining {
    /// `first slot << 5 | exponent + 1`; 0 means nobody.
    pub region: u32,
}

impl Draining {
    /// Nobody.
    pub const NONE: Self = Self { region: 0 };

    /// A region of `2^order` slots; nothing if its numbers do not fit.
    pub const fn new(base: u32, order: u8) -> Option<Self> {
        if base >= 1 << 27 || order > 16 {
            return None;
        }
        Some(Self { region: base << 5 | (order as u32).wrapping_add(1) })
    }

    /// First slot and exponent of the size.
    pub const fn region(self) -> Option<(u32, u8)> {
        match self.region & 31 {
            0 => None,
            order => {
                let [order, ..] = order.wrapping_sub(1).to_le_bytes();
                Some((self.region >> 5, order))
            }
        }
    }
}

impl Service {
    /// Words of one value.
    pub const WORDS: usize = 4;
    /// Index of the word that holds [`Service::cluster`].
    pub const CLUSTER_WORD: usize = 0;
    /// Index of the word that holds [`Service::local`].
    pub const LOCAL_WORD: usize = 1;
    /// Index of the word that holds [`Service::flags`] and [`Service::affinity_s`].
    pub const FLAGS_WORD: usize = 2;
    /// Index of the word that holds [`Service::generation`] and [`Service::draining`].
    pub const GENERATION_WORD: usize = 3;

    /// An id that nobody owns, as the kernel creates it.
    pub const FREE: Self = Self {
        cluster: Run::EMPTY,
        local: Run::EMPTY,
        flags: ServiceFlags { bits: 0 },
        affinity_s: 0,
        generation: 0,
        draining: Draining::NONE,
    };
}

impl Words<4> for Service {
    fn to_words(&self) -> [u64; 4] {
        [
            self.cluster.to_word(),
            self.local.to_word(),
            join32(self.flags.bits, self.affinity_s),
            join32(self.generation, self.draining.region),
        ]
    }

    fn from_words([cluster, local, flags, generation]: [u64; 4]) -> Self {
        let (bits, affinity_s) = split32(flags);
        let (generation, region) = split32(generation);
        Self {
            cluster: Run::from_word(cluster),
            local: Run::from_word(local),
            flags: ServiceFlags { bits },
            affinity_s,
            generation,
            draining: Draining { region },
        }
    }
}

const _: () = assert!(size_of::<Service>() == Service::WORDS * 8, "a Service is its words");

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_service_survives_its_words(words: [u64; 4]) {
            prop_assert_eq!(Service::from_words(words).to_words(), words);
        }

        #[test]
        fn a_pick_stays_inside_the_run(base in 0..u32::MAX - 65_536, count in 1_u16.., random: u32) {
            let run = Run { base, count, generation: 0 };
            let slot = run.pick(random).unwrap();
            prop_assert!(slot >= base && slot < base + u32::from(count));
        }
    }

    #[test]
    fn a_region_of_draining_backends_is_one_number() {
        assert_eq!(Draining::NONE.region(), None);
        for (base, order) in [(0, 0), (64, 6), ((1 << 27) - 1, 0), (1 << 16, 16)] {
            let draining = Draining::new(base, order).unwrap();
            assert_ne!(draining, Draining::NONE);
            assert_eq!(draining.region(), Some((base, order)));
        }
        assert_eq!((Draining::new(1 << 27, 0), Draining::new(0, 17)), (None, None));
    }

    #[test]
    fn an_empty_run_picks_nothing() {
        assert_eq!((Run::EMPTY.pick(7), Run::EMPTY.turn(7)), (None, None));
    }

    #[test]
    fn turns_go_round() {
        let run = Run { base: 100, count: 3, generation: 9 };
        let slots: Vec<u32> = (4..9).filter_map(|turn| run.turn(turn)).collect();
        assert_eq!(slots, [101, 102, 100, 101, 102]);
    }

    #[test]
    fn a_turn_goes_on_where_it_was_unless_it_is_of_another() {
        let [one, other] = [ServiceId { index: 0 }, ServiceId { index: Turn::ENTRIES }];
        assert_eq!(Turn::index(one), Turn::index(other));
        let (first, turn) = Turn::default().take(one, || 40);
        let (second, turn) = turn.take(one, || 7);
        let (third, turn) = turn.take(other, || 9);
        let (fourth, turn) = turn.take(one, || u32::MAX);
        let (fifth, _) = turn.take(one, || 7);
        assert_eq!([first, second, third, fourth, fifth], [40, 41, 9, u32::MAX, 0]);
    }

    #[test]
    fn the_ends_of_the_random_range_reach_the_ends_of_the_run() {
        let run = Run { base: 100, count: 3, generation: 9 };
        assert_eq!(run.pick(0), Some(100));
        assert_eq!(run.pick(u32::MAX), Some(102));
    }
}
