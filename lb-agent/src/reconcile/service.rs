//! Planning one Service: which of its ports have an id, which frontends they own, which words say so.

use core::mem;
use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    abi::{
        BackendId, Draining, Frontend, FrontendKey, FrontendKind, L4Addr, Proto, Service, ServiceFlags,
        ServiceId, Words as _,
    },
    datapath::sock::uses_local_run,
};
use smallvec::SmallVec;

use super::{
    Contested, Desired, NoRoom, Pass, Port, Reconciler, ServiceIds,
    frontends::Owner,
    lower,
    plan::{ArrayId, Phase, Plan, Write},
    runs::{self, Wanted, plan_runs},
};
use crate::{
    compile::{PortEntries, PortKey},
    maps::read,
    model::{Protocol, ServiceName},
};

/// A frontend that a port wants and may have.
#[derive(Clone, Copy, Debug)]
struct Win {
    key: FrontendKey,
    kind: FrontendKind,
}

/// A port whose words are planned: its id, and all frontends that it is to own.
#[derive(Clone, Copy, Debug)]
struct Placed<'a> {
    id: u32,
    wins: &'a [Win],
}

impl Reconciler {
    /// Notes the ages of Services. One that was deleted and made again is younger, so who waits for its frontends may
    /// have them now.
    pub(super) fn note_ages(&mut self, desired: &[Desired], pass: &mut Pass) {
        for service in desired {
            for id in self.by_service.get(&service.name).into_iter().flatten() {
                let Some(port) = self.ports.get_mut(id).filter(|port| port.created_s != service.created_s)
                else {
                    continue;
                };
                port.created_s = service.created_s;
                let waiting = self.frontends.of(*id).iter().flat_map(|key| self.frontends.waiting(key));
                pass.outcome.again.extend(waiting.cloned());
            }
        }
    }

    /// Plans all ports of one Service: first every id, then every word, then every frontend, so that frontends move
    /// between the ports of a Service without a gap.
    pub(super) fn plan_service(&mut self, desired: &Desired, pass: &mut Pass) {
        self.frontends.stop_waiting(&desired.name);
        self.starved.remove(&desired.name);
        let (ids, mut gone) = self.identify(desired);
        let mut wins: Vec<Vec<Win>> =
            desired.ports.iter().map(|entries| self.winnable(entries, desired.created_s, pass)).collect();
        hand_on_other_ports(&desired.ports, &mut wins);
        let mut placed = Vec::with_capacity(ids.len());
        let mut room = self.free_frontends();
        for (at, (entries, known)) in desired.ports.iter().zip(ids).enumerate() {
            if wins[at].is_empty() {
                gone.extend(known);
                continue;
            }
            let kept = known.filter(|id| !self.gives_to_sibling(*id, at, &wins));
            let planned = self
                .take_frontends(&wins[at], &mut room)
                .and_then(|()| self.plan_words(entries, &wins[at], kept, pass));
            match planned {
                Ok(id) => {
                    if known != Some(id) {
                        gone.extend(known);
                        self.own(id, entries, desired.created_s);
                    }
                    placed.push(Placed { id, wins: &wins[at] });
                }
                Err(no_room) => {
                    self.starve(&desired.name, no_room);
                    pass.outcome.left_out.push((entries.key.clone(), no_room));
                }
            }
        }
        self.plan_frontends(&desired.name, &placed, pass);
        for id in gone {
            self.plan_removal(id, pass);
        }
    }

    /// Whether a frontend of port `at`, which has `id`, goes to another port of its Service. Until it is there it must be
    /// served as before, so the id keeps its words, and the port has another one.
    fn gives_to_sibling(&self, id: u32, at: usize, wins: &[Vec<Win>]) -> bool {
        let has = |wins: &[Win], key: &FrontendKey| wins.iter().any(|win| win.key == *key);
        let mut lost =
            self.frontends.of(id).iter().filter(|key| !key.is_other_ports() && !has(&wins[at], key));
        lost.any(|key| wins.iter().any(|other| has(other, key)))
    }

    /// The ids that the ports have already, and those of ports that are gone. A port is known by its key (SEL-8); a
    /// renamed one inherits the id of the port whose frontends it takes over.
    fn identify(&mut self, desired: &Desired) -> (Vec<Option<u32>>, ServiceIds) {
        let mut old = self.by_service.remove(&desired.name).unwrap_or_default();
        let same =
            |entries: &PortEntries, id: u32| self.ports.get(&id).is_some_and(|port| port.key == entries.key);
        let mut ids: Vec<Option<u32>> =
            desired.ports.iter().map(|entries| take_if(&mut old, |id| same(entries, id))).collect();
        for (id, entries) in ids.iter_mut().zip(&desired.ports) {
            let owns = |id: u32| {
                identifying(entries)
                    .any(|(key, _)| self.frontends.owner(&key).is_some_and(|owner| owner.id == id))
            };
            *id = id.or_else(|| take_if(&mut old, owns));
        }
        for (id, entries) in ids.iter().zip(&desired.ports) {
            if let Some(id) = id {
                self.own(*id, entries, desired.created_s);
            }
        }
        (ids, old)
    }

    /// Notes whose an id is.
    pub(super) fn own(&mut self, id: u32, entries: &PortEntries, created_s: i64) {
        let before = self.ports.get(&id);
        let renamed = before.is_some_and(|port| port.renamed || port.key != entries.key);
        self.ports.insert(id, Port { key: entries.key.clone(), created_s, renamed });
        self.by_service.entry(entries.key.service.clone()).or_default().push(id);
    }

    /// The frontends that a port wants and may have; for the others its Service waits.
    fn winnable(&mut self, entries: &PortEntries, created_s: i64, pass: &mut Pass) -> Vec<Win> {
        let service = &entries.key.service;
        let mut wins: Vec<Win> = Vec::with_capacity(entries.frontends.len());
        for (key, kind) in keys_of(entries) {
            if wins.iter().any(|win| win.key == key) {
                continue;
            }
            let rival = self.frontends.owner(&key).and_then(|owner| self.ports.get(&owner.id));
            if let Some(rival) = rival
                && rival.key.service != *service
                && (rival.created_s, &rival.key.service) < (created_s, service)
            {
                let owner = rival.key.service.clone();
                self.frontends.wait(key, service);
                // Who shares a cluster IP with another Service hears of the ports that it lacks.
                if kind != FrontendKind::OtherPorts {
                    pass.outcome.contested.push(Contested {
                        port: entries.key.clone(),
                        frontend: key,
                        owner,
                    });
                }
                continue;
            }
            wins.push(Win { key, kind });
        }
        wins
    }

    /// Takes as many entries of `lb_frontends` from `room` as the port adds.
    fn take_frontends(&self, wins: &[Win], room: &mut usize) -> Result<(), NoRoom> {
        let news = wins.iter().filter(|win| self.frontends.owner(&win.key).is_none()).count();
        *room = room.checked_sub(news).ok_or(NoRoom::Frontends(news))?;
        Ok(())
    }

    /// Plans backends, slots and the service's own words, for a port that is to own `wins`. Returns the id, a new one if
    /// there was none.
    fn plan_words(
        &mut self,
        entries: &PortEntries,
        wins: &[Win],
        known: Option<u32>,
        pass: &mut Pass,
    ) -> Result<u32, NoRoom> {
        self.check_ranges(known, entries)?;
        let id = known.or_else(|| self.service_ids.take()).ok_or(NoRoom::Services)?;
        let now: Service = read(&*self.maps.services, id);
        let used = lower::used_runs(entries);
        let table = |is_used: bool, targets| is_used.then(|| entries.table(targets)).flatten();
        let tables = [table(used.cluster, &*entries.cluster), table(used.local, &*entries.local)];
        let want = |targets, table, elsewhere| Wanted { targets, table, elsewhere };
        let wanted = [
            used.cluster.then(|| want(&*entries.cluster, tables[0].as_deref(), false)),
            used.local.then(|| want(&*entries.local, tables[1].as_deref(), entries.policies.has_any)),
        ];
        let gone = pass.retired.gone.len();
        let out = (&mut pass.plan, &mut pass.retired);
        let listed = (wanted, &*entries.draining);
        let planned = plan_runs(&self.maps, &mut self.pool, &now, listed, out).inspect_err(|_| {
            if known.is_none() {
                self.service_ids.give_back(id);
            }
        })?;
        if entries.key.protocol != Protocol::Udp {
            pass.retired.gone.truncate(gone);
        }
        self.plan_ranges(ServiceId { index: id }, &entries.ranges, &mut pass.plan);
        let is_new = self.ports.get_mut(&id).is_some_and(|port| mem::take(&mut port.renamed));
        let flags = lower::flags(entries.policies).with(lower::algorithm(entries.algorithm));
        self.note_maglev(id, flags);
        let policy = (flags, entries.affinity_s);
        let next = next_service(&now, planned, policy, is_new);
        plan_service_words(&mut pass.plan, id, &now, &next);
        self.opened_udp |= entries.key.protocol == Protocol::Udp
            && wins.iter().any(|win| self.opens(id, *win, [&now, &next]));
        Ok(id)
    }

    /// Whether clients on this node may have been refused at a frontend, and are not any more: its owner `id` with the words
    /// `[now, next]` gets endpoints, or gets the frontend and has some. Whether the former owner, who may be gone, had some
    /// too is not asked: nobody minds if refused sockets are looked for in vain.
    fn opens(&self, id: u32, win: Win, [now, next]: [&Service; 2]) -> bool {
        let is_kept = self.frontends.owner(&win.key) == Some(Owner { id, kind: win.kind });
        serves(next, win.kind) && !(is_kept && serves(now, win.kind))
    }

    /// Plans the entries of `lb_frontends` of one Service: those it loses, then those it gains.
    fn plan_frontends(&mut self, service: &ServiceName, placed: &[Placed<'_>], pass: &mut Pass) {
        // A new Service has nothing to lose.
        if placed.iter().any(|port| !self.frontends.of(port.id).is_empty()) {
            let wanted: BTreeSet<FrontendKey> =
                placed.iter().flat_map(|port| port.wins.iter().map(|win| win.key)).collect();
            for port in placed {
                let lost: Vec<FrontendKey> =
                    self.frontends.of(port.id).iter().filter(|key| !wanted.contains(key)).copied().collect();
                for key in lost {
                    self.plan_release(key, pass);
                }
            }
        }
        for port in placed {
            for win in port.wins {
                self.plan_gain(service, port.id, *win, pass);
            }
        }
    }

    /// Plans that `id` owns a frontend. A value never changes: a new owner or kind is one deletion and one creation,
    /// next to each other.
    fn plan_gain(&mut self, service: &ServiceName, id: u32, win: Win, pass: &mut Pass) {
        let owner = Owner { id, kind: win.kind };
        let before = self.frontends.owner(&win.key);
        if before == Some(owner) {
            return;
        }
        if before.is_some() {
            pass.plan.push(Phase::Frontends, Write::DeleteFrontend(win.key));
            self.frontends.remove(&win.key);
        }
        let value = Frontend::new(win.key, ServiceId { index: id }, win.kind);
        pass.plan.push(Phase::Frontends, Write::CreateFrontend(win.key, value));
        self.frontends.insert(win.key, owner);
        if let Some(before) = before {
            self.plan_loss(service, before.id, win.key, pass);
        }
    }

    /// An id has lost a frontend to `service`. If it is another Service's, that one waits, and without any frontend left
    /// it loses the id too.
    fn plan_loss(&mut self, service: &ServiceName, id: u32, key: FrontendKey, pass: &mut Pass) {
        match self.ports.get(&id).map(|port| port.key.service.clone()) {
            Some(loser) if loser == *service => return,
            Some(loser) => {
                self.frontends.wait(key, &loser);
                // Planned again so that its contested frontend is reported; and those that have waited before, which name the loser as
                // its owner (LB-8).
                pass.outcome.again.insert(loser);
                let waiting = self.frontends.waiting(&key).filter(|waiting| *waiting != service);
                pass.outcome.again.extend(waiting.cloned());
                pass.took = true;
            }
            None => {}
        }
        if self.frontends.of(id).is_empty() {
            self.plan_removal(id, pass);
        }
    }

    /// Plans the deletion of a frontend; whoever waits for it is planned again.
    fn plan_release(&mut self, key: FrontendKey, pass: &mut Pass) {
        pass.plan.push(Phase::Frontends, Write::DeleteFrontend(key));
        self.frontends.remove(&key);
        pass.released = true;
        pass.outcome.again.extend(self.frontends.waiting(&key).cloned());
    }

    /// Plans the end of a service id: its frontends now, its words and its backends after a grace period.
    pub(super) fn plan_removal(&mut self, id: u32, pass: &mut Pass) {
        // Its frontends may be another's already, and an id that was only found has no port.
        let is_udp = self.ports.get(&id).map_or_else(
            || self.frontends.of(id).iter().any(|key| key.proto == Proto::UDP),
            |port| port.key.protocol == Protocol::Udp,
        );
        for key in self.frontends.of(id).to_vec() {
            self.plan_release(key, pass);
        }
        self.frontends.claim(id);
        self.plan_ranges(ServiceId { index: id }, &[], &mut pass.plan);
        self.maglev.remove(&id);
        let port = self.ports.remove(&id);
        let service = port.map(|port| port.key.service);
        if let Some(service) = &service {
            self.forget(service, id);
        }
        let now: Service = read(&*self.maps.services, id);
        let retired = &mut pass.retired;
        let backends: BTreeMap<u32, L4Addr> = [now.cluster, now.local]
            .into_iter()
            .flat_map(|run| runs::slots_of(&*self.maps.slots, run))
            .chain(runs::draining_slots(&*self.maps.slots, now.draining))
            .map(|slot| (slot.backend.index, slot.at()))
            .collect();
        retired.writes.extend(cleared_service(id, &now));
        for (index, at) in backends {
            retired.writes.push(runs::free_backend(&self.maps, index));
            retired.backends.push(BackendId { index });
            if is_udp && let Some(service) = &service {
                retired.abandoned.push((service.clone(), at));
            }
        }
        retired.regions.extend(runs::regions_of(&now));
        retired.services.push(id);
    }

    /// Takes an id out of the index of its Service.
    fn forget(&mut self, service: &ServiceName, id: u32) {
        if let Some(ids) = self.by_service.get_mut(service) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_service.remove(service);
            }
        }
    }

    /// The key of an id's port.
    pub fn port(&self, id: u32) -> Option<&PortKey> {
        self.ports.get(&id).map(|port| &port.key)
    }

    /// The ids of a Service's ports.
    pub fn ids_of(&self, service: &ServiceName) -> &[u32] {
        self.by_service.get(service).map_or(&[], SmallVec::as_slice)
    }
}

/// Other ports alone tell nobody whose an id is, see [`identifying`]: a port that may have nothing else leaves them to one of its
/// siblings, so that unused ports of the cluster IP are refused all the same.
fn hand_on_other_ports(ports: &[PortEntries], wins: &mut [Vec<Win>]) {
    let is_served = |wins: &[Win]| wins.iter().any(|win| !win.key.is_other_ports());
    for at in 0..wins.len() {
        if is_served(&wins[at]) {
            continue;
        }
        let others = mem::take(&mut wins[at]);
        let family = ports[at].key.family;
        let mut siblings = ports.iter().zip(&mut *wins);
        if let Some((_, heir)) =
            siblings.find(|(entries, wins)| entries.key.family == family && is_served(wins))
        {
            heir.extend(others);
        }
    }
}

/// Keys and kinds of a port's frontends.
pub(super) fn keys_of(entries: &PortEntries) -> impl Iterator<Item = (FrontendKey, FrontendKind)> {
    entries.frontends.iter().map(|frontend| lower::frontend(frontend, entries.key.protocol))
}

/// The keys that tell whose an id is: other ports of a cluster IP belong to whichever port of its Service.
pub(super) fn identifying(entries: &PortEntries) -> impl Iterator<Item = (FrontendKey, FrontendKind)> {
    keys_of(entries).filter(|(key, _)| !key.is_other_ports())
}

/// Takes the first id that fits out of a list.
fn take_if(ids: &mut ServiceIds, fits: impl Fn(u32) -> bool) -> Option<u32> {
    let at = ids.iter().position(|id| fits(*id))?;
    Some(ids.remove(at))
}

/// Whether clients on this node meet an endpoint behind a frontend of this kind.
const fn serves(service: &Service, kind: FrontendKind) -> bool {
    let run = if uses_local_run(kind as u8, service.flags) { service.local } else { service.cluster };
    run.count != 0
}

/// The words that a service should have. `is_new`: the id was that of a port with another name.
const fn next_service(
    now: &Service,
    planned: Service,
    (flags, affinity_s): (ServiceFlags, u32),
    is_new: bool,
) -> Service {
    // Affinity entries from an earlier time with affinity (SA-5), or of another port (SA-1, SEL-8), must not come back.
    let voids = affinity_s != 0 && (now.affinity_s == 0 || is_new);
    let generation = if voids { now.generation.wrapping_add(1) } else { now.generation };
    Service { flags, affinity_s, generation, ..planned }
}

/// Adds the words of a service that change, in an order in which every mixture of old and new is valid: first the
/// generation, then the runs that the new policy uses, then the policy, then the run that it does not use.
fn plan_service_words(plan: &mut Plan, id: u32, now: &Service, next: &Service) {
    let first = id as usize * Service::WORDS;
    let (old, new) = (now.to_words(), next.to_words());
    let [first_run, last_run] = if next.flags.has(ServiceFlags::INTERNAL_LOCAL) {
        [Service::LOCAL_WORD, Service::CLUSTER_WORD]
    } else {
        [Service::CLUSTER_WORD, Service::LOCAL_WORD]
    };
    // Who drains is known by this word alone: whoever returns to a run must be in it before, whoever leaves one after.
    let returns = now.generation == next.generation && next.draining == Draining::NONE;
    // Clients outside that change from the cluster run to the local one find there, until it follows, what they had: an unused
    // run repeats the other one.
    let order = if returns {
        [first_run, Service::FLAGS_WORD, last_run, Service::GENERATION_WORD]
    } else {
        [Service::GENERATION_WORD, first_run, Service::FLAGS_WORD, last_run]
    };
    for at in order {
        if old[at] != new[at] {
            plan.word(Phase::Services, ArrayId::Services, first + at, new[at]);
        }
    }
}

/// The writes that make a service id nobody's. Its next owner has another generation: raised first, so that a stop
/// in between leaves an id that is still to be cleared.
pub(super) fn cleared_service(id: u32, now: &Service) -> impl Iterator<Item = Write> {
    let next = Service { generation: now.generation.wrapping_add(1), ..Service::FREE };
    let first = id as usize * Service::WORDS;
    let (old, new) = (now.to_words(), next.to_words());
    [Service::GENERATION_WORD, Service::CLUSTER_WORD, Service::LOCAL_WORD, Service::FLAGS_WORD]
        .into_iter()
        .filter(move |at| old[*at] != new[*at])
        .map(move |at| Write::Word { array: ArrayId::Services, index: first + at, word: new[at] })
}

#[cfg(test)]
mod algorithms;
#[cfg(test)]
mod opened;
#[cfg(test)]
mod tests;
