//! The backends of one service port: from the runs that the maps hold to the runs that they should.
//!
//! What the maps hold is read from the maps: nothing here remembers endpoints, so nothing can disagree with them.

use std::{collections::BTreeMap, net::SocketAddr};

use lb_common::abi::{Backend, BackendId, BackendState, Draining, L4Addr, Run, Service, Slot, Words as _};

use super::{
    NoRoom,
    ids::Ids,
    plan::{ArrayId, Phase, Plan, Write},
    retire::Retired,
    slots::{Region, Slots},
};
use crate::{
    compile::{MOST_TARGETS, Target},
    maps::{Array, Maps, read},
};

/// Backend ids and slots that are free.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    /// Backend ids.
    pub(super) backends: Ids,
    /// Regions of slots.
    pub(super) slots: Slots,
}

/// What a run is to be that some frontend uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    /// Who is in it.
    pub(super) targets: &'a [Target],
    /// Which of them each slot has; nothing if each has one, in their order.
    pub(super) table: Option<&'a [u16]>,
    /// If that is nobody: whether others serve on other nodes ([`Run::ELSEWHERE`]).
    pub(super) elsewhere: bool,
}

impl Wanted<'_> {
    /// Those that have room in a run.
    fn targets(&self) -> impl Iterator<Item = &Target> {
        self.targets.iter().take(MOST_TARGETS)
    }

    /// Number of slots.
    fn count(&self) -> u16 {
        let count = self.table.map_or_else(|| self.targets.len().min(MOST_TARGETS), <[u16]>::len);
        u16::try_from(count).unwrap_or(u16::MAX)
    }

    /// Which target each slot has, as an index.
    fn seats(&self) -> impl Iterator<Item = usize> {
        (0..usize::from(self.count())).map(|slot| self.table.map_or(slot, |table| table[slot].into()))
    }

    /// The run without slots.
    const fn empty(&self) -> Run {
        if self.elsewhere { Run::ELSEWHERE } else { Run::EMPTY }
    }
}

/// The slots of a run, as they are in the map.
pub(crate) fn slots_of(slots: &dyn Array, run: Run) -> impl Iterator<Item = Slot> {
    (0..u32::from(run.count)).map(move |offset| read(slots, run.base.wrapping_add(offset)))
}

/// The slots of draining backends, as they are in the map.
pub(crate) fn draining_slots(slots: &dyn Array, draining: Draining) -> impl Iterator<Item = Slot> {
    let (base, size) = draining.region().map_or((0, 0), |(base, order)| (base, 1_u32 << order));
    let all = (0..size).map(move |offset| read::<{ Slot::WORDS }, Slot>(slots, base.wrapping_add(offset)));
    all.filter(|slot| slot.backend != BackendId::NONE)
}

/// The regions that a service owns: those of its two runs, one if they are the same, and that of what drains.
pub(super) fn regions_of(service: &Service) -> impl Iterator<Item = Region> + Clone {
    let [cluster, local] = [service.cluster, service.local].map(|run| Region::of_run(run.base, run.count));
    let draining = service.draining.region().and_then(|(base, order)| Region::aligned(base, order));
    cluster.into_iter().chain(local.filter(|region| cluster != Some(*region))).chain(draining)
}

/// A backend of the service port.
#[derive(Clone, Copy, Debug)]
struct Member {
    id: BackendId,
    /// As the map holds it.
    now: Backend,
    /// As it should be: [`Backend::runs`], whether it terminates, whether it keeps what it has although no run lists it.
    runs: u8,
    /// [`Backend::HERE`], or 0.
    here: u8,
    terminating: bool,
    drains: bool,
}

type Members = BTreeMap<L4Addr, Member>;

/// Computes the runs of a service, and what drains beside them, and adds the writes that make them to the plan, but for the
/// words of the service itself: the service is returned as it should be. An unused run repeats the used one.
///
/// Who is in `draining`, is a backend already and is in no run any more keeps its id; where there is no room for that, it does not.
///
/// # Errors
/// [`NoRoom`]; plan, pool and `retired` are as before.
pub(super) fn plan_runs(
    maps: &Maps,
    pool: &mut Pool,
    now: &Service,
    (wanted, draining): ([Option<Wanted<'_>>; 2], &[SocketAddr]),
    (plan, retired): (&mut Plan, &mut Retired),
) -> Result<Service, NoRoom> {
    let runs = [now.cluster, now.local];
    let mut members = current_members(maps, now);
    let same: [bool; 2] =
        core::array::from_fn(|at| wanted[at].is_none_or(|wanted| is_same(maps, runs[at], wanted)));
    let news = newcomers(wanted, &members);
    // All that can fail comes first, so that a failure has nothing to take back but this.
    let regions = take_regions(pool, wanted, same)?;
    let ids = take_ids(pool, news.len()).inspect_err(|_| give_back(pool, regions))?;
    for (at, id) in news.into_iter().zip(ids) {
        let now = read(&*maps.backends, id.index);
        members.insert(at, Member { id, now, runs: 0, here: 0, terminating: false, drains: false });
    }
    mark(&mut members, wanted);
    let next: [Run; 2] = core::array::from_fn(|at| match wanted[at] {
        Some(_) if same[at] => runs[at],
        Some(wanted) => publish(plan, wanted, &members, (runs[at], regions[at])),
        None => Run::EMPTY,
    });
    let (cluster, local) = match wanted {
        [Some(_), None] => (next[0], next[0]),
        [None, Some(_)] => (next[1], next[1]),
        _ => (next[0], next[1]),
    };
    let draining = drain(maps, &mut pool.slots, now.draining, (&mut members, draining), plan);
    let next = Service { cluster, local, draining, ..*now };
    states(plan, retired, &members);
    let kept = regions_of(&next);
    let is_left = |region: &Region| kept.clone().all(|kept| kept != *region);
    retired.regions.extend(regions_of(now).filter(is_left));
    Ok(next)
}

/// Everybody whom a service lists, with nobody wanted yet.
fn current_members(maps: &Maps, service: &Service) -> Members {
    let Service { cluster, local, draining, .. } = *service;
    let second = (local != cluster).then_some(local);
    [Some(cluster), second]
        .into_iter()
        .flatten()
        .flat_map(|run| slots_of(&*maps.slots, run))
        .chain(draining_slots(&*maps.slots, draining))
        .map(|slot| {
            let now: Backend = read(&*maps.backends, slot.backend.index);
            let here = now.runs & Backend::HERE;
            (slot.at(), Member { id: slot.backend, now, runs: 0, here, terminating: false, drains: false })
        })
        .collect()
}

/// Marks the members that are in no run and in `serving`, and lists them in slots of their own.
fn drain(
    maps: &Maps,
    free: &mut Slots,
    now: Draining,
    (members, serving): (&mut Members, &[SocketAddr]),
    plan: &mut Plan,
) -> Draining {
    let serves = |at: &L4Addr| serving.iter().any(|serving| L4Addr::from(*serving) == *at);
    let leavers: Vec<L4Addr> = members
        .iter()
        .filter(|(at, member)| member.runs == 0 && member.now.state != BackendState::Free as u8 && serves(at))
        .map(|(at, _)| *at)
        .collect();
    let Some(count) = u16::try_from(leavers.len()).ok().filter(|count| *count != 0) else {
        return Draining::NONE;
    };
    let known: Vec<L4Addr> = draining_slots(&*maps.slots, now).map(|slot| slot.at()).collect();
    let draining = if known == leavers {
        now
    } else {
        let Some(region) = free.take(count) else { return Draining::NONE };
        let Some(draining) = Draining::new(region.base, region.order) else {
            free.give_back(region);
            return Draining::NONE;
        };
        let slots = leavers
            .iter()
            .filter_map(|at| Some((*at, members.get(at)?)))
            .map(|(at, member)| slot(at, member));
        let size = 1_usize << region.order;
        for (offset, slot) in slots.chain(core::iter::repeat(Slot::FREE)).take(size).enumerate() {
            write_slot(plan, region.base as usize + offset, slot);
        }
        draining
    };
    for at in leavers {
        if let Some(member) = members.get_mut(&at) {
            member.drains = true;
        }
    }
    draining
}

/// The slot of a backend at an address.
fn slot(at: L4Addr, member: &Member) -> Slot {
    Slot {
        addr: at.addr,
        port: at.port,
        flags: 0,
        backend: member.id,
        generation: member.now.generation,
        pad: 0,
    }
}

fn write_slot(plan: &mut Plan, index: usize, slot: Slot) {
    for (offset, word) in slot.to_words().into_iter().enumerate() {
        plan.word(Phase::Slots, ArrayId::Slots, index * Slot::WORDS + offset, word);
    }
}

/// Notes which runs want which member.
fn mark(members: &mut Members, wanted: [Option<Wanted<'_>>; 2]) {
    for (wanted, bit) in wanted.into_iter().zip([Backend::IN_CLUSTER, Backend::IN_LOCAL]) {
        for target in wanted.iter().flat_map(Wanted::targets) {
            if let Some(member) = members.get_mut(&L4Addr::from(target.at)) {
                member.runs |= bit;
                member.terminating = target.terminating;
                member.here = if target.here { Backend::HERE } else { 0 };
            }
        }
    }
}

/// Whether the run lists exactly these targets, in these slots, by ids that are alive; or nobody, for the same reason.
fn is_same(maps: &Maps, run: Run, wanted: Wanted<'_>) -> bool {
    (run.count != 0 || run.base == wanted.empty().base)
        && run.count == wanted.count()
        && slots_of(&*maps.slots, run).zip(wanted.seats()).all(|(slot, seat)| {
            let backend: Backend = read(&*maps.backends, slot.backend.index);
            slot.at() == L4Addr::from(wanted.targets[seat].at) && backend.serves(slot.generation)
        })
}

/// Who is wanted and has no id yet, sorted.
fn newcomers(wanted: [Option<Wanted<'_>>; 2], members: &Members) -> Vec<L4Addr> {
    let mut news: Vec<L4Addr> = wanted
        .iter()
        .flatten()
        .flat_map(Wanted::targets)
        .map(|target| L4Addr::from(target.at))
        .filter(|at| !members.contains_key(at))
        .collect();
    news.sort_unstable();
    news.dedup();
    news
}

/// Regions for the runs that change; all or none.
fn take_regions(
    pool: &mut Pool,
    wanted: [Option<Wanted<'_>>; 2],
    same: [bool; 2],
) -> Result<[Option<Region>; 2], NoRoom> {
    let mut regions = [None; 2];
    for at in 0..2 {
        let count = wanted[at].map_or(0, |wanted| wanted.count());
        if same[at] || count == 0 {
            continue;
        }
        regions[at] = pool.slots.take(count);
        if regions[at].is_none() {
            give_back(pool, regions);
            return Err(NoRoom::Slots(count));
        }
    }
    Ok(regions)
}

/// Takes back what [`take_regions`] did.
fn give_back(pool: &mut Pool, regions: [Option<Region>; 2]) {
    for region in regions.into_iter().flatten() {
        pool.slots.give_back(region);
    }
}

/// `count` backend ids; all or none.
fn take_ids(pool: &mut Pool, count: usize) -> Result<Vec<BackendId>, NoRoom> {
    if pool.backends.left() < count {
        return Err(NoRoom::Backends(count));
    }
    let ids = core::iter::from_fn(|| pool.backends.take()).take(count);
    Ok(ids.map(|index| BackendId { index }).collect())
}

/// Adds the slots of a new run to the plan.
fn publish(
    plan: &mut Plan,
    wanted: Wanted<'_>,
    members: &Members,
    (now, region): (Run, Option<Region>),
) -> Run {
    let generation = now.generation.wrapping_add(1);
    let Some(region) = region else {
        return Run { generation, ..wanted.empty() };
    };
    let lists = |target: &Target| {
        let at = L4Addr::from(target.at);
        slot(at, members.get(&at).expect("every target has been made a member"))
    };
    let slots: Vec<Slot> = wanted.targets().map(lists).collect();
    for (index, seat) in (region.base as usize..).zip(wanted.seats()) {
        write_slot(plan, index, slots[seat]);
    }
    Run { base: region.base, count: wanted.count(), generation }
}

/// Adds the states of all members to the plan: newcomers before any run names them, leavers after no run does.
fn states(plan: &mut Plan, retired: &mut Retired, members: &Members) {
    for (at, member) in members {
        let mut write = |phase, now, next: Backend| {
            if next != now {
                let [word] = next.to_words();
                plan.word(phase, ArrayId::Backends, member.id.index as usize, word);
            }
        };
        if member.runs == 0 && !member.drains {
            retired.backends.push(member.id);
            retired.gone.push(*at);
            write(Phase::States, member.now, freed_backend(member.now));
            continue;
        }
        let leaves = member.terminating || member.drains;
        let state = if leaves { BackendState::Terminating } else { BackendState::Active };
        let next = Backend { state: state as u8, runs: member.runs | member.here, ..member.now };
        // A client with affinity that has it by a run that it leaves keeps it for as long as programs use that run (SA-4).
        let lists = member.now.runs & !Backend::HERE;
        let meanwhile = Backend { runs: next.runs | lists, ..next };
        write(Phase::Backends, member.now, meanwhile);
        write(Phase::States, meanwhile, next);
    }
}

/// Nobody's, and whoever remembers the id finds another generation.
pub(super) const fn freed_backend(now: Backend) -> Backend {
    Backend { generation: now.generation.wrapping_add(1), state: BackendState::Free as u8, runs: 0, pad: 0 }
}

/// The write that makes a backend id nobody's.
pub(super) fn free_backend(maps: &Maps, index: u32) -> Write {
    let [word] = freed_backend(read(&*maps.backends, index)).to_words();
    Write::Word { array: ArrayId::Backends, index: index as usize, word }
}

#[cfg(test)]
mod tests;
