//! Addresses, protocols and their byte order.

use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// An IP address as 16 bytes in network order; IPv4 is written as IPv4-mapped (`::ffff:a.b.c.d`, RFC 4291 2.5.5.2).
///
/// One width for both families gives one key type, one set of maps and one code path. Aligned so that programs move
/// and compare it in two words instead of sixteen bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Addr {
    /// Network order.
    pub octets: [u8; 16],
}

impl Addr {
    /// The unspecified IPv4 address, which stands for "every address of this node" in NodePort frontends.
    pub const ANY_V4: Self = Self::from_v4([0; 4]);
    /// The unspecified IPv6 address, likewise.
    pub const ANY_V6: Self = Self { octets: [0; 16] };
    /// 127.0.0.1
    pub const LOOPBACK_V4: Self = Self::from_v4([127, 0, 0, 1]);
    /// ::1
    pub const LOOPBACK_V6: Self = Self { octets: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1] };

    /// The IPv4-mapped form of four octets in network order.
    pub const fn from_v4([a, b, c, d]: [u8; 4]) -> Self {
        Self { octets: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] }
    }

    /// From the four words of `struct bpf_sock_addr.user_ip6`, each as it lies in memory (network order).
    pub const fn from_net_words(words: [u32; 4]) -> Self {
        let [a, b, c, d] = if cfg!(target_endian = "little") {
            words
        } else {
            let [a, b, c, d] = words;
            [d, c, b, a]
        };
        // One wide integer instead of sixteen bytes: programs keep it in two registers.
        let number = (a as u128) | (b as u128) << 32 | (c as u128) << 64 | (d as u128) << 96;
        Self { octets: number.to_ne_bytes() }
    }

    /// The four words for `struct bpf_sock_addr.user_ip6`; the last one is `user_ip4` of an IPv4-mapped address.
    #[expect(clippy::cast_possible_truncation, reason = "each word is the low half of what is left")]
    pub const fn to_net_words(self) -> [u32; 4] {
        let number = u128::from_ne_bytes(self.octets);
        let (a, b, c, d) =
            (number as u32, (number >> 32) as u32, (number >> 64) as u32, (number >> 96) as u32);
        if cfg!(target_endian = "little") { [a, b, c, d] } else { [d, c, b, a] }
    }

    /// Whether this is an IPv4 address in its mapped form.
    pub const fn is_v4(self) -> bool {
        let [a, b, c, _] = self.to_net_words();
        a == 0 && b == 0 && c == u32::from_ne_bytes([0, 0, 0xff, 0xff])
    }

    /// The third word of the family's addresses: what makes an IPv4-mapped one.
    ///
    /// Families are told apart by a word, not by whole constants: copying one of those becomes a call of memset in
    /// a BPF program, which the verifier refuses.
    const fn family_word(self) -> u32 {
        if self.is_v4() { u32::from_ne_bytes([0, 0, 0xff, 0xff]) } else { 0 }
    }

    /// The unspecified address of the same family.
    #[must_use]
    pub const fn any(self) -> Self {
        Self::from_net_words([0, 0, self.family_word(), 0])
    }

    /// The loopback address of the same family.
    #[must_use]
    pub const fn loopback(self) -> Self {
        let last = if self.is_v4() { [127, 0, 0, 1] } else { [0, 0, 0, 1] };
        Self::from_net_words([0, 0, self.family_word(), u32::from_ne_bytes(last)])
    }
}

impl From<IpAddr> for Addr {
    fn from(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            IpAddr::V6(v6) => Self { octets: v6.octets() },
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        let v6 = Ipv6Addr::from(addr.octets);
        v6.to_ipv4_mapped().map_or(Self::V6(v6), |v4: Ipv4Addr| Self::V4(v4))
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

/// An IP protocol number (IANA). Anything may arrive from a hook; [`Proto::TCP`] and [`Proto::UDP`] are served.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Proto {
    /// The number.
    pub number: u8,
}

impl Proto {
    /// 6
    pub const TCP: Self = Self { number: 6 };
    /// 17
    pub const UDP: Self = Self { number: 17 };
    /// 132
    pub const SCTP: Self = Self { number: 132 };

    /// The protocol that serves a socket of `IPPROTO_*` number `protocol`, if socket hooks serve it at all.
    ///
    /// `IPPROTO_MPTCP` (262) sockets reach Services as TCP does: the subflows are TCP, and the number exists only
    /// in the socket API (include/uapi/linux/in.h).
    pub const fn of_socket(protocol: u32) -> Option<Self> {
        match protocol {
            6 | 262 => Some(Self::TCP),
            17 => Some(Self::UDP),
            _ => None,
        }
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TCP => f.write_str("TCP"),
            Self::UDP => f.write_str("UDP"),
            Self::SCTP => f.write_str("SCTP"),
            Self { number } => write!(f, "protocol {number}"),
        }
    }
}

/// Address and port of one end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct L4Addr {
    /// Network order.
    pub addr: Addr,
    /// Host order.
    pub port: u16,
}

impl From<SocketAddr> for L4Addr {
    fn from(at: SocketAddr) -> Self {
        Self { addr: at.ip().into(), port: at.port() }
    }
}

impl From<L4Addr> for SocketAddr {
    fn from(at: L4Addr) -> Self {
        Self::new(at.addr.into(), at.port)
    }
}

impl fmt::Display for L4Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::from(*self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString as _;

    use super::*;

    #[test]
    fn ipv4_is_kept_as_ipv4_mapped() {
        let addr = Addr::from(IpAddr::from([10, 0, 1, 100]));
        assert_eq!(addr.octets, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 0, 1, 100]);
        assert!(addr.is_v4());
        assert_eq!(IpAddr::from(addr).to_string(), "10.0.1.100");
        assert_eq!(addr.loopback().to_string(), "127.0.0.1");
        assert_eq!(addr.any().to_string(), "0.0.0.0");
    }

    #[test]
    fn the_unspecified_addresses_of_the_families_differ() {
        assert_ne!(Addr::ANY_V4, Addr::ANY_V6);
        assert_eq!(Addr::LOOPBACK_V6.any(), Addr::ANY_V6);
    }

    #[test]
    fn net_words_are_the_bytes_in_memory_order() {
        let addr = Addr::from(IpAddr::from([0xfd00, 1, 2, 3, 4, 5, 6, 7]));
        assert_eq!(Addr::from_net_words(addr.to_net_words()), addr);
        let [.., last] = Addr::from_v4([1, 2, 3, 4]).to_net_words();
        assert_eq!(last.to_ne_bytes(), [1, 2, 3, 4]);
    }

    /// SC-4.
    #[test]
    fn mptcp_sockets_are_served_as_tcp_and_sctp_sockets_are_not_served() {
        assert_eq!(Proto::of_socket(262), Some(Proto::TCP));
        assert_eq!(Proto::of_socket(132), None);
        assert_eq!(Proto::of_socket(256 + 17), None, "the number is compared whole, not its low byte");
    }
}
