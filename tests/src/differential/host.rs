//! What the pure pipeline makes of a packet, with what the programs' glue does around it.

use lb_common::abi::{Addr, Addr4, Device, Reason};
use lb_common::datapath::packet::express::{express, is_unfinished};
use lb_common::datapath::packet::parse::{Headers, v4, v6};
use lb_common::datapath::packet::refuse::{Why, refuse};
use lb_common::datapath::packet::rewrite::rewrite;
use lb_common::datapath::packet::{
    Errors, Flows as _, Route, Side, Verdict, Way, Work, egress, icmp, ingress, retell,
};
use lb_common::datapath::tables::Tables as _;
use lb_common::host::{Family, Frame, MemTables};

use super::kernel::Outcome;
use super::packet::{Packet, Program, Receiver};
use super::world::{MAC, largest, mtu, next_hop};

/// What programs at tc say (include/uapi/linux/pkt_cls.h).
pub(super) const NEXT: u32 = u32::MAX;
pub(super) const DROP: u32 = 2;
pub(super) const REDIRECT: u32 = 7;
/// What those at XDP say.
pub(super) const XDP_ABORTED: u32 = 0;
pub(super) const XDP_PASS: u32 = 2;
pub(super) const XDP_TX: u32 = 3;
pub(super) const XDP_REDIRECT: u32 = 4;

/// What is read of a packet, in its family.
#[derive(Clone, Copy, Debug)]
pub(super) enum Read {
    V4(Headers<Addr4>),
    V6(Headers<Addr>),
}

impl Packet {
    /// What is read of it.
    pub(super) fn read(&self) -> Option<(usize, Read)> {
        let frame = Frame { bytes: self.bytes.clone() };
        let (l3, kind) = self.start()?;
        let read = match kind {
            0x0800 => Read::V4(v4(&frame, l3)?),
            0x86dd => Read::V6(v6(&frame, l3)?),
            _ => return None,
        };
        Some((l3, read))
    }
}

/// What becomes of a packet.
pub(super) fn decide(world: &MemTables, packet: &Packet) -> Outcome {
    world.overheard.set(packet.receiver() == Receiver::Other);
    let outcome = match (packet.program, packet.read()) {
        (Program::Xdp, Some((_, Read::V4(headers)))) => at_xdp(world, packet, headers),
        (Program::Xdp, Some((_, Read::V6(headers)))) => at_xdp(world, packet, headers),
        (_, Some((l3, Read::V4(headers)))) => Some(at_tc(world, packet, l3, headers)),
        (_, Some((l3, Read::V6(headers)))) => Some(at_tc(world, packet, l3, headers)),
        (_, None) => None,
    };
    let pass = if packet.program == Program::Xdp { XDP_PASS } else { NEXT };
    outcome.unwrap_or_else(|| Outcome { action: pass, bytes: packet.bytes.clone() })
}

fn at_tc<A: Family + Errors>(world: &MemTables, packet: &Packet, l3: usize, headers: Headers<A>) -> Outcome {
    let unchanged = |action| Outcome { action, bytes: packet.bytes.clone() };
    let mut work = Work::new(headers);
    let mut frame = Frame { bytes: packet.bytes.clone() };
    let is_message = headers.key.proto == A::ICMP;
    let side = if packet.program.is_egress() { Side::Egress } else { Side::Ingress };
    let verdict = match side {
        side if is_message => icmp(world, side, packet.ifindex, &frame, &mut work),
        Side::Egress => egress(world, packet.ifindex, &mut work),
        Side::Ingress => ingress(world, packet.ifindex, &mut work),
    };
    let way = match verdict {
        Verdict::Pass => return unchanged(NEXT),
        Verdict::Drop => return unchanged(DROP),
        Verdict::Refuse => {
            let answered =
                is_for_us(world, packet) && refuse(world, &mut frame, l3, &work.packet, Why::Closed);
            return Outcome { action: if answered { REDIRECT } else { DROP }, bytes: frame.bytes };
        }
        Verdict::Translate(way) => way,
    };
    let action = match way {
        Way::On => NEXT,
        Way::Routed if !matches!(world.route(&work.after), Route::Out { .. }) => return unchanged(DROP),
        Way::Routed | Way::Device { .. } => REDIRECT,
    };
    let named = if let Way::Device { ifindex } = way { Some(ifindex) } else { None };
    if action == REDIRECT
        && let Some(mtu) = largest(work.after.dst.widen(), named)
        && packet.bytes.len() - l3 > mtu
        && (!work.after.dst.widen().is_v4() || packet.half(l3 + 6).is_some_and(|flags| flags & 0x4000 != 0))
    {
        world.count(Reason::TooBig);
        let why = Why::TooBig { mtu: u32::try_from(mtu).unwrap_or(u32::MAX) };
        let answered = !is_message
            && (side == Side::Egress || is_for_us(world, packet))
            && refuse(world, &mut frame, l3, &work.packet, why);
        return Outcome { action: if answered { REDIRECT } else { DROP }, bytes: frame.bytes };
    }
    let forwards = action == REDIRECT;
    let written = if is_message {
        retell(&mut frame, l3, &work, forwards)
    } else {
        rewrite(&mut frame, l3, &work.packet, &work.after, forwards)
    };
    if !written {
        return unchanged(DROP);
    }
    if forwards && packet.program.is_bare() {
        // The kernel takes an Ethernet header off.
        frame.bytes.splice(0..0, [0; 14]);
    }
    Outcome { action, bytes: frame.bytes }
}

/// As the program asks before it refuses.
fn is_for_us(world: &MemTables, packet: &Packet) -> bool {
    let is_port = world.devices.get(&packet.ifindex).is_some_and(|device| device.controller != 0);
    match packet.receiver() {
        Receiver::Host => true,
        Receiver::Other => is_port,
        Receiver::All => false,
    }
}

fn at_xdp<A: Family + Errors>(world: &MemTables, packet: &Packet, headers: Headers<A>) -> Option<Outcome> {
    const L3: usize = 14;
    let mut work = Work::new(headers);
    let mut frame = Frame { bytes: packet.bytes.clone() };
    let way = express(world, L3, &mut work)?;
    if is_unfinished(&frame, L3, &work.packet) {
        return None;
    }
    // The kernel is asked for as many bytes as fit in 16 bits, and takes 0 for nothing said.
    let len = A::length(&frame, L3)?.wrapping_add(A::LEN) & 0xffff;
    let named = match way {
        Way::Device { ifindex } => Some(ifindex),
        Way::Routed | Way::On => None,
    };
    let (out, hop) = next_hop(work.after.dst.widen(), named)?;
    let may_leave = out == packet.ifindex
        || world.devices.get(&out).is_some_and(|device| device.bits & Device::EXPRESS != 0);
    if len > mtu(out) || named.is_some_and(|named| named != out) || !may_leave {
        return None;
    }
    if !rewrite(&mut frame, L3, &work.packet, &work.after, true) {
        return Some(Outcome { action: XDP_ABORTED, bytes: frame.bytes });
    }
    frame.bytes[..6].copy_from_slice(&hop);
    frame.bytes[6..12].copy_from_slice(&MAC);
    world.count(Reason::Express);
    Some(Outcome { action: if out == packet.ifindex { XDP_TX } else { XDP_REDIRECT }, bytes: frame.bytes })
}
