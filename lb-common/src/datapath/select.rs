//! Which backend serves a new connection: the one that its client had before, where the service wants that, else the one that
//! its algorithm chooses.

use super::tables::Tables;
use crate::{
    abi::{Affinity, AffinityKey, BackendId, Client, L4Addr, Proto, Reason, Run, ServiceFlags, ServiceId},
    hash::Hash,
};

/// How a backend is chosen that no affinity names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Algorithm {
    /// [`ServiceFlags::ROUND_ROBIN`]: by turns on each CPU. [`ServiceFlags::MAGLEV`]: by the number. Else uniformly at random (SA-10).
    flags: ServiceFlags,
    /// [`spread()`] of the packet, over the run: where that is a Maglev table, all nodes agree.
    number: u32,
}

impl Algorithm {
    /// At random.
    pub const RANDOM: Self = Self { flags: ServiceFlags { bits: 0 }, number: 0 };

    /// That of a socket, which has no source port yet: Maglev is random.
    #[inline(always)]
    pub const fn of_socket(flags: ServiceFlags) -> Self {
        let bits = flags.bits & ServiceFlags::ROUND_ROBIN.bits;
        Self { flags: ServiceFlags { bits }, number: 0 }
    }

    /// That of a packet that `from` sends `to` a frontend.
    #[inline(always)]
    pub const fn of_packet(flags: ServiceFlags, from: L4Addr, to: L4Addr, proto: Proto) -> Self {
        if flags.has(ServiceFlags::MAGLEV) {
            Self { flags: ServiceFlags::MAGLEV, number: spread(from, to, proto) }
        } else {
            Self::of_socket(flags)
        }
    }
}

/// Seed of [`spread()`], for another hash than those of backends.
const ENDS: u64 = 0x656e_6473;

/// A number that says in which slot of a Maglev table a connection meets its backend: the same on every node.
#[inline(always)]
pub const fn spread(from: L4Addr, to: L4Addr, proto: Proto) -> u32 {
    let rest = from.port as u64 | (to.port as u64) << 16 | (proto.number as u64) << 32;
    let hash = Hash::new(ENDS).addr(from.addr).addr(to.addr).word(rest).finish();
    // `Run::pick` asks for the high bits of 32.
    (hash >> 32) as u32
}

/// A service port that a new connection goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Served {
    /// Which one.
    pub service: ServiceId,
    /// Who connects.
    pub client: Client,
    /// Who may serve it.
    pub run: Run,
    /// Session affinity in seconds; 0 means none.
    pub affinity_s: u32,
    /// How it is chosen that affinity does not say.
    pub algorithm: Algorithm,
    /// The bit of [`crate::abi::Backend::runs`] that the backends of `run` have.
    pub member: u8,
}

/// A backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chosen {
    /// Its address and port.
    pub target: L4Addr,
    /// Who it is in `lb_backends`.
    pub backend: BackendId,
    /// Generation of that id.
    pub generation: u32,
}

/// Memory for [`choose`], which is much for a program's stack.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    key: AffinityKey,
    known: Affinity,
    entry: Affinity,
}

impl Room {
    /// Nothing in it counts.
    pub const EMPTY: Self = Self { key: AffinityKey::NONE, known: Affinity::NONE, entry: Affinity::NONE };
}

/// Chooses a backend; nothing if there is none.
#[inline(always)]
pub fn choose<T: Tables>(tables: &T, served: &Served, room: &mut Room) -> Option<Chosen> {
    if served.run.count != 0 && served.affinity_s != 0 {
        with_affinity(tables, served, room)
    } else {
        anew(tables, served)
    }
}

/// The slot of the run that the algorithm says; nothing if it is empty.
#[inline(always)]
fn anew<T: Tables>(tables: &T, served: &Served) -> Option<Chosen> {
    let run = served.run;
    let Algorithm { flags, number } = served.algorithm;
    // Asked here: LLVM would ask where the flags are read, and a verifier would walk through all between once for each answer.
    let flags = ServiceFlags { bits: core::hint::black_box(flags.bits) };
    let index = if flags.has(ServiceFlags::MAGLEV) {
        run.pick(number)
    } else if flags.has(ServiceFlags::ROUND_ROBIN) {
        run.turn(tables.turn(served.service))
    } else {
        run.pick(tables.random())
    }?;
    let slot = tables.slot(index);
    if slot.is_none() {
        tables.count(Reason::Dangling);
    }
    slot.map(|slot| Chosen { target: slot.at(), backend: slot.backend, generation: slot.generation })
}

/// The backend that the client had, while it is in the set that is used (SA-3, SA-4) and the client has connected within the
/// timeout (SA-2); else another one, which it has from then on.
#[inline(always)]
fn with_affinity<T: Tables>(tables: &T, served: &Served, room: &mut Room) -> Option<Chosen> {
    let generation = tables.service_generation(served.service)?;
    let Room { key, known, entry } = room;
    *key = AffinityKey { client: served.client, service: served.service, generation };
    let now = tables.now_ms();
    let is_known = tables.affinity(key, known) && known.is_of(key);
    if is_known && let Some(kept) = kept(tables, served, key, (known, now)) {
        return Some(kept);
    }
    let chosen = anew(tables, served)?;
    *entry = Affinity::new(key, chosen.target, (chosen.backend, chosen.generation), now);
    if tables.put_affinity(key, entry, is_known) {
        return Some(chosen);
    }
    // Another connection of the same client was faster, or the element was another key's for a moment.
    let is_known = tables.affinity(key, known) && known.is_of(key);
    let faster = if is_known { kept(tables, served, key, (known, now)) } else { None };
    faster.or(Some(chosen))
}

/// The backend of an entry, if it still counts.
#[inline(always)]
fn kept<T: Tables>(
    tables: &T,
    served: &Served,
    key: &AffinityKey,
    (entry, now): (&Affinity, u64),
) -> Option<Chosen> {
    if !entry.is_fresh(now, served.affinity_s) {
        return None;
    }
    let serves = tables
        .backend(entry.backend)
        .is_some_and(|backend| backend.serves(entry.generation) && backend.runs & served.member != 0);
    if !serves {
        tables.count(Reason::AffinityMoved);
        return None;
    }
    if entry.is_due(now, served.affinity_s) {
        tables.touch_affinity(key, now);
    }
    Some(Chosen { target: entry.target(), backend: entry.backend, generation: entry.generation })
}
