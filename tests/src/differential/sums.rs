//! Checksums, computed anew: a packet that is translated has as right or as wrong ones as before.
//!
//! In ones' complement all bytes that a checksum covers, with itself, come to the same sum before and after. So what was right stays right,
//! and what was wrong stays wrong by as much, which its receiver notices.

use std::ops::Range;
use std::slice;

use lb_common::abi::{FlowAddr, Proto};
use lb_common::datapath::packet::Errors;
use lb_common::datapath::packet::parse::{Headers, Piece};

use super::packet::half;

/// The sum of some bytes in ones' complement (RFC 1071), where 0 is written as 0xffff.
fn sum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let total: u64 =
        words.map(|word| u64::from(word[0]) << 8 | word.get(1).map_or(0, |low| u64::from(*low))).sum();
    let rest = total % 0xffff;
    if rest == 0 { u16::MAX } else { u16::try_from(rest).unwrap_or(0) }
}

/// CRC32c (RFC 9260 appendix A), bit by bit.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ 0x82f6_3b78 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

/// A packet whose headers were read, and what has become of it.
#[derive(Debug)]
pub(super) struct Change<'a, A> {
    pub(super) headers: &'a Headers<A>,
    pub(super) l3: usize,
    pub(super) before: &'a [u8],
    pub(super) after: &'a [u8],
}

impl<A: FlowAddr + Errors> Change<'_, A> {
    /// What is wrong with the checksums of a packet that was translated; nothing if they are as right as before.
    pub(super) fn fault(&self) -> Option<&'static str> {
        let Self { headers: Headers { l4, fragment, key, .. }, l3, before, after } = *self;
        if before.len() != after.len() {
            return Some("another length");
        }
        if A::CHECKSUM_IN_HEADER && !self.same(slice::from_ref(&(l3..*l4))) {
            return Some("the checksum of the IP header");
        }
        let addresses = l3 + A::LEN - 2 * size_of::<A>()..l3 + A::LEN;
        let rest = *l4..before.len();
        let untouched =
            || (before[rest.clone()] != after[rest.clone()]).then_some("bytes behind the IP header");
        if fragment.piece == Piece::Later {
            return untouched();
        }
        let same = match key.proto {
            Proto::UDP if half(before, l4 + 6) == Some(0) => half(after, l4 + 6) == Some(0),
            Proto::UDP if half(after, l4 + 6) == Some(0) => {
                return Some("a checksum of UDP that says there is none");
            }
            Proto::TCP | Proto::UDP => self.same(&[addresses, rest]),
            proto if proto == A::ICMP => return self.message_fault(addresses, rest),
            Proto::SCTP => return self.sctp_fault(rest),
            _ => return untouched(),
        };
        (!same).then_some("the checksum of TCP or UDP")
    }

    /// Of SCTP: the checksum is as wrong as before, unless a network card is to compute it, or the packet is not all there.
    fn sctp_fault(&self, rest: Range<usize>) -> Option<&'static str> {
        let wrong = |bytes: &[u8]| {
            let mut bytes = bytes[rest.clone()].to_vec();
            let field = u32::from_le_bytes(*bytes.get(8..)?.first_chunk()?);
            bytes[8..12].copy_from_slice(&[0; 4]);
            Some((field == 0, field ^ crc32c(&bytes)))
        };
        let header = &self.before[self.l3..];
        let more = if A::CHECKSUM_IN_HEADER { 0 } else { A::LEN };
        let said = usize::from(half(header, if more == 0 { 2 } else { 4 })?) + more;
        if said + self.l3 != self.before.len() {
            return None;
        }
        let ((none, before), (still, after)) = (wrong(self.before)?, wrong(self.after)?);
        (none != still || (!none && before != after)).then_some("the checksum of SCTP")
    }

    /// Of an ICMP error: its own, and those of what it quotes.
    fn message_fault(&self, addresses: Range<usize>, rest: Range<usize>) -> Option<&'static str> {
        let covered = if A::CHECKSUM_IN_HEADER { vec![rest.clone()] } else { vec![addresses, rest.clone()] };
        if !self.same(&covered) {
            return Some("the checksum of ICMP");
        }
        let quoted = rest.start + 8;
        let header = if A::CHECKSUM_IN_HEADER {
            quoted..quoted + usize::from(self.before[quoted] & 15) * 4
        } else {
            quoted..quoted
        };
        (!self.same(&[header])).then_some("the checksum of the quoted IP header")
    }

    fn same(&self, parts: &[Range<usize>]) -> bool {
        let of = |bytes: &[u8]| {
            let parts: Vec<&[u8]> = parts.iter().map(|part| &bytes[part.clone()]).collect();
            sum(&parts)
        };
        of(self.before) == of(self.after)
    }
}

/// What is wrong with an answer that was made anew, whose IP header is at `l3`; nothing if its checksums are right.
pub(super) fn answer_fault<A: FlowAddr + Errors>(bytes: &[u8], l3: usize) -> Option<&'static str> {
    let header = bytes.get(l3..l3 + A::LEN)?;
    let rest = &bytes[l3 + A::LEN..];
    let next = if A::CHECKSUM_IN_HEADER { header[9] } else { header[6] };
    if A::CHECKSUM_IN_HEADER && sum(&[header]) != u16::MAX {
        return Some("the checksum of the answer's IP header");
    }
    let said = if A::CHECKSUM_IN_HEADER {
        usize::from(half(header, 2)?) - A::LEN
    } else {
        usize::from(half(header, 4)?)
    };
    if said != rest.len() {
        return Some("the length of the answer");
    }
    let addresses = &header[A::LEN - 2 * size_of::<A>()..];
    let pseudo = [&u32::try_from(said).unwrap_or(0).to_be_bytes()[..], &[0, next]].concat();
    let is_message = next == A::ICMP.number;
    let right =
        if is_message && A::CHECKSUM_IN_HEADER { sum(&[rest]) } else { sum(&[addresses, &pseudo, rest]) };
    (right != u16::MAX).then_some("the checksum of the answer")
}
