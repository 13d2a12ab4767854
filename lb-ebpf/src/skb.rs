//! A packet in `struct __sk_buff`: reading, rewriting, sending it elsewhere.
#![expect(unsafe_code, reason = "packets, contexts and helpers are raw pointers")]

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::generated::{
        bpf_csum_update, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh,
        bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_pull_data, bpf_skb_store_bytes,
    },
};
use core::{ffi::c_void, hint::black_box, ptr};
use lb_common::{
    abi::{Addr, Addr4, FlowAddr, FlowKey, Proto},
    datapath::packet::{
        parse::{Headers, MOST_EXTENSION_BYTES, Packet, Part},
        refuse::Reshape,
        rewrite::PacketMut,
    },
};

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
    rare: bool,
}

/// Some bytes of it that were found to be there.
#[derive(Clone, Copy)]
pub(crate) struct Bytes {
    at: usize,
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
        if data + USUAL as usize > end {
            let len = load!(ctx, len);
            // SAFETY: the context is valid for the program's run. What fails leaves the packet as it is, and what cannot be read is not ours.
            let _short = unsafe { bpf_skb_pull_data(ctx, if len < USUAL { len } else { USUAL }) };
        }
        skb
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

    /// Writes bytes. False if the packet cannot be written.
    #[inline(always)]
    fn store<T>(&self, offset: usize, value: &T) -> bool {
        let from = ptr::from_ref(value).cast();
        #[expect(clippy::cast_possible_truncation, reason = "below `MOST`")]
        let (offset, len) = (offset as u32, size_of::<T>() as u32);
        // SAFETY: the context is valid for the program's run, and `value` has `len` bytes.
        unsafe { bpf_skb_store_bytes(self.ctx, offset, from, len, 0) == 0 }
    }

    /// Out of a device, to the neighbour that its routes say.
    #[inline(always)]
    pub(crate) fn leave_by(ifindex: u32) -> i32 {
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

    /// Out of the device at hand, as it is.
    #[inline(always)]
    pub(crate) fn send_back(&self) -> i32 {
        #[expect(clippy::cast_possible_truncation, reason = "an action")]
        // SAFETY: the helper takes no pointer.
        let action = unsafe { bpf_redirect(self.ifindex(), 0) } as i32;
        action
    }

    /// Writes bytes, also into a sum over the packet, if it has one. False if the packet cannot be written.
    #[inline(always)]
    fn store_summed<const LEN: usize>(&self, offset: usize, bytes: [u8; LEN]) -> bool {
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

/// What a family's headers look like.
pub(crate) trait Layout: FlowAddr {
    /// Rewrites the addresses, and what depends on them in the IP header; `forwards` takes one from the TTL. Gives the difference that the
    /// pseudo header makes.
    fn rewrite(
        skb: &Skb,
        l3: usize,
        headers: &Headers<Self>,
        after: &FlowKey<Self>,
        forwards: bool,
    ) -> Option<u64>;
    /// Whether the packet's own bytes make up for what the pseudo header changes, in a sum over the whole packet.
    const IP_HAS_CHECKSUM: bool;
}

/// Adds what a word's change does to an Internet checksum (RFC 1624).
#[inline(always)]
const fn change(sum: u64, old: u32, new: u32) -> u64 {
    sum + (!old) as u64 + new as u64
}

/// Folds to the 32 bits that the helpers take.
#[inline(always)]
const fn fold(sum: u64) -> u64 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    (sum & 0xffff_ffff) + (sum >> 32)
}

impl Layout for Addr4 {
    const IP_HAS_CHECKSUM: bool = true;

    #[inline(always)]
    fn rewrite(
        skb: &Skb,
        l3: usize,
        headers: &Headers<Self>,
        after: &FlowKey<Self>,
        forwards: bool,
    ) -> Option<u64> {
        let before = &headers.key;
        let words = |key: &FlowKey<Self>| [key.src.octets, key.dst.octets].map(u32::from_ne_bytes);
        let (old, new) = (words(before), words(after));
        let addresses = fold(change(change(0, old[0], new[0]), old[1], new[1]));
        let mut header = addresses;
        if forwards {
            let ttl = headers.ttl.wrapping_sub(1);
            let word = |ttl: u8| u32::from(u16::from_ne_bytes([ttl, before.proto.number]));
            header = fold(change(header, word(headers.ttl), word(ttl)));
            if !skb.store(l3 + 8, &ttl) {
                return None;
            }
        }
        if !skb.store(l3 + 12, &new) {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "an offset in the headers")]
        let at = (l3 + 10) as u32;
        // SAFETY: the context is valid for the program's run.
        (unsafe { bpf_l3_csum_replace(skb.ctx, at, 0, header, 0) } == 0).then_some(addresses)
    }
}

impl Layout for Addr {
    const IP_HAS_CHECKSUM: bool = false;

    #[inline(always)]
    fn rewrite(
        skb: &Skb,
        l3: usize,
        headers: &Headers<Self>,
        after: &FlowKey<Self>,
        forwards: bool,
    ) -> Option<u64> {
        let (a, b) = (headers.key.src.to_net_words(), after.src.to_net_words());
        let (c, d) = (headers.key.dst.to_net_words(), after.dst.to_net_words());
        let mut sum = 0;
        for at in 0..4 {
            sum = change(change(sum, a[at], b[at]), c[at], d[at]);
        }
        // The header has no checksum that would make up for it in a sum over the packet, which some cards give.
        if forwards && !skb.store_summed(l3 + 7, [headers.ttl.wrapping_sub(1)]) {
            return None;
        }
        skb.store(l3 + 8, &[b, d]).then_some(fold(sum))
    }
}

impl Skb {
    /// Makes the packet one of `after`. False if it cannot be written; then some of it may be.
    #[inline(always)]
    pub(crate) fn rewrite<A: Layout>(
        &self,
        l3: usize,
        headers: &Headers<A>,
        after: &FlowKey<A>,
        forwards: bool,
    ) -> bool {
        let Some(addresses) = A::rewrite(self, l3, headers, after, forwards) else { return false };
        if headers.fragment.is_later() {
            // The ports and the checksum of the whole are in the first one. A sum over this one's bytes has changed, unless the header's
            // checksum makes up for that.
            if !A::IP_HAS_CHECKSUM {
                #[expect(clippy::cast_possible_truncation, reason = "folded")]
                // SAFETY: the context is valid for the program's run.
                let _sum = unsafe { bpf_csum_update(self.ctx, addresses as u32) };
            }
            return true;
        }
        let (checksum, flags) = match headers.key.proto {
            Proto::TCP => (16, 0),
            Proto::UDP => (6, BPF_F_MARK_MANGLED_0),
            // Its checksum does not know the addresses, and the ports are as they were.
            _ => return true,
        };
        #[expect(clippy::cast_possible_truncation, reason = "an offset in the headers")]
        let at = (headers.l4 + checksum) as u32;
        let pseudo = u64::from(flags | BPF_F_PSEUDO_HDR);
        // SAFETY: the context is valid for the program's run.
        if unsafe { bpf_l4_csum_replace(self.ctx, at, 0, addresses, pseudo) } != 0 {
            return false;
        }
        if !A::IP_HAS_CHECKSUM {
            // The helper takes the sum over the packet for one that changes with the pseudo header, as under IPv4; here the addresses
            // themselves have changed in it, which makes up for that. Nothing for packets without such a sum.
            #[expect(clippy::cast_possible_truncation, reason = "folded")]
            // SAFETY: as above.
            let _sum = unsafe { bpf_csum_update(self.ctx, addresses as u32) };
        }
        let ports = |key: &FlowKey<A>| [key.sport.to_be(), key.dport.to_be()];
        let (old, new) = (ports(&headers.key), ports(after));
        if old == new {
            return true;
        }
        let word = |ports: [u16; 2]| u32::from(ports[0]) + (u32::from(ports[1]) << 16);
        let sum = fold(change(0, word(old), word(new)));
        // SAFETY: as above.
        if unsafe { bpf_l4_csum_replace(self.ctx, at, 0, sum, flags.into()) } != 0 {
            return false;
        }
        self.store(headers.l4, &new)
    }
}
