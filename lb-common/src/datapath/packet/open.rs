//! The first packet of a flow: who serves it and from which address, or why nobody does.

use super::{
    Flows, Route, Table, Translation, Verdict, Way,
    parse::Headers,
    track::{Found, find},
};
use crate::{
    abi::{
        Address, Backend, Client, Device, Direction, Flow, FlowAddr, FlowBits, FlowKey, Frontend, FrontendKey,
        FrontendKind, L4Addr, Opened, PacketLb, Proto, Reason, ServiceFlags,
    },
    datapath::{
        select::{Chosen, Served, choose},
        tables::owned_frontend,
    },
};

/// Ports that are tried for a masqueraded flow: with two of three taken, one of 40 million flows finds none.
const PORT_TRIES: u32 = 43;
/// Seconds after its last packet before the port of a connection that is over is used again.
const CLOSED_S: u32 = 2;

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Asker {
    /// The interface it is behind.
    ifindex: u32,
    device: Device,
}

impl Asker {
    /// Whether it is a pod of this node, as opposed to anybody outside.
    #[inline(always)]
    const fn is_pod(&self) -> bool {
        self.device.has(Device::PODS)
    }
}

/// Decides a packet that may open a flow. `former` is the flow that had the same ends, which is over.
#[inline(always)]
pub(super) fn open<A: FlowAddr, W: Flows<A>>(
    world: &W,
    ifindex: u32,
    packet: &Headers<A>,
    former: Option<&Found<A>>,
) -> Verdict<A> {
    let Some(frontend) = frontend(world, packet) else { return Verdict::Pass };
    let Some(device) = world.device(ifindex) else { return Verdict::Pass };
    let asker = Asker { ifindex, device };
    match served(world, &asker, packet, frontend) {
        Ok(served) => choose_and_open(world, &asker, packet, &served, former),
        Err(verdict) => verdict,
    }
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

/// What the asker meets behind a frontend, or what becomes of its packet without a backend.
#[inline(always)]
fn served<A: FlowAddr, W: Flows<A>>(
    world: &W,
    asker: &Asker,
    packet: &Headers<A>,
    frontend: Frontend,
) -> Result<Served, Verdict<A>> {
    let client = packet.key.src.widen();
    let service = frontend.service;
    let internal =
        frontend.kind == FrontendKind::ClusterIp as u8 || frontend.kind == FrontendKind::OtherPorts as u8;
    if internal && !asker.is_pod() && !world.config().packets.has(PacketLb::EXTERNAL_CLUSTER_IP) {
        // Cluster addresses are for the cluster.
        return Err(Verdict::Pass);
    }
    if world.address(&client).is_some() {
        // Our own address, from outside: nobody may answer to that, and the stack says so.
        world.count(Reason::Martian);
        return Err(Verdict::Pass);
    }
    if frontend.kind == FrontendKind::OtherPorts as u8 {
        world.count(Reason::RefusedPacket);
        return Err(Verdict::Refuse);
    }
    let Some((flags, affinity_s)) = world.policy(service) else {
        world.count(Reason::Dangling);
        return Err(Verdict::Pass);
    };
    // SR-4, NE-5: before everything else.
    if frontend.kind == FrontendKind::LoadBalancer as u8
        && flags.has(ServiceFlags::RESTRICTED)
        && !world.allows(service, client)
    {
        world.count(Reason::DroppedRestricted);
        return Err(Verdict::Drop);
    }
    let local = if internal {
        flags.has(ServiceFlags::INTERNAL_LOCAL)
    } else {
        // MQ-4 (a): a pod of this node uses all endpoints.
        flags.has(ServiceFlags::EXTERNAL_LOCAL) && !asker.is_pod()
    };
    let (run, member) = if local {
        (world.local_run(service), Backend::IN_LOCAL)
    } else {
        (world.cluster_run(service), Backend::IN_CLUSTER)
    };
    let Some(run) = run else {
        world.count(Reason::Dangling);
        return Err(Verdict::Pass);
    };
    if run.is_elsewhere() {
        world.count(Reason::DroppedElsewhere);
        return Err(Verdict::Drop);
    }
    if run.count == 0 {
        world.count(Reason::RefusedPacket);
        return Err(Verdict::Refuse);
    }
    Ok(Served { service, client: Client::of_addr(client), run, affinity_s, member })
}

/// Chooses a backend and writes both entries.
#[inline(always)]
fn choose_and_open<A: FlowAddr, W: Flows<A>>(
    world: &W,
    asker: &Asker,
    packet: &Headers<A>,
    served: &Served,
    former: Option<&Found<A>>,
) -> Verdict<A> {
    let key = &packet.key;
    let Some(chosen) = choose(world, served) else { return Verdict::Drop };
    let to_backend = FlowKey { dst: A::narrow(chosen.target.addr), dport: chosen.target.port, ..*key };
    let source = match source(world, asker, &to_backend, &chosen) {
        Ok(source) => source,
        Err(reason) => {
            world.count(reason);
            return Verdict::Drop;
        }
    };
    if source.is_some() && packet.ttl <= 1 {
        world.count(Reason::TtlExceeded);
        return Verdict::Drop;
    }
    let bits = if source.is_some() { FlowBits::MASQUERADED } else { FlowBits::default() };
    let opened = Opened {
        ifindex: asker.ifindex,
        backend: chosen.backend,
        generation: chosen.generation,
        service: served.service,
        bits,
        now_s: world.now_s(),
    };
    let Some(after) = reserve(world, key, &to_backend, source, &opened) else {
        world.count(Reason::NoPort);
        return Verdict::Drop;
    };
    let flow = Flow::new(key, &after, Direction::Original, &opened);
    if !world.put_flow(Table::New, key, &flow, former.is_some()) {
        return second(world, packet, &after);
    }
    if let Some(former) = former {
        forget(world, key, former, &after.reversed());
    }
    world.count(Reason::Flow);
    let way = if bits.has(FlowBits::MASQUERADED) { Way::Routed } else { Way::On };
    Verdict::Translate(Translation { after, way })
}

/// The address of this node that a backend is to see instead of the client's; nothing where it sees the client's own.
///
/// A backend on this node answers by way of this node, whoever the client is (MQ-3 leaves that open). So does every backend that
/// a pod of this node has asked: the answer passes the pod's own device.
#[inline(always)]
fn source<A: FlowAddr, W: Flows<A>>(
    world: &W,
    asker: &Asker,
    to_backend: &FlowKey<A>,
    chosen: &Chosen,
) -> Result<Option<A>, Reason> {
    let hairpin = to_backend.src == to_backend.dst;
    let all = world.config().packets.has(PacketLb::MASQUERADE_ALL);
    let here = world.backend(chosen.backend).is_some_and(|backend| backend.runs & Backend::HERE != 0);
    let must = hairpin || all || !(asker.is_pod() || here);
    let shared = asker.device.has(Device::SHARED);
    if !must && !shared {
        return Ok(None);
    }
    let ifindex = match world.route(to_backend) {
        Route::Out { ifindex } => ifindex,
        // A process of this node: it answers by way of this node.
        Route::Local => return Ok(None),
        Route::None => return if must { Err(Reason::NoRoute) } else { Ok(None) },
    };
    if !must && ifindex != asker.ifindex {
        return Ok(None);
    }
    match world.device(ifindex).and_then(|device| A::of_device(&device)) {
        Some(source) => Ok(Some(source)),
        None => Err(Reason::NoRoute),
    }
}

/// Writes the entry of the answers, which is what reserves their key: `to_backend` with the source that is given, and a port that is
/// free. Gives the packet as it becomes.
#[inline(always)]
fn reserve<A: FlowAddr, W: Flows<A>>(
    world: &W,
    key: &FlowKey<A>,
    to_backend: &FlowKey<A>,
    source: Option<A>,
    opened: &Opened,
) -> Option<FlowKey<A>> {
    if source.is_none() && reserve_one(world, key, to_backend, opened) {
        return Some(*to_backend);
    }
    // Masqueraded; or the client asks another frontend from the same port, and has met the same backend: another source port
    // tells the answers apart.
    let src = source.unwrap_or(to_backend.src);
    let mut after = FlowKey { src, ..*to_backend };
    for _ in 0..PORT_TRIES {
        after.sport = world.masquerade_port(world.random())?;
        if reserve_one(world, key, &after, opened) {
            return Some(after);
        }
    }
    None
}

/// Writes the entry of the answers to `after` where none is, or one that is over.
#[inline(always)]
fn reserve_one<A: FlowAddr, W: Flows<A>>(
    world: &W,
    key: &FlowKey<A>,
    after: &FlowKey<A>,
    opened: &Opened,
) -> bool {
    let answers = after.reversed();
    let reply = Flow::new(&answers, &key.reversed(), Direction::Reply, opened);
    let Some((taken, table)) = world.flow(&answers) else {
        return world.put_flow(Table::New, &answers, &reply, false);
    };
    let same = taken.is_of(&answers) && taken.other_key(&answers) == *key;
    let over = taken.state.is_closing() && opened.now_s.wrapping_sub(taken.seen_s) >= CLOSED_S;
    if !same && !over {
        return false;
    }
    let written = world.put_flow(Table::New, &answers, &reply, true);
    if written && table == Table::Kept {
        world.remove_flow(Table::Kept, &answers);
    }
    written
}

/// Another packet of the same flow was faster: this one follows it.
#[inline(always)]
fn second<A: FlowAddr, W: Flows<A>>(world: &W, packet: &Headers<A>, mine: &FlowKey<A>) -> Verdict<A> {
    let found = find(world, &packet.key).filter(|found| found.flow.goes(Direction::Original));
    let Some(Found { flow, .. }) = found else {
        world.remove_flow(Table::New, &mine.reversed());
        world.count(Reason::NoFlow);
        return Verdict::Drop;
    };
    let after = flow.rewritten(&packet.key);
    if after != *mine {
        world.remove_flow(Table::New, &mine.reversed());
    }
    let way = if flow.bits.has(FlowBits::MASQUERADED) { Way::Routed } else { Way::On };
    Verdict::Translate(Translation { after, way })
}

/// Deletes what is left of a flow that had the same ends: the kept entry, which hides the new one, and the entry of its
/// answers.
#[inline(always)]
fn forget<A: FlowAddr, W: Flows<A>>(world: &W, key: &FlowKey<A>, former: &Found<A>, answers: &FlowKey<A>) {
    if former.table == Table::Kept {
        world.remove_flow(Table::Kept, key);
    }
    if former.flow.goes(Direction::Original) {
        let old = former.flow.other_key(key);
        if old != *answers {
            world.remove_flow(Table::Kept, &old);
            world.remove_flow(Table::New, &old);
        }
    }
}

/// What this node sends by UDP from a port that is a NodePort too: the answers are its own.
#[inline(always)]
pub(super) fn note_foreign<A: FlowAddr, W: Flows<A>>(world: &W, packet: &Headers<A>) {
    let from = packet.key.from();
    if packet.key.proto != Proto::UDP || !packet.opens() || !world.config().may_be_node_port(from.port) {
        return;
    }
    if !world.address(&from.addr).is_some_and(|address| address.has(Address::NODE)) {
        return;
    }
    let answers = packet.key.reversed();
    if world.flow(&answers).is_none() {
        world.put_flow(Table::New, &answers, &Flow::foreign(&answers, world.now_s()), false);
    }
}
