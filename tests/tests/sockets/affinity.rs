//! Session affinity of real sockets (2.13).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::MapData;
use lb_common::abi::maps;
use lb_tests::agent::pinned;
use lb_tests::probe::{Tcp, Udp};
use lb_tests::{Agent, Home, Probe, needs_root, wait_for, wait_until};
use serde_json::{Value, json};

use crate::park::{KINDS, Park, SHORT, SOON, cluster_ips, everywhere, objects};

/// Upstream's tests take so many equal answers for affinity (SA-11). Of three backends chosen at random so many are the same one
/// once in five million times.
const STICKY: usize = 15;

fn with_affinity(mut objects: Vec<Value>, timeout_s: Option<u32>) -> Vec<Value> {
    let spec = &mut objects[0]["spec"];
    match timeout_s {
        Some(timeout_s) => {
            spec["sessionAffinity"] = json!("ClientIP");
            spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": timeout_s}});
        }
        None => spec["sessionAffinity"] = json!("None"),
    }
    objects
}

/// Who answers connections, in order.
fn met(client: &Probe, to: SocketAddr, times: usize) -> Vec<String> {
    let tcp = Tcp::to(to).timeout(SOON).reset();
    (0..times).map(|_| client.tcp(&tcp).unwrap().server().to_owned()).collect()
}

fn distinct(names: impl IntoIterator<Item = String>) -> BTreeSet<String> {
    names.into_iter().collect()
}

fn cluster_ip() -> SocketAddr {
    SocketAddr::new(cluster_ips(1)[0], 80)
}

/// Three backends behind Service 1.
fn park(label: &str, timeout_s: Option<u32>) -> Park {
    let mut park = Park::new(label);
    for n in [1, 2, 3] {
        park.serve(n);
    }
    park.home.apply("service-1", &with_affinity(everywhere(&[1, 2, 3]), timeout_s)).unwrap();
    park.start(&[]);
    park
}

/// SA-1, SA-11, SA-13, SA-14.
#[test]
fn a_client_meets_one_backend_at_all_addresses_of_a_port() {
    needs_root!();
    let park = park("sticky", Some(10_800));
    for client in [&park.pod, &park.host] {
        for family in [0, 1] {
            let at = |kind: &(&str, [&str; 2], [u16; 2]), port: usize| {
                SocketAddr::new(kind.1[family].parse::<IpAddr>().unwrap(), kind.2[port])
            };
            let streams = KINDS.iter().flat_map(|kind| met(client, at(kind, 0), STICKY));
            let streams = distinct(streams);
            assert_eq!(streams.len(), 1, "{streams:?}");
            let datagrams = KINDS.iter().flat_map(|kind| {
                let udp = [Udp::to(at(kind, 1)), Udp::connected(at(kind, 1))];
                udp.map(|udp| client.udp(&udp.timeout(SOON)).unwrap().server().to_owned())
            });
            let datagrams = distinct(datagrams);
            assert_eq!(datagrams.len(), 1, "{datagrams:?}");
        }
    }
}

/// SA-2: as many clients as were asked for, whichever CPU they connect on; and nobody is forgotten when there is to be room for more.
#[test]
fn room_for_clients_is_what_was_asked_for() {
    needs_root!();
    let mut park = Park::new("room");
    for n in [1, 2, 3] {
        park.serve(n);
    }
    park.home.apply("service-1", &with_affinity(everywhere(&[1, 2, 3]), Some(10_800))).unwrap();
    let entries = |park: &Park| {
        let map = MapData::from_pin(pinned(&park.home, maps::AFFINITY)).unwrap();
        map.info().unwrap().max_entries()
    };
    // Each CPU may keep so many for itself (kernel/bpf/bpf_lru_list.c).
    let reserves = 128 * u32::try_from(aya::util::nr_cpus().unwrap()).unwrap();
    park.start(&["--map-max-affinity", "500"]);
    assert_eq!(entries(&park), 500 + reserves);
    let before = met(&park.pod, cluster_ip(), 1);
    for (wanted, has) in [("20000", 20_000), ("300", 20_000)] {
        park.restart(&["--map-max-affinity", wanted]);
        assert_eq!(entries(&park), has + reserves);
        assert_eq!(distinct(met(&park.pod, cluster_ip(), STICKY)), distinct(before.clone()));
    }
}

/// SA-13: each pod is a client of its own.
#[test]
fn pods_are_clients_of_their_own() {
    needs_root!();
    let park = park("own", Some(10_800));
    // Of so many pods all have the same of three backends once in 6,561 times.
    let pods: Vec<_> = (20..29)
        .map(|n| {
            let pod = park.net.node(1).add_pod(&format!("pod-{n}"), [10, 1, 1, n].into()).unwrap();
            let probe = pod.probe("client").unwrap();
            (pod, probe)
        })
        .collect();
    let first: Vec<String> = pods.iter().flat_map(|(_, probe)| met(probe, cluster_ip(), 1)).collect();
    assert!(distinct(first.clone()).len() > 1, "{first:?}");
    for _ in 0..3 {
        let again: Vec<String> = pods.iter().flat_map(|(_, probe)| met(probe, cluster_ip(), 1)).collect();
        assert_eq!(again, first);
    }
}

/// SA-5: off, connections spread at once; on again, they stay, with a backend of its own choice.
#[test]
fn affinity_is_switched_off_and_on() {
    needs_root!();
    let park = park("switched", Some(10_800));
    assert_eq!(distinct(met(&park.pod, cluster_ip(), STICKY)).len(), 1);
    let spreads = || distinct(met(&park.pod, cluster_ip(), STICKY)).len() > 1;
    for _ in 0..2 {
        park.home.apply("service-1", &with_affinity(everywhere(&[1, 2, 3]), None)).unwrap();
        wait_until("connections to spread", SOON, spreads).unwrap();
        park.home.apply("service-1", &with_affinity(everywhere(&[1, 2, 3]), Some(10_800))).unwrap();
        wait_until("connections to stay", SOON, || !spreads()).unwrap();
        assert!(!spreads());
    }
}

/// SA-2, SA-7: connections prolong, silence ends.
#[test]
fn affinity_ends_after_the_timeout_without_connections() {
    needs_root!();
    let park = park("timeout", Some(TIMEOUT_S));
    // A machine that was busy for too long between two connections tells nothing.
    let (seen, longest) = (0..10).find_map(|_| connect_all_the_time(&park)).expect("ten attempts are enough");
    assert_eq!(distinct(seen.clone()).len(), 1, "{seen:?}, {longest:?}");
    // Another backend comes out of three with a chance of two thirds each time.
    let moved = (0..20).any(|_| {
        thread::sleep(Duration::from_secs(u64::from(TIMEOUT_S)) + Duration::from_millis(100));
        met(&park.pod, cluster_ip(), 1)[0] != seen[0]
    });
    assert!(moved);
}

const TIMEOUT_S: u32 = 3;

/// Who answers for more than twice the timeout, never silent for as long as that; nothing if it was. Also the longest pause.
fn connect_all_the_time(park: &Park) -> Option<(Vec<String>, Duration)> {
    let (begin, limit) = (Instant::now(), Duration::from_secs(u64::from(TIMEOUT_S)));
    let (mut seen, mut longest, mut last) = (Vec::new(), Duration::ZERO, Instant::now());
    while begin.elapsed() < 2 * limit + Duration::from_secs(1) {
        seen.extend(met(&park.pod, cluster_ip(), 1));
        longest = longest.max(last.elapsed());
        last = Instant::now();
        thread::sleep(Duration::from_millis(300));
    }
    (longest + Duration::from_secs(1) < limit).then_some((seen, longest))
}

/// SA-3, SA-4, SA-12, TE-2: who is gone, or terminates while others are ready, keeps no client, however often it asks.
#[test]
fn affinity_ends_with_its_backend() {
    needs_root!();
    let park = park("ends", Some(10_800));
    let own = met(&park.pod, cluster_ip(), 1)[0].clone();
    let n: u8 = own.trim_start_matches("backend-").parse().unwrap();
    let others: Vec<u8> = [1, 2, 3].into_iter().filter(|other| *other != n).collect();
    let address = crate::park::backend(n)[0].to_string();
    let mut objects = with_affinity(everywhere(&[1, 2, 3]), Some(10_800));
    let moves = |objects: &[Value], what: &str| {
        park.home.apply("service-1", objects).unwrap();
        wait_for(what, SOON, || match met(&park.pod, cluster_ip(), 1) {
            met if met[0] == own => Err(own.clone()),
            _ => Ok(()),
        })
        .unwrap();
        let now = distinct(met(&park.pod, cluster_ip(), STICKY));
        assert!(now.len() == 1 && !now.contains(&own), "{now:?}");
        now
    };
    for slice in &mut objects[1..] {
        for endpoint in slice["endpoints"].as_array_mut().unwrap() {
            if endpoint["addresses"][0] == address.as_str() {
                endpoint["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
            }
        }
    }
    let second = moves(&objects, "the client to leave the terminating backend");
    // Adding one, or taking away another one's, does not disturb it.
    park.home.apply("service-1", &with_affinity(everywhere(&others), Some(10_800))).unwrap();
    park.home.apply("service-2", &crate::park::objects(2, &[n])).unwrap();
    wait_until("the next change to be programmed", SOON, || {
        park.pod.tcp(&Tcp::to(SocketAddr::new(cluster_ips(2)[0], 80)).timeout(SHORT)).is_ok()
    })
    .unwrap();
    assert_eq!(distinct(met(&park.pod, cluster_ip(), STICKY)), second);
}

/// SA-9: it is in the kernel, and the next agent finds it.
#[test]
fn affinity_survives_a_restart() {
    needs_root!();
    let mut park = park("restart", Some(10_800));
    let before = distinct(met(&park.pod, cluster_ip(), STICKY));
    park.agent.take().unwrap().crash().unwrap();
    assert_eq!(distinct(met(&park.pod, cluster_ip(), STICKY)), before);
    park.agent = Some(Agent::start(park.net.node(1), &park.home).unwrap());
    assert_eq!(distinct(met(&park.pod, cluster_ip(), STICKY)), before);
}

/// SA-3: maps that were made anew give ids away again, and what was remembered by the old ones is nobody's.
#[test]
fn affinity_does_not_survive_maps_that_are_made_anew() {
    needs_root!();
    let mut park = Park::new("anew");
    park.serve(1);
    park.serve(2);
    park.home.apply("service-1", &with_affinity(objects(1, &[1]), Some(10_800))).unwrap();
    park.start(&[]);
    let dns = SocketAddr::new(cluster_ips(1)[0], 53);
    let flow = park.pod.open_udp(&Udp::to(dns)).unwrap().handle;
    let says = |text: &str| park.pod.exchange(flow, text).unwrap().answer.server;
    assert_eq!(
        (met(&park.pod, cluster_ip(), 1)[0].as_str(), says("hello").as_str()),
        ("backend-1", "backend-1")
    );
    park.agent.take().unwrap().stop().unwrap();
    std::fs::remove_file(pinned(&park.home, "lb_meta")).unwrap();
    park.home.apply("service-1", &with_affinity(objects(1, &[2]), Some(10_800))).unwrap();
    park.agent = Some(Agent::start(park.net.node(1), &park.home).unwrap());
    assert_eq!(
        (met(&park.pod, cluster_ip(), 1)[0].as_str(), says("again").as_str()),
        ("backend-2", "backend-2")
    );
}

/// Choices of the test below.
const CHOICES: u16 = 3000;

/// Each count below has a binomial distribution of 3,000 choices and a chance of one third: 1,000 are expected, and the
/// standard deviation is the root of 3,000 x 1/3 x 2/3, which is 25.8. More than 168 away, 6.5 deviations, is one count in
/// 12 billion, so one of the four in 3 billion runs.
const EXPECTED: std::ops::RangeInclusive<usize> = 832..=1168;

/// SA-10: the kernel's random numbers, three backends: each has its share, and who was met last does not matter.
#[test]
fn without_affinity_the_choice_is_uniform_and_random() {
    needs_root!();
    let park = park("uniform", None);
    let seen = met(&park.pod, cluster_ip(), usize::from(CHOICES));
    let mut counts: Vec<(String, usize)> = ["backend-1", "backend-2", "backend-3"]
        .map(|name| (name.to_owned(), seen.iter().filter(|server| **server == name).count()))
        .into();
    let again = seen.windows(2).filter(|pair| pair[0] == pair[1]).count();
    counts.push(("the same as before".to_owned(), again));
    assert!(counts.iter().all(|(_, count)| EXPECTED.contains(count)), "{counts:?}");
}

/// SA-6: one client, a namespace, whose processes are in the cgroups of two nodes: each node has its own choice, and neither
/// disturbs the other one's. Nodes that share all 16 choices by chance do so once in 43 million times.
#[test]
fn nodes_choose_for_themselves() {
    needs_root!();
    let mut park = Park::new("nodes");
    for n in [1, 2, 3] {
        park.serve(n);
    }
    let other = Home::new("nodes-other").unwrap();
    let services = 1..=16;
    for n in services.clone() {
        let objects = with_affinity(objects(n, &[1, 2, 3]), Some(10_800));
        for home in [&park.home, &other] {
            home.apply(&format!("service-{n}"), &objects).unwrap();
        }
    }
    park.start(&[]);
    let _agent = Agent::start(park.net.node(2), &other).unwrap();
    let there = Probe::start("there", &park.client.netns, &park.net.node(2).cgroup).unwrap();
    let each = |client: &Probe| -> Vec<String> {
        let at = |n| SocketAddr::new(cluster_ips(n)[0], 80);
        services.clone().flat_map(|n| met(client, at(n), 1)).collect()
    };
    let (first, second) = (each(&park.pod), each(&there));
    assert_ne!(first, second);
    for _ in 0..3 {
        assert_eq!((each(&park.pod), each(&there)), (first.clone(), second.clone()));
    }
}

/// SA-1: what a client has at one Service says nothing of another one.
#[test]
fn affinity_is_per_service_port() {
    needs_root!();
    let mut park = Park::new("per-port");
    for n in [1, 2, 3] {
        park.serve(n);
    }
    // Of so many Services a client has the same of three backends everywhere once in 2,187 times.
    for n in 1..=8 {
        park.home.apply(&format!("service-{n}"), &with_affinity(objects(n, &[1, 2, 3]), Some(60))).unwrap();
    }
    park.start(&[]);
    let each: Vec<String> =
        (1..=8).flat_map(|n| met(&park.pod, SocketAddr::new(cluster_ips(n)[0], 80), 1)).collect();
    assert!(distinct(each.clone()).len() > 1, "{each:?}");
    let again: Vec<String> =
        (1..=8).flat_map(|n| met(&park.pod, SocketAddr::new(cluster_ips(n)[0], 80), 1)).collect();
    assert_eq!(again, each);
}
