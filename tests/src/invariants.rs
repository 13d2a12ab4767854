//! What must hold in the maps after every single write, and what their content means.
//!
//! Programs read the maps while the agent writes them and after it has stopped anywhere. So these rules do not look at
//! the agent at all: they begin at the frontends, as programs do, and follow every reference.

use std::collections::BTreeMap;
use std::ops::Range;

use lb_agent::maps::{Array, MapError, Maps, read};
use lb_common::abi::{
    Addr, Backend, BackendState, Config, Draining, Frontend, FrontendKey, FrontendKind, L4Addr, RangeKey,
    RangePrefix, Run, Service, ServiceFlags, ServiceId, Slot, Words as _,
};

/// Everything that is wrong in the maps, one sentence each.
///
/// # Errors
/// Those of reading the maps.
pub fn dangling(maps: &Maps) -> Result<Vec<String>, MapError> {
    let mut check = Check { maps, slots: Vec::new(), backends: BTreeMap::new(), wrong: Vec::new() };
    let config = Config::from_words([0, 1, 2, 3, 4, 5].map(|word| maps.config.load(word)));
    let mut services: BTreeMap<u32, Vec<FrontendKey>> = BTreeMap::new();
    for (key, value) in maps.frontends.dump()? {
        check.frontend(&key, value, &config);
        services.entry(value.service.index).or_default().push(key);
    }
    for (id, frontends) in services {
        check.service(id, &frontends);
    }
    Ok(check.wrong)
}

/// Panics with everything that [`dangling`] finds.
pub fn assert_no_dangling(maps: &Maps) {
    let wrong = dangling(maps).expect("the maps can be read");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

struct Check<'a> {
    maps: &'a Maps,
    /// Slots that were seen, with the service that has them.
    slots: Vec<(Range<u32>, u32)>,
    /// Whose a backend id is.
    backends: BTreeMap<u32, (u32, L4Addr)>,
    wrong: Vec<String>,
}

impl Check<'_> {
    fn frontend(&mut self, key: &FrontendKey, value: Frontend, config: &Config) {
        let name = describe(key);
        if value.tag != key.tag() {
            self.wrong.push(format!("{name} has the tag of another key"));
        }
        match FrontendKind::from_number(value.kind) {
            None => self.wrong.push(format!("{name} has no kind")),
            Some(FrontendKind::NodePort) if !config.may_be_node_port(key.port) => {
                self.wrong.push(format!("{name} is outside the NodePort range of {config:?}"));
            }
            Some(kind) if (kind == FrontendKind::OtherPorts) != key.is_other_ports() => {
                self.wrong.push(format!("{name} is of another kind than its key"));
            }
            Some(FrontendKind::NodePort) if key.addr != key.addr.any() => {
                self.wrong.push(format!("{name} is a NodePort of one address"));
            }
            Some(_) => {}
        }
    }

    fn service(&mut self, id: u32, frontends: &[FrontendKey]) {
        if id >= self.maps.services.entries(Service::WORDS) {
            self.wrong.push(format!("service {id} is outside lb_services"));
            return;
        }
        let service: Service = read(&*self.maps.services, id);
        let is_v4 = frontends.first().is_some_and(|key| key.addr.is_v4());
        if frontends.iter().any(|key| key.addr.is_v4() != is_v4) {
            self.wrong.push(format!("service {id} has frontends of both families"));
        }
        self.draining(id, service.draining, is_v4);
        self.run(id, "cluster", service.cluster, is_v4);
        if (service.local.base, service.local.count) != (service.cluster.base, service.cluster.count) {
            self.run(id, "local", service.local, is_v4);
        }
    }

    fn run(&mut self, id: u32, which: &str, run: Run, is_v4: bool) {
        if run.count == 0 {
            return;
        }
        let Some(end) = run.base.checked_add(u32::from(run.count)) else {
            self.wrong.push(format!("the {which} run of service {id} ends outside of numbers"));
            return;
        };
        if end > self.maps.slots.entries(Slot::WORDS) {
            self.wrong.push(format!("the {which} run of service {id} is outside lb_slots"));
            return;
        }
        if let Some((_, other)) =
            self.slots.iter().find(|(taken, _)| taken.start < end && run.base < taken.end)
        {
            self.wrong.push(format!("the {which} run of service {id} shares slots with service {other}"));
        }
        self.slots.push((run.base..end, id));
        for index in run.base..end {
            self.slot(id, which, index, is_v4);
        }
    }

    /// Between two writes, one that drains may still be in a run too.
    fn draining(&mut self, id: u32, draining: Draining, is_v4: bool) {
        let Some((base, order)) = draining.region() else { return };
        let end = base + (1 << order);
        if end > self.maps.slots.entries(Slot::WORDS) {
            self.wrong.push(format!("what drains of service {id} is outside lb_slots"));
            return;
        }
        if let Some((_, other)) = self.slots.iter().find(|(taken, _)| taken.start < end && base < taken.end) {
            self.wrong.push(format!("what drains of service {id} shares slots with service {other}"));
        }
        self.slots.push((base..end, id));
        for index in base..end {
            let slot: Slot = read(&*self.maps.slots, index);
            if slot.backend.index != 0 {
                self.slot(id, "draining", index, is_v4);
            }
        }
    }

    fn slot(&mut self, id: u32, which: &str, index: u32, is_v4: bool) {
        let slot: Slot = read(&*self.maps.slots, index);
        let backend: Backend = read(&*self.maps.backends, slot.backend.index);
        let place = format!("slot {index} of the {which} run of service {id}");
        if slot.backend.index == 0 || slot.backend.index >= self.maps.backends.entries(1) {
            self.wrong.push(format!("{place} names the backend {}", slot.backend.index));
        } else if !backend.serves(slot.generation) {
            self.wrong.push(format!("{place} names generation {} of {backend:?}", slot.generation));
        }
        if slot.addr.is_v4() != is_v4 {
            self.wrong.push(format!("{place} is of another family"));
        }
        let me = (id, slot.at());
        let owner = self.backends.entry(slot.backend.index).or_insert(me);
        if *owner != me {
            self.wrong.push(format!("{place} shares backend {} with {owner:?}", slot.backend.index));
        }
    }
}

/// A slot as a connection sees it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Seat {
    /// Where the backend is.
    pub at: L4Addr,
    /// Whether it is about to leave.
    pub terminating: bool,
    /// [`Backend::runs`]
    pub runs: u8,
}

/// What a frontend is, without ids and places in arrays: equal states of the maps have equal meanings, whatever their
/// history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Meant {
    /// [`Frontend::kind`]
    pub kind: u8,
    /// Who serves connections of Cluster policy, in order.
    pub cluster: Vec<Seat>,
    /// Who serves connections of Local policy, in order.
    pub local: Vec<Seat>,
    /// Nobody serves connections of Local policy because all endpoints are on other nodes.
    pub elsewhere: bool,
    /// Policy.
    pub flags: ServiceFlags,
    /// Seconds; 0 means none.
    pub affinity_s: u32,
    /// Source ranges, in order.
    pub ranges: Vec<RangePrefix>,
}

impl Meant {
    /// The other ports of a cluster IP: whoever owns them, they are refused.
    pub const REFUSED: Self = Self {
        kind: FrontendKind::OtherPorts as u8,
        cluster: Vec::new(),
        local: Vec::new(),
        elsewhere: false,
        flags: ServiceFlags { bits: 0 },
        affinity_s: 0,
        ranges: Vec::new(),
    };

    /// Where connections of this node's sockets go.
    pub fn used(&self) -> Vec<L4Addr> {
        let is_local =
            self.kind == FrontendKind::ClusterIp as u8 && self.flags.has(ServiceFlags::INTERNAL_LOCAL);
        let seats = if is_local { &self.local } else { &self.cluster };
        seats.iter().map(|seat| seat.at).collect()
    }
}

/// What every frontend is.
///
/// # Errors
/// Those of reading the maps.
pub fn meaning(maps: &Maps) -> Result<BTreeMap<FrontendKey, Meant>, MapError> {
    let frontends = maps.frontends.dump()?;
    let ranges = maps.ranges.dump()?;
    Ok(frontends.into_iter().map(|(key, value)| (key, meant(maps, value, &ranges))).collect())
}

/// Source ranges of service ports that have no frontend: nobody asks for them, and they take room.
///
/// # Errors
/// Those of reading the maps.
pub fn lost_ranges(maps: &Maps) -> Result<Vec<RangePrefix>, MapError> {
    let services: Vec<ServiceId> =
        maps.frontends.dump()?.into_iter().map(|(_, value)| value.service).collect();
    let all = maps.ranges.dump()?.into_iter().map(|(range, _)| range);
    Ok(all.filter(|range| !services.contains(&range.key.service)).collect())
}

fn meant(maps: &Maps, value: Frontend, ranges: &[(RangePrefix, u32)]) -> Meant {
    if value.kind == FrontendKind::OtherPorts as u8 {
        return Meant::REFUSED;
    }
    let Service { cluster, local, flags, affinity_s, .. } = read(&*maps.services, value.service.index);
    let elsewhere = local.is_elsewhere();
    let [cluster, local] = [cluster, local].map(|run| seats(maps, run));
    // Which id it is says nothing.
    let own = ranges.iter().map(|(range, _)| *range).filter(|range| range.key.service == value.service);
    let ranges = own
        .map(|range| RangePrefix { key: RangeKey { service: ServiceId { index: 0 }, ..range.key }, ..range })
        .collect();
    Meant { kind: value.kind, cluster, local, elsewhere, flags, affinity_s, ranges }
}

fn seats(maps: &Maps, run: Run) -> Vec<Seat> {
    slots(&*maps.slots, run)
        .map(|slot| {
            let backend: Backend = read(&*maps.backends, slot.backend.index);
            let terminating = backend.state == BackendState::Terminating as u8;
            Seat { at: slot.at(), terminating, runs: backend.runs }
        })
        .collect()
}

/// The slots of a run.
pub fn slots(slots: &dyn Array, run: Run) -> impl Iterator<Item = Slot> {
    (0..u32::from(run.count)).map(move |offset| read(slots, run.base.wrapping_add(offset)))
}

/// A frontend as people write it.
pub fn describe(key: &FrontendKey) -> String {
    let any = key.addr == Addr::ANY_V4 || key.addr == Addr::ANY_V6;
    let suffix = if any { " (NodePort)" } else { "" };
    format!("{}/{}{suffix}", key.at(), key.proto)
}
