//! What a packet experiences that no socket hook has translated, at tc and at XDP.
//!
//! ```text
//! parse    bytes -> Headers: both ends, protocol, what the segment says
//! ingress  a packet that comes from a device: a client's is translated, an answer to a masqueraded one restored
//! egress   a packet that leaves by a device: an answer to a client behind it is restored
//! open     the first packet of a flow: who serves it, from which address, or why nobody does
//! icmp     an error about a packet of a flow is translated like an answer to it
//! fragment pieces of datagrams have the ports of the first one
//! express  at XDP, packets of known flows from one machine to another one; everything else is left to tc
//! unallocated   nobody is to answer where no Service is, but could be
//! refuse   a packet that nobody serves -> the answer to its sender
//! ```
//!
//! Rule of symmetry: ingress of the device nearest to the client translates, egress of the same device restores. What is
//! masqueraded is answered to an address of this node and restored at ingress, wherever it arrives.
//!
//! A flow has two entries, one for each direction, and each holds the whole rewrite: an established flow costs one look-up per
//! packet. A new one has its entries in a small LRU table, [`Table::New`], where a flood can evict it; when the client has
//! acknowledged the backend's answer, it is proven and goes to [`Table::Kept`], which only the agent empties. Copies would
//! stay in the small table for long, because they were used, and newer flows would be evicted in their place.

pub mod crc32c;
pub mod express;
#[cfg(test)]
mod express_tests;
pub mod fragment;
#[cfg(test)]
mod fragment_tests;
mod icmp;
#[cfg(test)]
mod icmp_tests;
#[cfg(test)]
mod net;
mod open;
#[cfg(test)]
mod open_tests;
pub mod parse;
#[cfg(test)]
mod parse_tests;
#[cfg(test)]
mod policy_tests;
pub mod refuse;
#[cfg(test)]
mod refuse_tests;
pub mod rewrite;
#[cfg(test)]
mod rewrite_tests;
#[cfg(test)]
mod sctp_tests;
mod track;
#[cfg(test)]
mod track_tests;
mod unallocated;

use crate::abi::{
    Addr, Flow, FlowAddr, FlowKey, FlowState, FragmentKey, FragmentPorts, Opened, PacketLb, Proto, ServiceId,
};
pub use icmp::{Errors, icmp, retell};
pub use open::{begin, commit, reserve};
use parse::{Fragment, Headers, Piece};
pub use track::UDP_IDLE_S;

use super::{select::Room, tables::Tables};

/// Which way a packet goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Side {
    /// It comes from the device.
    Ingress = 0,
    /// It leaves by it.
    Egress = 1,
}

/// Which flow table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Table {
    /// `lb_new4`, `lb_new6`: least recently used entries make room.
    New,
    /// `lb_flows4`, `lb_flows6`: the agent collects what is over.
    Kept,
}

/// Where packets to an address leave this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// By this device.
    Out {
        /// Its interface index.
        ifindex: u32,
    },
    /// Nowhere: the address is this node's own.
    Local,
    /// There is no way.
    None,
}

/// Where a device is: of its entry only what decisions need, because a program's stack is small.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// [`Device::bits`](crate::abi::Device::bits)
    pub bits: u32,
    /// [`Device::controller`](crate::abi::Device::controller)
    pub controller: u32,
}

/// What packets of one family may ask of the world.
pub trait Flows<A: FlowAddr>: Tables {
    /// Copies the entry of a key, and says where it is: [`Table::Kept`] first. May be another key's, see [`Flow::is_of`].
    fn flow(&self, key: &FlowKey<A>, into: &mut Flow<A>) -> Option<Table>;
    /// Writes an entry; without `replaces` only where there is none. False if nothing was written.
    fn put_flow(&self, table: Table, key: &FlowKey<A>, flow: &Flow<A>, replaces: bool) -> bool;
    /// Deletes an entry.
    fn remove_flow(&self, table: Table, key: &FlowKey<A>);
    /// Deletes both entries of a flow in [`Table::New`], which are in [`Table::Kept`] by now.
    fn move_on(&self, key: &FlowKey<A>, answers: &FlowKey<A>);
    /// Stores [`Flow::seen_s`] of an entry, if it exists.
    fn put_seen(&self, table: Table, key: &FlowKey<A>, now_s: u32);
    /// Stores [`Flow::state`] of an entry, if it exists.
    fn put_state(&self, table: Table, key: &FlowKey<A>, state: FlowState);
    /// Seconds of a clock that does not jump, wrapping.
    fn now_s(&self) -> u32;
    /// What is known of a device.
    fn device(&self, ifindex: u32) -> Option<Place>;
    /// Whether the packet at hand was sent to another machine on the link, and is only seen here.
    fn is_overheard(&self) -> bool;
    /// What is masqueraded and leaves by a device has this source; nothing if it has none.
    fn source_at(&self, ifindex: u32) -> Option<A>;
    /// Where a packet of `key` leaves.
    fn route(&self, key: &FlowKey<A>) -> Route;
    /// A port for masquerading, chosen by `random`; nothing if there is none at all.
    fn masquerade_port(&self, random: u32) -> Option<u16>;
    /// Whether `client` is in the source ranges of a service port (SR-2).
    fn allows(&self, service: ServiceId, client: Addr) -> bool;
    /// The ports of pieces of a datagram. May be another key's, see [`FragmentPorts::is_of`].
    fn ports(&self, key: &FragmentKey) -> Option<FragmentPorts>;
    /// Writes them. False if nothing was written.
    fn put_ports(&self, key: &FragmentKey, ports: FragmentPorts) -> bool;
    /// Whether one more ICMP error may be sent: [`refuse::Budget::take`].
    fn may_tell(&self) -> bool;
    /// [`begin()`], as a function that a verifier looks at once, and not on every way that leads to it.
    fn begin(&self, ifindex: u32, work: &mut Work<A>) -> Verdict;
    /// [`reserve()`], likewise.
    fn reserve(&self, work: &mut Work<A>) -> bool;
    /// [`commit()`], likewise.
    fn commit(&self, work: &mut Work<A>, former: Option<Table>) -> Verdict;
    /// [`fragment::first`], likewise.
    fn first(&self, side: Side, work: &mut Work<A>, id: u32);
    /// [`fragment::later`], likewise.
    fn later(&self, side: Side, work: &mut Work<A>, id: u32) -> bool;
}

/// What happens to a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Not ours: it stays as it is.
    Pass,
    /// Nobody is to answer.
    Drop,
    /// The sender is told that nobody serves this: TCP by a reset, everything else by port unreachable (NE-1).
    Refuse,
    /// It gets the ends [`Work::after`] and goes this way.
    Translate(Way),
}

/// What is worked out of one packet: in memory that the caller has, because a program's stack is small.
#[derive(Clone, Copy, Debug)]
pub struct Work<A> {
    /// The packet.
    pub packet: Headers<A>,
    /// Both its ends afterwards, if it is translated.
    pub after: FlowKey<A>,
    /// The entry of its key.
    flow: Flow<A>,
    /// The key of packets that go the other way.
    answers: FlowKey<A>,
    /// The entry of that key.
    entry: Flow<A>,
    opened: Opened,
    room: Room,
    /// The packet that an ICMP error quotes.
    quoted: Headers<A>,
    /// Both its ends afterwards.
    quoted_after: FlowKey<A>,
    /// [`Flows::now_s`], once.
    now_s: u32,
}

impl<A: FlowAddr> Work<A> {
    /// For a packet.
    pub const fn new(packet: Headers<A>) -> Self {
        Self {
            packet,
            after: packet.key,
            flow: Flow::NONE,
            answers: packet.key,
            entry: Flow::NONE,
            opened: Opened::NOTHING,
            room: Room::EMPTY,
            quoted: packet,
            quoted_after: packet.key,
            now_s: 0,
        }
    }
}

/// Where a packet goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Where it was going: up the stack, or out of the device.
    On,
    /// Where the routes lead, past the stack: its source is an address of this node, which the stack takes from nobody.
    Routed,
    /// Out of this device, past the stack.
    Device {
        /// Its interface index.
        ifindex: u32,
    },
}

/// What is known of a packet that comes from a device, once its flow was looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// Nearly always: what happens to it.
    Decided(Verdict),
    /// It may open a flow: [`open()`] decides.
    Opens {
        /// Where [`Work`] has the entry of a flow with the same ends, which is over.
        former: Option<Table>,
    },
}

/// Decides a packet that comes from the device `ifindex`.
#[inline(always)]
pub fn ingress<A: FlowAddr, W: Flows<A>>(world: &W, ifindex: u32, work: &mut Work<A>) -> Verdict {
    match see(world, work) {
        Seen::Decided(verdict) => verdict,
        Seen::Opens { former } => open(world, ifindex, work, former),
    }
}

/// Looks for the flow of a packet that comes from a device.
#[inline(always)]
pub fn see<A: FlowAddr, W: Flows<A>>(world: &W, work: &mut Work<A>) -> Seen {
    work.now_s = world.now_s();
    if is_lost(world, Side::Ingress, work) {
        return Seen::Decided(Verdict::Pass);
    }
    let former = track::find(world, &work.packet.key, &mut work.flow);
    if let Some(table) = former
        && let Some(verdict) = track::ingress(world, work, table)
    {
        note_ports(world, Side::Ingress, work, verdict);
        return Seen::Decided(verdict);
    }
    if former.is_none() && !work.packet.opens() && !may_join(world, &work.packet) {
        return Seen::Decided(Verdict::Pass);
    }
    Seen::Opens { former }
}

/// Decides a packet that may open a flow, from the device `ifindex`; `former` as [`see`] has said.
#[inline(always)]
pub fn open<A: FlowAddr, W: Flows<A>>(
    world: &W,
    ifindex: u32,
    work: &mut Work<A>,
    former: Option<Table>,
) -> Verdict {
    let verdict = open::open(world, ifindex, work, former);
    note_ports(world, Side::Ingress, work, verdict);
    verdict
}

/// Whether a packet that begins no connection is worth a look for whose it is: of TCP, where some Service chooses by Maglev. Nearly
/// everything that nobody here has a flow of is not a Service's, so others pay nothing for it.
#[inline(always)]
fn may_join<A: FlowAddr, W: Flows<A>>(world: &W, packet: &Headers<A>) -> bool {
    packet.key.proto == Proto::TCP && world.config().packets.has(PacketLb::MAGLEV)
}

/// Decides a packet that leaves by the device `ifindex`.
#[inline(always)]
pub fn egress<A: FlowAddr, W: Flows<A>>(world: &W, ifindex: u32, work: &mut Work<A>) -> Verdict {
    work.now_s = world.now_s();
    if is_lost(world, Side::Egress, work) {
        return Verdict::Pass;
    }
    let Some(table) = track::find(world, &work.packet.key, &mut work.flow) else {
        open::note_foreign(world, work);
        return unallocated::decide(world, &work.packet);
    };
    let verdict = track::egress(world, ifindex, work, table);
    note_ports(world, Side::Egress, work, verdict);
    verdict
}

/// Whether a packet is a later piece of a datagram that is not known; others get their ports.
#[inline(always)]
fn is_lost<A: FlowAddr, W: Flows<A>>(world: &W, side: Side, work: &mut Work<A>) -> bool {
    let Fragment { piece, id } = work.packet.fragment;
    piece == Piece::Later && !world.later(side, work, id)
}

/// The later pieces of what is translated will go the same way.
#[inline(always)]
fn note_ports<A: FlowAddr, W: Flows<A>>(world: &W, side: Side, work: &mut Work<A>, verdict: Verdict) {
    let Fragment { piece, id } = work.packet.fragment;
    if piece == Piece::First && matches!(verdict, Verdict::Translate(_)) {
        world.first(side, work, id);
    }
}
