//! More Services, endpoints and addresses than the maps were made for.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use lb_agent::compile::{Frontend, FrontendKind, Policies, PortEntries, PortKey, Target};
use lb_agent::datapath::load::{Loaded, Switches, load};
use lb_agent::maps::memory::Capacities;
use lb_agent::maps::pin::{Content, DATA, PinDir};
use lb_agent::maps::{Maps, read};
use lb_agent::model::{Algorithm, Family, Protocol, ServiceName};
use lb_agent::reconcile::Desired;
use lb_common::abi::{Backend, Service, maps};
use lb_tests::agent::{service, slice};
use lb_tests::invariants::{assert_no_dangling, meaning};
use lb_tests::probe::{Many, Serve, Tcp, Udp};
use lb_tests::scenario::Driver;
use lb_tests::{Agent, Bpffs, Home, Node, Topology, binary, needs_root, wait_for};
use serde_json::{Value, json};

/// The smallest maps have room for fewer.
const MANY: u32 = 5000;

/// Longer than anything takes.
const LIMIT: Duration = Duration::from_mins(1);

/// Address of Service `n`.
fn cluster_ip(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + n)
}

/// Service `n`, for TCP and UDP, with the pod at `backend`.
fn objects(n: u32, backend: IpAddr) -> Vec<Value> {
    let name = format!("service-{n}");
    let mut objects = vec![service(
        &name,
        &[&cluster_ip(n).to_string()],
        &[("stream", "TCP", 80), ("datagram", "UDP", 53)],
    )];
    for port in [("stream", "TCP", 8080), ("datagram", "UDP", 5353)] {
        objects.push(slice(&format!("{name}-{}", port.0), &name, port, &[backend]));
    }
    objects
}

/// 1.4-map-size.
#[test]
fn maps_grow_while_connections_are_made_and_no_socket_notices() {
    needs_root!();
    let net = Topology::single().unwrap();
    let node = net.node(1);
    let [database, web] = [("database", 20), ("web", 10)]
        .map(|(name, last)| node.add_pod(name, [10, 1, 1, last].into()).unwrap());
    let servers = database.probe("servers").unwrap();
    let backend: IpAddr = [10, 1, 1, 20].into();
    servers.serve(&Serve::tcp("backend", (backend, 8080).into())).unwrap();
    servers.serve(&Serve::udp("backend", (backend, 5353).into())).unwrap();
    let home = Home::new("growth").unwrap();
    let mut first = objects(1, backend);
    first[0]["spec"]["type"] = json!("NodePort");
    first[0]["spec"]["ports"][0]["nodePort"] = json!(30080);
    home.apply("first", &first).unwrap();
    let agent = Agent::start(node, &home).unwrap();

    let client = web.probe("client").unwrap();
    let busy = web.probe("busy").unwrap();
    let at = |n, port| SocketAddr::new(cluster_ip(n).into(), port);
    let kept = client.open_udp(&Udp::to(at(1, 53))).unwrap();
    let load = Tcp::to(at(1, 80)).reset().timeout(LIMIT);
    let load = busy.begin(&Many::during(Many::MAX_TIME, load).pause(Duration::from_millis(1))).unwrap();
    let before = busy.tally(load).unwrap().successes();

    home.apply("many", &(2..=MANY).flat_map(|n| objects(n, backend)).collect::<Vec<_>>()).unwrap();
    // An untranslated socket waits for an answer that does not come.
    let reaches = |to| {
        let reached = client.tcp(&Tcp::to(to).timeout(Duration::from_millis(500)));
        reached.map(|reached| assert_eq!(reached.server(), "backend")).map_err(|error| error.to_string())
    };
    // Not until the last Service answers: Services are not programmed in the order of their names.
    wait_for("every port to be programmed", LIMIT, || {
        let status = home.status().map_err(|error| error.to_string())?;
        let ports = status["agent"]["ports"].as_u64();
        if ports == Some(2 * u64::from(MANY)) { Ok(()) } else { Err(format!("{ports:?} of them are")) }
    })
    .unwrap();
    assert!(home.log().contains("growing the maps"), "{}", home.log());
    for n in (2..MANY).step_by(97) {
        assert_eq!(
            client.tcp(&Tcp::to(at(n, 80)).timeout(LIMIT)).unwrap().server(),
            "backend",
            "Service {n}"
        );
    }
    // A NodePort on as many addresses.
    let node_address = |n: u32| Ipv4Addr::from(0xac10_0000 + n);
    let lines: Vec<String> = (1..=MANY).map(|n| format!("addr add {}/32 dev lo", node_address(n))).collect();
    node.netns.ip(&lines.join("\n")).unwrap();
    wait_for("the NodePort on the last address", LIMIT, || {
        reaches(SocketAddr::new(node_address(MANY).into(), 30080))
    })
    .unwrap();

    let tally = busy.finish(load).unwrap();
    assert_eq!(tally.failures(), 0, "{tally:?}");
    assert!(tally.successes() > before, "{tally:?}");
    let again = client.exchange(kept.handle, "after all").unwrap();
    assert_eq!((again.answer.server.as_str(), again.from), ("backend", Some(at(1, 53))));

    // The next agent takes over the large maps.
    agent.crash().unwrap();
    let (grown, next) = (growths(&home), Agent::start(node, &home).unwrap());
    assert_eq!(growths(&home), grown, "{}", home.log());
    client.tcp(&Tcp::to(at(MANY, 80)).timeout(LIMIT)).unwrap();
    next.stop().unwrap();
}

/// The address of endpoint `n`, which is the node's own.
fn endpoint(n: u32) -> IpAddr {
    Ipv4Addr::from(0x0a09_0000 + n).into()
}

/// Service 1 with these endpoints.
fn large(endpoints: Range<u32>) -> Vec<Value> {
    let endpoints: Vec<IpAddr> = endpoints.map(endpoint).collect();
    let mut objects = vec![service("service-1", &[&cluster_ip(1).to_string()], &[("stream", "TCP", 80)])];
    let slices = endpoints.chunks(1000).enumerate();
    objects.extend(slices.map(|(number, some)| {
        slice(&format!("service-1-{number}"), "service-1", ("stream", "TCP", 8080), some)
    }));
    objects
}

/// The Service that makes the maps grow is the one that clients connect to: until programs read the bigger maps, its run must
/// not name slots that only those have.
#[test]
fn a_service_that_outgrows_the_maps_is_served_all_the_while() {
    needs_root!();
    let net = Topology::single().unwrap();
    let node = net.node(1);
    node.netns.ip("route add local 10.9.0.0/16 dev lo").unwrap();
    let servers = node.probe("servers").unwrap();
    servers.serve(&Serve::tcp("backend", ([0; 4], 8080).into())).unwrap();
    let home = Home::new("outgrown").unwrap();
    home.apply("large", &large(1..11)).unwrap();
    let _agent = Agent::start(node, &home).unwrap();

    let web = node.add_pod("web", [10, 1, 1, 10].into()).unwrap();
    let busy = web.probe("busy").unwrap();
    let to = Tcp::to((cluster_ip(1), 80).into()).reset().timeout(LIMIT);
    let load = busy.begin(&Many::until_finished(to)).unwrap();
    // Larger, then all of it replaced at once, twice: both generations have an id for a moment.
    for (first, last) in [(1, 2501), (3001, 6001), (7001, 10_001)] {
        let before = busy.tally(load).unwrap().successes();
        home.apply("large", &large(first..last)).unwrap();
        let wanted: BTreeSet<String> = (first..last).map(|n| endpoint(n).to_string()).collect();
        wait_for("the endpoints", LIMIT, || {
            let found = backends(node, &home);
            if found == wanted { Ok(()) } else { Err(format!("{} backends", found.len())) }
        })
        .unwrap();
        let tally = busy.tally(load).unwrap();
        assert!(tally.successes() > before, "{tally:?}");
    }
    let tally = busy.finish(load).unwrap();
    assert_eq!(tally.failures(), 0, "{tally:?}");
    assert!(growths(&home) >= 1, "{}", home.log());
}

/// What `lb-agent backend list` shows.
fn backends(node: &Node, home: &Home) -> BTreeSet<String> {
    let mut command = node.command(binary("lb-agent").unwrap());
    command
        .args(["backend", "list", "-o", "json"])
        .env("LB_PIN_DIR", home.pin_dir())
        .env("LB_SOCKET", home.socket());
    let output = command.output().unwrap();
    let list: Vec<Value> =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    list.iter().map(|backend| backend["address"].as_str().unwrap().to_owned()).collect()
}

/// How often the log says that maps have grown.
fn growths(home: &Home) -> usize {
    home.log().matches("growing the maps").count()
}

const SMALL: Capacities = Capacities {
    frontends: 16,
    addresses: 4,
    services: 16,
    slots: 64,
    backends: 64,
    affinity: 1,
    ranges: 16,
    flows4: 1,
    flows6: 1,
};
const LARGE: Capacities = Capacities {
    frontends: 64,
    addresses: 16,
    services: 32,
    slots: 256,
    backends: 128,
    affinity: 1,
    ranges: 16,
    flows4: 1,
    flows6: 1,
};

/// The maps that [`LARGE`] replaces.
const GROWN: [&str; 5] = [maps::FRONTENDS, maps::ADDRESSES, maps::SERVICES, maps::SLOTS, maps::BACKENDS];

fn open(pins: &PinDir, capacities: Capacities) -> Maps {
    let switches =
        Switches { host_netns: 0, has_set_retval: false, has_mptcp: false, has_coarse_clock: false };
    let Loaded { maps, staged, .. } = load(pins, switches, capacities, || {}).unwrap();
    pins.commit(&staged).unwrap();
    maps
}

/// Service `n` with `endpoints` endpoints.
fn desired(n: u8, endpoints: u8) -> Desired {
    let name = ServiceName::new("ns", &format!("s{n}"));
    let port = PortEntries {
        key: PortKey { service: name.clone(), port: "".into(), protocol: Protocol::Tcp, family: Family::V4 },
        frontends: vec![Frontend { at: ([10, 0, 0, n], 80).into(), kind: FrontendKind::ClusterIp }],
        cluster: (0..endpoints)
            .map(|at| Target { at: ([10, 1, n, at], 8080).into(), terminating: false, here: false })
            .collect(),
        local: Vec::new(),
        draining: Vec::new(),
        policies: Policies { has_any: endpoints != 0, ..Policies::default() },
        ranges: Vec::new(),
        affinity_s: 0,
        algorithm: Algorithm::Random,
    };
    Desired { name, created_s: i64::from(n), ports: vec![port] }
}

/// 2.25-upgrade: old and new pins have equal content until the first write to the new maps, so any mixture of them is whole.
#[test]
fn a_stop_after_any_replaced_pin_leaves_what_was_there() {
    needs_root!();
    for replaced in 0..=GROWN.len() {
        let bpffs = Bpffs::new("growth").unwrap();
        let folder = bpffs.path().join("lb");
        let pins = PinDir::open(&folder).unwrap();
        let mut agent = Driver::start(open(&pins, SMALL)).unwrap();
        let services = [desired(1, 3), desired(2, 0), desired(3, 5)];
        agent.follow(&services).unwrap();
        let (meant, had) = (meaning(agent.reconciler.maps()).unwrap(), ids(&agent));
        drop(agent);

        for name in GROWN {
            fs::hard_link(pins.map(name), pins.map(&format!("{name}_old"))).unwrap();
        }
        drop(open(&pins, LARGE));
        for name in &GROWN[replaced..] {
            fs::rename(pins.map(&format!("{name}_old")), pins.map(name)).unwrap();
        }
        drop(pins);

        let pins = PinDir::open(&folder).unwrap();
        let mut next = Driver::start(open(&pins, LARGE)).unwrap();
        assert_no_dangling(next.reconciler.maps());
        assert_eq!(meaning(next.reconciler.maps()).unwrap(), meant, "{replaced} replaced");
        assert_eq!(next.follow(&services).unwrap(), 0, "{replaced} replaced: nothing is left to write");
        assert_eq!(ids(&next), had, "{replaced} replaced: every Service has its id");
        next.put_all((10..30).map(|n| desired(n, 2)).collect()).unwrap();
        assert!(next.left_out.is_empty(), "{replaced} replaced: {:?} have no room", next.left_out);
    }
}

/// Sockets may remember ids of maps that were larger and are lost.
#[test]
fn ids_that_come_with_larger_maps_begin_at_a_random_generation() {
    needs_root!();
    let bpffs = Bpffs::new("tail").unwrap();
    let pins = PinDir::open(&bpffs.path().join("lb")).unwrap();
    drop(open(&pins, SMALL));
    let maps = open(&pins, LARGE);
    let services = (SMALL.services..LARGE.services)
        .map(|id| read::<{ Service::WORDS }, Service>(&*maps.services, id).generation);
    let backends =
        (SMALL.backends..LARGE.backends).map(|id| read::<1, Backend>(&*maps.backends, id).generation);
    for generations in [services.collect::<BTreeSet<u32>>(), backends.collect()] {
        // One number in four thousand million is 0.
        assert!(generations.len() == 1 && !generations.contains(&0), "{generations:?}");
    }
}

/// Which id each port has.
fn ids(agent: &Driver) -> Vec<(u32, PortKey)> {
    agent.reconciler.programmed().map(|(id, port)| (id, port.clone())).collect()
}

/// New maps that are not copies take their places one after the other: every mixture of old and new pins is found out, and
/// all of them are made anew.
#[test]
fn a_stop_while_new_maps_take_their_places_is_made_good() {
    needs_root!();
    let switches =
        Switches { host_netns: 0, has_set_retval: false, has_mptcp: false, has_coarse_clock: false };
    let services = [desired(1, 3), desired(2, 0), desired(3, 5)];
    for (name, in_the_way_of) in DATA.into_iter().flat_map(|name| [(name, "removal"), (name, "renaming")]) {
        let bpffs = Bpffs::new("anew").unwrap();
        let folder = bpffs.path().join("lb");
        let pins = PinDir::open(&folder).unwrap();
        let mut agent = Driver::start(open(&pins, SMALL)).unwrap();
        agent.follow(&services).unwrap();
        let meant = meaning(agent.reconciler.maps()).unwrap();

        // One that is missing for a moment is enough.
        let [meta, pin, aside] = [maps::META, name, "aside"].map(|name| pins.map(name));
        fs::rename(&meta, &aside).unwrap();
        let Loaded { maps: new, staged, .. } = load(&pins, switches, SMALL, || {}).unwrap();
        assert_eq!(staged.content, Content::Other);
        fs::rename(&aside, &meta).unwrap();
        Driver::start(new).unwrap().follow(&services).unwrap();
        if in_the_way_of == "removal" {
            fs::rename(&pin, &aside).unwrap();
            fs::create_dir(&pin).unwrap();
        } else {
            fs::remove_file(pins.map(&format!("{name}_next"))).unwrap();
        }
        let stopped = pins.commit(&staged).unwrap_err().to_string();
        assert!(stopped.contains(name), "{stopped}");
        if in_the_way_of == "removal" {
            fs::remove_dir(&pin).unwrap();
            fs::rename(&aside, &pin).unwrap();
        }

        let Loaded { maps: next, staged, .. } = load(&pins, switches, SMALL, || {}).unwrap();
        let untouched = (name, in_the_way_of) == (DATA[0], "removal");
        let expected = if untouched { Content::Same } else { Content::Other };
        assert_eq!(staged.content, expected, "a stop at the {in_the_way_of} of {name}");
        let mut next = Driver::start(next).unwrap();
        next.follow(&services).unwrap();
        pins.commit(&staged).unwrap();
        drop(next);
        let agent = Driver::start(open(&pins, SMALL)).unwrap();
        assert_no_dangling(agent.reconciler.maps());
        assert_eq!(
            meaning(agent.reconciler.maps()).unwrap(),
            meant,
            "a stop at the {in_the_way_of} of {name}"
        );
    }
}
