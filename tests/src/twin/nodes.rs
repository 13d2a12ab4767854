//! The two nodes: the same shape and addresses, and nothing that connects them.
//!
//! ```text
//!              ┌ node 192.168.50.1: kube-proxy,  pods a (client) 10.1.1.10, b and c ══ other node: r1..r4 10.2.1.x
//! API server ══╡
//!              └ node 192.168.50.1: lb-agent,    pods a (client) 10.1.1.10, b and c ══ other node: r1..r4 10.2.1.x
//! ```
//!
//! Clients are pod a, the node, pod c, whose sockets the agent's hooks do not see, and the other node.
//!
//! Each of the backends a, b, h (the node itself) and r1 to r4 answers at both families' addresses, on three ports, TCP and
//! UDP, with its name and port. Pod a is a client and a backend, so it meets itself.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::panic::resume_unwind;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::model::{BACKENDS, NODE, NODE_IPS, TARGET_PORTS, backend};
use super::targets::Target;
use crate::control_plane::{ControlPlane, Daemon, Link, Program, Trust, find};
use crate::probe::{Look, Seen, Serve, Survey, Tcp};
use crate::{Agent, Home, Netns, Pod, Probe, Topology, wait_for};

/// Limit of an attempt that may lead nowhere.
const SHORT: Duration = Duration::from_millis(300);

/// How long a proxy may take to follow.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);

/// Looks at a time in a client: silent ones wait all at once.
const THREADS: u32 = 192;

/// Whether kube-proxy knows which addresses are its pods' (MQ-2, MQ-8a).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// It does not.
    Off,
    /// By the range of the node's pods.
    ByRange,
}

/// Who opens connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Client {
    /// Pod a.
    Pod,
    /// The node itself.
    Node,
    /// Pod c, whose sockets no hook of the agent sees.
    Bare,
    /// The other node, to which the node is a router.
    Outside,
}

impl Client {
    pub(super) const ALL: [Self; 4] = [Self::Pod, Self::Node, Self::Bare, Self::Outside];

    /// Its addresses.
    pub(super) fn addresses(self) -> [IpAddr; 2] {
        match self {
            Self::Pod => backend(0),
            Self::Node => NODE_IPS,
            Self::Bare => [BARE.into(), Ipv6Addr::new(0xfd00, 0x10, 1, 1, 0, 0, 0, 0x30).into()],
            Self::Outside => [
                Ipv4Addr::new(192, 168, 50, 2).into(),
                Ipv6Addr::new(0xfd00, 0x192, 0x168, 0x50, 0, 0, 0, 2).into(),
            ],
        }
    }
}

/// Pod c.
const BARE: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 30);

/// Addresses of Services, for which the node is a client's router.
const SERVICES: [&str; 5] = [
    "10.0.7.0/24 via 192.168.50.1",
    "203.0.113.0/24 via 192.168.50.1",
    "198.51.100.0/24 via 192.168.50.1",
    "fd00:10::/64 via fd00:192:168:50::1",
    "2001:db8::/32 via fd00:192:168:50::1",
];

/// A destination for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) client: Client,
    pub(super) target: Target,
    /// How many backends there may be.
    pub(super) backends: usize,
}

impl Question {
    fn look(&self, effort: Effort) -> Look {
        let backends = u32::try_from(self.backends).unwrap_or(u32::MAX);
        let times = if backends == 0 { 1 } else { backends.saturating_mul(effort.per_backend) + 2 };
        self.target.look(times, effort.failures, SHORT * effort.patience)
    }
}

/// How thoroughly a client looks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    /// Attempts for each backend that there may be.
    pub(super) per_backend: u32,
    /// Failures after which it gives up.
    pub(super) failures: u32,
    /// Multiple of the limit of an attempt.
    pub(super) patience: u32,
}

/// What serves a node. Dropped before the node.
enum Proxy {
    KubeProxy(Daemon),
    Agent { _agent: Agent, home: Home },
}

/// One of the two nodes.
struct Twin<'a> {
    proxy: Proxy,
    pod: Probe,
    node: Probe,
    bare: Probe,
    outside: Probe,
    _servers: Vec<Probe>,
    _pods: Vec<Pod>,
    _link: Link<'a>,
    _net: Topology,
}

/// Both nodes.
pub struct Pair<'a> {
    /// kube-proxy's first.
    twins: [Twin<'a>; 2],
}

impl<'a> Pair<'a> {
    /// Makes both nodes, with their proxies running. The Node object has to exist.
    pub(super) fn start(control_plane: &'a ControlPlane, detect: DetectLocal) -> Result<Self> {
        let kube_proxy = Twin::start(control_plane, |net| start_kube_proxy(control_plane, net, detect))?;
        let agent = Twin::start(control_plane, |net| start_agent(control_plane, net, detect))?;
        Ok(Self { twins: [kube_proxy, agent] })
    }

    /// Waits until both serve `at` by the server `name`, from node and pod alike.
    pub(super) fn wait_served(&self, at: SocketAddr, name: &str) -> Result<()> {
        for twin in &self.twins {
            wait_for(&format!("{} to serve {at} by {name}", twin.name()), PATIENCE, || {
                twin.check_running().map_err(|error| format!("{error:#}"))?;
                match twin.node.tcp(&Tcp::to(at).timeout(SHORT).reset()) {
                    Ok(reached) if reached.server() == name => Ok(()),
                    Ok(reached) => Err(reached.server().to_owned()),
                    Err(error) => Err(error.to_string()),
                }
            })
            .with_context(|| self.logs())?;
        }
        Ok(())
    }

    /// What the clients of each node see at the targets, kube-proxy's first. Everything goes on at the same time, as much of
    /// it is waiting for silent destinations.
    pub(super) fn look(&self, open: &[Question], effort: Effort) -> Result<Vec<[Seen; 2]>> {
        let of = |client| open.iter().filter(move |question| question.client == client);
        let survey =
            |client| Survey { looks: of(client).map(|it| it.look(effort)).collect(), threads: THREADS };
        let surveys = Client::ALL.map(survey);
        let seen = thread::scope(|scope| {
            let threads = Client::ALL.into_iter().zip(&surveys).flat_map(|(client, survey)| {
                self.twins.iter().map(move |twin| (twin.client(client), survey))
            });
            let threads: Vec<_> =
                threads.map(|(client, survey)| scope.spawn(move || client.survey(survey))).collect();
            let joined =
                threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
            joined.collect::<Result<Vec<_>, _>>()
        })?;
        // Of each client both nodes, the questions in their order.
        let mut answers: Vec<_> = seen.into_iter().map(Vec::into_iter).collect();
        let mut next = |twin: usize, client: Client| answers[2 * client as usize + twin].next();
        let pairs = open.iter().map(|question| Some([next(0, question.client)?, next(1, question.client)?]));
        pairs.collect::<Option<_>>().context("a probe has not looked at everything")
    }

    /// The ends of both proxies' logs.
    pub(super) fn logs(&self) -> String {
        self.twins.each_ref().map(Twin::log).concat()
    }
}

impl<'a> Twin<'a> {
    fn start(
        control_plane: &'a ControlPlane,
        proxy: impl FnOnce(&Topology) -> Result<Proxy>,
    ) -> Result<Self> {
        let mut net = Topology::pair()?;
        NODE.clone_into(&mut net.nodes[0].name);
        let pods = ["a", "b"].into_iter().zip(0..).map(|(name, b)| match backend(b)[0] {
            IpAddr::V4(ip) => net.node(1).add_pod(name, ip),
            IpAddr::V6(_) => net.node(1).add_pod(name, Ipv4Addr::UNSPECIFIED),
        });
        let pods: Vec<Pod> = pods.collect::<Result<_>>()?;
        for address in (3..BACKENDS.len()).flat_map(backend) {
            net.node(2).add_address(address)?;
        }
        let servers = vec![
            serve(pods[0].probe("server-a")?, 0..1)?,
            serve(pods[1].probe("server-b")?, 1..2)?,
            serve(net.node(1).probe("server-h")?, 2..3)?,
            serve(net.node(2).probe("server-r")?, 3..BACKENDS.len())?,
        ];
        let bare = net.node(1).add_pod("c", BARE)?;
        for route in SERVICES {
            net.node(2).netns.ip(&format!("route add {route}"))?;
        }
        let mut all: Vec<&Netns> = pods.iter().map(|pod| &pod.netns).collect();
        all.extend([&*net.node(1).netns, &*net.node(2).netns]);
        all.into_iter().try_for_each(tell_every_refusal)?;
        let link = control_plane.link(&net.node(1).netns)?;
        let proxy = proxy(&net)?;
        Ok(Self {
            proxy,
            pod: pods[0].probe("pod")?,
            node: net.node(1).probe("node")?,
            // In the cgroup of the other node.
            bare: Probe::start("bare", &bare.netns, &net.node(2).cgroup)?,
            outside: net.node(2).probe("outside")?,
            _servers: servers,
            _pods: pods.into_iter().chain([bare]).collect(),
            _link: link,
            _net: net,
        })
    }

    fn client(&self, client: Client) -> &Probe {
        match client {
            Client::Pod => &self.pod,
            Client::Node => &self.node,
            Client::Bare => &self.bare,
            Client::Outside => &self.outside,
        }
    }

    /// The agent's end shows in its log.
    fn check_running(&self) -> Result<()> {
        match &self.proxy {
            Proxy::KubeProxy(daemon) => daemon.check_running(),
            Proxy::Agent { .. } => Ok(()),
        }
    }

    fn name(&self) -> &'static str {
        match self.proxy {
            Proxy::KubeProxy(_) => "kube-proxy",
            Proxy::Agent { .. } => "lb-agent",
        }
    }

    fn log(&self) -> String {
        const LINES: usize = 25;
        match &self.proxy {
            Proxy::KubeProxy(daemon) => daemon.log_tail(),
            Proxy::Agent { home, .. } => {
                let log = home.log();
                let lines: Vec<&str> = log.lines().collect();
                let shown = lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default();
                format!("--- last lines of lb-agent\n{}\n", shown.join("\n"))
            }
        }
    }
}

/// Lifts the limits of the kernel on ICMP errors, which would make refused datagrams silent ones.
fn tell_every_refusal(netns: &Netns) -> Result<()> {
    netns.sysctl("net.ipv4.icmp_ratemask", "0")?;
    // No type that there is; an empty list is not taken.
    netns.sysctl("net.ipv6.icmp.ratemask", "255")
}

/// Lets the backends `numbers` answer.
fn serve(probe: Probe, numbers: std::ops::Range<usize>) -> Result<Probe> {
    for b in numbers {
        for ip in backend(b) {
            for port in TARGET_PORTS {
                let name = server_name(b, port);
                probe.serve(&Serve::tcp(&name, (ip, port).into()))?;
                probe.serve(&Serve::udp(&name, (ip, port).into()))?;
            }
        }
    }
    Ok(probe)
}

/// What backend `b` calls itself at its port `port`.
pub(super) fn server_name(b: usize, port: u16) -> String {
    format!("{}:{port}", BACKENDS[b])
}

fn start_kube_proxy(control_plane: &ControlPlane, net: &Topology, detect: DetectLocal) -> Result<Proxy> {
    let nft = Command::new("nft").arg("--version").output();
    nft.context("kube-proxy needs nft: install the package nftables")?;
    let netns = &net.node(1).netns;
    // What connection tracking remembers of closed flows would send a later client, that happens to have the same port, where
    // its Service led then.
    for (name, seconds) in [
        ("udp_timeout", "1"),
        ("udp_timeout_stream", "1"),
        ("tcp_timeout_close", "1"),
        ("tcp_timeout_time_wait", "1"),
    ] {
        netns.sysctl(&format!("net.netfilter.nf_conntrack_{name}"), seconds)?;
    }
    let kubeconfig = control_plane.kubeconfig(&control_plane.node_urls()[0], Trust::Authority)?;
    let config = control_plane.folder().join(format!("kube-proxy-{}.yaml", netns.name()));
    std::fs::write(&config, kube_proxy_config(&kubeconfig, detect))?;
    let mut command = Command::new(find(Program::KubeProxy)?);
    command.arg("--config").arg(&config);
    let log = control_plane.folder().join(format!("kube-proxy-{}.log", netns.name()));
    Ok(Proxy::KubeProxy(Daemon::start("kube-proxy", command, netns, &log)?))
}

/// Where the node's pods are.
const PODS: &str = "10.1.0.0/16,fd00:10:1::/48";

/// NodePorts at all addresses, as the agent serves them; changes in force at once; limits of connection tracking, which belong
/// to the machine, as they are.
fn kube_proxy_config(kubeconfig: &Path, detect: DetectLocal) -> String {
    let detect = match detect {
        DetectLocal::Off => String::new(),
        DetectLocal::ByRange => format!("detectLocalMode: ClusterCIDR\nclusterCIDR: {PODS}\n"),
    };
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\n\
         kind: KubeProxyConfiguration\n\
         mode: nftables\n\
         hostnameOverride: {NODE}\n\
         clientConnection: {{kubeconfig: {}}}\n\
         nodePortAddresses: [primary]\n\
         nftables: {{minSyncPeriod: 100ms, syncPeriod: 30s}}\n\
         conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}\n\
         metricsBindAddress: 127.0.0.1:10249\n\
         healthzBindAddress: 127.0.0.1:10256\n\
         oomScoreAdj: 0\n\
         {detect}",
        kubeconfig.display()
    )
}

fn start_agent(control_plane: &ControlPlane, net: &Topology, detect: DetectLocal) -> Result<Proxy> {
    let home = Home::new("twin")?;
    let kubeconfig = control_plane.kubeconfig(&control_plane.node_urls()[0], Trust::Authority)?;
    let mut source: Vec<&OsStr> = vec!["--kubeconfig".as_ref(), kubeconfig.as_os_str()];
    let packets = ["--devices", "auto", "--pod-devices", "auto", "--external-cluster-ip"];
    source.extend(packets.map(OsStr::new));
    if detect == DetectLocal::ByRange {
        source.extend(["--cluster-cidr", PODS].map(OsStr::new));
    }
    let mut agent = Agent::spawn_from(net.node(1), &home, source)?;
    agent.wait_ready(&home)?;
    Ok(Proxy::Agent { _agent: agent, home })
}
