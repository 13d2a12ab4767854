//! What holds for every content of the maps, also one that no agent writes.

use std::{vec, vec::Vec};

use proptest::{collection::vec as many, prelude::*, sample::select};

use super::sock::{REFUSING_UDP_PORT, Verdict, connect, peer, received, send};
use crate::{
    abi::{
        Addr, Address, Backend, BackendId, Config, Frontend, FrontendKey, L4Addr, Netns, Proto, Run, Service,
        ServiceId, Slot, SocketLb, Words as _,
    },
    host::{MemSocket, MemTables},
};

/// Few addresses and ports, so that they meet.
fn at() -> impl Strategy<Value = L4Addr> {
    let addrs = [[10, 0, 0, 1], [10, 0, 0, 2], [127, 0, 0, 1], [0; 4]].map(Addr::from_v4);
    let all = vec![addrs[0], addrs[1], addrs[2], addrs[3], Addr::ANY_V6, Addr::LOOPBACK_V6];
    (select(all), select(vec![0, 1, 53, 30_000])).prop_map(|(addr, port)| L4Addr { addr, port })
}

/// Numbers that point to something, and others.
fn index() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0_u32..4, 1 => any::<u32>()]
}

fn proto() -> impl Strategy<Value = Proto> {
    select(vec![Proto::TCP, Proto::UDP, Proto::SCTP])
}

fn frontend() -> impl Strategy<Value = (FrontendKey, Frontend)> {
    (at(), proto(), index(), any::<u8>(), any::<u16>(), 0_u8..8).prop_map(
        |(at, proto, index, kind, tag, whole)| {
            let key = FrontendKey::new(at, proto);
            let tag = if whole == 0 { tag } else { key.tag() };
            (key, Frontend { service: ServiceId { index }, kind: kind % 6, pad: 0, tag })
        },
    )
}

fn service() -> impl Strategy<Value = Service> {
    let run = || {
        (index(), prop_oneof![0_u16..4, any::<u16>()]).prop_map(|(base, count)| Run {
            base,
            count,
            generation: 0,
        })
    };
    (run(), run(), any::<u64>(), any::<u64>()).prop_map(|(cluster, local, flags, generation)| {
        Service::from_words([cluster.to_word(), local.to_word(), flags, generation])
    })
}

fn slot() -> impl Strategy<Value = Slot> {
    (at(), index(), 0_u32..2).prop_map(|(at, index, generation)| Slot {
        addr: at.addr,
        port: at.port,
        flags: 0,
        backend: BackendId { index },
        generation,
        pad: 0,
    })
}

prop_compose! {
    fn tables()(
        frontends in many(frontend(), 0..12), services in many(service(), 4), slots in many(slot(), 6),
        backends in many(any::<u64>().prop_map(|word| word & 0x0303_0001), 4), random in many(any::<u32>(), 0..20),
        addresses in many((at(), 0_u32..4), 0..4), netns in many((0_u64..3, any::<u32>()), 0..2),
        config in (any::<u16>(), any::<u16>(), any::<u32>(), 0_u32..2), foreign in many(frontend(), 0..2),
    ) -> MemTables {
        let mut tables = MemTables::default();
        tables.frontends.extend(frontends);
        tables.services.extend((0..).map(|index| ServiceId { index }).zip(services));
        tables.slots.extend((0..).zip(slots));
        let backends = backends.into_iter().map(|word| Backend::from_words([word]));
        tables.backends.extend((0..).map(|index| BackendId { index }).zip(backends));
        tables.addresses.extend(addresses.into_iter().map(|(at, bits)| (at.addr, Address { bits })));
        tables.netns.extend(netns.into_iter().map(|(cookie, bits)| (cookie, Netns { bits })));
        let (node_port_min, node_port_max, bits, netns_entries) = config;
        let socket_lb = SocketLb { bits };
        tables.config = Some(Config { node_port_min, node_port_max, socket_lb, netns_entries, ..Config::OFF });
        tables.random.replace(random);
        tables.foreign.replace(foreign.into_iter().map(|(_, value)| value).collect());
        tables
    }
}

/// What an application does with one socket.
#[derive(Clone, Copy, Debug)]
enum Step {
    Connect(Proto, L4Addr),
    Send(L4Addr),
    Received(L4Addr),
    Peer(L4Addr),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (select(vec![Proto::TCP, Proto::UDP]), at()).prop_map(|(proto, at)| Step::Connect(proto, at)),
        at().prop_map(Step::Send),
        at().prop_map(Step::Received),
        at().prop_map(Step::Peer),
    ]
}

/// What the kernel makes of a destination, if nobody translates it.
fn meant(to: L4Addr) -> L4Addr {
    let addr = match to.addr {
        Addr::ANY_V4 => Addr::LOOPBACK_V4,
        Addr::ANY_V6 => Addr::LOOPBACK_V6,
        other => other,
    };
    L4Addr { addr, ..to }
}

/// Whether some slot has this address.
fn is_backend(tables: &MemTables, target: L4Addr) -> bool {
    tables.slots.values().any(|slot| slot.at() == target)
}

proptest! {
    /// Nothing panics, a translated address is that of a slot, and what is shown was asked for and led there.
    #[test]
    fn whatever_the_maps_hold_a_socket_reaches_a_slot_and_shows_what_it_asked_for(
        tables in tables(), host: bool, netns in 0_u64..3, memory: bool, device: bool,
        steps in many(step(), 1..40),
    ) {
        let mut socket = MemSocket { host, device, memory, ..MemSocket::in_pod(netns) };
        let mut led: Vec<(L4Addr, L4Addr)> = Vec::new();
        let mut connected: Option<(L4Addr, L4Addr)> = None;
        for step in steps {
            match step {
                Step::Connect(proto, to) => {
                    let verdict = connect(&tables, &mut socket, proto, to);
                    // A refused socket has no peer to ask for.
                    if proto == Proto::TCP && verdict == Verdict::Pass {
                        connected = None;
                    }
                    if let Verdict::To(target) = verdict {
                        let refusing = L4Addr { addr: to.addr.loopback(), port: REFUSING_UDP_PORT };
                        let refused = proto == Proto::UDP && target == refusing && !device;
                        prop_assert!(refused || is_backend(&tables, target));
                        if proto == Proto::TCP {
                            connected = Some((meant(to), target));
                        } else {
                            led.push((meant(to), target));
                        }
                    }
                    prop_assert!(verdict != Verdict::Refuse || (proto == Proto::TCP && !device));
                    prop_assert!(verdict != Verdict::RefuseHere || device);
                }
                Step::Send(to) => {
                    if let Verdict::To(target) = send(&tables, &mut socket, to) {
                        let known = led.contains(&(meant(to), target));
                        prop_assert!(known || is_backend(&tables, target));
                        led.push((meant(to), target));
                    }
                }
                Step::Received(from) => {
                    if let Some(shown) = received(&mut socket, from) {
                        prop_assert!(led.contains(&(shown, from)));
                    }
                }
                Step::Peer(from) => {
                    if let Some(shown) = peer(&socket, from) {
                        prop_assert_eq!(connected, Some((shown, from)));
                    }
                }
            }
        }
    }

    #[test]
    fn where_socket_load_balancing_is_off_nothing_is_touched(mut tables in tables(), host: bool, steps in many(step(), 1..20)) {
        tables.config = tables.config.map(|config| Config { socket_lb: SocketLb::NONE, ..config });
        let mut socket = MemSocket { host, ..MemSocket::in_pod(1) };
        for step in steps {
            let verdict = match step {
                Step::Connect(proto, to) => connect(&tables, &mut socket, proto, to),
                Step::Send(to) => send(&tables, &mut socket, to),
                Step::Received(from) => { prop_assert_eq!(received(&mut socket, from), None); continue }
                Step::Peer(from) => { prop_assert_eq!(peer(&socket, from), None); continue }
            };
            prop_assert_eq!(verdict, Verdict::Pass);
        }
        prop_assert!(socket.tcp.is_none() && socket.udp.is_none());
    }
}
