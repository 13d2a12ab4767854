//! The reconciler's state, read back from the maps.
//!
//! Maps that are found are foreign input: an entry that is not ours, a run outside the array, two services that share
//! slots or backends are possible. What is whole is adopted, so that unchanged services keep their ids and their slots;
//! what is not is cleared before anything is reused. Where nothing is wrong, nothing is written.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::abi::{
    Addr, Address, Backend, BackendState, Config, Draining, FrontendKey, FrontendKind, L4Addr, Run, Service,
    ServiceFlags, ServiceId, Slot, SocketLb, Words as _, meta,
};

use super::{
    Frontends, Ids, Pool, Reconciler, Retirement, Write,
    frontends::Owner,
    plan::{ArrayId, Plan},
    ranges::SourceRanges,
    runs,
    service::cleared_service,
    slots::{Region, Slots},
};
use crate::{
    hash::HashMap,
    maps::{Array, MapError, Maps, read},
};

impl Reconciler {
    /// Takes over maps in whatever state they are.
    ///
    /// # Errors
    /// Those of the maps.
    pub fn restore(maps: Maps, socket_lb: SocketLb) -> Result<Self, MapError> {
        let mut reconciler = Self {
            pool: Pool { backends: Ids::new(0, 0), slots: Slots::new(0) },
            service_ids: Ids::new(0, 0),
            ports: BTreeMap::new(),
            by_service: HashMap::default(),
            frontends: Frontends::default(),
            ranges: SourceRanges::default(),
            addresses: 0,
            retirement: Retirement::default(),
            starved: BTreeMap::new(),
            promised: BTreeSet::new(),
            socket_lb,
            maglev: BTreeSet::new(),
            opened_udp: false,
            gone_udp: Vec::new(),
            abandoned_udp: Vec::new(),
            last_plan: Plan::default(),
            is_stale: true,
            maps,
        };
        reconciler.reload()?;
        Ok(reconciler)
    }

    /// Forgets everything and reads the maps again. Afterwards every service must be applied, and then what is left is
    /// removed by [`Reconciler::remove_unclaimed`].
    ///
    /// Blocks for one grace period: a program that started before the agent stopped may still hold anything.
    ///
    /// # Errors
    /// Those of the maps; call it again.
    pub fn reload(&mut self) -> Result<(), MapError> {
        self.is_stale = true;
        let maps = &mut self.maps;
        let mut found = Found::new(maps);
        self.frontends = found.read_frontends(maps)?;
        let mut ids: Vec<u32> = self.frontends.ids().collect();
        ids.sort_unstable();
        let is_maglev = |id: &u32| read::<_, Service>(&*maps.services, *id).flags.has(ServiceFlags::MAGLEV);
        self.maglev = ids.iter().copied().filter(is_maglev).collect();
        for id in ids {
            let is_v4 = found.keep_one_family(&mut self.frontends, id);
            found.read_service(maps, id, is_v4);
        }
        // What a program can reach is repaired at once, what nobody refers to is cleared after a grace period.
        found.repairs.iter().try_for_each(|write| write.apply(maps))?;
        let ticket = maps.grace.request();
        maps.grace.wait(ticket)?;
        found.leftovers(maps).iter().try_for_each(|write| write.apply(maps))?;
        self.service_ids = found.service_ids;
        self.pool = found.pool;
        self.frontends.unclaim_all();
        self.ports.clear();
        self.by_service.clear();
        self.retirement = Retirement::default();
        self.starved.clear();
        self.promised.clear();
        self.ranges = SourceRanges::read(&self.maps)?;
        self.drop_lost_ranges()?;
        self.addresses = self.addresses()?.len();
        let config = self.config_word(self.frontends.node_port_range());
        store_if_new(&mut *self.maps.config, 0, config)?;
        let packets = self.packets_word();
        store_if_new(&mut *self.maps.config, Config::PACKETS_WORD, packets)?;
        store_if_new(&mut *self.maps.meta, meta::LAYOUT_AT as usize, meta::LAYOUT)?;
        store_if_new(&mut *self.maps.meta, meta::AGENT_VERSION_AT as usize, agent_version())?;
        store_if_new(&mut *self.maps.meta, meta::MAGIC_AT as usize, meta::MAGIC)?;
        self.is_stale = false;
        Ok(())
    }

    /// Deletes source ranges of ids that are nobody's.
    fn drop_lost_ranges(&mut self) -> Result<(), MapError> {
        let mut plan = Plan::default();
        let others = [ServiceId::PODS.index, ServiceId::CLUSTER_IPS.index];
        let lost = |id: &u32| !others.contains(id) && self.service_ids.is_free(*id);
        for id in self.ranges.ids().into_iter().filter(lost).collect::<Vec<_>>() {
            self.plan_ranges(ServiceId { index: id }, &[], &mut plan);
        }
        plan.apply(&mut self.maps)
    }

    /// What `lb_addresses` holds.
    ///
    /// # Errors
    /// Those of the map.
    pub fn addresses(&self) -> Result<BTreeMap<Addr, Address>, MapError> {
        Ok(self.maps.addresses.dump()?.into_iter().collect())
    }
}

/// Stores a word unless it is there already; returns the number of writes.
pub(super) fn store_if_new(array: &mut dyn Array, index: usize, word: u64) -> Result<usize, MapError> {
    if array.load(index) == word { Ok(0) } else { array.store(index, word).map(|()| 1) }
}

/// The version of this agent as `lb_meta` holds it.
fn agent_version() -> u64 {
    let parts =
        [env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"), env!("CARGO_PKG_VERSION_PATCH")];
    // Cargo's own numbers; one that does not fit is for people only.
    let [major, minor, patch] = parts.map(|part| part.parse().unwrap_or(u16::MAX));
    meta::version(major, minor, patch)
}

/// The backends of one service, by both names: an id is one address, an address is one id.
struct Members {
    /// Family of the service.
    is_v4: bool,
    by_id: BTreeMap<u32, L4Addr>,
    by_addr: BTreeMap<L4Addr, u32>,
}

/// What is taken in the maps, and what is wrong with them.
struct Found {
    service_ids: Ids,
    pool: Pool,
    repairs: Vec<Write>,
}

impl Found {
    fn new(maps: &Maps) -> Self {
        Self {
            service_ids: Ids::new(0, maps.services.entries(Service::WORDS)),
            pool: Pool {
                backends: Ids::new(1, maps.backends.entries(1)),
                slots: Slots::new(maps.slots.entries(Slot::WORDS)),
            },
            repairs: Vec::new(),
        }
    }

    /// All frontends whose value is whole; the others are deleted.
    fn read_frontends(&mut self, maps: &Maps) -> Result<Frontends, MapError> {
        let services = maps.services.entries(Service::WORDS);
        let mut frontends = Frontends::default();
        for (key, value) in maps.frontends.dump()? {
            let ServiceId { index: id } = value.service;
            let is_ours =
                id < services && value.tag == key.tag() && [key.pad, value.pad] == [0, 0] && key.pad2 == 0;
            // NodePorts, and only they, have the unspecified address.
            let is_node_port = key.addr == key.addr.any();
            let has_kind = |kind| {
                is_node_port == (kind == FrontendKind::NodePort)
                    && key.is_other_ports() == (kind == FrontendKind::OtherPorts)
            };
            match FrontendKind::from_number(value.kind) {
                Some(kind) if is_ours && has_kind(kind) => {
                    frontends.insert(key, Owner { id, kind });
                }
                _ => self.repairs.push(Write::DeleteFrontend(key)),
            }
        }
        Ok(frontends)
    }

    /// Deletes frontends of a service that are not of the family of its first one; returns whether that is IPv4.
    fn keep_one_family(&mut self, frontends: &mut Frontends, id: u32) -> bool {
        let is_v4 = frontends.of(id).first().is_some_and(|key| key.addr.is_v4());
        let strangers: Vec<FrontendKey> =
            frontends.of(id).iter().filter(|key| key.addr.is_v4() != is_v4).copied().collect();
        for key in strangers {
            frontends.remove(&key);
            self.repairs.push(Write::DeleteFrontend(key));
        }
        is_v4
    }

    /// Reserves what a service refers to. A run that is not whole is emptied: the service refuses until it is planned.
    fn read_service(&mut self, maps: &Maps, id: u32, is_v4: bool) {
        self.service_ids.reserve(id);
        let service: Service = read(&*maps.services, id);
        let Service { cluster, local, draining, .. } = service;
        let mut members = Members { is_v4, by_id: BTreeMap::new(), by_addr: BTreeMap::new() };
        let cluster_whole = self.reserve_run(maps, cluster, &mut members);
        // An unused run repeats the used one: its region is taken once.
        let local_whole = if (cluster.base, cluster.count) == (local.base, local.count) {
            cluster_whole
        } else {
            self.reserve_run(maps, local, &mut members)
        };
        let first = id as usize * Service::WORDS;
        let region = draining.region().and_then(|(base, order)| Region::aligned(base, order));
        let draining_whole = region.is_some_and(|region| {
            let slots = runs::draining_slots(&*maps.slots, draining);
            self.reserve_region(maps, region, slots, &mut members)
        });
        if draining != Draining::NONE && !draining_whole {
            let [.., word] = Service { draining: Draining::NONE, ..service }.to_words();
            self.repairs.push(Write::Word {
                array: ArrayId::Services,
                index: first + Service::GENERATION_WORD,
                word,
            });
        }
        for (whole, at, run) in
            [(cluster_whole, Service::CLUSTER_WORD, cluster), (local_whole, Service::LOCAL_WORD, local)]
        {
            if !whole {
                let word = Run { generation: run.generation.wrapping_add(1), ..Run::EMPTY }.to_word();
                self.repairs.push(Write::Word { array: ArrayId::Services, index: first + at, word });
            }
        }
    }

    /// Reserves the region and the backends of a run, if all of them exist, are alive and belong to no other service.
    /// `members` are those of the service's other run.
    fn reserve_run(&mut self, maps: &Maps, run: Run, members: &mut Members) -> bool {
        if run.count == 0 {
            return true;
        }
        let Some(region) = Region::of_run(run.base, run.count) else {
            return false;
        };
        self.reserve_region(maps, region, runs::slots_of(&*maps.slots, run), members)
    }

    /// The same for any slots of a region.
    fn reserve_region(
        &mut self,
        maps: &Maps,
        region: Region,
        mut slots: impl Iterator<Item = Slot>,
        members: &mut Members,
    ) -> bool {
        if !self.pool.slots.reserve(region) {
            return false;
        }
        let mut reserved = Vec::new();
        let whole = slots.all(|slot| self.reserve_slot(maps, &slot, members, &mut reserved));
        if !whole {
            self.pool.slots.give_back(region);
            for id in reserved {
                self.pool.backends.give_back(id);
                if let Some(at) = members.by_id.remove(&id) {
                    members.by_addr.remove(&at);
                }
            }
        }
        whole
    }

    /// Reserves the backend of a slot, and notes it in `members` and `reserved`, unless `members` has it.
    fn reserve_slot(
        &mut self,
        maps: &Maps,
        slot: &Slot,
        members: &mut Members,
        reserved: &mut Vec<u32>,
    ) -> bool {
        let id = slot.backend.index;
        let backend: Backend = read(&*maps.backends, id);
        let is_whole = slot.flags == 0 && slot.pad == 0 && slot.addr.is_v4() == members.is_v4;
        if !is_whole || !backend.serves(slot.generation) {
            return false;
        }
        let (at, known_as) = (members.by_id.get(&id), members.by_addr.get(&slot.at()));
        if at.is_some() || known_as.is_some() {
            return at == Some(&slot.at()) && known_as == Some(&id);
        }
        if !self.pool.backends.reserve(id) {
            return false;
        }
        members.by_id.insert(id, slot.at());
        members.by_addr.insert(slot.at(), id);
        reserved.push(id);
        true
    }

    /// Clears services and backends that nobody refers to.
    fn leftovers(&self, maps: &Maps) -> Vec<Write> {
        let mut writes = Vec::new();
        for id in 0..maps.services.entries(Service::WORDS) {
            let now: Service = read(&*maps.services, id);
            let cleared = Service { generation: now.generation, ..Service::FREE };
            if now != cleared && self.service_ids.is_free(id) {
                writes.extend(cleared_service(id, &now));
            }
        }
        for id in 0..maps.backends.entries(1) {
            let now: Backend = read(&*maps.backends, id);
            let cleared =
                Backend { generation: now.generation, state: BackendState::Free as u8, runs: 0, pad: 0 };
            // Id 0 is nobody's for ever.
            if now != cleared && (id == 0 || self.pool.backends.is_free(id)) {
                writes.push(runs::free_backend(maps, id));
            }
        }
        writes
    }
}
