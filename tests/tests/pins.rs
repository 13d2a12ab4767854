//! Pins that are missing, and pins that cannot be made, while traffic flows.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use aya::maps::MapInfo;
use lb_agent::maps::pin::DATA;
use lb_common::abi::maps;
use lb_tests::agent::{pinned, service, slice};
use lb_tests::probe::{Handle, Many, Serve, Tcp};
use lb_tests::{Agent, Home, Node, Pod, Probe, Topology, binary, needs_root, wait_for};
use serde_json::Value;

/// The smallest maps have room for fewer.
const MANY: u32 = 5000;

/// Longer than anything takes.
const LIMIT: Duration = Duration::from_mins(1);

/// Two servers, an agent's home and a client that connects all the time.
struct Set {
    net: Topology,
    home: Home,
    _client: Pod,
    probe: Probe,
    busy: Probe,
    _servers: [(Pod, Probe); 2],
}

fn server(n: u8) -> Ipv4Addr {
    [10, 1, 1, 20 + n].into()
}

/// Address of Service `n`.
fn cluster_ip(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + n)
}

/// Service `n` with the server `backend`.
fn objects(n: u32, backend: u8) -> Vec<Value> {
    let name = format!("service-{n}");
    let port = ("web", "TCP", 80);
    vec![
        service(&name, &[&cluster_ip(n).to_string()], &[port]),
        slice(&name, &name, ("web", "TCP", 8080), &[server(backend).into()]),
    ]
}

impl Set {
    fn new(label: &str) -> Self {
        let net = Topology::single().unwrap();
        let node = net.node(1);
        let servers = [1, 2].map(|n| {
            let name = format!("server-{n}");
            let pod = node.add_pod(&name, server(n)).unwrap();
            let probe = pod.probe(&name).unwrap();
            probe.serve(&Serve::tcp(&name, SocketAddr::from((server(n), 8080)))).unwrap();
            (pod, probe)
        });
        let client = node.add_pod("client", [10, 1, 1, 10].into()).unwrap();
        let [probe, busy] = ["client", "busy"].map(|name| client.probe(name).unwrap());
        let home = Home::new(label).unwrap();
        home.apply("first", &objects(1, 1)).unwrap();
        Self { home, _client: client, probe, busy, _servers: servers, net }
    }

    fn node(&self) -> &Node {
        self.net.node(1)
    }

    fn start(&self) -> Agent {
        Agent::start(self.node(), &self.home).unwrap()
    }

    /// Connects to Service 1 until the load is finished.
    fn load(&self) -> Handle {
        let to = Tcp::to((cluster_ip(1), 80).into()).reset().timeout(LIMIT);
        self.busy.begin(&Many::until_finished(to).pause(Duration::from_micros(200))).unwrap()
    }

    /// Waits until Service `n` leads to a server. An untranslated socket waits for an answer that does not come.
    fn reaches(&self, n: u32, server: u8) {
        let to = SocketAddr::from((cluster_ip(n), 80));
        wait_for(&format!("Service {n} at server {server}"), LIMIT, || {
            let reached = self.probe.tcp(&Tcp::to(to).timeout(Duration::from_millis(500)));
            match reached {
                Ok(reached) if reached.server() == format!("server-{server}") => Ok(()),
                Ok(reached) => Err(reached.server().to_owned()),
                Err(error) => Err(error.to_string()),
            }
        })
        .unwrap();
    }

    /// More Services than have room. Only the last one has endpoints: what a change of Service 1 needs is left.
    fn apply_many(&self) {
        let mut many: Vec<Value> = (2..MANY).map(|n| objects(n, 1).swap_remove(0)).collect();
        many.extend(objects(MANY, 1));
        self.home.apply("many", &many).unwrap();
    }

    /// Puts a folder where a map is pinned before it takes its place.
    fn block(&self, map: &str) -> Block {
        let path = pinned(&self.home, &format!("{map}_next"));
        fs::create_dir(&path).unwrap();
        Block(path)
    }

    fn left_out(&self) -> usize {
        self.home.status().unwrap()["agent"]["left_out"].as_array().unwrap().len()
    }
}

/// Gone when it is dropped: a bpffs with folders can be unmounted, but the next agent should find none.
struct Block(std::path::PathBuf);

impl Drop for Block {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).unwrap();
    }
}

/// SA-2, 1.4-map-size: nobody is served less because more was asked for than can be had.
#[test]
fn an_agent_that_cannot_have_more_room_for_affinity_goes_on_with_what_is_there() {
    needs_root!();
    let set = Set::new("affinity-room");
    let agent = set.start();
    let before = ids(&set);
    agent.stop().unwrap();
    let block = set.block(maps::AFFINITY);
    let agent = Agent::start_with(set.net.node(1), &set.home, ["--map-max-affinity", "30000"]).unwrap();
    assert!(set.home.log().contains("cannot grow the maps"), "{}", set.home.log());
    assert_eq!(ids(&set), before);
    set.reaches(1, 1);
    set.home.apply("first", &objects(1, 2)).unwrap();
    set.reaches(1, 2);

    // Other maps grow all the same.
    set.apply_many();
    set.reaches(MANY, 1);
    agent.stop().unwrap();
    drop(block);
    drop(set.start());
}

/// 1.4-map-size, 2.25-map-full.
#[test]
fn an_agent_that_cannot_enlarge_its_maps_serves_what_fits_and_names_the_rest() {
    needs_root!();
    let set = Set::new("confined");
    let agent = set.start();
    let (load, before) = (set.load(), ids(&set));
    // Not the first of those that grow: those before it must not be in force either.
    let block = set.block(maps::SERVICES);
    set.apply_many();
    wait_for("an error", LIMIT, || {
        if set.home.log().contains("cannot grow the maps") { Ok(()) } else { Err("none".to_owned()) }
    })
    .unwrap();
    assert_ne!(set.left_out(), 0);
    set.home.apply("first", &objects(1, 2)).unwrap();
    set.reaches(1, 2);
    assert_eq!(ids(&set), before, "tools and the next agent would find maps that this one does not write");
    let left = pinned(&set.home, &format!("{}_next", maps::FRONTENDS));
    assert!(!left.exists(), "a map that nobody uses is kept in memory");

    // The same at a start.
    agent.crash().unwrap();
    let agent = set.start();
    assert_ne!(set.left_out(), 0);
    set.home.apply("first", &objects(1, 1)).unwrap();
    set.reaches(1, 1);
    drop(block);
    agent.stop().unwrap();
    let _agent = set.start();
    set.reaches(MANY, 1);
    assert_eq!(set.left_out(), 0);
    let tally = set.busy.finish(load).unwrap();
    assert_eq!(tally.failures(), 0, "{tally:?}");
}

/// Which maps are pinned.
fn ids(set: &Set) -> [u32; DATA.len()] {
    DATA.map(|map| MapInfo::from_pin(pinned(&set.home, map)).unwrap().id())
}

/// The maps mean something only together, and programs that are attached hold the one whose pin is gone.
#[test]
fn a_pin_that_is_missing_at_a_start_disturbs_no_connection() {
    needs_root!();
    let set = Set::new("missing");
    let mut agent = set.start();
    let load = set.load();
    let exempt = set.node().add_pod("exempt", [10, 1, 1, 11].into()).unwrap();
    let mut command = set.node().command(binary("lb-agent").unwrap());
    command.args(["netns", "exempt"]).arg(exempt.netns.path()).env("LB_PIN_DIR", set.home.pin_dir());
    assert!(command.status().unwrap().success());
    let exempt = exempt.probe("exempt").unwrap();
    for (round, map) in DATA.into_iter().enumerate() {
        let before = set.busy.tally(load).unwrap().successes();
        agent.stop().unwrap();
        fs::remove_file(pinned(&set.home, map)).unwrap();
        agent = set.start();
        let to = if round % 2 == 0 { 2 } else { 1 };
        set.home.apply("first", &objects(1, to)).unwrap();
        set.reaches(1, to);
        for map in DATA {
            assert!(pinned(&set.home, map).exists(), "{map}");
        }
        let to = Tcp::to((cluster_ip(1), 80).into()).timeout(Duration::from_millis(300));
        exempt.tcp(&to).expect_err("an exempt pod is served");
        let tally = set.busy.tally(load).unwrap();
        assert!(tally.successes() > before && tally.failures() == 0, "without {map}: {tally:?}");
    }
    // A running agent makes them anew when it grows.
    fs::remove_file(pinned(&set.home, maps::SERVICES)).unwrap();
    set.apply_many();
    set.reaches(MANY, 1);
    assert!(pinned(&set.home, maps::SERVICES).exists());
    let tally = set.busy.finish(load).unwrap();
    assert_eq!(tally.failures(), 0, "{tally:?}");
    agent.stop().unwrap();
}
