//! What programs must know of the node, changeable while they run.

use super::{Addr, Words, join16, join32, split16, split32};

/// Value of `lb_addresses`: what an address is to this node.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Address {
    /// Bits: [`Address::NODE`], [`Address::LOOPBACK`].
    pub bits: u32,
}

impl Address {
    /// An address of this node: NodePorts are served on it for every client.
    pub const NODE: Self = Self { bits: 1 };
    /// 127.0.0.1 or ::1: NodePorts are served on it for clients in the host's network namespace only, because every
    /// pod has a loopback of its own.
    pub const LOOPBACK: Self = Self { bits: 2 };

    /// Whether every bit of `other` is set.
    pub const fn has(self, other: Self) -> bool {
        self.bits & other.bits == other.bits
    }
}

/// Value of `lb_netns`: what is special about the sockets of one network namespace.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Netns {
    /// Bits: [`Netns::EXEMPT`].
    pub bits: u32,
}

impl Netns {
    /// Socket hooks leave this namespace alone: its mesh or its own translation wants to see Service addresses.
    pub const EXEMPT: Self = Self { bits: 1 };

    /// Whether every bit of `other` is set.
    pub const fn has(self, other: Self) -> bool {
        self.bits & other.bits == other.bits
    }
}

/// Which sockets the socket hooks serve, one bit for each of {TCP, UDP} x {host, pods}.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SocketLb {
    /// The bits.
    pub bits: u32,
}

impl SocketLb {
    /// Nobody.
    pub const NONE: Self = Self { bits: 0 };
    /// TCP (and MPTCP) sockets of the host's network namespace.
    pub const TCP_HOST: Self = Self { bits: 1 };
    /// TCP (and MPTCP) sockets of every other network namespace.
    pub const TCP_PODS: Self = Self { bits: 2 };
    /// UDP sockets of the host's network namespace.
    pub const UDP_HOST: Self = Self { bits: 4 };
    /// UDP sockets of every other network namespace.
    pub const UDP_PODS: Self = Self { bits: 8 };
    /// Everybody.
    pub const ALL: Self = Self { bits: 15 };

    /// Whether every bit of `other` is set.
    pub const fn has(self, other: Self) -> bool {
        self.bits & other.bits == other.bits
    }

    /// Both sets of bits.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self { bits: self.bits | other.bits }
    }
}

/// How packets are served, beyond what their frontends say.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PacketLb {
    /// The bits.
    pub bits: u32,
}

impl PacketLb {
    /// Cluster IPs are served to clients outside too.
    pub const EXTERNAL_CLUSTER_IP: Self = Self { bits: 1 };
    /// No backend sees a client's address (MQ-1).
    pub const MASQUERADE_ALL: Self = Self { bits: 2 };
    /// Some Service has [`ServiceFlags::MAGLEV`](super::ServiceFlags::MAGLEV): a segment in the middle of a connection may open a
    /// flow. Without it no program looks whose such a segment is.
    pub const MAGLEV: Self = Self { bits: 4 };
    /// Whoever has an address in the source ranges of [`ServiceId::PODS`](super::ServiceId::PODS) is a pod, whatever device its
    /// packets come by (semantics 2.9).
    pub const POD_RANGES: Self = Self { bits: 8 };
    /// Nobody is to answer at an address in the ranges of [`ServiceId::CLUSTER_IPS`](super::ServiceId::CLUSTER_IPS) that no
    /// Service has (2.7). Without it no program looks.
    pub const UNALLOCATED: Self = Self { bits: 16 };

    /// Whether every bit of `other` is set.
    pub const fn has(self, other: Self) -> bool {
        self.bits & other.bits == other.bits
    }

    /// Both sets of bits.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self { bits: self.bits | other.bits }
    }

    /// Without the bits of `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self { bits: self.bits & !other.bits }
    }
}

/// With what addresses begin that may be cluster IPs, for both families: whoever asks for each range would pay for it with every
/// datagram of others.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Cover {
    /// What all ranges of IPv4 begin with, as it lies in memory.
    pub v4: u32,
    /// Which of its bits that is.
    pub v4_mask: u32,
    /// The same of IPv6, as far as the first 8 bytes.
    pub v6: u64,
    /// Which of its bits that is.
    pub v6_mask: u64,
}

impl Cover {
    /// No address of either family: nothing without a single bit is 1.
    pub const NOTHING: Self = Self { v4: 1, v4_mask: 0, v6: 1, v6_mask: 0 };

    /// With a range more: `len` bits of `addr`; those of IPv4 count from its own first bit.
    #[must_use]
    pub const fn with(self, addr: Addr, len: u8) -> Self {
        let [a, b, _, last] = addr.to_net_words();
        let len = len as u32;
        if addr.is_v4() {
            let (own, known) = (u32::from_be(last), u32::from_be(self.v4));
            let is_first = self.v4 & !self.v4_mask != 0;
            let same = if is_first { u32::BITS } else { (own ^ known).leading_zeros() };
            let mask = !u32::MAX.unbounded_shr(if same < len { same } else { len });
            let mask = if is_first { mask } else { mask & u32::from_be(self.v4_mask) };
            Self { v4: (own & mask).to_be(), v4_mask: mask.to_be(), ..self }
        } else {
            let (own, known) = (u64::from_be(join32(a, b)), u64::from_be(self.v6));
            let is_first = self.v6 & !self.v6_mask != 0;
            let same = if is_first { u64::BITS } else { (own ^ known).leading_zeros() };
            let mask = !u64::MAX.unbounded_shr(if same < len { same } else { len });
            let mask = if is_first { mask } else { mask & u64::from_be(self.v6_mask) };
            Self { v6: (own & mask).to_be(), v6_mask: mask.to_be(), ..self }
        }
    }

    /// Whether an address may be in one of the ranges.
    #[inline(always)]
    pub const fn may_hold(&self, addr: Addr) -> bool {
        let [a, b, _, last] = addr.to_net_words();
        if addr.is_v4() { last & self.v4_mask == self.v4 } else { join32(a, b) & self.v6_mask == self.v6 }
    }
}

/// Value of `lb_config`.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Config {
    /// Lowest programmed NodePort; with no NodePort it is above [`Config::node_port_max`].
    pub node_port_min: u16,
    /// Highest programmed NodePort.
    pub node_port_max: u16,
    /// Which sockets are served.
    pub socket_lb: SocketLb,
    /// Whether `lb_netns` has entries: look-ups in it are skipped while it has none.
    pub netns_entries: u32,
    /// Zero.
    pub pad: u32,
    /// How packets are served.
    pub packets: PacketLb,
    /// How many entries of the list of ports for masquerading count.
    pub masquerade_ports: u32,
    /// With what the ranges of [`ServiceId::CLUSTER_IPS`](super::ServiceId::CLUSTER_IPS) begin. Its words are stored one after the other: what
    /// a mixture of two says counts only together with the ranges.
    pub cluster_ips: Cover,
}

impl Config {
    /// Words of one value.
    pub const WORDS: usize = 6;
    /// The word of [`Config::netns_entries`], which the agent does not store.
    pub const NETNS_WORD: usize = 1;
    /// The word of [`Config::packets`] and [`Config::masquerade_ports`].
    pub const PACKETS_WORD: usize = 2;
    /// The first word of [`Config::cluster_ips`].
    pub const CLUSTER_IPS_WORD: usize = 3;
    /// No NodePort, nobody served: what an empty map means.
    pub const OFF: Self = Self {
        node_port_min: 0,
        node_port_max: 0,
        socket_lb: SocketLb::NONE,
        netns_entries: 0,
        pad: 0,
        packets: PacketLb { bits: 0 },
        masquerade_ports: 0,
        cluster_ips: Cover { v4: 0, v4_mask: 0, v6: 0, v6_mask: 0 },
    };

    /// Whether a NodePort frontend may exist for `port`. Port 0 is never one.
    pub const fn may_be_node_port(&self, port: u16) -> bool {
        port != 0 && self.node_port_min <= port && port <= self.node_port_max
    }
}

impl Words<6> for Config {
    fn to_words(&self) -> [u64; 6] {
        [
            join32(join16(self.node_port_min, self.node_port_max), self.socket_lb.bits),
            join32(self.netns_entries, self.pad),
            join32(self.packets.bits, self.masquerade_ports),
            join32(self.cluster_ips.v4, self.cluster_ips.v4_mask),
            self.cluster_ips.v6,
            self.cluster_ips.v6_mask,
        ]
    }

    fn from_words([first, second, third, fourth, v6, v6_mask]: [u64; 6]) -> Self {
        let (ports, bits) = split32(first);
        let (node_port_min, node_port_max) = split16(ports);
        let (netns_entries, pad) = split32(second);
        let (packets, masquerade_ports) = split32(third);
        let (v4, v4_mask) = split32(fourth);
        Self {
            node_port_min,
            node_port_max,
            socket_lb: SocketLb { bits },
            netns_entries,
            pad,
            packets: PacketLb { bits: packets },
            masquerade_ports,
            cluster_ips: Cover { v4, v4_mask, v6, v6_mask },
        }
    }
}

const _: () = assert!(size_of::<Config>() == Config::WORDS * 8, "a Config is its words");

#[cfg(test)]
mod tests {
    use core::net::IpAddr;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_config_survives_its_words(words: [u64; 6]) {
            prop_assert_eq!(Config::from_words(words).to_words(), words);
        }
    }

    /// 2.7-unallocated.
    #[test]
    fn a_cover_holds_all_ranges_and_little_else() {
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        let cover = |ranges: &[&str]| {
            ranges.iter().fold(Cover::NOTHING, |cover, range| {
                let (start, len) = range.split_once('/').unwrap();
                cover.with(addr(start), len.parse().unwrap())
            })
        };
        let holds = |ranges: &[&str], addrs: &[&str]| -> Vec<bool> {
            addrs.iter().map(|text| cover(ranges).may_hold(addr(text))).collect()
        };
        let nowhere = ["0.0.0.0", "0.0.0.1", "1.0.0.0", "10.96.0.1", "::", "::1", "100::", "fd00:96::1"];
        assert_eq!(holds(&[], &nowhere), [false; 8]);
        assert_eq!(
            holds(&["10.96.0.0/12"], &["10.95.255.255", "10.96.0.0", "10.111.255.255", "10.112.0.0"]),
            [false, true, true, false]
        );
        assert_eq!(holds(&["10.96.0.0/12"], &["fd00:96::1"]), [false], "a family without ranges");
        assert_eq!(holds(&["1.0.0.0/8", "1.0.0.0/8", "1.1.0.0/16"], &["1.9.9.9", "2.0.0.0"]), [true, false]);
        assert_eq!(
            holds(&["10.96.0.0/16", "10.97.0.0/16"], &["10.95.0.1", "10.96.0.1", "10.97.0.1", "10.98.0.1"]),
            [false, true, true, false]
        );
        assert_eq!(
            holds(&["10.96.0.0/16", "172.20.0.0/16"], &["10.96.0.1", "172.20.0.1", "8.8.8.8"]),
            [true; 3]
        );
        assert_eq!(holds(&["10.96.0.0/16", "172.20.0.0/16", "10.96.0.0/16"], &["172.20.0.1"]), [true]);
        let six = ["fd00:10:96::/112", "fd00:10:97::/112"];
        assert_eq!(holds(&six[..1], &["fd00:10:96::1", "fd00:10:97::1", "10.96.0.1"]), [true, false, false]);
        assert_eq!(holds(&six, &["fd00:10:96::1", "fd00:10:97::1", "fd00:10:98::1"]), [true, true, false]);
    }

    /// Two that are one would be set and cleared together.
    #[test]
    fn every_switch_of_packets_has_a_bit_of_its_own() {
        let all = [
            PacketLb::EXTERNAL_CLUSTER_IP,
            PacketLb::MASQUERADE_ALL,
            PacketLb::MAGLEV,
            PacketLb::POD_RANGES,
            PacketLb::UNALLOCATED,
        ];
        assert_eq!(all.map(|one| one.bits.count_ones()), [1; 5]);
        assert_eq!(all.into_iter().fold(PacketLb::default(), PacketLb::with).bits.count_ones(), 5);
    }

    #[test]
    fn an_empty_map_means_no_node_port_and_nobody_served() {
        let config = Config::from_words([0; 6]);
        assert_eq!(config, Config::OFF);
        assert!(!config.may_be_node_port(0));
        assert!(!config.may_be_node_port(30_000));
    }
}
