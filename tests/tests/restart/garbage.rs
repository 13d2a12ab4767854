//! Maps in a state that no agent of ours has left.

use lb_agent::maps::Maps;
use lb_common::abi::{
    Addr, Backend, BackendId, Draining, Frontend, FrontendKey, L4Addr, Proto, Run, Service, ServiceFlags,
    ServiceId, Slot, Words as _,
};
use proptest::prelude::*;

use crate::world::world;
use crate::*;

/// Few numbers, so that references meet, and some that lead nowhere.
fn number() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0_u32..8, 1 => Just(63), 1 => Just(64), 1 => Just(1023), 1 => any::<u32>()]
}

fn run() -> impl Strategy<Value = Run> {
    (number(), 0_u16..5, 0_u16..3).prop_map(|(base, count, generation)| Run { base, count, generation })
}

fn service() -> impl Strategy<Value = Service> {
    let draining = prop_oneof![3 => Just(0), 2 => (0_u32..64, 1_u32..4).prop_map(|(base, order)| base << 5 | order), 1 => any::<u32>()];
    (run(), run(), any::<bool>(), 0_u32..3, 0_u32..2, (0_u32..3, draining)).prop_map(
        |(cluster, other, is_alias, bits, affinity_s, (generation, region))| Service {
            cluster,
            local: if is_alias { cluster } else { other },
            flags: ServiceFlags { bits },
            affinity_s,
            generation,
            draining: Draining { region },
        },
    )
}

fn slot() -> impl Strategy<Value = Slot> {
    (0_u8..6, prop::bool::weighted(0.1), number(), 0_u32..2, prop::bool::weighted(0.1)).prop_map(
        |(last, is_v6, backend, generation, has_flags)| Slot {
            addr: if is_v6 { Addr::LOOPBACK_V6 } else { Addr::from_v4([10, 1, 0, last]) },
            port: 8080,
            flags: u16::from(has_flags),
            backend: BackendId { index: backend },
            generation,
            pad: 0,
        },
    )
}

fn backend() -> impl Strategy<Value = Backend> {
    (0_u32..2, 0_u8..4, 0_u8..4, prop_oneof![9 => Just(0_u16), 1 => any::<u16>()])
        .prop_map(|(generation, state, runs, pad)| Backend { generation, state, runs, pad })
}

fn frontend() -> impl Strategy<Value = (FrontendKey, Frontend)> {
    let at = (
        prop_oneof![Just([10, 96, 0, 0]), Just([10, 96, 1, 1]), Just([192, 0, 2, 1]), Just([0; 4])],
        80_u16..82,
    );
    (at, any::<bool>(), number(), 0_u8..6, prop::bool::weighted(0.1)).prop_map(
        |((addr, port), is_udp, id, kind, is_foreign)| {
            let proto = if is_udp { Proto::UDP } else { Proto::TCP };
            let key = FrontendKey::new(L4Addr { addr: Addr::from_v4(addr), port }, proto);
            let tag = if is_foreign { !key.tag() } else { key.tag() };
            (key, Frontend { service: ServiceId { index: id }, kind, pad: 0, tag })
        },
    )
}

/// What is in the maps, from their beginnings.
#[derive(Clone, Debug)]
struct Garbage {
    frontends: Vec<(FrontendKey, Frontend)>,
    services: Vec<Service>,
    slots: Vec<Slot>,
    backends: Vec<Backend>,
    config: [u64; 2],
}

fn garbage() -> impl Strategy<Value = Garbage> {
    (
        prop::collection::vec(frontend(), 0..8),
        prop::collection::vec(service(), 0..10),
        prop::collection::vec(slot(), 0..16),
        prop::collection::vec(backend(), 0..10),
        any::<[u64; 2]>(),
    )
        .prop_map(|(frontends, services, slots, backends, config)| Garbage {
            frontends,
            services,
            slots,
            backends,
            config,
        })
}

impl Garbage {
    fn put_into(&self, maps: &mut Maps) {
        for (key, value) in &self.frontends {
            // A key can be there twice.
            drop(maps.frontends.create(key, value));
        }
        let services = self.services.iter().flat_map(Service::to_words);
        let slots = self.slots.iter().flat_map(Slot::to_words);
        let backends = self.backends.iter().flat_map(Backend::to_words);
        for (at, word) in services.enumerate() {
            maps.services.store(at, word).unwrap();
        }
        for (at, word) in slots.enumerate() {
            maps.slots.store(at, word).unwrap();
        }
        for (at, word) in backends.enumerate() {
            maps.backends.store(at, word).unwrap();
        }
        for (at, word) in self.config.into_iter().enumerate() {
            maps.config.store(at, word).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn a_start_repairs_what_it_finds_and_programs_what_is_desired(garbage in garbage(), world in world()) {
        let maps = MemMaps::new(ROOMY);
        garbage.put_into(&mut maps.open());
        let mut agent = Driver::start(maps.open()).unwrap();
        agent.follow(&world.desired()).unwrap();
        agent.everything().unwrap();
        assert_no_dangling(&maps.open());
        assert_means(&maps, &world);

        agent.follow(&[]).unwrap();
        agent.settle().unwrap();
        for usage in agent.reconciler.usage() {
            prop_assert_eq!(usage.used, 0, "{}", usage.map);
        }
    }

    #[test]
    fn a_start_alone_leaves_nothing_dangling(garbage in garbage()) {
        let maps = MemMaps::new(ROOMY);
        garbage.put_into(&mut maps.open());
        Driver::start(maps.open()).unwrap();
        assert_no_dangling(&maps.open());
        let before = raw(&maps);
        maps.faults.stop_after(0);
        Driver::start(maps.open()).unwrap();
        prop_assert_eq!(raw(&maps), before);
    }
}
