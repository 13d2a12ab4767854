//! What the programs do to packets: the same as the pure pipeline does, byte for byte, and what only the kernel can show.
//!
//! Packets come by BPF_PROG_TEST_RUN, in a network namespace with devices and routes. `cargo xtask soak packets` compares a million.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use core::net::{IpAddr, Ipv6Addr};
use std::collections::BTreeSet;
use std::fmt::Write as _;

use aya::maps::{HashMap, MapData};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader, Pod};
use etherparse::{
    IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header, PacketBuilder,
};
use lb_agent::datapath::OBJECT;
use lb_common::abi::{
    Addr, Addr4, Address, Backend, BackendId, BackendState, Config, Device, Flow, FlowAddr, FlowKey,
    Frontend, FrontendKey, FrontendKind, L4Addr, PacketLb, Proto, Reason, Run, Service, ServiceFlags,
    ServiceId, Slot,
};
use lb_common::datapath::packet::Route;
use lb_common::host::MemTables;
use lb_tests::differential::Differential;
use lb_tests::packets::fill;
use lb_tests::privilege::say_not_run;
use lb_tests::{Netns, needs_root};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

const UPLINK: u32 = 2002;
const OVERLAY: u32 = 2004;
const POD: u32 = 2006;
const DARK: u32 = 2008;
const PORT: u16 = 2000;
/// Packets that are compared in every run of the tests.
const PACKETS: u64 = 20_000;

/// What the program says: include/uapi/linux/pkt_cls.h.
const NEXT: u32 = u32::MAX;
const DROP: u32 = 2;
const REDIRECT: u32 = 7;

/// Name, IPv4, IPv6, and where that is.
const PLACES: [(&str, [u8; 4], &str, Route); 14] = [
    ("client", [198, 51, 100, 7], "2001:db8:7::7", Route::Out { ifindex: UPLINK }),
    ("other", [198, 51, 100, 8], "2001:db8:7::8", Route::Out { ifindex: UPLINK }),
    ("node", [192, 0, 2, 1], "2001:db8:2::1", Route::Local),
    ("tunnel", [10, 1, 0, 1], "fd00:1::1", Route::Local),
    ("pod", [10, 1, 1, 11], "fd00:1:1::11", Route::Out { ifindex: POD }),
    ("far", [10, 1, 2, 21], "fd00:1:2::21", Route::Out { ifindex: OVERLAY }),
    ("lost", [10, 9, 0, 1], "fd00:9::1", Route::None),
    ("lb1", [203, 0, 113, 1], "2001:db8:1::1", Route::Out { ifindex: UPLINK }),
    ("lb2", [203, 0, 113, 2], "2001:db8:1::2", Route::Out { ifindex: UPLINK }),
    ("lb3", [203, 0, 113, 3], "2001:db8:1::3", Route::Out { ifindex: UPLINK }),
    ("lb4", [203, 0, 113, 4], "2001:db8:1::4", Route::Out { ifindex: UPLINK }),
    ("lb5", [203, 0, 113, 5], "2001:db8:1::5", Route::Out { ifindex: UPLINK }),
    ("vip1", [10, 96, 0, 1], "fd00:96::1", Route::Out { ifindex: UPLINK }),
    ("vip2", [10, 96, 0, 2], "fd00:96::2", Route::Out { ifindex: UPLINK }),
];

fn addr(place: usize, is_v6: bool) -> Addr {
    let (_, four, six, _) = PLACES[place];
    if is_v6 { IpAddr::from(six.parse::<Ipv6Addr>().unwrap()).into() } else { Addr::from_v4(four) }
}

fn place(name: &str) -> usize {
    PLACES.iter().position(|(known, ..)| *known == name).unwrap()
}

/// Puts the port of a place into a slot.
fn add_backend(world: &mut MemTables, slot: u32, owner: BackendId, (name, port): (&str, u16), is_v6: bool) {
    let at = addr(place(name), is_v6);
    world.slots.insert(slot, Slot { addr: at, port, backend: owner, generation: 1, ..Slot::FREE });
    let here = if name == "pod" { Backend::HERE } else { 0 };
    let runs = Backend::IN_CLUSTER | Backend::IN_LOCAL | here;
    let state = BackendState::Active as u8;
    world.backends.insert(owner, Backend { generation: 1, state, runs, pad: 0 });
}

/// Services by id: to `far`, to `pod`, to nobody, to others than local ones, to `lost`; the second one's load balancer is for `other`.
fn world() -> MemTables {
    let mut world = MemTables { ports: vec![PORT], ..MemTables::default() };
    let backends = [Some("far"), Some("pod"), None, Some("far"), Some("lost")];
    for (index, backend) in (1_u32..).zip(backends) {
        for (is_v6, id) in [(false, index), (true, index + 10)] {
            let service = ServiceId { index: id };
            let run = Run { base: id, count: u16::from(backend.is_some()), generation: 1 };
            if let Some(backend) = backend {
                add_backend(&mut world, id, BackendId { index: id }, (backend, 8080), is_v6);
            }
            let (local, flags) = match index {
                2 => (run, ServiceFlags::RESTRICTED),
                4 => (Run::ELSEWHERE, ServiceFlags::EXTERNAL_LOCAL),
                _ => (run, ServiceFlags::default()),
            };
            world.services.insert(service, Service { cluster: run, local, flags, ..Service::FREE });
            for proto in [Proto::TCP, Proto::UDP] {
                let mut accept = |to: L4Addr, kind| {
                    let key = FrontendKey::new(to, proto);
                    world.frontends.insert(key, Frontend::new(key, service, kind));
                };
                let balancer = addr(place(&format!("lb{index}")), is_v6);
                accept(L4Addr { addr: balancer, port: 80 }, FrontendKind::LoadBalancer);
                let port = 30_000 + u16::try_from(index).unwrap();
                accept(L4Addr { addr: balancer.any(), port }, FrontendKind::NodePort);
                if index < 3 {
                    let vip = addr(place(&format!("vip{index}")), is_v6);
                    accept(L4Addr { addr: vip, port: 80 }, FrontendKind::ClusterIp);
                    let key = FrontendKey::other_ports(vip);
                    world.frontends.insert(key, Frontend::new(key, service, FrontendKind::OtherPorts));
                }
            }
            world.allowed.insert((service, addr(place("other"), is_v6)));
        }
    }
    for is_v6 in [false, true] {
        for (number, (_, _, _, route)) in PLACES.iter().enumerate() {
            world.routes.insert(addr(number, is_v6), *route);
        }
        for name in ["node", "tunnel"] {
            world.addresses.insert(addr(place(name), is_v6), Address::NODE);
        }
    }
    for (ifindex, name, bits) in [(UPLINK, "node", 0), (OVERLAY, "tunnel", 0), (POD, "node", Device::PODS)] {
        let [four, six] = [false, true].map(|is_v6| addr(place(name), is_v6));
        world.devices.insert(ifindex, Device { v4: Addr4::narrow(four), v6: six, bits, ..Device::NONE });
    }
    world.config = Some(Config {
        node_port_min: 30_001,
        node_port_max: 30_005,
        packets: PacketLb::default(),
        masquerade_ports: 1,
        ..Config::OFF
    });
    world
}

/// The programs, over maps that hold what a world holds.
struct Kernel<'a> {
    netns: &'a Netns,
    ebpf: Ebpf,
}

/// A node with an uplink, an overlay, a pod, and a device that is not served.
fn node() -> Netns {
    let netns = Netns::new("packets").unwrap();
    // Frames to others are not answered: every device has the address that they are sent to.
    let mut lines = String::new();
    for (ifindex, name) in [(UPLINK, "uplink"), (OVERLAY, "ov"), (POD, "pod"), (DARK, "dark")] {
        writeln!(
            lines,
            "link add {name} address 04:04:04:04:04:04 index {ifindex} type veth peer name {name}p index {}
             link set {name} up
             link set {name}p up",
            ifindex + 1
        )
        .unwrap();
    }
    lines += "
            addr add 192.0.2.1/24 dev uplink
            addr add 2001:db8:2::1/64 dev uplink nodad
            addr add 10.1.0.1/24 dev ov
            addr add fd00:1::1/64 dev ov nodad
            route add default via 192.0.2.254 dev uplink
            route add default via 2001:db8:2::fe dev uplink
            route add 10.1.2.0/24 via 10.1.0.2 dev ov
            route add fd00:1:2::/64 via fd00:1::2 dev ov
            route add 10.1.1.11/32 dev pod
            route add fd00:1:1::11/128 dev pod
            route add blackhole 10.9.0.0/16
            route add blackhole fd00:9::/32
            neigh add 192.0.2.254 lladdr 02:00:00:00:00:fe dev uplink
            neigh add 2001:db8:2::fe lladdr 02:00:00:00:00:fe dev uplink
            neigh add 10.1.0.2 lladdr 02:00:00:00:00:02 dev ov
            neigh add fd00:1::2 lladdr 02:00:00:00:00:02 dev ov";
    netns.ip(&lines).unwrap();
    for name in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        netns.sysctl(name, "1").unwrap();
    }
    netns
}

impl<'a> Kernel<'a> {
    fn new(netns: &'a Netns) -> Self {
        Self::with_room(netns, 4096)
    }

    /// With room for so many flows that are new.
    fn with_room(netns: &'a Netns, new: u32) -> Self {
        let mut loader = EbpfLoader::new();
        loader.override_global("LB_HAS_COARSE_CLOCK", &0_u32, true);
        for map in ["lb_flows4", "lb_flows6", "lb_frags"] {
            loader.map_max_entries(map, 4096);
        }
        for map in ["lb_new4", "lb_new6"] {
            loader.map_max_entries(map, new);
        }
        let mut ebpf = loader.load(OBJECT).unwrap();
        for name in ["lb_tc_ingress", "lb_tc_egress"] {
            let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap();
        }
        Self { netns, ebpf }
    }

    fn run(&self, packet: &Packet) -> (u32, Vec<u8>) {
        let name = if packet.egress { "lb_tc_egress" } else { "lb_tc_ingress" };
        let program: &SchedClassifier = self.ebpf.program(name).unwrap().try_into().unwrap();
        // struct __sk_buff: the kernel takes the interface from it.
        let mut ctx = [0_u8; 192];
        let at = core::mem::offset_of!(aya_obj_skb::SkBuff, ifindex);
        ctx[at..at + 4].copy_from_slice(&packet.ifindex.to_ne_bytes());
        let mut out = vec![0; packet.bytes.len() + 256];
        self.netns
            .run(|| {
                let options = TestRunOptions {
                    data_in: Some(&packet.bytes),
                    data_out: Some(&mut out),
                    ctx_in: Some(&ctx),
                    repeat: 1,
                    ..TestRunOptions::default()
                };
                let result = program.test_run(options).unwrap();
                let len = result.data_size_out as usize;
                (result.return_value, len)
            })
            .pipe(|(action, len)| {
                out.truncate(len);
                // What is left of a dropped packet is nobody's.
                (action, if action == DROP { packet.bytes.clone() } else { out })
            })
    }
}

/// The first fields of `struct __sk_buff` (include/uapi/linux/bpf.h).
mod aya_obj_skb {
    #[repr(C)]
    pub(super) struct SkBuff {
        len: u32,
        pkt_type: u32,
        mark: u32,
        queue_mapping: u32,
        protocol: u32,
        vlan_present: u32,
        vlan_tci: u32,
        vlan_proto: u32,
        priority: u32,
        ingress_ifindex: u32,
        pub(super) ifindex: u32,
    }
}

trait Pipe: Sized {
    fn pipe<R>(self, with: impl FnOnce(Self) -> R) -> R {
        with(self)
    }
}

impl<T> Pipe for T {}

/// A packet at a device.
#[derive(Clone, Debug)]
struct Packet {
    egress: bool,
    ifindex: u32,
    bytes: Vec<u8>,
}

/// The sum in ones' complement (RFC 1071).
fn ones_sum(one: u16, other: u16) -> u16 {
    let (sum, carried) = one.overflowing_add(other);
    sum + u16::from(carried)
}

fn frame(is_v6: bool, (from, to): (usize, usize), (sport, dport): (u16, u16), said: u8, ttl: u8) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let ip = if is_v6 {
        let [source, destination] = [from, to].map(|at| addr(at, true).octets);
        IpHeaders::Ipv6(
            Ipv6Header { hop_limit: ttl, source, destination, ..Ipv6Header::default() },
            Ipv6Extensions::default(),
        )
    } else {
        let [source, destination]: [[u8; 4]; 2] = [from, to].map(|at| PLACES[at].1);
        let header = Ipv4Header::new(0, ttl, IpNumber::UDP, source, destination).unwrap();
        IpHeaders::Ipv4(header, Ipv4Extensions::default())
    };
    let mut bytes = Vec::new();
    let builder = builder.ip(ip);
    if said == 0xff {
        builder.udp(sport, dport).write(&mut bytes, b"payload").unwrap();
    } else {
        builder.tcp(sport, dport, 1, 2).write(&mut bytes, b"payload").unwrap();
        let tcp = bytes.len() - 7 - 20;
        // The checksum covers the flags.
        let old = u16::from(bytes[tcp + 13]);
        bytes[tcp + 13] = said;
        let sum = u16::from_be_bytes([bytes[tcp + 16], bytes[tcp + 17]]);
        let new = !ones_sum(ones_sum(!sum, !old), said.into());
        bytes[tcp + 16..tcp + 18].copy_from_slice(&new.to_be_bytes());
    }
    bytes
}

/// Gives a service these backends, in eight slots of its own by turns, and these flags.
fn spread_over(world: &mut MemTables, id: u32, backends: [(&str, u16); 2], flags: ServiceFlags) {
    let is_v6 = id > 10;
    let run = Run { base: 100 * id, count: 8, generation: 2 };
    for (slot, (name, port)) in (run.base..run.base + 8).zip(backends.into_iter().cycle()) {
        let backend = BackendId { index: 100 * id + slot % 2 };
        add_backend(world, slot, backend, (name, port), is_v6);
    }
    let service = world.services.get_mut(&ServiceId { index: id }).unwrap();
    *service = Service { cluster: run, local: run, flags, ..*service };
}

/// [`world()`], where the first Service is hashed over two backends.
fn hashed_world() -> MemTables {
    let mut world = world();
    for id in [1, 11] {
        spread_over(&mut world, id, [("far", 8080), ("pod", 8080)], ServiceFlags::MAGLEV);
    }
    let config = world.config.as_mut().unwrap();
    config.packets = config.packets.with(PacketLb::MAGLEV);
    world
}

/// SC-1 too: all protocols, with options, extensions, tags, pieces, errors, and what may be wrong with any of that.
#[test]
fn the_programs_and_the_host_agree_on_every_packet() {
    needs_root!();
    let report = Differential::new().unwrap().run(1, PACKETS).unwrap();
    println!("{report}");
    // Whatever a program may do was seen.
    let said: BTreeSet<(&str, u32)> = report.seen.keys().map(|(name, action, _)| (*name, *action)).collect();
    for name in ["lb_tc_ingress", "lb_ip_ingress"] {
        assert!(
            [NEXT, DROP, REDIRECT].iter().all(|action| said.contains(&(name, *action))),
            "{name}: {said:?}"
        );
    }
    for name in ["lb_tc_egress", "lb_ip_egress"] {
        assert!([NEXT, REDIRECT].iter().all(|action| said.contains(&(name, *action))), "{name}: {said:?}");
    }
    if said.iter().any(|(name, _)| *name == "lb_xdp") {
        assert!([2, 3, 4].iter().all(|action| said.contains(&("lb_xdp", *action))), "{said:?}");
    } else {
        say_not_run("lb_xdp beside the host", "a kernel that runs a program at XDP for a device (5.14)");
    }
    for reason in [Reason::Flow, Reason::RefusedPacket, Reason::NotKept, Reason::NoPort, Reason::IcmpError] {
        assert!(report.counts.contains_key(&reason), "{:?}", report.counts);
    }
}

/// 5.9-maglev, 5.9-join.
#[test]
fn the_middle_of_a_connection_goes_to_the_backend_of_its_first_segment() {
    needs_root!();
    let netns = node();
    for is_v6 in [false, true] {
        let kernels = [0x02, 0x10].map(|said| {
            let mut kernel = Kernel::new(&netns);
            fill(&mut kernel.ebpf, &hashed_world()).unwrap();
            (kernel, said)
        });
        let mut met = BTreeSet::new();
        for port in 4000..4032 {
            let [first, middle] = kernels.each_ref().map(|(kernel, said)| {
                let bytes = frame(is_v6, (place("pod"), place("lb1")), (port, 80), *said, 64);
                let (action, bytes) = kernel.run(&Packet { egress: false, ifindex: POD, bytes });
                let to = if is_v6 { 14 + 24..14 + 40 } else { 14 + 16..14 + 20 };
                (action, bytes[to].to_vec())
            });
            assert_eq!(first, middle, "port {port}, IPv6 {is_v6}");
            met.insert(middle.1);
        }
        let backends: Vec<Vec<u8>> = ["far", "pod"]
            .map(|name| addr(place(name), is_v6).octets[if is_v6 { 0 } else { 12 }..].to_vec())
            .into();
        assert!(backends.iter().any(|backend| met.contains(backend)), "{met:?}");
    }
}

/// 5.9-round-robin: on one CPU everybody has as many as everybody else, whichever is the first.
#[test]
fn connections_of_one_cpu_go_to_all_backends_in_turn() {
    needs_root!();
    let netns = node();
    let mut world = world();
    for id in [1, 11] {
        spread_over(&mut world, id, [("pod", 8080), ("pod", 8081)], ServiceFlags::ROUND_ROBIN);
    }
    let mut kernel = Kernel::new(&netns);
    fill(&mut kernel.ebpf, &world).unwrap();
    let mut first_cpu = CpuSet::new();
    first_cpu.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &first_cpu).unwrap();
    for is_v6 in [false, true] {
        let ports: Vec<u16> = (4000..4032)
            .map(|port| {
                let bytes = frame(is_v6, (place("client"), place("lb1")), (port, 80), 0x02, 64);
                let (action, bytes) = kernel.run(&Packet { egress: false, ifindex: UPLINK, bytes });
                assert_eq!(action, NEXT);
                let at = if is_v6 { 14 + 40 + 2 } else { 14 + 20 + 2 };
                u16::from_be_bytes([bytes[at], bytes[at + 1]])
            })
            .collect();
        assert!(ports.windows(2).all(|two| two[0] != two[1] && two[0].abs_diff(two[1]) == 1), "{ports:?}");
    }
}

/// Entries of a table of new flows, if it is that of the family.
fn entries<A: FlowAddr>(ebpf: &Ebpf, name: &str) -> usize
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    let map: HashMap<&MapData, FlowKey<A>, Flow<A>> = ebpf.map(name).unwrap().try_into().unwrap();
    map.keys().count()
}

/// What is proven leaves the small table, where it would be in the way: an LRU table gives up what nobody has looked for before what was in
/// use, however old that is.
#[test]
fn flows_that_are_kept_do_not_push_young_ones_out() {
    const YOUNG: u16 = 400;
    const KEPT: u16 = 300;
    needs_root!();
    let netns = node();
    for is_v6 in [false, true] {
        // Each flow has two entries: all are too many for one table.
        let mut kernel = Kernel::with_room(&netns, 1024);
        fill(&mut kernel.ebpf, &world()).unwrap();
        let mut cpu = CpuSet::new();
        cpu.set(0).unwrap();
        sched_setaffinity(Pid::from_raw(0), &cpu).unwrap();
        let (pod, far, vip) = (place("pod"), place("far"), place("lb1"));
        let asks = |port, said| {
            let bytes = frame(is_v6, (pod, vip), (port, 80), said, 64);
            let (_, after) = kernel.run(&Packet { egress: false, ifindex: POD, bytes: bytes.clone() });
            after != bytes
        };
        let answers = |port, said| {
            let bytes = frame(is_v6, (far, pod), (8080, port), said, 64);
            let (_, after) = kernel.run(&Packet { egress: true, ifindex: POD, bytes: bytes.clone() });
            after != bytes
        };
        for port in 10_000..10_000 + KEPT {
            assert!(asks(port, 0x02) && answers(port, 0x12) && asks(port, 0x10));
        }
        let left = if is_v6 {
            entries::<Addr>(&kernel.ebpf, "lb_new6")
        } else {
            entries::<Addr4>(&kernel.ebpf, "lb_new4")
        };
        for number in 0..YOUNG {
            assert!(asks(20_000 + number, 0x02), "half open");
            assert!(asks(10_000 + number % KEPT, 0x10), "kept ones go on");
        }
        let lost = (20_000..20_000 + YOUNG).filter(|port| !answers(*port, 0x12)).count();
        assert_eq!((lost, left), (0, 0), "IPv6 {is_v6}: young flows that were lost, entries of kept ones");
    }
}
