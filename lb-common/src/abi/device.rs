//! Network devices whose packets are served.

use super::{Addr, Addr4, ServiceId};

/// Value of `lb_devices`, by interface index: what programs must know of a device.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Device {
    /// Source of what is masqueraded and leaves by this device, IPv6; unspecified where there is none.
    pub v6: Addr,
    /// The IPv6 router that is reached by this device; unspecified where there is none. IPv4 routes tell it for a device that is named;
    /// those of IPv6 take a device for a wish only.
    pub router: Addr,
    /// Source of what is masqueraded and leaves by this device, IPv4.
    pub v4: Addr4,
    /// Bits: [`Device::PODS`] and others.
    pub bits: u32,
    /// Interface index of the bridge that it is a port of, 0 if of none: who is behind it is reached by that.
    pub controller: u32,
    /// Largest packet that it takes, in bytes with the IP header.
    pub mtu: u32,
}

impl Device {
    /// Local pods are behind it: who sends here is a pod of this node.
    pub const PODS: u32 = 1;
    /// Those behind it reach each other without passing it (a bridge): what one of them sends to another is masqueraded, or
    /// the answer would not be seen.
    pub const SHARED: u32 = 2;
    /// Frames may be sent out of it before the kernel makes packets of them: `lb_xdp` is attached there, and was tested.
    pub const EXPRESS: u32 = 4;
    /// A device that is not served.
    pub const NONE: Self = Self {
        v6: Addr::ANY_V6,
        router: Addr::ANY_V6,
        v4: Addr4 { octets: [0; 4] },
        bits: 0,
        controller: 0,
        mtu: 0,
    };

    /// Whether every bit of `bits` is set.
    pub const fn has(&self, bits: u32) -> bool {
        self.bits & bits == bits
    }
}

/// Data of a key of `lb_src_ranges`, an LPM trie: a service port and a prefix of clients' addresses. The prefix length counts the bits
/// of both.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RangeKey {
    /// Which one.
    pub service: ServiceId,
    /// Network order; what is beyond the prefix is zero.
    pub addr: [u8; 16],
}

impl RangeKey {
    /// The length of a prefix that is one address.
    pub const BITS: u32 = 32 + 128;
}

/// Key of `lb_src_ranges`: how many bits of a [`RangeKey`] count, and the bits.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RangePrefix {
    /// At most [`RangeKey::BITS`].
    pub bits: u32,
    /// The bits.
    pub key: RangeKey,
}

impl RangePrefix {
    /// Clients of a service port whose address begins with `len` bits of `addr`; those of IPv4 count from its own first bit.
    pub const fn new(service: ServiceId, addr: Addr, len: u8) -> Self {
        let before: u32 = if addr.is_v4() { 32 + 96 } else { 32 };
        Self { bits: before.saturating_add(len as u32), key: RangeKey { service, addr: addr.octets } }
    }
}

/// Value of `lb_ports`: four ports for masquerading in one word.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortList {
    /// The lowest 16 bits are the first one.
    pub four: u64,
}

impl PortList {
    /// At most four ports, the first one lowest.
    pub fn of(ports: &[u16]) -> Self {
        Self { four: ports.iter().rev().fold(0, |list, port| list << 16 | u64::from(*port)) }
    }

    /// Entries of the map: room for every port.
    pub const ENTRIES: u32 = 1 << 14;
}

const _: () = assert!(size_of::<RangePrefix>() == 24, "no implicit padding");
const _: () = assert!(size_of::<RangeKey>() == 20, "no implicit padding");
const _: () = assert!(size_of::<Device>() == 48, "no implicit padding");
