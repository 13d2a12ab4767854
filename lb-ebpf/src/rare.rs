//! What few packets need: refusal, ICMP errors, fragments. Functions that are verified once, and that no other packet pays for.
#![expect(unsafe_code, reason = "contexts are raw pointers")]

use aya_ebpf::bindings::__sk_buff;
use lb_common::{
    abi::{Addr, Addr4},
    datapath::packet::{
        self, Errors, Flows, Side, Verdict, fragment,
        refuse::{self, Answers, Why},
    },
};

use crate::{
    flows::{Family, Scratch, number},
    skb::Skb,
    tables::BpfTables,
    tc::{DROP, MOST_L3},
};

/// Answers the packet at hand, which is refused.
#[inline(always)]
fn refuse<A: Family + Answers>(ctx: *mut __sk_buff, side: u32, l3: u32, why: u32) -> i32 {
    let side = side_of(side);
    let Some(scratch) = A::scratch(side) else { return DROP };
    // SAFETY: see `tc::see`.
    let Scratch { work, .. } = unsafe { &mut *scratch };
    let mut skb = Skb::whole(ctx);
    let device = Flows::<A>::device(&BpfTables::SOCKETS, skb.ifindex());
    let is_for_us =
        side == Side::Egress || skb.is_for_us(device.is_some_and(|device| device.controller != 0));
    if l3 > MOST_L3 || !is_for_us {
        return DROP;
    }
    if !refuse::refuse(&BpfTables::SOCKETS, &mut skb, l3 as usize, &work.packet, Why::of(why)) {
        return DROP;
    }
    skb.send_back(side)
}

/// [`packet::icmp`] of the packet at hand.
#[inline(always)]
fn icmp<A: Family + Errors>(ctx: *mut __sk_buff, side: u32, ifindex: u32) -> u64 {
    let side = side_of(side);
    let Some(scratch) = A::scratch(side) else { return number(Verdict::Pass) };
    // SAFETY: see `tc::see`.
    let Scratch { work, .. } = unsafe { &mut *scratch };
    number(packet::icmp(&BpfTables::SOCKETS, side, ifindex, &Skb::whole(ctx), work))
}

/// [`packet::retell`] of the packet at hand.
#[inline(always)]
fn retell<A: Family + Errors>(ctx: *mut __sk_buff, side: u32, l3: u32, forwards: u32) -> u32 {
    let Some(scratch) = A::scratch(side_of(side)) else { return 0 };
    // SAFETY: see `tc::see`.
    let Scratch { work, .. } = unsafe { &mut *scratch };
    if l3 > MOST_L3 {
        return 0;
    }
    u32::from(packet::retell(&mut Skb::whole(ctx), l3 as usize, work, forwards != 0))
}

/// [`fragment::first`] of the packet at hand.
#[inline(always)]
fn first<A: Family>(side: u32, id: u32) -> u32 {
    let Some(scratch) = A::scratch(side_of(side)) else { return 0 };
    // SAFETY: see `tc::see`.
    let Scratch { work, .. } = unsafe { &mut *scratch };
    u32::from(fragment::first(&BpfTables::SOCKETS, work, id))
}

/// [`fragment::later`] of the packet at hand.
#[inline(always)]
fn later<A: Family>(side: u32, id: u32) -> u32 {
    let Some(scratch) = A::scratch(side_of(side)) else { return 0 };
    // SAFETY: see `tc::see`.
    let Scratch { work, .. } = unsafe { &mut *scratch };
    u32::from(fragment::later(&BpfTables::SOCKETS, work, id))
}

/// A side that was given as a number.
pub(crate) const fn side_of(side: u32) -> Side {
    if side == Side::Ingress as u32 { Side::Ingress } else { Side::Egress }
}

/// [`refuse`] of IPv4.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_refuse4(ctx: *mut __sk_buff, side: u32, l3: u32, why: u32) -> i32 {
    refuse::<Addr4>(ctx, side, l3, why)
}

/// [`icmp`] of IPv4.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_icmp4(ctx: *mut __sk_buff, side: u32, ifindex: u32) -> u64 {
    icmp::<Addr4>(ctx, side, ifindex)
}

/// [`retell`] of IPv4.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_retell4(ctx: *mut __sk_buff, side: u32, l3: u32, forwards: u32) -> u32 {
    retell::<Addr4>(ctx, side, l3, forwards)
}

/// [`first`] of IPv4.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_first4(side: u32, id: u32) -> u32 {
    first::<Addr4>(side, id)
}

/// [`later`] of IPv4.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_later4(side: u32, id: u32) -> u32 {
    later::<Addr4>(side, id)
}

/// [`refuse`] of IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_refuse6(ctx: *mut __sk_buff, side: u32, l3: u32, why: u32) -> i32 {
    refuse::<Addr>(ctx, side, l3, why)
}

/// [`icmp`] of IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_icmp6(ctx: *mut __sk_buff, side: u32, ifindex: u32) -> u64 {
    icmp::<Addr>(ctx, side, ifindex)
}

/// [`retell`] of IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_retell6(ctx: *mut __sk_buff, side: u32, l3: u32, forwards: u32) -> u32 {
    retell::<Addr>(ctx, side, l3, forwards)
}

/// [`first`] of IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_first6(side: u32, id: u32) -> u32 {
    first::<Addr>(side, id)
}

/// [`later`] of IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_later6(side: u32, id: u32) -> u32 {
    later::<Addr>(side, id)
}
