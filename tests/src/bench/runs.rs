//! What the programs at tc and at XDP take for one packet, by BPF_PROG_TEST_RUN: no device and no stack is part of it.
//!
//! A run on the same packet again and again would meet one flow, and the second time a packet that is translated already. So what
//! runs is a [`Source`], which makes each packet the next flow's and calls our program; what it takes with a program of two
//! instructions in our place is subtracted.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, BorrowedFd},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{HashMap, PerCpuArray},
    programs::{SchedClassifier, Xdp},
};
use lb_common::{
    abi::{
        Addr, Addr4, Address, Config, Device, Direction, Flow, FlowAddr, FlowKey, FlowState, L4Addr, Reason,
    },
    host::MemTables,
};
use serde::Serialize;

use super::{
    bpf::{Code, Kind, Program, go_first},
    frames::{Cable, Says, frame},
    generator::Source,
    lookups::{ENTRY, ROUTE, entry, route},
    report::Goal,
    stats::{Spread, order},
};
use crate::{
    Netns,
    packets::{fill, serve},
};

/// Devices of the node.
pub(super) const UPLINK: u32 = 2002;
const POD: u32 = 2006;
/// What a program at tc says (include/uapi/linux/pkt_cls.h).
const NEXT: u32 = u32::MAX;
const REDIRECT: u32 = 7;
/// What one at XDP says (include/uapi/linux/bpf.h).
pub(super) const DROP: u32 = 1;
pub(super) const PASS: u32 = 2;
pub(super) const TX: u32 = 3;
/// Backends on other nodes, and as many on this one.
const BACKENDS: u16 = 16;
/// NodePort of the first backend elsewhere; those of backends here follow.
const NODE_PORT: u16 = 30_000;
/// First packet number of a list of new flows that no run has used yet.
const FRESH: u32 = 1 << 18;
/// Entries of the table of new flows, as by default.
const NEW: u32 = (1 << 15) + 256;
/// Flows that are proved at once: less than there is room for new ones.
const CHUNK: usize = 4096;
const CABLE: Cable = Cable { to: [4; 6], from: [2, 0, 0, 0, 0, 0xfe] };

/// The case that G5 is about.
const EXPRESS_HIT: &str = "XDP hit, backend elsewhere";

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// Which packets.
    pub name: &'static str,
    /// Of which object.
    pub object: &'static str,
    /// Services in the maps.
    pub services: u32,
    /// Flows that take turns.
    pub flows: u32,
    /// 4 or 6.
    pub family: u8,
    /// Nanoseconds of each round, the empty program of the same round subtracted.
    pub ns: Spread,
}

impl Case {
    /// Compares with G5, which says of hits at XDP what they may take at 1,024 flows.
    pub fn goal(&self) -> Option<Goal> {
        let seen = self.ns.median;
        let what =
            || format!("G5 <= 60 ns above two instructions: {} Services, IPv{}", self.services, self.family);
        (self.name == EXPRESS_HIT && self.flows == 1024 && self.object == "ours").then(|| Goal {
            what: what(),
            seen,
            reached: seen <= 60.0,
        })
    }
}

/// The node's namespace, which packets seem to come to.
///
/// # Errors
/// Those of ip(8).
pub fn node() -> Result<Netns> {
    let netns = Netns::new("runs")?;
    let mut lines = String::new();
    for (index, name) in [(UPLINK, "uplink"), (POD, "pod")] {
        writeln!(
            lines,
            "link add {name} address 04:04:04:04:04:04 index {index} type veth peer name {name}p index {}
             link set {name} up
             link set {name}p up",
            index + 1
        )?;
    }
    lines += "addr add 192.0.2.1/24 dev uplink
        addr add 2001:db8:2::1/64 dev uplink nodad
        route add default via 192.0.2.254 dev uplink
        route add default via 2001:db8:2::fe dev uplink
        route add 10.1.1.0/24 dev pod
        route add fd00:1:1::/64 dev pod
        neigh add 192.0.2.254 lladdr 02:00:00:00:00:fe dev uplink
        neigh add 2001:db8:2::fe lladdr 02:00:00:00:00:fe dev uplink";
    netns.ip(&lines)?;
    for name in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        netns.sysctl(name, "1")?;
    }
    Ok(netns)
}

pub(super) fn node_ip(v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1).into()
    } else {
        Ipv4Addr::new(192, 0, 2, 1).into()
    }
}

/// Backend `number` elsewhere, or on this node.
fn backend(number: u16, here: bool, v6: bool) -> IpAddr {
    let [_, low] = number.to_be_bytes();
    match (here, v6) {
        (false, false) => Ipv4Addr::new(10, 9, 0, low + 1).into(),
        (false, true) => Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, number + 1).into(),
        (true, false) => Ipv4Addr::new(10, 1, 1, low + 1).into(),
        (true, true) => Ipv6Addr::new(0xfd00, 1, 1, 0, 0, 0, 0, number + 1).into(),
    }
}

/// Client of flow `number`: some thousand machines with some ports each.
pub(super) fn client(number: u32, v6: bool) -> SocketAddr {
    #[expect(clippy::cast_possible_truncation, reason = "remainders")]
    let (machine, port) = ((number % 4096) as u16, 1024 + (number / 4096) as u16);
    let [high, low] = machine.to_be_bytes();
    let ip: IpAddr = if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, machine).into()
    } else {
        Ipv4Addr::new(198, 18, high, low).into()
    };
    (ip, port).into()
}

/// The frontend of flow `number`: a NodePort of a backend that is here or elsewhere.
fn frontend(number: u32, here: bool, v6: bool) -> SocketAddr {
    #[expect(clippy::cast_possible_truncation, reason = "a remainder")]
    let port = NODE_PORT + (number % u32::from(BACKENDS)) as u16 + if here { BACKENDS } else { 0 };
    (node_ip(v6), port).into()
}

/// `services` Services, 32 of which are used: one backend each, behind a NodePort.
fn world(services: u32, v6: bool) -> Result<MemTables> {
    let mut world = MemTables { ports: (16_384..49_152).collect(), ..MemTables::default() };
    let vip = |id: u32| -> IpAddr {
        if v6 {
            Ipv6Addr::from((0xfd00_0096_u128 << 96) + u128::from(id)).into()
        } else {
            Ipv4Addr::from(0x0a60_0000 + id).into()
        }
    };
    // Those that are used come last.
    for id in 1..services {
        let port = 100 + u16::try_from(id)?;
        serve(&mut world, id, (vip(id), port), backend(0, false, v6), false);
    }
    for (id, number) in (services..).zip(0..2 * BACKENDS) {
        let here = number >= BACKENDS;
        serve(&mut world, id, (vip(id), NODE_PORT + number), backend(number % BACKENDS, here, v6), here);
    }
    world.addresses.insert(node_ip(v6).into(), Address::NODE);
    let device =
        Device { v4: Addr4::narrow(node_ip(false).into()), v6: node_ip(true).into(), ..Device::NONE };
    world.devices.insert(UPLINK, device);
    world.devices.insert(POD, Device { bits: Device::PODS, ..device });
    world.config = Some(Config {
        node_port_min: NODE_PORT,
        node_port_max: 32_767,
        masquerade_ports: u32::try_from(world.ports.len())?,
        ..Config::OFF
    });
    Ok(world)
}

/// Entries of the table of flows that are kept: two for each flow, of backends elsewhere and of those here.
pub(super) fn kept(flows: u32) -> u32 {
    (4 * flows).max(1 << 17)
}

/// Where a packet meets a program of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hook {
    Ingress = 0,
    Egress,
    Xdp,
}

impl Hook {
    /// The program there.
    const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "lb_tc_ingress",
            Self::Egress => "lb_tc_egress",
            Self::Xdp => "lb_xdp",
        }
    }

    const fn kind(self) -> Kind {
        match self {
            Self::Ingress | Self::Egress => Kind::Tc,
            Self::Xdp => Kind::Xdp,
        }
    }
}

/// The object over the maps of a world.
pub(super) struct Loaded {
    ebpf: Ebpf,
}

impl Loaded {
    pub(super) fn new(object: &[u8], services: u32, flows: u32, v6: bool) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        loader.override_global("LB_HAS_COARSE_CLOCK", &1_u32, true);
        let kept = kept(flows);
        for (map, entries) in
            [("lb_new4", NEW), ("lb_new6", NEW), ("lb_flows4", kept), ("lb_flows6", kept), ("lb_frags", 64)]
        {
            loader.map_max_entries(map, entries);
        }
        for map in ["lb_frontends", "lb_services", "lb_slots", "lb_backends"] {
            loader.map_max_entries(map, (8 * services).max(4096));
        }
        let mut ebpf = loader.load(object)?;
        fill(&mut ebpf, &world(services, v6)?)?;
        for name in [Hook::Ingress, Hook::Egress].map(Hook::name) {
            let program: &mut SchedClassifier =
                ebpf.program_mut(name).with_context(|| format!("no {name}"))?.try_into()?;
            program.load()?;
        }
        if let Some(program) = ebpf.program_mut(Hook::Xdp.name()) {
            let program: &mut Xdp = program.try_into()?;
            program.load()?;
        }
        Ok(Self { ebpf })
    }

    /// Whether the object has a program there: older ones have none at XDP.
    pub(super) fn has(&self, hook: Hook) -> bool {
        self.ebpf.program(hook.name()).is_some()
    }

    /// The program at a hook.
    pub(super) fn program(&self, hook: Hook) -> Result<BorrowedFd<'_>> {
        let name = hook.name();
        let program = self.ebpf.program(name).with_context(|| format!("no {name}"))?;
        let fd = match hook {
            Hook::Ingress | Hook::Egress => <&SchedClassifier>::try_from(program)?.fd()?,
            Hook::Xdp => <&Xdp>::try_from(program)?.fd()?,
        };
        Ok(fd.as_fd())
    }

    /// How often something was counted, on all CPUs.
    pub(super) fn counted(&self, reason: Reason) -> Result<u64> {
        let reasons: PerCpuArray<_, u64> =
            self.ebpf.map("lb_reasons").context("no lb_reasons")?.try_into()?;
        Ok(reasons.get(&(reason as u32), 0)?.iter().sum())
    }
}

/// What differs between the families.
pub(super) trait Family: FlowAddr {
    const TABLES: [&'static str; 2];
}

impl Family for Addr4 {
    const TABLES: [&'static str; 2] = ["lb_new4", "lb_flows4"];
}

impl Family for Addr {
    const TABLES: [&'static str; 2] = ["lb_new6", "lb_flows6"];
}

/// The ends of all packets of flows that were made.
pub(super) struct Ends {
    /// From clients to backends elsewhere, and back.
    pub(super) away: [Vec<[L4Addr; 2]>; 2],
    /// To backends here, and back.
    here: [Vec<[L4Addr; 2]>; 2],
}

/// Opens `flows` flows to backends elsewhere and as many to backends here, and moves them to the table of those that are kept, as an answer
/// and the one to it would.
pub(super) fn open<A: Family>(loaded: &mut Loaded, netns: &Netns, flows: u32) -> Result<Ends>
where
    FlowKey<A>: Pod + Ord,
    Flow<A>: Pod,
{
    let v6 = A::TABLES[0].ends_with('6');
    let mut ends = Ends { away: Default::default(), here: Default::default() };
    for (here, into) in [(false, &mut ends.away), (true, &mut ends.here)] {
        let syns: Vec<Vec<u8>> = (0..flows)
            .map(|number| frame(CABLE, client(number, v6), frontend(number, here, v6), Says::Syn))
            .collect();
        for chunk in syns.chunks(CHUNK) {
            let source = Source::new(Kind::Tc, chunk)?;
            source.lead_to(loaded.program(Hook::Ingress)?)?;
            netns.run(|| source.time(UPLINK, 0, u32::try_from(chunk.len())?))?;
            for (key, flow) in keep::<A>(&mut loaded.ebpf)? {
                let way = usize::from(flow.direction == Direction::Reply as u8);
                into[way].push([key.from(), key.to()]);
            }
        }
        let made = into.iter().map(Vec::len).collect::<Vec<_>>();
        ensure!(made == [flows as usize; 2], "{flows} flows came to {made:?} entries");
    }
    Ok(ends)
}

/// Moves all entries of the small table to the large one.
fn keep<A: Family>(ebpf: &mut Ebpf) -> Result<BTreeMap<FlowKey<A>, Flow<A>>>
where
    FlowKey<A>: Pod + Ord,
    Flow<A>: Pod,
{
    let [new, kept] = A::TABLES;
    let mut small: HashMap<_, FlowKey<A>, Flow<A>> = ebpf.map_mut(new).context("a flow table")?.try_into()?;
    let entries: BTreeMap<_, _> = small.iter().collect::<Result<_, _>>()?;
    for key in entries.keys() {
        small.remove(key)?;
    }
    let mut large: HashMap<_, FlowKey<A>, Flow<A>> =
        ebpf.map_mut(kept).context("a flow table")?.try_into()?;
    for (key, flow) in &entries {
        let state = FlowState::REPLIED.with(FlowState::PROVEN);
        large.insert(key, Flow { state, ..*flow }, 0)?;
    }
    Ok(entries)
}

/// Packets that take turns, and what is to become of them.
struct Lane {
    name: &'static str,
    source: Source,
    hook: Hook,
    /// In our program's place.
    instead: Option<Program>,
    answer: u32,
    opens: bool,
    next: u64,
    flows: u32,
}

/// What is measured: which object, how many Services and flows, of IPv6, and only cases whose names begin so.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Objects with the programs, by what they are called.
    pub objects: &'a [(&'static str, Vec<u8>)],
    /// Services in the maps.
    pub services: u32,
    /// Flows that take turns.
    pub flows: u32,
    /// IPv6.
    pub v6: bool,
    /// What names of cases begin with.
    pub only: &'a str,
}

/// Measures all cases, in rounds of so many packets.
///
/// # Errors
/// A packet is not treated as it should be, so its figure would say nothing.
pub fn measure(netns: &Netns, wanted: Wanted<'_>, (rounds, repeat): (u32, u32)) -> Result<Vec<Case>> {
    let Wanted { objects, services, flows, v6, only } = wanted;
    let mut all = Vec::new();
    let mut lanes = Vec::new();
    for (at, (_, object)) in objects.iter().enumerate() {
        let mut loaded = Loaded::new(object, services, flows, v6)?;
        let ends = if v6 {
            open::<Addr>(&mut loaded, netns, flows)?
        } else {
            open::<Addr4>(&mut loaded, netns, flows)?
        };
        let wanted = self::lanes(&ends, flows, v6, |name, hook| name.starts_with(only) && loaded.has(hook))?;
        lanes.extend(wanted.into_iter().map(|lane| (at, lane)));
        all.push(loaded);
    }
    // The same case of all objects together.
    lanes.sort_by_key(|(_, lane)| lane.name);
    let mut seen: BTreeMap<(&str, usize), Vec<f64>> = BTreeMap::new();
    for round in 0..rounds as usize {
        for at in order(lanes.len(), round) {
            let (object, lane) = &mut lanes[at];
            let ns = one_round(netns, &all[*object], lane, repeat)?;
            seen.entry((lane.name, *object)).or_default().push(ns);
        }
    }
    let case = |(object, lane): &(usize, Lane)| Case {
        name: lane.name,
        object: objects[*object].0,
        services,
        flows: if lane.opens { 0 } else { lane.flows },
        family: if v6 { 6 } else { 4 },
        ns: Spread::of(seen.get(&(lane.name, *object)).into_iter().flatten().copied()),
    };
    Ok(lanes.iter().map(case).collect())
}

/// A program of two instructions.
///
/// # Errors
/// Those of the kernel.
pub fn two_instructions(kind: Kind, answer: i32) -> Result<Program> {
    let mut code = Code::default();
    code.exit(answer);
    code.program(kind, "bench_two")
}

/// Frames between ends.
pub(super) fn frames_of(ends: &[[L4Addr; 2]], says: Says) -> Vec<Vec<u8>> {
    // In no order, as packets come.
    let mut shuffled: Vec<_> = (0_u64..).zip(ends).collect();
    shuffled.sort_by_key(|(at, _)| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23));
    let end = |at: L4Addr| {
        let at = SocketAddr::from(at);
        SocketAddr::new(at.ip().to_canonical(), at.port())
    };
    shuffled.into_iter().map(|(_, [from, to])| frame(CABLE, end(*from), end(*to), says)).collect()
}

fn lanes(ends: &Ends, flows: u32, v6: bool, is_wanted: impl Fn(&str, Hook) -> bool) -> Result<Vec<Lane>> {
    use Hook::{Egress, Ingress, Xdp};
    let list = |count: u32, to: &dyn Fn(u32) -> SocketAddr, says| -> Vec<Vec<u8>> {
        (0..count).map(|number| frame(CABLE, client(number, v6), to(number), says)).collect()
    };
    let elsewhere = |_| SocketAddr::new(backend(99, false, v6), 443);
    let mut lanes = Vec::new();
    let mut lane = |name: &'static str, frames: Vec<Vec<u8>>, hook: Hook, answer, opens| -> Result<()> {
        if is_wanted(name, hook) {
            let flows = u32::try_from(frames.len())?;
            let source = Source::new(hook.kind(), &frames)?;
            lanes.push(Lane { name, source, hook, instead: None, answer, opens, next: 0, flows });
        }
        Ok(())
    };
    let of = frames_of;
    lane("foreign, comes", list(flows, &elsewhere, Says::Ack), Ingress, NEXT, false)?;
    lane("foreign SYN, comes", list(flows, &elsewhere, Says::Syn), Ingress, NEXT, false)?;
    lane("foreign, leaves", list(flows, &elsewhere, Says::Ack), Egress, NEXT, false)?;
    // The clients of flows, at frontends where they have none.
    let late = |number| frontend(number + 1, false, v6);
    lane("a Service's without a flow", list(flows, &late, Says::Ack), Ingress, NEXT, false)?;
    lane("hit, backend elsewhere", of(&ends.away[0], Says::Ack), Ingress, REDIRECT, false)?;
    lane("its answer", of(&ends.away[1], Says::Ack), Ingress, REDIRECT, false)?;
    lane("hit, backend here", of(&ends.here[0], Says::Ack), Ingress, NEXT, false)?;
    lane("its answer, leaves", of(&ends.here[1], Says::Ack), Egress, NEXT, false)?;
    let fresh = |here| {
        let to = move |number| frontend(number, here, v6);
        (0..FRESH)
            .map(|number| frame(CABLE, client(number + (1 << 20), v6), to(number), Says::Syn))
            .collect::<Vec<_>>()
    };
    lane("new flow, backend elsewhere", fresh(false), Ingress, REDIRECT, true)?;
    lane("new flow, backend here", fresh(true), Ingress, NEXT, true)?;
    lane("XDP foreign", list(flows, &elsewhere, Says::Ack), Xdp, PASS, false)?;
    lane("XDP a Service's without a flow", list(flows, &late, Says::Ack), Xdp, PASS, false)?;
    lane(EXPRESS_HIT, of(&ends.away[0], Says::Ack), Xdp, TX, false)?;
    lane("XDP its answer", of(&ends.away[1], Says::Ack), Xdp, TX, false)?;
    // What XDP looks at for nothing: tc serves it.
    lane("XDP flow of a backend here", of(&ends.here[0], Says::Ack), Xdp, PASS, false)?;
    lane(ROUTE, list(1, &elsewhere, Says::Ack), Xdp, PASS, false)?;
    let requests = of(&ends.away[0], Says::Ack);
    for (name, ..) in ENTRY {
        lane(name, requests.clone(), Xdp, PASS, false)?;
    }
    for lane in &mut lanes {
        lane.instead = match lane.name {
            ROUTE => Some(route(backend(0, false, v6))?),
            name => match ENTRY.into_iter().find(|(entry, ..)| *entry == name) {
                Some((_, preallocated, times)) => Some(entry(&requests, v6, preallocated, times)?),
                None => None,
            },
        };
    }
    Ok(lanes)
}

/// Nanoseconds of one round, what the empty program takes subtracted.
fn one_round(netns: &Netns, loaded: &Loaded, lane: &mut Lane, repeat: u32) -> Result<f64> {
    let two = two_instructions(lane.hook.kind(), lane.answer.cast_signed())?;
    let (before, expressed) = (loaded.counted(Reason::Flow)?, loaded.counted(Reason::Express)?);
    let (nothing, took) = netns.run(|| -> Result<_> {
        go_first()?;
        lane.source.lead_to(two.as_fd())?;
        let nothing = lane.source.time(UPLINK, lane.next, repeat)?;
        let ours = || loaded.program(lane.hook);
        lane.source.lead_to(lane.instead.as_ref().map_or_else(ours, |program| Ok(program.as_fd()))?)?;
        let answer = lane.source.answer(UPLINK, lane.next)?;
        ensure!(answer == lane.answer, "{}: answer {answer} instead of {}", lane.name, lane.answer);
        if !lane.opens {
            // The first packet of a flow in a second notes that, in both entries: a busy node pays for that once for many packets.
            lane.source.time(UPLINK, 0, lane.flows)?;
        }
        Ok((nothing, lane.source.time(UPLINK, lane.next + 1, repeat)?))
    })?;
    let opened = loaded.counted(Reason::Flow)? - before;
    let wanted = if lane.opens { u64::from(repeat) } else { 0 };
    ensure!(
        opened.abs_diff(wanted) <= wanted / 50 + 1,
        "{}: {opened} flows opened by {repeat} packets",
        lane.name
    );
    let expressed = loaded.counted(Reason::Express)? - expressed;
    let wanted = if (lane.hook, lane.answer) == (Hook::Xdp, TX) { 1 + lane.flows + repeat } else { 0 };
    ensure!(expressed == u64::from(wanted), "{}: {expressed} of {wanted} were sent on at XDP", lane.name);
    lane.next += u64::from(repeat);
    Ok(took - nothing)
}
