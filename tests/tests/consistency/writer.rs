//! The writer: one change after the other, as the agent would make them.

use std::collections::BTreeSet;
use std::time::Duration;

use lb_agent::maps::Maps;
use lb_tests::invariants::assert_no_dangling;
use lb_tests::scenario::Driver;
use lb_tests::wait_for;

use crate::shared::Shared;
use crate::world::{ALL, Kind, Random, desired, is_there};

/// Passes during which the same Services are changed most often; a multiple of 4.
const HOT: u64 = 64;

/// Passes after which everything that the reconciler knows is read back from the maps, as after a start.
const RELOAD: u64 = 1024;

/// Longer than any grace period.
const GRACE: Duration = Duration::from_secs(20);

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Changes {
    /// Passes of the reconciler.
    passes: u64,
    /// Services whose endpoints were changed.
    pub(crate) applied: u64,
    /// Services that were made after they had been deleted.
    pub(crate) born: u64,
    /// Starts on the maps as they were.
    reloads: u64,
    /// Passes that had to wait for a grace period.
    waits: u64,
}

/// See the module.
pub(crate) struct Writer<'a> {
    agent: Driver,
    shared: &'a Shared,
    random: Random,
    changes: Changes,
}

impl<'a> Writer<'a> {
    /// Programs every resident.
    pub(crate) fn start(maps: Maps, shared: &'a Shared) -> Self {
        let agent = Driver::start(maps).unwrap();
        let mut writer = Self { agent, shared, random: Random(1), changes: Changes::default() };
        writer.change((0..ALL).collect());
        writer.change(Kind::Guest.numbers().step_by(2).collect());
        writer
    }

    /// Changes Services until `is_enough`, or until enough is wrong.
    pub(crate) fn run(&mut self, is_enough: impl Fn(Changes) -> bool) {
        while !is_enough(self.changes) && !self.shared.is_over() {
            if self.changes.passes.is_multiple_of(HOT) {
                self.shared.heat(&mut self.random);
            }
            if self.changes.passes % RELOAD == RELOAD - 1 {
                self.agent.recover();
                self.changes.reloads += 1;
            }
            let next = self.next();
            self.change(next);
            self.changes.passes += 1;
        }
    }

    /// Whom to change next: several of those that readers look at, so that each takes what another one gave back in the pass
    /// before, and some others now and then.
    fn next(&mut self) -> BTreeSet<u32> {
        let (shared, random) = (self.shared, &mut self.random);
        let mut next: BTreeSet<u32> = shared.hot(Kind::Connected).collect();
        // Of the first two, the first one goes, the second one comes and goes, the first one comes. Of the other two, the
        // second one comes, the first one goes and comes, the second one goes.
        let [first, third] = [0, 2].map(|at| shared.hot(Kind::Guest).start + at);
        let turn = usize::try_from(self.changes.passes % 4).unwrap();
        next.extend([first + [0, 1, 1, 0][turn], third + [1, 0, 0, 1][turn]]);
        if random.once_in(4) {
            next.extend(shared.hot(Kind::Datagrams));
            next.extend(shared.hot(Kind::Streams));
            next.extend((0..random.below(4)).map(|_| random.below(Kind::Guest.numbers().start)));
        }
        next
    }

    /// Makes the next change of some Services, in one pass.
    fn change(&mut self, numbers: BTreeSet<u32>) {
        let mut services = Vec::with_capacity(numbers.len());
        for number in &numbers {
            let change = self.shared.begin(*number);
            self.changes.applied += 1;
            self.changes.born += u64::from(Kind::of(*number) == Kind::Guest && is_there(*number, change));
            services.push(desired(*number, change));
        }
        self.agent.put_all(services).unwrap();
        self.settle();
        for number in numbers {
            self.shared.finish(number);
        }
    }

    /// Takes in what grace periods have freed. Where everything free waits for one, so does the writer: on a busy machine it
    /// is faster than they are.
    fn settle(&mut self) {
        self.agent.settle().unwrap();
        if !self.agent.later.is_empty() {
            self.changes.waits += 1;
            wait_for("room that a grace period frees", GRACE, || {
                self.agent.settle().unwrap();
                if self.agent.later.is_empty() { Ok(()) } else { Err(format!("{:?} wait", self.agent.later)) }
            })
            .unwrap();
        }
        let Driver { left_out, contested, .. } = &self.agent;
        assert!(left_out.is_empty(), "the maps are large enough: {left_out:?}");
        assert!(contested.is_empty(), "nobody shares an address: {contested:?}");
    }

    /// What was done until now.
    pub(crate) const fn changes(&self) -> Changes {
        self.changes
    }

    /// Deletes every Service; nothing is left, and nothing has leaked.
    pub(crate) fn remove_all(&mut self) {
        assert_no_dangling(self.agent.reconciler.maps());
        self.agent.follow(&[]).unwrap();
        wait_for("the last grace period", GRACE, || {
            self.agent.settle().unwrap();
            if self.agent.reconciler.is_settled() { Ok(()) } else { Err("it has not passed".to_owned()) }
        })
        .unwrap();
        for usage in self.agent.reconciler.usage() {
            assert_eq!(usage.used, 0, "{}", usage.map);
        }
    }
}
