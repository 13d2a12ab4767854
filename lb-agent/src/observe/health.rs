//! Whether the agent keeps up: what it was told, since when, and what of that it has done.
//!
//! ```text
//! sources, ticks  --queued-->  Health  <--settled--  owner
//!                                |
//!                              judge(now)           /healthz, /livez, health check ports
//! ```
//!
//! The senders note what they send, so that an owner that hangs is found without its help (HZ-2): what was sent and is not
//! settled gets older. A tick is sent every second, therefore an owner with nothing to do is watched too, and so is one whose
//! writes fail: a pass that fails settles nothing. An API server that is away queues nothing (SY-8).

use core::time::Duration;
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use jiff::Timestamp;

use crate::model::{Change, Event, Family};

/// What is queued for so long makes its family unhealthy, unless another sync interval is configured: twice kube-proxy's of
/// 30 s (HZ-2).
pub const TIMEOUT: Duration = Duration::from_mins(1);
/// Ticks come each second, and queues know seconds: less would tell of nothing but a busy machine.
const SHORTEST: Duration = Duration::from_secs(10);

/// Messages sent within such a time are one entry of a queue: as old as the first of them until the last is done.
const GRAIN: Duration = Duration::from_secs(1);
/// Entries of a queue; what is sent when there are so many belongs to the last one.
const MOST: usize = 256;

/// What the agent is told, and what it has done of it. Shared by those who tell, the owner, and those who are asked.
#[derive(Debug)]
pub struct Health {
    state: Mutex<State>,
    /// See [`TIMEOUT`].
    patience: Duration,
}

impl Default for Health {
    fn default() -> Self {
        Self { state: Mutex::default(), patience: TIMEOUT }
    }
}

#[derive(Debug, Default)]
struct State {
    /// IPv4, IPv6.
    families: [FamilyState; 2],
    ticks: Queue,
    node: NodeState,
    is_ready: bool,
}

#[derive(Debug, Default)]
struct FamilyState {
    last_updated: Option<Timestamp>,
    queue: Queue,
}

/// What was sent and is not done: stretches of time with the first and the last message of each, ascending.
#[derive(Debug, Default)]
struct Queue(VecDeque<(Instant, Instant)>);

/// The own Node, as far as load balancers in front of it should know (HZ-4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum NodeState {
    /// There is no Node of this name, and there has been none: it may still come.
    #[default]
    Unseen,
    /// New connections may come.
    Eligible,
    /// Being deleted, deleted, or marked by the cluster autoscaler.
    Leaving,
}

/// What the owner has finished with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Settled {
    /// When the last object that it took was sent.
    pub objects: Option<Instant>,
    /// When the last tick that it took was sent.
    pub ticks: Option<Instant>,
    /// Whether the maps were brought up to date by it.
    pub updated: bool,
}

/// The health of one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FamilyHealth {
    /// When the maps were last brought up to date; never, if not yet.
    pub last_updated: Option<Timestamp>,
    /// Nothing waits for longer than it may.
    pub is_healthy: bool,
}

/// What is answered to a probe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Judgement {
    /// IPv4, IPv6.
    pub families: [FamilyHealth; 2],
    /// HZ-4.
    pub is_node_eligible: bool,
    /// Everything has been programmed once.
    pub is_ready: bool,
}

impl Judgement {
    /// All families are healthy (HZ-3).
    pub fn is_live(&self) -> bool {
        self.families.iter().all(|family| family.is_healthy)
    }

    /// The latest update of any family.
    pub fn last_updated(&self) -> Option<Timestamp> {
        self.families.iter().filter_map(|family| family.last_updated).max()
    }
}

impl Queue {
    fn push(&mut self, at: Instant) {
        let is_full = self.0.len() >= MOST;
        match self.0.back_mut() {
            Some((first, last)) if is_full || at.saturating_duration_since(*first) < GRAIN => *last = at,
            _ => self.0.push_back((at, at)),
        }
    }

    /// Everything that was sent until `through` is done.
    fn settle(&mut self, through: Instant) {
        while self.0.front().is_some_and(|(_, last)| *last <= through) {
            self.0.pop_front();
        }
    }

    fn is_late(&self, now: Instant, patience: Duration) -> bool {
        self.0.front().is_some_and(|(first, _)| now.saturating_duration_since(*first) >= patience)
    }
}

impl Health {
    /// One that waits twice as long as `resync`, ten seconds at least, and for `min_sync` more: what is held back on
    /// purpose is not late (SY-2).
    pub fn new(resync: Duration, min_sync: Duration) -> Self {
        let patience = resync.saturating_mul(2).max(SHORTEST).saturating_add(min_sync);
        Self { patience, ..Self::default() }
    }

    /// An object is about to be sent to the owner, at `at`.
    pub fn object_queued(&self, event: &Event, at: Instant) {
        let mut state = self.state();
        for family in Family::BOTH.into_iter().filter(|family| concerns(event, *family)) {
            state.families[family as usize].queue.push(at);
        }
    }

    /// A tick is about to be sent to the owner, at `at`.
    pub fn tick_queued(&self, at: Instant) {
        self.state().ticks.push(at);
    }

    /// The owner has done what it was told until then.
    pub fn settled(&self, settled: Settled, now: Timestamp) {
        let mut state = self.state();
        let State { families, ticks, is_ready, .. } = &mut *state;
        for family in families {
            if let Some(through) = settled.objects {
                family.queue.settle(through);
            }
            if settled.updated {
                family.last_updated = Some(now);
            }
        }
        if let Some(through) = settled.ticks {
            ticks.settle(through);
        }
        *is_ready |= settled.updated;
    }

    /// What the own Node is now.
    pub fn set_node(&self, node: NodeState) {
        self.state().node = node;
    }

    /// What the own Node is.
    pub fn node(&self) -> NodeState {
        self.state().node
    }

    /// The answer at `now`.
    pub fn judge(&self, now: Instant) -> Judgement {
        let state = self.state();
        let is_owner_late = state.ticks.is_late(now, self.patience);
        Judgement {
            families: [0, 1].map(|at| {
                let FamilyState { last_updated, queue } = &state.families[at];
                FamilyHealth {
                    last_updated: *last_updated,
                    is_healthy: !is_owner_late && !queue.is_late(now, self.patience),
                }
            }),
            is_node_eligible: state.node != NodeState::Leaving,
            is_ready: state.is_ready,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a family has to follow (DS-1). A deletion of a slice does not say which family it had.
fn concerns(event: &Event, family: Family) -> bool {
    match event {
        Event::Slice(Change::Apply(slice)) => slice.family == family,
        Event::Slice(_) | Event::Service(_) | Event::Node(_) | Event::ServiceCidr(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ServiceName, SliceBuilder, SliceName};

    fn slice(family: Family) -> Event {
        let (name, owner) = (SliceName::new("ns", "s-1"), ServiceName::new("ns", "s"));
        Event::Slice(Change::Apply(SliceBuilder::new(name, owner, family).build()))
    }

    fn service() -> Event {
        Event::Service(Change::Delete(ServiceName::new("ns", "s")))
    }

    fn healthy(health: &Health, now: Instant) -> [bool; 2] {
        health.judge(now).families.map(|family| family.is_healthy)
    }

    fn objects(through: Instant) -> Settled {
        Settled { objects: Some(through), updated: true, ..Settled::default() }
    }

    const SECOND: Duration = Duration::from_secs(1);

    /// HZ-2, HZ-3.
    #[test]
    fn what_waits_for_a_minute_makes_unhealthy_until_it_is_done() {
        let (health, begin) = (Health::default(), Instant::now());
        let at = |seconds| begin + SECOND * seconds;
        assert!(health.judge(at(1000)).is_live(), "never updated, nothing queued");
        health.object_queued(&service(), begin);
        health.object_queued(&service(), at(30));
        assert!(health.judge(at(59)).is_live());
        assert!(!health.judge(at(60)).is_live(), "nobody has told that it was taken, and nobody needs to");
        // The first is done, the second is not.
        health.settled(objects(begin), Timestamp::now());
        assert!(health.judge(at(89)).is_live());
        assert!(!health.judge(at(90)).is_live());
        health.settled(objects(at(30)), Timestamp::now());
        assert!(health.judge(at(1000)).is_live());
    }

    /// HZ-2: a queue does not grow without end, and a late answer is not a wrong one.
    #[test]
    fn an_owner_that_never_comes_back_costs_no_memory() {
        let (health, begin) = (Health::default(), Instant::now());
        for second in 0..10_000 {
            health.object_queued(&service(), begin + SECOND * second);
        }
        assert_eq!(health.state().families[0].queue.0.len(), MOST);
        assert!(!health.judge(begin + SECOND * 10_000).is_live());
        health.settled(objects(begin + SECOND * 9_999), Timestamp::now());
        assert!(health.judge(begin + SECOND * 20_000).is_live());
    }

    /// HZ-2.
    #[test]
    fn a_family_that_falls_behind_leaves_the_other_one_healthy() {
        let (health, begin) = (Health::default(), Instant::now());
        health.object_queued(&slice(Family::V6), begin);
        assert_eq!(healthy(&health, begin + TIMEOUT), [true, false]);
        assert!(!health.judge(begin + TIMEOUT).is_live());
        health.object_queued(&slice(Family::V4), begin + TIMEOUT);
        assert_eq!(healthy(&health, begin + TIMEOUT * 2), [false, false]);
    }

    /// HZ-2, SY-3: a pass that fails settles nothing; a tick is there even where no object changes.
    #[test]
    fn an_owner_that_takes_no_tick_or_fails_is_found_without_objects() {
        let (health, begin) = (Health::default(), Instant::now());
        health.tick_queued(begin);
        assert_eq!(healthy(&health, begin + TIMEOUT), [false, false]);
        // It has taken later objects, but that tick's pass has not succeeded.
        health.settled(objects(begin + TIMEOUT), Timestamp::now());
        assert_eq!(healthy(&health, begin + TIMEOUT), [false, false]);
        health.settled(Settled { ticks: Some(begin), ..Settled::default() }, Timestamp::now());
        assert_eq!(healthy(&health, begin + TIMEOUT * 9), [true, true]);
    }

    /// SY-8, HZ-2.
    #[test]
    fn an_api_server_that_is_away_queues_nothing() {
        let (health, begin) = (Health::default(), Instant::now());
        for second in 0..1000 {
            let now = begin + SECOND * second;
            health.tick_queued(now);
            health.settled(Settled { ticks: Some(now), ..Settled::default() }, Timestamp::now());
        }
        assert!(health.judge(begin + SECOND * 1000).is_live());
    }

    /// HZ-4.
    #[test]
    fn a_node_that_leaves_is_not_eligible_and_one_that_never_was_is() {
        let health = Health::default();
        for (node, is_eligible) in
            [(NodeState::Unseen, true), (NodeState::Eligible, true), (NodeState::Leaving, false)]
        {
            health.set_node(node);
            let judgement = health.judge(Instant::now());
            assert_eq!(judgement.is_node_eligible, is_eligible, "{node:?}");
            assert!(judgement.is_live(), "HZ-7: draining is no reason to be restarted");
        }
    }

    /// HZ-2, SY-2.
    #[test]
    fn the_sync_intervals_say_how_long_something_may_wait() {
        let cases =
            [(30, 0, 60), (45, 0, 90), (5, 0, 10), (1, 0, 10), (0, 0, 10), (120, 90, 330), (1, 1, 11)];
        for (resync_s, min_sync_s, patience_s) in cases {
            let begin = Instant::now();
            let health = Health::new(Duration::from_secs(resync_s), Duration::from_secs(min_sync_s));
            health.object_queued(&service(), begin);
            let after = |seconds| health.judge(begin + Duration::from_secs(seconds)).is_live();
            assert!(after(patience_s - 1) && !after(patience_s), "{resync_s} {min_sync_s}");
        }
    }
}
