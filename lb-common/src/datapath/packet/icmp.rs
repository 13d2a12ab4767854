//! ICMP errors about packets of known flows: they are translated as an answer would be, and so is the packet that they quote.
//!
//! Somebody on the way, or at its end, has met a packet as it was there and tells its sender. The one who is meant is whoever sent it
//! before it was translated, and knows it only as it was then. Path MTU discovery lives on this, in both directions. Nothing is noted of
//! the flow: an error proves nothing.
//!
//! A router's address is seen where the endpoint's would be translated: whoever asked a Service gets the error from the
//! Service's address, as from connection tracking. A router's own may be one that nobody outside can place, and that filters drop.

use core::hint::black_box;

use super::{
    Flows, Side, Verdict, Way, Work,
    parse::{Headers, Packet, Part as _, Piece, quoted_v4, quoted_v6},
    refuse::{Answers, ICMP},
    rewrite::{Difference, PacketMut},
    track::{find, way},
};
use crate::abi::{Addr, Addr4, FlowKey, Proto, Reason};

/// What a family's ICMP errors look like.
pub trait Errors: Answers {
    /// Whether messages of this type are errors that quote a packet.
    fn is_error(kind: u8) -> bool;
    /// The packet that is quoted at `l3`, if it has ports.
    fn quoted<P: Packet>(packet: &P, l3: usize) -> Option<Headers<Self>>;
}

impl Errors for Addr4 {
    /// RFC 792: destination unreachable, time exceeded, parameter problem.
    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, 3 | 11 | 12)
    }

    #[inline(always)]
    fn quoted<P: Packet>(packet: &P, l3: usize) -> Option<Headers<Self>> {
        quoted_v4(packet, l3)
    }
}

impl Errors for Addr {
    /// RFC 4443: destination unreachable, packet too big, time exceeded, parameter problem.
    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, 1..=4)
    }

    #[inline(always)]
    fn quoted<P: Packet>(packet: &P, l3: usize) -> Option<Headers<Self>> {
        quoted_v6(packet, l3)
    }
}

/// Decides an ICMP message, [`Work::packet`]. What is translated is written by [`retell()`], not by [`super::rewrite`].
#[inline(always)]
pub fn icmp<A: Errors, W: Flows<A>, P: Packet>(
    world: &W,
    side: Side,
    ifindex: u32,
    packet: &P,
    work: &mut Work<A>,
) -> Verdict {
    let Headers { l4, fragment, ttl, .. } = work.packet;
    let Some(message) = packet.part::<8>(l4) else { return Verdict::Pass };
    let [kind, _code] = message.load16(0).to_be_bytes();
    if fragment.piece != Piece::Whole || !A::is_error(kind) {
        return Verdict::Pass;
    }
    work.quoted = match A::quoted(packet, l4.wrapping_add(ICMP)) {
        // Somebody else is told than the packet's sender.
        Some(quoted) if quoted.key.src != work.packet.key.dst => return Verdict::Pass,
        Some(quoted) => quoted,
        None => return Verdict::Pass,
    };
    work.answers = work.quoted.key.reversed();
    if find(world, &work.answers, &mut work.flow).is_none() {
        return Verdict::Pass;
    }
    let Some(way) = way(world, &work.flow, side, ifindex) else { return Verdict::Pass };
    if !matches!(way, Way::On) && ttl <= 1 {
        world.count(Reason::TtlExceeded);
        return Verdict::Drop;
    }
    work.quoted_after = work.flow.other_key(&work.answers);
    let shows_sender = work.flow.src == work.answers.src;
    let src = if shows_sender { work.packet.key.src } else { work.flow.src };
    work.after = FlowKey { src, dst: work.flow.dst, ..work.packet.key };
    world.count(Reason::IcmpError);
    Verdict::Translate(way)
}

/// Writes a message whose IP header begins at `l3` as [`icmp()`] has decided. `forwards` takes one from its TTL. False if it cannot be
/// written; then some of it may be.
#[inline(always)]
pub fn retell<A: Errors, P: PacketMut>(packet: &mut P, l3: usize, work: &Work<A>, forwards: bool) -> bool {
    let Headers { l4, ttl, .. } = work.packet;
    let new_ttl = if forwards { ttl.wrapping_sub(1) } else { ttl };
    // Opaque, as in `refuse`.
    let (l3, quoted_l3) = (black_box(l3), black_box(l4.wrapping_add(ICMP)));
    let change = requote(packet, quoted_l3, work);
    change.is_some_and(|change| readdress(packet, l3, work, new_ttl, change))
}

/// Gives the quoted packet, whose header begins at `l3`, the ends [`Work::quoted_after`], and tells what that changes in a sum over it.
/// Nothing if it cannot be written.
#[inline(always)]
fn requote<A: Errors, P: PacketMut>(packet: &mut P, l3: usize, work: &Work<A>) -> Option<Difference> {
    let Work { quoted, quoted_after: after, .. } = work;
    let before = &quoted.key;
    let addresses = A::difference(before, after);
    if !A::write(packet, l3, after, (quoted.ttl, quoted.ttl), addresses) {
        return None;
    }
    let ports = |key: &FlowKey<A>| [key.sport.to_be(), key.dport.to_be()];
    let ([a, b], [c, d]) = (ports(before), ports(after));
    let ports = Difference::default().half(a, c).half(b, d);
    // A header with a checksum of its own comes to the same sum as before.
    let mut change = if A::CHECKSUM_IN_HEADER { ports } else { ports.and(addresses) };
    if before.proto == Proto::UDP {
        // In the eight bytes that are always there. TCP's is not, and nobody looks at it.
        let old = packet.part::<8>(quoted.l4)?.load16(6).to_be();
        if old != 0 {
            let new = addresses.and(ports).apply(old);
            let new = if new == 0 { u16::MAX } else { new };
            if !packet.store(quoted.l4.wrapping_add(6), new.to_ne_bytes()) {
                return None;
            }
            change = change.half(old, new);
        }
    }
    let written =
        packet.store(quoted.l4, c.to_ne_bytes()) && packet.store(quoted.l4.wrapping_add(2), d.to_ne_bytes());
    written.then_some(change)
}

/// Gives the message itself the ends [`Work::after`], and the checksum that it has after a `change` of what it quotes.
#[inline(always)]
fn readdress<A: Errors, P: PacketMut>(
    packet: &mut P,
    l3: usize,
    work: &Work<A>,
    ttl: u8,
    change: Difference,
) -> bool {
    let Work { packet: Headers { key, l4, ttl: old_ttl, .. }, after, .. } = work;
    let addresses = A::difference(key, after);
    let change = if A::CHECKSUM_IN_HEADER { change } else { change.and(addresses) };
    let Some(field) = packet.part::<4>(*l4) else { return false };
    let checksum = change.apply(field.load16(2).to_be());
    packet.store(l4.wrapping_add(2), checksum.to_ne_bytes())
        && A::write(packet, l3, after, (*old_ttl, ttl), addresses)
}
