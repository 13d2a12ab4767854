//! The first packet of a flow: who serves it and from which address, or why nobody does.
//!
//! Three steps, each in a frame of its own, because a program has 512 bytes for all frames together: who ([`choose_for`]), seen from
//! where ([`address`]), written down ([`write`]).

use super::{Flows, Former, Route, Table, Translation, Verdict, Way, parse::Headers, track::find};
use crate::{
    abi::{
        Address, Backend, BackendId, Client, Device, Direction, Flow, FlowAddr, FlowBits, FlowKey, Frontend,
        FrontendKey, FrontendKind, L4Addr, Opened, PacketLb, Proto, Reason, ServiceFlags, ServiceId,
    },
    datapath::{
        select::{Served, choose},
        tables::owned_frontend,
    },
};

/// Ports that are tried for a masqueraded flow: with two of three taken, one of 40 million flows finds none.
const PORT_TRIES: u32 = 43;
/// Seconds after its last packet before the port of a connection that is over is used again.
const CLOSED_S: u32 = 2;

/// What becomes of a first packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// It is not ours.
    Pass,
    /// Nobody is to answer.
    Drop,
    /// The sender is told that nobody serves this.
    Refuse,
    /// It has a backend.
    Served,
}

/// Who serves a flow.
#[derive(Clone, Copy, Debug)]
struct Choice {
    target: L4Addr,
    backend: BackendId,
    generation: u32,
    service: ServiceId,
    /// [`Device::bits`] of where the client is.
    device: u32,
}

/// Decides a packet that may open a flow. `former` is the flow that had the same ends, which is over.
#[inline(always)]
pub fn open<A: FlowAddr, W: Flows<A>>(
    world: &W,
    ifindex: u32,
    packet: &Headers<A>,
    former: Option<&Former<A>>,
) -> Verdict<A> {
    let mut choice = Choice {
        target: packet.key.to(),
        backend: BackendId::NONE,
        generation: 0,
        service: ServiceId { index: 0 },
        device: 0,
    };
    match choose_for(world, ifindex, packet, &mut choice) {
        Fate::Pass => return Verdict::Pass,
        Fate::Drop => return Verdict::Drop,
        Fate::Refuse => return Verdict::Refuse,
        Fate::Served => {}
    }
    let mut after = FlowKey {
        dst: A::narrow(choice.target.addr),
        dport: choice.target.port,
        ..packet.key
    };
    let mut opened = Opened {
        ifindex,
        backend: choice.backend,
        generation: choice.generation,
        service: choice.service,
        bits: FlowBits::default(),
        now_s: world.now_s(),
    };
    match address(world, &choice, &mut after, &mut opened) {
        None => {}
        Some(reason) => {
            world.count(reason);
            return Verdict::Drop;
        }
    }
    if opened.bits.has(FlowBits::MASQUERADED) && packet.ttl <= 1 {
        world.count(Reason::TtlExceeded);
        return Verdict::Drop;
    }
    if !write(world, &packet.key, former, (&mut after, &mut opened)) {
        return Verdict::Drop;
    }
    let way = if opened.bits.has(FlowBits::MASQUERADED) { Way::Routed } else { Way::On };
    Verdict::Translate(Translation { after, way })
}

/// Who serves a packet's flow. Only where somebody does, `choice` is written.
#[inline(never)]
fn choose_for<A: FlowAddr, W: Flows<A>>(
    world: &W,
    ifindex: u32,
    packet: &Headers<A>,
    choice: &mut Choice,
) -> Fate {
    let Some(frontend) = frontend(world, packet) else { return Fate::Pass };
    let Some(Device { bits: device, .. }) = world.device(ifindex) else { return Fate::Pass };
    let served = match served(world, device, packet, frontend) {
        Ok(served) => served,
        Err(fate) => return fate,
    };
    let Some(chosen) = choose(world, &served) else { return Fate::Drop };
    *choice = Choice {
        target: chosen.target,
        backend: chosen.backend,
        generation: chosen.generation,
        service: served.service,
        device,
    };
    Fate::Served
}

/// The frontend of a packet's destination. The order of matching is that of semantics 2.22.
#[inline(always)]
fn frontend<A: FlowAddr, W: Flows<A>>(world: &W, packet: &Headers<A>) -> Option<Frontend> {
    let to = packet.key.to();
    let proto = packet.key.proto;
    if let Some(exact) = owned_frontend(world, &FrontendKey::new(to, proto)) {
        return Some(exact);
    }
    if world.config().may_be_node_port(to.port)
        && world.address(&to.addr).is_some_and(|address| address.has(Address::NODE))
    {
        let key = FrontendKey::new(L4Addr { addr: to.addr.any(), port: to.port }, proto);
        if let Some(node_port) = owned_frontend(world, &key) {
            return Some(node_port);
        }
    }
    owned_frontend(world, &FrontendKey::other_ports(to.addr))
}

/// What a client behind a device with these bits meets behind a frontend, or what becomes of its packet without a backend.
#[inline(always)]
fn served<A: FlowAddr, W: Flows<A>>(
    world: &W,
    device: u32,
    packet: &Headers<A>,
    frontend: Frontend,
) -> Result<Served, Fate> {
    let client = packet.key.src.widen();
    let service = frontend.service;
    let is_pod = device & Device::PODS != 0;
    let internal =
        frontend.kind == FrontendKind::ClusterIp as u8 || frontend.kind == FrontendKind::OtherPorts as u8;
    if internal && !is_pod && !world.config().packets.has(PacketLb::EXTERNAL_CLUSTER_IP) {
        // Cluster addresses are for the cluster.
        return Err(Fate::Pass);
    }
    if world.address(&client).is_some() {
        // Our own address, from outside: nobody may answer to that, and the stack says so.
        world.count(Reason::Martian);
        return Err(Fate::Pass);
    }
    if frontend.kind == FrontendKind::OtherPorts as u8 {
        world.count(Reason::RefusedPacket);
        return Err(Fate::Refuse);
    }
    let Some((flags, affinity_s)) = world.policy(service) else {
        world.count(Reason::Dangling);
        return Err(Fate::Pass);
    };
    // SR-4, NE-5: before everything else.
    if frontend.kind == FrontendKind::LoadBalancer as u8
        && flags.has(ServiceFlags::RESTRICTED)
        && !world.allows(service, client)
    {
        world.count(Reason::DroppedRestricted);
        return Err(Fate::Drop);
    }
    let local = if internal {
        flags.has(ServiceFlags::INTERNAL_LOCAL)
    } else {
        // MQ-4 (a): a pod of this node uses all endpoints.
        flags.has(ServiceFlags::EXTERNAL_LOCAL) && !is_pod
    };
    let (run, member) = if local {
        (world.local_run(service), Backend::IN_LOCAL)
    } else {
        (world.cluster_run(service), Backend::IN_CLUSTER)
    };
    let Some(run) = run else {
        world.count(Reason::Dangling);
        return Err(Fate::Pass);
    };
    if run.is_elsewhere() {
        world.count(Reason::DroppedElsewhere);
        return Err(Fate::Drop);
    }
    if run.count == 0 {
        world.count(Reason::RefusedPacket);
        return Err(Fate::Refuse);
    }
    Ok(Served { service, client: Client::of_addr(client), run, affinity_s, member })
}

/// Gives `after`, the packet on its way to the backend, the source that the backend is to see: an address of this node, or the
/// client's own. Gives the reason if there is none.
///
/// A backend on this node answers by way of this node, whoever the client is (MQ-3 leaves that open). So does every backend that
/// a pod of this node has asked: the answer passes the pod's own device.
#[inline(never)]
fn address<A: FlowAddr, W: Flows<A>>(
    world: &W,
    choice: &Choice,
    after: &mut FlowKey<A>,
    opened: &mut Opened,
) -> Option<Reason> {
    let is_pod = choice.device & Device::PODS != 0;
    let shared = choice.device & Device::SHARED != 0;
    let hairpin = after.src == after.dst;
    let all = world.config().packets.has(PacketLb::MASQUERADE_ALL);
    let here = world.backend(choice.backend).is_some_and(|backend| backend.runs & Backend::HERE != 0);
    let must = hairpin || all || !(is_pod || here);
    if !must && !shared {
        return None;
    }
    let ifindex = match world.route(after) {
        Route::Out { ifindex } => ifindex,
        // A process of this node: it answers by way of this node.
        Route::Local => return None,
        Route::None => return must.then_some(Reason::NoRoute),
    };
    if !must && ifindex != opened.ifindex {
        return None;
    }
    let Some(source) = world.device(ifindex).and_then(|device| A::of_device(&device)) else {
        return Some(Reason::NoRoute);
    };
    after.src = source;
    opened.bits = FlowBits::MASQUERADED;
    None
}

/// Writes both entries of a flow: first that of the answers, which reserves their key, and gives `after` the source port that goes with
/// it. False if nothing was written, which is counted.
#[inline(never)]
fn write<A: FlowAddr, W: Flows<A>>(
    world: &W,
    key: &FlowKey<A>,
    former: Option<&Former<A>>,
    (after, opened): (&mut FlowKey<A>, &mut Opened),
) -> bool {
    if !reserve(world, key, after, opened) {
        world.count(Reason::NoPort);
        return false;
    }
    let flow = Flow::new(key, after, Direction::Original, opened);
    if !world.put_flow(Table::New, key, &flow, former.is_some()) {
        return second(world, key, after, opened);
    }
    if let Some(former) = former {
        forget(world, key, former, after);
    }
    world.count(Reason::Flow);
    true
}

/// Writes the entry of the answers to `after`, with a source port that is free.
#[inline(always)]
fn reserve<A: FlowAddr, W: Flows<A>>(
    world: &W,
    key: &FlowKey<A>,
    after: &mut FlowKey<A>,
    opened: &Opened,
) -> bool {
    // Masqueraded; or the client asks another frontend from the same port, and has met the same backend: another source port
    // tells the answers apart.
    let keeps_port = !opened.bits.has(FlowBits::MASQUERADED);
    for attempt in 0..PORT_TRIES {
        if !(keeps_port && attempt == 0) {
            let Some(port) = world.masquerade_port(world.random()) else { return false };
            after.sport = port;
        }
        if reserve_one(world, key, after, opened) {
            return true;
        }
    }
    false
}

/// Writes the entry of the answers to `after` where none is, or one that is over.
#[inline(never)]
fn reserve_one<A: FlowAddr, W: Flows<A>>(
    world: &W,
    key: &FlowKey<A>,
    after: &FlowKey<A>,
    opened: &Opened,
) -> bool {
    let answers = after.reversed();
    let mut flow = Flow::NONE;
    let taken = world.flow(&answers, &mut flow);
    if taken.is_some() {
        let same = flow.is_of(&answers) && flow.leads_to(&key.reversed());
        let over = flow.state.is_closing() && opened.now_s.wrapping_sub(flow.seen_s) >= CLOSED_S;
        if !same && !over {
            return false;
        }
    }
    flow = Flow::new(&answers, &key.reversed(), Direction::Reply, opened);
    let written = world.put_flow(Table::New, &answers, &flow, taken.is_some());
    if written && taken == Some(Table::Kept) {
        world.remove_flow(Table::Kept, &answers);
    }
    written
}

/// Another packet of the same flow was faster: this one follows it.
#[inline(never)]
fn second<A: FlowAddr, W: Flows<A>>(
    world: &W,
    key: &FlowKey<A>,
    mine: &mut FlowKey<A>,
    opened: &mut Opened,
) -> bool {
    let mut flow = Flow::NONE;
    let found = find(world, key, &mut flow).is_some() && flow.goes(Direction::Original);
    if !(found && flow.leads_to(mine)) {
        world.remove_flow(Table::New, &mine.reversed());
    }
    if !found {
        world.count(Reason::NoFlow);
        return false;
    }
    *mine = flow.rewritten(key);
    opened.bits = flow.bits;
    true
}

/// Deletes what is left of a flow that had the same ends: the kept entry, which hides the new one, and the entry of its
/// answers.
#[inline(never)]
fn forget<A: FlowAddr, W: Flows<A>>(world: &W, key: &FlowKey<A>, former: &Former<A>, after: &FlowKey<A>) {
    if former.table == Table::Kept {
        world.remove_flow(Table::Kept, key);
    }
    if former.answers != *key && former.answers != after.reversed() {
        world.remove_flow(Table::Kept, &former.answers);
        world.remove_flow(Table::New, &former.answers);
    }
}

/// What this node sends by UDP from a port that is a NodePort too: the answers are its own.
#[inline(always)]
pub(super) fn note_foreign<A: FlowAddr, W: Flows<A>>(world: &W, packet: &Headers<A>) {
    if packet.key.proto != Proto::UDP || !world.config().may_be_node_port(packet.key.sport) {
        return;
    }
    note_foreign_from(world, &packet.key);
}

#[inline(never)]
fn note_foreign_from<A: FlowAddr, W: Flows<A>>(world: &W, key: &FlowKey<A>) {
    if !world.address(&key.src.widen()).is_some_and(|address| address.has(Address::NODE)) {
        return;
    }
    let answers = key.reversed();
    let mut flow = Flow::NONE;
    if world.flow(&answers, &mut flow).is_none() {
        flow = Flow::foreign(&answers, world.now_s());
        world.put_flow(Table::New, &answers, &flow, false);
    }
}
