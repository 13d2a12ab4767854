//! Flows: what programs that see packets remember of a connection.
//!
//! Every flow has two entries, one for each direction, and either holds the whole rewrite of a packet that has its key:
//! an established flow costs one look-up per packet.

use core::{
    fmt::Debug,
    hash::{Hash, Hasher},
};

use super::{Addr, BackendId, Device, L4Addr, Proto, ServiceId, join16};

/// An address of one family, as wide as that family's addresses.
///
/// The flow tables are the only maps that are split by family: millions of entries, and IPv4 ones are half as large.
pub trait FlowAddr: Copy + PartialEq + Eq + PartialOrd + Ord + Debug {
    /// The unspecified address.
    const ZERO: Self;
    /// As 16 bytes, the form of every other map.
    fn widen(self) -> Addr;
    /// The family's part of an address of that family. What it gives for the other family means nothing.
    fn narrow(addr: Addr) -> Self;
    /// Folds the address into `x`.
    fn fold(self, x: u32) -> u32;
    /// What is masqueraded and leaves by a device has this source; nothing if the device has no address of the family.
    fn of_device(device: &Device) -> Option<Self>;
}

/// Folds a word into `x`. Two instructions: every packet of a flow pays for all words, and what is to be noticed is
/// another flow's value, not an attack.
#[inline(always)]
const fn step(x: u32, word: u32) -> u32 {
    x.rotate_left(11) ^ word
}

/// An IPv4 address, 4 bytes in network order.
#[repr(C, align(4))]
#[derive(Clone, Copy, Eq, PartialOrd, Ord, Debug)]
pub struct Addr4 {
    /// Network order.
    pub octets: [u8; 4],
}

impl Addr4 {
    /// As it lies in memory.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        u32::from_ne_bytes(self.octets)
    }
}

// In one word: a program compares arrays byte by byte.
impl PartialEq for Addr4 {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        self.word() == other.word()
    }
}

impl Hash for Addr4 {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.word().hash(state);
    }
}

impl FlowAddr for Addr4 {
    const ZERO: Self = Self { octets: [0; 4] };

    #[inline(always)]
    fn widen(self) -> Addr {
        Addr::from_v4(self.octets)
    }

    #[inline(always)]
    fn narrow(addr: Addr) -> Self {
        let [.., last] = addr.to_net_words();
        Self { octets: last.to_ne_bytes() }
    }

    #[inline(always)]
    fn fold(self, x: u32) -> u32 {
        step(x, self.word())
    }

    #[inline(always)]
    fn of_device(device: &Device) -> Option<Self> {
        (device.v4.word() != 0).then_some(device.v4)
    }
}

impl FlowAddr for Addr {
    const ZERO: Self = Self::ANY_V6;

    #[inline(always)]
    fn widen(self) -> Addr {
        self
    }

    #[inline(always)]
    fn narrow(addr: Addr) -> Self {
        addr
    }

    #[inline(always)]
    fn fold(self, x: u32) -> u32 {
        let [a, b, c, d] = self.to_net_words();
        step(step(step(step(x, a), b), c), d)
    }

    #[inline(always)]
    fn of_device(device: &Device) -> Option<Self> {
        (device.v6.to_net_words() != [0; 4]).then_some(device.v6)
    }
}

/// Both ends of a packet, and its protocol: the key of the flow tables.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FlowKey<A> {
    /// Source address, network order.
    pub src: A,
    /// Destination address, network order.
    pub dst: A,
    /// Source port, host order.
    pub sport: u16,
    /// Destination port, host order.
    pub dport: u16,
    /// IP protocol.
    pub proto: Proto,
    /// Zero.
    pub pad: [u8; 3],
}

impl<A: FlowAddr> FlowKey<A> {
    /// A packet from one end to another.
    #[inline(always)]
    pub fn new(from: L4Addr, to: L4Addr, proto: Proto) -> Self {
        Self {
            src: A::narrow(from.addr),
            dst: A::narrow(to.addr),
            sport: from.port,
            dport: to.port,
            proto,
            pad: [0; 3],
        }
    }

    /// Who sends.
    #[inline(always)]
    pub fn from(&self) -> L4Addr {
        L4Addr { addr: self.src.widen(), port: self.sport }
    }

    /// Who receives.
    #[inline(always)]
    pub fn to(&self) -> L4Addr {
        L4Addr { addr: self.dst.widen(), port: self.dport }
    }

    /// The same packet on its way back.
    #[inline(always)]
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, ..*self }
    }

    /// A fold of the key, see [`Flow::is_of`].
    #[inline(always)]
    fn fold(&self, x: u32) -> u32 {
        let x = self.dst.fold(self.src.fold(x));
        step(step(x, join16(self.sport, self.dport)), u32::from(self.proto.number))
    }
}

/// Which way packets with this key go.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Direction {
    /// From the client to the frontend.
    Original = 0,
    /// From the backend back.
    Reply = 1,
    /// Not a flow of ours, and packets with this key must open none: see [`Flow::foreign`].
    Foreign = 2,
}

/// Bits of [`Flow::state`]: what has been seen. Programs store the whole byte.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct FlowState {
    /// The bits.
    pub bits: u8,
}

impl FlowState {
    /// Nothing but the first packet.
    pub const NEW: Self = Self { bits: 0 };
    /// The backend has answered.
    pub const REPLIED: Self = Self { bits: 1 };
    /// The client has answered the backend's answer: the flow is kept whatever new ones come.
    pub const PROVEN: Self = Self { bits: 2 };
    /// Whoever sends in this direction has sent FIN.
    pub const FIN: Self = Self { bits: 4 };
    /// Somebody has sent RST.
    pub const RESET: Self = Self { bits: 8 };
    /// Both directions are proven and there was no room for the flow where it would be kept.
    pub const CROWDED: Self = Self { bits: 16 };

    /// Whether every bit of `other` is set.
    pub const fn has(self, other: Self) -> bool {
        self.bits & other.bits == other.bits
    }

    /// Whether this direction will carry nothing new: a SYN that has its key is another connection (RFC 9293 3.6.1).
    pub const fn is_closing(self) -> bool {
        self.bits & (Self::FIN.bits | Self::RESET.bits) != 0
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

/// Value of the flow tables: what becomes of a packet that has the key.
///
/// [`Flow::seen_s`] and [`Flow::state`] are stored in place while other CPUs read, so `check` does not cover them. The
/// rest never changes while the entry exists.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Flow<A> {
    /// New source address, network order.
    pub src: A,
    /// New destination address, network order.
    pub dst: A,
    /// New source port, host order.
    pub sport: u16,
    /// New destination port, host order.
    pub dport: u16,
    /// Interface that the client is behind: where the flow was opened, and where its replies leave.
    pub ifindex: u32,
    /// Who serves it.
    pub backend: BackendId,
    /// [`super::Backend::generation`] of that id when it was chosen.
    pub generation: u32,
    /// Which service port.
    pub service: ServiceId,
    /// When a packet was seen last, give or take a second: seconds of the monotonic clock, wrapping after 136 years.
    pub seen_s: u32,
    /// A [`Direction`].
    pub direction: u8,
    /// A [`FlowState`].
    pub state: FlowState,
    /// Bits: [`FlowBits`].
    pub bits: FlowBits,
    /// Zero.
    pub pad: u8,
    /// A fold of the key and of all above but `seen_s` and `state`.
    pub check: u32,
}

/// Bits of [`Flow::bits`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct FlowBits {
    /// The bits.
    pub bits: u8,
}

impl FlowBits {
    /// The backend sees an address of this node as the client's.
    pub const MASQUERADED: Self = Self { bits: 1 };

    /// Whether every bit of `other` is set.
    pub const fn has(self, other: Self) -> bool {
        self.bits & other.bits == other.bits
    }
}

/// What both entries of a new flow have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    /// Interface that the client is behind.
    pub ifindex: u32,
    /// Who serves it.
    pub backend: BackendId,
    /// Generation of that id.
    pub generation: u32,
    /// Which service port.
    pub service: ServiceId,
    /// What is special.
    pub bits: FlowBits,
    /// Now.
    pub now_s: u32,
}

impl Opened {
    /// Nothing.
    pub const NOTHING: Self = Self {
        ifindex: 0,
        backend: BackendId::NONE,
        generation: 0,
        service: ServiceId { index: 0 },
        bits: FlowBits { bits: 0 },
        now_s: 0,
    };
}

impl<A: FlowAddr> Flow<A> {
    /// Nobody's.
    pub const NONE: Self = Self {
        src: A::ZERO,
        dst: A::ZERO,
        sport: 0,
        dport: 0,
        ifindex: 0,
        backend: BackendId::NONE,
        generation: 0,
        service: ServiceId { index: 0 },
        seen_s: 0,
        direction: 0,
        state: FlowState::NEW,
        bits: FlowBits { bits: 0 },
        pad: 0,
        check: 0,
    };

    /// The entry of `key`: its packets become packets of `after`.
    #[inline(always)]
    pub fn new(key: &FlowKey<A>, after: &FlowKey<A>, direction: Direction, opened: &Opened) -> Self {
        let mut flow = Self {
            src: after.src,
            dst: after.dst,
            sport: after.sport,
            dport: after.dport,
            ifindex: opened.ifindex,
            backend: opened.backend,
            generation: opened.generation,
            service: opened.service,
            seen_s: opened.now_s,
            direction: direction as u8,
            state: FlowState::NEW,
            bits: opened.bits,
            pad: 0,
            check: 0,
        };
        flow.check = flow.fold(key);
        flow
    }

    /// The entry of a key whose packets are somebody else's: answers to what this node has sent itself from a port that is a
    /// NodePort too.
    #[inline(always)]
    pub fn foreign(key: &FlowKey<A>, now_s: u32) -> Self {
        let opened = Opened {
            ifindex: 0,
            backend: BackendId::NONE,
            generation: 0,
            service: ServiceId { index: 0 },
            bits: FlowBits::default(),
            now_s,
        };
        Self::new(key, key, Direction::Foreign, &opened)
    }

    /// A packet of `key` as it is afterwards.
    #[inline(always)]
    pub fn rewritten(&self, key: &FlowKey<A>) -> FlowKey<A> {
        FlowKey { src: self.src, dst: self.dst, sport: self.sport, dport: self.dport, ..*key }
    }

    /// The key of the other entry of the flow. A packet that was rewritten is answered by one of that key.
    #[inline(always)]
    pub fn other_key(&self, key: &FlowKey<A>) -> FlowKey<A> {
        self.rewritten(key).reversed()
    }

    /// Whether packets become those of `after`.
    #[inline(always)]
    pub fn leads_to(&self, after: &FlowKey<A>) -> bool {
        self.src == after.src
            && self.dst == after.dst
            && self.sport == after.sport
            && self.dport == after.dport
    }

    /// Whether packets become answers to `original`.
    #[inline(always)]
    pub fn restores(&self, original: &FlowKey<A>) -> bool {
        self.src == original.dst
            && self.dst == original.src
            && self.sport == original.dport
            && self.dport == original.sport
    }

    /// Whether the entry is that of `key`, and whole: the kernel reuses freed elements of a hash while they are read.
    #[inline(always)]
    pub fn is_of(&self, key: &FlowKey<A>) -> bool {
        self.check == self.fold(key)
    }

    /// Whether it goes this way.
    #[inline(always)]
    pub fn goes(&self, direction: Direction) -> bool {
        self.direction == direction as u8
    }

    #[inline(always)]
    fn fold(&self, key: &FlowKey<A>) -> u32 {
        let x = key.fold(0x666c);
        let x = step(self.dst.fold(self.src.fold(x)), join16(self.sport, self.dport));
        let kind = join16(u16::from(self.direction), u16::from(self.bits.bits));
        let x = step(step(step(x, kind), self.ifindex), self.service.index);
        step(step(x, self.backend.index), self.generation) | 1
    }
}

const _: () = {
    assert!(size_of::<FlowKey<Addr4>>() == 16, "no implicit padding");
    assert!(size_of::<FlowKey<Addr>>() == 40, "no implicit padding");
    assert!(size_of::<Flow<Addr4>>() == 8 + 4 + 20 + 4 + 4, "no implicit padding");
    assert!(size_of::<Flow<Addr>>() == 64, "no implicit padding");
};
