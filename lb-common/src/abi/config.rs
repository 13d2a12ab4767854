//! What programs must know of the node, changeable while they run.

use super::{Words, join16, join32, split16, split32};

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
}

impl Config {
    /// Words of one value.
    pub const WORDS: usize = 3;
    /// The word of [`Config::netns_entries`], which the agent does not store.
    pub const NETNS_WORD: usize = 1;
    /// The word of [`Config::packets`] and [`Config::masquerade_ports`].
    pub const PACKETS_WORD: usize = 2;
    /// No NodePort, nobody served: what an empty map means.
    pub const OFF: Self = Self {
        node_port_min: 0,
        node_port_max: 0,
        socket_lb: SocketLb::NONE,
        netns_entries: 0,
        pad: 0,
        packets: PacketLb { bits: 0 },
        masquerade_ports: 0,
    };

    /// Whether a NodePort frontend may exist for `port`. Port 0 is never one.
    pub const fn may_be_node_port(&self, port: u16) -> bool {
        port != 0 && self.node_port_min <= port && port <= self.node_port_max
    }
}

impl Words<3> for Config {
    fn to_words(&self) -> [u64; 3] {
        [
            join32(join16(self.node_port_min, self.node_port_max), self.socket_lb.bits),
            join32(self.netns_entries, self.pad),
            join32(self.packets.bits, self.masquerade_ports),
        ]
    }

    fn from_words([first, second, third]: [u64; 3]) -> Self {
        let (ports, bits) = split32(first);
        let (node_port_min, node_port_max) = split16(ports);
        let (netns_entries, pad) = split32(second);
        let (packets, masquerade_ports) = split32(third);
        Self {
            node_port_min,
            node_port_max,
            socket_lb: SocketLb { bits },
            netns_entries,
            pad,
            packets: PacketLb { bits: packets },
            masquerade_ports,
        }
    }
}

const _: () = assert!(size_of::<Config>() == Config::WORDS * 8, "a Config is its words");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_config_survives_its_words(words: [u64; 3]) {
            prop_assert_eq!(Config::from_words(words).to_words(), words);
        }
    }

    #[test]
    fn every_switch_has_a_bit_of_its_own() {
        let switches =
            [PacketLb::EXTERNAL_CLUSTER_IP, PacketLb::MASQUERADE_ALL, PacketLb::MAGLEV, PacketLb::POD_RANGES];
        for (number, switch) in switches.into_iter().enumerate() {
            assert_eq!(
                switches.map(|other| other.has(switch)).iter().filter(|has| **has).count(),
                1,
                "{number}"
            );
        }
    }

    #[test]
    fn an_empty_map_means_no_node_port_and_nobody_served() {
        let config = Config::from_words([0; 3]);
        assert_eq!(config, Config::OFF);
        assert!(!config.may_be_node_port(0));
        assert!(!config.may_be_node_port(30_000));
    }
}
