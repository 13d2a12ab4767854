//! What `/metrics` shows, as values that are written where things happen and read without asking the owner.
//!
//! ```text
//! owner, probes, servers  -->  Metrics (atomics)  -->  text
//! kernel.rs   counters of the programs and their links, read at a scrape
//! process.rs  memory, CPU time and descriptors of this process, read at a scrape
//! ```
//!
//! No label has a value that a user of the cluster can choose, so their number is bounded. `docs/metrics.md` lists all of them.

mod kernel;
#[cfg(test)]
mod kube_proxy;
mod process;
#[cfg(test)]
mod tests;
mod words;

use core::{fmt, sync::atomic::AtomicU64};
use std::{iter::once, path::Path, sync::Mutex, sync::PoisonError};

use lb_common::abi::maps;
use nix::errno::Errno;
use prometheus_client::{
    encoding::text,
    metrics::{
        counter::Counter,
        family::Family as Labelled,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Metric, Registry, Unit},
};

use crate::{
    collector::Round,
    maps::MapError,
    model::{Change, Event, Family},
    reconcile::Usage,
};

pub use words::{EventResult, Probed};

/// `Content-Type` of what [`Metrics::text`] returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Names of labels with their values.
type Labels<const N: usize> = [(&'static str, &'static str); N];
type Seconds = Gauge<f64, AtomicU64>;

/// Objects of a source.
const OBJECTS: [&str; 3] = ["service", "endpointslice", "node"];
/// Maps whose room is shown.
const MAPS: [&str; 8] = [
    maps::FRONTENDS,
    maps::ADDRESSES,
    maps::SERVICES,
    maps::SLOTS,
    maps::BACKENDS,
    maps::SRC_RANGES,
    maps::FLOWS4,
    maps::FLOWS6,
];

/// Answers of the API server, by what their code begins with; `none` is a request without an answer.
const ANSWERS: [&str; 4] = ["2xx", "4xx", "5xx", "none"];

/// Every value that is written; see the registration for what each means.
pub struct Metrics {
    registry: Mutex<Registry>,
    sync_duration: Labelled<Labels<1>, Histogram, fn() -> Histogram>,
    sync_failures: Counter,
    programming_duration: Labelled<Labels<1>, Histogram, fn() -> Histogram>,
    last_sync: Seconds,
    last_queued: Seconds,
    last_writes: Gauge,
    api_requests: Labelled<Labels<2>, Counter>,
    api_failures: Labelled<Labels<1>, Counter>,
    api_heard: Labelled<Labels<1>, Seconds>,
    changes: Labelled<Labels<1>, Counter>,
    pending: Labelled<Labels<1>, Gauge>,
    services: Gauge,
    service_ports: Gauge,
    no_local_endpoints: Labelled<Labels<2>, Gauge>,
    notices: Gauge,
    contested: Gauge,
    left_out: Gauge,
    leftovers: Gauge,
    probes: [Labelled<Labels<1>, Counter>; 3],
    health_servers: Labelled<Labels<1>, Gauge>,
    events: Labelled<Labels<1>, Counter>,
    udp_sockets_freed: Counter,
    healing_failures: Counter,
    healing_duration: Histogram,
    flows_collected: Counter,
    programs_put_back: Counter,
    map_entries: Labelled<Labels<1>, Gauge>,
    map_capacity: Labelled<Labels<1>, Gauge>,
    map_errors: Labelled<[(&'static str, String); 2], Counter>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// kube-proxy's buckets: 1 ms, doubled 14 times.
fn sync_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// kube-proxy's buckets: 0.25, 0.5, 1 to 59 by 1, 60 to 115 by 5, 120 to 300 by 30 seconds.
fn programming_buckets() -> Histogram {
    let by = |first: u32, step: u32, count: u32| (0..count).map(move |n| f64::from(first + n * step));
    Histogram::new([0.25, 0.5].into_iter().chain(by(1, 1, 59)).chain(by(60, 5, 12)).chain(by(120, 30, 7)))
}

/// 10 ms, doubled 13 times: a look enters each namespace, and is ended after a minute.
fn healing_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.01, 2.0, 14))
}

/// Registers what [`Metrics`] writes, each with its help.
struct Registrar<'a>(&'a mut Registry);

impl Registrar<'_> {
    fn add<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: &M) {
        self.0.register(name, help, metric.clone());
    }

    fn add_seconds<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: &M) {
        self.0.register_with_unit(name, help, Unit::Seconds, metric.clone());
    }
}

impl Metrics {
    /// All values at zero. Counters of the programs are read from the pins in `pin_dir`.
    pub fn new(pin_dir: &Path) -> Self {
        let metrics = Self {
            registry: Mutex::new(Registry::default()),
            sync_duration: Labelled::new_with_constructor(sync_buckets),
            sync_failures: Counter::default(),
            programming_duration: Labelled::new_with_constructor(programming_buckets),
            last_sync: Seconds::default(),
            last_queued: Seconds::default(),
            last_writes: Gauge::default(),
            api_requests: Labelled::default(),
            api_failures: Labelled::default(),
            api_heard: Labelled::default(),
            changes: Labelled::default(),
            pending: Labelled::default(),
            services: Gauge::default(),
            service_ports: Gauge::default(),
            no_local_endpoints: Labelled::default(),
            notices: Gauge::default(),
            contested: Gauge::default(),
            left_out: Gauge::default(),
            leftovers: Gauge::default(),
            probes: [Labelled::default(), Labelled::default(), Labelled::default()],
            health_servers: Labelled::default(),
            events: Labelled::default(),
            udp_sockets_freed: Counter::default(),
            healing_failures: Counter::default(),
            flows_collected: Counter::default(),
            programs_put_back: Counter::default(),
            healing_duration: healing_buckets(),
            map_entries: Labelled::default(),
            map_capacity: Labelled::default(),
            map_errors: Labelled::default(),
        };
        metrics.fill_in();
        let mut registry = metrics.registry();
        {
            let own = registry.sub_registry_with_prefix("lbagent");
            metrics.register_syncs(&mut Registrar(own));
            metrics.register_objects(&mut Registrar(own));
            metrics.register_source(&mut Registrar(own));
            metrics.register_answers(&mut Registrar(own));
            own.register_collector(Box::new(kernel::Counters::new(pin_dir)));
        }
        registry.register_collector(Box::new(process::Process));
        drop(registry);
        metrics
    }

    /// Every combination of labels that can be known exists from the start: a counter that appears with its first event
    /// hides that event from `rate()`.
    fn fill_in(&self) {
        for kind in ["full", "partial"] {
            drop(self.sync_duration.get_or_create(&[("kind", kind)]));
        }
        for object in OBJECTS {
            drop(self.changes.get_or_create(&[("object", object)]));
            drop(self.pending.get_or_create(&[("object", object)]));
        }
        for family in Family::BOTH {
            drop(self.programming_duration.get_or_create(&[ip_family(family)]));
            for policy in ["internal", "external"] {
                let labels = [ip_family(family), ("traffic_policy", policy)];
                drop(self.no_local_endpoints.get_or_create(&labels));
            }
        }
        for probe in &self.probes {
            for code in ["200", "503"] {
                drop(probe.get_or_create(&[("code", code)]));
            }
        }
        for state in ["listening", "failed"] {
            drop(self.health_servers.get_or_create(&[("state", state)]));
        }
        for result in EventResult::ALL {
            drop(self.events.get_or_create(&[("result", result.name())]));
        }
        for map in MAPS {
            drop(self.map_entries.get_or_create(&[("map", map)]));
            drop(self.map_capacity.get_or_create(&[("map", map)]));
        }
    }

    fn register_syncs(&self, to: &mut Registrar<'_>) {
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        to.0.register("build", "The running lb-agent", version);
        to.add_seconds(
            "sync_duration",
            "Time of one pass, both families together, by kind: full looks at every Service, partial at those that were touched",
            &self.sync_duration,
        );
        to.add(
            "sync_failures",
            "Passes that could not write a map; each is followed by a full one",
            &self.sync_failures,
        );
        to.add_seconds(
            "network_programming_duration",
            "From the time in the annotation endpoints.kubernetes.io/last-change-trigger-time of an EndpointSlice until the maps \
             follow it",
            &self.programming_duration,
        );
        to.add_seconds("last_sync_timestamp", "Unix time of the last pass that succeeded", &self.last_sync);
        to.add(
            "last_sync_writes",
            "Writes to maps of the last pass that succeeded and had something to look at",
            &self.last_writes,
        );
        to.add(
            "map_entries",
            "Entries in use, with those that wait for a grace period or fill up a region",
            &self.map_entries,
        );
        to.add("map_capacity", "Entries that a map has room for; it grows", &self.map_capacity);
        to.add(
            "map_update_errors",
            "Maps that could not be read or written, by the kernel's answer",
            &self.map_errors,
        );
    }

    fn register_source(&self, to: &mut Registrar<'_>) {
        to.add_seconds(
            "last_queued_timestamp",
            "Unix time of the last object that was sent to the owner of the maps",
            &self.last_queued,
        );
        to.add("changes", "Objects and deletions that came from the source", &self.changes);
        to.add(
            "changes_pending",
            "Objects and deletions that came and are not in the maps yet",
            &self.pending,
        );
        to.add(
            "api_requests",
            "Lists and watches that the API server was asked for, by what the code of the answer begins with; none: there was no \
             answer",
            &self.api_requests,
        );
        to.add(
            "api_watch_failures",
            "Lists and watches that failed or broke off; each is taken up again",
            &self.api_failures,
        );
        to.add_seconds(
            "api_last_heard_timestamp",
            "Unix time of the last word of the API server on these objects, at least once a minute while it is there; 0 before the \
             first; absent for what it does not give, and without an API server",
            &self.api_heard,
        );
    }

    fn register_objects(&self, to: &mut Registrar<'_>) {
        to.add("services", "Services that are listed", &self.services);
        to.add(
            "service_ports",
            "Service ports that are programmed, each family for itself",
            &self.service_ports,
        );
        to.add(
            "no_local_endpoints",
            "Service ports with policy Local that have usable endpoints, but none on this node",
            &self.no_local_endpoints,
        );
        to.add(
            "notices",
            "Fields of Services, EndpointSlices, the own Node and ServiceCIDRs that cannot be used",
            &self.notices,
        );
        to.add("contested_frontends", "Frontends that a Service wants and another one owns", &self.contested);
        to.add(
            "left_out_service_ports",
            "Service ports that are not programmed because a map is full",
            &self.left_out,
        );
        to.add(
            "kube_proxy_leftovers",
            "Tables of iptables and nftables, ip sets and interfaces with something of a kube-proxy's; lb-agent status names them. Looked for at \
             the start, and each half minute or less often while there are some",
            &self.leftovers,
        );
    }

    fn register_answers(&self, to: &mut Registrar<'_>) {
        let [healthz, livez, readyz] = &self.probes;
        to.add("healthz", "Answers on /healthz, by HTTP code", healthz);
        to.add("livez", "Answers on /livez, by HTTP code", livez);
        to.add("readyz", "Answers on /readyz, by HTTP code", readyz);
        to.add(
            "udp_sockets_freed",
            "Connected UDP sockets that led nowhere and were freed",
            &self.udp_sockets_freed,
        );
        to.add(
            "healing_failures",
            "Looks for such sockets that failed or could not see all of them",
            &self.healing_failures,
        );
        to.add_seconds(
            "healing_duration",
            "Time of one look for such sockets, also of one that failed",
            &self.healing_duration,
        );
        to.add(
            "flow_entries_collected",
            "Entries of lb_flows4 and lb_flows6 whose flows were over; each flow has two",
            &self.flows_collected,
        );
        to.add(
            "device_programs_put_back",
            "Devices that got programs of lb-agent again which somebody had taken off",
            &self.programs_put_back,
        );
        to.add(
            "health_check_servers",
            "Sockets of health check node ports, by state: listening, or failed and tried again",
            &self.health_servers,
        );
        to.add(
            "events",
            "Kubernetes Events by result: sent; repeated within ten minutes; limited, too many about one object; dropped, \
             too many at once; failed, refused by the API server",
            &self.events,
        );
    }

    /// Everything as OpenMetrics text.
    ///
    /// # Errors
    /// None in practice: a string can always be written to.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry())?;
        Ok(text)
    }

    /// An object is being sent to the owner, at Unix time `now_s`.
    pub fn queued(&self, event: &Event, now_s: f64) {
        self.last_queued.set(now_s);
        if let Some(object) = object(event) {
            self.changes.get_or_create(&[("object", object)]).inc();
            self.pending.get_or_create(&[("object", object)]).inc();
        }
    }

    /// So many Services, EndpointSlices and Nodes that were queued are done.
    pub fn settled(&self, done: Pending) {
        for (object, done) in OBJECTS.into_iter().zip(done.0) {
            self.pending.get_or_create(&[("object", object)]).dec_by(done);
        }
    }

    /// A pass has succeeded at Unix time `now_s`, after `took_s` seconds and so many writes.
    pub fn synced(&self, is_full: bool, took_s: f64, now_s: f64, writes: usize) {
        self.last_writes.set(count(writes));
        let kind = if is_full { "full" } else { "partial" };
        self.sync_duration.get_or_create(&[("kind", kind)]).observe(took_s);
        self.last_sync.set(now_s);
    }

    /// Objects of this kind are asked for from now on.
    pub fn api_followed(&self, resource: &'static str) {
        for code in ANSWERS {
            drop(self.api_requests.get_or_create(&[("resource", resource), ("code", code)]));
        }
        drop(self.api_failures.get_or_create(&[("resource", resource)]));
        drop(self.api_heard.get_or_create(&[("resource", resource)]));
    }

    /// The API server has answered a request for objects of this kind, with one of the answers that `ANSWERS` lists.
    pub fn api_answered(&self, resource: &'static str, code: &'static str) {
        self.api_requests.get_or_create(&[("resource", resource), ("code", code)]).inc();
    }

    /// The API server has said something about objects of this kind, at Unix time `now_s`.
    pub fn api_heard(&self, resource: &'static str, now_s: f64) {
        self.api_heard.get_or_create(&[("resource", resource)]).set(now_s);
    }

    /// A list or watch of objects of this kind has failed or broken off.
    pub fn api_failed(&self, resource: &'static str) {
        self.api_failures.get_or_create(&[("resource", resource)]).inc();
    }

    /// The API server does not give objects of this kind, and nobody is to be called for it.
    pub fn api_not_given(&self, resource: &'static str) {
        self.api_heard.remove(&[("resource", resource)]);
    }

    /// A pass has failed.
    pub fn sync_failed(&self, error: &anyhow::Error) {
        self.sync_failures.inc();
        if let Some((map, errno)) = map_errno(error) {
            self.map_errors.get_or_create(&[("map", map.to_owned()), ("errno", errno)]).inc();
        }
    }

    /// The maps follow a slice `took_s` seconds after the change that made it (ES-17).
    pub fn programmed(&self, family: Family, took_s: f64) {
        self.programming_duration.get_or_create(&[ip_family(family)]).observe(took_s);
    }

    /// A look for UDP sockets that lead nowhere has freed so many within `took_s` seconds (CT-7).
    pub fn healed(&self, freed: usize, has_failed: bool, took_s: f64) {
        self.healing_duration.observe(took_s);
        self.udp_sockets_freed.inc_by(freed as u64);
        self.healing_failures.inc_by(u64::from(has_failed));
    }

    /// A device has programs again that somebody had taken off.
    pub fn put_back(&self) {
        self.programs_put_back.inc();
    }

    /// The tables of proven flows were looked through.
    pub fn collected(&self, round: &Round) {
        for (map, table) in [(maps::FLOWS4, round.v4), (maps::FLOWS6, round.v6)] {
            self.map_entries.get_or_create(&[("map", map)]).set(count(table.left));
            self.map_capacity.get_or_create(&[("map", map)]).set(count(table.capacity));
            self.flows_collected.inc_by(table.collected as u64);
        }
    }

    /// What there is.
    pub fn set_totals(&self, totals: &Totals) {
        self.services.set(count(totals.services));
        self.service_ports.set(count(totals.service_ports));
        self.notices.set(count(totals.notices));
        self.contested.set(count(totals.contested));
        self.left_out.set(count(totals.left_out));
        for (at, family) in Family::BOTH.into_iter().enumerate() {
            let [internal, external] = totals.no_local[at];
            for (policy, ports) in [("internal", internal), ("external", external)] {
                let labels = [ip_family(family), ("traffic_policy", policy)];
                self.no_local_endpoints.get_or_create(&labels).set(count(ports));
            }
        }
        for &Usage { map, used, capacity } in &totals.usage {
            self.map_entries.get_or_create(&[("map", map)]).set(count(used));
            self.map_capacity.get_or_create(&[("map", map)]).set(count(capacity));
        }
    }

    /// A probe was answered (HZ-6).
    pub fn probed(&self, path: Probed, is_ok: bool) {
        let code = if is_ok { "200" } else { "503" };
        self.probes[path as usize].get_or_create(&[("code", code)]).inc();
    }

    /// Sockets of health check node ports.
    pub fn set_health_servers(&self, listening: usize, failed: usize) {
        for (state, sockets) in [("listening", listening), ("failed", failed)] {
            self.health_servers.get_or_create(&[("state", state)]).set(count(sockets));
        }
    }

    /// Places where a kube-proxy has left something.
    pub fn set_leftovers(&self, places: usize) {
        self.leftovers.set(count(places));
    }

    /// What became of an Event.
    pub fn event(&self, result: EventResult) {
        self.events.get_or_create(&[("result", result.name())]).inc();
    }

    fn registry(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Objects that the owner has taken and not done yet: Services, EndpointSlices, Nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pending([i64; 3]);

impl Pending {
    /// The owner has taken one.
    pub fn add(&mut self, event: &Event) {
        if let Some(object) = object(event) {
            for (known, pending) in OBJECTS.into_iter().zip(&mut self.0) {
                *pending += i64::from(known == object);
            }
        }
    }
}

/// What the owner has, counted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Listed.
    pub services: usize,
    /// Programmed.
    pub service_ports: usize,
    /// Fields that cannot be used.
    pub notices: usize,
    /// Frontends that another Service owns.
    pub contested: usize,
    /// Service ports without room.
    pub left_out: usize,
    /// Service ports of policy Local without a local endpoint, though there are others (NE-6): for IPv4 and IPv6, by internal
    /// and by external policy.
    pub no_local: [[usize; 2]; 2],
    /// The room of the maps.
    pub usage: Vec<Usage>,
}

/// What kind of object changed; nothing for the frame of a list.
fn object(event: &Event) -> Option<&'static str> {
    match event {
        Event::Service(Change::Apply(_) | Change::Delete(_)) => Some(OBJECTS[0]),
        Event::Slice(Change::Apply(_) | Change::Refuse(..) | Change::Delete(_)) => Some(OBJECTS[1]),
        Event::Node(Change::Apply(_) | Change::Delete(_)) => Some(OBJECTS[2]),
        _ => None,
    }
}

const fn ip_family(family: Family) -> (&'static str, &'static str) {
    (
        "ip_family",
        match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        },
    )
}

/// Which map an error is about, and the name of the error number; nothing if it is about none.
pub(crate) fn map_errno(error: &anyhow::Error) -> Option<(&'static str, String)> {
    let name = |errno: i32| format!("{:?}", Errno::from_raw(errno));
    let error = error.chain().find_map(|cause| cause.downcast_ref::<MapError>())?;
    Some(match error {
        MapError::Full { map, .. } => (map, name(libc::E2BIG)),
        MapError::Exists { map, .. } => (map, name(libc::EEXIST)),
        MapError::Kernel { map, errno, .. } => (map, errno.raw_os_error().map_or("none".to_owned(), name)),
    })
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Labels of a value that is made for one scrape.
fn labels<'a>(name: &'static str, value: &'a str) -> Vec<(&'static str, &'a str)> {
    once((name, value)).collect()
}
