//! The kernel's routes: where a packet leaves, and to whom.
#![expect(unsafe_code, reason = "map values and helpers are raw pointers")]

use aya_ebpf::{
    bindings::{BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup as FibLookup},
    helpers::generated::bpf_fib_lookup,
};
use core::ptr;
use lb_common::{
    abi::FlowKey,
    datapath::packet::{Route, refuse::Answers},
};

use crate::{flows::Family, maps, tables::BpfTables};

/// `BPF_FIB_LKUP_RET_*` (include/uapi/linux/bpf.h).
pub(crate) const SUCCESS: i64 = 0;
const NOT_FORWARDED: i64 = 4;
const NO_NEIGHBOUR: i64 = 7;
const FRAG_NEEDED: i64 = 8;

/// Where packets of a key leave.
#[inline(always)]
pub(crate) fn route<A: Family>(tables: &BpfTables, key: &FlowKey<A>) -> Route {
    match look_up(tables, key, (tables.ifindex, 0), 0) {
        // SAFETY: whoever asks for routes has given memory for it, that of the packet at hand.
        SUCCESS | NO_NEIGHBOUR | FRAG_NEEDED => Route::Out { ifindex: unsafe { (*tables.lookup).ifindex } },
        NOT_FORWARDED => Route::Local,
        _ => Route::None,
    }
}

/// What [`look_up_out`] says of a packet that is about to leave: the device and the neighbour are in the memory of the look-up. Any number but
/// these two is the largest packet that can leave: this one would have to be smaller.
pub(crate) const FOUND: u32 = 0;
/// Nothing.
pub(crate) const UNKNOWN: u32 = 1;

/// Asks the kernel for the neighbour by which a packet of `len` bytes leaves by a device, whatever the routes would choose. What is not known
/// is left to the kernel.
#[inline(always)]
pub(crate) fn look_up_for<A: Family + Answers>(
    tables: &BpfTables,
    key: &FlowKey<A>,
    ifindex: u32,
    len: usize,
) -> u32 {
    let out = look_up_out(tables, key, (ifindex, BPF_FIB_LOOKUP_OUTPUT), len);
    if out != FOUND {
        return out;
    }
    // SAFETY: whoever asks for routes has given memory for it, that of the packet at hand.
    let lookup = unsafe { &mut *tables.lookup };
    if lookup.ifindex == ifindex || A::put_router(lookup, ifindex) { FOUND } else { UNKNOWN }
}

/// Asks the kernel for the way of a packet of `len` bytes, as [`look_up`]; without a length nothing is too big.
#[inline(always)]
pub(crate) fn look_up_out<A: Family + Answers>(
    tables: &BpfTables,
    key: &FlowKey<A>,
    asked: (u32, u32),
    len: usize,
) -> u32 {
    match look_up(tables, key, asked, len) {
        SUCCESS | NO_NEIGHBOUR => FOUND,
        FRAG_NEEDED if len == 0 => FOUND,
        FRAG_NEEDED => {
            // SAFETY: whoever asks for routes has given memory for it, that of the packet at hand.
            let lookup = unsafe { &*tables.lookup };
            // SAFETY: all of its members are numbers of two bytes.
            let said = u32::from(unsafe { lookup.__bindgen_anon_1.mtu_result });
            // Below 5.13 the kernel says nothing: what was asked is still there, and the device was found.
            let known = if (said as usize) < len { said } else { device_mtu(lookup.ifindex) };
            if known <= UNKNOWN { A::LEAST_MTU } else { known }
        }
        _ => UNKNOWN,
    }
}

/// What a device takes; 0 if it is not served.
#[inline(always)]
fn device_mtu(ifindex: u32) -> u32 {
    let Some(value) = maps::DEVICES.get_ptr(ifindex) else { return 0 };
    // SAFETY: the pointer is a live map value, and an entry never changes.
    unsafe { (*value).mtu }
}

/// Asks the kernel for the way of packets of a key that come from a device, or leave by it, as the flags say. They have `len` bytes, where
/// those are to be compared with what the way can take; else 0.
#[inline(always)]
pub(crate) fn look_up<A: Family>(
    tables: &BpfTables,
    key: &FlowKey<A>,
    (ifindex, flags): (u32, u32),
    len: usize,
) -> i64 {
    // SAFETY: whoever asks for routes has given memory for it, that of the packet at hand.
    let lookup = unsafe { &mut *tables.lookup };
    // Word by word: for more at once LLVM calls memset, whose frame is one too many below `lb_begin6` by the count of 5.10.
    let words: *mut u32 = ptr::from_mut(lookup).cast();
    for index in 0..size_of::<FibLookup>() / 4 {
        // SAFETY: all fields are numbers or arrays of them, and no smaller than a word together.
        let word = unsafe { words.add(index) };
        // SAFETY: as above.
        unsafe { word.write_volatile(0) };
    }
    A::put_ends(lookup, key);
    lookup.l4_protocol = key.proto.number;
    lookup.sport = key.sport.to_be();
    lookup.dport = key.dport.to_be();
    lookup.ifindex = ifindex;
    #[expect(clippy::cast_possible_truncation, reason = "of a packet")]
    let tot_len = len as u16;
    lookup.__bindgen_anon_1.tot_len = tot_len;
    #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "64")]
    let size = size_of::<FibLookup>() as i32;
    // SAFETY: the context is valid for the program's run; the helper writes no more than `size` bytes.
    unsafe { bpf_fib_lookup(tables.ctx, tables.lookup, size, flags) }
}
