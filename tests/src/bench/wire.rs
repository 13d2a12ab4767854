//! A client's packets through a node to backends, in namespaces: forwarded, or translated by whoever serves there.
//!
//! ```text
//! client eth0 ── up0 node down0 ── eth0 server (backends elsewhere)
//!                     └─ pod0 ── eth0 pod (a backend here)
//! ```
//!
//! The client's packets are frames that a program gives to its end of the cable (BPF_PROG_TEST_RUN with live frames): there is no socket,
//! and next to nothing of what is measured is the sender's. They cross the cable as frames, as from a network card's driver, become packets in the
//! node's NAPI, and are counted and dropped where the backend's namespace begins. All of that is softirq work of the CPU that sends.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::net::if_::if_nametoindex;
use serde_json::{Value, json};

use super::{
    bpf::{Kind, Program, go_first, take_frames},
    frames::{Cable, Says, frame},
    generator::{End, Sent, Sink, Source},
    lane::PORT,
    peers::{SERVICE_PORT, cluster_ips},
    runs::{self, two_instructions},
    worker,
};
use crate::{Netns, Node, Pod, Topology};

/// Backends elsewhere, and here: what is masqueraded has 64k ports for each.
const BACKENDS: u16 = 16;
/// NodePort of the Service with backends elsewhere, and of that with one here.
const NODE_PORTS: [u16; 2] = [30_080, 30_081];
/// Frames that are sent together, as in [`Program::send`].
const BATCH: usize = 64;
/// The node's ends of cables.
pub const CABLES: [&str; 2] = ["up0", "down0"];
/// How often flows that are to be proven send: a first packet, one more after its answer, and the same again.
const TIMES: usize = 4;
/// The cable to the client, from whom frames come.
pub(super) const CABLE: Cable = Cable { to: [2, 0, 0, 0, 0, 0x11], from: [2, 0, 0, 0, 0, 0x12] };

/// Where backends are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub enum Where {
    /// On another node: what is translated is masqueraded.
    Elsewhere = 0,
    /// In a pod of the node.
    Here = 1,
}

/// Whom the client's packets are for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum To {
    /// The backends: the node forwards.
    Backends,
    /// The NodePort.
    NodePort,
}

/// Which packets: of one family, to backends somewhere.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// Where they end.
    pub place: Where,
    /// Whom they are sent to.
    pub to: To,
    /// IPv6.
    pub v6: bool,
    /// Flows that take turns.
    pub flows: u32,
    /// Number of the first one.
    pub first: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Wire {
    /// Its name in tables.
    pub name: &'static str,
    cpu: usize,
    client: Netns,
    server: Netns,
    pod: Pod,
    sinks: Option<Sinks>,
    taking: Vec<OwnedFd>,
    topology: Topology,
}

/// What counts packets at the ends.
#[derive(Debug)]
struct Sinks {
    /// Backends elsewhere, here.
    backends: [Sink; 2],
    /// The client: answers.
    client: Sink,
    _links: Vec<OwnedFd>,
}

impl Wire {
    /// Builds the namespaces. Packets are sent, and so handled, on a CPU.
    ///
    /// # Errors
    /// Those of ip(8).
    pub fn new(name: &'static str, cpu: usize) -> Result<Self> {
        let topology = Topology::single()?;
        let node = topology.node(1);
        let pod = node.add_pod("pod", Ipv4Addr::new(10, 1, 2, 10))?;
        let (client, server) = (Netns::new("client")?, Netns::new("server")?);
        node.netns.join("up0", &client, "eth0")?;
        node.netns.join("down0", &server, "eth0")?;
        node.netns.ip("link set up0 address 02:00:00:00:00:11
             addr add 192.168.60.1/24 dev up0
             addr add 192.168.70.1/24 dev down0
             addr add fd00:192:168:60::1/64 dev up0 nodad
             addr add fd00:192:168:70::1/64 dev down0 nodad
             neigh add 192.168.60.2 lladdr 02:00:00:00:00:12 dev up0
             neigh add fd00:192:168:60::2 lladdr 02:00:00:00:00:12 dev up0
             neigh add 192.168.70.2 lladdr 02:00:00:00:00:22 dev down0
             neigh add fd00:192:168:70::2 lladdr 02:00:00:00:00:22 dev down0
             route add 198.18.0.0/15 via 192.168.60.2
             route add 2001:db8:7::/48 via fd00:192:168:60::2
             route add 10.9.0.0/16 via 192.168.70.2
             route add fd00:10:9::/48 via fd00:192:168:70::2")?;
        client.ip("link set eth0 address 02:00:00:00:00:12
             addr add 192.168.60.2/24 dev eth0
             addr add fd00:192:168:60::2/64 dev eth0 nodad
             route add default via 192.168.60.1
             route add default via fd00:192:168:60::1")?;
        let mut lines = String::from(
            "link set eth0 address 02:00:00:00:00:22
             addr add 192.168.70.2/24 dev eth0
             addr add fd00:192:168:70::2/64 dev eth0 nodad
             route add default via 192.168.70.1
             route add default via fd00:192:168:70::1\n",
        );
        let mut pods = String::new();
        for number in 0..BACKENDS {
            for (v6, len) in [(false, 32), (true, 128)] {
                writeln!(lines, "addr add {}/{len} dev lo", address(Where::Elsewhere, number, v6))?;
                writeln!(pods, "addr add {}/{len} dev eth0 nodad", address(Where::Here, number, v6))?;
            }
        }
        server.ip(&lines)?;
        pod.netns.ip(&pods)?;
        node.netns.ip("route add 10.1.3.0/24 dev pod0\nroute add fd00:10:1:3::/64 dev pod0")?;
        // The node's end must take frames, and so must the ends that others send frames to.
        node.netns.run(|| take_frames("up0"))?;
        Ok(Self { name, cpu, client, server, pod, sinks: None, taking: Vec::new(), topology })
    }

    /// The node.
    pub fn node(&self) -> &Node {
        self.topology.node(1)
    }

    /// The Services that clients are sent to: TCP and UDP at a NodePort, one with backends elsewhere, one with backends here.
    pub fn objects(&self) -> Vec<Value> {
        objects(&self.node().name)
    }

    /// Lets the other ends of cables take what XDP sends: a veth tells the other end of a frame only if that has a program, too.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn take_express(&mut self) -> Result<()> {
        let passes = two_instructions(Kind::Xdp, runs::PASS.cast_signed())?;
        for netns in [&self.client, &self.server] {
            self.taking.push(netns.run(|| passes.attach(if_nametoindex("eth0")?))?);
        }
        Ok(())
    }

    /// From now on, the neighbours may be asked for, as the self-test of XDP does.
    ///
    /// # Errors
    /// Those of ip(8).
    pub fn ask_neighbours(&self) -> Result<()> {
        self.neighbours("stale")
    }

    /// From now on, nobody asks for the neighbours again, as in lanes without XDP.
    ///
    /// # Errors
    /// Those of ip(8).
    pub fn keep_neighbours(&self) -> Result<()> {
        self.neighbours("permanent")
    }

    fn neighbours(&self, state: &str) -> Result<()> {
        let mut lines = String::new();
        for (device, last, net) in [(CABLES[0], 0x12, 60), (CABLES[1], 0x22, 70)] {
            for ip in [format!("192.168.{net}.2"), format!("fd00:192:168:{net}::2")] {
                writeln!(
                    lines,
                    "neigh replace {ip} lladdr 02:00:00:00:00:{last:x} dev {device} nud {state}"
                )?;
            }
        }
        self.node().netns.ip(&lines)
    }

    /// From now on, datagrams end where they are counted.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn count(&mut self) -> Result<()> {
        let backends = [(); 2].map(|()| Sink::new(Some((End::Destination, PORT))));
        let [elsewhere, here] = backends;
        let (backends, client) = ([elsewhere?, here?], Sink::new(None)?);
        let ends: [(&Netns, &Program); 3] = [
            (&self.server, backends[0].program()),
            (&self.pod.netns, backends[1].program()),
            (&self.client, client.program()),
        ];
        let links = ends.map(|(netns, program)| netns.run(|| program.attach(if_nametoindex("eth0")?)));
        let links = links.into_iter().collect::<Result<_>>()?;
        self.sinks = Some(Sinks { backends, client, _links: links });
        Ok(())
    }

    /// Frames of some traffic, in the order in which they are sent.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn source(&self, traffic: &Traffic) -> Result<Source> {
        source(&self.frames(traffic))
    }

    fn frames(&self, traffic: &Traffic) -> Vec<Vec<u8>> {
        let Traffic { place, to, v6, flows, first } = *traffic;
        let node = self.node();
        (first..first + flows)
            .map(|number| {
                #[expect(clippy::cast_possible_truncation, reason = "a remainder")]
                let backend = (number % u32::from(BACKENDS)) as u16;
                let to = match (to, place) {
                    (To::NodePort, place) => node_port(node, place, v6),
                    (To::Backends, place) => (address(place, backend, v6), PORT).into(),
                };
                frame(CABLE, runs::client(number, v6), to, Says::Udp)
            })
            .collect()
    }

    /// Sends each flow's first packets and answers them, until both directions are proven.
    ///
    /// # Errors
    /// Something is lost on the way.
    pub fn establish(&self, traffic: &Traffic) -> Result<()> {
        let sinks = self.sinks.as_ref().context("nobody counts")?;
        let backend = &sinks.backends[traffic.place as usize];
        // Those of one batch, again and again, before the next ones.
        let frames = self.frames(traffic);
        let again = |chunk: &[Vec<u8>]| [chunk; TIMES].concat();
        let repeated: Vec<Vec<u8>> = frames.chunks(BATCH).flat_map(again).collect();
        let source = source(&repeated)?;
        let count = u32::try_from(repeated.len())?;
        backend.answer(true)?;
        let before = (backend.seen()?, sinks.client.seen()?);
        self.on_the_cpu(|ifindex| source.send(ifindex, 0, count))?;
        settle(backend, before.0 + u64::from(count))?;
        settle(&sinks.client, before.1 + u64::from(count))?;
        backend.answer(false)?;
        let seen = (backend.seen()? - before.0, sinks.client.seen()? - before.1);
        let least = u64::from(count) * 999 / 1000;
        ensure!(
            seen.0 >= least && seen.1 >= least,
            "{}: of {count} packets {} arrived, {} answers came back ({traffic:?})",
            self.name,
            seen.0,
            seen.1
        );
        Ok(())
    }

    /// Nanoseconds for each packet that arrives when `count` are sent, beginning with number `from` of the source; and the part that is lost.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn time(&self, traffic: &Traffic, source: &Source, from: u64, count: u32) -> Result<[f64; 2]> {
        let sinks = self.sinks.as_ref().context("nobody counts")?;
        let backend = &sinks.backends[traffic.place as usize];
        let before = backend.seen()?;
        let Sent { begin, alone, took } =
            self.on_the_cpu(|ifindex| source.send_timed(ifindex, from, count))?;
        let at_once = backend.seen()? - before;
        // The one that was sent alone, too.
        let all = u64::from(count) + 1;
        let last = settle(backend, before + all)?;
        let seen = backend.seen()? - before;
        ensure!(seen > 0, "{}: nothing arrives ({traffic:?})", self.name);
        // Some softirq work may be left to the kernel's own thread when sending is over.
        let until = last.duration_since(begin).saturating_sub(alone);
        let took = if seen > at_once { until.max(took) } else { took };
        #[expect(clippy::cast_precision_loss, reason = "counts")]
        let (arrived, lost) = (seen as f64, 1.0 - seen as f64 / all as f64);
        Ok([took.as_secs_f64() * 1e9 / arrived, lost])
    }

    /// Does something in the client's namespace, on the CPU that everything is measured on, with the index of the client's device.
    fn on_the_cpu<R: Send>(&self, work: impl FnOnce(u32) -> Result<R> + Send) -> Result<R> {
        self.client.run(|| {
            worker::pin(self.cpu)?;
            go_first()?;
            work(if_nametoindex("eth0")?)
        })
    }
}

/// Frames that are sent out of the device they seem to come from.
fn source(frames: &[Vec<u8>]) -> Result<Source> {
    let source = Source::new(Kind::Xdp, frames)?;
    source.lead_to(two_instructions(Kind::Xdp, runs::TX.cast_signed())?.as_fd())?;
    Ok(source)
}

/// Waits until a sink has seen that many packets, or none for two milliseconds; then nothing more comes. Says when the last one came.
fn settle(sink: &Sink, wanted: u64) -> Result<Instant> {
    let mut last = (sink.seen()?, Instant::now());
    while last.0 < wanted && last.1.elapsed() < Duration::from_millis(2) {
        let seen = sink.seen()?;
        if seen != last.0 {
            last = (seen, Instant::now());
        }
        thread::yield_now();
    }
    Ok(last.1)
}

/// The NodePort of the Service with backends somewhere.
pub(super) fn node_port(node: &Node, place: Where, v6: bool) -> SocketAddr {
    let ip: IpAddr = if v6 { node.ipv6.into() } else { node.ipv4.into() };
    SocketAddr::new(ip, NODE_PORTS[place as usize])
}

/// Backend `number` on another node, or in the pod.
fn address(place: Where, number: u16, v6: bool) -> IpAddr {
    let [_, low] = number.to_be_bytes();
    match (place, v6) {
        (Where::Elsewhere, false) => Ipv4Addr::new(10, 9, 0, low + 1).into(),
        (Where::Elsewhere, true) => Ipv6Addr::new(0xfd00, 0x10, 9, 0, 0, 0, 0, number + 1).into(),
        (Where::Here, false) => Ipv4Addr::new(10, 1, 3, low + 1).into(),
        (Where::Here, true) => Ipv6Addr::new(0xfd00, 0x10, 1, 3, 0, 0, 0, number + 1).into(),
    }
}

/// A backend elsewhere of each family.
pub fn backends() -> [SocketAddr; 2] {
    [false, true].map(|v6| (address(Where::Elsewhere, 0, v6), PORT).into())
}

/// See [`Wire::objects`].
fn objects(node: &str) -> Vec<Value> {
    let mut objects = Vec::new();
    for (place, name) in [(Where::Elsewhere, "elsewhere"), (Where::Here, "here")] {
        let ips = cluster_ip(place);
        let port = |protocol: &str| {
            json!({
                "name": protocol.to_lowercase(), "protocol": protocol, "port": SERVICE_PORT, "targetPort": PORT,
                "nodePort": NODE_PORTS[place as usize],
            })
        };
        objects.push(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "type": "NodePort", "clusterIP": ips[0], "clusterIPs": ips, "ipFamilyPolicy": "RequireDualStack",
                "ipFamilies": ["IPv4", "IPv6"], "ports": [port("TCP"), port("UDP")],
            },
        }));
        for v6 in [false, true] {
            let addrs: Vec<IpAddr> = (0..BACKENDS).map(|number| address(place, number, v6)).collect();
            let node = if place == Where::Here { node } else { "another" };
            let endpoints: Vec<Value> = addrs
                .iter()
                .map(|addr| json!({"addresses": [addr], "nodeName": node, "conditions": {"ready": true}}))
                .collect();
            let ports = ["TCP", "UDP"]
                .map(|protocol| json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": PORT}));
            objects.push(json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{name}-{}", if v6 { 6 } else { 4 }), "namespace": "default",
                    "labels": {"kubernetes.io/service-name": name},
                },
                "addressType": if v6 { "IPv6" } else { "IPv4" }, "endpoints": endpoints, "ports": ports,
            }));
        }
    }
    objects
}

/// Cluster addresses of the Service with backends somewhere, behind all others.
pub fn cluster_ip(place: Where) -> [IpAddr; 2] {
    cluster_ips(65_000 + place as u32)
}
