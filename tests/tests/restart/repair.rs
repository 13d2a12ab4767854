//! A start, or a new one after a failed write, on maps in which exactly one thing is not as it should be.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use lb_agent::maps::memory::MemGrace;
use lb_agent::maps::{Grace, MapError, Maps, read};
use lb_common::abi::{
    Addr, Backend, BackendState, Frontend, FrontendKind, L4Addr, Proto, Run, Service, ServiceId, Slot,
    Words as _, meta,
};

use crate::named::{Named, key};
use crate::*;

const AT: &str = "10.0.0.1:80";

fn web(endpoints: u16) -> Named {
    Named::new("web", 1).port("http", &[AT], endpoints)
}

/// Maps in which `web` has three endpoints, and the id that it has.
fn programmed() -> (MemMaps, u32) {
    let maps = MemMaps::new(ROOMY);
    let mut agent = Driver::start(maps.open()).unwrap();
    agent.put(web(3).desired()).unwrap();
    let [id] = *agent.reconciler.ids_of(&web(3).name()) else { panic!("one port") };
    (maps, id)
}

fn store_slot(maps: &mut Maps, index: u32, slot: &Slot) {
    for (at, word) in (index as usize * Slot::WORDS..).zip(slot.to_words()) {
        maps.slots.store(at, word).unwrap();
    }
}

#[test]
fn one_thing_that_is_wrong_is_repaired_by_a_start() {
    type Harm = fn(&mut Maps, u32, Run);
    let harms: [(&str, Harm); 4] = [
        ("an endpoint of the other family", |maps, _, run| {
            let slot: Slot = read(&*maps.slots, run.base);
            store_slot(maps, run.base, &Slot { addr: Addr::LOOPBACK_V6, ..slot });
        }),
        ("two addresses of one backend", |maps, _, run| {
            let (first, second): (Slot, Slot) =
                (read(&*maps.slots, run.base), read(&*maps.slots, run.base + 1));
            store_slot(maps, run.base + 1, &Slot { addr: second.addr, ..first });
        }),
        ("a frontend of the other family", |maps, id, _| {
            let at = L4Addr { addr: Addr::LOOPBACK_V6, port: 80 };
            let key = FrontendKey::new(at, Proto::TCP);
            let value = Frontend::new(key, ServiceId { index: id }, FrontendKind::ClusterIp);
            maps.frontends.create(&key, &value).unwrap();
        }),
        ("a backend that is nobody's", |maps, _, run| {
            let slot: Slot = read(&*maps.slots, run.base);
            maps.backends.store(slot.backend.index as usize, 0).unwrap();
        }),
    ];
    for (what, harm) in harms {
        let (maps, id) = programmed();
        let service: Service = read(&*maps.open().services, id);
        harm(&mut maps.open(), id, service.cluster);
        let mut agent = Driver::start(maps.open()).unwrap();
        let wrong = lb_tests::invariants::dangling(&maps.open()).unwrap();
        assert!(wrong.is_empty(), "{what}: {wrong:?}");
        agent.put(web(3).desired()).unwrap();
        agent.everything().unwrap();
        assert_no_dangling(&maps.open());
        assert_eq!(meaning(&maps.open()).unwrap()[&key(AT)].used().len(), 3, "{what}");
    }
}

/// Looks at the maps while a start waits for a grace period.
struct Witness {
    maps: MemMaps,
    waits: Arc<AtomicU32>,
}

/// Ids that nobody refers to, in the test below.
const GONE_SERVICE: u32 = 5;
const GONE_BACKEND: usize = 9;

impl Grace for Witness {
    fn request(&mut self) -> u64 {
        1
    }

    fn passed(&self) -> u64 {
        1
    }

    fn wait(&mut self, _: u64) -> Result<(), MapError> {
        let maps = self.maps.open();
        assert!(maps.frontends.dump().unwrap().is_empty(), "what programs can reach is repaired at once");
        let service: Service = read(&*maps.services, GONE_SERVICE);
        assert_eq!(service.cluster.count, 1, "a program that started earlier may still hold the id");
        assert_ne!(maps.backends.load(GONE_BACKEND), 0);
        self.waits.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[test]
fn a_start_clears_what_nobody_refers_to_only_after_a_grace_period() {
    let maps = MemMaps::new(ROOMY);
    let mut found = maps.open();
    let run = Run { base: 0, count: 1, generation: 1 };
    found.services.store(GONE_SERVICE as usize * Service::WORDS, run.to_word()).unwrap();
    let [word] = Backend { generation: 0, state: BackendState::Active as u8, runs: 1, pad: 0 }.to_words();
    found.backends.store(GONE_BACKEND, word).unwrap();
    // Id 0 is nobody's for ever.
    found.backends.store(0, word).unwrap();
    let foreign = Frontend { tag: !key(AT).tag(), ..Frontend::from_word(0) };
    found.frontends.create(&key(AT), &foreign).unwrap();

    let waits = Arc::new(AtomicU32::new(0));
    found.grace = Box::new(Witness { maps: maps.clone(), waits: Arc::clone(&waits) });
    Driver::start(found).unwrap();
    assert_eq!(waits.load(Ordering::Relaxed), 1);
    let service: Service = read(&*maps.open().services, GONE_SERVICE);
    assert_eq!((service.cluster.count, service.generation), (0, 1));
    let [free] = Backend { generation: 1, state: BackendState::Free as u8, runs: 0, pad: 0 }.to_words();
    assert_eq!([0, GONE_BACKEND].map(|id| maps.open().backends.load(id)), [free, free]);
}

#[test]
fn the_first_start_says_whose_the_maps_are() {
    let maps = MemMaps::new(ROOMY);
    Driver::start(maps.open()).unwrap();
    let meta = maps.open().meta;
    assert_eq!(meta.load(meta::MAGIC_AT as usize), meta::MAGIC);
    assert_eq!(meta.load(meta::LAYOUT_AT as usize), meta::LAYOUT);
}

#[test]
fn what_waited_for_a_grace_period_is_not_given_back_again_after_a_reload() {
    let mut maps = MemMaps::new(ROOMY);
    maps.grace = MemGrace::held();
    let mut agent = Driver::start(maps.open()).unwrap();
    agent.put(web(4).desired()).unwrap();
    agent.put(web(0).desired()).unwrap();
    assert!(!agent.reconciler.is_settled());
    agent.reconciler.reload().unwrap();
    agent.everything().unwrap();
    for number in 1..4 {
        let at = format!("10.0.1.{number}:80");
        agent.put(Named::new(&at, 1).port("http", &[&at], 4).desired()).unwrap();
        assert_no_dangling(&maps.open());
    }
}

#[test]
fn a_port_whose_creation_has_failed_is_forgotten_by_a_reload() {
    let maps = MemMaps::new(ROOMY);
    let mut agent = Driver::start(maps.open()).unwrap();
    maps.faults.fail_randomly(1 << 16, 1);
    agent.put(web(1).desired()).unwrap_err();
    maps.faults.heal();
    agent.reconciler.reload().unwrap();
    assert_eq!(agent.reconciler.programmed().count(), 0);
}
