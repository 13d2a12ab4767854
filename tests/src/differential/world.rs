//! The node that packets meet: places, devices, and Services of every kind, in both families.
//!
//! All IPv4 addresses begin with the EtherType of IPv4, and all IPv6 ones have theirs where the kernel looks for an EtherType: BPF_PROG_TEST_RUN
//! takes every packet for one with an Ethernet header, also those of programs for devices without.

use std::fmt::Write as _;
use std::net::Ipv6Addr;

use anyhow::Result;
use lb_common::abi::{
    Addr, Addr4, Address, Backend, BackendId, BackendState, Config, Device, FlowAddr as _, Frontend,
    FrontendKey, FrontendKind, L4Addr, PacketLb, Proto, Run, Service, ServiceFlags, ServiceId, Slot,
};
use lb_common::datapath::packet::Route;
use lb_common::host::MemTables;

use crate::Netns;

/// Devices. The other ends of their cables have the number after theirs.
pub(super) const UPLINK: u32 = 2002;
pub(super) const UPLINK3: u32 = 2004;
pub(super) const OVERLAY: u32 = 2006;
pub(super) const POD: u32 = 2008;
pub(super) const POD2: u32 = 2010;
pub(super) const BRIDGE: u32 = 2012;
/// A port of the bridge.
pub(super) const PORT: u32 = 2014;
/// Not served.
pub(super) const DARK: u32 = 2016;
/// All of them.
pub(super) const DEVICES: [u32; 8] = [UPLINK, UPLINK3, OVERLAY, POD, POD2, BRIDGE, PORT, DARK];

/// The link-layer address of every device.
pub(super) const MAC: [u8; 6] = [4; 6];
/// Ports for masquerading: few, so that there are times without a free one.
const PORTS: [u16; 4] = [2000, 2001, 2002, 2003];
/// Flows that each family's table keeps: few, so that it is full at times.
pub(super) const KEPT: u32 = 10;
/// Services of each family.
pub(super) const SERVICES: u8 = 12;
/// What the id of a Service of IPv6 has more than that of the same one of IPv4.
const SIX: u32 = 20;
/// Seconds of session affinity.
pub(super) const AFFINITY_S: u32 = 10;
/// The first NodePort is that of Service 1.
pub(super) const NODE_PORT: u16 = 30_000;

/// A place: `8.0.net.host`, `fd00:1:86dd:net::host`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct At {
    net: u8,
    host: u8,
}

impl At {
    const fn new(net: u8, host: u8) -> Self {
        Self { net, host }
    }

    /// The load-balancer address of a Service.
    pub(super) const fn balancer(service: u8) -> Self {
        Self::new(100, service)
    }

    /// Its cluster IP.
    pub(super) const fn vip(service: u8) -> Self {
        Self::new(96, service)
    }

    /// Its address of a family.
    pub(super) fn addr(self, is_v6: bool) -> Addr {
        let Self { net, host } = self;
        if !is_v6 {
            return Addr::from_v4([8, 0, net, host]);
        }
        Addr { octets: [0xfd, 0, 0, 1, 0x86, 0xdd, 0, net, 0, 0, 0, 0, 0, 0, 0, host] }
    }
}

/// Who is outside.
pub(super) const CLIENTS: [At; 3] = [At::new(7, 7), At::new(7, 8), At::new(7, 9)];
/// In the source ranges of Service 2.
const ALLOWED: At = CLIENTS[1];
pub(super) const NODE: At = At::new(2, 1);
pub(super) const NODE3: At = At::new(3, 1);
pub(super) const TUNNEL: At = At::new(1, 1);
const BRIDGED: At = At::new(5, 254);
pub(super) const PODS: [At; 4] = [At::new(11, 11), At::new(12, 12), At::new(5, 11), At::new(5, 12)];
const FAR: At = At::new(20, 21);
const FAR2: At = At::new(20, 22);
/// A backend in another node's own network.
const BEYOND: At = At::new(21, 21);
/// Nowhere.
pub(super) const LOST: At = At::new(9, 1);

/// All of them but frontends, and where they are.
pub(super) const PLACES: [(At, Route); 15] = [
    (CLIENTS[0], Route::Out { ifindex: UPLINK }),
    (CLIENTS[1], Route::Out { ifindex: UPLINK }),
    (CLIENTS[2], Route::Out { ifindex: UPLINK }),
    (NODE, Route::Local),
    (NODE3, Route::Local),
    (TUNNEL, Route::Local),
    (BRIDGED, Route::Local),
    (PODS[0], Route::Out { ifindex: POD }),
    (PODS[1], Route::Out { ifindex: POD2 }),
    (PODS[2], Route::Out { ifindex: BRIDGE }),
    (PODS[3], Route::Out { ifindex: BRIDGE }),
    (FAR, Route::Out { ifindex: OVERLAY }),
    (FAR2, Route::Out { ifindex: OVERLAY }),
    (BEYOND, Route::Out { ifindex: UPLINK }),
    (LOST, Route::None),
];

/// Where a packet to an address of [`PLACES`] goes next at XDP, by the routes or out of a device that is named: out of which device, to
/// which link-layer address. Nothing if that is for the kernel to find out.
pub(super) fn next_hop(to: Addr, named: Option<u32>) -> Option<(u32, [u8; 6])> {
    let is_v6 = !to.is_v4();
    let (at, route) = PLACES.iter().find(|(at, _)| at.addr(is_v6) == to)?;
    let Route::Out { ifindex } = *route else { return None };
    let hop = match ifindex {
        UPLINK => [2, 0, 0, 0, 0, 0xfe],
        OVERLAY => [2, 0, 0, 0, 0, 2],
        POD => [2, 0, 0, 0, 0, 11],
        // Nobody has asked for these neighbours.
        _ => return default_hop(is_v6, named, ifindex),
    };
    debug_assert_ne!(*at, LOST, "there is no way");
    match named {
        Some(named) if named != ifindex => default_hop(is_v6, Some(named), ifindex),
        _ => Some((ifindex, hop)),
    }
}

/// IPv4 has another way out of the uplink, the default one.
fn default_hop(is_v6: bool, named: Option<u32>, ifindex: u32) -> Option<(u32, [u8; 6])> {
    (!is_v6 && named == Some(UPLINK) && ifindex != UPLINK).then_some((UPLINK, [2, 0, 0, 0, 0, 0xfe]))
}

/// What a device takes: the overlay less than others.
pub(super) const fn mtu(ifindex: u32) -> usize {
    if ifindex == OVERLAY { 1300 } else { 1500 }
}

/// The largest packet to an address of [`PLACES`] that leaves by the routes, or out of a device that is named; nothing if the routes do not
/// know that way.
pub(super) fn largest(to: Addr, named: Option<u32>) -> Option<usize> {
    let (_, route) = PLACES.iter().find(|(at, _)| at.addr(!to.is_v4()) == to)?;
    let Route::Out { ifindex } = *route else { return None };
    match named {
        // IPv6 takes a device for a wish only, and only the uplink has a way to everybody.
        Some(named) if named != ifindex && to.is_v4() => (named == UPLINK).then_some(mtu(UPLINK)),
        _ => Some(mtu(ifindex)),
    }
}

/// Whether an address is one of [`PLACES`].
pub(super) fn is_known(addr: Addr) -> bool {
    PLACES.iter().any(|(at, _)| at.addr(!addr.is_v4()) == addr)
}

/// A network namespace with those devices, routes and neighbours.
///
/// # Errors
/// Those of ip(8).
pub(super) fn node() -> Result<Netns> {
    let netns = Netns::new("packets")?;
    let mut lines = String::new();
    for ifindex in DEVICES {
        writeln!(
            lines,
            "link add d{ifindex} address 04:04:04:04:04:04 index {ifindex} type veth peer name p{ifindex} index {}
             link set d{ifindex} up mtu {}
             link set p{ifindex} up",
            ifindex + 1,
            mtu(ifindex)
        )?;
    }
    let on = |at: At, prefix: (u8, u8), ifindex: u32| {
        format!(
            "addr add {}/{} dev d{ifindex}\naddr add {}/{} dev d{ifindex} nodad\n",
            text(at, false),
            prefix.0,
            text(at, true),
            prefix.1
        )
    };
    for (at, ifindex) in [(NODE, UPLINK), (NODE3, UPLINK3), (TUNNEL, OVERLAY), (BRIDGED, BRIDGE)] {
        lines += &on(at, (24, 64), ifindex);
    }
    for (is_v6, bits) in [(false, [24, 32]), (true, [64, 128])] {
        let hops =
            [(At::new(2, 254), "02:00:00:00:00:fe", UPLINK), (At::new(1, 2), "02:00:00:00:00:02", OVERLAY)];
        for (at, mac, ifindex) in hops {
            writeln!(lines, "neigh add {} lladdr {mac} dev d{ifindex}", text(at, is_v6))?;
        }
        let pod = text(PODS[0], is_v6);
        writeln!(lines, "neigh add {pod} lladdr 02:00:00:00:00:0b dev d{POD}")?;
        writeln!(lines, "route add default via {} dev d{UPLINK}", text(At::new(2, 254), is_v6))?;
        let net = |number| format!("{}/{}", text(At::new(number, 0), is_v6), bits[0]);
        writeln!(lines, "route add {} via {} dev d{OVERLAY}", net(20), text(At::new(1, 2), is_v6))?;
        writeln!(lines, "route add blackhole {}", net(9))?;
        for (pod, ifindex) in [(PODS[0], POD), (PODS[1], POD2)] {
            writeln!(lines, "route add {}/{} dev d{ifindex}", text(pod, is_v6), bits[1])?;
        }
    }
    netns.ip(&lines)?;
    for name in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        netns.sysctl(name, "1")?;
    }
    Ok(netns)
}

fn text(at: At, is_v6: bool) -> String {
    let octets = at.addr(is_v6).octets;
    if is_v6 { Ipv6Addr::from(octets).to_string() } else { format!("8.0.{}.{}", at.net, at.host) }
}

/// Backends of a Service: where, and which port.
type Backends = &'static [(At, u16)];

/// Who serves each Service, from the first one on, and how.
const SERVED: [(Backends, ServiceFlags); SERVICES as usize] = [
    (&[(FAR, 8080)], ServiceFlags { bits: 0 }),
    (&[(PODS[0], 8080)], ServiceFlags::RESTRICTED),
    (&[], ServiceFlags { bits: 0 }),
    // Its local run is elsewhere.
    (&[(FAR, 8080)], ServiceFlags::EXTERNAL_LOCAL),
    (&[(LOST, 8080)], ServiceFlags { bits: 0 }),
    (&[(FAR, 8080), (FAR2, 8080), (PODS[0], 8080), (BEYOND, 80)], ServiceFlags { bits: 0 }),
    // With affinity.
    (&[(PODS[0], 8080), (PODS[1], 8080)], ServiceFlags { bits: 0 }),
    (&[(FAR, 8080), (PODS[0], 8080), (PODS[0], 8081)], ServiceFlags::MAGLEV),
    (&[(PODS[0], 8080), (PODS[0], 8081), (FAR, 8080)], ServiceFlags::ROUND_ROBIN),
    (&[(PODS[2], 8080)], ServiceFlags { bits: 0 }),
    // A process of this node.
    (&[(NODE, 8080)], ServiceFlags { bits: 0 }),
    (&[(FAR, 8080)], ServiceFlags::INTERNAL_LOCAL),
];

/// The Service with affinity, and that by turns.
pub(super) const STICKY: u8 = 7;
pub(super) const BY_TURNS: u8 = 9;

/// The id of a Service of a family.
pub(super) fn id(service: u8, is_v6: bool) -> ServiceId {
    ServiceId { index: u32::from(service) + if is_v6 { SIX } else { 0 } }
}

/// Tables that hold all this, and what is drawn for a sequence of packets: switches.
pub(super) fn world(packets: PacketLb) -> MemTables {
    let mut world = MemTables { ports: PORTS.to_vec(), default_route: UPLINK, ..MemTables::default() };
    for is_v6 in [false, true] {
        for (at, route) in PLACES {
            let addr = at.addr(is_v6);
            world.routes.insert(addr, route);
            if route == Route::Local {
                world.addresses.insert(addr, Address::NODE);
            }
        }
        for (service, (backends, flags)) in (1..).zip(SERVED) {
            serve(&mut world, (service, is_v6), backends, flags);
        }
        world.allowed.insert((id(2, is_v6), ALLOWED.addr(is_v6)));
        for pod in PODS {
            world.allowed.insert((ServiceId::PODS, pod.addr(is_v6)));
        }
    }
    for (ifindex, at, bits, controller) in [
        (UPLINK, NODE, Device::EXPRESS, 0),
        (UPLINK3, NODE3, 0, 0),
        (OVERLAY, TUNNEL, Device::EXPRESS, 0),
        (POD, NODE, Device::PODS, 0),
        (POD2, NODE, Device::PODS, 0),
        (BRIDGE, BRIDGED, Device::PODS | Device::SHARED, 0),
        (PORT, BRIDGED, Device::PODS | Device::SHARED, BRIDGE),
    ] {
        let [v4, v6] = [false, true].map(|is_v6| at.addr(is_v6));
        let device = Device { v4: Addr4::narrow(v4), v6, bits, controller, ..Device::NONE };
        world.devices.insert(ifindex, device);
    }
    for tables in [&world.flows4.room, &world.flows6.room] {
        tables.set(KEPT as usize);
    }
    world.config = Some(config(packets));
    world
}

/// With these switches.
pub(super) fn config(packets: PacketLb) -> Config {
    Config {
        node_port_min: NODE_PORT + 1,
        node_port_max: NODE_PORT + u16::from(SERVICES),
        packets,
        #[expect(clippy::cast_possible_truncation, reason = "four")]
        masquerade_ports: PORTS.len() as u32,
        ..Config::OFF
    }
}

/// Puts a Service with its backends into the tables: one slot for each, of Maglev eight by turns.
fn serve(world: &mut MemTables, (service, is_v6): (u8, bool), backends: Backends, flags: ServiceFlags) {
    let id = id(service, is_v6);
    let base = id.index * 16;
    let count = if flags.has(ServiceFlags::MAGLEV) { 8 } else { backends.len() };
    for (number, (at, port)) in (0..).zip(backends.iter().cycle().take(count)) {
        let backend = BackendId { index: base + number };
        let addr = at.addr(is_v6);
        let slot = Slot { addr, port: *port, backend, generation: 1, ..Slot::FREE };
        world.slots.insert(base + number, slot);
        let here = PODS.contains(at) || *at == NODE;
        let runs = Backend::IN_CLUSTER | Backend::IN_LOCAL | if here { Backend::HERE } else { 0 };
        let state = BackendState::Active as u8;
        world.backends.insert(backend, Backend { generation: 1, state, runs, pad: 0 });
    }
    let cluster = Run { base, count: u16::try_from(count).unwrap_or(0), generation: 1 };
    let local = if flags.has(ServiceFlags::EXTERNAL_LOCAL) { Run::ELSEWHERE } else { cluster };
    let affinity_s = if service == STICKY { AFFINITY_S } else { 0 };
    world.services.insert(id, Service { cluster, local, flags, affinity_s, ..Service::FREE });
    let (balancer, vip) = (At::balancer(service).addr(is_v6), At::vip(service).addr(is_v6));
    let mut accept = |key: FrontendKey, kind| world.frontends.insert(key, Frontend::new(key, id, kind));
    for proto in [Proto::TCP, Proto::UDP, Proto::SCTP] {
        for (addr, port, kind) in [
            (balancer, 80, FrontendKind::LoadBalancer),
            (vip, 80, FrontendKind::ClusterIp),
            (vip.any(), NODE_PORT + u16::from(service), FrontendKind::NodePort),
        ] {
            accept(FrontendKey::new(L4Addr { addr, port }, proto), kind);
        }
    }
    accept(FrontendKey::other_ports(vip), FrontendKind::OtherPorts);
}
