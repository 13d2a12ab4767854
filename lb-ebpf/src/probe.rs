//! The self-test of a device: see `lb_common::abi::Probe`.
#![expect(unsafe_code, reason = "map values are raw pointers")]

use aya_ebpf::bindings::xdp_md;
use core::ptr;
use lb_common::{
    abi::Probe,
    datapath::packet::{
        parse::{Packet as _, Part as _},
        rewrite::PacketMut as _,
    },
};

use crate::{
    maps,
    xdp::{Frame, PASS, TX},
};

/// EtherTypes.
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
/// Of an ARP packet (RFC 826).
const REPLY: u16 = 2;
/// ICMPv6, and a neighbour advertisement of it (RFC 4861 4.4).
const ICMPV6: u8 = 58;
const ADVERTISEMENT: u8 = 136;

/// Asks in the place of the first answer, and notes the second one.
#[inline(always)]
pub(crate) fn frame(ctx: *mut xdp_md) -> u32 {
    let frame = &mut Frame::new(ctx);
    let Some(probe) = maps::PROBE.get_ptr_mut(0) else { return PASS };
    // SAFETY: a live map value. The agent writes the rest before it arms the state, and looks at nothing but the state then.
    let ifindex = unsafe { (*probe).ifindex };
    // SAFETY: as above.
    let state = unsafe { &raw mut (*probe).state };
    // SAFETY: as above.
    let now = unsafe { state.read_volatile() };
    if ifindex != frame.ifindex() || !(now == Probe::ARMED || now == Probe::SENT) {
        return PASS;
    }
    let Some(header) = frame.part::<14>(0) else { return PASS };
    let answer = match header.load16(12) {
        ARP => arp(frame, probe),
        IPV6 => advertisement(frame, probe),
        _ => None,
    };
    match (now, answer) {
        (Probe::ARMED, Some((false, len))) => {
            // SAFETY: as above.
            let question = unsafe { &(*probe).frame };
            if !put(frame, question, len) {
                return PASS;
            }
            // SAFETY: as above.
            unsafe { state.write_volatile(Probe::SENT) };
            TX
        }
        (Probe::SENT, Some((true, _))) => {
            // SAFETY: as above.
            unsafe { state.write_volatile(Probe::ANSWERED) };
            PASS
        }
        _ => PASS,
    }
}

/// Whether an ARP answer of the neighbour is one to our own question, and the length of that; nothing if it is something else.
#[inline(always)]
fn arp(frame: &Frame, probe: *const Probe) -> Option<(bool, usize)> {
    let packet = frame.part::<{ Probe::ARP }>(0)?;
    let is_answer = packet.load16(20) == REPLY && packet.load32(28) == word(probe, 38);
    is_answer.then(|| (packet.load32(38) == [0; 4], Probe::ARP))
}

/// The same of a neighbour advertisement.
#[inline(always)]
fn advertisement(frame: &Frame, probe: *const Probe) -> Option<(bool, usize)> {
    let packet = frame.part::<{ Probe::NEIGHBOUR }>(0)?;
    let [next, _] = packet.load16(20).to_be_bytes();
    let [kind, _] = packet.load16(54).to_be_bytes();
    let is_about = (0..4).all(|at| packet.load32(62 + at * 4) == word(probe, 62 + at * 4));
    let [group, _] = packet.load16(38).to_be_bytes();
    (next == ICMPV6 && kind == ADVERTISEMENT && is_about).then_some((group == 0xff, Probe::NEIGHBOUR))
}

/// Four bytes of the question.
#[inline(always)]
fn word(probe: *const Probe, at: usize) -> [u8; 4] {
    // SAFETY: a live map value, and callers ask for places in the frame.
    let frame = unsafe { &raw const (*probe).frame };
    // SAFETY: as above.
    let place = unsafe { frame.cast::<u8>().add(at) };
    // SAFETY: as above.
    unsafe { ptr::read_unaligned(place.cast::<[u8; 4]>()) }
}

/// Puts the first `len` bytes of a question into a frame.
#[inline(always)]
fn put(frame: &mut Frame, question: &[u8; 80], len: usize) -> bool {
    let (pairs, _) = question.as_chunks::<2>();
    for (at, pair) in pairs.iter().enumerate() {
        if at * 2 < len && !frame.store(at * 2, *pair) {
            return false;
        }
    }
    true
}
