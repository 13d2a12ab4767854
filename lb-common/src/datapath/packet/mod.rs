//! What a packet experiences that no socket hook has translated, at tc and at XDP.
//!
//! ```text
//! parse    bytes -> Headers: both ends, protocol, what the segment says
//! ingress  a packet that comes from a device: a client's is translated, an answer to a masqueraded one restored
//! egress   a packet that leaves by a device: an answer to a client behind it is restored
//! open     the first packet of a flow: who serves it, from which address, or why nobody does
//! ```
//!
//! Rule of symmetry: ingress of the device nearest to the client translates, egress of the same device restores. What is
//! masqueraded is answered to an address of this node and restored at ingress, wherever it arrives.
//!
//! A flow has two entries, one for each direction, and each holds the whole rewrite: an established flow costs one look-up per
//! packet. A new one has its entries in a small LRU table, [`Table::New`], where a flood can evict it; when the client has
//! acknowledged the backend's answer, it is proven and goes to [`Table::Kept`], which only the agent empties. Copies that
//! stay in the small table until then hurt nobody, because the other one is asked first; deleting them at once would let a
//! packet that looks between the two find none.

#[cfg(test)]
mod net;
mod open;
#[cfg(test)]
mod open_tests;
pub mod parse;
mod track;
#[cfg(test)]
mod track_tests;


use crate::abi::{Addr, Device, Flow, FlowAddr, FlowKey, FlowState, ServiceId};
pub use open::open;
use parse::Headers;

use super::tables::Tables;

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

/// What packets of one family may ask of the world.
pub trait Flows<A: FlowAddr>: Tables {
    /// Copies the entry of a key, and says where it is: [`Table::Kept`] first. May be another key's, see [`Flow::is_of`].
    fn flow(&self, key: &FlowKey<A>, into: &mut Flow<A>) -> Option<Table>;
    /// Writes an entry; without `replaces` only where there is none. False if nothing was written.
    fn put_flow(&self, table: Table, key: &FlowKey<A>, flow: &Flow<A>, replaces: bool) -> bool;
    /// Deletes an entry.
    fn remove_flow(&self, table: Table, key: &FlowKey<A>);
    /// Stores [`Flow::seen_s`] of an entry, if it exists.
    fn put_seen(&self, table: Table, key: &FlowKey<A>, now_s: u32);
    /// Stores [`Flow::state`] of an entry, if it exists.
    fn put_state(&self, table: Table, key: &FlowKey<A>, state: FlowState);
    /// Seconds of a clock that does not jump, wrapping.
    fn now_s(&self) -> u32;
    /// What is known of a device.
    fn device(&self, ifindex: u32) -> Option<Device>;
    /// Where a packet of `key` leaves.
    fn route(&self, key: &FlowKey<A>) -> Route;
    /// A port for masquerading, chosen by `random`; nothing if there is none at all.
    fn masquerade_port(&self, random: u32) -> Option<u16>;
    /// Whether `client` is in the source ranges of a service port (SR-2).
    fn allows(&self, service: ServiceId, client: Addr) -> bool;
    /// [`open()`], in a frame of its own where frames are small.
    fn open(&self, ifindex: u32, packet: &Headers<A>, former: Option<&Former<A>>) -> Verdict<A>;
}

/// What happens to a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict<A> {
    /// Not ours: it stays as it is.
    Pass,
    /// Nobody is to answer.
    Drop,
    /// The sender is told that nobody serves this: TCP by a reset, everything else by port unreachable (NE-1).
    Refuse,
    /// It becomes another one.
    Translate(Translation<A>),
}

/// A packet's new ends, and where it goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation<A> {
    /// Both ends afterwards.
    pub after: FlowKey<A>,
    /// Where it goes.
    pub way: Way,
}

/// A flow that is over and had the same ends as the one that begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Former<A> {
    /// Where its client's entry is.
    pub table: Table,
    /// The key of its answers; that of its client where it had none.
    pub answers: FlowKey<A>,
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

/// Decides a packet that comes from the device `ifindex`.
#[inline(always)]
pub fn ingress<A: FlowAddr, W: Flows<A>>(world: &W, ifindex: u32, packet: &Headers<A>) -> Verdict<A> {
    let mut flow = Flow::NONE;
    match track::find(world, &packet.key, &mut flow) {
        Some(table) => track::ingress(world, ifindex, packet, (&flow, table)),
        None if packet.opens() => world.open(ifindex, packet, None),
        None => Verdict::Pass,
    }
}

/// Decides a packet that leaves by the device `ifindex`.
#[inline(always)]
pub fn egress<A: FlowAddr, W: Flows<A>>(world: &W, ifindex: u32, packet: &Headers<A>) -> Verdict<A> {
    let mut flow = Flow::NONE;
    match track::find(world, &packet.key, &mut flow) {
        Some(table) => track::egress(world, ifindex, packet, (&flow, table)),
        None => {
            open::note_foreign(world, packet);
            Verdict::Pass
        }
    }
}
