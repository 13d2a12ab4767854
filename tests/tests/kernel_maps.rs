//! The kernel's maps: they keep the contract that memory keeps, and every story comes to the same in them.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::Path;

use lb_agent::datapath::load::{Loaded, Switches, load};
use lb_agent::maps::contract;
use lb_agent::maps::memory::{Capacities, MemMaps};
use lb_agent::maps::pin::PinDir;
use lb_agent::maps::{Grace as _, Maps, grace::KernelGrace, read};
use lb_common::abi::{
    Addr, Address, Backend, Frontend, FrontendKey, FrontendKind, L4Addr, Proto, Service, ServiceId,
};
use lb_tests::scenario::{play, read_all};
use lb_tests::{Bpffs, needs_root};

const CAPACITIES: Capacities = Capacities {
    frontends: 64,
    addresses: 16,
    services: 32,
    slots: 64,
    backends: 64,
    affinity: 1,
    ranges: 16,
    flows4: 1,
    flows6: 1,
};

/// The object's maps, pinned in a bpffs of the test's own. Nothing is attached.
struct Pinned {
    bpffs: Bpffs,
    /// Holds the lock on the folder until the next agent opens it.
    pins: Option<PinDir>,
}

impl Pinned {
    fn new() -> Self {
        Self { bpffs: Bpffs::new("maps").unwrap(), pins: None }
    }

    /// What an agent that starts gets: new maps the first time, then those that are pinned.
    fn open(&mut self) -> Maps {
        self.pins = None;
        let pins = PinDir::open(&self.bpffs.path().join("lb")).unwrap();
        let switches =
            Switches { host_netns: 0, has_set_retval: false, has_mptcp: false, has_coarse_clock: false };
        let Loaded { maps, staged, .. } = load(&pins, switches, CAPACITIES, || {}).unwrap();
        pins.commit(&staged).unwrap();
        self.pins = Some(pins);
        maps
    }
}

#[test]
fn tables_in_the_kernel_keep_the_contract() {
    needs_root!();
    let mut maps = Pinned::new().open();
    contract::table(&mut *maps.frontends, |number| {
        let at = L4Addr { addr: Addr::from_v4(number.to_be_bytes()), port: 80 };
        let key = FrontendKey::new(at, Proto::TCP);
        (key, Frontend::new(key, ServiceId { index: number }, FrontendKind::ClusterIp))
    });
    contract::table(&mut *maps.addresses, |number| {
        (Addr::from_v4(number.to_be_bytes()), Address { bits: number })
    });
}

#[test]
fn arrays_in_the_kernel_keep_the_contract() {
    needs_root!();
    let mut maps = Pinned::new().open();
    for array in [&maps.slots, &maps.config, &maps.meta] {
        assert!((0..array.words()).all(|at| array.load(at) == 0), "new arrays are zeroes");
    }
    // But for generations, which begin anywhere: nobody may mean an id of maps that were here before.
    let services =
        (0..maps.services.entries(Service::WORDS)).map(|id| read::<4, Service>(&*maps.services, id));
    let generation = services.clone().next().unwrap().generation;
    assert!(services.into_iter().all(|service| service == Service { generation, ..Service::FREE }));
    let backends = (1..maps.backends.entries(1)).map(|id| read::<1, Backend>(&*maps.backends, id));
    let generation = backends.clone().next().unwrap().generation;
    assert!(backends.into_iter().all(|it| (it.generation, it.state, it.runs) == (generation, 0, 0)));
    for array in [&mut maps.services, &mut maps.slots, &mut maps.backends, &mut maps.config, &mut maps.meta] {
        contract::array(&mut **array);
    }
}

#[test]
fn grace_periods_of_the_kernel_keep_the_contract() {
    needs_root!();
    let (passed, told) = std::sync::mpsc::channel();
    let mut grace = KernelGrace::start(move || passed.send(()).unwrap_or_default()).unwrap();
    contract::grace(&mut grace);
    let ticket = grace.request();
    // Whoever is told finds that it has passed.
    for () in told {
        if grace.passed() >= ticket {
            return;
        }
    }
    panic!("the grace thread has ended");
}

#[test]
fn an_agent_that_starts_again_finds_what_the_last_one_wrote() {
    needs_root!();
    let mut pinned = Pinned::new();
    let mut first = pinned.open();
    let addr = Addr::from_v4([10, 0, 0, 1]);
    first.addresses.create(&addr, &Address::NODE).unwrap();
    first.slots.store(7, 42).unwrap();
    drop(first);
    let second = pinned.open();
    assert_eq!(second.addresses.dump().unwrap(), [(addr, Address::NODE)]);
    assert_eq!(second.slots.load(7), 42);
}

#[test]
fn every_story_comes_to_the_same_in_the_kernel_as_in_memory() {
    needs_root!();
    for (name, story) in read_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")).unwrap() {
        let memory = MemMaps::new(CAPACITIES);
        let expected = play(&story, &mut || memory.open()).unwrap();
        let mut pinned = Pinned::new();
        let played = play(&story, &mut || pinned.open()).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        assert_eq!(played.text, expected.text, "{name}");
        assert_eq!(played.meanings, expected.meanings, "{name}");
    }
}
