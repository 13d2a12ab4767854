//! What the maps say is served, as rows: frontends, runs, backends.
//!
//! Pure over [`Array`], so the tests need no kernel.

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    abi::{
        Backend, BackendState, Frontend, FrontendKey, FrontendKind, L4Addr, Run, Service, ServiceFlags, Slot,
        maps,
    },
    datapath::sock::may_use,
};
use serde::Serialize;

use super::pinned::Pinned;
use crate::{
    maps::{Array, Table as _, read},
    model::Algorithm,
    reconcile::{draining_slots, slots_of},
};

/// A run may be replaced while it is read; a service that changes faster than so many readings is shown as read last.
const READINGS: usize = 8;

/// What the agent calls a service port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub(super) struct PortLabel {
    /// Of the Service.
    pub(super) namespace: String,
    /// Of the Service.
    pub(super) name: String,
    /// Empty for a single unnamed port.
    pub(super) port: String,
}

impl PortLabel {
    /// `namespace/name`
    pub(super) fn service(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Names by service id.
pub(super) type Names = BTreeMap<u32, PortLabel>;

/// The maps that say what is served.
pub(super) struct Served {
    /// Sorted by key.
    pub(super) frontends: Vec<(FrontendKey, Frontend)>,
    /// `lb_services`
    pub(super) services: Box<dyn Array>,
    /// `lb_slots`
    pub(super) slots: Box<dyn Array>,
    /// `lb_backends`
    pub(super) backends: Box<dyn Array>,
}

/// Which of the two runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Which {
    /// Everybody who may serve.
    Cluster,
    /// Those on this node.
    Local,
}

impl Which {
    /// As in JSON.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Local => "local",
        }
    }
}

/// A service port of one family.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct PortRow {
    /// Index into `lb_services`.
    pub(super) id: u32,
    /// Absent if no agent tells the name.
    #[serde(flatten)]
    pub(super) label: Option<PortLabel>,
    /// Where traffic is accepted.
    pub(super) frontends: Vec<FrontendRow>,
    /// How many backends the cluster run has.
    pub(super) cluster: u16,
    /// How many the local run has; an unused run repeats the other one.
    pub(super) local: u16,
    /// Which run ClusterIP clients use.
    pub(super) internal: Which,
    /// Seconds; 0 means none.
    pub(super) affinity_s: u32,
    /// `random`, `maglev` or `round-robin`.
    pub(super) algorithm: &'static str,
}

/// An address that accepts traffic.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct FrontendRow {
    /// Unspecified for a NodePort: every address of this node.
    pub(super) address: IpAddr,
    /// Port.
    pub(super) port: u16,
    /// `TCP` or `UDP`.
    pub(super) protocol: String,
    /// `ClusterIP`, `ExternalIP`, `LoadBalancer` or `NodePort`.
    pub(super) kind: String,
    /// Which run serves clients on this node.
    pub(super) run: Which,
    /// How many backends that run has; 0 refuses, unless `elsewhere`.
    pub(super) backends: u16,
    /// Nobody serves here, and some do on other nodes: connections get no answer.
    pub(super) elsewhere: bool,
    /// For clients in the Service's source ranges only; the hooks leave pods alone.
    pub(super) restricted: bool,
}

/// A backend of a service port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct BackendRow {
    /// Address of the endpoint.
    pub(super) address: IpAddr,
    /// Port of the endpoint.
    pub(super) port: u16,
    /// Index into `lb_backends`.
    pub(super) id: u32,
    /// Generation of that id.
    pub(super) generation: u32,
    /// `active`, `terminating`, `draining` (it keeps what it has); `free` or `stale` only between two writes.
    pub(super) state: &'static str,
    /// Which runs are meant to list it.
    pub(super) runs: Vec<Which>,
}

impl Served {
    /// Reads the pinned maps.
    pub(super) fn read(pinned: &Pinned) -> anyhow::Result<Self> {
        Ok(Self {
            frontends: pinned.table::<FrontendKey, Frontend>(maps::FRONTENDS)?.dump()?,
            services: Box::new(pinned.array(maps::SERVICES)?),
            slots: Box::new(pinned.array(maps::SLOTS)?),
            backends: Box::new(pinned.array(maps::BACKENDS)?),
        })
    }

    /// Every service port that has a frontend: by name, those without a name last.
    pub(super) fn ports(&self, names: &Names) -> Vec<PortRow> {
        let mut frontends: BTreeMap<u32, Vec<(FrontendKey, Frontend)>> = BTreeMap::new();
        for (key, value) in &self.frontends {
            frontends.entry(value.service.index).or_default().push((*key, *value));
        }
        let mut rows: Vec<PortRow> = frontends
            .into_iter()
            .map(|(id, frontends)| self.port(id, names.get(&id).cloned(), &frontends))
            .collect();
        rows.sort_by(|a, b| (a.label.is_none(), &a.label, a.id).cmp(&(b.label.is_none(), &b.label, b.id)));
        rows
    }

    fn port(&self, id: u32, label: Option<PortLabel>, frontends: &[(FrontendKey, Frontend)]) -> PortRow {
        let service: Service = read(&*self.services, id);
        let internal =
            if service.flags.has(ServiceFlags::INTERNAL_LOCAL) { Which::Local } else { Which::Cluster };
        let frontends = frontends
            .iter()
            // Nobody accepts anything there.
            .filter(|(key, _)| !key.is_other_ports())
            .map(|(key, value)| {
                let kind = FrontendKind::from_number(value.kind);
                // Clients on this node, as `datapath::sock` decides (EP-8, MQ-4).
                let run = if kind == Some(FrontendKind::ClusterIp) { internal } else { Which::Cluster };
                let used = run_of(&service, run);
                FrontendRow {
                    address: key.addr.into(),
                    port: key.port,
                    protocol: key.proto.to_string(),
                    kind: kind.map_or_else(|| format!("kind {}", value.kind), |kind| kind.name().to_owned()),
                    run,
                    backends: self.count(&service, run),
                    elsewhere: used.is_elsewhere(),
                    restricted: !may_use(value.kind, service.flags, false),
                }
            })
            .collect();
        PortRow {
            id,
            label,
            frontends,
            cluster: self.count(&service, Which::Cluster),
            local: self.count(&service, Which::Local),
            internal,
            affinity_s: service.affinity_s,
            algorithm: algorithm(service.flags).word(),
        }
    }

    /// How many backends a run has: of a Maglev table each has many slots.
    fn count(&self, service: &Service, which: Which) -> u16 {
        let run = run_of(service, which);
        if !service.flags.has(ServiceFlags::MAGLEV) {
            return run.count;
        }
        let backends: BTreeSet<u32> = slots_of(&*self.slots, run).map(|slot| slot.backend.index).collect();
        u16::try_from(backends.len()).unwrap_or(u16::MAX)
    }

    /// The backends in the runs of a service port, by address.
    pub(super) fn backends(&self, id: u32) -> Vec<BackendRow> {
        let service: Service = read(&*self.services, id);
        let draining = draining_slots(&*self.slots, service.draining);
        let slots = self.slots(id).into_iter().chain(draining);
        let slots: BTreeSet<(L4Addr, u32, u32)> =
            slots.map(|slot| (slot.at(), slot.backend.index, slot.generation)).collect();
        slots.into_iter().map(|(at, id, generation)| self.backend(at, id, generation)).collect()
    }

    fn backend(&self, at: L4Addr, id: u32, generation: u32) -> BackendRow {
        let backend: Backend = read(&*self.backends, id);
        let state = match backend.state {
            _ if backend.generation != generation => "stale",
            state if state == BackendState::Active as u8 => "active",
            state if state == BackendState::Terminating as u8 && backend.runs == 0 => "draining",
            state if state == BackendState::Terminating as u8 => "terminating",
            _ => "free",
        };
        let runs = [(Backend::IN_CLUSTER, Which::Cluster), (Backend::IN_LOCAL, Which::Local)];
        BackendRow {
            address: at.addr.into(),
            port: at.port,
            id,
            generation,
            state,
            runs: runs
                .into_iter()
                .filter(|(bit, _)| backend.runs & bit != 0)
                .map(|(_, which)| which)
                .collect(),
        }
    }

    /// The slots in both runs of a service. A slot is rewritten only after its run was replaced, so slots that were read
    /// between two equal readings of the runs belong together.
    fn slots(&self, id: u32) -> Vec<Slot> {
        let mut service: Service = read(&*self.services, id);
        let mut slots = Vec::new();
        for _ in 0..READINGS {
            slots = self.slots_of(&service);
            let again: Service = read(&*self.services, id);
            if (again.cluster, again.local) == (service.cluster, service.local) {
                break;
            }
            service = again;
        }
        slots
    }

    fn slots_of(&self, service: &Service) -> Vec<Slot> {
        let second = (service.local.base != service.cluster.base).then_some(service.local);
        [Some(service.cluster), second]
            .into_iter()
            .flatten()
            .flat_map(|run| (0..u32::from(run.count)).map(move |offset| run.base.saturating_add(offset)))
            .map(|slot| read(&*self.slots, slot))
            .collect()
    }

    /// Slots that the runs of all services contain.
    pub(super) fn slots_in_runs(&self) -> u64 {
        let ids: BTreeSet<u32> = self.frontends.iter().map(|(_, value)| value.service.index).collect();
        let slots = ids.into_iter().map(|id| self.slots_of(&read(&*self.services, id)).len());
        slots.map(|count| count as u64).sum()
    }

    /// Backend ids that are somebody's.
    pub(super) fn backends_in_use(&self) -> u64 {
        let states = (0..self.backends.entries(1)).map(|id| read::<1, Backend>(&*self.backends, id).state);
        states.filter(|state| *state != BackendState::Free as u8).count() as u64
    }
}

/// What the bits of a service say.
const fn algorithm(flags: ServiceFlags) -> Algorithm {
    if flags.has(ServiceFlags::MAGLEV) {
        Algorithm::Maglev
    } else if flags.has(ServiceFlags::ROUND_ROBIN) {
        Algorithm::RoundRobin
    } else {
        Algorithm::Random
    }
}

const fn run_of(service: &Service, which: Which) -> Run {
    match which {
        Which::Cluster => service.cluster,
        Which::Local => service.local,
    }
}

impl PortRow {
    /// `namespace/name`, or nothing.
    pub(super) fn service(&self) -> String {
        self.label.as_ref().map_or_else(String::new, PortLabel::service)
    }

    /// Name of the port, or nothing.
    pub(super) fn port_name(&self) -> String {
        self.label.as_ref().map_or_else(String::new, |label| label.port.clone())
    }

    /// The protocol, which all its frontends share.
    pub(super) fn protocol(&self) -> &str {
        self.frontends.first().map_or("", |frontend| &frontend.protocol)
    }
}

/// `10.0.1.100:3306/TCP`, `[fd00::1]:53/UDP`
pub(super) fn address(address: IpAddr, port: u16, protocol: &str) -> String {
    format!("{}/{protocol}", core::net::SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use lb_common::abi::{Addr, BackendId, Draining, Proto, ServiceId, Words};

    use super::*;
    use crate::maps::memory::{Capacities, MemMaps};

    fn store<const N: usize>(array: &mut dyn Array, index: usize, value: &impl Words<N>) {
        for (offset, word) in value.to_words().into_iter().enumerate() {
            array.store(index * N + offset, word).unwrap();
        }
    }

    fn slot(last: u8, backend: u32, generation: u32) -> Slot {
        let addr = Addr::from_v4([10, 1, 1, last]);
        Slot { addr, port: 8080, flags: 0, backend: BackendId { index: backend }, generation, pad: 0 }
    }

    fn frontend(last: u8, port: u16, service: u32, kind: FrontendKind) -> (FrontendKey, Frontend) {
        let at = L4Addr { addr: Addr::from_v4([10, 0, 0, last]), port };
        let key = FrontendKey::new(at, Proto::TCP);
        (key, Frontend::new(key, ServiceId { index: service }, kind))
    }

    /// Service 3: ClusterIP with internal policy Local, NodePort; backends .1 (terminating), .2 and, local, .2.
    /// Service 7: nobody.
    fn served() -> Served {
        let mut maps = MemMaps::new(Capacities::default()).open();
        let run = |base, count| Run { base, count, generation: 1 };
        let service = Service {
            cluster: run(8, 2),
            local: run(16, 1),
            flags: ServiceFlags::INTERNAL_LOCAL,
            affinity_s: 60,
            ..Service::FREE
        };
        store(&mut *maps.services, 3, &service);
        for (index, slot) in [(8, slot(1, 4, 9)), (9, slot(2, 5, 1)), (16, slot(2, 5, 1))] {
            store(&mut *maps.slots, index, &slot);
        }
        let backend =
            |generation, state: BackendState, runs| Backend { generation, state: state as u8, runs, pad: 0 };
        store(&mut *maps.backends, 4, &backend(9, BackendState::Terminating, Backend::IN_CLUSTER));
        store(
            &mut *maps.backends,
            5,
            &backend(1, BackendState::Active, Backend::IN_CLUSTER | Backend::IN_LOCAL),
        );
        Served {
            frontends: vec![
                frontend(0, 30_000, 3, FrontendKind::NodePort),
                frontend(7, 80, 7, FrontendKind::ClusterIp),
                frontend(100, 80, 3, FrontendKind::ClusterIp),
            ],
            services: maps.services,
            slots: maps.slots,
            backends: maps.backends,
        }
    }

    fn label(name: &str) -> PortLabel {
        PortLabel { namespace: "default".into(), name: name.into(), port: String::new() }
    }

    #[test]
    fn a_frontend_shows_the_run_that_serves_clients_of_this_node() {
        let ports = served().ports(&Names::new());
        let rows: Vec<_> =
            ports[0].frontends.iter().map(|row| (row.kind.as_str(), row.run, row.backends)).collect();
        assert_eq!(rows, [("NodePort", Which::Cluster, 2), ("ClusterIP", Which::Local, 1)]);
        assert_eq!((ports[0].cluster, ports[0].local, ports[0].affinity_s), (2, 1, 60));
        assert_eq!(ports[1].frontends[0].backends, 0);
    }

    #[test]
    fn ports_are_sorted_by_name_and_those_without_one_come_last() {
        let ids = |names: &Names| served().ports(names).iter().map(|row| row.id).collect::<Vec<_>>();
        assert_eq!(ids(&Names::new()), [3, 7]);
        assert_eq!(ids(&Names::from([(3, label("web")), (7, label("api"))])), [7, 3]);
        assert_eq!(ids(&Names::from([(7, label("web"))])), [7, 3]);
    }

    #[test]
    fn a_backend_of_both_runs_is_one_row() {
        let rows = served().backends(3);
        let seen: Vec<_> =
            rows.iter().map(|row| (row.address.to_string(), row.state, row.runs.as_slice())).collect();
        assert_eq!(
            seen,
            [
                ("10.1.1.1".to_owned(), "terminating", &[Which::Cluster][..]),
                ("10.1.1.2".to_owned(), "active", &[Which::Cluster, Which::Local][..]),
            ]
        );
        assert_eq!(served().backends(7), []);
    }

    #[test]
    fn a_backend_id_that_has_moved_on_is_stale() {
        let mut served = served();
        store(&mut *served.backends, 4, &Backend { generation: 10, state: 1, runs: 1, pad: 0 });
        assert_eq!(served.backends(3)[0].state, "stale");
    }

    /// CT-4.
    #[test]
    fn a_backend_that_keeps_what_it_has_is_shown() {
        let mut served = served();
        store(&mut *served.slots, 32, &slot(9, 6, 2));
        let draining = Backend { generation: 2, state: BackendState::Terminating as u8, runs: 0, pad: 0 };
        store(&mut *served.backends, 6, &draining);
        let service: Service = read(&*served.services, 3);
        let draining = Draining::new(32, 1).unwrap();
        store(&mut *served.services, 3, &Service { draining, ..service });
        let rows = served.backends(3);
        let shown: Vec<_> = rows.iter().map(|row| (row.id, row.state, row.runs.len())).collect();
        assert_eq!(shown, [(4, "terminating", 1), (5, "active", 2), (6, "draining", 0)]);
    }

    /// 2.7.
    #[test]
    fn why_nobody_serves_is_shown() {
        let mut served = served();
        let local = Service { local: Run::ELSEWHERE, flags: ServiceFlags::INTERNAL_LOCAL, ..Service::FREE };
        store(&mut *served.services, 7, &local);
        let row = &served.ports(&Names::new())[1].frontends[0];
        assert_eq!((row.backends, row.elsewhere, row.restricted), (0, true, false));
        let restricted = Service { flags: ServiceFlags::RESTRICTED, ..Service::FREE };
        store(&mut *served.services, 7, &restricted);
        served.frontends[1] = frontend(7, 80, 7, FrontendKind::LoadBalancer);
        let row = &served.ports(&Names::new())[1].frontends[0];
        assert_eq!((row.backends, row.elsewhere, row.restricted), (0, false, true));
    }

    #[test]
    fn equal_runs_are_counted_once() {
        let mut served = served();
        assert_eq!(served.slots_in_runs(), 3);
        assert_eq!(served.backends_in_use(), 2);
        let run = Run { base: 8, count: 2, generation: 1 };
        store(&mut *served.services, 3, &Service { cluster: run, local: run, ..Service::FREE });
        assert_eq!(served.slots_in_runs(), 2);
    }

    /// 5.9-maglev: slots are no backends.
    #[test]
    fn the_backends_of_a_maglev_table_are_counted_once() {
        let mut served = served();
        let service: Service = read(&*served.services, 3);
        let cluster = Run { count: 6, ..service.cluster };
        store(&mut *served.services, 3, &Service { cluster, flags: ServiceFlags::MAGLEV, ..service });
        for index in 8..14 {
            store(&mut *served.slots, index, &slot(1, 4 + u32::try_from(index % 2).unwrap(), 1));
        }
        let ports = served.ports(&Names::new());
        assert_eq!((ports[0].cluster, ports[0].local, ports[0].algorithm), (2, 1, "maglev"));
        assert!(ports[0].frontends.iter().all(|row| row.backends == 2));
        assert_eq!(ports[1].algorithm, "random");
    }

    #[test]
    fn ports_without_a_name_have_no_name_in_json() {
        let ports = served().ports(&Names::from([(3, label("web"))]));
        let json = serde_json::to_value(&ports).unwrap();
        assert_eq!(json[0]["name"], "web");
        assert_eq!(json[0]["frontends"][1]["address"], "10.0.0.100");
        assert_eq!(json[0]["frontends"][1]["run"], "local");
        assert!(json[1].get("name").is_none());
    }
}
