//! Answers to refused packets are what another library writes, and checksums hold whoever finishes them.

use core::net::Ipv6Addr;
use std::{format, string::String, vec::Vec};

use etherparse::{
    Icmpv4Slice, Icmpv6Slice, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header,
    PacketBuilder, SlicedPacket, TransportSlice, icmpv4, icmpv6,
};
use proptest::prelude::*;

use super::{
    parse::{Headers, Packet, v4, v6},
    refuse::{Answers, Budget, Reshape, Why, refuse},
    rewrite::PacketMut,
};
use crate::{
    abi::{Addr, Addr4, Reason},
    host::{Family, Frame, FramePart, MemTables},
};

const L3: usize = 14;
const CLIENT: Both = ([198, 51, 100, 7], "2001:db8:7::7");
const SERVICE: Both = ([203, 0, 113, 1], "2001:db8:1::1");

/// A segment, a datagram or a chunk.
#[derive(Clone, Copy, Debug)]
enum Said {
    /// TCP with these flags.
    Tcp(u8),
    Udp,
    Sctp,
}

fn v6_of(text: &str) -> [u8; 16] {
    text.parse::<Ipv6Addr>().unwrap().octets()
}

/// An address of each family.
type Both = ([u8; 4], &'static str);

fn ip(is_v6: bool, (from, to): (Both, Both), ttl: u8) -> IpHeaders {
    if is_v6 {
        let (source, destination) = (v6_of(from.1), v6_of(to.1));
        let header = Ipv6Header { hop_limit: ttl, source, destination, ..Ipv6Header::default() };
        return IpHeaders::Ipv6(header, Ipv6Extensions::default());
    }
    let mut header = Ipv4Header::new(0, ttl, IpNumber::UDP, from.0, to.0).unwrap();
    header.dont_fragment = true;
    IpHeaders::Ipv4(header, Ipv4Extensions::default())
}

const SCTP: [u8; 32] =
    [15, 160, 0, 80, 0, 0, 0, 0, 1, 2, 3, 4, 1, 0, 0, 20, 9, 9, 9, 9, 0, 1, 0, 0, 0, 1, 0, 1, 5, 5, 5, 5];

/// A client's packet: port 4000 to 80, sequence number 1000.
fn request(is_v6: bool, said: Said, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ip(ip(is_v6, (CLIENT, SERVICE), 60));
    let mut bytes = Vec::new();
    match said {
        Said::Udp => builder.udp(4000, 80).write(&mut bytes, payload).unwrap(),
        Said::Sctp => builder.write(&mut bytes, IpNumber::SCTP, &SCTP).unwrap(),
        Said::Tcp(flags) => {
            let tcp = builder.tcp(4000, 80, 1000, 2000);
            let tcp = if flags & 1 != 0 { tcp.fin() } else { tcp };
            let tcp = if flags & 2 != 0 { tcp.syn() } else { tcp };
            let tcp = if flags & 4 != 0 { tcp.rst() } else { tcp };
            let tcp = if flags & 16 != 0 { tcp.ack(7000) } else { tcp };
            tcp.options_raw(&[2, 4, 5, 180]).unwrap().write(&mut bytes, payload).unwrap();
        }
    }
    bytes
}

/// What another library answers.
fn answer(is_v6: bool, said: Said, why: Why, request: &[u8], payload: usize) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([4; 6], [2; 6]).ip(ip(is_v6, (SERVICE, CLIENT), 64));
    let mut bytes = Vec::new();
    if let (Said::Tcp(flags), Why::Closed) = (said, why) {
        let length = u32::try_from(payload).unwrap() + u32::from(flags & 1) + u32::from(flags >> 1 & 1);
        let tcp = if flags & 16 == 0 {
            builder.tcp(80, 4000, 0, 0).rst().ack(1000 + length)
        } else {
            builder.tcp(80, 4000, 7000, 0).rst()
        };
        tcp.write(&mut bytes, &[]).unwrap();
        return bytes;
    }
    let header = if is_v6 { 40 } else { 20 };
    let quoted = header + if matches!(said, Said::Udp) { 8 } else { 20 };
    let quoted = &request[L3..L3 + quoted];
    if is_v6 {
        let said = match why {
            Why::Closed => etherparse::Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port),
            Why::TooBig { mtu } => etherparse::Icmpv6Type::PacketTooBig { mtu },
        };
        builder.icmpv6(said).write(&mut bytes, quoted).unwrap();
    } else {
        let said = match why {
            Why::Closed => icmpv4::DestUnreachableHeader::Port,
            Why::TooBig { mtu } => {
                let next_hop_mtu = u16::try_from(mtu).unwrap();
                icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu }
            }
        };
        let said = etherparse::Icmpv4Type::DestinationUnreachable(said);
        builder.icmpv4(said).write(&mut bytes, quoted).unwrap();
    }
    bytes
}

fn run<P: Reshape>(world: &MemTables, is_v6: bool, why: Why, packet: &mut P) -> bool {
    fn answered<A: Answers + Family, P: Reshape>(
        world: &MemTables,
        headers: Option<Headers<A>>,
        why: Why,
        packet: &mut P,
    ) -> bool {
        refuse(world, packet, L3, &headers.unwrap(), why)
    }
    if is_v6 {
        answered::<Addr, _>(world, v6(packet, L3), why, packet)
    } else {
        answered::<Addr4, _>(world, v4(packet, L3), why, packet)
    }
}

fn said() -> impl Strategy<Value = Said> {
    prop_oneof![
        Just(Said::Udp),
        Just(Said::Sctp),
        prop::sample::select(std::vec![1_u8, 2, 3, 16, 17, 18]).prop_map(Said::Tcp)
    ]
}

fn why() -> impl Strategy<Value = Why> {
    prop_oneof![Just(Why::Closed), (1280_u32..9000).prop_map(|mtu| Why::TooBig { mtu })]
}

proptest! {
    /// NE-1.
    #[test]
    fn every_byte_is_what_another_library_answers(
        is_v6: bool,
        said in said(),
        why in why(),
        payload in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let bytes = request(is_v6, said, &payload);
        let mut frame = Frame { bytes: bytes.clone() };
        prop_assert!(run(&MemTables::default(), is_v6, why, &mut frame));
        prop_assert_eq!(frame.bytes, answer(is_v6, said, why, &bytes, payload.len()));
    }

    /// The checksum of the L4 header is left to the network card, which knows the place of the field and nothing of what was changed.
    #[test]
    fn a_card_that_finishes_the_checksum_finds_its_field(
        is_v6: bool,
        said in said(),
        why in why(),
        payload in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let bytes = request(is_v6, said, &payload);
        let field = match said {
            Said::Udp => 6,
            Said::Tcp(_) => 16,
            Said::Sctp => return Ok(()),
        };
        let l4 = L3 + if is_v6 { 40 } else { 20 };
        let mut unfinished = Unfinished { frame: Frame { bytes }, start: l4, field };
        unfinished.begin(is_v6);
        prop_assert!(run(&MemTables::default(), is_v6, why, &mut unfinished));
        let finished = unfinished.finish();
        let sliced = SlicedPacket::from_ethernet(&finished).unwrap();
        prop_assert_eq!(checksums(&sliced), "right");
    }
}

/// A packet whose checksum the card is to finish.
struct Unfinished {
    frame: Frame,
    start: usize,
    field: usize,
}

impl Unfinished {
    /// Puts the sum of the pseudo header into the field.
    fn begin(&mut self, is_v6: bool) {
        let bytes = &mut self.frame.bytes;
        let (from, proto) = if is_v6 { (22, bytes[20]) } else { (26, bytes[23]) };
        let mut pseudo = bytes[from..self.start].to_vec();
        let length = u16::try_from(bytes.len() - self.start).unwrap();
        pseudo.extend([0, proto]);
        pseudo.extend(length.to_be_bytes());
        let at = self.start + self.field;
        bytes[at..at + 2].copy_from_slice(&sum(&pseudo).to_be_bytes());
    }

    /// What the card sends.
    fn finish(mut self) -> Vec<u8> {
        let bytes = &mut self.frame.bytes;
        let checksum = !sum(&bytes[self.start..]);
        let at = self.start + self.field;
        bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        self.frame.bytes
    }
}

fn sum(bytes: &[u8]) -> u16 {
    let halves =
        bytes.chunks(2).map(|half| u32::from(half[0]) << 8 | half.get(1).map_or(0, |low| u32::from(*low)));
    let mut sum: u32 = halves.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

impl Packet for Unfinished {
    type Part = FramePart;

    fn part<const LEN: usize>(&self, offset: usize) -> Option<FramePart> {
        self.frame.part::<LEN>(offset)
    }
}

impl PacketMut for Unfinished {
    fn store<const LEN: usize>(&mut self, offset: usize, bytes: [u8; LEN]) -> bool {
        self.frame.store(offset, bytes)
    }
}

impl Reshape for Unfinished {
    fn resize(&mut self, len: usize) -> bool {
        // As the kernel: never before the field's end.
        len >= self.start + self.field + 2 && self.frame.resize(len)
    }

    fn make_room(&mut self, l3: usize, len: usize) -> bool {
        self.start += len;
        self.frame.make_room(l3, len)
    }

    fn is_unfinished(&mut self, offset: usize) -> bool {
        assert_eq!(offset, self.start + self.field);
        true
    }
}

/// Whether all checksums of an answer are right; that of what it quotes is not looked at.
fn checksums(sliced: &SlicedPacket<'_>) -> String {
    let ip = sliced.net.as_ref().unwrap();
    let right = match (ip, sliced.transport.as_ref().unwrap()) {
        (etherparse::NetSlice::Ipv4(ip), transport) => {
            let header = ip.header();
            let own = header.header_checksum() == header.to_header().calc_header_checksum();
            own && match transport {
                TransportSlice::Tcp(tcp) => {
                    tcp.calc_checksum_ipv4(header.source(), header.destination()).unwrap() == tcp.checksum()
                }
                TransportSlice::Icmpv4(icmp) => right_v4(icmp),
                _ => false,
            }
        }
        (etherparse::NetSlice::Ipv6(ip), transport) => match transport {
            TransportSlice::Tcp(tcp) => {
                let (from, to) = (ip.header().source(), ip.header().destination());
                tcp.calc_checksum_ipv6(from, to).unwrap() == tcp.checksum()
            }
            TransportSlice::Icmpv6(icmp) => right_v6(icmp, ip.header().source(), ip.header().destination()),
            _ => false,
        },
        _ => false,
    };
    if right { "right".into() } else { format!("{sliced:?}") }
}

fn right_v4(icmp: &Icmpv4Slice<'_>) -> bool {
    icmp.icmp_type().calc_checksum(icmp.payload()) == icmp.checksum()
}

fn right_v6(icmp: &Icmpv6Slice<'_>, from: [u8; 16], to: [u8; 16]) -> bool {
    icmp.is_checksum_valid(from, to)
}

#[test]
fn what_is_no_question_gets_no_answer() {
    for is_v6 in [false, true] {
        let silent = |what: &str, change: &dyn Fn(&mut Vec<u8>), said: Said| {
            let mut frame = Frame { bytes: request(is_v6, said, b"hello") };
            change(&mut frame.bytes);
            let before = frame.bytes.clone();
            assert!(!run(&MemTables::default(), is_v6, Why::Closed, &mut frame), "{what}");
            assert_eq!(frame.bytes, before, "{what}");
        };
        silent("a reset", &|_| {}, Said::Tcp(4));
        let sources: &[&[u8]] = if is_v6 {
            &[
                &[0; 16],
                &[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
                &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            ]
        } else {
            &[&[0, 0, 0, 0], &[224, 0, 0, 1], &[255, 255, 255, 255], &[127, 0, 0, 1]]
        };
        for source in sources {
            let at = if is_v6 { 22 } else { 26 };
            let forge = |bytes: &mut Vec<u8>| bytes[at..at + source.len()].copy_from_slice(source);
            silent("a source that is not one host", &forge, Said::Udp);
            silent("a source that is not one host", &forge, Said::Tcp(2));
        }
        if !is_v6 {
            silent("the first fragment of a segment", &|bytes| bytes[20] = 0x20, Said::Tcp(2));
            silent("a later fragment", &|bytes| bytes[21] = 1, Said::Udp);
        }
    }
}

#[test]
fn icmp_errors_are_limited_and_resets_are_not() {
    let world = MemTables::default();
    let answers = |said| {
        let ask =
            |_: &i32| run(&world, false, Why::Closed, &mut Frame { bytes: request(false, said, b"hello") });
        (0..100).filter(ask).count()
    };
    assert_eq!(answers(Said::Udp), 16);
    assert_eq!(world.counted(Reason::Unanswered), 84);
    assert_eq!(answers(Said::Tcp(2)), 100);
    world.now_ms.set(16);
    assert_eq!(answers(Said::Udp), 16);
}

#[test]
fn a_budget_is_a_thousand_a_second() {
    let mut budget = Budget::default();
    let spent = (0..1000).map(|now_ms| (0..10).filter(|_| budget.take(now_ms)).count()).sum::<usize>();
    assert!((990..=1010).contains(&spent), "{spent}");
}
