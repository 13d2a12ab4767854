//! A packet at a program.

use std::fmt;

use super::world::MAC;

/// A program that sees packets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Program {
    /// At tc, of devices with Ethernet headers.
    Ingress,
    Egress,
    /// Of devices without.
    BareIngress,
    BareEgress,
    Xdp,
}

impl Program {
    /// As it is called in the object.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "lb_tc_ingress",
            Self::Egress => "lb_tc_egress",
            Self::BareIngress => "lb_ip_ingress",
            Self::BareEgress => "lb_ip_egress",
            Self::Xdp => "lb_xdp",
        }
    }

    /// Whether packets begin with the IP header.
    pub(super) const fn is_bare(self) -> bool {
        matches!(self, Self::BareIngress | Self::BareEgress)
    }

    /// Whether packets leave by the device.
    pub(super) const fn is_egress(self) -> bool {
        matches!(self, Self::Egress | Self::BareEgress)
    }
}

/// A packet at a device.
#[derive(Clone)]
pub(super) struct Packet {
    pub(super) program: Program,
    pub(super) ifindex: u32,
    pub(super) bytes: Vec<u8>,
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}: {}", self.program.name(), self.ifindex, hex(&self.bytes))
    }
}

/// Bytes for people, and for who copies them into a test.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// `struct __sk_buff` and `struct xdp_md` (include/uapi/linux/bpf.h): their sizes, and where they have the device.
const SKB: (usize, usize) = (192, 40);
const MD: (usize, usize) = (24, 12);

/// To whom a frame was sent (include/uapi/linux/if_packet.h).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Receiver {
    Host,
    All,
    Other,
}

impl Packet {
    /// What the kernel takes the device from.
    pub(super) fn context(&self) -> Vec<u8> {
        let (size, at) = if self.program == Program::Xdp { MD } else { SKB };
        let mut context = vec![0; size];
        context[at..at + 4].copy_from_slice(&self.ifindex.to_ne_bytes());
        if self.program == Program::Xdp {
            let end = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
            context[4..8].copy_from_slice(&end.to_ne_bytes());
        }
        context
    }

    /// Two bytes, as a number.
    pub(super) fn half(&self, at: usize) -> Option<u16> {
        half(&self.bytes, at)
    }

    /// Where the IP header is, and its EtherType; nothing if there is none. Programs at XDP do not look behind tags.
    pub(super) fn start(&self) -> Option<(usize, u16)> {
        // What the kernel takes for the type, whatever the packet begins with.
        let mut kind = self.half(12)?;
        if self.program.is_bare() {
            return Some((0, kind));
        }
        let mut l3 = 14;
        while l3 < 22 && matches!(kind, 0x8100 | 0x88a8) && self.program != Program::Xdp {
            kind = self.half(l3 + 2)?;
            l3 += 4;
        }
        Some((l3, kind))
    }

    /// To whom the frame was sent, as the kernel says (`eth_type_trans`).
    pub(super) fn receiver(&self) -> Receiver {
        match self.bytes.first_chunk::<6>() {
            Some(to) if to[0] & 1 != 0 => Receiver::All,
            Some(to) if *to == MAC => Receiver::Host,
            _ => Receiver::Other,
        }
    }
}

/// Two bytes, as a number.
pub(super) fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}
