//! Gives the bytes of a packet other ends: addresses, ports, TTL, and the checksums that cover them (RFC 1624).
//!
//! For programs that see finished checksums: XDP, and tests. At tc the kernel's helpers do the same, which know what a network
//! card is still to fill in.

use super::{
    crc32c,
    parse::{Headers, Packet, Part as _, Piece},
    refuse::Answers,
};
use crate::abi::{Addr, Addr4, FlowAddr, FlowKey, Proto};

/// Bytes of a packet that may be written.
pub trait PacketMut: Packet {
    /// Whether [`rewrite`] meets SCTP: a program that lets none through has no instructions for it.
    const MAY_BE_SCTP: bool = true;

    /// Writes bytes as they are to lie in memory; false if a program may not write that far.
    fn store<const LEN: usize>(&mut self, offset: usize, bytes: [u8; LEN]) -> bool;

    /// [`crc32c::change`], as a function that a verifier looks at once.
    fn crc32c_change(&self, difference: u32, len: u32) -> u32 {
        crc32c::change(difference, len)
    }
}

/// An Internet checksum that is being changed: the sum of all differences, not folded yet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Difference {
    sum: u64,
}

impl Difference {
    /// A word, as it lies in memory, becomes another one.
    #[inline(always)]
    #[must_use]
    pub const fn word(self, old: u32, new: u32) -> Self {
        Self { sum: self.sum.wrapping_add(!old as u64).wrapping_add(new as u64) }
    }

    /// So does half a word, at an even place.
    #[inline(always)]
    #[must_use]
    pub const fn half(self, old: u16, new: u16) -> Self {
        Self { sum: self.sum.wrapping_add(!old as u64).wrapping_add(new as u64) }
    }

    /// This one, and another.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self { sum: self.sum.wrapping_add(other.sum) }
    }

    /// As the kernel's helpers take it: 32 bits.
    #[inline(always)]
    pub const fn folded(self) -> u64 {
        let sum = (self.sum & 0xffff_ffff).wrapping_add(self.sum >> 32);
        (sum & 0xffff_ffff).wrapping_add(sum >> 32)
    }

    /// The checksum, as it lies in memory, after the change.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits")]
    pub const fn apply(self, checksum: u16) -> u16 {
        let mut sum = self.folded().wrapping_add(!checksum as u64);
        sum = (sum & 0xffff).wrapping_add(sum >> 16);
        sum = (sum & 0xffff).wrapping_add(sum >> 16);
        sum = (sum & 0xffff).wrapping_add(sum >> 16);
        !(sum as u16)
    }

    /// The checksum, as it lies in memory, of words that were 0 before.
    #[inline(always)]
    pub const fn checksum(self) -> u16 {
        self.apply(u16::MAX)
    }
}

/// What a family's header looks like.
pub trait Header: FlowAddr {
    /// Whether it has a checksum of its own. Where it has none, that of ICMP covers the addresses too (RFC 4443 2.3).
    const CHECKSUM_IN_HEADER: bool;
    /// What the addresses' change does to a checksum over them.
    fn difference(before: &FlowKey<Self>, after: &FlowKey<Self>) -> Difference;
    /// Writes addresses, TTL (as it was, as it becomes) and what the header has of a checksum. `addresses` is
    /// [`Header::difference`].
    fn write<P: PacketMut>(
        packet: &mut P,
        l3: usize,
        after: &FlowKey<Self>,
        ttl: (u8, u8),
        addresses: Difference,
    ) -> bool;
}

impl Header for Addr4 {
    const CHECKSUM_IN_HEADER: bool = true;

    #[inline(always)]
    fn difference(before: &FlowKey<Self>, after: &FlowKey<Self>) -> Difference {
        Difference::default()
            .word(before.src.word(), after.src.word())
            .word(before.dst.word(), after.dst.word())
    }

    #[inline(always)]
    fn write<P: PacketMut>(
        packet: &mut P,
        l3: usize,
        after: &FlowKey<Self>,
        (old_ttl, ttl): (u8, u8),
        addresses: Difference,
    ) -> bool {
        let Some(header) = packet.part::<20>(l3) else { return false };
        let half = |ttl: u8| u16::from_ne_bytes([ttl, after.proto.number]);
        let checksum = header.load16(10).to_be();
        let checksum = addresses.half(half(old_ttl), half(ttl)).apply(checksum);
        packet.store(l3.wrapping_add(8), [ttl])
            && packet.store(l3.wrapping_add(10), checksum.to_ne_bytes())
            && packet.store(l3.wrapping_add(12), after.src.octets)
            && packet.store(l3.wrapping_add(16), after.dst.octets)
    }
}

impl Header for Addr {
    const CHECKSUM_IN_HEADER: bool = false;

    #[inline(always)]
    fn difference(before: &FlowKey<Self>, after: &FlowKey<Self>) -> Difference {
        let mut difference = Difference::default();
        for (old, new) in [(before.src, after.src), (before.dst, after.dst)] {
            let ([a, b, c, d], [e, f, g, h]) = (old.to_net_words(), new.to_net_words());
            difference = difference.word(a, e).word(b, f).word(c, g).word(d, h);
        }
        difference
    }

    #[inline(always)]
    fn write<P: PacketMut>(
        packet: &mut P,
        l3: usize,
        after: &FlowKey<Self>,
        (_, ttl): (u8, u8),
        _: Difference,
    ) -> bool {
        packet.store(l3.wrapping_add(7), [ttl])
            && packet.store(l3.wrapping_add(8), after.src.octets)
            && packet.store(l3.wrapping_add(24), after.dst.octets)
    }
}

/// Makes a packet whose IP header begins at `l3` one of `after`. `forwards` takes one from its TTL. False if it cannot be written; then
/// some of it may be.
#[inline(always)]
pub fn rewrite<A: Answers, P: PacketMut>(
    packet: &mut P,
    l3: usize,
    headers: &Headers<A>,
    after: &FlowKey<A>,
    forwards: bool,
) -> bool {
    let before = &headers.key;
    let addresses = A::difference(before, after);
    let ttl = if forwards { headers.ttl.wrapping_sub(1) } else { headers.ttl };
    if !A::write(packet, l3, after, (headers.ttl, ttl), addresses) {
        return false;
    }
    if headers.fragment.is_later() {
        // The ports and the checksum of the whole are in the first one.
        return true;
    }
    let checksum = match before.proto {
        Proto::TCP => 16,
        Proto::UDP => 6,
        Proto::SCTP if P::MAY_BE_SCTP => return rewrite_sctp(packet, l3, headers, after),
        _ => return true,
    };
    let Some(field) = packet.part::<2>(headers.l4.wrapping_add(checksum)) else { return false };
    let old = field.load16(0).to_be();
    let ports = |key: &FlowKey<A>| [key.sport.to_be(), key.dport.to_be()];
    let ([a, b], [c, d]) = (ports(before), ports(after));
    // RFC 768: none at all stays none, and what comes to 0 is sent as its complement.
    if !(before.proto == Proto::UDP && old == 0) {
        let new = addresses.half(a, c).half(b, d).apply(old);
        let new = if before.proto == Proto::UDP && new == 0 { u16::MAX } else { new };
        if !packet.store(headers.l4.wrapping_add(checksum), new.to_ne_bytes()) {
            return false;
        }
    }
    packet.store(headers.l4, c.to_ne_bytes()) && packet.store(headers.l4.wrapping_add(2), d.to_ne_bytes())
}

/// Gives a packet of SCTP the ports of `after` (SC-1). Its checksum does not know the addresses. False if it cannot be written, or is a piece
/// whose other ones have the rest of what the checksum covers.
#[inline(always)]
pub fn rewrite_sctp<A: Answers, P: PacketMut>(
    packet: &mut P,
    l3: usize,
    headers: &Headers<A>,
    after: &FlowKey<A>,
) -> bool {
    let Headers { key: before, l4, fragment, .. } = *headers;
    if (before.sport, before.dport) == (after.sport, after.dport) {
        return true;
    }
    let (Some(length), Some(header)) = (A::length(packet, l3), packet.part::<12>(l4)) else { return false };
    // Without options and extensions, which are behind the header too.
    let length = length.wrapping_add(l3.wrapping_add(A::LEN)).wrapping_sub(l4);
    if fragment.piece != Piece::Whole || !(12..=0xffff).contains(&length) {
        return false;
    }
    let [a, b] = after.sport.to_be_bytes();
    let [c, d] = after.dport.to_be_bytes();
    let (old, new) = (u32::from_le_bytes(header.load32(0)), u32::from_le_bytes([a, b, c, d]));
    let checksum = u32::from_le_bytes(header.load32(8));
    // None yet: a network card computes it, or the kernel before one that cannot.
    if checksum != 0 {
        #[expect(clippy::cast_possible_truncation, reason = "16 bits")]
        let change = packet.crc32c_change(old ^ new, length as u32);
        if !packet.store(l4.wrapping_add(8), (checksum ^ change).to_le_bytes()) {
            return false;
        }
    }
    packet.store(l4, new.to_le_bytes())
}
