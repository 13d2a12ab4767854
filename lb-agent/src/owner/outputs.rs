//! What the owner tells others without being asked: health, metrics, Events, health check node ports, receipts.
//!
//! Services are told of once the pass that planned them has succeeded: what is said then is in the maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use jiff::Timestamp;
use tracing::warn;

use super::{
    Owner,
    health_port::health_port,
    left_out::{Lack, LeftOut},
    receipts::{Receipt, Receipts},
};
use crate::{
    compile::{PortEntries, PortKey},
    hash::HashMap,
    model::{ClusterState, Event, Family, Fault, NodeContext, Notice, Reason, ServiceName, Unowned},
    observe::{
        Outlets,
        events::Note,
        health::{NodeState, Settled},
        metrics::{Pending, Totals, map_errno},
        service_health::{HealthPort, ListenOn},
    },
    reconcile::{Contested, Desired, NoRoom},
};

/// When something was sent to the owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// For ages.
    pub at: Instant,
    /// For people.
    pub time: Timestamp,
}

impl Stamp {
    /// Now.
    pub fn now() -> Self {
        Self { at: Instant::now(), time: Timestamp::now() }
    }
}

/// Service ports of policy Local without a local endpoint, though there are others: by family, and by internal and external
/// policy (NE-6).
type NoLocal = [[usize; 2]; 2];

/// Ports that are named in one Event: its text has an end.
const MOST_PORTS: usize = 5;

/// See the module.
pub(super) struct Outputs {
    outlets: Outlets,
    settled: Settled,
    /// Objects that were taken since the last success.
    pending: Pending,
    /// The pass under way looks at every Service.
    pub(super) is_full: bool,
    /// Something may count differently than others were told.
    has_news: bool,
    /// Writes since the last success.
    pub(super) writes: usize,
    /// Services that were written since the last success, and when.
    planned: BTreeMap<ServiceName, Timestamp>,
    health_ports: BTreeMap<ServiceName, HealthPort>,
    no_local: HashMap<ServiceName, NoLocal>,
    totals: NoLocal,
    receipts: Receipts,
    /// What found no room in the queue of Events, and since when it holds: a full pass tells it again if it still does.
    owed: BTreeMap<Note, Timestamp>,
    /// The same of the pass under way.
    dropped: BTreeMap<Note, Timestamp>,
    /// Ports without room whose Service was told so.
    told_full: BTreeSet<PortKey>,
    /// Why writes have failed since the last success: map and error number. Each was told.
    causes: BTreeSet<Option<(&'static str, String)>>,
}

impl Outputs {
    pub(super) fn new(outlets: Outlets) -> Self {
        Self {
            outlets,
            settled: Settled::default(),
            pending: Pending::default(),
            is_full: false,
            has_news: false,
            writes: 0,
            planned: BTreeMap::new(),
            health_ports: BTreeMap::new(),
            no_local: HashMap::default(),
            totals: NoLocal::default(),
            receipts: Receipts::new(Timestamp::now()),
            owed: BTreeMap::new(),
            dropped: BTreeMap::new(),
            told_full: BTreeSet::new(),
            causes: BTreeSet::new(),
        }
    }

    /// A device has programs again that somebody had taken off.
    pub(super) fn put_back(&self) {
        self.outlets.metrics.put_back();
    }

    /// An object was taken out of the channel.
    pub(super) fn took(&mut self, event: &Event, stamp: Stamp) {
        self.settled.objects = Some(stamp.at);
        self.pending.add(event);
    }

    /// A tick was taken out of the channel.
    pub(super) fn took_tick(&mut self, at: Instant) {
        self.settled.ticks = Some(at);
    }

    /// Where health checks of Services are answered from now on (NP-13).
    pub(super) fn listen_on(&self, addresses: &ListenOn) {
        self.outlets.listen_on.send_if_modified(|before| {
            let has_changed = before != addresses;
            before.clone_from(addresses);
            has_changed
        });
    }

    /// Receipts that are under way.
    pub(super) const fn receipts(&mut self) -> &mut Receipts {
        &mut self.receipts
    }

    /// The receipts of the Services that `is_wanted` wants.
    pub(super) fn committed(&self, is_wanted: impl Fn(&ServiceName) -> bool) -> Vec<Receipt> {
        self.receipts.committed(is_wanted)
    }

    /// A Service was compiled.
    pub(super) fn compiled(&mut self, name: &ServiceName, ports: &[PortEntries]) {
        let counts = no_local(ports);
        let before = if counts == NoLocal::default() {
            self.no_local.remove(name)
        } else {
            self.no_local.insert(name.clone(), counts)
        };
        let before = before.unwrap_or_default();
        for family in 0..2 {
            for policy in 0..2 {
                let total = &mut self.totals[family][policy];
                *total = (*total + counts[family][policy]).saturating_sub(before[family][policy]);
            }
        }
    }

    /// Tells of what holds, if it `is_new` or was dropped before.
    fn tell(&mut self, is_new: bool, note: impl FnOnce() -> Note) {
        let may_be_owed = self.is_full && !self.owed.is_empty();
        if !is_new && !may_be_owed {
            return;
        }
        let note = note();
        let owed = self.owed.remove(&note);
        if let Some(at) = owed.or_else(|| is_new.then(Timestamp::now))
            && let Err(note) = self.outlets.events.offer(note, at)
        {
            self.dropped.insert(note, at);
        }
    }

    /// A field of a Service cannot be used; `is_new` if it could be until now.
    pub(super) fn notice(&mut self, notice: &Notice, is_new: bool) {
        // What the operator switched off is no news to anybody, and would be one Event per Service and node.
        if notice.reason == Reason::ExternalIpsOff {
            return;
        }
        let text = || format!("{}: {}", notice.field, notice.reason);
        self.tell(is_new, || Note::service(&notice.service, "FieldNotUsed", "Program", text()));
    }

    /// What is new of an object that belongs to no Service. An `EndpointSlice` without a label has nobody whom an Event of
    /// every node would help (ARCHITECTURE, Decisions), and no other object lists the Events of a ServiceCIDR.
    pub(super) fn unowned(&self, object: &Unowned, fault: &Fault) {
        if matches!(object, Unowned::Node(_)) {
            let text = format!("{}: {}", fault.field, fault.reason);
            self.outlets.events.record(Note::node("FieldNotUsed", "Program", text));
        }
    }

    /// Something counts differently than others were told.
    pub(super) const fn has_news(&mut self) {
        self.has_news = true;
    }

    /// Another Service owns a frontend (LB-8); `is_new` if it did not until now.
    pub(super) fn contested(&mut self, contested: &Contested, is_new: bool) {
        let text = || contested_text(contested);
        self.tell(is_new, || Note::service(&contested.port.service, "FrontendContested", "Program", text()));
    }

    /// Maps are full and cannot grow. This is called each half minute while that is so.
    ///
    /// Each Service is told of once, and again when a further port of it has no room. Who finds no place in the queue comes next
    /// time: never those alone that are the first by name.
    pub(super) fn left_out(&mut self, left_out: &LeftOut) {
        self.told_full.retain(|port| left_out.contains(port));
        let ports: Vec<(&PortKey, &NoRoom)> = left_out.iter().collect();
        for ports in ports.chunk_by(|(one, _), (other, _)| one.service == other.service) {
            if ports.iter().all(|(port, _)| self.told_full.contains(*port)) {
                continue;
            }
            // The other half of the queue is for what else there is to tell.
            if !self.outlets.events.is_half_empty() {
                return;
            }
            if let Some(note) = map_full(ports)
                && self.outlets.events.offer(note, Timestamp::now()).is_err()
            {
                return;
            }
            self.told_full.extend(ports.iter().map(|(port, _)| (*port).clone()));
        }
    }

    /// Services were written.
    pub(super) fn planned(&mut self, services: &[ServiceName]) {
        let now = Timestamp::now();
        self.planned.extend(services.iter().map(|name| (name.clone(), now)));
    }

    /// A pass has failed: nothing is settled. The own Node is told once of each cause, not of each attempt, until one succeeds.
    pub(super) fn failed(&mut self, error: &anyhow::Error) {
        self.outlets.metrics.sync_failed(error);
        self.is_full = false;
        let cause = map_errno(error);
        let is_new = !self.causes.contains(&cause);
        let note = || not_programmed(error, cause.as_ref());
        if is_new && self.outlets.events.offer(note(), Timestamp::now()).is_ok() {
            self.causes.insert(cause);
        }
    }

    /// The own Node may have changed (HZ-4). One that was there and is gone was deleted.
    fn look_at_node(&self, node: &NodeContext) {
        let now = node_state(self.outlets.health.node(), node);
        self.outlets.health.set_node(now);
    }

    /// Everything that was taken is done, in a pass that began at `began`. `first` says that everything was programmed and
    /// attached by it for the first time.
    fn succeeded(&mut self, state: &ClusterState, left_out: &LeftOut, began: Instant, first: bool) {
        let now = Timestamp::now();
        let is_sync = first || self.is_full || !self.planned.is_empty();
        for (name, written) in core::mem::take(&mut self.planned) {
            let lack = left_out.lack(&name);
            // It is planned again in a moment, and told of then.
            if lack == Lack::Later {
                continue;
            }
            self.tell_health_port(state, &name, lack);
            if lack != Lack::Nothing {
                continue;
            }
            // Before the programs were attached, what was written had no effect.
            let committed = if first { now } else { written };
            for (family, took_s) in self.receipts.commit(&name, committed, state.service(&name).is_some()) {
                self.outlets.metrics.programmed(family, took_s);
            }
        }
        if is_sync {
            let writes = core::mem::take(&mut self.writes);
            self.outlets.metrics.synced(self.is_full, began.elapsed().as_secs_f64(), unix_s(now), writes);
        }
        if self.is_full {
            // All that holds was looked at: the rest does not hold any more.
            self.owed.clear();
        }
        self.owed.append(&mut self.dropped);
        self.causes.clear();
        self.is_full = false;
        self.outlets.metrics.settled(core::mem::take(&mut self.pending));
        self.outlets.health.settled(Settled { updated: is_sync, ..self.settled }, now);
        self.settled = Settled::default();
    }

    /// Nothing can be written yet, and nothing waits for the owner.
    fn idle(&mut self) {
        self.outlets.metrics.settled(core::mem::take(&mut self.pending));
        self.outlets.health.settled(self.settled, Timestamp::now());
        self.settled = Settled::default();
    }

    /// Changes wait on purpose (SY-2), and the owner is there: its ticks are done, the objects are not.
    fn held_back(&self) {
        let ticks = Settled { ticks: self.settled.ticks, ..Settled::default() };
        self.outlets.health.settled(ticks, Timestamp::now());
    }

    fn tell_health_port(&mut self, state: &ClusterState, name: &ServiceName, lack: Lack) {
        let has_no_room = if let Lack::Room(families) = lack { families } else { [false; 2] };
        let wanted = health_port(state, name, has_no_room);
        let before = match wanted {
            Some(wanted) => self.health_ports.insert(name.clone(), wanted),
            None => self.health_ports.remove(name),
        };
        if before != wanted {
            self.outlets.health_ports.tell(name.clone(), wanted);
        }
    }
}

impl Owner {
    /// Compiles one Service and keeps what a person should hear of it.
    pub(super) fn compile(&mut self, name: &ServiceName) -> Desired {
        let compiled = self.state.compile(name);
        let known = self.notices.get(name).map_or(&[][..], Vec::as_slice);
        for notice in &compiled.notices {
            let is_new = !known.contains(notice);
            if is_new {
                warn!(service = %notice.service, field = %notice.field, reason = %notice.reason, "cannot use a field");
            }
            self.outputs.notice(notice, is_new);
        }
        self.outputs.compiled(name, &compiled.ports);
        if compiled.notices.is_empty() {
            self.notices.remove(name);
        } else {
            self.notices.insert(name.clone(), compiled.notices);
        }
        let created_s = self.state.service(name).map_or(i64::MAX, |service| service.created_s);
        Desired { name: name.clone(), created_s, ports: compiled.ports }
    }

    /// Nothing is done in this turn, but for the word to load balancers, which waits for no write (HZ-4). After a failure nothing
    /// is settled (SY-3).
    pub(super) fn hold_back(&self) {
        self.outputs.look_at_node(self.state.node());
        if self.last_error.is_none() {
            self.outputs.held_back();
        }
    }

    /// Tells others what has become of everything that was taken, after a pass that began at `began`.
    pub(super) fn publish(&mut self, began: Instant) {
        self.outputs.look_at_node(self.state.node());
        if self.last_error.is_some() {
            return;
        }
        let Some(running) = &self.running else { return self.outputs.idle() };
        let first = !core::mem::replace(&mut self.is_published, true);
        self.outputs.has_news |= first || !self.outputs.planned.is_empty() || self.outputs.is_full;
        // Counting everything takes longer than a small change: once a second is often enough.
        let is_due = self.outputs.has_news && (first || self.outputs.settled.ticks.is_some());
        self.outputs.succeeded(&self.state, &self.left_out, began, first);
        if is_due {
            self.outputs.has_news = false;
            self.outputs.outlets.metrics.set_totals(&Totals {
                services: self.state.service_count(),
                service_ports: running.reconciler.programmed().count(),
                notices: self.notices.values().map(Vec::len).sum::<usize>()
                    + self.state.unowned_faults().count(),
                contested: self.contested.values().map(Vec::len).sum(),
                left_out: self.left_out.len(),
                no_local: self.outputs.totals,
                usage: running.reconciler.usage().to_vec(),
            });
        }
    }
}

fn contested_text(contested: &Contested) -> String {
    format!(
        "{} of port {:?} belongs to Service {}, which is older: give one of the two another address or port",
        contested.frontend.at(),
        contested.port.port.as_str(),
        contested.owner
    )
}

/// Ports of one Service that have no room.
fn map_full(ports: &[(&PortKey, &NoRoom)]) -> Option<Note> {
    let (first, _) = ports.first()?;
    let named = ports.iter().take(MOST_PORTS);
    let mut parts: Vec<String> = named
        .map(|(port, no_room)| format!("{} port {:?}: {no_room}", port.family, port.port.as_str()))
        .collect();
    if ports.len() > MOST_PORTS {
        parts.push(format!("and {} ports more", ports.len() - MOST_PORTS));
    }
    let text = format!(
        "left as it was on this node, because the maps are full and cannot be made larger: give lb-agent more memory, it tries again \
         every half minute; {}",
        parts.join("; ")
    );
    Some(Note::service(&first.service, "MapFull", "Program", text))
}

/// What follows from a write that fails.
fn not_programmed(error: &anyhow::Error, cause: Option<&(&'static str, String)>) -> Note {
    let cause = cause.map_or_else(String::new, |(map, errno)| format!(" ({map}: {errno})"));
    let text = format!(
        "cannot program the Services{cause}: {error:#}; those that changed are served as before or not at all on this node until a \
         write succeeds, which is tried again after growing pauses; if that goes on, /livez fails; `lb-agent status` shows the \
         last error"
    );
    Note::node("FailedToProgram", "Program", text)
}

/// HZ-4.
fn node_state(before: NodeState, node: &NodeContext) -> NodeState {
    match (&node.node, before) {
        (Some(node), _) if node.is_draining => NodeState::Leaving,
        (Some(_), _) => NodeState::Eligible,
        (None, NodeState::Unseen) => NodeState::Unseen,
        (None, NodeState::Eligible | NodeState::Leaving) => NodeState::Leaving,
    }
}

/// NE-6: policy Local, endpoints that could serve, and none of them here.
fn no_local(ports: &[PortEntries]) -> NoLocal {
    let mut counts = NoLocal::default();
    for port in ports.iter().filter(|port| port.policies.has_any && port.local.is_empty()) {
        let [internal, external] = &mut counts[port.key.family as usize];
        *internal += usize::from(port.policies.internal_local);
        *external += usize::from(port.policies.external_local);
    }
    counts
}

/// Seconds since 1970, to the microsecond.
#[expect(clippy::cast_precision_loss, reason = "microseconds of this century stay below 2^53")]
pub(crate) fn unix_s(time: Timestamp) -> f64 {
    time.as_microsecond() as f64 / 1e6
}

const _: () = assert!(Family::V4 as usize == 0 && Family::V6 as usize == 1, "families are indexes");

#[cfg(test)]
mod tests;
