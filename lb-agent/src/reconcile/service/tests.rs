//! The words of one service, write by write.

use proptest::prelude::*;

use lb_common::abi::{Draining, Run};

use super::*;
use crate::maps::memory::{Capacities, MemMaps};

const LOCAL: ServiceFlags = ServiceFlags::INTERNAL_LOCAL;
const CLUSTER: ServiceFlags = ServiceFlags { bits: 0 };

/// Everything that a policy decides.
#[derive(Clone, Copy, Debug)]
struct Policy {
    flags: ServiceFlags,
    /// Which runs some frontend uses.
    cluster: bool,
    local: bool,
}

/// All that [`lower::used_runs`] can give.
const POLICIES: [Policy; 4] = [
    Policy { flags: CLUSTER, cluster: true, local: false },
    Policy { flags: CLUSTER, cluster: true, local: true },
    Policy { flags: LOCAL, cluster: false, local: true },
    Policy { flags: LOCAL, cluster: true, local: true },
];

/// A service with this policy: the run that no frontend uses repeats the other one.
fn service(policy: Policy, [cluster, local]: [u32; 2]) -> Service {
    let run = |base| Run { base, count: 1, generation: 0 };
    let cluster = if policy.cluster { cluster } else { local };
    let local = if policy.local { local } else { cluster };
    Service { cluster: run(cluster), local: run(local), flags: policy.flags, ..Service::FREE }
}

/// The run that a hook uses which has read these flags.
fn run_of(flags: ServiceFlags, service: &Service) -> Run {
    if flags.has(LOCAL) { service.local } else { service.cluster }
}

/// The service before the first write and after each.
fn states(now: &Service, next: &Service) -> Vec<Service> {
    let mut plan = Plan::default();
    plan_service_words(&mut plan, 1, now, next);
    let mut words = now.to_words();
    let mut states = vec![*now];
    for write in plan.writes() {
        let Write::Word { array: ArrayId::Services, index, word } = *write else {
            panic!("{write:?} is no word of a service");
        };
        words[index - Service::WORDS] = word;
        states.push(Service::from_words(words));
    }
    states
}

#[test]
fn every_mixture_of_an_old_and_a_new_policy_is_valid() {
    for (old, new) in POLICIES.into_iter().flat_map(|old| POLICIES.map(|new| (old, new))) {
        // Either both runs are new, or one of them stays as it is.
        for next_bases in [[3, 4], [1, 4], [3, 2], [1, 2]] {
            let (now, next) = (service(old, [1, 2]), service(new, next_bases));
            let states = states(&now, &next);
            assert_eq!(states.last(), Some(&next), "{old:?} -> {new:?}");
            for (at, state) in states.iter().enumerate() {
                // A stop here leaves what was, or what shall be, for cluster IPs and for the other frontends.
                let used = run_of(state.flags, state);
                let valid = [run_of(now.flags, &now), run_of(next.flags, &next)];
                assert!(valid.contains(&used), "{old:?} -> {new:?}: write {at} leaves {state:?}");
                assert!([now.cluster, next.cluster].contains(&state.cluster), "{old:?} -> {new:?}");
                // A hook reads the flags first. What it meets later may be the new run for the old policy.
                for later in &states[at..] {
                    let read = run_of(state.flags, later);
                    let is_valid = valid.contains(&read) || read == run_of(now.flags, &next);
                    assert!(is_valid, "{old:?} -> {new:?}: {state:?}, then {later:?}");
                }
            }
        }
    }
}

#[test]
fn a_word_that_stays_is_not_written() {
    let now = service(POLICIES[0], [1, 2]);
    assert_eq!(states(&now, &now).len(), 1);
    let next = Service { affinity_s: 60, ..now };
    assert_eq!(states(&now, &next), [now, next]);
}

/// SA-5: whoever meets the new timeout meets the new generation.
#[test]
fn affinity_is_on_only_after_its_generation_is_new() {
    for policy in POLICIES {
        let now = service(policy, [1, 2]);
        let next = next_service(&now, now, (policy.flags, 60), false);
        assert_eq!(next.generation, now.generation + 1, "older entries are void (SA-5)");
        let states = states(&now, &next);
        assert!(states.iter().all(|state| state.affinity_s == 0 || state.generation == next.generation));
    }
}

/// SA-5: switched on it begins empty; another timeout keeps what there is (SA-7), and switched off it counts no more.
#[test]
fn the_generation_stays_but_when_affinity_is_switched_on_or_the_port_is_another_one() {
    for (before, after, is_new, raised) in [
        (0, 0, false, 0),
        (0, 60, false, 1),
        (60, 60, false, 0),
        (60, 120, false, 0),
        (60, 0, false, 0),
        (0, 0, true, 0),
        (0, 60, true, 1),
        (60, 60, true, 1),
    ] {
        let now = Service { affinity_s: before, generation: u32::MAX, ..Service::FREE };
        let planned = Service { cluster: Run::EMPTY, local: Run::EMPTY, ..now };
        let next = next_service(&now, planned, (CLUSTER, after), is_new);
        assert_eq!(next.generation, u32::MAX.wrapping_add(raised), "{before} s -> {after} s, {is_new}");
        assert_eq!(next.affinity_s, after);
    }
}

proptest! {
    /// What [`Reconciler::reload`] takes for cleared is a free service of any generation.
    #[test]
    fn a_service_is_cleared_by_the_last_write_and_by_none_before(words: [u64; 4]) {
        let now = Service::from_words(words);
        let mut maps = MemMaps::new(Capacities { services: 2, ..Capacities::default() }).open();
        for (at, word) in words.into_iter().enumerate() {
            maps.services.store(Service::WORDS + at, word).unwrap();
        }
        let writes: Vec<Write> = cleared_service(1, &now).collect();
        for (at, write) in writes.iter().enumerate() {
            write.apply(&mut maps).unwrap();
            let state: Service = read(&*maps.services, 1);
            prop_assert_eq!(state.generation, now.generation.wrapping_add(1), "raised first");
            let is_cleared = state == Service { generation: state.generation, ..Service::FREE };
            prop_assert!(at + 1 == writes.len() || !is_cleared, "write {} of {}", at + 1, writes.len());
        }
        let state: Service = read(&*maps.services, 1);
        prop_assert_eq!(state, Service { generation: now.generation.wrapping_add(1), ..Service::FREE });
        prop_assert_eq!(read::<4, Service>(&*maps.services, 0), Service::FREE, "nobody else's words");
    }
}

/// CT-4: a backend is in a run or among those that drain after every single write, if it is before and after.
#[test]
fn who_drains_is_never_forgotten_between_two_writes() {
    let some = Draining::new(8, 0).unwrap();
    let with = |base, draining| Service { draining, ..service(POLICIES[0], [base, base]) };
    // It returns to the run, or leaves it.
    let (returns, leaves) =
        ([with(1, some), with(2, Draining::NONE)], [with(1, Draining::NONE), with(2, some)]);
    let lists = |state: &Service, base| state.cluster.base == base || state.draining == some;
    for state in states(&returns[0], &returns[1]) {
        assert!(lists(&state, 2), "{state:?}");
    }
    for state in states(&leaves[0], &leaves[1]) {
        assert!(lists(&state, 1), "{state:?}");
    }
}
