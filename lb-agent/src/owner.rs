//! The one owner of the cluster state, the ids and the maps.
//!
//! ```text
//! sources, devices, grace periods, ticks, questions  ->  one channel  ->  Owner  ->  maps
//! ```
//!
//! It runs on a thread of its own, because writing maps blocks. Nothing is written before Services, EndpointSlices and the
//! own Node are listed (SY-1); after that only touched Services are compiled. A failed write is answered by reading the maps
//! again and planning everything.

mod addresses;
mod devices;
mod express;
mod gone;
mod health_port;
mod hooked;
mod left_out;
mod need;
mod outputs;
mod pace;
mod programs;
mod receipts;
mod report;
mod translated;
mod turns;
mod unowned;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use aya::Ebpf;
use lb_common::abi::SocketLb;
use tokio::sync::mpsc::{Receiver, WeakSender};
use tracing::{debug, error, info, warn};

use crate::{
    compile::PortKey,
    config::{PacketOptions, Ranges},
    datapath::{
        addresses::NodePortOptions,
        attach::{self, Attached},
        devices::Network,
        load::Switches,
    },
    healer::{Healer, Suspects},
    maps::{MapError, memory::Capacities, pin::PinDir},
    model::{Change, ClusterState, Event, Notice, ServiceName},
    observe::Outlets,
    reconcile::{Contested, Desired, Outcome, Reconciler},
};
use addresses::NodeAddresses;
use devices::Devices;
use left_out::LeftOut;
use outputs::Outputs;
use pace::{Pace, Retry};

pub use express::Step;
pub use outputs::Stamp;
pub(crate) use outputs::unix_s;
pub use receipts::Receipt;
pub use report::{LeftAlone, PortName, Progress, Report};

/// Services planned together: bounds the memory of a plan and the time between two looks at the channel.
const CHUNK: usize = 1000;
/// Everything is planned again this often, whatever was touched.
const FULL_PASS: Duration = Duration::from_mins(5);
/// Between two attempts to make the maps larger after one has failed.
const GROW_AGAIN: Duration = Duration::from_secs(30);
/// Flows that have room where nothing larger can be had.
const FEWEST_FLOWS: u32 = 1024;
/// Silence about a list that does not come.
const WAITING: Duration = Duration::from_secs(30);

/// What the owner is told.
pub enum Message {
    /// A source has news, sent then.
    Object(Event, Stamp),
    /// The node's addresses and devices, all of them.
    Network(Network),
    /// How far the self-test of a device is, by interface index.
    Express(u32, Step),
    /// Ports of this node that connections have which others masquerade.
    Translated(BTreeSet<u16>),
    /// Grace periods have passed.
    Grace,
    /// Time to look after what was left undone, sent then.
    Tick(Instant),
    /// Somebody wants to look; the answer travels inside the function.
    Ask(Box<dyn FnOnce(&Owner) + Send>),
    /// End. Programs, links and maps stay.
    Stop,
}

/// The channel by which the owner is told.
pub struct Mailbox {
    /// Its end.
    pub messages: Receiver<Message>,
    /// Its beginning, for the grace thread.
    pub sender: WeakSender<Message>,
}

/// What the owner needs to know at start.
#[derive(Debug)]
pub struct Settings {
    /// `metadata.name` of the own Node.
    pub node: Arc<str>,
    /// Where the programs are attached.
    pub cgroup: PathBuf,
    /// Which sockets they serve.
    pub socket_lb: SocketLb,
    /// What they know of the kernel.
    pub switches: Switches,
    /// Where NodePorts are served.
    pub node_ports: NodePortOptions,
    /// `--service-cidr`
    pub service_cidrs: Ranges,
    /// What only packets need.
    pub packets: PacketOptions,
    /// How many clients with session affinity are remembered at least.
    pub affinity_clients: u32,
    /// How many flows of packets each family is to have room for.
    pub flows: u32,
    /// Shortest time between two passes.
    pub min_sync_interval: Duration,
    /// Longest pause before a failed write is tried again.
    pub resync_interval: Duration,
}

/// The maps and programs, once they are loaded.
struct Running {
    reconciler: Reconciler,
    capacities: Capacities,
    attached: Vec<(&'static str, Attached)>,
    /// The programs, for devices that come.
    ebpf: Option<Ebpf>,
    /// See [`Loaded::flush_log`](crate::datapath::load::Loaded::flush_log).
    flush_log: Box<dyn FnMut() + Send>,
    /// When the next full pass is due.
    full_pass: Instant,
    /// The maps may differ from what the reconciler believes.
    doubtful: bool,
}

/// See the module.
pub struct Owner {
    settings: Settings,
    pins: PinDir,
    healer: Healer,
    messages: Receiver<Message>,
    /// For the grace thread, which must not keep the channel open.
    sender: WeakSender<Message>,
    state: ClusterState,
    touched: BTreeSet<ServiceName>,
    node_addresses: NodeAddresses,
    addresses_changed: bool,
    devices: Devices,
    pace: Pace,
    retry: Retry,
    running: Option<Running>,
    notices: BTreeMap<ServiceName, Vec<Notice>>,
    contested: BTreeMap<PortKey, Vec<Contested>>,
    left_out: LeftOut,
    /// Addresses of UDP backends that outlive their Service port.
    abandoned: BTreeMap<ServiceName, BTreeSet<SocketAddr>>,
    /// When the maps could not be made larger.
    failed_growth: Option<Instant>,
    last_error: Option<String>,
    waiting_since: Instant,
    outputs: Outputs,
    /// Everything was programmed once, and others know it.
    is_published: bool,
}

impl Owner {
    /// An owner that has not begun.
    pub fn new(settings: Settings, pins: PinDir, healer: Healer, outlets: Outlets, mailbox: Mailbox) -> Self {
        let Mailbox { messages, sender } = mailbox;
        Self {
            state: ClusterState::new(Arc::clone(&settings.node)),
            node_addresses: NodeAddresses::new(settings.node_ports.clone()),
            devices: Devices::new(settings.packets.devices.clone(), settings.packets.xdp),
            pace: Pace::new(settings.min_sync_interval),
            retry: Retry::new(settings.resync_interval),
            settings,
            pins,
            healer,
            messages,
            sender,
            touched: BTreeSet::new(),
            addresses_changed: false,
            running: None,
            notices: BTreeMap::new(),
            contested: BTreeMap::new(),
            left_out: LeftOut::new(Instant::now()),
            abandoned: BTreeMap::new(),
            failed_growth: None,
            last_error: None,
            waiting_since: Instant::now(),
            outputs: Outputs::new(outlets),
            is_published: false,
        }
    }

    /// Runs until [`Message::Stop`] or until nobody can send any more.
    ///
    /// # Errors
    /// What makes a start impossible: the kernel refuses the object or the attachment. Later failures are logged and tried
    /// again.
    pub fn run(mut self) -> anyhow::Result<()> {
        let clock = turns::clock()?;
        while self.take_burst(&clock) {
            self.work_if_due()?;
        }
        Ok(())
    }

    /// Takes in one message; false for the last one.
    fn take(&mut self, message: Message) -> bool {
        match message {
            Message::Object(event, stamp) => {
                let is_node = matches!(event, Event::Node(_));
                self.devices.has_changed |= matches!(event, Event::ServiceCidr(_));
                self.take_object(event, stamp);
                if is_node {
                    self.take_node_addresses();
                    self.choose_devices();
                }
            }
            Message::Network(Network { addresses, links, filters }) => {
                self.take_own_addresses(addresses);
                self.take_links(links, filters);
            }
            Message::Express(index, step) => self.take_express(index, step),
            Message::Translated(ports) => self.take_translated(ports),
            // The pass asks what has room now.
            Message::Grace => {}
            Message::Tick(at) => {
                self.outputs.took_tick(at);
                self.look_at_devices(at);
                self.touched.extend(self.left_out.due(at, self.settings.resync_interval));
            }
            Message::Ask(look) => look(self),
            Message::Stop => return false,
        }
        true
    }

    fn take_object(&mut self, event: Event, stamp: Stamp) {
        self.outputs.took(&event, stamp);
        let known = match &event {
            Event::Service(Change::Apply(service)) => self.state.service(&service.name),
            _ => None,
        };
        let times = self.outputs.receipts().times(&event, known);
        let mut touched = BTreeSet::new();
        self.state.apply(event, &mut touched);
        self.tell_of_unowned();
        self.outputs.receipts().begin(times, stamp.time, touched.iter());
        self.touched.append(&mut touched);
    }

    fn work(&mut self) -> anyhow::Result<()> {
        if self.running.is_none() {
            if !self.is_ready_to_start() {
                return Ok(());
            }
            return self.start();
        }
        match self.pass() {
            Err(error) => self.fail(&error),
            Ok(()) if self.addresses_changed || !self.left_out.is_empty() => self.grow()?,
            Ok(()) => {}
        }
        self.attach_devices();
        Ok(())
    }

    /// Notes a failed write. Whatever failed may have been half done: the maps are trusted, not the memory of them.
    fn fail(&mut self, error: &anyhow::Error) {
        self.outputs.failed(error);
        let text = format!("{error:#}");
        let pause = self.retry.failed(Instant::now());
        if self.last_error.as_ref() != Some(&text) {
            error!(error = %text, again = ?pause, "cannot program the maps, trying again after growing pauses");
        }
        self.last_error = Some(text);
        if let Some(running) = &mut self.running {
            running.doubtful = true;
        }
    }

    fn is_ready_to_start(&mut self) -> bool {
        let ready = self.state.is_complete() && self.node_addresses.are_known();
        if !ready && self.waiting_since.elapsed() > WAITING {
            self.waiting_since = Instant::now();
            warn!(
                listed = self.state.is_complete(),
                addresses = self.node_addresses.are_known(),
                "nothing is programmed before Services, EndpointSlices and this Node are listed"
            );
        }
        ready
    }

    /// Loads the programs over maps that are large enough, fills the maps, attaches the programs. A failed write is not the end:
    /// the next tick starts again.
    fn start(&mut self) -> anyhow::Result<()> {
        let begin = Instant::now();
        self.look_for_translated();
        let (loaded, too_small) = self.load_what_is_possible()?;
        let mut taken = self.take_over(loaded)?;
        if let Err(error) = self.everything() {
            self.running = None;
            self.fail(&error);
            return Ok(());
        }
        self.hand_over(&mut taken)?;
        let attached = attach::attach(&mut taken.ebpf, &self.pins, &self.settings.cgroup)?;
        for (program, how) in &attached {
            debug!(program, ?how, "program attached");
        }
        if let Some(running) = &mut self.running {
            running.attached = attached;
        }
        self.serve_packets(taken.ebpf);
        self.attach_devices();
        self.last_error = None;
        self.retry.succeeded();
        self.tell_of_addresses();
        self.tell_of_own_name();
        self.healer.heal_after_start();
        info!(
            services = self.state.services().count(),
            ports = self.running.as_ref().map_or(0, |running| running.reconciler.programmed().count()),
            took = ?begin.elapsed(),
            "ready"
        );
        if let Some(error) = too_small {
            self.cannot_grow(&error.into());
        }
        Ok(())
    }

    /// Plans every Service, and removes what was found in the maps and belongs to none.
    fn everything(&mut self) -> anyhow::Result<()> {
        self.outputs.is_full = true;
        self.touched.extend(self.state.services().cloned());
        self.plan_touched()?;
        if let Some(running) = &mut self.running {
            let outcome = running.reconciler.remove_unclaimed()?;
            self.outputs.writes += outcome.writes;
            if outcome.writes != 0 {
                info!(writes = outcome.writes, "removed what belongs to no Service");
            }
            self.touched.extend(outcome.again);
            running.full_pass = Instant::now() + FULL_PASS;
        }
        self.plan_touched()
    }

    /// Everything that is due.
    fn pass(&mut self) -> anyhow::Result<()> {
        let Some(running) = &mut self.running else { return Ok(()) };
        (running.flush_log)();
        // What had no room until now may have it.
        self.touched.extend(running.reconciler.settle()?);
        let (gone, abandoned) = (running.reconciler.take_gone(), running.reconciler.take_abandoned());
        self.heal_gone(gone, abandoned);
        let Some(running) = &mut self.running else { return Ok(()) };
        if running.doubtful {
            running.reconciler.reload()?;
            running.doubtful = false;
            self.addresses_changed = true;
            self.everything()?;
            // What had gone before the failure is not known any more.
            self.healer.heal_after_start();
            self.retry.succeeded();
            if self.last_error.take().is_some() {
                info!("the maps are programmed again");
            }
        } else if Instant::now() >= running.full_pass {
            self.everything()?;
        } else {
            self.plan_touched()?;
        }
        Ok(())
    }

    /// Plans the touched Services until none is left.
    fn plan_touched(&mut self) -> anyhow::Result<()> {
        let Some(running) = &mut self.running else { return Ok(()) };
        if self.addresses_changed {
            match running.reconciler.set_addresses(self.node_addresses.entries()) {
                Ok(writes) => {
                    self.outputs.writes += writes;
                    self.addresses_changed = false;
                }
                // Nothing was written, and the Services can go on: the map grows after them.
                Err(MapError::Full { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.plan_devices()?;
        while !self.touched.is_empty() {
            let mut left = self.take_touched();
            while !left.is_empty() {
                let chunk = left.split_off(left.len().saturating_sub(CHUNK));
                let desired: Vec<Desired> = chunk.iter().map(|name| self.compile(name)).collect();
                let Some(running) = &mut self.running else { return Ok(()) };
                match running.reconciler.apply(&desired) {
                    Ok(outcome) => self.note(&chunk, outcome),
                    Err(error) => {
                        self.touched.extend(left);
                        self.touched.extend(chunk);
                        return Err(error.into());
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes the touched Services, the oldest last. Planned from the end, a contested frontend goes to its owner at once.
    fn take_touched(&mut self) -> Vec<ServiceName> {
        let mut touched: Vec<ServiceName> = core::mem::take(&mut self.touched).into_iter().collect();
        if touched.len() > CHUNK {
            let age = |name: &ServiceName| self.state.service(name).map_or(i64::MAX, |found| found.created_s);
            touched.sort_by_cached_key(|name| Reverse((age(name), name.clone())));
        }
        touched
    }

    /// Keeps what a pass did not do.
    fn note(&mut self, planned: &[ServiceName], outcome: Outcome) {
        if outcome.writes != 0 {
            debug!(services = planned.len(), writes = outcome.writes, "services programmed");
        }
        self.outputs.writes += outcome.writes;
        self.outputs.planned(planned);
        let planned: BTreeSet<&ServiceName> = planned.iter().collect();
        self.left_out.planned(&planned, outcome.left_out, outcome.later);
        let before = core::mem::take(&mut self.contested);
        let (known, kept): (BTreeMap<_, _>, BTreeMap<_, _>) =
            before.into_iter().partition(|(port, _)| planned.contains(&port.service));
        self.contested = kept;
        for contested in outcome.contested {
            let is_new = !known.get(&contested.port).is_some_and(|old| old.contains(&contested));
            if is_new {
                warn!(
                    service = %contested.port.service, frontend = %contested.frontend.at(), owner = %contested.owner,
                    "another Service owns this address and port"
                );
            }
            self.outputs.contested(&contested, is_new);
            self.contested.entry(contested.port.clone()).or_default().push(contested);
        }
        self.touched.extend(outcome.again);
        if outcome.opened_udp {
            // A frontend may have been another Service's, whose flows end now (CT-4).
            let left = self.abandoned.values().flatten().copied().collect();
            self.healer.heal(Suspects { left, ..Suspects::default() });
        }
    }
}

#[cfg(test)]
mod tests;
