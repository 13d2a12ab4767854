//! Bytes -> [`Headers`]: what the decisions need to know of a packet.
//!
//! Whatever is not understood is nothing: the packet goes on untouched, and the kernel, which checks more, deals with it.

use crate::abi::{Addr, Addr4, FlowKey, Proto};

/// Bytes of one packet. Offsets count from the first byte that a program sees: the Ethernet header, or the IP header on
/// devices without one.
pub trait Packet {
    /// A part of it.
    type Part: Part;

    /// `LEN` bytes from `offset` on; nothing if a program may not read that far.
    ///
    /// One check for a whole header: the verifier remembers it for the pointer that was checked.
    fn part<const LEN: usize>(&self, offset: usize) -> Option<Self::Part>;
}

/// Some bytes that may be read. Offsets are below the length that was asked for; what is beyond reads as 0 on the host, and no
/// verifier accepts the program that tries.
pub trait Part {
    /// Two bytes in network order, as a number.
    fn load16(&self, offset: usize) -> u16;
    /// Four bytes as they lie in memory.
    fn load32(&self, offset: usize) -> [u8; 4];
}

/// TCP control bits (RFC 9293 3.1), in their place in the header's 14th byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TcpFlags {
    /// The bits; 0 for other protocols.
    pub bits: u8,
}

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: Self = Self { bits: 1 };
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self { bits: 2 };
    /// Reset the connection.
    pub const RST: Self = Self { bits: 4 };
    /// The acknowledgement number is valid.
    pub const ACK: Self = Self { bits: 16 };

    /// Whether every bit of `other` is set.
    pub const fn has(self, other: Self) -> bool {
        self.bits & other.bits == other.bits
    }

    /// Whether this begins a connection: SYN without ACK, and nothing that contradicts it.
    pub const fn opens(self) -> bool {
        let asked = Self::SYN.bits | Self::ACK.bits | Self::RST.bits | Self::FIN.bits;
        self.bits & asked == Self::SYN.bits
    }
}

/// Which piece of a datagram a packet is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u32)]
pub enum Piece {
    /// All of it.
    #[default]
    Whole = 0,
    /// The first one, which has the ports.
    First = 1,
    /// A later one, without ports.
    Later = 2,
}

/// Whether a packet is a piece of a datagram. Not an enum with fields: what one does not have would be memory that was never written,
/// which no verifier lets a program copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fragment {
    /// Which one.
    pub piece: Piece,
    /// The number that all pieces share; 0 for a whole one.
    pub id: u32,
}

impl Fragment {
    /// No piece.
    pub const WHOLE: Self = Self { piece: Piece::Whole, id: 0 };

    /// The first one.
    pub const fn first(id: u32) -> Self {
        Self { piece: Piece::First, id }
    }

    /// A later one.
    pub const fn later(id: u32) -> Self {
        Self { piece: Piece::Later, id }
    }

    /// Whether it has no ports.
    pub const fn is_later(self) -> bool {
        matches!(self.piece, Piece::Later)
    }
}

/// What the decisions need to know of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Headers<A> {
    /// Both ends. Ports are 0 where the packet has none: ICMP, later fragments.
    pub key: FlowKey<A>,
    /// Where the L4 header begins.
    pub l4: usize,
    /// Of TCP.
    pub tcp: TcpFlags,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Whether it is a piece.
    pub fragment: Fragment,
}

/// What an SCTP chunk says, in TCP's words (RFC 9260 3.2): INIT, ABORT, SHUTDOWN, SHUTDOWN ACK, SHUTDOWN COMPLETE.
const fn chunk(number: u8) -> TcpFlags {
    match number {
        1 => TcpFlags::SYN,
        6 => TcpFlags::RST,
        7 | 8 | 14 => TcpFlags::FIN,
        _ => TcpFlags { bits: 0 },
    }
}

impl<A> Headers<A> {
    /// Whether this packet may open a flow: everything of UDP, the first segment of TCP, the first chunk of SCTP. Others
    /// belong to flows that somebody else knows, or nobody.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        let has_ports = !self.fragment.is_later();
        (has_ports && self.key.proto.number == Proto::UDP.number) || self.asks()
    }

    /// Whether this packet asks for a connection, which the one after it will be part of.
    #[inline(always)]
    pub const fn asks(&self) -> bool {
        self.tcp.opens()
    }
}

/// Bits of the seventh and eighth byte of an IPv4 header.
const MORE_FRAGMENTS: u16 = 0x2000;
/// See [`MORE_FRAGMENTS`].
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// An IPv4 packet whose header begins at `l3` (RFC 791).
#[inline(always)]
pub fn v4<P: Packet>(packet: &P, l3: usize) -> Option<Headers<Addr4>> {
    transport(packet, layout_v4(packet, l3)?)
}

/// An IPv4 packet that an ICMP error quotes: see `quoted`.
#[inline(always)]
pub fn quoted_v4<P: Packet>(packet: &P, l3: usize) -> Option<Headers<Addr4>> {
    quoted(packet, layout_v4(packet, l3)?)
}

#[inline(always)]
fn layout_v4<P: Packet>(packet: &P, l3: usize) -> Option<Layout<Addr4>> {
    let ip = packet.part::<20>(l3)?;
    let [version_ihl, _tos] = ip.load16(0).to_be_bytes();
    let header = usize::from(version_ihl & 15).wrapping_mul(4);
    if version_ihl >> 4 != 4 || header < 20 {
        return None;
    }
    let [ttl, number] = ip.load16(8).to_be_bytes();
    let piece = ip.load16(6);
    let fragment = match piece & (MORE_FRAGMENTS | FRAGMENT_OFFSET) {
        0 => Fragment::WHOLE,
        piece if piece & FRAGMENT_OFFSET == 0 => Fragment::first(u32::from(ip.load16(4))),
        _ => Fragment::later(u32::from(ip.load16(4))),
    };
    let ends = (Addr4 { octets: ip.load32(12) }, Addr4 { octets: ip.load32(16) });
    Some(Layout { l4: l3.wrapping_add(header), ttl, fragment, ends, proto: Proto { number } })
}

/// Extension headers that are looked behind at most, and their bytes together.
const MOST_EXTENSIONS: usize = 4;
/// See `MOST_EXTENSIONS`.
pub const MOST_EXTENSION_BYTES: usize = 256;
const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// An IPv6 packet whose header begins at `l3` (RFC 8200), behind extension headers that change nothing: a routing header makes
/// the destination another one, and what it hides is left alone.
#[inline(always)]
pub fn v6<P: Packet>(packet: &P, l3: usize) -> Option<Headers<Addr>> {
    transport(packet, layout_v6(packet, l3)?)
}

/// An IPv6 packet that an ICMP error quotes: see `quoted`. Behind a fragment header, which nearly all of those have that have any.
#[inline(always)]
pub fn quoted_v6<P: Packet>(packet: &P, l3: usize) -> Option<Headers<Addr>> {
    let ip = packet.part::<40>(l3)?;
    let [version, _class] = ip.load16(0).to_be_bytes();
    if version >> 4 != 6 {
        return None;
    }
    let [next, ttl] = ip.load16(6).to_be_bytes();
    let ends = (load_v6(&ip, 8), load_v6(&ip, 24));
    let l4 = l3.wrapping_add(40);
    let whole = Layout { l4, ttl, fragment: Fragment::WHOLE, ends, proto: Proto { number: next } };
    if next != FRAGMENT {
        return quoted(packet, whole);
    }
    let extension = packet.part::<8>(l4)?;
    let [following, _] = extension.load16(0).to_be_bytes();
    let fragment = piece_v6(&extension);
    quoted(packet, Layout { l4: l4.wrapping_add(8), fragment, proto: Proto { number: following }, ..whole })
}

/// What a fragment header says (RFC 8200 4.5).
#[inline(always)]
fn piece_v6<P: Part>(extension: &P) -> Fragment {
    let id = u32::from_be_bytes(extension.load32(4));
    // An atomic fragment (RFC 6946) is a whole packet.
    match extension.load16(2) & 0xfff9 {
        0 => Fragment::WHOLE,
        offset if offset & 0xfff8 == 0 => Fragment::first(id),
        _ => Fragment::later(id),
    }
}

#[inline(always)]
fn layout_v6<P: Packet>(packet: &P, l3: usize) -> Option<Layout<Addr>> {
    let ip = packet.part::<40>(l3)?;
    let [version, _class] = ip.load16(0).to_be_bytes();
    if version >> 4 != 6 {
        return None;
    }
    let [mut next, ttl] = ip.load16(6).to_be_bytes();
    let ends = (load_v6(&ip, 8), load_v6(&ip, 24));
    let mut l4 = l3.wrapping_add(40);
    let mut fragment = Fragment::WHOLE;
    for _ in 0..MOST_EXTENSIONS {
        if !matches!(next, HOP_BY_HOP | FRAGMENT | DESTINATION_OPTIONS) {
            break;
        }
        let extension = packet.part::<8>(l4)?;
        let [following, words] = extension.load16(0).to_be_bytes();
        if next == FRAGMENT {
            fragment = piece_v6(&extension);
            l4 = l4.wrapping_add(8);
        } else {
            l4 = l4.wrapping_add(usize::from(words).wrapping_add(1).wrapping_mul(8));
        }
        next = following;
        if l4 > l3.wrapping_add(40 + MOST_EXTENSION_BYTES) {
            return None;
        }
    }
    Some(Layout { l4, ttl, fragment, ends, proto: Proto { number: next } })
}

#[inline(always)]
fn load_v6<P: Part>(part: &P, at: usize) -> Addr {
    let words = [0, 4, 8, 12].map(|word| u32::from_ne_bytes(part.load32(at.wrapping_add(word))));
    Addr::from_net_words(words)
}

/// What the IP headers say.
struct Layout<A> {
    l4: usize,
    ttl: u8,
    fragment: Fragment,
    ends: (A, A),
    proto: Proto,
}

/// Of a quoted packet eight bytes behind the IP headers are there (RFC 792), which is enough for the ports. Nothing if it has none.
#[inline(always)]
fn quoted<P: Packet, A>(packet: &P, layout: Layout<A>) -> Option<Headers<A>> {
    let Layout { l4, ttl, fragment, ends: (src, dst), proto } = layout;
    if fragment.is_later() || !matches!(proto, Proto::TCP | Proto::UDP | Proto::SCTP) {
        return None;
    }
    let part = packet.part::<8>(l4)?;
    let key = FlowKey { src, dst, sport: part.load16(0), dport: part.load16(2), proto, pad: [0; 3] };
    Some(Headers { key, l4, tcp: TcpFlags::default(), ttl, fragment })
}

#[inline(always)]
fn transport<P: Packet, A>(packet: &P, layout: Layout<A>) -> Option<Headers<A>> {
    let Layout { l4, ttl, fragment, ends: (src, dst), proto } = layout;
    let mut key = FlowKey { src, dst, sport: 0, dport: 0, proto, pad: [0; 3] };
    let mut tcp = TcpFlags::default();
    if !fragment.is_later() {
        let part = match proto {
            Proto::TCP => {
                let part = packet.part::<20>(l4)?;
                let [_, bits] = part.load16(12).to_be_bytes();
                tcp = TcpFlags { bits };
                part
            }
            Proto::UDP => packet.part::<8>(l4)?,
            Proto::SCTP => {
                let part = packet.part::<16>(l4)?;
                let [number, _] = part.load16(12).to_be_bytes();
                tcp = chunk(number);
                part
            }
            _ => return Some(Headers { key, l4, tcp, ttl, fragment }),
        };
        (key.sport, key.dport) = (part.load16(0), part.load16(2));
    }
    Some(Headers { key, l4, tcp, ttl, fragment })
}
