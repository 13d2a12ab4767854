//! Packets of flows that are known.

use super::{Flows, Table, Translation, Verdict, Way, open, parse::{Headers, TcpFlags}};
use crate::abi::{Direction, Flow, FlowAddr, FlowBits, FlowKey, FlowState, Proto, Reason};

/// Seconds without a packet after which a UDP flow is another one (nf_conntrack_udp_timeout_stream): its next packet chooses
/// anew, whether or not somebody has collected the entry.
pub(super) const UDP_IDLE_S: u32 = 120;

/// An entry, and where it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found<A> {
    pub(super) flow: Flow<A>,
    pub(super) table: Table,
}

/// The entry of a key, if it is that key's.
#[inline(always)]
pub(super) fn find<A: FlowAddr, W: Flows<A>>(world: &W, key: &FlowKey<A>) -> Option<Found<A>> {
    let (flow, table) = world.flow(key)?;
    flow.is_of(key).then_some(Found { flow, table })
}

/// A packet with an entry that comes from a device.
#[inline(always)]
pub(super) fn ingress<A: FlowAddr, W: Flows<A>>(
    world: &W,
    ifindex: u32,
    packet: &Headers<A>,
    found: &Found<A>,
) -> Verdict<A> {
    let flow = &found.flow;
    if flow.goes(Direction::Original) {
        if is_over(world, packet, flow) {
            return open::open(world, ifindex, packet, Some(found));
        }
        let way = if flow.bits.has(FlowBits::MASQUERADED) { Way::Routed } else { Way::On };
        return follow(world, packet, found, way);
    }
    if flow.goes(Direction::Reply) {
        return if flow.bits.has(FlowBits::MASQUERADED) {
            follow(world, packet, found, Way::Device { ifindex: flow.ifindex })
        } else {
            // It is on its way to the client, and is restored where it leaves.
            Verdict::Pass
        };
    }
    if packet.opens() && is_idle(world, packet, flow) {
        return open::open(world, ifindex, packet, Some(found));
    }
    see(world, packet, found);
    Verdict::Pass
}

/// A packet with an entry that leaves by a device.
#[inline(always)]
pub(super) fn egress<A: FlowAddr, W: Flows<A>>(
    world: &W,
    ifindex: u32,
    packet: &Headers<A>,
    found: &Found<A>,
) -> Verdict<A> {
    let flow = &found.flow;
    if !flow.goes(Direction::Reply) || flow.bits.has(FlowBits::MASQUERADED) {
        return Verdict::Pass;
    }
    // Two uplinks: what was asked by one is answered by the same one, whatever the routes say.
    let way = if flow.ifindex == ifindex { Way::On } else { Way::Device { ifindex: flow.ifindex } };
    follow(world, packet, found, way)
}

/// Whether a client's packet begins another flow with the same ends.
#[inline(always)]
fn is_over<A: FlowAddr, W: Flows<A>>(world: &W, packet: &Headers<A>, flow: &Flow<A>) -> bool {
    if !packet.opens() {
        // CT-6: connections stay with a backend that is gone.
        return false;
    }
    let udp = packet.key.proto == Proto::UDP;
    let ended = if udp { is_idle(world, packet, flow) } else { flow.state.is_closing() };
    ended || !world.backend(flow.backend).is_some_and(|backend| backend.serves(flow.generation))
}

#[inline(always)]
fn is_idle<A: FlowAddr, W: Flows<A>>(world: &W, packet: &Headers<A>, flow: &Flow<A>) -> bool {
    packet.key.proto == Proto::UDP && world.now_s().wrapping_sub(flow.seen_s) >= UDP_IDLE_S
}

/// Translates a packet as its entry says, and notes what it tells of the flow.
#[inline(always)]
fn follow<A: FlowAddr, W: Flows<A>>(
    world: &W,
    packet: &Headers<A>,
    found: &Found<A>,
    way: Way,
) -> Verdict<A> {
    let after = found.flow.rewritten(&packet.key);
    if !matches!(way, Way::On) && packet.ttl <= 1 {
        world.count(Reason::TtlExceeded);
        return Verdict::Drop;
    }
    note(world, packet, found, &after.reversed());
    Verdict::Translate(Translation { after, way })
}

/// Notes what a packet tells of its flow. For nearly all of them that is nothing new: no store.
#[inline(always)]
fn note<A: FlowAddr, W: Flows<A>>(
    world: &W,
    packet: &Headers<A>,
    found: &Found<A>,
    other: &FlowKey<A>,
) {
    see(world, packet, found);
    let flow = &found.flow;
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
    if flow.goes(Direction::Reply) {
        if !state.has(FlowState::REPLIED) {
            state = state.with(FlowState::REPLIED);
            reply_seen(world, other);
        }
    } else if found.table == Table::New && state.has(FlowState::REPLIED) && !packet.asks() {
        keep(world, packet, found, other, state);
        return;
    }
    if state != flow.state {
        world.put_state(found.table, &packet.key, state);
        if state.has(FlowState::RESET) {
            mark_reset(world, other);
        }
    }
}

/// Notes that a flow is in use, in both entries, at most once a second.
#[inline(always)]
fn see<A: FlowAddr, W: Flows<A>>(world: &W, packet: &Headers<A>, found: &Found<A>) {
    let now_s = world.now_s();
    if now_s == found.flow.seen_s {
        return;
    }
    world.put_seen(found.table, &packet.key, now_s);
    if !found.flow.goes(Direction::Foreign) {
        let other = found.flow.other_key(&packet.key);
        world.put_seen(found.table, &other, now_s);
    }
}

/// The backend has answered: the client's entry says so too.
#[inline(always)]
fn reply_seen<A: FlowAddr, W: Flows<A>>(world: &W, original: &FlowKey<A>) {
    if let Some(entry) = find(world, original) {
        world.put_state(entry.table, original, entry.flow.state.with(FlowState::REPLIED));
    }
}

/// Either end has reset the connection: both entries say so.
#[inline(always)]
fn mark_reset<A: FlowAddr, W: Flows<A>>(world: &W, other: &FlowKey<A>) {
    if let Some(entry) = find(world, other) {
        world.put_state(entry.table, other, entry.flow.state.with(FlowState::RESET));
    }
}

/// Both directions are proven: the flow is kept whatever new ones come. With a full table it stays where it is, and is tried
/// again with the next packet.
#[inline(always)]
fn keep<A: FlowAddr, W: Flows<A>>(
    world: &W,
    packet: &Headers<A>,
    found: &Found<A>,
    reply: &FlowKey<A>,
    state: FlowState,
) {
    let Some((answers, Table::New)) = world.flow(reply) else { return };
    if !answers.is_of(reply) || !answers.goes(Direction::Reply) {
        return;
    }
    let state = state.with(FlowState::PROVEN);
    let answers = Flow { state: answers.state.with(FlowState::PROVEN), ..answers };
    if world.put_flow(Table::Kept, reply, &answers, false) {
        let original = Flow { state, seen_s: world.now_s(), ..found.flow };
        if world.put_flow(Table::Kept, &packet.key, &original, false) {
            return;
        }
        world.remove_flow(Table::Kept, reply);
    }
    world.count(Reason::NotKept);
}
