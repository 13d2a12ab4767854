//! At which devices packets are served: chosen again when the kernel or the Node object say something new, and what programs must
//! know for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use aya::Ebpf;
use ipnet::IpNet;
use lb_common::abi::{Device, PacketLb};
use tracing::{info, warn};

use super::{Owner, express::Express, hooked::Hooked};
use crate::{
    config::{DetectLocal, DeviceOptions, XdpOption},
    datapath::{
        Layer,
        links::{Chosen, Links, Served, choose},
        ports,
        tc::{self, At, Mode},
    },
    maps::{MapError, memory::Capacities},
    model::{Family, Name},
};

/// Between two looks at what is not told: ports of this node, and devices that failed.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// A device whose packets are served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Attached {
    /// The device.
    pub(super) served: Served,
    /// By what.
    pub(super) mode: Mode,
}

/// The devices of this node, and what of them is served.
pub(super) struct Devices {
    options: DeviceOptions,
    links: Links,
    chosen: Chosen,
    pub(super) attached: BTreeMap<u32, Attached>,
    /// Those whose frames are served at XDP, or may be.
    pub(super) express: Express,
    /// What else runs there.
    pub(super) hooked: Hooked,
    /// Ports that connections have which others masquerade.
    pub(super) translated: BTreeSet<u16>,
    /// Somebody looks for them.
    pub(super) looks_for_translated: bool,
    /// Devices that should be served and are not, and why.
    failed: BTreeMap<Name, String>,
    /// Something is to be done.
    pub(super) has_changed: bool,
    /// [`Network::filters`](crate::datapath::devices::Network::filters), when it was told last.
    filters: u64,
    /// When to look again at what nobody tells.
    again: Instant,
    said_unserved: Vec<String>,
}

impl Devices {
    /// Nothing is known yet.
    pub(super) fn new(options: DeviceOptions, xdp: XdpOption) -> Self {
        Self {
            options,
            links: Links::new(),
            chosen: Chosen::default(),
            attached: BTreeMap::new(),
            express: Express::new(xdp),
            hooked: Hooked::default(),
            translated: BTreeSet::new(),
            looks_for_translated: false,
            failed: BTreeMap::new(),
            has_changed: false,
            filters: 0,
            again: Instant::now(),
            said_unserved: Vec::new(),
        }
    }

    /// Somebody wants packets to be served.
    pub(super) fn are_on(&self) -> bool {
        !self.options.are_off()
    }

    /// Devices whose packets are served, by interface index.
    pub(super) const fn attached(&self) -> &BTreeMap<u32, Attached> {
        &self.attached
    }

    /// Devices that should be served and are not, and why.
    pub(super) fn failed(&self) -> Vec<String> {
        let unserved = self.chosen.unserved.iter().map(|(name, why)| format!("{name}: {why}"));
        unserved.chain(self.failed.iter().map(|(name, why)| format!("{name}: {why}"))).collect()
    }

    /// All devices that programs can be attached to.
    fn all(&self) -> impl Iterator<Item = (&str, Layer)> {
        self.links.values().filter_map(|link| Some((&*link.name, link.layer?)))
    }

    /// Another program object is loaded: it takes the place of the former one everywhere.
    fn load(&mut self) {
        self.attached.clear();
        self.has_changed = true;
    }

    /// Entries of `lb_devices`.
    fn entries(&self) -> BTreeMap<u32, Device> {
        let entries = self.chosen.entries.iter();
        entries
            .map(|(index, entry)| (*index, Device { bits: entry.bits | self.express.bits(*index), ..*entry }))
            .collect()
    }

    /// How many flows each family must have room for, if there are `flows` where it is used.
    fn flows(&self, flows: u32) -> [u32; 2] {
        if !self.are_on() {
            return [1; 2];
        }
        let has_v6 = self.chosen.entries.values().any(|device| device.v6 != Device::NONE.v6);
        [flows, if has_v6 { flows } else { 1 }]
    }

    fn choose(&mut self, primary: [Option<std::net::IpAddr>; 2]) {
        let chosen = choose(&self.links, &self.options, primary);
        self.has_changed |= chosen != self.chosen;
        self.express.keep(|index| chosen.served.contains_key(&index));
        self.chosen = chosen;
    }
}

impl Owner {
    /// Takes in the devices of this node.
    pub(super) fn take_links(&mut self, links: Links, filters: u64) {
        self.devices.links = links;
        let before = core::mem::replace(&mut self.devices.filters, filters);
        self.devices.has_changed |= before != filters && self.devices.are_on();
        self.devices.choose(self.node_addresses.primary());
    }

    /// Chooses again, after the Node object has said something.
    pub(super) fn choose_devices(&mut self) {
        self.devices.choose(self.node_addresses.primary());
    }

    /// `need` with room for flows. Tables that are in use keep their sizes.
    pub(super) fn with_flows(&self, need: Capacities) -> Capacities {
        let [flows4, flows6] = self.devices.flows(self.settings.flows);
        Capacities { flows4, flows6, ..need }
    }

    /// Notes that something may have changed of which nobody tells.
    pub(super) fn look_at_devices(&mut self, now: Instant) {
        if now >= self.devices.again {
            self.devices.again = now + LOOK_AGAIN;
            self.devices.has_changed |= self.devices.are_on();
        }
    }

    /// Programs that are attached are replaced by those of `ebpf`, before anything is written.
    pub(super) fn replace_at_devices(&self, ebpf: &mut Ebpf) -> Result<(), tc::TcError> {
        if !self.devices.are_on() {
            return Ok(());
        }
        tc::replace(ebpf, &self.pins, self.devices.all())
    }

    /// The programs of `ebpf` serve packets from now on.
    pub(super) fn serve_packets(&mut self, ebpf: Ebpf) {
        if let Some(running) = &mut self.running {
            running.ebpf = Some(ebpf);
            self.devices.load();
        }
    }

    /// Writes what programs must know of devices.
    ///
    /// # Errors
    /// Those of the maps.
    pub(super) fn plan_devices(&mut self) -> Result<(), MapError> {
        let drops = self.settings.packets.drop_unallocated;
        let cluster_ips: Vec<IpNet> = self.service_cidrs().into_iter().filter(|_| drops).collect();
        let Some(running) = &mut self.running else { return Ok(()) };
        if !self.devices.are_on() || !self.devices.has_changed {
            return Ok(());
        }
        let packets = self.settings.packets.bits();
        let ports = ports::free(running.reconciler.node_ports(), &self.devices.translated);
        let pods = match &self.settings.packets.devices.detect_local {
            DetectLocal::ClusterCidr(ranges) => {
                Family::BOTH.into_iter().filter_map(|family| ranges.of(family)).collect()
            }
            DetectLocal::NodeCidr => {
                self.state.node().node.as_ref().map(|node| node.pod_cidrs.to_vec()).unwrap_or_default()
            }
            _ => Vec::new(),
        };
        let mut writes = running.reconciler.set_pod_ranges(&pods)?;
        let packets = if pods.is_empty() { packets } else { packets.with(PacketLb::POD_RANGES) };
        let packets = match running.reconciler.set_cluster_ips(&cluster_ips) {
            Ok(more) => {
                writes += more;
                if cluster_ips.is_empty() { packets } else { packets.with(PacketLb::UNALLOCATED) }
            }
            // Nothing was written.
            Err(error @ MapError::Full { .. }) => {
                warn!(%error, "packets to cluster IPs that no Service has are left alone");
                packets
            }
            Err(error) => return Err(error),
        };
        writes += running.reconciler.set_packets(packets, &ports)?;
        match running.reconciler.set_devices(&self.devices.entries()) {
            Ok(more) => writes += more,
            // Nothing was written.
            Err(error @ MapError::Full { .. }) => warn!(%error, "devices keep the addresses that they had"),
            Err(error) => return Err(error),
        }
        self.outputs.writes += writes;
        Ok(())
    }

    /// Attaches the programs to the devices that were chosen, puts back what somebody has taken off, and takes them off all others.
    pub(super) fn attach_devices(&mut self) {
        if self.running.is_none() || !core::mem::take(&mut self.devices.has_changed) {
            return;
        }
        let lost = self.look_at_hooks();
        for index in lost.express {
            let name = self.devices.attached.get(&index).map(|at| at.served.name.clone());
            self.devices.express.lost(index, name.as_deref().unwrap_or_default());
        }
        if self.attach_chosen(&lost.packets) {
            // What others have there is known at once.
            self.look_at_hooks();
        }
        self.detach_others();
        let Devices { attached, express, .. } = &mut self.devices;
        let adopted = express.adopt(&self.pins, attached);
        express.sweep(&self.pins);
        tc::sweep(&self.pins);
        self.tell_of_unserved();
        self.devices.has_changed |= adopted;
        self.express_devices();
    }

    /// Attaches the programs to chosen devices that do not have them, and to those that have `lost` them; says whether there was any.
    fn attach_chosen(&mut self, lost: &BTreeSet<u32>) -> bool {
        let Some(ebpf) = self.running.as_mut().and_then(|running| running.ebpf.as_mut()) else {
            return false;
        };
        let Devices { chosen, attached, failed, hooked, .. } = &mut self.devices;
        let outputs = &self.outputs;
        let mut is_any = false;
        for (index, served) in &chosen.served {
            let is_lost = lost.contains(index);
            if !is_lost && attached.get(index).is_some_and(|now| now.served == *served) {
                continue;
            }
            let at = At { index: *index, name: &served.name, layer: served.layer };
            match tc::attach(ebpf, &self.pins, at) {
                Ok(mode) => {
                    if is_lost {
                        hooked.count();
                        outputs.put_back();
                        warn!(
                            device = %served.name, mode = mode.name(), times = hooked.put_back(),
                            "somebody has taken programs off this device, put them back"
                        );
                    } else {
                        info!(device = %served.name, role = ?served.role, mode = mode.name(), "serving packets");
                    }
                    failed.remove(&served.name);
                    attached.insert(*index, Attached { served: served.clone(), mode });
                    is_any = true;
                }
                Err(error) => {
                    // Of a device that has just gone netlink will tell.
                    let text = format!("{:#}", anyhow::Error::from(error));
                    if failed.insert(served.name.clone(), text.clone()).as_ref() != Some(&text) {
                        warn!(device = %served.name, error = %text, "cannot serve packets here, trying again");
                    }
                }
            }
        }
        failed.retain(|name, _| chosen.served.values().any(|served| served.name == *name));
        is_any
    }

    /// Takes the programs off devices that are not chosen, and forgets those that are gone.
    fn detach_others(&mut self) {
        let Devices { chosen, attached, links, .. } = &mut self.devices;
        for (index, link) in links.iter().filter(|(index, _)| !chosen.served.contains_key(index)) {
            if let Err(error) = tc::detach(&self.pins, (*index, &link.name)) {
                warn!(device = %link.name, %error, "cannot take the programs off");
            }
            if attached.remove(index).is_some() {
                info!(device = %link.name, "not serving packets any more");
            }
        }
        attached.retain(|index, _| links.contains_key(index));
    }

    /// Names each device once that should be served and cannot.
    fn tell_of_unserved(&mut self) {
        let Devices { chosen, said_unserved, .. } = &mut self.devices;
        let unserved: Vec<String> =
            chosen.unserved.iter().map(|(name, why)| format!("{name}: {why}")).collect();
        for text in unserved.iter().filter(|text| !said_unserved.contains(text)) {
            warn!("packets are not served at {text}");
        }
        *said_unserved = unserved;
    }
}
