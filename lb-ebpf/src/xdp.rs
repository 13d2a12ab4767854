//! `struct xdp_md` <-> `lb_common::datapath::packet::express`.
#![expect(unsafe_code, reason = "frames, contexts and helpers are raw pointers")]

use aya_ebpf::{
    bindings::{BPF_FIB_LOOKUP_OUTPUT, xdp_action, xdp_md},
    helpers::generated::bpf_redirect,
};
use lb_common::{
    abi::{Addr, Addr4, Device, Reason},
    datapath::{
        packet::{
            Flows, Side, Way, express,
            parse::{self, Headers, MOST_EXTENSION_BYTES, Packet, Part as _},
            refuse::Answers,
            rewrite::{PacketMut, rewrite},
        },
        tables::Tables as _,
    },
};

use crate::{
    flows::{Family, Scratch},
    routes::{SUCCESS, look_up},
    skb::Bytes,
    tables::BpfTables,
};

/// Everybody goes on as if we were not here.
pub(crate) const PASS: u32 = xdp_action::XDP_PASS;
/// Back out of the device that it came from.
pub(crate) const TX: u32 = xdp_action::XDP_TX;

/// Bytes of an Ethernet header. What has a VLAN tag in the frame is left to tc.
const ETHERNET: usize = 14;
/// Bytes at the beginning of a frame that are looked at at most.
const MOST: usize = ETHERNET + 40 + MOST_EXTENSION_BYTES + 20;

/// EtherTypes.
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// A frame.
pub(crate) struct Frame {
    ctx: *mut xdp_md,
}

impl Frame {
    /// The frame of a program's context.
    pub(crate) const fn new(ctx: *mut xdp_md) -> Self {
        Self { ctx }
    }

    /// Interface index of the device that it came from.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid for the program's run.
        let place = unsafe { &raw const (*self.ctx).ingress_ifindex };
        // SAFETY: as above.
        unsafe { place.read_volatile() }
    }

    /// Where `len` bytes from `offset` on lie, if they do.
    #[inline(always)]
    fn at(&self, offset: usize, len: usize) -> Option<usize> {
        if offset > MOST {
            return None;
        }
        // SAFETY: the context is valid for the program's run.
        let data = unsafe { &raw const (*self.ctx).data };
        // SAFETY: as above.
        let end = unsafe { &raw const (*self.ctx).data_end };
        // SAFETY: as above.
        let data = unsafe { data.read_volatile() } as usize;
        // SAFETY: as above.
        let end = unsafe { end.read_volatile() } as usize;
        let at = data + offset;
        (at + len <= end).then_some(at)
    }
}

impl Packet for Frame {
    type Part = Bytes;

    #[inline(always)]
    fn part<const LEN: usize>(&self, offset: usize) -> Option<Bytes> {
        Some(Bytes::new(self.at(offset, LEN)?))
    }
}

impl PacketMut for Frame {
    /// `express` leaves it to tc.
    const MAY_BE_SCTP: bool = false;

    #[inline(always)]
    fn store<const LEN: usize>(&mut self, offset: usize, bytes: [u8; LEN]) -> bool {
        let Some(at) = self.at(offset, LEN) else { return false };
        // SAFETY: within the bytes that were checked; the verifier accepts nothing else. BPF stores need no alignment.
        unsafe { (at as *mut [u8; LEN]).write_unaligned(bytes) };
        true
    }
}

/// What a family's frames need.
trait Read: Family + Answers {
    fn parse(frame: &Frame) -> Option<Headers<Self>>;
}

impl Read for Addr4 {
    #[inline(always)]
    fn parse(frame: &Frame) -> Option<Headers<Self>> {
        parse::v4(frame, ETHERNET)
    }
}

impl Read for Addr {
    #[inline(always)]
    fn parse(frame: &Frame) -> Option<Headers<Self>> {
        parse::v6(frame, ETHERNET)
    }
}

/// Decides a frame.
#[inline(always)]
pub(crate) fn frame(ctx: *mut xdp_md) -> u32 {
    let frame = &mut Frame::new(ctx);
    let Some(header) = frame.part::<ETHERNET>(0) else { return PASS };
    let action = match header.load16(12) {
        IPV4 => send_on::<Addr4>(frame),
        IPV6 => send_on::<Addr>(frame),
        _ => None,
    };
    action.unwrap_or(PASS)
}

/// Sends a packet of a known flow to the next machine; nothing, and the packet as it was, if that is not for this program to do.
#[inline(always)]
fn send_on<A: Read>(frame: &mut Frame) -> Option<u32> {
    let headers = A::parse(frame)?;
    // SAFETY: a live map value of this CPU. Programs at tc that use it do not run before this one ends: neither gives way to the other. Every
    // part is plain data, and is written before it is read.
    let Scratch { work, lookup } = unsafe { &mut *A::scratch(Side::Ingress)? };
    work.packet = headers;
    let ifindex = frame.ifindex();
    let tables = &BpfTables { ctx: frame.ctx.cast(), ifindex, lookup };
    let way = express::express(tables, ETHERNET, work)?;
    if express::is_unfinished(frame, ETHERNET, &work.packet) {
        return None;
    }
    let len = A::length(frame, ETHERNET)?.wrapping_add(A::LEN);
    // All that may fail comes before the first byte that is written.
    let (asked, wanted) = match way {
        Way::Device { ifindex } => ((ifindex, BPF_FIB_LOOKUP_OUTPUT), ifindex),
        _ => ((ifindex, 0), 0),
    };
    let found = look_up(tables, &work.after, asked, len);
    // SAFETY: the memory that was given above.
    let found_at = unsafe { &*tables.lookup };
    let out = found_at.ifindex;
    // IPv6 takes a device for a wish only.
    if wanted != 0 && out != wanted {
        return None;
    }
    if found != SUCCESS || !(out == ifindex || Flows::<A>::device(tables, out)?.bits & Device::EXPRESS != 0) {
        return None;
    }
    let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (found_at.dmac, found_at.smac);
    let written = rewrite(frame, ETHERNET, &work.packet, &work.after, true)
        && frame.store(0, [a, b, c, d, e, f, g, h, i, j, k, l]);
    if !written {
        return Some(xdp_action::XDP_ABORTED);
    }
    tables.count(Reason::Express);
    if out == ifindex {
        return Some(TX);
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an action")]
    // SAFETY: the helper takes no pointer.
    let action = unsafe { bpf_redirect(out, 0) } as u32;
    Some(action)
}
