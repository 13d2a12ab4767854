//! A hash that every node and every version computes alike: which slot of a Maglev table a packet meets, and in which order
//! a backend asks for slots.
//!
//! Whoever changes it moves connections to other backends while a cluster is updated, so a test holds its values. It is no
//! secret: a client can find source ports that lead to one backend.

use crate::abi::{Addr, L4Addr};

/// An odd number without a pattern: 2^64 divided by the golden ratio.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// What was hashed so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hash {
    state: u64,
}

impl Hash {
    /// Nothing; other seeds give other hashes.
    #[inline(always)]
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A number.
    #[inline(always)]
    #[must_use]
    pub const fn word(self, word: u64) -> Self {
        let state = (self.state ^ word).wrapping_mul(STEP);
        Self { state: state ^ (state >> 32) }
    }

    /// An address: its octets 0..8 and 8..16 as two little-endian numbers, which cost a program no swapping of bytes.
    #[inline(always)]
    #[must_use]
    pub const fn addr(self, addr: Addr) -> Self {
        let [a, b, c, d] = addr.to_net_words();
        self.word(little_endian(a, b)).word(little_endian(c, d))
    }

    /// An address and a port.
    #[inline(always)]
    #[must_use]
    pub const fn at(self, at: L4Addr) -> Self {
        self.addr(at.addr).word(at.port as u64)
    }

    /// The hash: the last steps of MurmurHash3 (`fmix64`), after which each bit depends on all of the state.
    #[inline(always)]
    pub const fn finish(self) -> u64 {
        let mut x = self.state;
        x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        x ^ (x >> 33)
    }
}

/// Two words as they lie in memory, as a number.
#[inline(always)]
const fn little_endian(first: u32, second: u32) -> u64 {
    u32::from_le(first) as u64 | (u32::from_le(second) as u64) << 32
}

#[cfg(test)]
mod tests {
    use core::net::SocketAddr;

    use super::*;

    fn of(seed: u64, at: &str) -> u64 {
        let at: SocketAddr = at.parse().unwrap();
        Hash::new(seed).at(at.into()).finish()
    }

    /// Nodes of different versions must agree. These were computed by the same formula elsewhere, in Python.
    #[test]
    fn the_hash_stays_as_it_is() {
        assert_eq!(of(0, "10.1.0.1:8080"), 0x917e_7036_ec80_dbeb);
        assert_eq!(of(1, "10.1.0.1:8080"), 0xbb95_c3f6_635e_b5aa);
        assert_eq!(of(1, "[fd00:1:2::3]:53"), 0xd8b4_f2cf_2b42_8d8c);
    }
}
