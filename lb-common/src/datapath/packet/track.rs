//! Packets of flows that are known.

use super::{Flows, Side, Table, Verdict, Way, Work, parse::TcpFlags};
use crate::abi::{Direction, Flow, FlowAddr, FlowBits, FlowKey, FlowState, Proto, Reason};

/// Seconds without a packet after which a UDP flow is another one (nf_conntrack_udp_timeout_stream): its next packet chooses
/// anew, whether or not somebody has collected the entry.
pub const UDP_IDLE_S: u32 = 120 + SEEN_EVERY_S;
/// Seconds by which the time of a flow's last packet may be too early, in its entry. Of one that closes it is exact.
const SEEN_EVERY_S: u32 = 8;

/// Where the entry of a key is, if there is one of that key; `flow` is a copy of it.
#[inline(always)]
pub(super) fn find<A: FlowAddr, W: Flows<A>>(
    world: &W,
    key: &FlowKey<A>,
    flow: &mut Flow<A>,
) -> Option<Table> {
    let table = world.flow(key, flow)?;
    flow.is_of(key).then_some(table)
}

/// A packet with an entry in `table`, [`Work::flow`], that comes from a device. Nothing if it begins another flow.
#[inline(always)]
pub(super) fn ingress<A: FlowAddr, W: Flows<A>>(
    world: &W,
    work: &mut Work<A>,
    table: Table,
) -> Option<Verdict> {
    if !work.flow.goes(Direction::Reply) && is_over(world, work) {
        return None;
    }
    if work.flow.goes(Direction::Foreign) {
        see(world, work, table, SEEN_EVERY_S);
    }
    let way = way(world, &work.flow, Side::Ingress, 0);
    Some(way.map_or(Verdict::Pass, |way| follow(world, work, table, way)))
}

/// A packet with an entry in `table`, [`Work::flow`], that leaves by a device.
#[inline(always)]
pub(super) fn egress<A: FlowAddr, W: Flows<A>>(
    world: &W,
    ifindex: u32,
    work: &mut Work<A>,
    table: Table,
) -> Verdict {
    let way = way(world, &work.flow, Side::Egress, ifindex);
    way.map_or(Verdict::Pass, |way| follow(world, work, table, way))
}

/// Where a packet of a flow goes once it is translated, by the rule of symmetry; nothing if it is not translated here. `ifindex` is
/// the device that it leaves by.
#[inline(always)]
pub(super) fn way<A: FlowAddr, W: Flows<A>>(
    world: &W,
    flow: &Flow<A>,
    side: Side,
    ifindex: u32,
) -> Option<Way> {
    let masqueraded = flow.bits.has(FlowBits::MASQUERADED);
    let client = Way::Device { ifindex: flow.ifindex };
    match side {
        Side::Ingress if flow.goes(Direction::Foreign) => None,
        // On its way to the client, and restored where it leaves.
        Side::Ingress if flow.goes(Direction::Reply) => masqueraded.then_some(client),
        Side::Ingress => Some(if masqueraded { Way::Routed } else { Way::On }),
        Side::Egress if !flow.goes(Direction::Reply) || masqueraded => None,
        Side::Egress if flow.ifindex == ifindex => Some(Way::On),
        // The client is behind a port of this bridge, where the answer is restored.
        Side::Egress if world.device(flow.ifindex).is_some_and(|device| device.controller == ifindex) => None,
        // Two uplinks: what was asked by one is answered by the same one, whatever the routes say.
        Side::Egress => Some(client),
    }
}

/// Whether a client's packet begins another flow with the same ends.
#[inline(always)]
fn is_over<A: FlowAddr, W: Flows<A>>(world: &W, work: &Work<A>) -> bool {
    let Work { packet, flow, now_s, .. } = work;
    if !packet.opens() {
        // CT-6: connections stay with a backend that is gone.
        return false;
    }
    if packet.key.proto == Proto::UDP {
        if now_s.wrapping_sub(flow.seen_s) >= UDP_IDLE_S {
            return true;
        }
    } else if flow.state.is_closing() {
        return true;
    }
    !flow.goes(Direction::Foreign)
        && !world.backend(flow.backend).is_some_and(|backend| backend.serves(flow.generation))
}

/// Translates a packet as its entry says, and notes what it tells of the flow.
#[inline(always)]
fn follow<A: FlowAddr, W: Flows<A>>(world: &W, work: &mut Work<A>, table: Table, way: Way) -> Verdict {
    if !matches!(way, Way::On) && work.packet.ttl <= 1 {
        world.count(Reason::TtlExceeded);
        return Verdict::Drop;
    }
    work.after = work.flow.rewritten(&work.packet.key);
    note(world, work, table);
    Verdict::Translate(way)
}

/// Notes what a packet tells of its flow. For nearly all of them that is nothing new: no store.
#[inline(always)]
fn note<A: FlowAddr, W: Flows<A>>(world: &W, work: &mut Work<A>, table: Table) {
    let Work { packet, flow, .. } = work;
    let mut state = flow.state;
    if packet.tcp.has(TcpFlags::FIN) {
        state = state.with(FlowState::FIN);
    }
    if packet.tcp.has(TcpFlags::RST) {
        state = state.with(FlowState::RESET);
    } else if state.has(FlowState::RESET) {
        // Whoever goes on has not believed it (RFC 5961).
        state = state.without(FlowState::RESET);
    }
    // Of one that closes the time is exact: its ports may be used again soon.
    see(world, work, table, if state.is_closing() { 1 } else { SEEN_EVERY_S });
    let Work { packet, flow, .. } = work;
    if flow.goes(Direction::Reply) {
        state = state.with(FlowState::REPLIED);
    } else if table == Table::New && state.has(FlowState::REPLIED) && !packet.asks() {
        // With a full table, not for each packet again: it costs two looks and a write that fails.
        let is_due = work.now_s.wrapping_sub(flow.seen_s) >= SEEN_EVERY_S;
        if is_due || !state.has(FlowState::CROWDED) {
            if keep(world, work, state.without(FlowState::CROWDED)) {
                return;
            }
            state = state.with(FlowState::CROWDED);
        }
    }
    let Work { flow, .. } = work;
    if state != flow.state {
        changed(world, work, table, state);
    }
}

/// Notes that a flow is in use, in both entries, once in so many seconds: each costs a look at memory that may be far away.
#[inline(always)]
fn see<A: FlowAddr, W: Flows<A>>(world: &W, work: &mut Work<A>, table: Table, every_s: u32) {
    let now_s = work.now_s;
    if now_s.wrapping_sub(work.flow.seen_s) < every_s {
        return;
    }
    world.put_seen(table, &work.packet.key, now_s);
    if !work.flow.goes(Direction::Foreign) {
        work.answers = work.flow.other_key(&work.packet.key);
        world.put_seen(table, &work.answers, now_s);
    }
}

/// Stores what a packet has told of its flow. That the backend has answered, and that either end has reset the connection, both
/// entries say.
#[inline(always)]
fn changed<A: FlowAddr, W: Flows<A>>(world: &W, work: &mut Work<A>, table: Table, state: FlowState) {
    world.put_state(table, &work.packet.key, state);
    let mut both = FlowState::NEW;
    if work.flow.goes(Direction::Reply) && !work.flow.state.has(FlowState::REPLIED) {
        both = FlowState::REPLIED;
    }
    if state.has(FlowState::RESET) {
        both = both.with(FlowState::RESET);
    }
    if both == FlowState::NEW {
        return;
    }
    work.answers = work.flow.other_key(&work.packet.key);
    if let Some(table) = find(world, &work.answers, &mut work.entry) {
        world.put_state(table, &work.answers, work.entry.state.with(both));
    }
}

/// Both directions are proven: the flow is kept whatever new ones come. False if there is no room: it stays where it is, and is tried
/// again some seconds later.
#[inline(always)]
fn keep<A: FlowAddr, W: Flows<A>>(world: &W, work: &mut Work<A>, state: FlowState) -> bool {
    work.answers = work.flow.other_key(&work.packet.key);
    let Work { packet, flow, answers, entry, now_s, .. } = work;
    if find(world, answers, entry) != Some(Table::New) || !entry.goes(Direction::Reply) {
        return true;
    }
    entry.state = entry.state.with(FlowState::PROVEN);
    if world.put_flow(Table::Kept, answers, entry, false) {
        flow.state = state.with(FlowState::PROVEN);
        flow.seen_s = *now_s;
        if world.put_flow(Table::Kept, &packet.key, flow, false) {
            world.move_on(&packet.key, answers);
            return true;
        }
        world.remove_flow(Table::Kept, answers);
    }
    world.count(Reason::NotKept);
    false
}
