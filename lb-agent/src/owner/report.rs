//! What the owner tells to whoever asks, as plain data.
//!
//! What the maps hold is not here: tools read it from the maps, with or without an agent. The agent adds what only it
//! knows: names, and what could not be programmed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Owner, Receipt, devices::Attached};
use crate::{
    datapath::hooks::Other,
    model::{Name, ServiceName},
};

/// How far the agent is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Progress {
    /// Services, EndpointSlices or the own Node are not listed yet.
    Listing,
    /// Everything that has room is programmed.
    Ready,
    /// The last write failed; it is tried again after a pause.
    Failing,
}

/// The Service port behind an id of `lb_services`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct PortName {
    /// Index into `lb_services`.
    pub id: u32,
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// Name of the port; empty for a single unnamed one.
    pub port: String,
}

/// A cluster IP that is left alone on this node, because an interface of it has the address.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct LeftAlone {
    /// Namespace and name of the Service.
    pub service: String,
    /// The cluster IP.
    pub address: IpAddr,
    /// Name of the interface.
    pub interface: String,
}

/// The agent as a whole.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of the agent.
    pub version: String,
    /// `metadata.name` of the own Node.
    pub node: String,
    /// How far it is.
    pub progress: Progress,
    /// Services that are listed.
    pub services: usize,
    /// Service ports that are programmed, each family for itself.
    pub ports: usize,
    /// Where the programs are attached.
    pub cgroup: String,
    /// Programs, and how they came to run.
    pub programs: BTreeMap<String, String>,
    /// Whether refused calls get their error from the hook itself (kernel 5.18) or from an address that refuses.
    pub refuses_directly: bool,
    /// Fields that cannot be used.
    pub notices: Vec<String>,
    /// Frontends that another Service owns.
    pub contested: Vec<String>,
    /// Service ports that are not programmed, and why.
    pub left_out: Vec<String>,
    /// Cluster IPs that somebody else serves on this node.
    pub left_alone: Vec<LeftAlone>,
    /// On which addresses NodePorts are served.
    pub node_port_addresses: Vec<IpAddr>,
    /// What of `--nodeport-addresses` serves nothing, and why (NP-6).
    #[serde(default)]
    pub idle_node_port_addresses: Vec<String>,
    /// Address ranges of cluster IPs, as far as they are known.
    pub service_cidrs: Vec<String>,
    /// Options of the packet path.
    pub packets: String,
    /// Devices whose packets are served.
    #[serde(default)]
    pub devices: Vec<DeviceRow>,
    /// Devices whose packets should be served and are not, and why.
    #[serde(default)]
    pub unserved_devices: Vec<String>,
    /// Programs of others at the devices whose packets are served.
    #[serde(default)]
    pub other_programs: Vec<Other>,
    /// How often programs that somebody has taken off a device were put back.
    #[serde(default)]
    pub put_back: u64,
    /// Why the last write failed.
    pub last_error: Option<String>,
}

/// A device whose packets are served.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeviceRow {
    /// Its name.
    pub name: String,
    /// Its interface index.
    pub index: u32,
    /// Who is behind it: `uplink` or `pods`.
    pub role: String,
    /// How the programs are attached: `tcx` or `clsact`.
    pub mode: String,
    /// How `lb_xdp` is attached, or why it is not; nothing where nobody wants it.
    #[serde(default)]
    pub xdp: Option<String>,
}

impl DeviceRow {
    fn new(index: u32, at: &Attached, xdp: Option<String>) -> Self {
        let Attached { served, mode } = at;
        let role = format!("{:?}", served.role).to_lowercase();
        Self { name: served.name.to_string(), index, role, mode: mode.name().to_owned(), xdp }
    }
}

impl From<(&ServiceName, IpAddr, &Name)> for LeftAlone {
    fn from((service, address, interface): (&ServiceName, IpAddr, &Name)) -> Self {
        Self { service: service.to_string(), address, interface: interface.to_string() }
    }
}

impl Owner {
    /// The state of the agent.
    pub fn report(&self) -> Report {
        let running = self.running.as_ref();
        let progress = match (running, &self.last_error) {
            (_, Some(_)) => Progress::Failing,
            (None, None) => Progress::Listing,
            (Some(_), None) => Progress::Ready,
        };
        let programs = running
            .into_iter()
            .flat_map(|running| &running.attached)
            .map(|(program, how)| ((*program).to_owned(), format!("{how:?}").to_lowercase()))
            .collect();
        Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.settings.node.to_string(),
            progress,
            services: self.state.services().count(),
            ports: running.map_or(0, |running| running.reconciler.programmed().count()),
            cgroup: self.settings.cgroup.display().to_string(),
            programs,
            refuses_directly: self.settings.switches.has_set_retval,
            notices: self.notices.values().flatten().map(ToString::to_string).chain(self.unowned()).collect(),
            contested: self
                .contested
                .values()
                .flatten()
                .map(|lost| {
                    format!("{} of {}: owned by {}", lost.frontend.at(), lost.port.service, lost.owner)
                })
                .collect(),
            left_out: self
                .left_out
                .iter()
                .map(|(port, no_room)| format!("{} port {:?}: {no_room}", port.service, port.port))
                .collect(),
            left_alone: self.state.left_alone().into_iter().map(LeftAlone::from).collect(),
            node_port_addresses: self
                .node_addresses
                .entries()
                .keys()
                .map(|addr| IpAddr::from(*addr))
                .collect(),
            idle_node_port_addresses: self.node_addresses.idle(),
            service_cidrs: self.service_cidrs().iter().map(ToString::to_string).collect(),
            packets: self.settings.packets.to_string(),
            devices: self
                .devices
                .attached()
                .iter()
                .map(|(index, at)| DeviceRow::new(*index, at, self.devices.express.text(*index)))
                .collect(),
            unserved_devices: self.devices.failed(),
            other_programs: self.devices.hooked.others().to_vec(),
            put_back: self.devices.hooked.put_back(),
            last_error: self.last_error.clone(),
        }
    }

    /// Address ranges of cluster IPs: those that were given, and those that the API server names.
    pub(super) fn service_cidrs(&self) -> BTreeSet<IpNet> {
        self.settings.service_cidrs.0.iter().copied().chain(self.state.service_cidrs()).collect()
    }

    /// What became of the latest change of each Service that `is_wanted` wants.
    pub fn receipts(&self, is_wanted: impl Fn(&ServiceName) -> bool) -> Vec<Receipt> {
        self.outputs.committed(is_wanted)
    }

    /// The Service ports behind the ids of `lb_services`, by id.
    pub fn port_names(&self) -> Vec<PortName> {
        let programmed = self.running.iter().flat_map(|running| running.reconciler.programmed());
        programmed
            .map(|(id, key)| PortName {
                id,
                namespace: key.service.namespace.to_string(),
                name: key.service.name.to_string(),
                port: key.port.to_string(),
            })
            .collect()
    }
}
