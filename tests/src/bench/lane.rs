//! A lane: a node, a client pod and a server pod of its own, the same in every lane but for what translates.

use std::{
    io::{BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::worker::{Asking, Round};
use crate::{Netns, Pod, Process, Topology, binary};

/// Client and server share this CPU in every lane: a second one would measure the scheduler.
const CPU: &str = "0";
/// Port of the backends.
pub const PORT: u16 = 8080;

/// See the module.
#[derive(Debug)]
pub struct Lane {
    /// Its name in tables.
    pub name: &'static str,
    _server_process: Process,
    client: Pod,
    server: Pod,
    topology: Topology,
}

impl Lane {
    /// Builds the namespaces and starts a server for connections.
    pub fn new(name: &'static str) -> Result<Self> {
        Self::with_server(name, "serve")
    }

    /// The same with a server for requests.
    pub fn for_requests(name: &'static str) -> Result<Self> {
        Self::with_server(name, "answer")
    }

    fn with_server(name: &'static str, role: &str) -> Result<Self> {
        let topology = Topology::single()?;
        let node = topology.node(1);
        let client = node.add_pod("client", Ipv4Addr::new(10, 1, 1, 10))?;
        let server = node.add_pod("server", Ipv4Addr::new(10, 1, 2, 10))?;
        let addrs = backends(&server);
        let mut command = server.command(binary("bench-worker")?);
        command.args(["--cpu", CPU, role]).args(addrs.iter().map(ToString::to_string));
        let mut process = Process::start("bench-worker", command.stdout(Stdio::piped()))?;
        let stdout = process.child().stdout.take().context("the server has an output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line.trim() == "ready", "the server of {name} did not start");
        Ok(Self { name, _server_process: process, client, server, topology })
    }

    /// The host's namespace of the lane's node.
    pub fn netns(&self) -> &Netns {
        &self.topology.node(1).netns
    }

    /// The node.
    pub fn node(&self) -> &crate::Node {
        self.topology.node(1)
    }

    /// The backend of one family.
    pub fn backend(&self, v6: bool) -> SocketAddr {
        backends(&self.server)[usize::from(v6)]
    }

    /// One round of the client.
    pub fn run(&self, targets: &[SocketAddr], time: Duration) -> Result<Round> {
        self.client(&["load"], targets, time)
    }

    /// One round of a client that asks.
    pub fn ask(&self, to: SocketAddr, asking: Asking, time: Duration) -> Result<Round> {
        self.client(&["ask", "--how", &serde_json::to_string(&asking)?], &[to], time)
    }

    fn client(&self, role: &[&str], targets: &[SocketAddr], time: Duration) -> Result<Round> {
        let mut command = self.client.command(binary("bench-worker")?);
        command
            .args(["--cpu", CPU])
            .args(role)
            .args(["--ms", &time.as_millis().to_string()])
            .args(targets.iter().map(ToString::to_string));
        let output = command.stderr(Stdio::inherit()).output().context("cannot run the client")?;
        ensure!(output.status.success(), "the client of {} failed", self.name);
        serde_json::from_slice(&output.stdout).context("the client prints JSON")
    }
}

/// Addresses that every lane's server listens on.
fn backends(server: &Pod) -> [SocketAddr; 2] {
    [(IpAddr::from(server.ipv4), PORT).into(), (IpAddr::from(server.ipv6), PORT).into()]
}
