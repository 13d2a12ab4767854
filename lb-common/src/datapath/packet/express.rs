//! What needs nothing of the kernel but a way out (XDP): packets of flows that are known, from one machine to another one.
//!
//! Nearly every packet of a service that others than this node serve. All others are left as they are: they come to tc a moment later, where
//! everything is decided. So this may be on or off at any moment.

use super::{
    Flows, Verdict, Way, Work,
    parse::{Headers, Part as _, Piece},
    refuse::Answers,
    rewrite::PacketMut,
    track,
};
use crate::abi::{FlowBits, Proto};

/// Which way a packet goes out of this node, to the ends [`Work::after`]; nothing if it is left to tc.
///
/// What its flow's entry notes of it is noted in any case. Whoever comes to see it again notes the same.
#[inline(always)]
pub fn express<A: Answers, W: Flows<A>>(world: &W, l3: usize, work: &mut Work<A>) -> Option<Way> {
    let Headers { l4, ttl, fragment, key, .. } = &work.packet;
    let is_plain = *l4 == l3.wrapping_add(A::LEN) && fragment.piece == Piece::Whole && *ttl > 1;
    if !is_plain || !matches!(key.proto, Proto::TCP | Proto::UDP) {
        return None;
    }
    work.now_s = world.now_s();
    let table = track::find(world, &work.packet.key, &mut work.flow)?;
    if !work.flow.bits.has(FlowBits::MASQUERADED) {
        // The stack delivers it, or its answers are restored at tc.
        return None;
    }
    match track::ingress(world, work, table)? {
        Verdict::Translate(way @ (Way::Routed | Way::Device { .. })) => Some(way),
        _ => None,
    }
}

/// Whether the checksum of a plain TCP or UDP packet is not one yet, but what the sender's kernel has left to a network card that never came:
/// between devices of one machine. Only the kernel knows, but what it has left there is the sum of the pseudo header. One packet of 65,536
/// has that sum by chance, and is left to tc for nothing.
#[inline(always)]
pub fn is_unfinished<A: Answers, P: PacketMut>(packet: &P, l3: usize, headers: &Headers<A>) -> bool {
    let at = if headers.key.proto == Proto::TCP { 16 } else { 6 };
    let (Some(len), Some(field)) = (A::length(packet, l3), packet.part::<2>(headers.l4.wrapping_add(at)))
    else {
        return true;
    };
    // Of more than 64 KiB, which a sender's kernel makes, too, it is not said how many (BIG TCP).
    if !(8..=0xffff).contains(&len) {
        return true;
    }
    field.load16(0).to_be() == !A::pseudo(&headers.key, len).checksum()
}
