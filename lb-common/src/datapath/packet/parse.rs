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

/// Whether a packet is a piece of a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u32)]
pub enum Fragment {
    /// All of it.
    #[default]
    Whole = 0,
    /// The first piece, which has the ports. The number is what all pieces share.
    First(u32) = 1,
    /// A later one, without ports.
    Later(u32) = 2,
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
        let has_ports = !matches!(self.fragment, Fragment::Later(_));
        (has_ports && self.key.proto.number == Proto::UDP.number) || self.asks()
    }

    /// Whether this packet asks for a connection, which the one after it will be part of.
    #[inline(always)]
    pub const fn asks(&self) -> bool {
        self.tcp.opens()
    }
}

/// An IPv4 packet whose header begins at `l3` (RFC 791).
#[inline(always)]
pub fn v4<P: Packet>(packet: &P, l3: usize) -> Option<Headers<Addr4>> {
    let ip = packet.part::<20>(l3)?;
    let [version_ihl, _tos] = ip.load16(0).to_be_bytes();
    let header = usize::from(version_ihl & 15).wrapping_mul(4);
    if version_ihl >> 4 != 4 || header < 20 {
        return None;
    }
    let [ttl, number] = ip.load16(8).to_be_bytes();
    let piece = ip.load16(6);
    let fragment = match piece & 0x3fff {
        0 => Fragment::Whole,
        piece if piece & 0x1fff == 0 => Fragment::First(u32::from(ip.load16(4))),
        _ => Fragment::Later(u32::from(ip.load16(4))),
    };
    let ends = (Addr4 { octets: ip.load32(12) }, Addr4 { octets: ip.load32(16) });
    let l4 = l3.wrapping_add(header);
    transport(packet, Layout { l4, ttl, fragment }, ends, Proto { number })
}

/// Extension headers that are looked behind at most, and their bytes together.
const MOST_EXTENSIONS: usize = 4;
/// See [`MOST_EXTENSIONS`].
pub const MOST_EXTENSION_BYTES: usize = 256;
const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// An IPv6 packet whose header begins at `l3` (RFC 8200), behind extension headers that change nothing: a routing header makes
/// the destination another one, and what it hides is left alone.
#[inline(always)]
pub fn v6<P: Packet>(packet: &P, l3: usize) -> Option<Headers<Addr>> {
    let ip = packet.part::<40>(l3)?;
    let [version, _class] = ip.load16(0).to_be_bytes();
    if version >> 4 != 6 {
        return None;
    }
    let [mut next, ttl] = ip.load16(6).to_be_bytes();
    let ends = (load_v6(&ip, 8), load_v6(&ip, 24));
    let mut l4 = l3.wrapping_add(40);
    let mut fragment = Fragment::Whole;
    for _ in 0..MOST_EXTENSIONS {
        if !matches!(next, HOP_BY_HOP | FRAGMENT | DESTINATION_OPTIONS) {
            break;
        }
        let extension = packet.part::<8>(l4)?;
        let [following, words] = extension.load16(0).to_be_bytes();
        if next == FRAGMENT {
            let offset = extension.load16(2);
            let id = u32::from_be_bytes(extension.load32(4));
            // An atomic fragment (RFC 6946) is a whole packet.
            fragment = match offset & 0xfff9 {
                0 => Fragment::Whole,
                offset if offset & 0xfff8 == 0 => Fragment::First(id),
                _ => Fragment::Later(id),
            };
            l4 = l4.wrapping_add(8);
        } else {
            l4 = l4.wrapping_add(usize::from(words).wrapping_add(1).wrapping_mul(8));
        }
        next = following;
        if l4 > l3.wrapping_add(40 + MOST_EXTENSION_BYTES) {
            return None;
        }
    }
    transport(packet, Layout { l4, ttl, fragment }, ends, Proto { number: next })
}

#[inline(always)]
fn load_v6<P: Part>(part: &P, at: usize) -> Addr {
    let words = [0, 4, 8, 12].map(|word| u32::from_ne_bytes(part.load32(at.wrapping_add(word))));
    Addr::from_net_words(words)
}

/// What the IP headers say beside the ends.
struct Layout {
    l4: usize,
    ttl: u8,
    fragment: Fragment,
}

#[inline(always)]
fn transport<P: Packet, A>(
    packet: &P,
    Layout { l4, ttl, fragment }: Layout,
    (src, dst): (A, A),
    proto: Proto,
) -> Option<Headers<A>> {
    let mut key = FlowKey { src, dst, sport: 0, dport: 0, proto, pad: [0; 3] };
    let mut tcp = TcpFlags::default();
    if !matches!(fragment, Fragment::Later(_)) {
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
