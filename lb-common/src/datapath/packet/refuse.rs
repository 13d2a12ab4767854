//! The answer to a packet that is refused, made of the packet itself: a reset, or "port unreachable" (NE-1), or "too big".
//!
//! The source is the address that was asked. The frame goes back to the link-layer address that it came from, so no route and no
//! neighbour is asked for. What has options or extension headers gets no answer: hardly anybody sends that, and all places are
//! known without it. The first piece of a datagram of IPv6 is told that it is too big.

use core::hint::black_box;

use super::{
    Flows,
    parse::{Headers, Part as _, Piece, TcpFlags},
    rewrite::{Difference, Header, PacketMut},
};
use crate::abi::{Addr, Addr4, FlowKey, Proto, Reason};

/// A packet that can be made into another one.
pub trait Reshape: PacketMut {
    /// Makes it `len` bytes long, from the first one that a program sees. False if that cannot be.
    fn resize(&mut self, len: usize) -> bool;
    /// Makes room for `len` bytes where the IP header is, at `l3`, which is then behind them. False if that cannot be.
    fn make_room(&mut self, l3: usize, len: usize) -> bool;
    /// Whether the checksum in the field at `offset` is still to be finished by the network card: the field has the sum of the pseudo
    /// header (`CHECKSUM_PARTIAL`). The card puts the checksum of what lies from the L4 header to the packet's end where the
    /// field is then, however the packet has been changed.
    fn is_unfinished(&mut self, offset: usize) -> bool;
}

/// TTL and hop limit of answers (RFC 1340).
const TTL: u8 = 64;
/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Bytes of an ICMP header.
pub(super) const ICMP: usize = 8;
/// Bytes of a fragment header of IPv6.
const FRAGMENT: usize = 8;
/// Bytes of a TCP header.
const TCP: usize = 20;
/// Bytes behind the IP header that ICMP errors show of a packet (RFC 792): ports, and what UDP has beside them.
const QUOTED: usize = 8;
/// Those that SCTP needs, to see that its own INIT is meant (RFC 9260 10); and TCP, whose checksum may still be the network card's task.
const QUOTED_MORE: usize = 20;

/// Why a packet is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// Nobody serves it.
    Closed,
    /// The way to who does takes packets of this many bytes, IP header included: its sender is to send smaller ones.
    TooBig {
        /// Above 0.
        mtu: u32,
    },
}

impl Why {
    /// As one number.
    pub const fn number(self) -> u32 {
        match self {
            Self::Closed => 0,
            Self::TooBig { mtu } => mtu,
        }
    }

    /// The reason of a [`number`](Self::number).
    #[inline(always)]
    pub const fn of(number: u32) -> Self {
        match number {
            0 => Self::Closed,
            mtu => Self::TooBig { mtu },
        }
    }
}

/// How many ICMP errors a CPU has sent lately: somebody who forges his source must not make this node flood it. As many as the kernel sends by
/// itself (`icmp_msgs_per_sec`), from each CPU.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Budget {
    /// Which [`Budget::TICK_MS`]; wrapping.
    tick: u32,
    /// How many in it.
    spent: u32,
}

impl Budget {
    /// A power of two: programs do not divide.
    const TICK_MS: u64 = 16;
    /// In one tick: 1,000 a second.
    const MOST: u32 = 16;

    /// Takes one out; false if none is left. `now_ms` is [`super::super::tables::Tables::now_ms`].
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "it wraps")]
    pub const fn take(&mut self, now_ms: u64) -> bool {
        let tick = (now_ms / Self::TICK_MS) as u32;
        if self.tick != tick {
            *self = Self { tick, spent: 0 };
        }
        let left = self.spent < Self::MOST;
        if left {
            self.spent = self.spent.wrapping_add(1);
        }
        left
    }
}

/// What a family's answers look like.
pub trait Answers: Header {
    /// Bytes of a header without options and extensions.
    const LEN: usize;
    /// ICMP or ICMPv6.
    const ICMP: Proto;
    /// The first word of "port unreachable" (RFC 792, RFC 4443 3.1), without its checksum.
    const UNREACHABLE: u32;
    /// That of "fragmentation needed" and of "packet too big" (RFC 1191 4, RFC 4443 3.2). The second word is the MTU.
    const TOO_BIG: u32;
    /// What every way takes (RFC 791 3.2, RFC 8200 5): said where nobody knows more.
    const LEAST_MTU: u32;
    /// Whether the address is that of one host: errors to others are not sent (RFC 1122 3.2.2, RFC 4443 2.4 e).
    fn is_one(self) -> bool;
    /// Writes a header before `len` bytes of `key.proto`. False if it cannot be written.
    fn write_new<P: PacketMut>(packet: &mut P, l3: usize, key: &FlowKey<Self>, len: usize) -> bool;
    /// Bytes behind a header without options and extensions; nothing if it cannot be read.
    fn length<P: PacketMut>(packet: &P, l3: usize) -> Option<usize>;
    /// The sum of a header that is there; nothing if it cannot be read.
    fn sum<P: PacketMut>(packet: &P, l3: usize) -> Option<Difference>;
    /// The sum of the pseudo header of `len` bytes of `key.proto`.
    fn pseudo(key: &FlowKey<Self>, len: usize) -> Difference;
}

impl Answers for Addr4 {
    const LEN: usize = 20;
    const ICMP: Proto = Proto { number: 1 };
    const UNREACHABLE: u32 = 3 << 24 | 3 << 16;
    const TOO_BIG: u32 = 3 << 24 | 4 << 16;
    const LEAST_MTU: u32 = 576;

    #[inline(always)]
    fn is_one(self) -> bool {
        let [first, ..] = self.octets;
        !matches!(first, 0 | 127 | 224..)
    }

    #[inline(always)]
    fn write_new<P: PacketMut>(packet: &mut P, l3: usize, key: &FlowKey<Self>, len: usize) -> bool {
        let word = |number: u32| number.to_be();
        // Version and length of the header; no fragments.
        let length = word(0x4500_0000 | low(len.wrapping_add(Self::LEN)));
        let [flags, ttl] = [word(0x4000), word(u32::from(TTL) << 24 | u32::from(key.proto.number) << 16)];
        let sum = sum_of([length, flags, ttl, key.src.word(), key.dst.word()]);
        let checksum = u32::from(u16::from_be(sum.checksum()));
        put(packet, l3, [length, flags, ttl | word(checksum), key.src.word(), key.dst.word()])
    }

    #[inline(always)]
    fn length<P: PacketMut>(packet: &P, l3: usize) -> Option<usize> {
        Some(usize::from(packet.part::<20>(l3)?.load16(2)).wrapping_sub(Self::LEN))
    }

    #[inline(always)]
    fn sum<P: PacketMut>(packet: &P, l3: usize) -> Option<Difference> {
        let header = packet.part::<20>(l3)?;
        Some(sum_of([0, 4, 8, 12, 16].map(|at| u32::from_ne_bytes(header.load32(at)))))
    }

    #[inline(always)]
    fn pseudo(key: &FlowKey<Self>, len: usize) -> Difference {
        let rest = u32::from(key.proto.number) << 16 | low(len);
        sum_of([key.src.word(), key.dst.word(), rest.to_be()])
    }
}

impl Answers for Addr {
    const LEN: usize = 40;
    const ICMP: Proto = Proto { number: 58 };
    const UNREACHABLE: u32 = 1 << 24 | 4 << 16;
    const TOO_BIG: u32 = 2 << 24;
    const LEAST_MTU: u32 = 1280;

    #[inline(always)]
    fn is_one(self) -> bool {
        let [a, b, c, _] = self.to_net_words();
        let [first, ..] = a.to_ne_bytes();
        first != 0xff && (a, b, c) != (0, 0, 0)
    }

    #[inline(always)]
    fn write_new<P: PacketMut>(packet: &mut P, l3: usize, key: &FlowKey<Self>, len: usize) -> bool {
        let rest = low(len) << 16 | u32::from(key.proto.number) << 8 | u32::from(TTL);
        put(packet, l3, [0x6000_0000_u32.to_be(), rest.to_be()])
            && put(packet, l3.wrapping_add(8), key.src.to_net_words())
            && put(packet, l3.wrapping_add(24), key.dst.to_net_words())
    }

    #[inline(always)]
    fn length<P: PacketMut>(packet: &P, l3: usize) -> Option<usize> {
        Some(usize::from(packet.part::<40>(l3)?.load16(4)))
    }

    #[inline(always)]
    fn sum<P: PacketMut>(packet: &P, l3: usize) -> Option<Difference> {
        let header = packet.part::<40>(l3)?;
        let words = [0, 4, 8, 12, 16, 20, 24, 28, 32, 36];
        Some(sum_of(words.map(|at| u32::from_ne_bytes(header.load32(at)))))
    }

    #[inline(always)]
    fn pseudo(key: &FlowKey<Self>, len: usize) -> Difference {
        let addresses = sum_of(key.src.to_net_words()).and(sum_of(key.dst.to_net_words()));
        addresses.and(sum_of([low(len).to_be(), u32::from(key.proto.number).to_be()]))
    }
}

/// A length of a packet in 16 bits.
#[expect(clippy::cast_possible_truncation, reason = "no packet is longer")]
const fn low(len: usize) -> u32 {
    len as u32 & 0xffff
}

/// The sum of words as they lie in memory.
#[inline(always)]
fn sum_of<const COUNT: usize>(words: [u32; COUNT]) -> Difference {
    words.into_iter().fold(Difference::default(), |sum, word| sum.word(0, word))
}

/// Writes words as they are to lie in memory.
#[inline(always)]
fn put<P: PacketMut, const COUNT: usize>(packet: &mut P, at: usize, words: [u32; COUNT]) -> bool {
    let mut at = at;
    for word in words {
        if !packet.store(at, word.to_ne_bytes()) {
            return false;
        }
        at = at.wrapping_add(4);
    }
    true
}

/// Makes a refused packet the answer to its sender. False if it gets none; then some of it may be written, and it is to be dropped.
#[inline(always)]
pub fn refuse<A: Answers, W: Flows<A>, P: Reshape>(
    world: &W,
    packet: &mut P,
    l3: usize,
    headers: &Headers<A>,
    why: Why,
) -> bool {
    let between = headers.l4.wrapping_sub(l3.wrapping_add(A::LEN));
    let is_told =
        headers.fragment.piece == Piece::First && !A::CHECKSUM_IN_HEADER && matches!(why, Why::TooBig { .. });
    if !(between == 0 || (between == FRAGMENT && is_told)) || !headers.key.src.is_one() {
        return false;
    }
    // Opaque: of an offset that is known to be another one plus a number, LLVM makes pointers that the verifier cannot connect.
    let (l3, headers) = (black_box(l3), &Headers { l4: black_box(headers.l4), ..*headers });
    let answered = match (headers.key.proto, headers.fragment.piece, why) {
        (_, Piece::Later, _) | (Proto::TCP, Piece::First, _) => false,
        (Proto::TCP, Piece::Whole, Why::Closed) => reset(packet, l3, headers),
        // A reset is not larger than what it answers. This may be, so there are not many of them.
        _ if !world.may_tell() => {
            world.count(Reason::Unanswered);
            false
        }
        (_, _, Why::Closed) => unreachable(packet, l3, headers, (between, [A::UNREACHABLE, 0])),
        (_, _, Why::TooBig { mtu }) => unreachable(packet, l3, headers, (between, [A::TOO_BIG, mtu])),
    };
    answered && turn(packet, l3)
}

/// RFC 9293 3.10.7.1: what a closed port says to a segment.
#[inline(always)]
fn reset<A: Answers, P: Reshape>(packet: &mut P, l3: usize, headers: &Headers<A>) -> bool {
    let Headers { l4, tcp, .. } = *headers;
    let Some(segment) = packet.part::<20>(l4) else { return false };
    if tcp.has(TcpFlags::RST) {
        return false;
    }
    let number = |offset| u32::from_be_bytes(segment.load32(offset));
    let (asked, acknowledged) = (number(4), number(8));
    let header = usize::from(segment.load16(12) >> 12).wrapping_mul(4);
    let Some(length) = A::length(packet, l3) else { return false };
    let flags = |flag: TcpFlags| u32::from(tcp.has(flag));
    // SYN and FIN count like a byte each (RFC 9293 3.4).
    let data = low(length.wrapping_sub(header))
        .wrapping_add(flags(TcpFlags::SYN))
        .wrapping_add(flags(TcpFlags::FIN));
    let (sequence, acknowledges, said) = if tcp.has(TcpFlags::ACK) {
        (acknowledged, 0, TcpFlags::RST.bits)
    } else {
        (0, asked.wrapping_add(data), TcpFlags::RST.bits | TcpFlags::ACK.bits)
    };
    let key = headers.key.reversed();
    let unfinished = packet.is_unfinished(l4.wrapping_add(16));
    if !packet.resize(l4.wrapping_add(TCP)) || !A::write_new(packet, l3, &key, TCP) {
        return false;
    }
    let ports = u32::from(key.sport) << 16 | u32::from(key.dport);
    let words = [ports, sequence, acknowledges, 5 << 28 | u32::from(said) << 16].map(u32::to_be);
    let pseudo = A::pseudo(&key, TCP);
    let checksum = if unfinished { !pseudo.checksum() } else { pseudo.and(sum_of(words)).checksum() };
    put(packet, l4, words)
        && put(packet, l4.wrapping_add(16), [u32::from(u16::from_be(checksum)) << 16].map(u32::to_be))
}

/// RFC 792, RFC 4443: an error with these words before what it quotes, but for its checksum. Between its IP and L4 headers the packet has as many
/// bytes as a fragment header, or none.
#[inline(always)]
fn unreachable<A: Answers, P: Reshape>(
    packet: &mut P,
    l3: usize,
    headers: &Headers<A>,
    (between, [says, more]): (usize, [u32; 2]),
) -> bool {
    if l3 > ETHERNET {
        // A tag in the frame: the kernel makes room before it.
        return false;
    }
    let Headers { l4, key: FlowKey { proto, .. }, .. } = *headers;
    let quotes_more = proto != Proto::UDP;
    let quoted = if quotes_more { QUOTED_MORE } else { QUOTED };
    // Where UDP and TCP have their checksums. Nobody finishes that of SCTP here: it is not the sum that this is about.
    let at = l4.wrapping_add(if proto == Proto::TCP { 16 } else { 6 });
    let Some(field) = packet.part::<2>(at) else { return false };
    let field = field.load16(0).to_be();
    let unfinished = proto != Proto::SCTP && packet.is_unfinished(at);
    if !packet.resize(l4.wrapping_add(quoted)) {
        return false;
    }
    let Some(mut sum) = A::sum(packet, l3) else { return false };
    if unfinished {
        // With its checksum, what is behind the IP header will come to the sum of the pseudo header, negated.
        sum = sum.half(field, 0);
    } else {
        let Some(part) = packet.part::<8>(l4) else { return false };
        sum = sum.and(sum_of([0, 4].map(|at| u32::from_ne_bytes(part.load32(at)))));
        if quotes_more {
            let Some(part) = packet.part::<12>(l4.wrapping_add(8)) else { return false };
            sum = sum.and(sum_of([0, 4, 8].map(|at| u32::from_ne_bytes(part.load32(at)))));
        }
    }
    let key = FlowKey { proto: A::ICMP, ..headers.key.reversed() };
    if between != 0 {
        let Some(part) = packet.part::<8>(l3.wrapping_add(A::LEN)) else { return false };
        sum = sum.and(sum_of([0, 4].map(|at| u32::from_ne_bytes(part.load32(at)))));
    }
    let len = quoted.wrapping_add(between).wrapping_add(A::LEN).wrapping_add(ICMP);
    if !A::CHECKSUM_IN_HEADER {
        sum = sum.and(A::pseudo(&key, len));
    }
    let checksum = sum.and(sum_of([says, more].map(u32::to_be))).checksum();
    packet.make_room(l3, A::LEN.wrapping_add(ICMP))
        && A::write_new(packet, l3, &key, len)
        && put(
            packet,
            l3.wrapping_add(A::LEN),
            [says | u32::from(u16::from_be(checksum)), more].map(u32::to_be),
        )
}

/// Sends a frame back where it came from.
#[inline(always)]
fn turn<P: PacketMut>(packet: &mut P, l3: usize) -> bool {
    if l3 < ETHERNET {
        return true;
    }
    let Some(link) = packet.part::<12>(0) else { return false };
    let [a, b, c] = [0, 4, 8].map(|at| link.load32(at));
    let ([a0, a1, a2, a3], [b0, b1, b2, b3], [c0, c1, c2, c3]) = (a, b, c);
    packet.store(0, [b2, b3, c0, c1, c2, c3, a0, a1, a2, a3, b0, b1])
}
