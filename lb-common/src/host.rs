//! The data path's traits over plain memory: the same decisions, on any machine.

use core::cell::{Cell, RefCell};
use std::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use crate::{
    abi::{
        Addr, Addr4, Address, Affinity, AffinityKey, Backend, BackendId, Config, Device, Flow, FlowAddr,
        FlowKey, FlowState, FragmentKey, FragmentPorts, Frontend, FrontendKey, L4Addr, Netns, Reason, Run,
        Service, ServiceFlags, ServiceId, Slot, SockTcp, SockUdp, Turn, UdpPeer,
    },
    datapath::{
        packet::{
            self, Flows, Place, Route, Side, Table, Verdict, Work,
            parse::{Packet, Part},
            refuse::{Budget, Reshape},
            rewrite::PacketMut,
        },
        sock::Socket,
        tables::Tables,
    },
};

/// Maps as ordered trees. `random` returns the numbers it was given, then 0 for ever.
#[derive(Clone, Default, Debug)]
pub struct MemTables {
    /// `lb_frontends`
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// `lb_addresses`
    pub addresses: BTreeMap<Addr, Address>,
    /// `lb_services`; an id that is not there is outside the array.
    pub services: BTreeMap<ServiceId, Service>,
    /// `lb_slots`
    pub slots: BTreeMap<u32, Slot>,
    /// `lb_backends`
    pub backends: BTreeMap<BackendId, Backend>,
    /// `lb_netns`
    pub netns: BTreeMap<u64, Netns>,
    /// `lb_config`
    pub config: Option<Config>,
    /// `lb_affinity`, without an end to its capacity
    pub affinity: RefCell<BTreeMap<AffinityKey, Affinity>>,
    /// What the next look-ups in `lb_affinity` do not find although it is there, as if it came a moment later.
    pub late_affinity: Cell<u32>,
    /// [`Tables::now_ms`]
    pub now_ms: Cell<u64>,
    /// [`Flows::now_s`], where that is not what [`MemTables::now_ms`] says: a program's are a little longer than seconds.
    pub clock_s: Cell<Option<u32>>,
    /// What [`Tables::random`] returns, last one first.
    pub random: RefCell<Vec<u32>>,
    /// `lb_turns` of the one CPU
    pub turns: RefCell<BTreeMap<u32, Turn>>,
    /// `lb_reasons`
    pub counts: RefCell<BTreeMap<Reason, u64>>,
    /// Frontends that the next look-ups return instead of the right one, last one first.
    pub foreign: RefCell<Vec<Frontend>>,
    /// `lb_devices`
    pub devices: BTreeMap<u32, Device>,
    /// Where addresses are. What is not there is behind [`MemTables::default_route`].
    pub routes: BTreeMap<Addr, Route>,
    /// Where all other addresses are; 0 means nowhere.
    pub default_route: u32,
    /// Who is in the source ranges of a service port.
    pub allowed: BTreeSet<(ServiceId, Addr)>,
    /// [`Flows::is_overheard`]
    pub overheard: Cell<bool>,
    /// Ports for masquerading.
    pub ports: Vec<u16>,
    /// `lb_frags`, without an end to its capacity
    pub fragments: RefCell<BTreeMap<FragmentKey, FragmentPorts>>,
    /// ICMP errors that were sent lately.
    pub budget: Cell<Budget>,
    /// `lb_new4`, `lb_flows4`
    pub flows4: MemFlows<Addr4>,
    /// `lb_new6`, `lb_flows6`
    pub flows6: MemFlows<Addr>,
}

/// The flow tables of one family.
#[derive(Clone, Debug)]
pub struct MemFlows<A> {
    /// Flows that have not proved both directions.
    pub new: RefCell<BTreeMap<FlowKey<A>, Flow<A>>>,
    /// Flows that have.
    pub kept: RefCell<BTreeMap<FlowKey<A>, Flow<A>>>,
    /// Entries that [`MemFlows::kept`] has room for.
    pub room: Cell<usize>,
    /// What the next look-ups do not find although it is there, as if it came a moment later.
    pub late: Cell<u32>,
    /// Writes so far.
    pub writes: Cell<u32>,
}

impl<A> Default for MemFlows<A> {
    fn default() -> Self {
        Self {
            new: RefCell::default(),
            kept: RefCell::default(),
            room: Cell::new(usize::MAX),
            late: Cell::new(0),
            writes: Cell::new(0),
        }
    }
}

impl<A: FlowAddr> MemFlows<A> {
    const fn table(&self, table: Table) -> &RefCell<BTreeMap<FlowKey<A>, Flow<A>>> {
        match table {
            Table::New => &self.new,
            Table::Kept => &self.kept,
        }
    }

    fn wrote(&self) {
        self.writes.set(self.writes.get().saturating_add(1));
    }

    fn change(&self, table: Table, key: &FlowKey<A>, change: impl FnOnce(&mut Flow<A>)) {
        if let Some(flow) = self.table(table).borrow_mut().get_mut(key) {
            self.wrote();
            change(flow);
        }
    }
}

/// A family, whose tables are its own.
pub trait Family: FlowAddr {
    /// The tables of this family.
    fn of(tables: &MemTables) -> &MemFlows<Self>;
}

impl Family for Addr4 {
    fn of(tables: &MemTables) -> &MemFlows<Self> {
        &tables.flows4
    }
}

impl Family for Addr {
    fn of(tables: &MemTables) -> &MemFlows<Self> {
        &tables.flows6
    }
}

impl<A: Family> Flows<A> for MemTables {
    fn flow(&self, key: &FlowKey<A>, into: &mut Flow<A>) -> Option<Table> {
        let tables = A::of(self);
        let late = tables.late.get();
        if late != 0 {
            tables.late.set(late.saturating_sub(1));
            return None;
        }
        [Table::Kept, Table::New].into_iter().find(|table| {
            let entries = tables.table(*table).borrow();
            entries.get(key).inspect(|flow| *into = **flow).is_some()
        })
    }

    fn put_flow(&self, table: Table, key: &FlowKey<A>, flow: &Flow<A>, replaces: bool) -> bool {
        let tables = A::of(self);
        let mut entries = tables.table(table).borrow_mut();
        let known = entries.contains_key(key);
        let full = table == Table::Kept && !known && entries.len() >= tables.room.get();
        let writes = !full && (replaces || !known);
        if writes {
            tables.wrote();
            entries.insert(*key, *flow);
        }
        writes
    }

    fn remove_flow(&self, table: Table, key: &FlowKey<A>) {
        A::of(self).table(table).borrow_mut().remove(key);
    }

    fn move_on(&self, key: &FlowKey<A>, answers: &FlowKey<A>) {
        self.remove_flow(Table::New, key);
        self.remove_flow(Table::New, answers);
    }

    fn put_seen(&self, table: Table, key: &FlowKey<A>, now_s: u32) {
        A::of(self).change(table, key, |flow| flow.seen_s = now_s);
    }

    fn put_state(&self, table: Table, key: &FlowKey<A>, state: FlowState) {
        A::of(self).change(table, key, |flow| flow.state = state);
    }

    fn now_s(&self) -> u32 {
        let seconds = u32::try_from(self.now_ms.get() / 1000).unwrap_or(u32::MAX);
        self.clock_s.get().unwrap_or(seconds)
    }

    fn device(&self, ifindex: u32) -> Option<Place> {
        let device = self.devices.get(&ifindex)?;
        Some(Place { bits: device.bits, controller: device.controller })
    }

    fn is_overheard(&self) -> bool {
        self.overheard.get()
    }

    fn source_at(&self, ifindex: u32) -> Option<A> {
        self.devices.get(&ifindex).and_then(A::of_device)
    }

    fn route(&self, key: &FlowKey<A>) -> Route {
        let fallback = match self.default_route {
            0 => Route::None,
            ifindex => Route::Out { ifindex },
        };
        let (src, dst) = (key.src.widen(), key.dst.widen());
        // The kernel forwards nothing that has an address of the link.
        if is_of_the_link(src) || is_of_the_link(dst) {
            return Route::Local;
        }
        self.routes.get(&dst).copied().unwrap_or(fallback)
    }

    fn masquerade_port(&self, random: u32) -> Option<u16> {
        let count = u32::try_from(self.ports.len()).ok()?;
        self.ports.get(random.checked_rem(count)? as usize).copied()
    }

    fn allows(&self, service: ServiceId, client: Addr) -> bool {
        self.allowed.contains(&(service, client))
    }

    fn ports(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        self.fragments.borrow().get(key).copied()
    }

    fn put_ports(&self, key: &FragmentKey, ports: FragmentPorts) -> bool {
        self.fragments.borrow_mut().insert(*key, ports);
        true
    }

    fn may_tell(&self) -> bool {
        let mut budget = self.budget.get();
        let may = budget.take(self.now_ms.get());
        self.budget.set(budget);
        may
    }

    fn begin(&self, ifindex: u32, work: &mut Work<A>) -> Verdict {
        packet::begin(self, ifindex, work)
    }

    fn commit(&self, work: &mut Work<A>, former: Option<Table>) -> Verdict {
        packet::commit(self, work, former)
    }

    fn reserve(&self, work: &mut Work<A>) -> bool {
        packet::reserve(self, work)
    }

    fn first(&self, _side: Side, work: &mut Work<A>, id: u32) {
        let _written = packet::fragment::first(self, work, id);
    }

    fn later(&self, _side: Side, work: &mut Work<A>, id: u32) -> bool {
        packet::fragment::later(self, work, id)
    }
}

/// Whether an IPv6 address means another machine on each link: multicast, link-local and loopback (`rt6_need_strict`).
fn is_of_the_link(addr: Addr) -> bool {
    let [first, second, ..] = addr.octets;
    first == 0xff || (first == 0xfe && second & 0xc0 == 0x80) || addr == Addr::LOOPBACK_V6
}

impl MemTables {
    /// How often `reason` was counted.
    pub fn counted(&self, reason: Reason) -> u64 {
        self.counts.borrow().get(&reason).copied().unwrap_or(0)
    }
}

impl Tables for MemTables {
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.foreign.borrow_mut().pop().or_else(|| self.frontends.get(key).copied())
    }

    fn address(&self, addr: &Addr) -> Option<Address> {
        self.addresses.get(addr).copied()
    }

    fn cluster_run(&self, service: ServiceId) -> Option<Run> {
        self.services.get(&service).map(|service| service.cluster)
    }

    fn local_run(&self, service: ServiceId) -> Option<Run> {
        self.services.get(&service).map(|service| service.local)
    }

    fn policy(&self, service: ServiceId) -> Option<(ServiceFlags, u32)> {
        self.services.get(&service).map(|service| (service.flags, service.affinity_s))
    }

    fn service_generation(&self, service: ServiceId) -> Option<u32> {
        self.services.get(&service).map(|service| service.generation)
    }

    fn slot(&self, slot: u32) -> Option<Slot> {
        self.slots.get(&slot).copied()
    }

    fn backend(&self, id: BackendId) -> Option<Backend> {
        self.backends.get(&id).copied()
    }

    fn netns(&self, cookie: u64) -> Option<Netns> {
        self.netns.get(&cookie).copied()
    }

    fn affinity(&self, key: &AffinityKey, into: &mut Affinity) -> bool {
        let late = self.late_affinity.get();
        if late != 0 {
            self.late_affinity.set(late.saturating_sub(1));
            return false;
        }
        self.affinity.borrow().get(key).inspect(|entry| *into = **entry).is_some()
    }

    fn put_affinity(&self, key: &AffinityKey, entry: &Affinity, replaces: bool) -> bool {
        let mut entries = self.affinity.borrow_mut();
        let notes = replaces || !entries.contains_key(key);
        if notes {
            entries.insert(*key, *entry);
        }
        notes
    }

    fn touch_affinity(&self, key: &AffinityKey, now_ms: u64) {
        if let Some(entry) = self.affinity.borrow_mut().get_mut(key) {
            entry.seen_ms = now_ms;
        }
    }

    fn now_ms(&self) -> u64 {
        self.now_ms.get()
    }

    fn config(&self) -> Config {
        self.config.unwrap_or(Config::OFF)
    }

    fn random(&self) -> u32 {
        self.random.borrow_mut().pop().unwrap_or(0)
    }

    fn turn(&self, service: ServiceId) -> u32 {
        let mut turns = self.turns.borrow_mut();
        let entry = turns.entry(Turn::index(service)).or_default();
        let (turn, next) = entry.take(service, || self.random());
        *entry = next;
        turn
    }

    fn count(&self, reason: Reason) {
        let mut counts = self.counts.borrow_mut();
        let count = counts.entry(reason).or_default();
        *count = count.saturating_add(1);
    }
}

/// A socket with its storage.
#[derive(Debug)]
pub struct MemSocket {
    /// Cookie of its namespace.
    pub netns: u64,
    /// Whether it is the host's.
    pub host: bool,
    /// Whether it is bound to a device.
    pub device: bool,
    /// Whether storage can be allocated.
    pub memory: bool,
    /// `lb_sock_tcp`
    pub tcp: Option<SockTcp>,
    /// `lb_sock_udp`
    pub udp: Option<SockUdp>,
    /// Writes to `lb_sock_udp` so far.
    pub udp_writes: Cell<u32>,
}

impl MemSocket {
    /// A socket of a pod whose namespace has this cookie.
    pub const fn in_pod(netns: u64) -> Self {
        Self {
            netns,
            host: false,
            device: false,
            memory: true,
            tcp: None,
            udp: None,
            udp_writes: Cell::new(0),
        }
    }

    /// A socket of the host.
    pub const fn on_host() -> Self {
        Self { host: true, ..Self::in_pod(1) }
    }
}

impl Socket for MemSocket {
    fn netns(&self) -> u64 {
        self.netns
    }

    fn is_host(&self) -> bool {
        self.host
    }

    fn is_bound_to_device(&self) -> bool {
        self.device
    }

    fn tcp(&self) -> Option<SockTcp> {
        self.tcp
    }

    fn remember_tcp(&mut self, sock: &SockTcp) -> bool {
        if self.memory {
            self.tcp = Some(*sock);
        }
        self.memory
    }

    fn forget_tcp(&mut self) {
        if let Some(tcp) = &mut self.tcp {
            *tcp = SockTcp::NONE;
        }
    }

    fn open_udp(&mut self, create: bool) -> bool {
        if self.udp.is_none() && create && self.memory {
            self.udp = Some(SockUdp::NONE);
        }
        self.udp.is_some()
    }

    fn udp_peer(&self, index: u32) -> UdpPeer {
        self.udp.and_then(|udp| udp.peers.get(index as usize).copied()).unwrap_or(UdpPeer::NONE)
    }

    fn udp_frontend(&self, index: u32) -> L4Addr {
        self.udp_peer(index).frontend()
    }

    fn udp_target(&self, index: u32) -> L4Addr {
        self.udp_peer(index).target()
    }

    fn udp_backend(&self, index: u32) -> Option<(BackendId, u32)> {
        let peer = self.udp_peer(index);
        (peer.check != 0).then_some((peer.backend, peer.generation))
    }

    fn udp_service(&self, index: u32) -> ServiceId {
        self.udp_peer(index).service
    }

    fn void_udp_peer(&mut self, index: u32) {
        self.put_udp_peer(index, &UdpPeer::NONE);
    }

    fn put_udp_peer(&mut self, index: u32, peer: &UdpPeer) {
        self.udp_writes.set(self.udp_writes.get().saturating_add(1));
        if let Some(place) = self.udp.as_mut().and_then(|udp| udp.peers.get_mut(index as usize)) {
            *place = *peer;
        }
    }

    fn newest_udp(&self) -> u32 {
        self.udp.map_or(0, |udp| udp.newest)
    }

    fn put_newest_udp(&mut self, index: u32) {
        self.udp_writes.set(self.udp_writes.get().saturating_add(1));
        if let Some(udp) = &mut self.udp {
            udp.newest = index;
        }
    }
}

/// A packet in plain memory.
#[derive(Debug)]
pub struct Frame {
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A copy of some bytes of a [`Frame`].
#[derive(Debug)]
pub struct FramePart {
    bytes: Vec<u8>,
}

impl Packet for Frame {
    type Part = FramePart;

    fn part<const LEN: usize>(&self, offset: usize) -> Option<FramePart> {
        let bytes = self.bytes.get(offset..)?.get(..LEN)?;
        Some(FramePart { bytes: bytes.to_vec() })
    }
}

impl PacketMut for Frame {
    fn store<const LEN: usize>(&mut self, offset: usize, bytes: [u8; LEN]) -> bool {
        let place = self.bytes.get_mut(offset..).and_then(|rest| rest.get_mut(..LEN));
        place.map(|place| place.copy_from_slice(&bytes)).is_some()
    }
}

impl Reshape for Frame {
    fn resize(&mut self, len: usize) -> bool {
        self.bytes.resize(len, 0);
        true
    }

    fn make_room(&mut self, l3: usize, len: usize) -> bool {
        let fits = l3 <= self.bytes.len();
        if fits {
            self.bytes.splice(l3..l3, core::iter::repeat_n(0, len));
        }
        fits
    }

    fn is_unfinished(&mut self, _offset: usize) -> bool {
        false
    }
}

impl FramePart {
    fn array<const LEN: usize>(&self, offset: usize) -> [u8; LEN] {
        let bytes = self.bytes.get(offset..).and_then(|rest| rest.first_chunk());
        #[expect(
            clippy::expect_used,
            reason = "no verifier accepts a program that reads further than it has asked for"
        )]
        let bytes = bytes.expect("a part is as long as it was asked for");
        *bytes
    }
}

impl Part for FramePart {
    fn load16(&self, offset: usize) -> u16 {
        u16::from_be_bytes(self.array(offset))
    }

    fn load32(&self, offset: usize) -> [u8; 4] {
        self.array(offset)
    }
}
