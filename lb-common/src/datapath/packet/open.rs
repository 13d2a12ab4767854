//! The first packet of a flow: who serves it and from which address, or why nobody does.

use super::{Flows, Place, Route, Table, Verdict, Way, Work, parse::Headers, track::find};
use crate::{
    abi::{
        Addr, Address, Backend, Client, Device, Direction, Flow, FlowAddr, FlowBits, FlowKey, Frontend,
        FrontendKey, FrontendKind, L4Addr, Opened, PacketLb, Proto, Reason, ServiceFlags, ServiceId,
    },
    datapath::{
        select::{Algorithm, Served, choose},
        tables::owned_frontend,
    },
};

/// Ports that are tried for a masqueraded flow: with two of three taken, one of 40 million flows finds none.
const PORT_TRIES: u32 = 43;
/// Seconds after its last packet before the port of a connection that is over is used again.
const CLOSED_S: u32 = 2;

/// Decides a packet that may open a flow. `former` is where [`Work::flow`] is, if there was a flow with the same ends, which is over.
#[inline(always)]
pub(super) fn open<A: FlowAddr, W: Flows<A>>(
    world: &W,
    ifindex: u32,
    work: &mut Work<A>,
    former: Option<Table>,
) -> Verdict {
    let verdict = world.begin(ifindex, work);
    if !matches!(verdict, Verdict::Translate(_)) {
        return verdict;
    }
    if !find_port(world, work) {
        world.count(Reason::NoPort);
        return Verdict::Drop;
    }
    world.commit(work, former)
}

/// Who serves a new flow, and from which address: [`Work::after`] but for the source port, and `Work::opened`. The verdict, if that is not
/// to translate.
#[inline(always)]
pub fn begin<A: FlowAddr, W: Flows<A>>(world: &W, ifindex: u32, work: &mut Work<A>) -> Verdict {
    let Some(frontend) = frontend(world, &work.packet) else { return Verdict::Pass };
    if !work.packet.opens() && !joins(world, &work.packet, frontend) {
        return Verdict::Pass;
    }
    let Some(Place { bits: device, controller }) = world.device(ifindex) else { return Verdict::Pass };
    // At a port of a bridge everything is sent to somebody else: the bridge.
    if device & Device::PODS == 0 && world.is_overheard() {
        return Verdict::Pass;
    }
    let served = match served(world, device, &work.packet, frontend) {
        Ok(served) => served,
        Err(verdict) => return verdict,
    };
    let Some(chosen) = choose(world, &served, &mut work.room) else { return Verdict::Drop };
    work.after = FlowKey { dst: A::narrow(chosen.target.addr), dport: chosen.target.port, ..work.packet.key };
    work.opened = Opened {
        ifindex,
        backend: chosen.backend,
        generation: chosen.generation,
        service: served.service,
        bits: FlowBits::default(),
        now_s: work.now_s,
    };
    let refused = match masquerade(world, (device, controller), work) {
        Err(reason) => Some(reason),
        Ok(()) if is_masqueraded(work) && work.packet.ttl <= 1 => Some(Reason::TtlExceeded),
        Ok(()) => None,
    };
    if let Some(reason) = refused {
        world.count(reason);
        return Verdict::Drop;
    }
    way(work)
}

/// Whether a segment in the middle of a connection may open a flow: where Maglev chooses, another node that the connection came
/// to before has chosen the same backend.
///
/// Not at an address of this node: what this node has connected itself is answered to a port that may be a frontend, too.
#[inline(always)]
fn joins<A: FlowAddr, W: Flows<A>>(world: &W, packet: &Headers<A>, frontend: Frontend) -> bool {
    frontend.kind != FrontendKind::OtherPorts as u8
        && world.policy(frontend.service).is_some_and(|(flags, _)| flags.has(ServiceFlags::MAGLEV))
        && !world.address(&packet.key.dst.widen()).is_some_and(|address| address.has(Address::NODE))
}

#[inline(always)]
fn way<A>(work: &Work<A>) -> Verdict {
    Verdict::Translate(if is_masqueraded(work) { Way::Routed } else { Way::On })
}

#[inline(always)]
fn is_masqueraded<A>(work: &Work<A>) -> bool {
    work.opened.bits.has(FlowBits::MASQUERADED)
}

/// The frontend of a packet's destination. The order of matching is that of semantics 2.22.
#[inline(always)]
fn frontend<A: FlowAddr, W: Flows<A>>(world: &W, packet: &Headers<A>) -> Option<Frontend> {
    let to = packet.key.to();
    let proto = packet.key.proto;
    // RFC 4291 2.5.5.2: in a packet of IPv6 such an address is nobody's. Here it would be the IPv4 frontend's, or an IPv4 client's.
    if size_of::<A>() == size_of::<Addr>() && (to.addr.is_v4() || packet.key.src.widen().is_v4()) {
        return None;
    }
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
) -> Result<Served, Verdict> {
    let client = packet.key.src.widen();
    let service = frontend.service;
    let is_pod = device & Device::PODS != 0
        || (world.config().packets.has(PacketLb::POD_RANGES) && world.allows(ServiceId::PODS, client));
    let internal =
        frontend.kind == FrontendKind::ClusterIp as u8 || frontend.kind == FrontendKind::OtherPorts as u8;
    if internal && !is_pod && !world.config().packets.has(PacketLb::EXTERNAL_CLUSTER_IP) {
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
        flags.has(ServiceFlags::EXTERNAL_LOCAL) && !is_pod
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
    let algorithm = Algorithm::of_packet(flags, packet.key.from(), packet.key.to(), packet.key.proto);
    Ok(Served { service, client: Client::of_addr(client), run, affinity_s, algorithm, member })
}

/// Gives [`Work::after`], the packet on its way to the backend, the source that the backend is to see: an address of this node, or the
/// client's own.
///
/// A backend on this node answers by way of this node, whoever the client is (MQ-3 leaves that open). So does every backend that
/// a pod of this node has asked: the answer passes the pod's own device.
#[inline(always)]
fn masquerade<A: FlowAddr, W: Flows<A>>(
    world: &W,
    (device, controller): (u32, u32),
    work: &mut Work<A>,
) -> Result<(), Reason> {
    let Work { after, opened, .. } = work;
    let is_pod = device & Device::PODS != 0;
    let shared = device & Device::SHARED != 0;
    let hairpin = after.src == after.dst;
    let all = world.config().packets.has(PacketLb::MASQUERADE_ALL);
    let here = world.backend(opened.backend).is_some_and(|backend| backend.runs & Backend::HERE != 0);
    let must = hairpin || all || !(is_pod || here);
    if !must && !shared {
        return Ok(());
    }
    let ifindex = match world.route(after) {
        Route::Out { ifindex } => ifindex,
        // A process of this node: it answers by way of this node.
        Route::Local => return Ok(()),
        Route::None => return if must { Err(Reason::NoRoute) } else { Ok(()) },
    };
    if !must && ifindex != opened.ifindex {
        return Ok(());
    }
    after.src = world.source_at(ifindex).ok_or(Reason::NoRoute)?;
    opened.bits = FlowBits::MASQUERADED;
    if controller != 0 {
        // Answers are sent out of it by this node, and a port of a bridge has no neighbours of its own.
        opened.ifindex = controller;
    }
    Ok(())
}

/// Writes the entry of the client's packets, once that of the answers is written.
#[inline(always)]
pub fn commit<A: FlowAddr, W: Flows<A>>(world: &W, work: &mut Work<A>, former: Option<Table>) -> Verdict {
    work.entry = Flow::new(&work.packet.key, &work.after, Direction::Original, &work.opened);
    if !world.put_flow(Table::New, &work.packet.key, &work.entry, former.is_some()) {
        return follow_first(world, work);
    }
    if let Some(table) = former {
        forget(world, work, table);
    }
    world.count(Reason::Flow);
    way(work)
}

/// Writes the entry of the answers to [`Work::after`], with a source port that is free.
#[inline(always)]
fn find_port<A: FlowAddr, W: Flows<A>>(world: &W, work: &mut Work<A>) -> bool {
    // Masqueraded; or the client asks another frontend from the same port, and has met the same backend: another source port
    // tells the answers apart.
    let keeps_port = !is_masqueraded(work);
    for attempt in 0..PORT_TRIES {
        if !(keeps_port && attempt == 0) {
            let Some(port) = world.masquerade_port(world.random()) else { return false };
            work.after.sport = port;
        }
        if world.reserve(work) {
            return true;
        }
    }
    false
}

/// Writes the entry of the answers to [`Work::after`] where none is, or one that is over.
#[inline(always)]
pub fn reserve<A: FlowAddr, W: Flows<A>>(world: &W, work: &mut Work<A>) -> bool {
    let Work { packet, after, answers, entry, opened, .. } = work;
    *answers = after.reversed();
    let taken = world.flow(answers, entry);
    if taken.is_some() {
        let same = entry.is_of(answers) && entry.restores(&packet.key);
        let over = entry.state.is_closing() && opened.now_s.wrapping_sub(entry.seen_s) >= CLOSED_S;
        if !same && !over {
            return false;
        }
    }
    *entry = Flow::new(answers, &packet.key.reversed(), Direction::Reply, opened);
    let written = world.put_flow(Table::New, answers, entry, taken.is_some());
    if written && taken == Some(Table::Kept) {
        world.remove_flow(Table::Kept, answers);
    }
    written
}

/// Another packet of the same flow was faster: this one follows it.
#[inline(always)]
fn follow_first<A: FlowAddr, W: Flows<A>>(world: &W, work: &mut Work<A>) -> Verdict {
    let Work { packet, after, answers, entry, opened, .. } = work;
    let found = find(world, &packet.key, entry).is_some() && entry.goes(Direction::Original);
    if !(found && entry.leads_to(after)) {
        world.remove_flow(Table::New, answers);
    }
    if !found {
        world.count(Reason::NoFlow);
        return Verdict::Drop;
    }
    *after = entry.rewritten(&packet.key);
    opened.bits = entry.bits;
    way(work)
}

/// Deletes what is left of a flow that had the same ends: the kept entry, which hides the new one, and the entry of its
/// answers.
#[inline(always)]
fn forget<A: FlowAddr, W: Flows<A>>(world: &W, work: &mut Work<A>, table: Table) {
    if table == Table::Kept {
        world.remove_flow(Table::Kept, &work.packet.key);
    }
    if work.flow.goes(Direction::Original) && !work.flow.leads_to(&work.after) {
        work.answers = work.flow.other_key(&work.packet.key);
        world.remove_flow(Table::Kept, &work.answers);
        world.remove_flow(Table::New, &work.answers);
    }
}

/// What this node sends by UDP from a port that is a NodePort too: the answers are its own.
#[inline(always)]
pub(super) fn note_foreign<A: FlowAddr, W: Flows<A>>(world: &W, work: &mut Work<A>) {
    let key = &work.packet.key;
    if key.proto != Proto::UDP
        || !world.config().may_be_node_port(key.sport)
        || !world.address(&key.src.widen()).is_some_and(|address| address.has(Address::NODE))
    {
        return;
    }
    work.answers = key.reversed();
    if world.flow(&work.answers, &mut work.entry).is_none() {
        work.entry = Flow::foreign(&work.answers, work.now_s);
        world.put_flow(Table::New, &work.answers, &work.entry, false);
    }
}
