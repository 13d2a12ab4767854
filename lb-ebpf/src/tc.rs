//! `struct __sk_buff` <-> `lb_common::datapath::packet`.
#![expect(unsafe_code, reason = "contexts are raw pointers")]

use aya_ebpf::{EbpfContext as _, programs::TcContext};
use lb_common::{
    abi::{Addr, Addr4},
    datapath::packet::{self, Flows, Route, Side, Verdict, Way, parse},
};
use packet::refuse::Answers;
use parse::{Headers, Packet as _, Part as _};

use crate::{
    flows::{Family, Scratch},
    skb::{Layout, Skb},
    tables::BpfTables,
};

/// `TC_ACT_UNSPEC`: whoever is next decides, as if we were not here.
const NEXT: i32 = -1;
/// `TC_ACT_SHOT`
pub(crate) const DROP: i32 = 2;

/// EtherTypes.
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const QINQ: u16 = 0x88a8;

/// Decides a frame of a device with Ethernet headers.
#[inline(always)]
pub(crate) fn frame(ctx: &TcContext, side: Side) -> i32 {
    let skb = Skb::new(ctx.as_ptr().cast());
    let Some(header) = skb.part::<14>(0) else { return NEXT };
    let mut kind = header.load16(12);
    let mut l3 = 14;
    // The outermost tag is in the metadata, not in the frame, but for devices that leave it there.
    for _ in 0..2 {
        if kind != VLAN && kind != QINQ {
            break;
        }
        let Some(tag) = skb.part::<4>(l3) else { return NEXT };
        kind = tag.load16(2);
        l3 += 4;
    }
    packet(&skb, side, kind, l3)
}

#[inline(always)]
fn packet(skb: &Skb, side: Side, kind: u16, l3: usize) -> i32 {
    match kind {
        IPV4 => decide::<Addr4>(skb, side, l3, parse::v4(skb, l3)),
        IPV6 => decide::<Addr>(skb, side, l3, parse::v6(skb, l3)),
        _ => NEXT,
    }
}

#[inline(always)]
fn decide<A: Family + Layout + Answers>(
    skb: &Skb,
    side: Side,
    l3: usize,
    headers: Option<Headers<A>>,
) -> i32 {
    let (Some(headers), Some(scratch)) = (headers, A::scratch(side)) else { return NEXT };
    // SAFETY: a live map value of this CPU, which no other program of this side uses before this one ends. Every part is plain
    // data, and is written before it is read.
    let Scratch { work, lookup } = unsafe { &mut *scratch };
    work.packet = headers;
    let tables = &BpfTables { ctx: skb.ctx(), ifindex: skb.ifindex(), lookup };
    #[expect(clippy::cast_possible_truncation, reason = "some ten")]
    let place = l3 as u32;
    let is_message = work.packet.key.proto == A::ICMP;
    let verdict = match side {
        _ if is_message => A::call_icmp(skb.as_ptr(), side, tables.ifindex),
        Side::Ingress => packet::ingress(tables, tables.ifindex, work),
        Side::Egress => packet::egress(tables, tables.ifindex, work),
    };
    let way = match verdict {
        Verdict::Pass => return NEXT,
        Verdict::Drop => return DROP,
        Verdict::Refuse => return A::call_refuse(skb.as_ptr(), place),
        Verdict::Translate(way) => way,
    };
    let leaves_by = match way {
        Way::On => None,
        Way::Device { ifindex } => Some(ifindex),
        Way::Routed => match tables.route(&work.after) {
            Route::Out { ifindex } => Some(ifindex),
            Route::Local | Route::None => return DROP,
        },
    };
    let written = if is_message {
        A::call_retell(skb.as_ptr(), side, place, leaves_by.is_some())
    } else {
        skb.rewrite(l3, &work.packet, &work.after, leaves_by.is_some())
    };
    if !written {
        return DROP;
    }
    leaves_by.map_or(NEXT, Skb::leave_by)
}
