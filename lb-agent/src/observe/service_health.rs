//! Health check node ports: whether this node has endpoints of a Service, for the load balancer in front of it (2.14).
//!
//! ```text
//! owner  --(Service, port, endpoints)-->  ServiceHealth, one task  -->  one socket per Service, family and address
//! ```
//!
//! Each family counts its own endpoints and has a socket of its own, so that a dual-stack Service does not bind its port twice
//! (HC-10). Sockets are tasks, not threads.

use core::{net::IpAddr, net::SocketAddr, time::Duration};
use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Instant,
};

use http::{HeaderValue, Method, StatusCode};
use jiff::Timestamp;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use super::{
    events::{Note, Recorder},
    health::Health,
    http::{Answer, Answers, Families, JSON, MOST_HEALTH_CHECKS, TEXT, answer, has_no_family, listen, serve},
    metrics::Metrics,
    room::Room,
};
use crate::{
    datapath::addresses::Listen,
    model::{Family, ServiceName},
};

/// Between two attempts to listen (HC-8); a change of any Service is one too.
const AGAIN: Duration = Duration::from_secs(5);
/// In place of a number of endpoints: the Service is not known any more.
const UNKNOWN: i64 = -1;

/// A Service with a health check port (SP-7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HealthPort {
    /// `spec.healthCheckNodePort`, host byte order, never 0.
    pub port: u16,
    /// Distinct local ready endpoints of IPv4 and of IPv6; nothing for a family that the Service does not have (HC-3, HC-10).
    pub ready: [Option<u32>; 2],
}

/// What changed, by Service: its port, or that it has none any more.
type Changes = BTreeMap<ServiceName, Option<HealthPort>>;

/// Where the owner leaves changes. Never longer than there are Services: a later change of one takes the place of an earlier.
#[derive(Debug, Default)]
pub struct HealthPorts {
    changes: Mutex<Changes>,
    news: Notify,
}

impl HealthPorts {
    /// A Service has this port now, or none.
    pub fn tell(&self, service: ServiceName, port: Option<HealthPort>) {
        self.lock().insert(service, port);
        self.news.notify_one();
    }

    /// Waits for changes.
    async fn changes(&self) -> Changes {
        self.news.notified().await;
        core::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// On which addresses of this node to listen (HC-9, NP-13), for IPv4 and IPv6.
pub type ListenOn = [Listen; 2];

fn addresses_of(listen_on: &ListenOn, family: Family) -> Vec<IpAddr> {
    let [v4, v6] = listen_on;
    match if family == Family::V4 { v4 } else { v6 } {
        Listen::All => vec![family.unspecified()],
        Listen::Set(addresses) => addresses.iter().copied().collect(),
    }
}

/// An open socket. Dropping it closes the socket and its connections.
struct Socket {
    count: Arc<AtomicI64>,
    task: JoinHandle<()>,
}

/// A Service, and what is open for it.
struct Served {
    wanted: HealthPort,
    sockets: BTreeMap<IpAddr, Socket>,
    /// Addresses that could not be listened on, and why.
    failed: BTreeMap<IpAddr, Failure>,
}

/// Why an address cannot be listened on.
struct Failure {
    cause: String,
    since: Timestamp,
    /// The Event found a place in the queue.
    is_told: bool,
}

/// All health check ports of this node.
pub(super) struct ServiceHealth {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    events: Recorder,
    listen_on: watch::Receiver<ListenOn>,
    services: BTreeMap<ServiceName, Served>,
    /// For the connections of all sockets.
    room: Arc<Room>,
}

impl ServiceHealth {
    pub(super) fn new(
        health: Arc<Health>,
        metrics: Arc<Metrics>,
        events: Recorder,
        listen_on: watch::Receiver<ListenOn>,
    ) -> Self {
        let room = Room::new(MOST_HEALTH_CHECKS);
        Self { health, metrics, events, listen_on, services: BTreeMap::new(), room }
    }

    /// Follows `changes` until `stop`.
    pub(super) async fn run(mut self, ports: Arc<HealthPorts>, stop: CancellationToken) {
        let mut is_watched = true;
        loop {
            let has_failed = self.services.values().any(|served| !served.failed.is_empty());
            let mut batch = Changes::new();
            tokio::select! {
                () = stop.cancelled() => return,
                changes = ports.changes() => batch = changes,
                changed = self.listen_on.changed(), if is_watched => is_watched = changed.is_ok(),
                () = sleep(AGAIN), if has_failed => {}
            }
            self.sync(batch).await;
        }
    }

    /// Closes what is not wanted any more, then opens what is, so that a number can go from one Service to another.
    async fn sync(&mut self, batch: Changes) {
        for (name, wanted) in batch {
            self.change(name, wanted).await;
        }
        let listen_on = self.listen_on.borrow_and_update().clone();
        for served in self.services.values_mut() {
            let wanted = served.addresses(&listen_on);
            let superfluous: Vec<IpAddr> =
                served.sockets.keys().filter(|addr| !wanted.contains_key(addr)).copied().collect();
            for addr in superfluous {
                close(served.sockets.remove(&addr)).await;
            }
            served.failed.retain(|addr, _| wanted.contains_key(addr));
        }
        for (name, served) in &mut self.services {
            for (addr, ready) in served.addresses(&listen_on) {
                if let Some(socket) = served.sockets.get(&addr) {
                    socket.count.store(ready.into(), Ordering::Relaxed);
                    continue;
                }
                let at = (addr, served.wanted.port).into();
                match open(name, at, ready, &self.health, &self.room) {
                    Ok(socket) => {
                        info!(service = %name, %addr, port = served.wanted.port, "answering health checks");
                        served.failed.remove(&addr);
                        served.sockets.insert(addr, socket);
                    }
                    Err(error) if has_no_family(&error) => {
                        debug!(service = %name, %addr, "this machine does not have the family");
                    }
                    Err(error) => fail(name, served, addr, &error, &self.events),
                }
            }
        }
        let sum = |count: fn(&Served) -> usize| self.services.values().map(count).sum();
        self.metrics
            .set_health_servers(sum(|served| served.sockets.len()), sum(|served| served.failed.len()));
    }

    async fn change(&mut self, name: ServiceName, wanted: Option<HealthPort>) {
        let is_other_port = |served: &Served| wanted.is_none_or(|wanted| wanted.port != served.wanted.port);
        if let Some(served) = self.services.get_mut(&name)
            && is_other_port(served)
        {
            for (_, socket) in core::mem::take(&mut served.sockets) {
                close(Some(socket)).await;
            }
            info!(service = %name, port = served.wanted.port, "health checks are not answered any more");
            self.services.remove(&name);
        }
        if let Some(wanted) = wanted {
            let none = || Served { wanted, sockets: BTreeMap::new(), failed: BTreeMap::new() };
            self.services.entry(name).or_insert_with(none).wanted = wanted;
        }
    }
}

impl Served {
    /// Where to listen, and how many endpoints to tell there.
    fn addresses(&self, listen_on: &ListenOn) -> BTreeMap<IpAddr, u32> {
        let families = Family::BOTH.into_iter().zip(self.wanted.ready);
        let served = families.filter_map(|(family, ready)| Some((family, ready?)));
        served
            .flat_map(|(family, ready)| {
                addresses_of(listen_on, family).into_iter().map(move |addr| (addr, ready))
            })
            .collect()
    }
}

/// HC-8: said once for each cause, and tried again. An Event that finds no place in the queue is left with the next attempt.
fn fail(name: &ServiceName, served: &mut Served, addr: IpAddr, error: &io::Error, events: &Recorder) {
    let (port, cause) = (served.wanted.port, error.to_string());
    let known = served.failed.remove(&addr).filter(|known| known.cause == cause);
    if known.is_none() {
        error!(service = %name, %addr, port, %error, again = ?AGAIN, "cannot answer health checks, trying again");
    }
    let mut failure = known.unwrap_or_else(|| Failure { cause, since: Timestamp::now(), is_told: false });
    if !failure.is_told {
        let at = SocketAddr::new(addr, port);
        let text = format!(
            "cannot listen on spec.healthCheckNodePort {at}: {error}; load balancers take this node for one without endpoints; \
             end the process that uses the port (ss -ltnp)"
        );
        let note = Note::service(name, "FailedToStartServiceHealthcheck", "Listen", text);
        failure.is_told = events.offer(note, failure.since).is_ok();
    }
    served.failed.insert(addr, failure);
}

fn open(
    name: &ServiceName,
    at: SocketAddr,
    ready: u32,
    health: &Arc<Health>,
    room: &Arc<Room>,
) -> io::Result<Socket> {
    let listener = listen(at, Families::One)?;
    let count = Arc::new(AtomicI64::new(ready.into()));
    let (name, health, known) = (name.clone(), Arc::clone(health), Arc::clone(&count));
    // HC-2: whatever the method and the path.
    let answers: Answers = Arc::new(move |_: &Method, _: &str| {
        let ready = u32::try_from(known.load(Ordering::Relaxed)).ok();
        service_answer(&name, ready, health.judge(Instant::now()).is_live())
    });
    Ok(Socket { count, task: tokio::spawn(serve(listener, answers, Arc::clone(room))) })
}

/// When this returns, the address is free and no connection answers any more.
async fn close(socket: Option<Socket>) {
    let Some(Socket { count, task }) = socket else { return };
    // What a connection has read already is answered with this (HC-7).
    count.store(UNKNOWN, Ordering::Relaxed);
    task.abort();
    // It ends as aborted.
    drop(task.await);
}

/// The answer about a Service that has `ready` endpoints on this node; nothing for one that is not known (HC-4 to HC-7).
fn service_answer(name: &ServiceName, ready: Option<u32>, is_live: bool) -> Answer {
    let Some(ready) = ready else {
        return answer(
            StatusCode::SERVICE_UNAVAILABLE,
            TEXT,
            "the Service has no health check port any more\n",
        );
    };
    let code = if ready != 0 && is_live { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    // Names are of letters, digits, dots and dashes. The white space is kube-proxy's.
    let (namespace, name) = (&name.namespace, &name.name);
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\
         \t\"localEndpoints\": {ready},\n\t\"serviceProxyHealthy\": {is_live}\n}}"
    );
    let mut answer = answer(code, JSON, body);
    answer.headers_mut().insert("X-Load-Balancing-Endpoint-Weight", HeaderValue::from(ready));
    answer
}

#[cfg(test)]
mod tests;
