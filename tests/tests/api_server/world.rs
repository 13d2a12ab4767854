//! A node with an agent that follows the API server, a client, and servers to be backends.
//!
//! ```text
//! control plane ══ control │ node: lb-agent, client, servers on 10.1.255.b │ eth0, default route ── nobody
//! ```
//!
//! Numbers say who is who: Service `i` of world `n` has the cluster IPs `10.0.n.i` and `fd00:10::XXYY` (n and i in
//! hexadecimal), backend `b` the addresses `10.1.255.b` and `fd00:10:1:255::b`. Services have TCP port 80, backends
//! 8080. A Service address that is not programmed leads to nobody, so a connect to it times out.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use lb_tests::control_plane::{API_PORT, ControlPlane, FaultProxy, Link, Namespace, Trust, objects};
use lb_tests::http::{Answer, get};
use lb_tests::probe::{Handle, Many, Serve, Tally, Tcp};
use lb_tests::{Agent, Home, Netns, Probe, Topology, wait_for};
use serde_json::{Value, json};

/// For limits of things that are expected to happen: long enough for an agent that has to find out that the machine at the
/// other end is gone, which takes half a minute.
pub(crate) const SOON: Duration = Duration::from_mins(1);

/// How long a connect that may lead nowhere is given.
const SHORT: Duration = Duration::from_millis(200);

/// Ports of /healthz and of /metrics.
pub(crate) const HEALTHZ: u16 = 10256;
pub(crate) const METRICS: u16 = 10249;

/// Backends of a world.
const BACKENDS: u8 = 3;

/// See the module. Fields are dropped in order: the agent before what it has pinned and attached.
pub(crate) struct World<'a> {
    pub(crate) agent: Option<Agent>,
    client: Rc<Probe>,
    _servers: Probe,
    pub(crate) home: Home,
    pub(crate) namespace: Namespace<'a>,
    link: Option<Link<'a>>,
    net: Topology,
    pub(crate) control_plane: &'a ControlPlane,
    number: u8,
}

impl<'a> World<'a> {
    /// Everything but the agent. `label` names the Kubernetes namespace and the Node.
    pub(crate) fn new(control_plane: &'a ControlPlane, label: &str) -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(1);

        let mut net = Topology::single().unwrap();
        label.clone_into(&mut net.nodes[0].name);
        let node = net.node(1);
        let mut lines = String::new();
        for addr in (1..=BACKENDS).flat_map(backend) {
            let length = if addr.is_ipv6() { 128 } else { 32 };
            writeln!(lines, "addr add {addr}/{length} dev lo nodad").unwrap();
        }
        node.netns.ip(&lines).unwrap();
        let servers = node.probe("servers").unwrap();
        for b in 1..=BACKENDS {
            for addr in backend(b) {
                servers.serve(&Serve::tcp(&name_of(b), (addr, 8080).into())).unwrap();
            }
        }
        let client = Rc::new(node.probe("client").unwrap());
        let link = control_plane.link(&node.netns).unwrap();
        let world = Self {
            agent: None,
            client,
            _servers: servers,
            home: Home::new(label).unwrap(),
            namespace: control_plane.namespace(label).unwrap(),
            link: Some(link),
            net,
            control_plane,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
        };
        control_plane.apply(&world.node()).unwrap();
        world
    }

    /// The Node object.
    pub(crate) fn node(&self) -> Value {
        let node = self.net.node(1);
        objects::node(&node.name, &[&node.ipv4.to_string(), &node.ipv6.to_string()])
    }

    /// Puts the own Node into a zone, or into none.
    pub(crate) fn set_zone(&self, zone: Option<&str>) {
        let labels = json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}});
        self.control_plane.patch(&self.node(), &labels).unwrap();
    }

    /// Writes the status of a Pod, as a kubelet does for one that is terminating as well.
    pub(crate) fn status(&self, pod: &Value) {
        self.namespace.status(pod).unwrap();
    }

    /// Addresses of the node.
    pub(crate) fn own_addresses(&self) -> [IpAddr; 2] {
        let node = self.net.node(1);
        [node.ipv4.into(), node.ipv6.into()]
    }

    /// A number that no other world has.
    pub(crate) const fn number(&self) -> u8 {
        self.number
    }

    /// Starts the agent on the API server itself, and waits until it has attached its programs.
    pub(crate) fn start(&mut self) {
        self.start_at(&self.control_plane.node_urls()[0]);
    }

    /// Starts the agent on the API server behind `proxy`, and waits until it has attached its programs.
    pub(crate) fn start_behind(&mut self, proxy: &FaultProxy) {
        self.start_at(&proxy.node_url());
    }

    fn start_at(&mut self, url: &str) {
        self.spawn_at(url);
        self.wait_ready();
    }

    /// Starts the agent and waits for nothing.
    pub(crate) fn spawn_at(&mut self, url: &str) {
        let kubeconfig = self.control_plane.kubeconfig(url, Trust::Authority).unwrap();
        self.spawn(&kubeconfig, &[]);
    }

    /// Starts the agent with further arguments and waits for nothing.
    pub(crate) fn spawn(&mut self, kubeconfig: &Path, args: &[&str]) {
        let source = ["--kubeconfig", kubeconfig.to_str().unwrap()].into_iter().chain(args.iter().copied());
        self.agent = Some(Agent::spawn_from(self.net.node(1), &self.home, source).unwrap());
    }

    /// Starts the agent as in a pod whose API server is at `ip`, with $KUBECONFIG, and waits for nothing.
    pub(crate) fn spawn_in_pod(&mut self, ip: &str, account: Option<&Path>, kubeconfig: &Path) {
        let server = SocketAddr::new(ip.parse().unwrap(), API_PORT);
        let agent = Agent::spawn_in_pod(self.net.node(1), &self.home, server, account, kubeconfig);
        self.agent = Some(agent.unwrap());
    }

    pub(crate) fn wait_ready(&mut self) {
        self.agent.as_mut().unwrap().wait_ready(&self.home).unwrap();
    }

    /// Asks the agent to stop and waits for its end.
    pub(crate) fn stop(&mut self) {
        self.agent.take().unwrap().stop().unwrap();
    }

    /// A kubeconfig for the API server, with changes.
    pub(crate) fn kubeconfig(&self, change: impl FnOnce(&mut Value)) -> PathBuf {
        let path =
            self.control_plane.kubeconfig(&self.control_plane.node_urls()[0], Trust::Authority).unwrap();
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        fs::write(&path, config.to_string()).unwrap();
        path
    }

    /// The node's network namespace.
    pub(crate) fn netns(&self) -> &Netns {
        &self.net.node(1).netns
    }

    /// What the agent answers on one of its ports at the loopback address.
    pub(crate) fn ask(&self, port: u16, path: &str) -> Answer {
        let to = (Ipv4Addr::LOCALHOST, port).into();
        self.try_ask(to, path).unwrap_or_else(|error| panic!("{to}{path}: {error:#}"))
    }

    /// What is answered at an address of the node.
    pub(crate) fn try_ask(&self, to: SocketAddr, path: &str) -> anyhow::Result<Answer> {
        get(&self.net.node(1).netns, to, path)
    }

    /// Whom one new socket meets, or how it fails.
    pub(crate) fn meets(&self, to: SocketAddr) -> String {
        let tcp = Tcp::to(to).timeout(SHORT).reset();
        self.client
            .tcp(&tcp)
            .map_or_else(|error| error.errno().to_owned(), |reached| reached.server().to_owned())
    }

    /// Takes a TCP port of the node.
    pub(crate) fn bind(&self, port: u16) -> TcpListener {
        self.net.node(1).netns.run(|| TcpListener::bind(("0.0.0.0", port))).unwrap()
    }

    /// Cuts the cable to the control plane: packets vanish, and nobody is told.
    pub(crate) fn unlink(&mut self) {
        self.link = None;
    }

    /// Lays a new cable.
    pub(crate) fn relink(&mut self) {
        self.link = Some(self.control_plane.link(&self.net.node(1).netns).unwrap());
    }

    /// Cluster IPs of Service `i`.
    pub(crate) fn ips(&self, i: u8) -> [IpAddr; 2] {
        let ipv6 = format!("fd00:10::{:x}", u16::from_be_bytes([self.number, i]));
        [[10, 0, self.number, i].into(), ipv6.parse().unwrap()]
    }

    /// Service `i` of both families, without a selector.
    pub(crate) fn service(&self, i: u8) -> Value {
        let [ipv4, ipv6] = self.ips(i);
        let spec = json!({
            "clusterIP": ipv4, "clusterIPs": [ipv4, ipv6], "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack", "ports": [{"protocol": "TCP", "port": 80, "targetPort": 8080}],
        });
        objects::service(&format!("service-{i}"), &spec)
    }

    /// The same with a selector for Pods with label `app`.
    pub(crate) fn service_of(&self, i: u8, app: &str) -> Value {
        let mut service = self.service(i);
        service["spec"]["selector"] = json!({"app": app});
        service
    }

    /// Writes Service `i` with these backends.
    pub(crate) fn write(&self, i: u8, backends: &[u8]) {
        self.namespace.apply(&self.service(i)).unwrap();
        self.write_slices(i, backends);
    }

    /// Writes the slices of Service `i`.
    pub(crate) fn write_slices(&self, i: u8, backends: &[u8]) {
        for slice in slices(i, backends) {
            self.namespace.apply(&slice).unwrap();
        }
    }

    /// Waits until new sockets meet these backends behind Service `i`, all of them and nobody else. Without backends they
    /// are to be refused.
    pub(crate) fn expect(&self, i: u8, backends: &[u8]) {
        self.expect_port(i, 80, backends);
    }

    /// The same at another port than 80.
    pub(crate) fn expect_port(&self, i: u8, port: u16, backends: &[u8]) {
        let mut names: Vec<String> = backends.iter().copied().map(name_of).collect();
        names.sort();
        let wanted = if names.is_empty() { "ECONNREFUSED".to_owned() } else { names.join(" ") };
        self.expect_to_see(i, port, &wanted);
    }

    /// Waits until the addresses of Service `i` are nobody's.
    pub(crate) fn expect_gone(&self, i: u8) {
        self.expect_to_see(i, 80, "TIMEOUT");
    }

    /// Waits until a port of Service `i`, which has others, is nobody's.
    pub(crate) fn expect_port_gone(&self, i: u8, port: u16) {
        self.expect_to_see(i, port, "ECONNREFUSED");
    }

    fn expect_to_see(&self, i: u8, port: u16, wanted: &str) {
        for ip in self.ips(i) {
            self.expect_at((ip, port).into(), wanted);
        }
    }

    /// Waits until [`World::look`] gives `wanted`.
    pub(crate) fn expect_at(&self, to: SocketAddr, wanted: &str) {
        wait_for(&format!("{to} to show {wanted}"), SOON, || {
            let seen = self.look(to);
            if seen == wanted { Ok(()) } else { Err(seen) }
        })
        .unwrap_or_else(|error| panic!("{error}; log of the agent:\n{}", self.home.log()));
    }

    /// Whom new sockets meet at `to`, or how they fail. A wrong peer address is a failure too.
    pub(crate) fn look(&self, to: SocketAddr) -> String {
        let tcp = Tcp::to(to).timeout(SHORT).reset();
        if let Err(error) = self.client.tcp(&tcp) {
            return error.errno().to_owned();
        }
        let tally = self.client.run(&Many::times(16 * u64::from(BACKENDS), tcp)).unwrap();
        let wrong =
            tally.peers.keys().filter(|peer| **peer != to.to_string()).map(|peer| format!("as {peer}"));
        let seen: Vec<String> =
            tally.answered.keys().cloned().chain(tally.failed.keys().cloned()).chain(wrong).collect();
        seen.join(" ")
    }

    /// Begins to connect to Service `i`, again and again.
    pub(crate) fn begin(&self, i: u8) -> Traffic {
        let tcp = Tcp::to((self.ips(i)[0], 80).into()).reset();
        let load = Many::until_finished(tcp).pause(Duration::from_millis(2));
        Traffic { client: Rc::clone(&self.client), handle: self.client.begin(&load).unwrap() }
    }

    /// Waits until the agent has logged a line that contains all of these, and returns it.
    pub(crate) fn wait_for_line(&self, parts: &[&str]) -> String {
        wait_for(&format!("a line with {parts:?}"), SOON, || {
            let log = self.home.log();
            let found = log.lines().find(|line| parts.iter().all(|part| line.contains(part)));
            found.map(str::to_owned).ok_or(log)
        })
        .unwrap()
    }
}

/// Connections that are under way all the time.
pub(crate) struct Traffic {
    client: Rc<Probe>,
    handle: Handle,
}

impl Traffic {
    /// What happened so far; fails if one connection has.
    pub(crate) fn look(&self) -> Tally {
        let tally = self.client.tally(self.handle).unwrap();
        assert_eq!(tally.failures(), 0, "{tally:?}");
        tally
    }

    /// Waits until there were new connections.
    pub(crate) fn goes_on(&self) {
        let before = self.look().successes();
        lb_tests::wait_until("new connections", SOON, || self.look().successes() > before + 10).unwrap();
    }

    /// Ends the traffic; fails if one connection has, or if it has not gone on until now.
    pub(crate) fn end(self) {
        assert!(!self.look().is_done, "the traffic has ended too early");
        let tally = self.client.finish(self.handle).unwrap();
        assert_eq!(tally.failures(), 0, "{tally:?}");
        assert!(tally.successes() > 0, "{tally:?}");
    }
}

/// Slices of both families that give Service `i` these backends.
pub(crate) fn slices(i: u8, backends: &[u8]) -> [Value; 2] {
    [(0, "v4"), (1, "v6")].map(|(family, label)| {
        let ips: Vec<String> = backends.iter().map(|b| backend(*b)[family].to_string()).collect();
        let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
        let mut slice = objects::slice(&format!("service-{i}-{label}"), &format!("service-{i}"), &ips, 8080);
        slice["addressType"] = json!(["IPv4", "IPv6"][family]);
        slice
    })
}

/// Service `i` with another type and a NodePort, where the type has one.
pub(crate) fn service_on_nodes(world: &World<'_>, i: u8, kind: &str, node_port: u16) -> Value {
    let mut service = world.service(i);
    service["spec"]["type"] = json!(kind);
    if kind != "ClusterIP" {
        service["spec"]["ports"][0]["nodePort"] = json!(node_port);
    }
    service
}

/// Pod `name` on the Node of `world`, at the addresses of backend `b`.
pub(crate) fn pod(world: &World<'_>, b: u8, app: &str, ready: bool) -> Value {
    let ips = backend(b).map(|ip| ip.to_string());
    objects::pod(&format!("pod-{b}"), app, world.namespace.name(), &[&ips[0], &ips[1]], ready)
}

/// Addresses of backend `b`.
pub(crate) fn backend(b: u8) -> [IpAddr; 2] {
    [[10, 1, 255, b].into(), format!("fd00:10:1:255::{b}").parse().unwrap()]
}

fn name_of(b: u8) -> String {
    format!("backend-{b}")
}

/// A control plane whose API server may be stopped, for one test at a time. It runs when a test gets it.
pub(crate) fn restartable() -> MutexGuard<'static, ControlPlane> {
    static CONTROL_PLANE: OnceLock<Mutex<ControlPlane>> = OnceLock::new();
    let control_plane = CONTROL_PLANE.get_or_init(|| Mutex::new(ControlPlane::start().unwrap()));
    // A failed test may have left it stopped.
    let control_plane = control_plane.lock().unwrap_or_else(PoisonError::into_inner);
    control_plane.start_api_server().unwrap();
    control_plane
}
