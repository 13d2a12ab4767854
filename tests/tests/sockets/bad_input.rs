//! What cannot work is one error that names the thing and the remedy, and what worked goes on.

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;

use aya::maps::{Array, Map, MapData};
use lb_agent::datapath::{PROGRAMS, Program};
use lb_agent::maps::sys;
use lb_common::abi::meta;
use lb_tests::agent::{service, slice};
use lb_tests::http::get;
use lb_tests::probe::{Many, Serve, Tcp};
use lb_tests::{Agent, binary, needs_root, wait_for};
use serde_json::{Value, json};

use crate::legacy;
use crate::park::{Park, SOON, backend, cluster_ips};

/// Runs an agent that has to fail, and returns what it said at its end: one line.
fn complaint(park: &Park, args: &[&str]) -> String {
    let (succeeded, log) = Agent::run_to_end(park.net.node(1), &park.home, args).unwrap();
    assert!(!succeeded, "the agent was expected to fail:\n{log}");
    let lines: Vec<&str> = log.lines().filter(|line| line.starts_with("lb-agent: ")).collect();
    assert_eq!(lines.len(), 1, "one error:\n{log}");
    assert!(log.trim_end().ends_with(lines[0]), "the error comes last:\n{log}");
    assert!(!log.contains("panicked"), "{log}");
    lines[0].to_owned()
}

/// Whether Service 1 is served.
fn works(park: &Park) {
    let to = SocketAddr::new(cluster_ips(1)[0], 80);
    let reached = park.pod.tcp(&Tcp::to(to)).unwrap();
    assert_eq!((reached.server(), reached.peer), ("backend-1", Some(to)));
}

fn park(label: &str) -> Park {
    let park = Park::new(label);
    park.serve(1);
    park.program(1, &[1]);
    park
}

fn has(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is missing: {text}");
    }
}

#[test]
fn a_second_agent_on_the_same_pins_is_sent_away() {
    needs_root!();
    let mut park = park("second");
    park.start(&[]);
    let pin_dir = park.home.pin_dir().display().to_string();
    has(&complaint(&park, &[]), &["another lb-agent is running", &pin_dir, "--pin-dir"]);
    works(&park);
}

#[test]
fn folders_of_the_wrong_kind_are_named_with_the_flag_to_change() {
    needs_root!();
    let mut park = park("folders");
    park.start(&[]);
    let manifests = park.home.manifests().display().to_string();
    let said = complaint(&park, &["--pin-dir", &manifests]);
    has(&said, &[&manifests, "is not on a bpffs", "mount -t bpf", "--pin-dir"]);
    let said = complaint(&park, &["--cgroup", &manifests]);
    has(&said, &[&manifests, "is not a cgroup2 folder", "--cgroup"]);
    works(&park);
}

/// A map under our name that is not ours is neither used nor removed.
#[test]
fn a_foreign_map_under_our_name_is_left_where_it_is() {
    needs_root!();
    let mut park = park("foreign");
    park.start(&[]);
    park.agent.take().unwrap().stop().unwrap();
    let pin = park.home.pin_dir().join("v1/maps/lb_frontends");
    fs::rename(&pin, pin.with_file_name("kept")).unwrap();
    Array::<MapData, u64>::create(1, 0).unwrap().pin(&pin).unwrap();

    let said = complaint(&park, &[]);
    has(
        &said,
        &[
            &pin.display().to_string(),
            "Array with 4-byte keys",
            "expected Hash",
            "lb-agent cleanup",
            "--pin-dir",
        ],
    );
    works(&park);

    fs::remove_file(&pin).unwrap();
    fs::rename(pin.with_file_name("kept"), &pin).unwrap();
    park.start(&[]);
    works(&park);
}

/// 2.25-layout: sizes may be equal where meanings are not.
#[test]
fn maps_of_another_layout_are_not_touched() {
    needs_root!();
    let mut park = park("layout");
    park.start(&[]);
    park.agent.take().unwrap().stop().unwrap();
    let pin = park.home.pin_dir().join("v1/maps/lb_meta");
    let mut meta: Array<_, u64> = Map::Array(MapData::from_pin(&pin).unwrap()).try_into().unwrap();
    meta.set(meta::LAYOUT_AT, 999, 0).unwrap();
    let said = complaint(&park, &[]);
    has(&said, &["have layout 999", "use the lb-agent that made them", "lb-agent cleanup"]);
    assert_eq!(meta.get(&meta::LAYOUT_AT, 0).unwrap(), 999);
    works(&park);
    meta.set(meta::LAYOUT_AT, meta::LAYOUT, 0).unwrap();
    park.start(&[]);
    works(&park);
}

/// A program instead of a map, and a map instead of a link.
#[test]
fn pins_that_are_other_things_are_named() {
    needs_root!();
    let mut park = park("things");
    park.start(&[]);
    park.agent.take().unwrap().stop().unwrap();
    let maps = park.home.pin_dir().join("v1/maps");
    let links = park.home.pin_dir().join("v1/links");
    let swapped = |here: &Path, there: &Path| {
        let kept = here.with_file_name("kept");
        fs::rename(here, &kept).unwrap();
        fs::hard_link(there, here).or_else(|_| fs::rename(there, here)).unwrap();
        let said = complaint(&park, &[]);
        has(&said, &[&here.display().to_string()]);
        works(&park);
        if there.exists() { fs::remove_file(here) } else { fs::rename(here, there) }.unwrap();
        fs::rename(&kept, here).unwrap();
    };
    swapped(&maps.join("lb_services"), &links.join("lb_recvmsg6"));
    swapped(&links.join("lb_connect4"), &maps.join("lb_netns"));
    park.start(&[]);
    works(&park);
}

#[test]
fn a_program_that_tolerates_no_other_is_named() {
    needs_root!();
    let mut park = park("legacy");
    legacy::attach(park.net.node(1).cgroup.path());
    let cgroup = park.net.node(1).cgroup.path().display().to_string();
    let said = complaint(&park, &[]);
    has(&said, &[&cgroup, "lb_connect4 (id ", "bpftool cgroup", "--cgroup"]);
    // All hooks or none: six of them could be had before this one.
    let folder = File::open(&cgroup).unwrap();
    let attached = |at: Program| sys::cgroup_programs(folder.as_fd(), at.attach_type).unwrap().len();
    for at in PROGRAMS {
        assert_eq!(attached(at), usize::from(at.name == "lb_connect4"), "{at:?}");
    }
    let links = fs::read_dir(park.home.pin_dir().join("v1/links")).unwrap();
    assert_eq!(links.count(), 0);

    // In a cgroup above, it is in the way as well.
    let below = park.net.node(1).cgroup.child("below").unwrap();
    let said = complaint(&park, &["--cgroup", &below.path().display().to_string()]);
    has(&said, &[&below.path().display().to_string(), "allows no other", "cgroup above"]);
    park.agent = None;
}

/// A Service and a slice whose every second field is wrong, and a younger Service that wants one of its addresses.
fn nonsense() -> Vec<Value> {
    // A name may begin with a digit (KEP-5311).
    let mut odd = service("2-odd", &["10.0.2.100"], &[("", "TCP", 80)]);
    odd["spec"]["externalIPs"] = json!(["2001:db8::1", "not-an-address", "198.51.100.300", "198.51.100.7"]);
    odd["spec"]["ports"].as_array_mut().unwrap().extend([
        json!({"name": "huge", "protocol": "TCP", "port": 70_000}),
        json!({"name": "none", "protocol": "TCP", "port": 0}),
        json!({"name": "odd", "protocol": "QUIC", "port": 443}),
    ]);
    odd["spec"]["sessionAffinity"] = json!("Sometimes");
    odd["spec"]["loadBalancerSourceRanges"] = json!(["10.0.0.0/33"]);
    let mut endpoints = slice("2-odd-1", "2-odd", ("", "TCP", 8080), &[backend(2)[0]]);
    let list = endpoints["endpoints"].as_array_mut().unwrap();
    list.extend([
        json!({"addresses": ["fd00::1"]}),
        json!({"addresses": ["10.1.2"]}),
        json!({"addresses": []}),
    ]);
    // Twice as many as the API allows, all of them failing but one.
    list.extend((0..2000_u32).map(|n| {
        let addr = std::net::Ipv4Addr::from_bits(0x0a63_0000 | n);
        json!({"addresses": [addr], "conditions": {"ready": false}})
    }));
    let mut younger = service("younger", &["10.0.3.100"], &[("", "TCP", 80)]);
    younger["metadata"]["creationTimestamp"] = json!("2026-01-02T00:00:00Z");
    younger["spec"]["externalIPs"] = json!(["198.51.100.7"]);
    let younger_slice = slice("younger-1", "younger", ("", "TCP", 8080), &[backend(1)[0]]);
    vec![odd, endpoints, younger, younger_slice]
}

/// Addresses of the endpoints of [`crowd`].
fn crowded() -> Vec<IpAddr> {
    (0..2000_u32).map(|n| std::net::Ipv4Addr::from_bits(0x0a02_f000 | n).into()).collect()
}

/// A Service with 2,000 serving endpoints in one slice, twice as many as the API allows.
fn crowd() -> Vec<Value> {
    let service = service("crowd", &["10.0.4.100"], &[("", "TCP", 80)]);
    vec![service, slice("crowd-1", "crowd", ("", "TCP", 9090), &crowded())]
}

/// What is said of [`nonsense`].
const SAID: [&str; 10] = [
    "service default/2-odd: spec.externalIPs: 2001:db8::1 is not served, the Service has no IPv6 cluster IP",
    "spec.externalIPs[1]: \"not-an-address\" is not an IP address; write it like",
    "spec.externalIPs[2]: \"198.51.100.300\" is not an IP address",
    "spec.ports[1].port: port 70000 is not in 1..=65535; correct the number",
    "spec.ports[2].port: port 0 is not",
    "spec.ports[3].protocol: protocol \"QUIC\" is not known; use TCP, UDP or SCTP",
    "spec.sessionAffinity: \"Sometimes\" is not known, None is used",
    "spec.loadBalancerSourceRanges[0]: \"10.0.0.0/33\" is not an address range",
    "endpointslice 2-odd-1: endpoints[1].addresses[0]: fd00::1 is not of the addressType of its slice",
    "endpointslice 2-odd-1: endpoints[2].addresses[0]: \"10.1.2\" is not an IP address",
];

/// ES-15: they are all served, and no notice is made of them.
#[test]
fn two_thousand_endpoints_in_one_slice_are_served() {
    needs_root!();
    let mut park = park("crowd");
    // The whole range is node 2's.
    park.net.node(2).netns.ip("route add local 10.2.240.0/21 dev lo").unwrap();
    park.servers.serve(&Serve::tcp("crowd", "0.0.0.0:9090".parse().unwrap())).unwrap();
    park.home.apply("crowd", &crowd()).unwrap();
    park.start(&[]);
    works(&park);
    let tcp = Tcp::to("10.0.4.100:80".parse().unwrap()).reset();
    let tally = park.pod.run(&Many::times(500, tcp)).unwrap();
    assert_eq!((tally.from("crowd"), tally.failures()), (500, 0), "{tally:?}");
    let mut list = Command::new(binary("lb-agent").unwrap());
    list.args(["backend", "list", "-o", "json"]).env("LB_PIN_DIR", park.home.pin_dir());
    let output = list.env("LB_SOCKET", park.home.socket()).output().unwrap();
    let listed: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let of_crowd = listed.iter().filter(|backend| backend["port"] == 9090 && backend["state"] == "active");
    let mut served: Vec<IpAddr> =
        of_crowd.map(|backend| backend["address"].as_str().unwrap().parse().unwrap()).collect();
    served.sort_unstable();
    assert_eq!(served, crowded(), "{listed:?}");
    assert_eq!(park.home.status().unwrap()["agent"]["notices"], json!([]));
}

/// SP-8, ES-6, LB-8, SEL-7: what objects say that cannot be used is left out and named, with reason and remedy, in `status` and by a
/// metric; the rest of them, and everybody else, is served.
#[test]
fn objects_that_make_no_sense_disturb_nobody() {
    needs_root!();
    let mut park = park("objects");
    park.serve(2);
    park.home.apply("odd", &nonsense()).unwrap();
    park.start(&[]);
    works(&park);
    let meets = |to: &str| park.pod.tcp(&Tcp::to(to.parse().unwrap())).unwrap().server().to_owned();
    for (to, server) in
        [("10.0.2.100:80", "backend-2"), ("198.51.100.7:80", "backend-2"), ("10.0.3.100:80", "backend-1")]
    {
        assert_eq!(meets(to), server, "{to}");
    }
    let status = park.home.status().unwrap();
    let said = |list: &str| -> Vec<String> {
        let lines = status["agent"][list].as_array().unwrap().iter();
        lines.map(|line| line.as_str().unwrap().to_owned()).collect()
    };
    has(&said("notices").join("\n"), &SAID);
    assert_eq!(said("contested"), ["198.51.100.7:80 of default/younger: owned by default/2-odd"]);
    let netns = &park.net.node(1).netns;
    wait_for("the metrics to follow", SOON, || {
        let answer = get(netns, "127.0.0.1:10249".parse().unwrap(), "/metrics");
        let metrics = answer.map_err(|error| error.to_string())?.body;
        let wanted = [
            format!("lbagent_notices {}", said("notices").len()),
            "lbagent_contested_frontends 1".to_owned(),
            "lbagent_services 3".to_owned(),
        ];
        let is_there = |wanted: &String| metrics.lines().any(|line| line == wanted);
        if wanted.iter().all(is_there) { Ok(()) } else { Err(metrics) }
    })
    .unwrap();
}
