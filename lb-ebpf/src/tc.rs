//! `struct __sk_buff` <-> `lb_common::datapath::packet`.
#![expect(unsafe_code, reason = "contexts are raw pointers")]

use aya_ebpf::{EbpfContext as _, bindings::__sk_buff, programs::TcContext};
use lb_common::{
    abi::{Addr, Addr4, Reason},
    datapath::{
        packet::{
            self, Seen, Side, Table, Verdict, Way, Work,
            parse::{Packet as _, Part as _},
            refuse::{Answers, Why},
        },
        tables::Tables as _,
    },
};

use crate::{
    flows::{Family, Scratch, table, table_of, verdict_of},
    rewrite::Layout,
    routes::{FOUND, UNKNOWN, look_up_for, look_up_out},
    skb::Skb,
    tables::BpfTables,
};

/// `TC_ACT_UNSPEC`: whoever is next decides, as if we were not here.
pub(crate) const NEXT: i32 = -1;
/// `TC_ACT_SHOT`
pub(crate) const DROP: i32 = 2;

/// EtherTypes.
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const QINQ: u16 = 0x88a8;

/// Where an IP header begins at most: Ethernet with two VLAN tags.
pub(crate) const MOST_L3: u32 = 22;

/// Decides a frame of a device with Ethernet headers.
#[inline(always)]
pub(crate) fn frame(ctx: &TcContext, side: Side) -> i32 {
    let skb = Skb::new(ctx.as_ptr().cast());
    if skb.is_done(side) || skb.is_of_a_vlan() {
        return NEXT;
    }
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
    #[expect(clippy::cast_possible_truncation, reason = "some ten")]
    let start = if l3 == 14 { Start::Ethernet } else { Start::Tagged(l3 as u32) };
    packet(skb.as_ptr(), side, kind, start)
}

/// Decides a packet of a device whose packets begin with the IP header.
#[inline(always)]
pub(crate) fn bare(ctx: &TcContext, side: Side) -> i32 {
    let skb = Skb::new(ctx.as_ptr().cast());
    if skb.is_done(side) {
        return NEXT;
    }
    packet(skb.as_ptr(), side, skb.kind(), Start::Bare)
}

#[inline(always)]
fn packet(ctx: *mut __sk_buff, side: Side, kind: u16, start: Start) -> i32 {
    match kind {
        IPV4 => decide::<Addr4>(ctx, side, start),
        IPV6 => decide::<Addr>(ctx, side, start),
        _ => NEXT,
    }
}

/// Where the IP header begins: known when this is built, but for frames with tags in them. The verifier of 5.10 forgets what it knew of an
/// offset that was on the stack for a while.
#[derive(Clone, Copy)]
pub(crate) enum Start {
    /// Behind an Ethernet header.
    Ethernet,
    /// Behind one with VLAN tags.
    Tagged(u32),
    /// At once.
    Bare,
}

impl Start {
    /// Bytes before it.
    #[inline(always)]
    const fn l3(self) -> u32 {
        match self {
            Self::Ethernet => 14,
            Self::Tagged(l3) => l3,
            Self::Bare => 0,
        }
    }
}

/// How far a packet is, once its flow was looked for.
enum Step {
    /// It is decided, and translated where it is to be: the program's action.
    Done(i32),
    /// It may open a flow; as [`Seen::Opens`].
    Opens { former: Option<Table> },
    /// It is one of ICMP.
    Message,
    /// It stays, and its sender is told.
    TooBig { mtu: u32 },
}

impl Step {
    /// As a function returns it that the verifier looks at by itself.
    #[inline(always)]
    const fn number(self) -> u64 {
        match self {
            #[expect(clippy::cast_sign_loss, reason = "the way back is the same")]
            Self::Done(action) => action as u32 as u64,
            Self::Message => 1 << 32,
            Self::TooBig { mtu } => 3 << 32 | mtu as u64,
            Self::Opens { former } => 2 << 32 | table(former) as u64,
        }
    }

    /// The step of a [`number`](Self::number).
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "as it was put in")]
    const fn of(number: u64) -> Self {
        match number >> 32 {
            0 => Self::Done(number as i32),
            1 => Self::Message,
            3 => Self::TooBig { mtu: number as u32 },
            _ => Self::Opens { former: table_of(number as u32) },
        }
    }
}

/// Decides a packet, by functions that are called one after the other: 5.10 adds up the frames of those that call each other, each rounded
/// up to 32 bytes, and has 512 for all.
#[inline(always)]
fn decide<A: Family>(ctx: *mut __sk_buff, side: Side, start: Start) -> i32 {
    let l3 = start.l3();
    let verdict = match Step::of(A::call_see(ctx, side, start)) {
        Step::Done(action) => return action,
        Step::TooBig { mtu } => return A::call_refuse(ctx, side, l3, Why::TooBig { mtu }),
        Step::Message => A::call_icmp(ctx, side, Skb::again(ctx).ifindex()),
        Step::Opens { former } => open::<A>(ctx, former),
    };
    match verdict {
        Verdict::Pass => NEXT,
        Verdict::Drop => DROP,
        Verdict::Refuse => A::call_refuse(ctx, side, l3, Why::Closed),
        Verdict::Translate(way) => match Step::of(A::call_translate(ctx, side, l3, way)) {
            Step::Done(action) => action,
            Step::TooBig { mtu } => A::call_refuse(ctx, side, l3, Why::TooBig { mtu }),
            Step::Message | Step::Opens { .. } => DROP,
        },
    }
}

/// [`packet::open`] of the packet at hand.
#[inline(always)]
fn open<A: Family>(ctx: *mut __sk_buff, former: Option<Table>) -> Verdict {
    let Some(scratch) = A::scratch(Side::Ingress) else { return Verdict::Pass };
    // SAFETY: see `see`.
    let Scratch { work, lookup } = unsafe { &mut *scratch };
    let skb = Skb::again(ctx);
    let tables = &BpfTables { ctx: skb.ctx(), ifindex: skb.ifindex(), lookup };
    packet::open(tables, tables.ifindex, work, former)
}

/// What every packet needs: it is read, its flow is looked for, and if that is known, what the flow's entry says is done.
#[inline(always)]
pub(crate) fn see<A: Family + Layout + Answers>(ctx: *mut __sk_buff, side: Side, start: Start) -> u64 {
    let done = |action| Step::Done(action).number();
    let l3 = start.l3();
    if l3 > MOST_L3 {
        return done(NEXT);
    }
    let skb = &if matches!(start, Start::Tagged(_)) { Skb::rare(ctx) } else { Skb::again(ctx) };
    let (Some(headers), Some(scratch)) = (A::parse(skb, l3 as usize), A::scratch(side)) else {
        return done(NEXT);
    };
    // SAFETY: a live map value of this CPU, which no other program of this side uses before this one ends. Every part is plain
    // data, and is written before it is read.
    let Scratch { work, lookup } = unsafe { &mut *scratch };
    work.packet = headers;
    if work.packet.key.proto == A::ICMP {
        return Step::Message.number();
    }
    let tables = &BpfTables { ctx: skb.ctx(), ifindex: skb.ifindex(), lookup };
    let verdict = match side {
        Side::Egress => packet::egress(tables, tables.ifindex, work),
        Side::Ingress => match packet::see(tables, work) {
            Seen::Decided(verdict) => verdict,
            Seen::Opens { former } => return Step::Opens { former }.number(),
        },
    };
    let Verdict::Translate(way) = verdict else {
        return done(if verdict == Verdict::Pass { NEXT } else { DROP });
    };
    let leaving = exit(skb, tables, l3, work, way);
    if leaving.exit == Exit::Stays {
        return leaving.number;
    }
    let written = skb.rewrite_known(l3 as usize, &work.packet, &work.after, leaving.exit != Exit::Stack);
    done(if written { leave(skb, tables, l3, leaving) } else { DROP })
}

/// Translates the packet at hand, which has opened a flow or is one of ICMP.
#[inline(always)]
pub(crate) fn translate<A: Family + Layout + Answers>(
    ctx: *mut __sk_buff,
    side: Side,
    l3: u32,
    way: u64,
) -> u64 {
    let done = |action| Step::Done(action).number();
    let (Verdict::Translate(way), Some(scratch)) = (verdict_of(way), A::scratch(side)) else {
        return done(DROP);
    };
    if l3 > MOST_L3 {
        return done(DROP);
    }
    // SAFETY: see `see`.
    let Scratch { work, lookup } = unsafe { &mut *scratch };
    let skb = &Skb::rare(ctx);
    let tables = &BpfTables { ctx: skb.ctx(), ifindex: skb.ifindex(), lookup };
    let leaving = exit(skb, tables, l3, work, way);
    if leaving.exit == Exit::Stays {
        // Nobody is told of an error about an error (RFC 1122 3.2.2).
        return if work.packet.key.proto == A::ICMP { done(DROP) } else { leaving.number };
    }
    let written = if work.packet.key.proto == A::ICMP {
        A::call_retell(ctx, side, l3, leaving.exit != Exit::Stack)
    } else {
        skb.rewrite(l3 as usize, &work.packet, &work.after, leaving.exit != Exit::Stack)
    };
    done(if written { leave(skb, tables, l3, leaving) } else { DROP })
}

/// Where a translated packet goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Exit {
    /// Where it was going.
    Stack,
    /// Out of a device.
    Device,
    /// Where the routes have just said.
    Found,
    /// It cannot leave.
    Stays,
}

/// An exit and what belongs to it. Not one enum: LLVM reads parts of one that it knows to mean nothing, and no verifier lets it read what was
/// never written.
#[derive(Clone, Copy)]
struct Leaving {
    exit: Exit,
    /// Interface index of the device, or number of the [`Step`] of what stays.
    number: u64,
}

/// Where a translated packet goes.
#[inline(always)]
fn exit<A: Family + Layout>(skb: &Skb, tables: &BpfTables, l3: u32, work: &Work<A>, way: Way) -> Leaving {
    let named = match way {
        Way::On => return Leaving { exit: Exit::Stack, number: 0 },
        Way::Device { ifindex } => ifindex,
        Way::Routed => 0,
    };
    // What whoever forwards may cut in pieces goes on: a tunnel sends the pieces of its own packets, and nobody else knows better here.
    let len = if A::may_be_cut(skb, l3 as usize) { 0 } else { skb.len_out(l3 as usize, &work.packet) };
    let out = if named != 0 {
        look_up_for(tables, &work.after, named, len)
    } else {
        look_up_out(tables, &work.after, (tables.ifindex, 0), len)
    };
    match out {
        FOUND => Leaving { exit: Exit::Found, number: 0 },
        UNKNOWN if named != 0 => Leaving { exit: Exit::Device, number: named.into() },
        UNKNOWN => Leaving { exit: Exit::Stays, number: Step::Done(DROP).number() },
        mtu => {
            tables.count(Reason::TooBig);
            Leaving { exit: Exit::Stays, number: Step::TooBig { mtu }.number() }
        }
    }
}

/// Lets a translated packet go: the program's action.
#[inline(always)]
fn leave(skb: &Skb, tables: &BpfTables, l3: u32, leaving: Leaving) -> i32 {
    match leaving.exit {
        Exit::Stack => {
            skb.mark_done();
            NEXT
        }
        #[expect(clippy::cast_possible_truncation, reason = "an interface index")]
        Exit::Device => skb.leave_by(l3, leaving.number as u32),
        // SAFETY: the memory that `see` or `translate` has given for it.
        Exit::Found => skb.leave_to(l3, unsafe { &*tables.lookup }),
        Exit::Stays => DROP,
    }
}
