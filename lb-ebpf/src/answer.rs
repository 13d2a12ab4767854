//! What the programs at tc answer themselves: functions that are verified once, and that no packet of a flow pays for.
#![expect(unsafe_code, reason = "contexts are raw pointers")]

use aya_ebpf::bindings::__sk_buff;
use lb_common::{
    abi::{Addr, Addr4},
    datapath::packet::{
        Side,
        refuse::{self, Answers},
    },
};

use crate::{
    flows::{Family, Scratch},
    skb::Skb,
    tables::BpfTables,
    tc::DROP,
};

/// Where an IP header begins at most: Ethernet with two VLAN tags.
const MOST_L3: u32 = 22;

/// Answers the packet at hand, which is refused.
#[inline(always)]
fn refuse<A: Family + Answers>(ctx: *mut __sk_buff, l3: u32) -> i32 {
    let Some(scratch) = A::scratch(Side::Ingress) else { return DROP };
    // SAFETY: see `tc::decide`, which called this one.
    let Scratch { work, .. } = unsafe { &mut *scratch };
    let mut skb = Skb::whole(ctx);
    if l3 > MOST_L3 || !skb.is_for_us() {
        return DROP;
    }
    if !refuse::refuse(&BpfTables::SOCKETS, &mut skb, l3 as usize, &work.packet) {
        return DROP;
    }
    skb.send_back()
}

/// [`refuse`] of IPv4.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_refuse4(ctx: *mut __sk_buff, l3: u32) -> i32 {
    refuse::<Addr4>(ctx, l3)
}

/// [`refuse`] of IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_refuse6(ctx: *mut __sk_buff, l3: u32) -> i32 {
    refuse::<Addr>(ctx, l3)
}
