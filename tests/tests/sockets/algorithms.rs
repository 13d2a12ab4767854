//! Which backend the next connection meets, by the annotation of its Service (5.9).

use std::collections::BTreeMap;
use std::net::SocketAddr;

use aya::maps::{Array, Map, MapData};
use lb_common::abi::{Service, ServiceFlags, maps};
use lb_tests::agent::pinned;
use lb_tests::probe::Tcp;
use lb_tests::{Probe, needs_root, wait_until};
use serde_json::{Value, json};

use crate::park::{Park, SOON, cluster_ips, everywhere};

fn with(algorithm: &str, affinity: &str) -> Vec<Value> {
    let mut objects = everywhere(&[1, 2, 3]);
    objects[0]["metadata"]["annotations"] = json!({"lb.io/algorithm": algorithm});
    objects[0]["spec"]["sessionAffinity"] = json!(affinity);
    objects
}

/// Three backends behind Service 1.
fn park(label: &str, objects: &[Value], args: &[&str]) -> Park {
    let mut park = Park::new(label);
    for n in [1, 2, 3] {
        park.serve(n);
    }
    park.home.apply("service-1", objects).unwrap();
    park.start(args);
    park
}

/// How many connections each backend has answered.
fn met(client: &Probe, times: u32) -> BTreeMap<String, u32> {
    let tcp = Tcp::to(SocketAddr::new(cluster_ips(1)[0], 80)).timeout(SOON).reset();
    let mut met = BTreeMap::new();
    for _ in 0..times {
        *met.entry(client.tcp(&tcp).unwrap().server().to_owned()).or_default() += 1;
    }
    met
}

/// Whether some service in the maps has all of these flags.
fn is_programmed(park: &Park, flags: ServiceFlags) -> bool {
    let map = Map::Array(MapData::from_pin(pinned(&park.home, maps::SERVICES)).unwrap());
    let services: Array<_, Service> = map.try_into().unwrap();
    services.iter().flatten().any(|service| service.flags.has(flags))
}

/// 5.9-round-robin: each CPU gives everybody as many as everybody else, but for one.
#[test]
fn connections_go_to_all_backends_in_turn() {
    needs_root!();
    let park = park("turns", &with("round-robin", "None"), &[]);
    let cpus = u32::try_from(aya::util::nr_cpus().unwrap()).unwrap();
    let met = met(&park.pod, 300);
    assert_eq!(met.len(), 3);
    let (least, most) = (met.values().min().unwrap(), met.values().max().unwrap());
    assert!(most - least <= cpus, "{met:?}");
}

/// 5.9-annotation, 5.9-affinity: an algorithm comes and goes, and a client with affinity stays where it is.
#[test]
fn a_change_of_the_algorithm_moves_no_client_with_affinity() {
    needs_root!();
    let park = park("changed", &with("random", "ClientIP"), &["--algorithm", "maglev"]);
    let own = met(&park.pod, 10);
    assert_eq!(own.len(), 1, "{own:?}");
    for (algorithm, flags) in [
        ("maglev", ServiceFlags::MAGLEV),
        ("round-robin", ServiceFlags::ROUND_ROBIN),
        ("unknown: the default counts", ServiceFlags::MAGLEV),
    ] {
        park.home.apply("service-1", &with(algorithm, "ClientIP")).unwrap();
        wait_until("the algorithm to be programmed", SOON, || is_programmed(&park, flags)).unwrap();
        assert_eq!(met(&park.pod, 10), own, "{algorithm}");
    }
    // 5.9-maglev: sockets choose at random; one of three backends answers none of 40 connections once in four million times.
    park.home.apply("service-1", &with("maglev", "None")).unwrap();
    wait_until("connections to spread", SOON, || met(&park.pod, 40).len() == 3).unwrap();
}
