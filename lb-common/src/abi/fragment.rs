//! Which ports the pieces of a datagram belong to: only the first one has them.

use super::{Addr, Proto, join16, mix};

/// Key of `lb_frags`: what all pieces of a datagram have in common (RFC 791 2.3, RFC 8200 4.5).
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FragmentKey {
    /// Source address, network order.
    pub src: Addr,
    /// Destination address, network order.
    pub dst: Addr,
    /// The number that their sender gave them, host order: 16 bits of IPv4, 32 of IPv6.
    pub id: u32,
    /// IP protocol.
    pub proto: Proto,
    /// Zero.
    pub pad: [u8; 3],
}

/// Value of `lb_frags`, an LRU hash: the ports of a datagram whose first piece was translated. Read and written as one word.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FragmentPorts {
    /// Source port, host order.
    pub sport: u16,
    /// Destination port, host order.
    pub dport: u16,
    /// A fold of the key and of both ports: a freed element can be another key's a moment later.
    pub check: u32,
}

impl FragmentPorts {
    /// That the pieces with this key have these ports.
    pub const fn new(key: &FragmentKey, sport: u16, dport: u16) -> Self {
        let mut x = mix(0x6672, key.src.to_net_words());
        x = mix(x, key.dst.to_net_words());
        x = mix(x, [key.id, key.proto.number as u32, join16(sport, dport), 0]);
        Self { sport, dport, check: x | 1 }
    }

    /// Whether the entry is that of `key`, and whole.
    pub const fn is_of(&self, key: &FragmentKey) -> bool {
        self.check == Self::new(key, self.sport, self.dport).check
    }
}

const _: () = assert!(size_of::<FragmentKey>() == 40 && size_of::<FragmentPorts>() == 8, "no padding");
