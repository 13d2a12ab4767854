//! Ports for masquerading: many connections to one endpoint, and what happens when there are no more.

use std::collections::BTreeMap;
use std::time::Duration;

use lb_tests::needs_root;
use lb_tests::topology::ports::{Crowd, Size};

/// 20,000 connections at once, and 2,000 new ones a second, from outside to one endpoint on the other node: all of them live.
#[test]
fn many_connections_to_one_endpoint_find_ports() {
    needs_root!();
    let crowd = Crowd::new(&[]).unwrap();
    let report = crowd.run(Size { open: 20_000, per_second: 2000, seconds: 3 }).unwrap();
    println!("{report}");
    report.check().unwrap();
}

/// Without ports a connection is dropped, and counted by a reason that says why; the others live on.
#[test]
fn who_finds_no_port_is_counted() {
    needs_root!();
    let crowd = Crowd::new(&[("net.ipv4.ip_local_port_range", "1024 65000")]).unwrap();
    // 535 are left, and a choice by chance does not find the last of them.
    let (opened, after) = crowd.fill(600, Duration::from_millis(200)).unwrap();
    assert!((400..=535).contains(&opened.alive), "{opened:?}");
    assert_eq!(opened.failed, BTreeMap::from([("connect TIMEOUT".to_owned(), 600 - opened.alive)]));
    assert!(after.failed.is_empty() && after.alive == opened.alive, "{after:?}");
    let refused = crowd.count("no_port").unwrap();
    assert!(refused >= 600 - opened.alive, "{refused}");
}
