//! `struct __sk_buff` <-> `lb_common::datapath::packet`.
#![expect(unsafe_code, reason = "contexts are raw pointers")]

use aya_ebpf::{EbpfContext as _, programs::TcContext};
use lb_common::{
    abi::{Addr, Addr4, FlowKey},
    datapath::packet::{self, Flows, Route, Translation, Verdict, Way, parse},
};
use parse::{Headers, Packet as _, Part as _};

use crate::{
    flows::Family,
    skb::{Layout, Skb},
    tables::BpfTables,
};

/// `TC_ACT_UNSPEC`: whoever is next decides, as if we were not here.
const NEXT: i32 = -1;
/// `TC_ACT_SHOT`
const DROP: i32 = 2;

/// Which way packets of a program go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// They come from the device.
    Ingress,
    /// They leave by it.
    Egress,
}

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
        IPV4 => v4(skb, side, l3),
        IPV6 => v6(skb, side, l3),
        _ => NEXT,
    }
}

/// Each family in a frame of its own: programs have 512 bytes for all frames together.
#[inline(never)]
fn v4(skb: &Skb, side: Side, l3: usize) -> i32 {
    let Some(headers) = parse::v4(skb, l3) else { return NEXT };
    decide::<Addr4>(skb, side, l3, &headers)
}

/// See [`v4`].
#[inline(never)]
fn v6(skb: &Skb, side: Side, l3: usize) -> i32 {
    let Some(headers) = parse::v6(skb, l3) else { return NEXT };
    decide::<Addr>(skb, side, l3, &headers)
}

#[inline(never)]
fn verdict<A: Family>(tables: &BpfTables, side: Side, headers: &Headers<A>) -> Verdict<A> {
    match side {
        Side::Ingress => packet::ingress(tables, tables.ifindex, headers),
        Side::Egress => packet::egress(tables, tables.ifindex, headers),
    }
}

#[inline(never)]
fn rewrite<A: Layout>(skb: &Skb, l3: usize, headers: &Headers<A>, after: &FlowKey<A>, forwards: bool) -> bool {
    skb.rewrite(l3, headers, after, forwards)
}

#[inline(never)]
fn route<A: Family>(tables: &BpfTables, after: &FlowKey<A>) -> Route {
    tables.route(after)
}

#[inline(always)]
fn decide<A: Family + Layout>(skb: &Skb, side: Side, l3: usize, headers: &Headers<A>) -> i32 {
    let tables = &BpfTables { ctx: skb.ctx(), ifindex: skb.ifindex() };
    match verdict::<A>(tables, side, headers) {
        Verdict::Pass => NEXT,
        Verdict::Drop | Verdict::Refuse => DROP,
        Verdict::Translate(Translation { after, way }) => {
            let leaves_by = match way {
                Way::On => None,
                Way::Device { ifindex } => Some(ifindex),
                Way::Routed => match route(tables, &after) {
                    Route::Out { ifindex } => Some(ifindex),
                    Route::Local | Route::None => return DROP,
                },
            };
            if !rewrite(skb, l3, headers, &after, leaves_by.is_some()) {
                return DROP;
            }
            leaves_by.map_or(NEXT, |ifindex| skb.leave_by(ifindex))
        }
    }
}
