//! From what should be to what the maps hold: ids, plans, writes.
//!
//! ```text
//! PortEntries -> service.rs     which id, which words
//!             -> frontends.rs   who owns which frontend
//!             -> runs.rs        which slots serve it
//!             -> plan.rs        writes in safe order -> maps
//!                retire.rs      what is reused only after a grace period
//!                room.rs        what does not fit, and when it may
//! restore.rs     the same state, read back from the maps at start and after a failed write
//! adopt.rs       whose the ids are that were found there
//! ```
//!
//! One owner: nothing here locks, logs or waits, but for one grace period in [`Reconciler::restore`].
//!
//! Held by property tests over random histories (package lb-tests, `restart.rs`):
//! `the_maps_mean_what_is_desired_whatever_was_before`, `applying_twice_writes_nothing_the_second_time`,
//! `a_stop_after_any_write_leaves_nothing_dangling`, `a_restart_writes_nothing_when_nothing_changed`,
//! `nothing_is_reused_before_a_grace_period`.

mod adopt;
mod frontends;
mod ids;
mod lower;
pub mod plan;
mod ranges;
mod restore;
mod retire;
mod room;
mod runs;
mod service;
mod slots;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use lb_common::abi::{
    Addr, Address, Config, Device, FrontendKey, L4Addr, PacketLb, PortList, ServiceFlags, SocketLb,
    Words as _, maps, meta,
};

use crate::{
    compile::{PortEntries, PortKey},
    hash::HashMap,
    maps::{MapError, Maps, read},
    model::ServiceName,
};
use frontends::Frontends;
use ids::Ids;
use plan::{ArrayId, Phase, Plan, Write};
use ranges::SourceRanges;
use restore::store_if_new;
use retire::{Retired, Retirement};
use runs::Pool;
use smallvec::SmallVec;

pub use room::{NoRoom, Usage};
pub(crate) use runs::{draining_slots, slots_of};

/// Writes after which a pass performs what it has planned: it bounds the memory of a fill, and each such part is safe
/// and complete for the services in it.
const WRITES_PER_PLAN: usize = 8192;

/// What one Service should have in the maps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Desired {
    /// The Service.
    pub name: ServiceName,
    /// `metadata.creationTimestamp`, seconds since 1970: the older Service keeps a contested frontend.
    pub created_s: i64,
    /// Its ports; none if it is gone or not proxied.
    pub ports: Vec<PortEntries>,
}

/// A frontend that another Service owns.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Contested {
    /// The port that does not get it.
    pub port: PortKey,
    /// What it wanted.
    pub frontend: FrontendKey,
    /// Who has it.
    pub owner: ServiceName,
}

/// What a pass did, and what it did not do.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Services to be planned again now: a frontend that they want may have become free, or room that they lack.
    pub again: BTreeSet<ServiceName>,
    /// Services with a port that has no room until a grace period has passed: [`Reconciler::settle`] will name them.
    pub later: BTreeSet<ServiceName>,
    /// Service ports that stay as they were because a map is too small. They are planned again when something that they
    /// lack is given up.
    pub left_out: Vec<(PortKey, NoRoom)>,
    /// Frontends that another Service owns.
    pub contested: Vec<Contested>,
    /// Clients on this node meet endpoints at a UDP frontend where they may have been refused before: sockets that were
    /// refused there are to be freed. Also if the write that did it belongs to an earlier pass, which failed later.
    pub opened_udp: bool,
    /// Writes that were performed.
    pub writes: usize,
}

/// A service port that has an id.
#[derive(Clone, Debug)]
struct Port {
    key: PortKey,
    created_s: i64,
    /// It has got its name by taking the frontends of a port with another name, and its words do not say so yet.
    renamed: bool,
}

/// The ids of one Service: one for each port and family.
type ServiceIds = SmallVec<[u32; 4]>;

/// What one pass collects before it writes.
#[derive(Debug, Default)]
struct Pass {
    plan: Plan,
    retired: Retired,
    /// NodePort range of the maps as they are.
    node_ports: Option<(u16, u16)>,
    /// Whether a frontend was given up.
    released: bool,
    /// Whether a frontend was taken from another Service, whose words must not change before that is written.
    took: bool,
    outcome: Outcome,
}

/// The state of the maps, and everything that is needed to change it.
pub struct Reconciler {
    maps: Maps,
    pool: Pool,
    service_ids: Ids,
    /// By service id.
    ports: BTreeMap<u32, Port>,
    by_service: HashMap<ServiceName, ServiceIds>,
    frontends: Frontends,
    ranges: SourceRanges,
    /// Entries of `lb_addresses`.
    addresses: usize,
    retirement: Retirement,
    /// Services with ports that have no room, and what each of those lacks.
    starved: BTreeMap<ServiceName, Vec<NoRoom>>,
    /// Services that [`Outcome::later`] has named: after the next grace period they have room, or it is said which map is
    /// full.
    promised: BTreeSet<ServiceName>,
    socket_lb: SocketLb,
    /// Services with [`ServiceFlags::MAGLEV`].
    maglev: BTreeSet<u32>,
    /// See [`Outcome::opened_udp`]; until an outcome says it, which a failed pass does not have.
    opened_udp: bool,
    /// See [`Reconciler::take_gone`].
    gone_udp: Vec<L4Addr>,
    /// See [`Reconciler::take_abandoned`].
    abandoned_udp: Vec<(ServiceName, L4Addr)>,
    /// The memory of the last plan: empty.
    last_plan: Plan,
    /// A write has failed: what is known here is not what the maps hold.
    is_stale: bool,
}

impl Reconciler {
    /// The maps, for reading.
    pub const fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Service ports that have an id, by id.
    pub fn programmed(&self) -> impl Iterator<Item = (u32, &PortKey)> {
        self.ports.iter().map(|(id, port)| (*id, &port.key))
    }

    /// The frontends that a service id owns.
    pub fn frontends_of(&self, id: u32) -> &[FrontendKey] {
        self.frontends.of(id)
    }

    /// Brings the maps to what `desired` says of its services, each named once; other services are not touched.
    ///
    /// Older Services are planned first, whatever the order of `desired`. After a restore, several calls should name them
    /// in that order too: a frontend that is contested then goes to its owner at once.
    ///
    /// # Errors
    /// The first write that failed. The maps are then in a state between two writes, every one of which is safe; call
    /// [`Reconciler::reload`], then this again with every service.
    pub fn apply(&mut self, desired: &[Desired]) -> Result<Outcome, MapError> {
        let mut by_age: Vec<&Desired> = desired.iter().collect();
        by_age.sort_by(|one, other| (one.created_s, &one.name).cmp(&(other.created_s, &other.name)));
        let mut outcome = self.pass(|reconciler, pass| {
            reconciler.note_ages(desired, pass);
            reconciler.adopt(&by_age);
            for service in by_age {
                reconciler.plan_service(service, pass);
                if pass.took || pass.plan.len() >= WRITES_PER_PLAN {
                    pass.took = false;
                    reconciler.perform(pass)?;
                }
            }
            Ok(())
        })?;
        outcome.opened_udp = mem::take(&mut self.opened_udp);
        Ok(outcome)
    }

    /// Removes every service that was found in the maps and that no [`Reconciler::apply`] has named since: all objects
    /// are listed, so it is gone.
    ///
    /// # Errors
    /// See [`Reconciler::apply`].
    pub fn remove_unclaimed(&mut self) -> Result<Outcome, MapError> {
        self.pass(|reconciler, pass| {
            for id in reconciler.frontends.unclaimed().clone() {
                reconciler.plan_removal(id, pass);
            }
            Ok(())
        })
    }

    /// Makes `lb_addresses` hold exactly `desired`; returns the number of writes.
    ///
    /// # Errors
    /// [`MapError::Full`] if that is more than it can hold, and nothing was written; otherwise see
    /// [`Reconciler::apply`].
    pub fn set_addresses(&mut self, desired: &BTreeMap<Addr, Address>) -> Result<usize, MapError> {
        let capacity = self.maps.addresses.capacity();
        if desired.len() > capacity as usize {
            return Err(MapError::Full { map: maps::ADDRESSES, capacity });
        }
        let actual = self.addresses()?;
        let mut plan = Plan::default();
        for addr in actual.keys().filter(|addr| !desired.contains_key(addr)) {
            plan.push(Phase::Switches, Write::DeleteAddress(*addr));
        }
        for (addr, wanted) in desired {
            match actual.get(addr) {
                Some(now) if now == wanted => continue,
                // A value never changes: one deletion and one creation, next to each other.
                Some(_) => plan.push(Phase::Switches, Write::DeleteAddress(*addr)),
                None => {}
            }
            plan.push(Phase::Switches, Write::CreateAddress(*addr, *wanted));
        }
        plan.apply(&mut self.maps)?;
        self.addresses = desired.len();
        Ok(plan.len())
    }

    /// Makes `lb_devices` hold exactly `desired`; returns the number of writes.
    ///
    /// # Errors
    /// See [`Reconciler::set_addresses`].
    pub fn set_devices(&mut self, desired: &BTreeMap<u32, Device>) -> Result<usize, MapError> {
        let capacity = self.maps.devices.capacity();
        if desired.len() > capacity as usize {
            return Err(MapError::Full { map: maps::DEVICES, capacity });
        }
        let actual: BTreeMap<u32, Device> = self.maps.devices.dump()?.into_iter().collect();
        let gone = actual.iter().filter(|(index, device)| desired.get(index) != Some(device));
        let news = desired.iter().filter(|(index, device)| actual.get(index) != Some(device));
        let mut writes = 0;
        for (index, _) in gone {
            self.maps.devices.delete(index)?;
            writes += 1;
        }
        for (index, device) in news {
            self.maps.devices.create(index, device)?;
            writes += 1;
        }
        Ok(writes)
    }

    /// How packets are served, and the ports for masquerading; returns the number of writes. A program that counts fewer ports than
    /// there are misses some; it never finds one that is not there.
    ///
    /// # Errors
    /// Those of the maps.
    pub fn set_packets(&mut self, packets: PacketLb, ports: &[u16]) -> Result<usize, MapError> {
        let at = Config::PACKETS_WORD;
        let now: Config = read(&*self.maps.config, 0);
        // Whether any service port uses Maglev is the business of passes.
        let maglev = if now.packets.has(PacketLb::MAGLEV) { PacketLb::MAGLEV } else { PacketLb::default() };
        let packets = packets.without(PacketLb::MAGLEV).with(maglev);
        let word = |count: usize| {
            let masquerade_ports = u32::try_from(count).unwrap_or(u32::MAX);
            Config { packets, masquerade_ports, ..Config::OFF }.to_words()[at]
        };
        let fewer = ports.len().min(now.masquerade_ports as usize);
        let mut writes = store_if_new(&mut *self.maps.config, at, word(fewer))?;
        for (index, four) in ports.chunks(4).enumerate() {
            writes += store_if_new(&mut *self.maps.ports, index, PortList::of(four).four)?;
        }
        writes += store_if_new(&mut *self.maps.config, at, word(ports.len()))?;
        Ok(writes)
    }

    /// The lowest and the highest NodePort that is programmed.
    pub fn node_ports(&self) -> Option<(u16, u16)> {
        self.frontends.node_port_range()
    }

    /// Reuses what grace periods have passed for, and names the services that have room now or were told to wait for
    /// this: plan them again. Call it when [`crate::maps::Grace::passed`] has grown.
    ///
    /// # Errors
    /// See [`Reconciler::apply`].
    pub fn settle(&mut self) -> Result<BTreeSet<ServiceName>, MapError> {
        let mut has_settled = false;
        while let Some(retired) = self.retirement.next(&*self.maps.grace) {
            self.write(|maps| retired.writes.iter().try_for_each(|write| write.apply(maps)))?;
            retired.give_back(&mut self.pool, &mut self.service_ids);
            self.gone_udp.extend(retired.gone);
            self.abandoned_udp.extend(retired.abandoned);
            has_settled = true;
        }
        if !has_settled {
            return Ok(BTreeSet::new());
        }
        let mut again = self.sated();
        again.append(&mut self.promised);
        Ok(again)
    }

    /// Addresses of backends of UDP ports that are gone since the last call: sockets may still be connected to them. What a failed
    /// write has lost is not among them.
    pub fn take_gone(&mut self) -> Vec<L4Addr> {
        mem::take(&mut self.gone_udp)
    }

    /// Backends of UDP ports that are gone themselves, and whose they were, since the last call: who has a connection to one of them
    /// keeps it for as long as the backend serves (NE-3).
    pub fn take_abandoned(&mut self) -> Vec<(ServiceName, L4Addr)> {
        mem::take(&mut self.abandoned_udp)
    }

    /// Whether nothing waits for a grace period.
    pub fn is_settled(&self) -> bool {
        self.retirement.is_empty()
    }

    /// Plans and writes.
    fn pass(
        &mut self,
        plan: impl FnOnce(&mut Self, &mut Pass) -> Result<(), MapError>,
    ) -> Result<Outcome, MapError> {
        debug_assert!(!self.is_stale, "a failed write is followed by Reconciler::reload");
        let sated = self.settle()?;
        let mut pass = Pass { node_ports: self.frontends.node_port_range(), ..Pass::default() };
        pass.plan = mem::take(&mut self.last_plan);
        plan(self, &mut pass)?;
        self.perform(&mut pass)?;
        self.last_plan = mem::take(&mut pass.plan);
        self.sort_left_out(&mut pass);
        self.promised.extend(pass.outcome.later.iter().cloned());
        let hungry = sated.into_iter().filter(|service| self.starved.contains_key(service));
        pass.outcome.again.extend(hungry);
        Ok(pass.outcome)
    }

    /// Writes what is planned, and retires what the writes have unreferenced.
    fn perform(&mut self, pass: &mut Pass) -> Result<(), MapError> {
        self.plan_node_ports(pass.node_ports, &mut pass.plan);
        pass.node_ports = self.frontends.node_port_range();
        self.plan_maglev(&mut pass.plan);
        if !pass.plan.is_empty() {
            self.write(|maps| {
                pass.plan.apply(maps)?;
                let revision = maps.meta.load(meta::REVISION_AT as usize).wrapping_add(1);
                maps.meta.store(meta::REVISION_AT as usize, revision)
            })?;
            pass.outcome.writes += pass.plan.len();
            pass.plan.clear(WRITES_PER_PLAN);
        }
        self.retirement.retire(mem::take(&mut pass.retired), &mut *self.maps.grace);
        Ok(())
    }

    /// Performs writes, and remembers if they fail.
    fn write(&mut self, write: impl FnOnce(&mut Maps) -> Result<(), MapError>) -> Result<(), MapError> {
        write(&mut self.maps).inspect_err(|_| self.is_stale = true)
    }

    /// Widens the NodePort range before frontends are created, and narrows it after they are deleted.
    fn plan_node_ports(&self, before: Option<(u16, u16)>, plan: &mut Plan) {
        let after = self.frontends.node_port_range();
        if before == after {
            return;
        }
        let wide = match (before, after) {
            (Some((min, max)), Some((other_min, other_max))) => {
                Some((min.min(other_min), max.max(other_max)))
            }
            (range, None) | (None, range) => range,
        };
        if wide != before {
            plan.word(Phase::Switches, ArrayId::Config, 0, self.config_word(wide));
        }
        if wide != after {
            plan.word(Phase::Narrowed, ArrayId::Config, 0, self.config_word(after));
        }
    }

    /// Notes the flags of a service.
    fn note_maglev(&mut self, id: u32, flags: ServiceFlags) {
        if flags.has(ServiceFlags::MAGLEV) {
            self.maglev.insert(id);
        } else {
            self.maglev.remove(&id);
        }
    }

    /// Says to programs whether any Service is hashed. No order matters: whoever has not heard of it leaves a segment alone, as one
    /// that comes before the Service itself.
    fn plan_maglev(&self, plan: &mut Plan) {
        let (at, word) = (Config::PACKETS_WORD, self.packets_word());
        if self.maps.config.load(at) != word {
            plan.word(Phase::Switches, ArrayId::Config, at, word);
        }
    }

    /// The word of `lb_config` that says how packets are served.
    fn packets_word(&self) -> u64 {
        let mut config: Config = read(&*self.maps.config, 0);
        config.packets = config.packets.without(PacketLb::MAGLEV);
        if !self.maglev.is_empty() {
            config.packets = config.packets.with(PacketLb::MAGLEV);
        }
        config.to_words()[Config::PACKETS_WORD]
    }

    /// The word of `lb_config` that holds NodePorts and sockets.
    fn config_word(&self, node_ports: Option<(u16, u16)>) -> u64 {
        let (node_port_min, node_port_max) = node_ports.unwrap_or((0, 0));
        let [word, ..] =
            Config { node_port_min, node_port_max, socket_lb: self.socket_lb, ..Config::OFF }.to_words();
        word
    }
}
