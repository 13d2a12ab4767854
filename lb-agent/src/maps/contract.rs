//! What every implementation of [`Table`], [`Array`] and [`Grace`] promises, as functions that try it out.
//!
//! Run on memory by the unit tests below and on the kernel's maps by the package lb-tests, so that what the reconciler's
//! tests show on memory holds in the kernel too. Each function panics with the promise that is broken.

use core::fmt::Debug;

use super::{Array, Grace, MapError, Table};

/// Tries out an empty table, and leaves it empty. `entry` gives the key and value of a number, in the order of the keys.
pub fn table<K, V>(table: &mut dyn Table<K, V>, entry: impl Fn(u32) -> (K, V))
where
    K: Copy + Eq + Debug,
    V: Copy + Eq + Debug,
{
    let capacity = table.capacity();
    let all: Vec<(K, V)> = (0..capacity).map(&entry).collect();
    let (one_too_many, value_too_many) = entry(capacity);
    assert!(capacity >= 3, "the table is too small to be tried out");
    assert_eq!(dump(table), [], "it is empty");

    // Backwards, so that an order of creation is no order of keys.
    for (key, value) in all[..3].iter().rev() {
        create(table, key, value);
    }
    assert_eq!(dump(table), all[..3], "a dump has every entry, sorted by key");

    let (key, value) = all[0];
    refuses_another_value(table, &key, &all[1].1);
    assert_eq!(dump(table)[0], (key, value), "what was refused has changed nothing");

    for (key, value) in &all[3..] {
        create(table, key, value);
    }
    match table.create(&one_too_many, &value_too_many) {
        Err(MapError::Full { capacity: named, .. }) => {
            assert_eq!(named, capacity, "the error names the capacity");
        }
        other => panic!("a full table says so instead of {other:?}"),
    }
    refuses_another_value(table, &key, &all[1].1);
    assert_eq!(dump(table), all, "a full table has every entry");

    delete(table, &key);
    assert_eq!(dump(table), all[1..], "a deleted entry is gone, and only that");
    delete(table, &key);
    delete(table, &one_too_many);
    assert_eq!(dump(table), all[1..], "a key that is not there counts as deleted");
    create(table, &key, &all[1].1);
    assert_eq!(dump(table)[0], (key, all[1].1), "a deleted key can be created with another value");

    for (key, _) in &all {
        delete(table, key);
    }
    assert_eq!(dump(table), [], "it is empty again");
}

fn dump<K, V>(table: &dyn Table<K, V>) -> Vec<(K, V)> {
    table.dump().expect("the table can be read")
}

fn create<K: Debug, V>(table: &mut dyn Table<K, V>, key: &K, value: &V) {
    if let Err(error) = table.create(key, value) {
        panic!("{key:?} can be created: {error}");
    }
}

fn delete<K: Debug, V>(table: &mut dyn Table<K, V>, key: &K) {
    if let Err(error) = table.delete(key) {
        panic!("{key:?} can be deleted: {error}");
    }
}

fn refuses_another_value<K: Debug, V>(table: &mut dyn Table<K, V>, key: &K, value: &V) {
    match table.create(key, value) {
        Err(MapError::Exists { .. }) => {}
        other => panic!("an entry that exists is not overwritten; instead: {other:?}"),
    }
}

/// Tries out an array, and leaves it as it was.
pub fn array(array: &mut dyn Array) {
    let words = array.words();
    assert!(words >= 2, "the array is too small to be tried out");
    let before: Vec<u64> = (0..words).map(|at| array.load(at)).collect();
    let (low, high) = (0x0123_4567_89ab_cdef, u64::MAX);
    store(array, 0, low);
    store(array, words - 1, high);
    for (at, was) in before.iter().copied().enumerate() {
        let want = if at == 0 {
            low
        } else if at == words - 1 {
            high
        } else {
            was
        };
        assert_eq!(array.load(at), want, "word {at} is what was stored there, whole");
    }
    store(array, 0, high);
    assert_eq!(array.load(0), high, "a word can be stored again");

    for outside in [words, words + 1, usize::MAX] {
        assert_eq!(array.load(outside), 0, "there is nothing at {outside}");
        match array.store(outside, low) {
            Err(MapError::Full { .. }) => {}
            other => panic!("word {outside} of {words} cannot be stored; instead: {other:?}"),
        }
    }
    assert_eq!(array.load(words - 1), high, "what was refused has changed nothing");
    assert_eq!(array.entries(1) as usize, words, "entries of one word are its words");
    assert_eq!(array.entries(2) as usize, words / 2, "entries are counted whole");
    store(array, 0, before[0]);
    store(array, words - 1, before[words - 1]);
}

fn store(array: &mut dyn Array, index: usize, word: u64) {
    if let Err(error) = array.store(index, word) {
        panic!("word {index} can be stored: {error}");
    }
}

/// Tries out grace periods.
pub fn grace(grace: &mut dyn Grace) {
    let first = grace.request();
    assert!(first > 0, "nothing has passed before it was requested");
    let second = grace.request();
    assert!(second > first, "tickets grow");
    grace.wait(first).expect("this kernel can wait");
    assert!(grace.passed() >= first, "who has waited may go on");
    grace.wait(second).expect("this kernel can wait");
    assert!(grace.passed() >= second, "later tickets pass too");
    grace.wait(first).expect("this kernel can wait");
    assert!(grace.passed() >= second, "what has passed stays so");
    let third = grace.request();
    assert!(third > second, "tickets grow after waiting too");
    grace.wait(third).expect("this kernel can wait");
    assert!(grace.passed() >= third, "and pass");
}

#[cfg(test)]
mod tests {
    use lb_common::abi::{Addr, Address, Frontend, FrontendKey, FrontendKind, L4Addr, Proto, ServiceId};

    use super::*;
    use crate::maps::memory::{Capacities, MemGrace, MemMaps};

    #[test]
    fn tables_in_memory_keep_the_contract() {
        let mut maps =
            MemMaps::new(Capacities { frontends: 7, addresses: 3, ..Capacities::default() }).open();
        table(&mut *maps.frontends, |number| {
            let at = L4Addr { addr: Addr::from_v4(number.to_be_bytes()), port: 80 };
            let key = FrontendKey::new(at, Proto::TCP);
            (key, Frontend::new(key, ServiceId { index: number }, FrontendKind::ClusterIp))
        });
        table(&mut *maps.addresses, |number| (Addr::from_v4(number.to_be_bytes()), Address { bits: number }));
    }

    #[test]
    fn arrays_in_memory_keep_the_contract() {
        let mut maps =
            MemMaps::new(Capacities { services: 3, slots: 5, backends: 7, ..Capacities::default() }).open();
        for each in
            [&mut maps.services, &mut maps.slots, &mut maps.backends, &mut maps.config, &mut maps.meta]
        {
            array(&mut **each);
        }
    }

    #[test]
    fn grace_periods_in_memory_keep_the_contract() {
        grace(&mut MemGrace::default());
        grace(&mut MemGrace::held());
    }
}
