//! Many clients outside at one NodePort whose only endpoint is on the other node: each needs a port of this node.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::resume_unwind;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::service::{Numbered, TARGET_PORT};
use super::site::{Shape, Site};
use crate::probe::{Handle, Hold, Holding, Serve, Task};
use crate::{Agent, Home, Pod, Probe};

/// The only Service.
const SERVICE: Numbered = Numbered(10);

/// Addresses of the client: a closed connection keeps its port for a minute.
const CLIENTS: u8 = 8;

/// Processes of the client and of the server: each may have only so many descriptors.
const PROCESSES: u32 = 2;

/// Long enough for a machine that is busy; a SYN that is lost comes again after a second.
const PATIENCE: Duration = Duration::from_secs(10);

/// How much.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Connections that are open at the same time.
    pub open: u64,
    /// New ones in a second, each of which takes the place of the oldest one.
    pub per_second: u64,
    /// For so long.
    pub seconds: u64,
}

/// A client with many addresses, a node that masquerades, and a server on the other node.
pub struct Crowd {
    _agents: Vec<Agent>,
    homes: [Home; 2],
    clients: Vec<Probe>,
    _servers: Vec<Probe>,
    _pod: Pod,
    site: Site,
}

/// What a [`Crowd`] came to.
#[derive(Debug)]
pub struct Report {
    size: Size,
    /// The first ones, as fast as they come.
    opened: Holding,
    /// The new ones.
    renewed: Holding,
    /// Those that are open at the end.
    alive: Holding,
    /// Reasons that were counted.
    reasons: Vec<(String, u64)>,
}

impl Crowd {
    /// Starts agents that masquerade. `sysctls` of node 1, name and value, are set before.
    pub fn new(sysctls: &[(&str, &str)]) -> Result<Self> {
        let site = Site::new(Shape::ROUTED)?;
        for (name, value) in sysctls {
            site.node(1).netns.sysctl(name, value)?;
        }
        for address in addresses().skip(1) {
            site.client.ip(&format!("addr add {address}/24 dev eth0"))?;
        }
        let pod = site.add_pod(2, "server", Ipv4Addr::new(10, 2, 1, 10))?;
        let at = (pod.ipv4, TARGET_PORT).into();
        let mut servers = Vec::new();
        for _ in 0..PROCESSES {
            let server = pod.probe("server")?;
            server.serve(&Serve::tcp("server", at).task(Task::Echo))?;
            servers.push(server);
        }
        let homes = [Home::new("ports-1")?, Home::new("ports-2")?];
        for home in &homes {
            home.apply("services", &SERVICE.objects("crowd", &[(at.ip(), 2)], &json!({})))?;
        }
        let agents = site.start_agents(&homes, &[])?;
        let clients = (0..PROCESSES).map(|_| site.probe("client")).collect::<Result<_>>()?;
        Ok(Self { _agents: agents, homes, clients, _servers: servers, _pod: pod, site })
    }

    /// Opens `count` connections, which may fail after `limit`, and looks at those that have not.
    pub fn fill(&self, count: u64, limit: Duration) -> Result<(Holding, Holding)> {
        let (handles, opened) = self.open(&self.hold(count).timeout(limit), &[])?;
        Ok((opened, self.check(&handles)?))
    }

    /// Opens connections, replaces them for a while, and looks at those that are left.
    pub fn run(&self, size: Size) -> Result<Report> {
        let (handles, opened) = self.open(&self.hold(size.open), &[])?;
        let renew = self.hold(size.per_second * size.seconds).per_second(size.per_second).keep(size.open);
        let (_, renewed) = self.open(&renew, &handles)?;
        let alive = self.check(&handles)?;
        let status = self.homes[0].status()?;
        let rows = status["reasons"].as_array().context("status has reasons")?;
        let reasons = rows.iter().filter_map(|row| {
            let (name, count) = (row["name"].as_str()?, row["count"].as_u64()?);
            (count > 0).then(|| (name.to_owned(), count))
        });
        Ok(Report { size, opened, renewed, alive, reasons: reasons.collect() })
    }

    /// How often node 1's programs did something, by the reason's word.
    pub fn count(&self, reason: &str) -> Result<u64> {
        let status = self.homes[0].status()?;
        let rows = status["reasons"].as_array().context("status has reasons")?;
        let row = rows.iter().find(|row| row["name"] == reason).with_context(|| format!("no {reason}"))?;
        row["count"].as_u64().context("a count is a number")
    }

    /// `lb-agent status` of node 1.
    pub fn status(&self) -> Result<Value> {
        self.homes[0].status()
    }

    /// Each client opens its share, and adds it to what it has by these handles.
    fn open(&self, all: &Hold, into: &[Handle]) -> Result<(Vec<Handle>, Holding)> {
        let share = |whole: u64| whole / self.clients.len() as u64;
        let hold = Hold { keep: share(all.keep), ..all.clone() };
        let hold = Hold { count: share(all.count), per_second: share(all.per_second), ..hold };
        let opened = thread::scope(|scope| {
            let threads = (0..).zip(&self.clients).map(|(at, client): (usize, _)| {
                // Each client has addresses of its own.
                let from = addresses().skip(at).step_by(self.clients.len()).collect();
                let hold = Hold { into: into.get(at).copied(), from, ..hold.clone() };
                scope.spawn(move || client.hold(&hold))
            });
            let threads: Vec<_> = threads.collect();
            let joined = threads.into_iter().map(|it| it.join().unwrap_or_else(|panic| resume_unwind(panic)));
            joined.collect::<Result<Vec<_>, _>>()
        })?;
        let (handles, holdings): (Vec<_>, Vec<_>) = opened.into_iter().unzip();
        Ok((handles, sum(holdings)))
    }

    fn check(&self, handles: &[Handle]) -> Result<Holding> {
        let pairs = self.clients.iter().zip(handles);
        let all = pairs.map(|(client, handle)| client.check(*handle)).collect::<Result<Vec<_>, _>>()?;
        Ok(sum(all))
    }

    fn hold(&self, count: u64) -> Hold {
        let to = SocketAddr::new(self.site.addresses(1)[0], SERVICE.node_port());
        Hold::all(to, count).timeout(PATIENCE)
    }
}

/// All addresses of the client.
fn addresses() -> impl Iterator<Item = IpAddr> {
    (10..10 + CLIENTS).map(|last| IpAddr::from([192, 0, 2, last]))
}

/// Of several clients, who have done their parts at the same time.
fn sum(parts: Vec<Holding>) -> Holding {
    let mut all = Holding::default();
    for part in parts {
        all.alive += part.alive;
        all.took_ms = all.took_ms.max(part.took_ms);
        for (failure, count) in part.failed {
            *all.failed.entry(failure).or_default() += count;
        }
    }
    all
}

impl Report {
    /// Fails unless every connection was opened, and all that should be are open at the end.
    pub fn check(&self) -> Result<()> {
        let Self { size, opened, renewed, alive, .. } = self;
        ensure!(opened.failed.is_empty() && renewed.failed.is_empty(), "not all were opened:\n{self}");
        ensure!(alive.failed.is_empty() && alive.alive == size.open, "some are gone:\n{self}");
        ensure!(
            self.reasons.iter().all(|(name, _)| name != "no_port"),
            "some found no port at first:\n{self}"
        );
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size, opened, renewed, alive, reasons } = self;
        let Size { open, per_second, seconds } = size;
        writeln!(f, "{open} opened in {} ms; failed: {:?}", opened.took_ms, opened.failed)?;
        writeln!(
            f,
            "{} new ones, {per_second} a second for {seconds} s, in {} ms; failed: {:?}",
            per_second * seconds,
            renewed.took_ms,
            renewed.failed
        )?;
        writeln!(f, "{} alive at the end; gone: {:?}", alive.alive, alive.failed)?;
        write!(f, "reasons: {reasons:?}")
    }
}
