//! XDP at an uplink under a real agent: a device gets it when it has passed its test, and nobody notices but the counters.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use aya::programs::{Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use lb_agent::datapath::OBJECT;
use lb_tests::agent::{Agent, Home, at, service, slice};
use lb_tests::offload::finish_checksums;
use lb_tests::probe::{Serve, Tcp, Udp};
use lb_tests::wait::wait_for;
use lb_tests::{Netns, Probe, Topology, needs_root};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);
/// Node 2's server, which is a neighbour of node 1 in each family.
const FAR: [&str; 2] = ["192.168.50.2", "fd00:192:168:50::2"];
const NODE_PORTS: [&str; 2] = ["192.168.50.1:30080", "[fd00:192:168:50::1]:30080"];

/// Clients and servers at node 2, and node 1 between them, which serves packets.
struct Set {
    net: Topology,
    home: Home,
    outside: Probe,
    _far: Probe,
}

impl Set {
    fn new(label: &str) -> Self {
        let net = Topology::pair().unwrap();
        let far = net.node(2).probe("far").unwrap();
        let addrs = FAR.map(|addr| addr.parse::<IpAddr>().unwrap());
        for addr in addrs {
            far.serve(&Serve::tcp("far", (addr, 8080).into())).unwrap();
            far.serve(&Serve::udp("far", (addr, 8080).into())).unwrap();
        }
        let outside = net.node(2).probe("outside").unwrap();
        let set = Self { home: Home::new(label).unwrap(), net, outside, _far: far };
        let ports = [("tcp", "TCP", 80), ("udp", "UDP", 80)];
        let mut web = service("web", &["10.0.1.100", "fd00:10:0:1::100"], &ports);
        web["spec"]["type"] = json!("NodePort");
        for port in web["spec"]["ports"].as_array_mut().unwrap() {
            port["nodePort"] = json!(30_080);
            port["targetPort"] = json!(8080);
        }
        let mut objects = vec![web];
        for addr in addrs {
            for (port, protocol) in [("tcp", "TCP"), ("udp", "UDP")] {
                let family = if addr.is_ipv4() { 4 } else { 6 };
                objects.push(slice(&format!("web-{port}-{family}"), "web", (port, protocol, 8080), &[addr]));
            }
        }
        set.home.apply("services", &objects).unwrap();
        set
    }

    fn start(&self, xdp: &str) -> Agent {
        let options = ["--devices", "auto", "--socket-lb", "none", "--xdp", xdp];
        Agent::start_with(self.net.node(1), &self.home, options).unwrap()
    }

    /// Everything is answered, and by whom.
    fn expect_answers(&self) {
        for to in NODE_PORTS {
            let to: SocketAddr = at(to);
            let seen = if to.is_ipv4() { "192.168.50.1" } else { "fd00:192:168:50::1" };
            for reached in [self.outside.tcp(&Tcp::to(to)).unwrap(), self.outside.udp(&Udp::to(to)).unwrap()]
            {
                let client = reached.answer.as_ref().unwrap().client.ip().to_canonical();
                assert_eq!(client.to_string(), seen, "{to}");
            }
        }
    }

    /// What `lb-agent status` says of XDP at eth0.
    fn said(&self) -> Value {
        let status = self.home.status().unwrap();
        let devices = status["agent"]["devices"].as_array().unwrap().clone();
        devices.iter().find(|device| device["name"] == "eth0").map_or(Value::Null, |row| row["xdp"].clone())
    }

    fn wait_until_said(&self, wanted: &str) {
        wait_for("the self-test", SOON, || {
            let said = self.said();
            let text = said.as_str().unwrap_or_default();
            if text.contains(wanted) { Ok(()) } else { Err(format!("{said}\n{}", self.home.log())) }
        })
        .unwrap();
    }

    /// Packets that were sent on at XDP so far.
    fn expressed(&self) -> u64 {
        let status = self.home.status().unwrap();
        let rows = status["reasons"].as_array().unwrap().clone();
        rows.iter().find(|row| row["name"] == "express").unwrap()["count"].as_u64().unwrap()
    }
}

/// A device of a pair takes frames that are sent by XDP only if it has a program, too.
fn take_frames(netns: &Netns) -> Ebpf {
    let mut ebpf = EbpfLoader::new().load(OBJECT).unwrap();
    let program: &mut Xdp = ebpf.program_mut("lb_xdp_test").unwrap().try_into().unwrap();
    program.load().unwrap();
    netns.run(|| program.attach("eth0", XdpMode::Driver)).unwrap();
    ebpf
}

#[test]
fn packets_are_sent_on_at_xdp_and_nobody_notices() {
    needs_root!();
    let set = Set::new("xdp");
    let other = set.net.node(2);
    let _taking = take_frames(&other.netns);
    let agent = set.start("native");
    set.expect_answers();
    set.wait_until_said("native");
    set.expect_answers();
    assert_eq!(set.expressed(), 0, "checksums that are none yet are left to tc");
    finish_checksums(&other.netns, "eth0").unwrap();
    set.expect_answers();
    let sent = set.expressed();
    assert!(sent >= 20, "{sent} packets of four conversations");
    agent.stop().unwrap();
    set.expect_answers();
    let agent = set.start("native");
    assert_eq!(set.said(), "native", "a device that was tested is not tested again");
    let before = set.expressed();
    set.expect_answers();
    assert!(set.expressed() > before);
    agent.stop().unwrap();
    let agent = set.start("off");
    let before = set.expressed();
    set.expect_answers();
    assert_eq!((set.expressed(), set.said()), (before, Value::Null), "it was taken off");
    agent.stop().unwrap();
}

#[test]
fn a_device_that_loses_what_xdp_sends_goes_without() {
    needs_root!();
    let set = Set::new("xdp-unfit");
    finish_checksums(&set.net.node(2).netns, "eth0").unwrap();
    let agent = set.start("native");
    set.expect_answers();
    set.wait_until_said("are not answered");
    set.expect_answers();
    assert_eq!(set.expressed(), 0);
    agent.stop().unwrap();
}

/// Design 4: what somebody takes off comes back, once the device has passed the test again.
#[test]
fn xdp_that_somebody_takes_off_comes_back() {
    needs_root!();
    let set = Set::new("xdp-repair");
    let agent = set.start("generic");
    set.expect_answers();
    set.wait_until_said("generic");
    let links = set.home.pin_dir().join("v1/links");
    let is_xdp = |name: &str| name.starts_with("lb_xdp_");
    let names = || -> Vec<String> {
        let entries = std::fs::read_dir(&links).unwrap().flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| is_xdp(name))
            .collect()
    };
    let [pin] = &names()[..] else { panic!("{:?}", names()) };
    std::fs::remove_file(links.join(pin)).unwrap();
    wait_for("XDP again", SOON, || {
        let log = set.home.log();
        let is_told = log.contains("somebody has taken XDP off this device");
        if is_told && set.said() == "generic" && !names().is_empty() { Ok(()) } else { Err(log) }
    })
    .unwrap();
    set.expect_answers();
    agent.stop().unwrap();
}
