//! A node for the tests of packets: two uplinks, an overlay, pods behind veths and behind a bridge, in both families.
//!
//! Addresses have names, so that one test holds for both families. A packet is written `client:4000 > lb:80`, what becomes of it
//! `client:4000 > p11:8080 on`, `pass`, `drop` or `refuse`.

use core::net::IpAddr;
use std::{format, string::String, vec::Vec};

use super::{
    Flows, Route, Side, Table, Verdict, Way, Work, egress,
    express::express,
    ingress,
    parse::{Fragment, Headers, TcpFlags},
    refuse::Answers,
};
use crate::{
    abi::{
        Addr, Addr4, Address, Backend, BackendId, BackendState, Config, Device, Flow, FlowAddr as _, FlowKey,
        FlowState, Frontend, FrontendKey, FrontendKind, L4Addr, PacketLb, Proto, Run, Service, ServiceFlags,
        ServiceId, Slot,
    },
    host::{Family, MemFlows, MemTables},
};

/// Name, IPv4, IPv6 and the device that leads there.
const PLACES: [(&str, &str, &str, u32); 16] = [
    ("client", "198.51.100.7", "2001:db8:7::7", UPLINK),
    ("other", "198.51.100.8", "2001:db8:7::8", UPLINK),
    ("vip", "10.96.0.10", "fd00:96::a", UPLINK),
    ("vip2", "10.96.0.11", "fd00:96::b", UPLINK),
    ("lb", "203.0.113.1", "2001:db8:1::1", UPLINK),
    ("ext", "203.0.113.9", "2001:db8:1::9", UPLINK),
    ("node", "192.0.2.1", "2001:db8:2::1", 0),
    ("node3", "192.0.3.1", "2001:db8:3::1", 0),
    ("tunnel", "10.1.0.0", "fd00:1::", 0),
    ("bridge", "10.1.5.1", "fd00:1:5::1", 0),
    ("p11", "10.1.1.11", "fd00:1:1::11", 11),
    ("p12", "10.1.1.12", "fd00:1:1::12", 12),
    ("b1", "10.1.5.11", "fd00:1:5::11", BRIDGE),
    ("b2", "10.1.5.12", "fd00:1:5::12", BRIDGE),
    ("far", "10.1.2.21", "fd00:1:2::21", OVERLAY),
    ("lost", "10.9.9.9", "fd00:9::9", 0),
];
pub(super) const UPLINK: u32 = 2;
pub(super) const UPLINK3: u32 = 3;
pub(super) const OVERLAY: u32 = 4;
pub(super) const BRIDGE: u32 = 5;
/// A device that is not served.
pub(super) const DARK: u32 = 9;
pub(super) const SERVICE: ServiceId = ServiceId { index: 1 };

/// A node of one family.
pub(super) struct Net {
    pub(super) v6: bool,
    pub(super) world: MemTables,
}

/// The same test in both families.
pub(super) fn both(test: impl Fn(Net)) {
    for v6 in [false, true] {
        test(Net::of(v6));
    }
}

impl Net {
    pub(super) fn of(v6: bool) -> Self {
        let mut net = Self { v6, world: MemTables::default() };
        net.world.config = Some(Config { node_port_min: 30_000, node_port_max: 30_100, ..Config::OFF });
        net.world.ports = (2000..2100).collect();
        for (name, .., ifindex) in PLACES {
            let route = match (name, ifindex) {
                ("lost", _) => Route::None,
                (_, 0) => Route::Local,
                _ => Route::Out { ifindex },
            };
            net.world.routes.insert(net.addr(name), route);
            if route == Route::Local {
                net.world.addresses.insert(net.addr(name), Address::NODE);
            }
        }
        for (ifindex, name, bits) in [
            (UPLINK, "node", 0),
            (UPLINK3, "node3", 0),
            (OVERLAY, "tunnel", 0),
            (BRIDGE, "bridge", Device::PODS | Device::SHARED),
            (11, "node", Device::PODS),
            (12, "node", Device::PODS),
        ] {
            let [v4, v6] = [false, true].map(|v6| addr(name, v6));
            net.world.devices.insert(ifindex, Device { v4: Addr4::narrow(v4), v6, bits, ..Device::NONE });
        }
        net
    }

    pub(super) fn addr(&self, name: &str) -> Addr {
        addr(name, self.v6)
    }

    fn name(&self, addr: Addr) -> String {
        let known = PLACES.iter().find(|(name, ..)| self.addr(name) == addr);
        known.map_or_else(|| format!("{addr}"), |(name, ..)| String::from(*name))
    }

    /// `name:port`
    pub(super) fn at(&self, text: &str) -> L4Addr {
        let (name, port) = text.split_once(':').unwrap();
        L4Addr { addr: self.addr(name), port: port.parse().unwrap() }
    }

    fn ends(&self, text: &str) -> (L4Addr, L4Addr) {
        let (from, to) = text.split_once(" > ").unwrap();
        (self.at(from), self.at(to))
    }

    /// Adds a frontend. `any` is the address of NodePorts.
    pub(super) fn accept(&mut self, kind: FrontendKind, to: &str, proto: Proto, service: ServiceId) {
        let at = match to.split_once(':') {
            Some(("any", port)) => L4Addr { addr: self.addr("vip").any(), port: port.parse().unwrap() },
            _ => self.at(to),
        };
        let key = FrontendKey::new(at, proto);
        self.world.frontends.insert(key, Frontend::new(key, service, kind));
    }

    /// Adds every kind of frontend of port 80 for `service`, TCP and UDP: `vip`, `ext`, `lb` and NodePort 30080.
    pub(super) fn accept_all(&mut self, service: ServiceId) {
        for proto in [Proto::TCP, Proto::UDP] {
            self.accept(FrontendKind::ClusterIp, "vip:80", proto, service);
            self.accept(FrontendKind::ExternalIp, "ext:80", proto, service);
            self.accept(FrontendKind::LoadBalancer, "lb:80", proto, service);
            self.accept(FrontendKind::NodePort, "any:30080", proto, service);
        }
        let key = FrontendKey::other_ports(self.addr("vip"));
        self.world.frontends.insert(key, Frontend::new(key, service, FrontendKind::OtherPorts));
    }

    /// A run of backends at port 8080. Those behind this node's pod devices, and its own, are here.
    pub(super) fn run(&mut self, names: &[&str]) -> Run {
        let base = u32::try_from(self.world.slots.len()).unwrap();
        for (index, name) in (base..).zip(names) {
            let backend = BackendId { index: index + 1 };
            let addr = self.addr(name);
            let slot = Slot { addr, port: 8080, backend, generation: 1, ..Slot::FREE };
            self.world.slots.insert(index, slot);
            let here = ["p11", "p12", "b1", "b2", "node"].contains(name);
            let runs = Backend::IN_CLUSTER | Backend::IN_LOCAL | if here { Backend::HERE } else { 0 };
            let state = BackendState::Active as u8;
            self.world.backends.insert(backend, Backend { generation: 1, state, runs, pad: 0 });
        }
        Run { base, count: u16::try_from(names.len()).unwrap(), generation: 1 }
    }

    /// Service 1 at all frontends, with these backends for both runs.
    pub(super) fn serve(mut self, names: &[&str]) -> Self {
        let run = self.run(names);
        self.world.services.insert(SERVICE, Service { cluster: run, local: run, ..Service::FREE });
        self.accept_all(SERVICE);
        self
    }

    pub(super) fn service(&mut self) -> &mut Service {
        self.world.services.get_mut(&SERVICE).unwrap()
    }

    pub(super) fn flags(&mut self, flags: ServiceFlags) {
        self.service().flags = flags;
    }

    pub(super) fn packets(&mut self, packets: PacketLb) {
        self.world.config.as_mut().unwrap().packets = packets;
    }

    /// The backend id of a name is freed, as the agent does when an endpoint leaves.
    pub(super) fn leave(&mut self, name: &str) {
        let addr = self.addr(name);
        let slot = self.world.slots.values().find(|slot| slot.addr == addr).unwrap();
        let freed = Backend { generation: 2, state: BackendState::Free as u8, runs: 0, pad: 0 };
        self.world.backends.insert(slot.backend, freed);
    }

    /// The next random numbers: places of a run of `of`, then ports.
    pub(super) fn choose(&self, numbers: &[(u32, u32)]) {
        let word = |&(place, of): &(u32, u32)| {
            u32::MAX.checked_div(of).map_or(place, |step| step * place + step / 2)
        };
        *self.world.random.borrow_mut() = numbers.iter().rev().map(word).collect();
    }

    pub(super) fn after_s(&self, seconds: u64) {
        self.world.now_ms.set(self.world.now_ms.get() + seconds * 1000);
    }

    /// A packet that comes from a device.
    pub(super) fn comes(&self, ifindex: u32, ends: &str, kind: Kind) -> String {
        self.decide(ifindex, ends, kind, Side::Ingress)
    }

    /// A packet that leaves by a device.
    pub(super) fn leaves(&self, ifindex: u32, ends: &str, kind: Kind) -> String {
        self.decide(ifindex, ends, kind, Side::Egress)
    }

    fn decide(&self, ifindex: u32, ends: &str, kind: Kind, side: Side) -> String {
        if self.v6 {
            self.decide_in::<Addr>(ifindex, ends, kind, side)
        } else {
            self.decide_in::<Addr4>(ifindex, ends, kind, side)
        }
    }

    fn decide_in<A: Family>(&self, ifindex: u32, ends: &str, kind: Kind, side: Side) -> String {
        let (from, to) = self.ends(ends);
        let packet = Headers::<A> {
            key: FlowKey::new(from, to, kind.proto),
            l4: 34,
            tcp: kind.tcp,
            ttl: kind.ttl,
            fragment: kind.fragment,
        };
        let mut work = Work::new(packet);
        let verdict = match side {
            Side::Ingress => ingress(&self.world, ifindex, &mut work),
            Side::Egress => egress(&self.world, ifindex, &mut work),
        };
        match verdict {
            Verdict::Pass => "pass".into(),
            Verdict::Drop => "drop".into(),
            Verdict::Refuse => "refuse".into(),
            Verdict::Translate(way) => self.said(&work.after, way),
        }
    }

    fn said<A: Family>(&self, after: &FlowKey<A>, way: Way) -> String {
        let (from, to) = (after.from(), after.to());
        let way = match way {
            Way::On => "on".into(),
            Way::Routed => "routed".into(),
            Way::Device { ifindex } => format!("device {ifindex}"),
        };
        let (src, dst) = (self.name(from.addr), self.name(to.addr));
        format!("{src}:{} > {dst}:{} {way}", from.port, to.port)
    }

    /// A packet at XDP, with `more` bytes between its IP and its L4 header.
    pub(super) fn expressed(&self, ends: &str, kind: Kind, more: usize) -> String {
        if self.v6 {
            self.expressed_in::<Addr>(ends, kind, more)
        } else {
            self.expressed_in::<Addr4>(ends, kind, more)
        }
    }

    fn expressed_in<A: Family + Answers>(&self, ends: &str, kind: Kind, more: usize) -> String {
        let (from, to) = self.ends(ends);
        let (key, l4) = (FlowKey::new(from, to, kind.proto), 14 + A::LEN + more);
        let packet = Headers::<A> { key, l4, tcp: kind.tcp, ttl: kind.ttl, fragment: kind.fragment };
        let mut work = Work::new(packet);
        let way = express(&self.world, 14, &mut work);
        way.map_or_else(|| "pass".into(), |way| self.said(&work.after, way))
    }

    /// Which table has an entry for these ends, and what it has seen.
    pub(super) fn entry(&self, ends: &str, proto: Proto) -> Option<(Table, FlowState)> {
        let (from, to) = self.ends(ends);
        if self.v6 {
            state_of(&self.world, &FlowKey::<Addr>::new(from, to, proto))
        } else {
            state_of(&self.world, &FlowKey::<Addr4>::new(from, to, proto))
        }
    }

    /// The ends of all entries of a table.
    pub(super) fn entries(&self, table: Table) -> Vec<String> {
        fn all<A: Family>(net: &Net, table: Table) -> Vec<String> {
            let tables = A::of(&net.world);
            let entries = match table {
                Table::New => &tables.new,
                Table::Kept => &tables.kept,
            };
            let end = |at: L4Addr| format!("{}:{}", net.name(at.addr), at.port);
            entries.borrow().keys().map(|key| format!("{} > {}", end(key.from()), end(key.to()))).collect()
        }
        if self.v6 { all::<Addr>(self, table) } else { all::<Addr4>(self, table) }
    }

    /// Does something with the tables of the family.
    pub(super) fn tables(&self, with: impl FnOnce(&dyn Tables)) {
        if self.v6 { with(&self.world.flows6) } else { with(&self.world.flows4) }
    }
}

/// What tests do to flow tables of either family.
pub(super) trait Tables {
    fn make_room(&self, entries: usize);
    fn hide(&self, look_ups: u32);
    fn writes(&self) -> u32;
    fn evict_new(&self);
}

impl<A: Ord> Tables for MemFlows<A> {
    fn make_room(&self, entries: usize) {
        self.room.set(entries);
    }

    fn hide(&self, look_ups: u32) {
        self.late.set(look_ups);
    }

    fn writes(&self) -> u32 {
        self.writes.get()
    }

    fn evict_new(&self) {
        self.new.borrow_mut().clear();
    }
}

fn state_of<A: Family>(world: &MemTables, key: &FlowKey<A>) -> Option<(Table, FlowState)> {
    let mut flow = Flow::NONE;
    let table = world.flow(key, &mut flow)?;
    Some((table, flow.state))
}

/// What kind of packet.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    proto: Proto,
    tcp: TcpFlags,
    ttl: u8,
    fragment: Fragment,
}

impl Kind {
    pub(super) const UDP: Self =
        Self { proto: Proto::UDP, tcp: TcpFlags { bits: 0 }, ttl: 64, fragment: Fragment::WHOLE };
    pub(super) const SYN: Self = Self { proto: Proto::TCP, tcp: TcpFlags::SYN, ..Self::UDP };
    pub(super) const SYN_ACK: Self = Self { tcp: TcpFlags { bits: 2 | 16 }, ..Self::SYN };
    pub(super) const ACK: Self = Self { tcp: TcpFlags::ACK, ..Self::SYN };
    pub(super) const FIN: Self = Self { tcp: TcpFlags { bits: 1 | 16 }, ..Self::SYN };
    pub(super) const RST: Self = Self { tcp: TcpFlags::RST, ..Self::SYN };
    pub(super) const INIT: Self = Self { proto: Proto::SCTP, ..Self::SYN };
    pub(super) const DATA: Self = Self { proto: Proto::SCTP, ..Self::UDP };
    pub(super) const SHUTDOWN: Self = Self { tcp: TcpFlags::FIN, ..Self::DATA };
    pub(super) const ABORT: Self = Self { tcp: TcpFlags::RST, ..Self::DATA };

    pub(super) const fn piece(self, fragment: Fragment) -> Self {
        Self { fragment, ..self }
    }

    pub(super) const fn ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }
}

fn addr(name: &str, v6: bool) -> Addr {
    let (_, four, six, _) = PLACES.iter().find(|(place, ..)| *place == name).unwrap();
    let text = if v6 { six } else { four };
    text.parse::<IpAddr>().unwrap().into()
}
