//! Functions that the verifier looks at by themselves: what every packet needs, and what is needed to open a flow.
#![expect(unsafe_code, reason = "contexts and map values are raw pointers")]

use aya_ebpf::bindings::__sk_buff;
use lb_common::{
    abi::{Addr, Addr4},
    datapath::packet::{self, Side, Verdict, crc32c},
};

use crate::{
    flows::{Family, Scratch, number, table_of},
    rare::side_of,
    tables::BpfTables,
    tc::{self, Start},
};

/// `packet::begin` of the packet at hand.
#[inline(always)]
fn begin<A: Family>(ctx: *mut __sk_buff, ifindex: u32) -> u64 {
    let Some(scratch) = A::scratch(Side::Ingress) else { return number(Verdict::Pass) };
    // SAFETY: see `tc::see`.
    let Scratch { work, lookup } = unsafe { &mut *scratch };
    number(packet::begin(&BpfTables { ctx: ctx.cast(), ifindex, lookup }, ifindex, work))
}

/// `packet::commit` of the packet at hand.
#[inline(always)]
fn commit<A: Family>(former: u32) -> u64 {
    let Some(scratch) = A::scratch(Side::Ingress) else { return number(Verdict::Pass) };
    // SAFETY: see `tc::see`.
    let Scratch { work, .. } = unsafe { &mut *scratch };
    number(packet::commit(&BpfTables::SOCKETS, work, table_of(former)))
}

/// `packet::reserve` of the packet at hand.
#[inline(always)]
fn reserve<A: Family>() -> u32 {
    let Some(scratch) = A::scratch(Side::Ingress) else { return 0 };
    // SAFETY: see `tc::see`.
    let Scratch { work, .. } = unsafe { &mut *scratch };
    u32::from(packet::reserve(&BpfTables::SOCKETS, work))
}

/// `crc32c::change`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_crc32c(difference: u32, len: u32) -> u32 {
    crc32c::change(difference, len)
}

/// Functions with a name of their own and plain arguments are verified once, whoever calls them.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_ingress4(ctx: *mut __sk_buff) -> u64 {
    tc::see::<Addr4>(ctx, Side::Ingress, Start::Ethernet)
}

/// See [`lb_ingress4`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_bare_ingress4(ctx: *mut __sk_buff) -> u64 {
    tc::see::<Addr4>(ctx, Side::Ingress, Start::Bare)
}

/// See [`lb_ingress4`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_tagged_ingress4(ctx: *mut __sk_buff, l3: u32) -> u64 {
    tc::see::<Addr4>(ctx, Side::Ingress, Start::Tagged(l3))
}

/// See [`lb_ingress4`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_egress4(ctx: *mut __sk_buff) -> u64 {
    tc::see::<Addr4>(ctx, Side::Egress, Start::Ethernet)
}

/// See [`lb_ingress4`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_bare_egress4(ctx: *mut __sk_buff) -> u64 {
    tc::see::<Addr4>(ctx, Side::Egress, Start::Bare)
}

/// See [`lb_ingress4`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_tagged_egress4(ctx: *mut __sk_buff, l3: u32) -> u64 {
    tc::see::<Addr4>(ctx, Side::Egress, Start::Tagged(l3))
}

/// See [`lb_ingress4`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_ingress6(ctx: *mut __sk_buff) -> u64 {
    tc::see::<Addr>(ctx, Side::Ingress, Start::Ethernet)
}

/// See [`lb_ingress4`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_bare_ingress6(ctx: *mut __sk_buff) -> u64 {
    tc::see::<Addr>(ctx, Side::Ingress, Start::Bare)
}

/// See [`lb_ingress4`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_tagged_ingress6(ctx: *mut __sk_buff, l3: u32) -> u64 {
    tc::see::<Addr>(ctx, Side::Ingress, Start::Tagged(l3))
}

/// See [`lb_ingress4`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_egress6(ctx: *mut __sk_buff) -> u64 {
    tc::see::<Addr>(ctx, Side::Egress, Start::Ethernet)
}

/// See [`lb_ingress4`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_bare_egress6(ctx: *mut __sk_buff) -> u64 {
    tc::see::<Addr>(ctx, Side::Egress, Start::Bare)
}

/// See [`lb_ingress4`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_tagged_egress6(ctx: *mut __sk_buff, l3: u32) -> u64 {
    tc::see::<Addr>(ctx, Side::Egress, Start::Tagged(l3))
}

/// See [`lb_ingress4`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_translate4(ctx: *mut __sk_buff, side: u32, l3: u32, way: u64) -> u64 {
    tc::translate::<Addr4>(ctx, side_of(side), l3, way)
}

/// See [`lb_ingress4`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_translate6(ctx: *mut __sk_buff, side: u32, l3: u32, way: u64) -> u64 {
    tc::translate::<Addr>(ctx, side_of(side), l3, way)
}

/// See [`lb_ingress4`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_begin4(ctx: *mut __sk_buff, ifindex: u32) -> u64 {
    begin::<Addr4>(ctx, ifindex)
}

/// See [`lb_ingress4`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_begin6(ctx: *mut __sk_buff, ifindex: u32) -> u64 {
    begin::<Addr>(ctx, ifindex)
}

/// See [`lb_ingress4`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_commit4(former: u32) -> u64 {
    commit::<Addr4>(former)
}

/// See [`lb_ingress4`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_commit6(former: u32) -> u64 {
    commit::<Addr>(former)
}

/// See [`lb_ingress4`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_reserve4() -> u32 {
    reserve::<Addr4>()
}

/// See [`lb_ingress4`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_reserve6() -> u32 {
    reserve::<Addr>()
}
