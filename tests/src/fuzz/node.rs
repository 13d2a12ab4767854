//! A node whose cluster is a history: the agent without threads, and maps in memory.

use std::collections::BTreeSet;
use std::sync::Arc;

use lb_agent::compile::Compiled;
use lb_agent::maps::memory::{Capacities, MemMaps};
use lb_agent::model::{ClusterState, Event, ServiceName};
use lb_agent::reconcile::Desired;

use super::history::Step;
use super::promises;
use crate::expected;
use crate::invariants::{assert_no_dangling, meaning};
use crate::scenario::{Cluster, Driver};

/// The name that its Node object has.
const NAME: &str = "node-1";

/// Small: maps are read whole after every pass, and what does not fit is worth meeting.
const CAPACITIES: Capacities = Capacities {
    frontends: 64,
    addresses: 1,
    services: 32,
    slots: 128,
    backends: 64,
    affinity: 1,
    ranges: 16,
    flows4: 1,
    flows6: 1,
};

/// More grace periods than any state needs to come to rest.
const MANY: usize = 50;

/// The Service whose slices the agent remembers when they name nobody any more (BS-8): of this one the history counts.
const REMEMBERED: (&str, &str) = ("default", "kubernetes");

/// Objects, an agent that follows them, and its maps.
pub struct FuzzedNode {
    /// The objects that there are.
    cluster: Cluster,
    maps: MemMaps,
    state: ClusterState,
    touched: BTreeSet<ServiceName>,
    driver: Driver,
}

impl Default for FuzzedNode {
    fn default() -> Self {
        Self::start()
    }
}

impl FuzzedNode {
    /// Nothing is there yet.
    pub fn start() -> Self {
        let maps = MemMaps::new(CAPACITIES);
        let cluster = Cluster::default();
        let (state, driver) = (state_of(cluster.lists()), start_on(&maps));
        Self { cluster, maps, state, touched: BTreeSet::new(), driver }
    }

    /// Takes in a step; returns the number of writes.
    pub fn follow(&mut self, step: Step) -> usize {
        let event = match step {
            Step::Put(object) => self.cluster.put(*object),
            Step::Remove(gone) => self.cluster.remove(gone),
            Step::Pass => return self.pass(),
            Step::Restart => return self.restart(),
        };
        self.state.apply(event, &mut self.touched);
        0
    }

    /// Programs what was touched; returns the number of writes.
    fn pass(&mut self) -> usize {
        let touched = std::mem::take(&mut self.touched);
        let changed = touched.iter().map(|name| desired(&self.state, name)).collect();
        let writes = self.driver.put_all(changed).expect("memory does not fail");
        self.rest() + writes
    }

    /// Lets all grace periods pass.
    fn rest(&mut self) -> usize {
        let mut writes = 0;
        for _ in 0..MANY {
            assert_no_dangling(self.driver.reconciler.maps());
            if self.driver.reconciler.is_settled() {
                return writes;
            }
            writes += self.driver.settle().expect("memory does not fail");
        }
        panic!("grace period after grace period, and still something waits");
    }

    /// The agent ends, wherever it is; the next one lists everything.
    fn restart(&mut self) -> usize {
        self.state = state_of(self.cluster.lists());
        self.touched.clear();
        self.driver = start_on(&self.maps);
        let writes = self.driver.put_all(self.all()).expect("memory does not fail");
        let again = self.driver.everything().expect("memory does not fail");
        self.rest() + writes + again
    }

    /// Every Service that there is, as the agent sees it.
    fn all(&self) -> Vec<Desired> {
        self.state.services().map(|name| desired(&self.state, name)).collect()
    }

    /// Programs what is left, then looks whether the end is the one that the objects say.
    pub fn finish(&mut self) {
        self.pass();
        let all = self.all();
        let writes = self.driver.everything().expect("memory does not fail");
        assert_eq!(writes, 0, "a second pass writes nothing");
        self.assert_order_does_not_matter();
        if !self.driver.left_out.is_empty() {
            return;
        }
        let should = expected::meaning(&all);
        assert_eq!(meaning(self.driver.reconciler.maps()).expect("memory does not fail"), should);
        let mut next = start_on(&self.maps);
        let writes = next.put_all(all).expect("memory does not fail");
        assert_eq!(writes, 0, "an agent that starts writes nothing");
        let writes = next.everything().expect("memory does not fail");
        assert_eq!(writes, 0, "an agent that starts finds nothing that belongs to nobody");
    }

    /// The same objects, the last one first and without their history, and the same endpoints in other slices.
    fn assert_order_does_not_matter(&self) {
        let mut events = self.cluster.lists();
        events.retain(|event| !is_mark(event));
        events.reverse();
        let fresh = state_of(events);
        assert!(fresh.services().eq(self.state.services()));
        for name in self.state.services() {
            promises::check_grouping(&self.state, name);
            if (name.namespace.as_str(), name.name.as_str()) != REMEMBERED {
                assert_eq!(fresh.compile(name), self.state.compile(name), "{name}");
            }
        }
    }
}

/// What an agent makes of these events.
fn state_of(events: Vec<Event>) -> ClusterState {
    let mut state = ClusterState::new(Arc::from(NAME));
    let mut touched = BTreeSet::new();
    for event in events {
        state.apply(event, &mut touched);
    }
    state
}

/// Whether an event is the begin or the end of a list.
fn is_mark(event: &Event) -> bool {
    use lb_agent::model::Change::{Complete, Restart};
    matches!(
        event,
        Event::Service(Restart | Complete)
            | Event::Slice(Restart | Complete)
            | Event::Node(Restart | Complete)
    )
}

fn start_on(maps: &MemMaps) -> Driver {
    Driver::start(maps.open()).expect("memory does not fail")
}

/// What a Service should have in the maps; nothing if there is none.
fn desired(state: &ClusterState, name: &ServiceName) -> Desired {
    let compiled: Compiled = state.compile(name);
    let created_s = match state.service(name) {
        Some(service) => {
            promises::check(service, state.serving_slices(name), &compiled);
            service.created_s
        }
        None => i64::MAX,
    };
    Desired { name: name.clone(), created_s, ports: compiled.ports }
}
