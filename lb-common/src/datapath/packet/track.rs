//! Packets of flows that are known.

use super::{
    Flows, Former, Table, Translation, Verdict, Way,
    parse::{Headers, TcpFlags},
};
use crate::abi::{Direction, Flow, FlowAddr, FlowBits, FlowKey, FlowState, Proto, Reason};

/// Seconds without a packet after which a UDP flow is another one (nf_conntrack_udp_timeout_stream): its next packet chooses
/// anew, whether or not somebody has collected the entry.
pub(super) const UDP_IDLE_S: u32 = 120;

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

/// A packet with an entry that comes from a device.
#[inline(always)]
pub(super) fn ingress<A: FlowAddr, W: Flows<A>>(
    world: &W,
    ifindex: u32,
    packet: &Headers<A>,
    (flow, table): (&Flow<A>, Table),
) -> Verdict<A> {
    let is_ours = !flow.goes(Direction::Foreign);
    let masqueraded = flow.bits.has(FlowBits::MASQUERADED);
    if flow.goes(Direction::Reply) {
        return if masqueraded {
            follow(world, packet, (flow, table), Way::Device { ifindex: flow.ifindex })
        } else {
            // It is on its way to the client, and is restored where it leaves.
            Verdict::Pass
        };
    }
    if is_over(world, packet, flow) {
        let answers = if is_ours { flow.other_key(&packet.key) } else { packet.key };
        return world.open(ifindex, packet, Some(&Former { table, answers }));
    }
    if is_ours {
        follow(world, packet, (flow, table), if masqueraded { Way::Routed } else { Way::On })
    } else {
        see(world, packet, (flow, table));
        Verdict::Pass
    }
}

/// A packet with an entry that leaves by a device.
#[inline(always)]
pub(super) fn egress<A: FlowAddr, W: Flows<A>>(
    world: &W,
    ifindex: u32,
    packet: &Headers<A>,
    (flow, table): (&Flow<A>, Table),
) -> Verdict<A> {
    if !flow.goes(Direction::Reply) || flow.bits.has(FlowBits::MASQUERADED) {
        return Verdict::Pass;
    }
    // Two uplinks: what was asked by one is answered by the same one, whatever the routes say.
    let way = if flow.ifindex == ifindex { Way::On } else { Way::Device { ifindex: flow.ifindex } };
    follow(world, packet, (flow, table), way)
}

/// Whether a client's packet begins another flow with the same ends.
#[inline(always)]
fn is_over<A: FlowAddr, W: Flows<A>>(world: &W, packet: &Headers<A>, flow: &Flow<A>) -> bool {
    if !packet.opens() {
        // CT-6: connections stay with a backend that is gone.
        return false;
    }
    if packet.key.proto == Proto::UDP {
        if world.now_s().wrapping_sub(flow.seen_s) >= UDP_IDLE_S {
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
fn follow<A: FlowAddr, W: Flows<A>>(
    world: &W,
    packet: &Headers<A>,
    (flow, table): (&Flow<A>, Table),
    way: Way,
) -> Verdict<A> {
    if !matches!(way, Way::On) && packet.ttl <= 1 {
        world.count(Reason::TtlExceeded);
        return Verdict::Drop;
    }
    note(world, packet, (flow, table));
    Verdict::Translate(Translation { after: flow.rewritten(&packet.key), way })
}

/// Notes what a packet tells of its flow. For nearly all of them that is nothing new: no store.
#[inline(always)]
fn note<A: FlowAddr, W: Flows<A>>(world: &W, packet: &Headers<A>, (flow, table): (&Flow<A>, Table)) {
    see(world, packet, (flow, table));
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
        state = state.with(FlowState::REPLIED);
    } else if table == Table::New && state.has(FlowState::REPLIED) && !packet.asks() {
        keep(world, packet, flow, state);
        return;
    }
    if state != flow.state {
        changed(world, &packet.key, (flow, table), state);
    }
}

/// Notes that a flow is in use, in both entries, at most once a second.
#[inline(always)]
fn see<A: FlowAddr, W: Flows<A>>(world: &W, packet: &Headers<A>, (flow, table): (&Flow<A>, Table)) {
    let now_s = world.now_s();
    if now_s != flow.seen_s {
        seen(world, &packet.key, flow, table);
    }
}

#[inline(never)]
fn seen<A: FlowAddr, W: Flows<A>>(world: &W, key: &FlowKey<A>, flow: &Flow<A>, table: Table) {
    let now_s = world.now_s();
    world.put_seen(table, key, now_s);
    if !flow.goes(Direction::Foreign) {
        world.put_seen(table, &flow.other_key(key), now_s);
    }
}

/// Stores what a packet has told of its flow. That the backend has answered, and that either end has reset the connection, both
/// entries say.
#[inline(never)]
fn changed<A: FlowAddr, W: Flows<A>>(
    world: &W,
    key: &FlowKey<A>,
    (flow, table): (&Flow<A>, Table),
    state: FlowState,
) {
    world.put_state(table, key, state);
    let mut both = FlowState::NEW;
    if flow.goes(Direction::Reply) && !flow.state.has(FlowState::REPLIED) {
        both = FlowState::REPLIED;
    }
    if state.has(FlowState::RESET) {
        both = both.with(FlowState::RESET);
    }
    if both != FlowState::NEW {
        let other = flow.other_key(key);
        let mut entry = Flow::NONE;
        if let Some(table) = find(world, &other, &mut entry) {
            world.put_state(table, &other, entry.state.with(both));
        }
    }
}

/// Both directions are proven: the flow is kept whatever new ones come. With a full table it stays where it is, and is tried
/// again with the next packet.
#[inline(never)]
fn keep<A: FlowAddr, W: Flows<A>>(world: &W, packet: &Headers<A>, flow: &Flow<A>, state: FlowState) {
    let reply = flow.other_key(&packet.key);
    let mut entry = Flow::NONE;
    if find(world, &reply, &mut entry) != Some(Table::New) || !entry.goes(Direction::Reply) {
        return;
    }
    entry.state = entry.state.with(FlowState::PROVEN);
    if world.put_flow(Table::Kept, &reply, &entry, false) {
        entry = *flow;
        entry.state = state.with(FlowState::PROVEN);
        entry.seen_s = world.now_s();
        if world.put_flow(Table::Kept, &packet.key, &entry, false) {
            return;
        }
        world.remove_flow(Table::Kept, &reply);
    }
    world.count(Reason::NotKept);
}
