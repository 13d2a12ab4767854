//! What the agent may do without being all of root.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs::File;
use std::net::Ipv4Addr;
use std::time::Duration;

use lb_tests::agent::service;
use lb_tests::{Home, Process, Topology, binary, needs_root, wait_until};

/// What `lb-agent run` says that it needs.
const NEEDED: [&str; 3] = ["bpf", "net_admin", "perfmon"];

/// Longer than anything takes.
const LIMIT: Duration = Duration::from_mins(1);

/// Runs an agent that has only these capabilities until it says that it is ready, or has ended; returns what it said.
fn run_with(net: &Topology, home: &Home, capabilities: &[&str]) -> String {
    let granted: Vec<String> = capabilities.iter().map(|name| format!("+{name}")).collect();
    let mut command = net.node(1).command("setpriv");
    command
        .arg(format!("--bounding-set=-all,{}", granted.join(",")))
        .arg(binary("lb-agent").unwrap())
        .arg("run")
        .arg("--manifests")
        .arg(home.manifests())
        .env("LB_PIN_DIR", home.pin_dir())
        .env("LB_CGROUP", net.node(1).cgroup.path())
        .env("LB_SOCKET", home.socket())
        .env("NO_COLOR", "1")
        .stderr(File::create(home.manifests().with_file_name("agent.log")).unwrap());
    let mut agent = Process::start("lb-agent", &mut command).unwrap();
    let ended = || home.log().contains(" ready ") || !agent.is_running();
    wait_until("the agent to be ready or to end", LIMIT, ended).unwrap();
    if agent.is_running() {
        agent.stop(LIMIT).unwrap();
    }
    home.log()
}

#[test]
fn three_capabilities_are_enough_and_each_that_is_missing_is_named() {
    needs_root!();
    let net = Topology::single().unwrap();
    let home = Home::new("privileges").unwrap();
    for left_out in NEEDED {
        let granted: Vec<&str> = NEEDED.into_iter().filter(|name| *name != left_out).collect();
        let said = run_with(&net, &home, &granted);
        let name = format!("lb-agent has no CAP_{}: run it as root", left_out.to_uppercase());
        assert!(said.contains(&name), "without {left_out}: {said}");
    }
    let said = run_with(&net, &home, &NEEDED);
    assert!(said.contains(" ready "), "{said}");

    // Maps that were made for fewer are opened again to be copied.
    let objects: Vec<_> = (0..5000_u32)
        .map(|n| {
            let addr = Ipv4Addr::from(0x0a00_0000 + n).to_string();
            service(&format!("service-{n}"), &[&addr], &[("web", "TCP", 80)])
        })
        .collect();
    home.apply("many", &objects).unwrap();
    let said = run_with(&net, &home, &NEEDED);
    assert!(said.contains(" ready services=5000 ports=5000"), "{said}");
}
