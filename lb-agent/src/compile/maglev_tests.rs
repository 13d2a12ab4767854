//! What Maglev tables promise, measured.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use proptest::prelude::*;

use super::maglev::{LONGEST, size, table};
use super::{MOST_TARGETS, Target};

fn target(at: SocketAddr) -> Target {
    Target { at, terminating: false, here: false }
}

/// As a cluster gives addresses: consecutive ones on each node, in a pod network of 24 bits each.
fn pods(count: u32) -> Vec<Target> {
    let addr = |number: u32| Ipv4Addr::from_bits(0x0af4_0000 + ((number / 30) << 8) + 2 + number % 30);
    (0..count).map(|number| target((addr(number), 8080).into())).collect()
}

/// Who has each slot.
fn owners(targets: &[Target]) -> Vec<SocketAddr> {
    table(targets).into_iter().map(|index| targets[usize::from(index)].at).collect()
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap())
}

fn shares(targets: &[Target]) -> BTreeMap<SocketAddr, usize> {
    let mut shares = BTreeMap::new();
    for owner in owners(targets) {
        *shares.entry(owner).or_default() += 1;
    }
    shares
}

/// 5.9-balance.
#[test]
fn everybody_has_as_many_slots_as_everybody_else_but_for_one() {
    for count in [2, 3, 5, 10, 11, 20, 50, 100, 163, 164, 200, 500, 655, 1000, 5000, 60_000] {
        let shares = shares(&pods(count));
        assert_eq!(shares.len(), count as usize, "everybody has one");
        let (least, most) = (shares.values().min().unwrap(), shares.values().max().unwrap());
        assert!(most - least <= 1, "{count}: {least} to {most}");
        let mean = number(size(count as usize)) / f64::from(count);
        let over = number(*most) / mean;
        println!("{count} endpoints, {} slots: max/mean {over:.4}", size(count as usize));
        assert!(over <= 1.01 || count > 655, "{count}: {over}");
    }
}

/// How many of the slots that others have change hands when one of `count` goes: mean and most over `tries` of them, in percent.
fn moved(count: u32, tries: u32) -> (f64, f64) {
    let all = pods(count);
    let before = owners(&all);
    let moved = (0..tries).map(|one| {
        let gone = (one * count / tries) as usize;
        let rest: Vec<Target> =
            all.iter().enumerate().filter(|(index, _)| *index != gone).map(|(_, target)| *target).collect();
        let kept = || before.iter().zip(owners(&rest)).filter(|(before, _)| **before != all[gone].at);
        number(kept().filter(|(before, after)| *before != after).count()) * 100.0 / number(kept().count())
    });
    let moved: Vec<f64> = moved.collect();
    (moved.iter().sum::<f64>() / f64::from(tries), moved.iter().copied().fold(0.0, f64::max))
}

/// 5.9-disruption. The bounds are twice what was measured.
#[test]
fn few_slots_of_the_others_change_hands_when_one_goes() {
    let bounds =
        [(3, 1.2), (10, 6.4), (20, 3.0), (100, 3.0), (163, 3.5), (200, 1.6), (500, 1.9), (1000, 1.3)];
    for (count, bound) in bounds {
        let (mean, most) = moved(count, count.min(10));
        println!(
            "{count} endpoints, {} slots: {mean:.2} % on average, {most:.2} % at most",
            size(count as usize)
        );
        assert!(most <= bound, "{count}: {most}");
    }
}

/// Which step a table has decides who has its slots: what passes a step moves nearly all.
#[test]
fn sizes_are_primes_that_fill_a_region_and_grow_in_steps() {
    assert_eq!(
        [0, 1, 2, 10, 11, 163, 164, 65_521].map(size),
        [0, 1, 1021, 1021, 16_381, 16_381, 65_521, 65_521]
    );
    for size in [1021_u32, 16_381, 65_521] {
        assert!((2..size).take_while(|factor| factor * factor <= size).all(|factor| size % factor != 0));
        assert!(f64::from(size) > 0.99 * f64::from(size.next_power_of_two()), "{size} wastes no memory");
    }
    assert!(table(&[]).is_empty());
    assert_eq!(table(&pods(1)), [0]);
}

/// Whoever is the last one with room has a slot.
#[test]
fn the_most_endpoints_have_one_slot_each() {
    let many = pods(u32::from(LONGEST) + 3);
    assert_eq!(table(&many).len(), MOST_TARGETS);
    let mut owners = owners(&many);
    owners.sort_unstable();
    owners.dedup();
    let mut first: Vec<SocketAddr> = many[..MOST_TARGETS].iter().map(|target| target.at).collect();
    first.sort_unstable();
    assert!(owners == first);
}

/// 5.9-same-everywhere: nodes of different versions must agree. These were worked out by a program of a few lines in Python.
#[test]
fn a_table_stays_as_it_is() {
    let first: Vec<u16> = table(&pods(7)).into_iter().take(16).collect();
    assert_eq!(first, [3, 4, 5, 3, 4, 6, 3, 6, 3, 6, 1, 6, 5, 6, 4, 6]);
    let six = |number: u16| target((Ipv6Addr::new(0xfd00, 1, 2, 0, 0, 0, 0, number), 53).into());
    let first: Vec<u16> = table(&[six(1), six(2), six(3)]).into_iter().take(16).collect();
    assert_eq!(first, [0, 2, 0, 2, 0, 2, 0, 1, 2, 2, 1, 0, 1, 0, 2, 1]);
}

fn any_targets() -> impl Strategy<Value = Vec<Target>> {
    let at = (any::<bool>(), 0..40_u16, 1..4_u16).prop_map(|(is_v6, number, port)| {
        if is_v6 {
            SocketAddr::from((Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number), port))
        } else {
            SocketAddr::from((Ipv4Addr::from_bits(0x0a00_0000 | u32::from(number)), port))
        }
    });
    prop::collection::btree_set(at, 0..24).prop_map(|set| set.into_iter().map(target).collect())
}

proptest! {
    /// 5.9-same-everywhere.
    #[test]
    fn the_order_of_endpoints_and_whether_they_leave_change_nothing(
        (sorted, shuffled) in any_targets().prop_flat_map(|targets| (Just(targets.clone()), Just(targets).prop_shuffle())),
        leaving: bool,
    ) {
        let leavers: Vec<Target> =
            shuffled.iter().map(|target| Target { terminating: leaving, ..*target }).collect();
        prop_assert_eq!(owners(&sorted), owners(&leavers));
    }

    /// 5.9-balance.
    #[test]
    fn whoever_they_are_their_shares_differ_by_one(targets in any_targets()) {
        let shares = shares(&targets);
        prop_assert_eq!(shares.len(), targets.len());
        let (least, most) = (shares.values().min(), shares.values().max());
        prop_assert!(most.zip(least).is_none_or(|(most, least)| most - least <= 1));
    }
}
