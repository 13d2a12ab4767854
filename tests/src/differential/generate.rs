//! Packets by chance: of flows that are there, of new ones, of nobody's; and whatever may be wrong with a packet.

use lb_common::abi::{Addr, Addr4, Direction, Flow, FlowBits, FlowKey, L4Addr, Proto};
use lb_common::datapath::packet::Table;
use lb_common::host::{Family, MemTables};

use super::packet::{Packet, Program};
use super::sums::crc32c;
use super::world::{
    At, BRIDGE, CLIENTS, DEVICES, LOST, MAC, NODE, NODE_PORT, NODE3, OVERLAY, PLACES, POD, POD2, PODS, PORT,
    SERVICES, TUNNEL, UPLINK, UPLINK3,
};
use crate::random::Random;

/// Who sends what to whom.
#[derive(Clone, Copy, Debug)]
struct Ends {
    from: L4Addr,
    to: L4Addr,
    proto: Proto,
}

impl Ends {
    const fn reversed(self) -> Self {
        Self { from: self.to, to: self.from, ..self }
    }

    fn of<A: Family>(key: &FlowKey<A>) -> Self {
        Self { from: key.from(), to: key.to(), proto: key.proto }
    }

    const fn is_v6(&self) -> bool {
        !self.from.addr.is_v4()
    }
}

/// What a sequence is about: few of all, so that flows come to something.
#[derive(Clone, Debug)]
pub(super) struct Focus {
    families: Vec<bool>,
    services: Vec<u8>,
    clients: Vec<(At, u32)>,
    protos: Vec<Proto>,
    /// How many of a hundred packets are of flows that are there.
    followers: usize,
}

impl Focus {
    /// By chance.
    pub(super) fn new(random: &mut Random) -> Self {
        let clients = [
            (CLIENTS[0], UPLINK),
            (CLIENTS[1], UPLINK),
            (CLIENTS[2], UPLINK),
            (CLIENTS[2], UPLINK3),
            (PODS[0], POD),
            (PODS[1], POD2),
            (PODS[2], BRIDGE),
            (PODS[3], PORT),
            (NODE, UPLINK),
            (LOST, UPLINK),
        ];
        let protos = [Proto::TCP, Proto::TCP, Proto::TCP, Proto::UDP, Proto::UDP, Proto::SCTP];
        let services: Vec<u8> = (1..=SERVICES).collect();
        Self {
            families: some(random, &[false, true]),
            services: some(random, &services),
            clients: some(random, &clients),
            protos: some(random, &protos),
            followers: random.pick(&[30, 60, 60, 75, 85]),
        }
    }
}

/// One, two or three of these, or now and then as many as there are.
fn some<T: Clone>(random: &mut Random, all: &[T]) -> Vec<T> {
    let count = if random.chance(15) { 2 * all.len() } else { 1 + random.below(3) };
    (0..count).map(|_| random.pick(all)).collect()
}

/// The next packet.
pub(super) fn packet(world: &MemTables, random: &mut Random, focus: &Focus) -> Packet {
    let about_flow = random.below(100) < focus.followers;
    let (ends, mut ifindex, mut egress) = match about_flow.then(|| of_a_flow(world, random)).flatten() {
        Some(known) => known,
        None if random.chance(85) => request(random, focus),
        None => any(random, focus),
    };
    if random.chance(6) {
        ifindex = random.pick(&DEVICES);
    }
    if random.chance(4) {
        egress = !egress;
    }
    let bytes = if random.chance(8) { about(world, random, ends) } else { ip(random, ends) };
    let program = match (random.below(100), egress) {
        (0..15, false) => Program::BareIngress,
        (0..15, true) => Program::BareEgress,
        (15..45, false) => Program::Xdp,
        (_, false) => Program::Ingress,
        (_, true) => Program::Egress,
    };
    let bytes = if program.is_bare() {
        // A test run takes them for frames, and errors about what is too big would be written behind a header that is not there.
        bytes.into_iter().take(1200).collect()
    } else {
        framed(random, ends, bytes)
    };
    Packet { program, ifindex, bytes: damaged(random, bytes) }
}

/// A packet that has the key of a flow's entry, where it would be met.
fn of_a_flow(world: &MemTables, random: &mut Random) -> Option<(Ends, u32, bool)> {
    if random.chance(50) { entry::<Addr4>(world, random) } else { entry::<Addr>(world, random) }
}

fn entry<A: Family>(world: &MemTables, random: &mut Random) -> Option<(Ends, u32, bool)> {
    let (key, flow) = any_entry::<A>(world, random)?;
    let masqueraded = flow.bits.has(FlowBits::MASQUERADED);
    let (ifindex, egress) = if !flow.goes(Direction::Reply) {
        (flow.ifindex, false)
    } else if masqueraded {
        (random.pick(&[OVERLAY, OVERLAY, UPLINK, BRIDGE]), false)
    } else {
        (flow.ifindex, true)
    };
    let mut ends = Ends::of(&key);
    if random.chance(5) {
        ends = ends.reversed();
    }
    Some((ends, ifindex, egress))
}

/// An entry of either table.
pub(super) fn any_entry<A: Family>(world: &MemTables, random: &mut Random) -> Option<(FlowKey<A>, Flow<A>)> {
    let table = random.pick(&[Table::New, Table::Kept]);
    entry_in(world, table, random)
}

/// An entry of a table.
pub(super) fn entry_in<A: Family>(
    world: &MemTables,
    table: Table,
    random: &mut Random,
) -> Option<(FlowKey<A>, Flow<A>)> {
    let tables = A::of(world);
    let entries = if table == Table::New { &tables.new } else { &tables.kept };
    let entries = entries.borrow();
    let number = random.below(entries.len().max(1));
    entries.iter().nth(number).map(|(key, flow)| (*key, *flow))
}

/// What a client sends to a frontend.
fn request(random: &mut Random, focus: &Focus) -> (Ends, u32, bool) {
    let is_v6 = random.pick(&focus.families);
    let (client, ifindex) = random.pick(&focus.clients);
    let proto = random.pick(&focus.protos);
    let service = random.pick(&focus.services);
    let (to, port) = match random.below(10) {
        0..4 => (At::balancer(service), 80),
        4..7 => (random.pick(&[NODE, NODE, NODE3, TUNNEL]), NODE_PORT + u16::from(service)),
        7..9 => (At::vip(service), 80),
        _ => (At::vip(service), 81),
    };
    let from = L4Addr { addr: client.addr(is_v6), port: 4000 + u16::try_from(random.below(4)).unwrap_or(0) };
    (Ends { from, to: L4Addr { addr: to.addr(is_v6), port }, proto }, ifindex, false)
}

/// Addresses that no packet should have.
const STRANGE: [(&str, bool); 9] = [
    ("0.0.0.0", false),
    ("127.0.0.1", false),
    ("255.255.255.255", false),
    ("224.0.0.1", false),
    ("::", true),
    ("::1", true),
    ("ff02::1", true),
    ("fe80::1", true),
    ("::ffff:8.0.96.1", true),
];

/// Anything from anywhere.
fn any(random: &mut Random, focus: &Focus) -> (Ends, u32, bool) {
    let is_v6 = random.chance(50);
    let end = |random: &mut Random| {
        let port = random.pick(&[80, 8080, 81, 2000, 2003, 4000, NODE_PORT + 1, NODE_PORT + 7, 0, 65_535]);
        let service = u8::try_from(random.below(16)).unwrap_or(0);
        let addr = match random.below(12) {
            0..7 => random.pick(&PLACES).0.addr(is_v6),
            7..9 => At::balancer(service).addr(is_v6),
            9..11 => At::vip(service).addr(is_v6),
            _ => strange(random, is_v6),
        };
        L4Addr { addr, port }
    };
    let ends = Ends { from: end(random), to: end(random), proto: random.pick(&focus.protos) };
    (ends, random.pick(&DEVICES), random.chance(40))
}

fn strange(random: &mut Random, is_v6: bool) -> Addr {
    let fitting: Vec<&str> = STRANGE.iter().filter(|(_, six)| *six == is_v6).map(|(text, _)| *text).collect();
    match random.pick(&fitting).parse() {
        Ok(std::net::IpAddr::V6(addr)) => Addr { octets: addr.octets() },
        Ok(std::net::IpAddr::V4(addr)) => Addr::from_v4(addr.octets()),
        Err(_) => At::vip(1).addr(is_v6),
    }
}

/// The sum of RFC 1071, of parts with even lengths but for the last one.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 =
        words.map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |low| u32::from(*low))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[expect(clippy::cast_possible_truncation, reason = "folded")]
    let sum = sum as u16;
    !sum
}

/// A header of TCP, UDP or SCTP with what follows, and where its checksum is.
fn transport(random: &mut Random, Ends { from, to, proto }: Ends) -> (Vec<u8>, Option<usize>) {
    let mut bytes = Vec::new();
    bytes.extend(from.port.to_be_bytes());
    bytes.extend(to.port.to_be_bytes());
    let length = if random.chance(6) { random.below(2000) } else { random.below(40) };
    let payload: Vec<u8> = (0..length).map(|_| byte(random)).collect();
    match proto {
        Proto::TCP => {
            bytes.extend([byte(random), 0, 1, byte(random), byte(random), 0, 2, byte(random)]);
            let options = if random.chance(15) { random.below(11) } else { 0 };
            let words = if random.chance(3) { random.below(16) } else { 5 + options };
            bytes.push(u8::try_from(words << 4).unwrap_or(0x50));
            bytes.push(said(random));
            bytes.extend([0xff, 0, 0, 0, 0, 0]);
            bytes.extend((0..options * 4).map(|_| byte(random)));
            bytes.extend(payload);
            (bytes, Some(16))
        }
        Proto::UDP => {
            let length = if random.chance(3) { random.below(2000) } else { payload.len() + 8 };
            bytes.extend(u16::try_from(length).unwrap_or(8).to_be_bytes());
            bytes.extend([0, 0]);
            bytes.extend(payload);
            (bytes, Some(6))
        }
        _ => {
            // The tag and CRC32c, then a chunk: its type, flags and length.
            bytes.extend((0..8).map(|_| byte(random)));
            bytes.extend([random.pick(&[1, 1, 1, 2, 0, 0, 10, 11, 6, 7, 8, 14, 130]), 0, 0, 20]);
            bytes.extend((0..16).map(|_| byte(random)));
            bytes.extend(payload);
            if !random.chance(15) {
                bytes[8..12].copy_from_slice(&[0; 4]);
                let sum = if random.chance(5) { 0 } else { crc32c(&bytes) };
                bytes[8..12].copy_from_slice(&sum.to_le_bytes());
            }
            (bytes, None)
        }
    }
}

fn byte(random: &mut Random) -> u8 {
    u8::try_from(random.below(256)).unwrap_or(0)
}

/// Flags of a segment: of those that a connection has, or any.
fn said(random: &mut Random) -> u8 {
    match random.below(100) {
        0..35 => 0x02,
        35..45 => 0x12,
        45..75 => 0x10,
        75..82 => 0x18,
        82..90 => 0x11,
        90..94 => 0x04,
        94..96 => 0x14,
        _ => byte(random),
    }
}

/// An IP packet between two ends. Sometimes of another protocol, sometimes a piece.
fn ip(random: &mut Random, ends: Ends) -> Vec<u8> {
    let (mut payload, place) = transport(random, ends);
    let mut number = ends.proto.number;
    if random.chance(2) {
        number = random.pick(&[1, 58, 47, 50, 4, 41, 59]);
    } else if let Some(place) = place {
        finish(random, ends, &mut payload, place);
    }
    let length = payload.len();
    let piece = if random.chance(7) { Some((random.chance(55), random.below(3))) } else { None };
    if let Some((true, _)) = piece {
        payload.drain(..length.min(8));
    }
    if ends.is_v6() {
        ip6(random, ends, number, piece, &payload)
    } else {
        ip4(random, ends, number, piece, &payload)
    }
}

/// Writes a checksum: mostly the right one, of UDP sometimes none, and sometimes anything, such as what a sender's kernel leaves to a card.
fn finish(random: &mut Random, Ends { from, to, proto }: Ends, payload: &mut [u8], place: usize) {
    let pseudo = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let (from, to) = (from.addr, to.addr);
    let addresses = if from.is_v4() {
        [&from.octets[12..], &to.octets[12..]].concat()
    } else {
        [from.octets, to.octets].concat()
    };
    let parts: [&[u8]; 3] = [&addresses, &pseudo, &[0, proto.number]];
    let right = checksum(&[&parts[..], &[payload]].concat());
    let right = if proto == Proto::UDP && right == 0 { 0xffff } else { right };
    let sum = match random.below(100) {
        0..5 if proto == Proto::UDP => 0,
        5..10 => !checksum(&parts),
        10..13 => random.pick(&[0, 0xffff, 0xfffe, 1]),
        13..15 => u16::from(byte(random)) << 8 | u16::from(byte(random)),
        _ => right,
    };
    if let Some(field) = payload.get_mut(place..place + 2) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
}

fn ttl(random: &mut Random) -> u8 {
    if random.chance(6) { u8::try_from(random.below(3)).unwrap_or(1) } else { 64 }
}

/// Whether a piece is a later one, and the number that it has in common with others.
type Fragment = Option<(bool, usize)>;

fn ip4(random: &mut Random, ends: Ends, number: u8, piece: Fragment, payload: &[u8]) -> Vec<u8> {
    let options = if random.chance(7) { random.below(11) } else { 0 };
    let words = if random.chance(2) { random.below(16) } else { 5 + options };
    let version = if random.chance(1) { random.below(16) } else { 4 };
    let mut header = vec![u8::try_from(version << 4 | words).unwrap_or(0x45), 0];
    let length = if random.chance(3) { random.below(70_000) } else { 20 + options * 4 + payload.len() };
    header.extend(u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
    let (id, flags) = match piece {
        None => (random.below(3), random.pick(&[0_u16, 0x4000])),
        Some((false, id)) => (id, 0x2000),
        Some((true, id)) => (id, random.pick(&[0x2001, 0x0001, 0x0001])),
    };
    header.extend([0x12, u8::try_from(id).unwrap_or(0)]);
    header.extend(flags.to_be_bytes());
    header.extend([ttl(random), number, 0, 0]);
    header.extend(&ends.from.addr.octets[12..]);
    header.extend(&ends.to.addr.octets[12..]);
    header.extend((0..options * 4).map(|_| byte(random)));
    let sum = if random.chance(3) { byte(random).into() } else { checksum(&[&header]) };
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header.extend(payload);
    header
}

fn ip6(random: &mut Random, ends: Ends, number: u8, piece: Fragment, payload: &[u8]) -> Vec<u8> {
    let mut extensions: Vec<(u8, Vec<u8>)> = Vec::new();
    if random.chance(8) {
        for _ in 0..random.below(6) {
            let kind = random.pick(&[0, 60, 60, 60, 43, 51, 135]);
            let words = random.pick(&[0, 0, 0, 1, 2, 9, 31]);
            let mut extension = vec![0, words];
            extension.extend((0..6 + usize::from(words) * 8).map(|_| byte(random)));
            extensions.push((kind, extension));
        }
    }
    if let Some((later, id)) = piece {
        let offset = if later { random.pick(&[8, 9]) } else { random.pick(&[1, 1, 0]) };
        extensions.push((44, vec![0, 0, 0, offset, 1, 2, 3, u8::try_from(id).unwrap_or(0)]));
    }
    let mut rest = payload.to_vec();
    let mut next = number;
    for (kind, mut extension) in extensions.into_iter().rev() {
        extension[0] = next;
        next = kind;
        rest.splice(0..0, extension);
    }
    let version = if random.chance(1) { random.below(16) } else { 6 };
    // Of a class that makes a frame without Ethernet one that is sent to all: see `world`.
    let mut header = vec![u8::try_from(version << 4 | 1).unwrap_or(0x61), 0, 0, 0];
    let length = if random.chance(3) { random.below(70_000) } else { rest.len() };
    header.extend(u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
    header.extend([next, ttl(random)]);
    header.extend(ends.from.addr.octets);
    header.extend(ends.to.addr.octets);
    header.extend(rest);
    header
}

/// An ICMP message: mostly an error about a packet that its receiver has sent.
fn about(world: &MemTables, random: &mut Random, ends: Ends) -> Vec<u8> {
    let is_v6 = ends.is_v6();
    // What a flow's packets become is what errors quote.
    let entry = if is_v6 {
        any_entry::<Addr>(world, random).map(|(key, _)| Ends::of(&key))
    } else {
        any_entry::<Addr4>(world, random).map(|(key, _)| Ends::of(&key))
    };
    let about = match entry {
        Some(entry) if random.chance(85) => entry.reversed(),
        _ => ends,
    };
    let mut quoted = ip(random, about);
    if random.chance(60) {
        quoted.truncate(if is_v6 { 48 } else { 28 });
    }
    let kinds: &[u8] = if is_v6 { &[1, 2, 3, 4, 128] } else { &[3, 3, 11, 12, 8, 5] };
    let mut message = vec![random.pick(kinds), random.pick(&[0, 4, 3]), 0, 0, 0, 0, 5, 120];
    message.extend(quoted);
    let teller = random.pick(&PLACES).0.addr(is_v6);
    let to = if random.chance(7) { ends.to.addr } else { about.from.addr };
    let proto = Proto { number: if is_v6 { 58 } else { 1 } };
    let from = L4Addr { addr: teller, port: 0 };
    let ends = Ends { from, to: L4Addr { addr: to, port: 0 }, proto };
    let pseudo = u32::try_from(message.len()).unwrap_or(0).to_be_bytes();
    let right = if is_v6 {
        checksum(&[&teller.octets, &to.octets, &pseudo, &[0, 58], &message])
    } else {
        checksum(&[&message])
    };
    let sum = if random.chance(5) { random.pick(&[0, 0xffff, 77]) } else { right };
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    if is_v6 { ip6(random, ends, 58, None, &message) } else { ip4(random, ends, 1, None, &message) }
}

/// With an Ethernet header and its tags.
fn framed(random: &mut Random, ends: Ends, packet: Vec<u8>) -> Vec<u8> {
    let to = match random.below(100) {
        0..90 => MAC,
        90..95 => [0xff; 6],
        _ => [2, 0, 0, 0, 0, 9],
    };
    let mut bytes = [to, [2; 6]].concat();
    let tags = if random.chance(10) { random.below(4) } else { 0 };
    for _ in 0..tags {
        bytes.extend(random.pick(&[0x8100_u16, 0x8100, 0x88a8, 0x88a8, 0x9100]).to_be_bytes());
        bytes.extend([0, 5]);
    }
    let kind: u16 = if ends.is_v6() { 0x86dd } else { 0x0800 };
    let kind = if random.chance(1) { random.pick(&[0x0806, 0x0800, 0x86dd, 60]) } else { kind };
    bytes.extend(kind.to_be_bytes());
    bytes.extend(packet);
    bytes
}

/// Sometimes shorter, sometimes with other bytes, never shorter than an Ethernet header: that the kernel does not run.
fn damaged(random: &mut Random, mut bytes: Vec<u8>) -> Vec<u8> {
    if random.chance(3) {
        bytes.truncate(14 + random.below(110));
    }
    if random.chance(4) {
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len().min(140));
            bytes[at] = byte(random);
        }
    }
    bytes
}
