//! Where traffic is accepted: the first look-up of every hook.

use super::{Addr, L4Addr, Proto, ServiceId, join16, join32, split16, split32};

/// Key of `lb_frontends`.
///
/// NodePort frontends have the unspecified address of their family and match the addresses that `lb_addresses`
/// calls this node's.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FrontendKey {
    /// Network order.
    pub addr: Addr,
    /// Host order.
    pub port: u16,
    /// IP protocol.
    pub proto: Proto,
    /// Zero.
    pub pad: u8,
    /// Zero.
    pub pad2: u32,
}

impl FrontendKey {
    /// The key of an address, port and protocol.
    pub const fn new(at: L4Addr, proto: Proto) -> Self {
        Self { addr: at.addr, port: at.port, proto, pad: 0, pad2: 0 }
    }

    /// The key of [`FrontendKind::OtherPorts`] of an address: port and protocol 0.
    pub const fn other_ports(addr: Addr) -> Self {
        Self::new(L4Addr { addr, port: 0 }, Proto { number: 0 })
    }

    /// Whether this is the key of an address's other ports.
    pub const fn is_other_ports(&self) -> bool {
        self.port == 0 && self.proto.number == 0
    }

    /// Address and port.
    pub const fn at(self) -> L4Addr {
        L4Addr { addr: self.addr, port: self.port }
    }

    /// 16 bits of the key that its value repeats.
    ///
    /// The kernel reuses a freed hash element without a grace period, so a look-up that stands on one may return
    /// another key's value (measured: ARCHITECTURE, "Why arrays"). A value whose tag differs is not ours.
    pub const fn tag(self) -> u16 {
        let [a, b, c, d] = self.addr.to_net_words();
        let mut x = a ^ b.rotate_left(7) ^ c.rotate_left(14) ^ d.rotate_left(21);
        x ^= join16(self.port, self.proto.number as u16);
        x = x.wrapping_mul(0x9e37_79b1);
        let (low, high) = split16(x);
        low ^ high
    }
}

/// Why an address accepts traffic. Values are stable: they are read by tools.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum FrontendKind {
    /// `spec.clusterIPs`
    ClusterIp = 1,
    /// `spec.externalIPs`
    ExternalIp = 2,
    /// `status.loadBalancer.ingress[].ip`
    LoadBalancer = 3,
    /// `nodePort` on the addresses of this node
    NodePort = 4,
    /// Every port and protocol of a cluster IP that has no frontend of its own, see [`FrontendKey::other_ports`]:
    /// refused (2.7)
    OtherPorts = 5,
}

impl FrontendKind {
    /// The kind with this number, if there is one.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::ClusterIp),
            2 => Some(Self::ExternalIp),
            3 => Some(Self::LoadBalancer),
            4 => Some(Self::NodePort),
            5 => Some(Self::OtherPorts),
            _ => None,
        }
    }

    /// The field's name for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::ExternalIp => "ExternalIP",
            Self::LoadBalancer => "LoadBalancer",
            Self::NodePort => "NodePort",
            Self::OtherPorts => "OtherPorts",
        }
    }
}

/// Value of `lb_frontends`, read as one 8-byte word. It never changes: a new owner is delete + create.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Frontend {
    /// Index into `lb_services`.
    pub service: ServiceId,
    /// A [`FrontendKind`].
    pub kind: u8,
    /// Zero.
    pub pad: u8,
    /// [`FrontendKey::tag`] of the key.
    pub tag: u16,
}

impl Frontend {
    /// The value for `key`.
    pub const fn new(key: FrontendKey, service: ServiceId, kind: FrontendKind) -> Self {
        Self { service, kind: kind as u8, pad: 0, tag: key.tag() }
    }

    /// From the word in the map.
    pub const fn from_word(word: u64) -> Self {
        let (service, rest) = split32(word);
        let (kinds, tag) = split16(rest);
        let [kind, pad] = kinds.to_ne_bytes();
        Self { service: ServiceId { index: service }, kind, pad, tag }
    }

    /// The word in the map.
    pub const fn to_word(self) -> u64 {
        join32(self.service.index, join16(u16::from_ne_bytes([self.kind, self.pad]), self.tag))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_frontend_survives_its_word(service: u32, kind: u8, tag: u16) {
            let frontend = Frontend { service: ServiceId { index: service }, kind, pad: 0, tag };
            prop_assert_eq!(Frontend::from_word(frontend.to_word()), frontend);
        }
    }

    #[test]
    fn tags_of_neighbours_differ() {
        let key = |d, port| FrontendKey::new(L4Addr { addr: Addr::from_v4([10, 0, 1, d]), port }, Proto::TCP);
        assert_ne!(key(100, 80).tag(), key(101, 80).tag());
        assert_ne!(key(100, 80).tag(), key(100, 81).tag());
        let udp = FrontendKey { proto: Proto::UDP, ..key(100, 80) };
        assert_ne!(key(100, 80).tag(), udp.tag());
    }
}
