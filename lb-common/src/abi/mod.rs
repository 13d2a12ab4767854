//! The words that both sides speak: layouts of keys and values, map names, reasons, layout versions.
//!
//! | map | kind | key -> value | written by |
//! |---|---|---|---|
//! | [`maps::FRONTENDS`] | hash | [`FrontendKey`] -> [`Frontend`] | agent; a value never changes |
//! | [`maps::ADDRESSES`] | hash | [`Addr`] -> [`Address`] | agent |
//! | [`maps::SERVICES`] | mmapable array | service id -> [`Service`] | agent, one aligned 8-byte store per change |
//! | [`maps::SLOTS`] | mmapable array | slot -> [`Slot`] | agent, into free space, then published by a [`Run`] |
//! | [`maps::BACKENDS`] | mmapable array | backend id -> [`Backend`] | agent, one aligned 8-byte store |
//! | [`maps::NETNS`] | hash | netns cookie -> [`Netns`] | `lb-agent netns` |
//! | [`maps::CONFIG`] | mmapable array | 0 -> [`Config`] | agent; the second word `lb-agent netns` |
//! | [`maps::META`] | mmapable array | [`meta`] index -> u64 | agent |
//! | [`maps::SOCK_TCP`] | socket storage | socket -> [`SockTcp`] | programs |
//! | [`maps::SOCK_UDP`] | socket storage | socket -> [`SockUdp`] | programs |
//! | [`maps::AFFINITY`] | LRU hash | [`AffinityKey`] -> [`Affinity`] | programs |
//! | [`maps::REASONS`] | per-CPU array | [`Reason`] -> u64 | programs |
//!
//! Addresses are 16 bytes in network order, IPv4 as IPv4-mapped. Ports and all other numbers are in host order, so
//! that `bpftool map dump` prints them as people write them. Every struct is `repr(C)`; padding is a field and zero.

mod addr;
mod affinity;
mod backend;
mod config;
mod device;
mod flow;
mod fragment;
mod frontend;
pub mod maps;
pub mod meta;
#[cfg(feature = "user")]
mod pod;
mod probe;
mod reason;
mod service;
mod sock;

pub use addr::{Addr, L4Addr, Proto};
pub use affinity::{Affinity, AffinityKey, Client};
pub use backend::{Backend, BackendId, BackendState, Slot};
pub use config::{Address, Config, Cover, Netns, PacketLb, SocketLb};
pub use device::{Device, PortList, RangeKey, RangePrefix};
pub use flow::{Addr4, Direction, Flow, FlowAddr, FlowBits, FlowKey, FlowState, Opened};
pub use fragment::{FragmentKey, FragmentPorts};
pub use frontend::{Frontend, FrontendKey, FrontendKind};
pub use probe::Probe;
pub use reason::Reason;
pub use service::{Draining, Run, Service, ServiceFlags, ServiceId, Turn};
pub use sock::{SockTcp, SockUdp, UDP_PEERS, UdpPeer};

/// A map value that programs and the agent exchange in aligned 8-byte words, each loaded and stored whole.
///
/// A reader may see some words of an old value beside some of a new one, never half a word; which mixtures exist
/// and why each is valid is the write order's business (ARCHITECTURE, "Write order").
pub trait Words<const N: usize>: Sized {
    /// The value as it lies in the map, word by word, in host byte order.
    fn to_words(&self) -> [u64; N];
    /// The value whose words are `words`. Unknown bits in enumerations read as their zero value.
    fn from_words(words: [u64; N]) -> Self;
}

/// Joins two 32-bit fields in memory order into one word.
pub const fn join32(first: u32, second: u32) -> u64 {
    let [a, b, c, d] = first.to_ne_bytes();
    let [e, f, g, h] = second.to_ne_bytes();
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// The two 32-bit fields of a word, in memory order.
pub const fn split32(word: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]))
}

/// Joins two 16-bit fields in memory order into 32 bits.
const fn join16(first: u16, second: u16) -> u32 {
    let [a, b] = first.to_ne_bytes();
    let [c, d] = second.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

/// The two 16-bit fields of 32 bits, in memory order.
const fn split16(half: u32) -> (u16, u16) {
    let [a, b, c, d] = half.to_ne_bytes();
    (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]))
}

/// Mixes four words into an accumulator; every bit of the input reaches the result.
const fn mix(mut x: u32, [a, b, c, d]: [u32; 4]) -> u32 {
    x = (x ^ a).wrapping_mul(0x9e37_79b1).rotate_left(13);
    x = (x ^ b).wrapping_mul(0x85eb_ca77).rotate_left(13);
    x = (x ^ c).wrapping_mul(0xc2b2_ae3d).rotate_left(13);
    (x ^ d).wrapping_mul(0x27d4_eb2f).rotate_left(13)
}
