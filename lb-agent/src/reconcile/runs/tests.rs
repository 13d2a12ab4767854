//! From the runs of one service to the next ones, again and again, on maps that are a little too small.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use proptest::prelude::*;

use super::*;
use crate::maps::memory::{Capacities, MemMaps};

/// For two runs of up to six endpoints each, old and new, most of the time.
const TIGHT: Capacities = Capacities {
    frontends: 1,
    addresses: 1,
    services: 1,
    slots: 32,
    backends: 14,
    affinity: 1,
    ranges: 16,
    flows4: 1,
    flows6: 1,
};

/// A service and what is free beside it.
struct Bench {
    maps: Maps,
    pool: Pool,
    now: Service,
}

/// A plan that was made, with what it retires and the service that it leads to.
struct Planned {
    plan: Plan,
    retired: Retired,
    next: Service,
}

impl Bench {
    fn new() -> Self {
        let maps = MemMaps::new(TIGHT).open();
        let pool = Pool { backends: Ids::new(1, TIGHT.backends), slots: Slots::new(TIGHT.slots) };
        Self { maps, pool, now: Service::FREE }
    }

    /// Plans. Without room nothing has changed, see [`plan_runs`].
    fn plan(&mut self, sets: [Option<&[Target]>; 2]) -> Result<Planned, NoRoom> {
        self.plan_wanted(sets.map(|set| set.map(|targets| Wanted { targets, table: None, elsewhere: false })))
    }

    fn plan_wanted(&mut self, wanted: [Option<Wanted<'_>>; 2]) -> Result<Planned, NoRoom> {
        self.plan_with(wanted, &[])
    }

    fn plan_with(
        &mut self,
        wanted: [Option<Wanted<'_>>; 2],
        draining: &[SocketAddr],
    ) -> Result<Planned, NoRoom> {
        let (mut plan, mut retired) = (Plan::default(), Retired::default());
        let room = (self.pool.backends.left(), self.pool.slots.left());
        let listed = (wanted, draining);
        match plan_runs(&self.maps, &mut self.pool, &self.now, listed, (&mut plan, &mut retired)) {
            Ok(next) => Ok(Planned { plan, retired, next }),
            Err(no_room) => {
                assert!(plan.is_empty() && retired == Retired::default(), "{no_room}");
                assert_eq!((self.pool.backends.left(), self.pool.slots.left()), room, "{no_room}");
                Err(no_room)
            }
        }
    }

    /// Writes, and lets a grace period pass.
    fn perform(&mut self, planned: &Planned) {
        planned.plan.apply(&mut self.maps).unwrap();
        self.now = planned.next;
        planned.retired.give_back(&mut self.pool, &mut Ids::new(0, 0));
    }

    fn slots(&self, run: Run) -> Vec<Slot> {
        slots_of(&*self.maps.slots, run).collect()
    }

    /// Ids that the runs of the service list.
    fn ids(&self) -> BTreeSet<BackendId> {
        let both = [self.now.cluster, self.now.local];
        let runs = both.into_iter().flat_map(|run| self.slots(run)).map(|slot| slot.backend);
        runs.chain(self.draining().into_values()).collect()
    }

    /// Backends that drain.
    fn draining(&self) -> BTreeMap<L4Addr, BackendId> {
        let slots = draining_slots(&*self.maps.slots, self.now.draining);
        slots.map(|slot| (slot.at(), slot.backend)).collect()
    }

    /// Backends by their addresses.
    fn members(&self) -> BTreeMap<L4Addr, BackendId> {
        current_members(&self.maps, &self.now).into_iter().map(|(at, member)| (at, member.id)).collect()
    }

    /// Panics unless the run lists `targets` by ids that say so.
    fn assert_lists(&self, run: Run, targets: &[Target], runs_of: impl Fn(SocketAddr) -> u8) {
        let slots = self.slots(run);
        assert_eq!(slots.len(), targets.len());
        for (slot, target) in slots.iter().zip(targets) {
            assert_eq!(slot.at(), L4Addr::from(target.at), "in the order that was asked for");
            let backend: Backend = read(&*self.maps.backends, slot.backend.index);
            let state = if target.terminating { BackendState::Terminating } else { BackendState::Active };
            let generation = slot.generation;
            let wanted = Backend { generation, state: state as u8, runs: runs_of(target.at), pad: 0 };
            assert_eq!(backend, wanted, "{}", target.at);
        }
    }
}

fn target(number: u8) -> Target {
    Target { at: SocketAddr::from(([10, 1, 0, number], 8080)), terminating: number == 5, here: false }
}

/// SA-3, SA-4: a client is bound to a backend by a run that the new policy does not use any more, and programs may use it until the
/// policy's word is written.
#[test]
fn who_leaves_a_run_is_in_it_until_programs_use_another_one() {
    let mut bench = Bench::new();
    let both = [target(1), target(2)];
    let planned = bench.plan([Some(&both), Some(&both)]).unwrap();
    bench.perform(&planned);
    let mut planned = bench.plan([None, Some(&both)]).unwrap();
    // Stands for the policy's word.
    planned.plan.word(Phase::Services, ArrayId::Config, 0, 1);
    let runs = |bench: &Bench| -> Vec<u8> {
        bench.ids().iter().map(|id| read::<1, Backend>(&*bench.maps.backends, id.index).runs).collect()
    };
    for write in planned.plan.writes() {
        let old_policy = bench.maps.config.load(0) == 0;
        assert!(!old_policy || runs(&bench).iter().all(|runs| runs & Backend::IN_CLUSTER != 0), "{write:?}");
        write.apply(&mut bench.maps).unwrap();
    }
    assert_eq!(runs(&bench), [Backend::IN_LOCAL; 2]);
}

fn targets() -> impl Strategy<Value = Vec<Target>> {
    prop::collection::btree_set(0_u8..8, 0..7).prop_map(|numbers| numbers.into_iter().map(target).collect())
}

/// What the two runs should list; at least one of them is used.
fn wanted() -> impl Strategy<Value = [Option<Vec<Target>>; 2]> {
    prop_oneof![
        targets().prop_map(|cluster| [Some(cluster), None]),
        targets().prop_map(|local| [None, Some(local)]),
        (targets(), targets()).prop_map(|(cluster, local)| [Some(cluster), Some(local)]),
    ]
}

/// Writes of a phase to one array, as pairs of index and word.
fn words(plan: &Plan, wanted: ArrayId) -> Vec<(usize, u64)> {
    plan.writes()
        .map(|write| match *write {
            Write::Word { array, index, word } => (array, (index, word)),
            ref other => panic!("{other:?} is not of a run"),
        })
        .filter(|(array, _)| *array == wanted)
        .map(|(_, write)| write)
        .collect()
}

proptest! {
    #[test]
    fn runs_list_what_is_wanted_and_nothing_in_use_is_touched(
        history in prop::collection::vec((wanted(), targets()), 1..12),
    ) {
        let mut bench = Bench::new();
        for (sets, serving) in &history {
            let set = |at: usize| sets[at].as_deref().map(|targets| Wanted { targets, table: None, elsewhere: false });
            let wanted = [set(0), set(1)];
            let serving: Vec<SocketAddr> = serving.iter().map(|target| target.at).collect();
            let Ok(planned) = bench.plan_with(wanted, &serving) else { continue };

            // Slots that are published stay as they are.
            let in_use: BTreeSet<u32> =
                regions_of(&bench.now).flat_map(|region| region.base..region.base + (1 << region.order)).collect();
            let known = bench.members();
            for (index, _) in words(&planned.plan, ArrayId::Slots) {
                prop_assert!(!in_use.contains(&u32::try_from(index / Slot::WORDS).unwrap()));
            }
            // The run that nobody uses repeats the other one.
            if sets.iter().any(Option::is_none) {
                prop_assert_eq!(planned.next.cluster, planned.next.local);
            }
            let (before, old) = (bench.ids(), bench.now);
            planned.plan.apply(&mut bench.maps).unwrap();
            bench.now = planned.next;

            // Whoever is gone is nobody's in the next generation, and waits; its regions too.
            let left: BTreeSet<BackendId> = before.difference(&bench.ids()).copied().collect();
            prop_assert_eq!(planned.retired.backends.iter().copied().collect::<BTreeSet<_>>(), left.clone());
            for id in left {
                let backend: Backend = read(&*bench.maps.backends, id.index);
                prop_assert_eq!((backend.state, backend.runs), (BackendState::Free as u8, 0));
            }
            let kept: Vec<Region> = regions_of(&bench.now).collect();
            let given_up: Vec<Region> = regions_of(&old)
                .filter(|region| !kept.contains(region)).collect();
            prop_assert_eq!(&planned.retired.regions, &given_up);

            let has = |set: &Option<Vec<Target>>, at| set.iter().flatten().any(|target| target.at == at);
            let runs_of = |at| {
                let [cluster, local] = [has(&sets[0], at), has(&sets[1], at)];
                (u8::from(cluster) * Backend::IN_CLUSTER) | (u8::from(local) * Backend::IN_LOCAL)
            };
            for (run, set) in [(bench.now.cluster, &sets[0]), (bench.now.local, &sets[1])] {
                if let Some(targets) = set {
                    bench.assert_lists(run, targets, runs_of);
                }
            }
            // CT-4: who serves, was a backend and is in no run any more keeps its id, if there is room for it.
            let in_runs = |at: L4Addr| sets.iter().flatten().flatten().any(|target| L4Addr::from(target.at) == at);
            let leavers: BTreeMap<L4Addr, BackendId> = known
                .into_iter()
                .filter(|(at, _)| serving.iter().any(|serving| L4Addr::from(*serving) == *at) && !in_runs(*at))
                .collect();
            let draining = bench.draining();
            prop_assert!(draining == leavers || draining.is_empty(), "{:?} {:?}", draining, leavers);
            let room = |count: usize| bench.pool.slots.fits(u16::try_from(count).unwrap());
            prop_assert!(draining == leavers || !room(leavers.len()));
            for id in draining.values() {
                let backend: Backend = read(&*bench.maps.backends, id.index);
                prop_assert_eq!((backend.state, backend.runs), (BackendState::Terminating as u8, 0));
            }
            planned.retired.give_back(&mut bench.pool, &mut Ids::new(0, 0));
            // Nothing leaks, and nothing is counted twice.
            let slots: usize = kept.iter().map(|region| 1 << region.order).sum();
            prop_assert_eq!(bench.pool.slots.left() + slots, TIGHT.slots as usize);
            prop_assert_eq!(bench.pool.backends.left() + bench.ids().len(), TIGHT.backends as usize - 1);

            if draining == leavers {
                let again = bench.plan_with(wanted, &serving).unwrap();
                prop_assert_eq!((again.plan.len(), again.next, again.retired), (0, bench.now, Retired::default()));
            }
        }
    }
}

#[test]
fn newcomers_are_alive_before_their_slots_are_and_leavers_die_after_the_service_is() {
    let mut bench = Bench::new();
    let first = bench.plan([Some(&[target(1), target(2)]), None]).unwrap();
    bench.perform(&first);
    let planned = bench.plan([Some(&[target(2), target(3)]), None]).unwrap();
    let mut plan = planned.plan.clone();
    // The word of the service, which the caller adds, tells the phases apart.
    plan.word(Phase::Services, ArrayId::Services, 0, 0);
    let order: Vec<ArrayId> = plan
        .writes()
        .map(|write| match write {
            Write::Word { array, .. } => *array,
            other => panic!("{other:?} is not of a run"),
        })
        .collect();
    let mut expected = vec![ArrayId::Backends];
    expected.extend([ArrayId::Slots; 2 * Slot::WORDS]);
    expected.extend([ArrayId::Services, ArrayId::Backends]);
    assert_eq!(order, expected);
}

#[test]
fn who_stays_keeps_its_id_and_who_comes_back_has_another_generation() {
    let mut bench = Bench::new();
    let mut seen = Vec::new();
    for numbers in [vec![1, 2], vec![2], vec![1, 2]] {
        let targets: Vec<Target> = numbers.into_iter().map(target).collect();
        let planned = bench.plan([Some(&targets), None]).unwrap();
        bench.perform(&planned);
        seen.push(bench.slots(bench.now.cluster));
    }
    let who = |slot: &Slot| (slot.backend, slot.generation);
    assert_eq!(who(&seen[0][1]), who(&seen[1][0]), "it stayed");
    assert_eq!(who(&seen[1][0]), who(&seen[2][1]), "it stayed");
    assert_ne!(who(&seen[0][0]), who(&seen[2][0]), "it left and came back");
}

#[test]
fn each_publication_of_a_run_has_the_next_generation() {
    let mut bench = Bench::new();
    for (number, generation) in [(1, 1), (1, 1), (2, 2), (3, 3)] {
        let planned = bench.plan([Some(&[target(number)]), None]).unwrap();
        bench.perform(&planned);
        assert_eq!(bench.now.cluster.generation, generation, "endpoint {number}");
    }
    let planned = bench.plan([Some(&[]), None]).unwrap();
    assert_eq!(planned.next.cluster, Run { base: 0, count: 0, generation: 4 });
}

#[test]
fn a_run_whose_backend_is_not_alive_is_published_anew() {
    let mut bench = Bench::new();
    let targets = [target(1)];
    let planned = bench.plan([Some(&targets), None]).unwrap();
    bench.perform(&planned);
    let [slot] = bench.slots(bench.now.cluster)[..] else { panic!("one endpoint") };
    free_backend(&bench.maps, slot.backend.index).apply(&mut bench.maps).unwrap();
    let planned = bench.plan([Some(&targets), None]).unwrap();
    bench.perform(&planned);
    bench.assert_lists(bench.now.cluster, &targets, |_| Backend::IN_CLUSTER);
}

/// EP-6: what can be reached is everybody of both sets, each address and port once, also where none of the sets has all.
#[test]
fn one_endpoint_in_both_runs_is_one_backend() {
    let mut bench = Bench::new();
    let planned = bench.plan([Some(&[target(1), target(2)]), Some(&[target(2)])]).unwrap();
    bench.perform(&planned);
    assert_eq!(bench.ids().len(), 2);
    bench.assert_lists(bench.now.local, &[target(2)], |_| Backend::IN_CLUSTER | Backend::IN_LOCAL);
    let planned = bench.plan([Some(&[target(1), target(2)]), Some(&[target(2), target(3)])]).unwrap();
    bench.perform(&planned);
    assert_eq!((bench.ids().len(), bench.members().len()), (3, 3));
    let reached: Vec<L4Addr> = bench.members().into_keys().collect();
    assert_eq!(reached, [1, 2, 3].map(|number| L4Addr::from(target(number).at)));
}

#[test]
fn more_endpoints_than_a_run_can_count_are_cut_off() {
    let entries = 1 << 18;
    let capacities = Capacities { slots: entries, backends: entries, ..TIGHT };
    let pool = Pool { backends: Ids::new(1, entries), slots: Slots::new(entries) };
    let mut bench = Bench { maps: MemMaps::new(capacities).open(), pool, now: Service::FREE };
    let many: Vec<Target> = (0..u32::from(u16::MAX) + 2)
        .map(|number| Target {
            at: SocketAddr::from(((10 << 24 | number).to_be_bytes(), 80)),
            terminating: false,
            here: false,
        })
        .collect();
    let planned = bench.plan([Some(&many), None]).unwrap();
    bench.perform(&planned);
    assert_eq!(usize::from(bench.now.cluster.count), MOST_TARGETS);
    bench.assert_lists(bench.now.cluster, &many[..MOST_TARGETS], |_| Backend::IN_CLUSTER);
    assert_eq!(bench.plan([Some(&many), None]).unwrap().plan.len(), 0);
}

/// NE-2: why a run is empty is part of it, and published like everything else of it.
#[test]
fn an_empty_run_says_whether_others_serve_on_other_nodes() {
    let mut bench = Bench::new();
    let targets = [target(1)];
    let mut become_local = |targets: &[Target], elsewhere, want: Run| {
        let planned = bench.plan_wanted([None, Some(Wanted { targets, table: None, elsewhere })]).unwrap();
        bench.perform(&planned);
        let Run { base, count, .. } = bench.now.local;
        assert_eq!((base, count), (want.base, want.count), "{elsewhere}");
        assert_eq!(bench.now.local.is_elsewhere(), elsewhere && targets.is_empty());
        let again = bench.plan_wanted([None, Some(Wanted { targets, table: None, elsewhere })]).unwrap();
        assert_eq!((again.plan.len(), again.next.local), (0, bench.now.local));
    };
    become_local(&[], false, Run::EMPTY);
    become_local(&[], true, Run::ELSEWHERE);
    become_local(&targets, true, Run { base: 0, count: 1, generation: 0 });
    become_local(&[], true, Run::ELSEWHERE);
    become_local(&[], false, Run::EMPTY);
}

/// 5.9-maglev: a table lists its backends many times, and each of them is one backend.
#[test]
fn a_table_says_which_backend_each_slot_has() {
    let mut bench = Bench::new();
    let (two, three) = ([target(1), target(2)], [target(1), target(2), target(3)]);
    let plan = |bench: &mut Bench, targets: &[Target], table: &[u16]| {
        bench.plan_wanted([Some(Wanted { targets, table: Some(table), elsewhere: false }), None])
    };
    for (targets, table) in [
        (&two[..], &[1_u16, 0, 0, 1, 1][..]),
        (&three, &[1, 2, 0, 1, 2]),
        (&two, &[1, 0, 0, 1, 0]),
        (&two, &[0, 0, 0, 1, 0]),
    ] {
        let planned = plan(&mut bench, targets, table).unwrap();
        bench.perform(&planned);
        let listed: Vec<Target> = table.iter().map(|index| targets[usize::from(*index)]).collect();
        bench.assert_lists(bench.now.cluster, &listed, |_| Backend::IN_CLUSTER);
        assert_eq!(bench.ids().len(), targets.len());
        assert_eq!(plan(&mut bench, targets, table).unwrap().plan.len(), 0, "nothing has changed");
    }
    assert_eq!(plan(&mut bench, &two, &[0; 9]).err(), None, "16 slots are free");
    let nine = bench.plan_wanted([
        Some(Wanted { targets: &two, table: Some(&[0; 9]), elsewhere: false }),
        Some(Wanted { targets: &two, table: Some(&[1; 9]), elsewhere: false }),
    ]);
    assert_eq!(nine.err(), Some(NoRoom::Slots(9)));
}
