//! A packet in `struct __sk_buff`: reading, rewriting, sending it elsewhere.
#![expect(unsafe_code, reason = "packets, contexts and helpers are raw pointers")]

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_fib_lookup,
        bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1,
    },
    helpers::generated::{
        bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_skb_adjust_room, bpf_skb_change_head,
        bpf_skb_change_tail, bpf_skb_pull_data, bpf_skb_store_bytes,
    },
};
use core::{ffi::c_void, hint::black_box, ptr};
use lb_common::{
    abi::Proto,
    datapath::packet::{
        Side,
        parse::{Headers, MOST_EXTENSION_BYTES, Packet, Part},
        refuse::{Answers, Reshape},
        rewrite::PacketMut,
    },
};

use crate::{functions, tc::DROP};

/// `tc_index` of what a program of ours has translated: two letters. Nothing in the kernel writes the field but the qdisc dsmark
/// and filters of classes that are told to.
const DONE: u32 = 0x6c62;
/// Bytes of an Ethernet header.
const ETHERNET: u32 = 14;
/// `PACKET_HOST` (include/uapi/linux/if_packet.h).
const PACKET_HOST: u32 = 0;
/// `PACKET_OTHERHOST`
const PACKET_OTHERHOST: u32 = 3;

/// Bytes at the beginning of a packet that are read at most: Ethernet with two VLAN tags, IPv6 with four extension headers, TCP.
const MOST: usize = 22 + 40 + MOST_EXTENSION_BYTES + 20;
/// Bytes that suffice for nearly every packet: Ethernet, IPv6, TCP.
const USUAL: u32 = 14 + 40 + 20;

/// Loads a field of a context that is valid for the program's run. Volatile: LLVM must not pass the loaded numbers on as arguments.
macro_rules! load {
    ($ctx:expr, $field:ident) => {{
        // SAFETY: the context is valid for the program's run.
        let place = unsafe { &raw const (*$ctx).$field };
        // SAFETY: as above.
        unsafe { place.read_volatile() }
    }};
}

/// A packet.
pub(crate) struct Skb {
    ctx: *mut __sk_buff,
    /// Known when this is built: see [`Skb::part`].
    pub(crate) rare: bool,
}

/// Some bytes of it that were found to be there.
#[derive(Clone, Copy)]
pub(crate) struct Bytes {
    at: usize,
}

impl Bytes {
    /// Those at an address that was checked.
    pub(crate) const fn new(at: usize) -> Self {
        Self { at }
    }
}

impl Part for Bytes {
    #[inline(always)]
    fn load16(&self, offset: usize) -> u16 {
        // SAFETY: within the bytes that were checked; the verifier accepts nothing else. BPF loads need no alignment.
        u16::from_be(unsafe { ((self.at + offset) as *const u16).read_volatile() })
    }

    #[inline(always)]
    fn load32(&self, offset: usize) -> [u8; 4] {
        // SAFETY: as above.
        let word = unsafe { ((self.at + offset) as *const u32).read_volatile() };
        word.to_ne_bytes()
    }
}

impl Packet for Skb {
    type Part = Bytes;

    /// Functions for few packets keep many offsets, some of them on the stack, and the verifier of 5.10 forgets what it knew of those: there
    /// each offset is limited where it is used, by a mask that LLVM can neither drop nor share.
    #[inline(always)]
    fn part<const LEN: usize>(&self, offset: usize) -> Option<Bytes> {
        const { assert!(MOST < 511, "the mask") };
        let offset = if self.rare { black_box(offset) & 511 } else { offset };
        if !self.rare && offset > MOST {
            return None;
        }
        let (data, end) = self.bounds();
        let at = data + offset;
        if at + LEN > end {
            return None;
        }
        Some(Bytes { at })
    }
}

impl Skb {
    /// The packet of a program's context. Its headers are made readable where they are not.
    #[inline(always)]
    pub(crate) fn new(ctx: *mut __sk_buff) -> Self {
        let skb = Self { ctx, rare: false };
        let (data, end) = skb.bounds();
        // Of a packet shorter than that everything may be there already.
        let len = load!(ctx, len);
        if data + USUAL as usize > end && end - data < len as usize {
            // SAFETY: the context is valid for the program's run. What fails leaves the packet as it is, and what cannot be read is not ours.
            let _short = unsafe { bpf_skb_pull_data(ctx, if len < USUAL { len } else { USUAL }) };
        }
        skb
    }

    /// The packet of a program's context that was one before.
    #[inline(always)]
    pub(crate) const fn again(ctx: *mut __sk_buff) -> Self {
        Self { ctx, rare: false }
    }

    /// The same, with offsets that are not known when this is built.
    #[inline(always)]
    pub(crate) const fn rare(ctx: *mut __sk_buff) -> Self {
        Self { ctx, rare: true }
    }

    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        let data = load!(self.ctx, data);
        let end = load!(self.ctx, data_end);
        (data as usize, end as usize)
    }

    /// For helpers that take any context.
    #[inline(always)]
    pub(crate) const fn ctx(&self) -> *mut c_void {
        self.ctx.cast()
    }

    /// For functions that take the packet.
    #[inline(always)]
    pub(crate) const fn as_ptr(&self) -> *mut __sk_buff {
        self.ctx
    }

    /// Interface index of the device at hand.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        load!(self.ctx, ifindex)
    }

    /// Its EtherType, also where it has no Ethernet header.
    #[inline(always)]
    pub(crate) fn kind(&self) -> u16 {
        #[expect(clippy::cast_possible_truncation, reason = "16 bits in network order")]
        let kind = load!(self.ctx, protocol) as u16;
        u16::from_be(kind)
    }

    /// Writes bytes. False if the packet cannot be written.
    #[inline(always)]
    pub(crate) fn store<T>(&self, offset: usize, value: &T) -> bool {
        let from = ptr::from_ref(value).cast();
        #[expect(clippy::cast_possible_truncation, reason = "below `MOST`")]
        let (offset, len) = (offset as u32, size_of::<T>() as u32);
        // SAFETY: the context is valid for the program's run, and `value` has `len` bytes.
        unsafe { bpf_skb_store_bytes(self.ctx, offset, from, len, 0) == 0 }
    }

    /// Bytes of this packet, whose IP header begins at `l3`, as it is to leave: with that header, and of several that the kernel
    /// has made one of, each.
    #[inline(always)]
    pub(crate) fn len_out<A: Answers>(&self, l3: usize, headers: &Headers<A>) -> usize {
        let segment = load!(self.ctx, gso_size);
        if segment == 0 {
            return (load!(self.ctx, len) as usize).wrapping_sub(l3);
        }
        let header = match headers.key.proto {
            Proto::TCP if headers.l4 == l3 + A::LEN => {
                self.part::<20>(l3 + A::LEN).map_or(20, |tcp| usize::from(tcp.load16(12) >> 12) * 4)
            }
            Proto::TCP => 20,
            _ => 8,
        };
        (segment as usize).wrapping_add(header).wrapping_add(headers.l4).wrapping_sub(l3)
    }

    /// Whether a program of ours has translated this packet, which is about to leave by a device: nothing is to be done with it any more.
    /// What comes from a device has not met one on this node.
    #[inline(always)]
    pub(crate) fn is_done(&self, side: Side) -> bool {
        if load!(self.ctx, tc_index) != DONE {
            return false;
        }
        if side == Side::Ingress {
            self.set_mark(0);
        }
        side == Side::Egress
    }

    /// Whether the frame is on its way to or from the device of a VLAN above this one (VID in the tag that the kernel keeps beside the frame): it
    /// is met there, with that device's addresses, and answered there. With VID 0 the tag is a priority, and the frame this device's own.
    #[inline(always)]
    pub(crate) fn is_of_a_vlan(&self) -> bool {
        // At that device 5.10 still has the number of a tag that is there no more.
        load!(self.ctx, vlan_present) != 0 && load!(self.ctx, vlan_tci) & 0xfff != 0
    }

    /// See [`Skb::is_done`].
    #[inline(always)]
    pub(crate) fn mark_done(&self) {
        self.set_mark(DONE);
    }

    #[inline(always)]
    fn set_mark(&self, mark: u32) {
        // SAFETY: the context is valid for the program's run, and programs may write this field.
        let place = unsafe { &raw mut (*self.ctx).tc_index };
        // SAFETY: as above.
        unsafe { place.write_volatile(mark) };
    }

    /// What has no Ethernet header gets one, because the kernel takes one off (`__bpf_redirect_neigh` in net/core/filter.c). False if that
    /// cannot be.
    #[inline(always)]
    fn prepare(&self, l3: u32) -> bool {
        self.mark_done();
        // SAFETY: the context is valid for the program's run.
        l3 != 0 || unsafe { bpf_skb_change_head(self.ctx, ETHERNET, 0) } == 0
    }

    /// Out of the device that a look-up for a route has found, to the neighbour that it has found.
    #[inline(always)]
    pub(crate) fn leave_to(&self, l3: u32, found: &bpf_fib_lookup) -> i32 {
        if !self.prepare(l3) {
            return DROP;
        }
        // SAFETY: of either family all bytes are written before the look-up.
        let addr = unsafe { found.__bindgen_anon_4.ipv6_dst };
        let mut neighbour = bpf_redir_neigh {
            nh_family: found.family.into(),
            __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: addr },
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "20")]
        let len = size_of::<bpf_redir_neigh>() as i32;
        #[expect(clippy::cast_possible_truncation, reason = "an action")]
        // SAFETY: the neighbour lives for the call, and has `len` bytes.
        let action = unsafe { bpf_redirect_neigh(found.ifindex, &raw mut neighbour, len, 0) } as i32;
        action
    }

    /// Out of a device, to the neighbour that its routes say.
    #[inline(always)]
    pub(crate) fn leave_by(&self, l3: u32, ifindex: u32) -> i32 {
        if !self.prepare(l3) {
            return DROP;
        }
        #[expect(clippy::cast_possible_truncation, reason = "an action")]
        // SAFETY: the helper takes no pointer here.
        let action = unsafe { bpf_redirect_neigh(ifindex, ptr::null_mut(), 0, 0) } as i32;
        action
    }
}

impl Skb {
    /// The packet of a program's context, all of whose headers that anybody looks at are made readable.
    #[inline(always)]
    pub(crate) fn whole(ctx: *mut __sk_buff) -> Self {
        let len = load!(ctx, len);
        #[expect(clippy::cast_possible_truncation, reason = "some hundred")]
        let most = MOST as u32;
        // SAFETY: the context is valid for the program's run. What fails leaves the packet as it is, and what cannot be read is not ours.
        let _short = unsafe { bpf_skb_pull_data(ctx, if len < most { len } else { most }) };
        Self { ctx, rare: true }
    }

    /// Whether the frame was sent to this device, and not to all or to others. At a port of a bridge, what is for the bridge is for
    /// another device.
    #[inline(always)]
    pub(crate) fn is_for_us(&self, is_port: bool) -> bool {
        let kind = load!(self.ctx, pkt_type);
        kind == PACKET_HOST || (is_port && kind == PACKET_OTHERHOST)
    }

    /// Whether the frame was sent to another device, and is seen because this one takes everything.
    #[inline(always)]
    pub(crate) fn is_overheard(&self) -> bool {
        load!(self.ctx, pkt_type) == PACKET_OTHERHOST
    }

    /// As it is, to where it came from: out of the device at hand, or back into the stack.
    #[inline(always)]
    pub(crate) fn send_back(&self, side: Side) -> i32 {
        let flags = if side == Side::Egress { BPF_F_INGRESS } else { 0 };
        #[expect(clippy::cast_possible_truncation, reason = "an action")]
        // SAFETY: the helper takes no pointer.
        let action = unsafe { bpf_redirect(self.ifindex(), flags.into()) } as i32;
        action
    }

    /// Writes bytes, also into a sum over the packet, if it has one. False if the packet cannot be written.
    #[inline(always)]
    pub(crate) fn store_summed<const LEN: usize>(&self, offset: usize, bytes: [u8; LEN]) -> bool {
        #[expect(clippy::cast_possible_truncation, reason = "below `MOST`")]
        let (offset, len) = (offset as u32, LEN as u32);
        let flags = u64::from(BPF_F_RECOMPUTE_CSUM);
        // SAFETY: the context is valid for the program's run, and `bytes` has `len` bytes.
        unsafe { bpf_skb_store_bytes(self.ctx, offset, (&raw const bytes).cast(), len, flags) == 0 }
    }

    /// Adds to the checksum field at `offset`, where that is not the network card's task.
    #[inline(always)]
    fn add_to_checksum(&self, offset: u32, difference: u64) -> bool {
        // SAFETY: the context is valid for the program's run.
        unsafe { bpf_l4_csum_replace(self.ctx, offset, 0, difference, 0) == 0 }
    }
}

impl PacketMut for Skb {
    #[inline(always)]
    fn store<const LEN: usize>(&mut self, offset: usize, bytes: [u8; LEN]) -> bool {
        self.store_summed(offset, bytes)
    }

    #[inline(always)]
    fn crc32c_change(&self, difference: u32, len: u32) -> u32 {
        functions::lb_crc32c(difference, len)
    }
}

impl Reshape for Skb {
    #[inline(always)]
    fn resize(&mut self, len: usize) -> bool {
        #[expect(clippy::cast_possible_truncation, reason = "below `MOST`")]
        let len = len as u32;
        // SAFETY: the context is valid for the program's run.
        unsafe { bpf_skb_change_tail(self.ctx, len, 0) == 0 }
    }

    #[inline(always)]
    fn make_room(&mut self, _l3: usize, len: usize) -> bool {
        #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "a header's length")]
        let len = len as i32;
        // SAFETY: the context is valid for the program's run. The kernel knows where the IP header is.
        unsafe { bpf_skb_adjust_room(self.ctx, len, BPF_ADJ_ROOM_MAC, 0) == 0 }
    }

    /// No program is told, but a helper that changes a checksum leaves those alone that the network card finishes.
    #[inline(always)]
    fn is_unfinished(&mut self, offset: usize) -> bool {
        let Some(before) = self.part::<2>(offset) else { return false };
        let before = before.load16(0);
        #[expect(clippy::cast_possible_truncation, reason = "below `MOST`")]
        if !self.add_to_checksum(offset as u32, 1) {
            return false;
        }
        let Some(after) = self.part::<2>(offset) else { return false };
        if after.load16(0) == before {
            return true;
        }
        self.store(offset, before.to_be_bytes());
        false
    }
}
