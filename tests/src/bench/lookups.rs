//! What the kernel takes alone for the look-ups that a packet of a known flow needs: programs in the place of ours, with nothing else in them.

use std::net::IpAddr;

use anyhow::{Result, bail};
use lb_common::abi::{Addr, Addr4, Flow};

use super::{
    bpf::{Code, Kind, Map, Program, Reg},
    runs::{DROP, PASS, UPLINK, kept, node_ip},
};

/// What the kernel takes for the look-up for a route that each hit at XDP needs, alone.
pub(super) const ROUTE: &str = "XDP a route, by the kernel alone";
/// The same for the look-up in a hash as large and as full as that of flows. The second is not preallocated; the third is
/// larger by the number at the end, so that its chains are shorter.
pub(super) const ENTRY: [(&str, bool, u32); 3] = [
    ("XDP an entry, by the kernel alone", true, 1),
    ("XDP an entry, not preallocated", false, 1),
    ("XDP an entry, four times the room", true, 4),
];

/// `AF_INET`, `AF_INET6`
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A program that asks for the way to a backend.
pub(super) fn route(to: IpAddr) -> Result<Program> {
    // struct bpf_fib_lookup: the family first, both addresses at 16 and 32.
    let mut question = [0_u8; 64];
    let mut put = |at: usize, bytes: &[u8]| question[at..at + bytes.len()].copy_from_slice(bytes);
    match (node_ip(to.is_ipv6()), to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            put(0, &[AF_INET]);
            put(16, &from.octets());
            put(32, &to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            put(0, &[AF_INET6]);
            put(16, &from.octets());
            put(32, &to.octets());
        }
        _ => bail!("{to} is of another family than the node"),
    }
    let asked = Map::array(64, 1)?;
    asked.write(&question)?;
    let mut code = Code::default();
    code.copy(Reg::R6, Reg::R1).route(&asked, i32::try_from(UPLINK)?, "failed").if_not(Reg::R0, 0, "failed");
    code.exit(PASS.cast_signed()).land("failed").exit(DROP.cast_signed());
    code.program(Kind::Xdp, "bench_route")
}

/// A program that looks for the ends of frames in a hash that has those and three times as many.
pub(super) fn entry(frames: &[Vec<u8>], v6: bool, preallocated: bool, times: u32) -> Result<Program> {
    // Addresses and ports.
    let (at, len) = if v6 { (22, 36) } else { (26, 12) };
    let mut keys: Vec<Vec<u8>> = frames.iter().map(|frame| frame[at..at + len].to_vec()).collect();
    for number in 0..3 * frames.len() as u64 {
        let mut key = keys[0].clone();
        key[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_ne_bytes());
        keys.push(key);
    }
    let value = if v6 { size_of::<Flow<Addr>>() } else { size_of::<Flow<Addr4>>() };
    let room = times * kept(u32::try_from(frames.len())?);
    let map = Map::hash(&keys, value, room, preallocated)?;
    let mut code = Code::default();
    code.copy(Reg::R6, Reg::R1).packet(Kind::Xdp, 60, "none");
    code.find(&map, (i16::try_from(at)?, i16::try_from(len)?), "none");
    code.exit(PASS.cast_signed()).land("none").exit(DROP.cast_signed());
    code.program(Kind::Xdp, "bench_entry")
}
