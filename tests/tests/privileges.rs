//! What the agent may do without being all of root.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use lb_tests::agent::{at, service, slice};
use lb_tests::probe::Udp;
use lb_tests::{Home, Process, Topology, binary, needs_root, wait_until};
use serde_json::{Value, json};

/// What `lb-agent run` says that it needs.
const NEEDED: [&str; 3] = ["bpf", "net_admin", "perfmon"];

/// Longer than anything takes.
const LIMIT: Duration = Duration::from_mins(1);

/// Starts an agent that has only these capabilities, and waits until it says that it is ready, or has ended.
fn start_with(net: &Topology, home: &Home, capabilities: &[&str]) -> Process {
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
        .env("RUST_LOG", "info,lb_agent::healer=debug")
        .stderr(File::create(home.manifests().with_file_name("agent.log")).unwrap());
    let mut agent = Process::start("lb-agent", &mut command).unwrap();
    let ended = || home.log().contains(" ready ") || !agent.is_running();
    wait_until("the agent to be ready or to end", LIMIT, ended).unwrap();
    agent
}

/// The same, and stops it; returns what it said.
fn run_with(net: &Topology, home: &Home, capabilities: &[&str]) -> String {
    let mut agent = start_with(net, home, capabilities);
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

/// A UDP Service at this address, with one endpoint or none.
fn datagrams(name: &str, addr: &str, has_endpoint: bool) -> Vec<Value> {
    let port = ("dns", "UDP", 53);
    let endpoints: &[_] = if has_endpoint { &[[10, 1, 2, 10].into()] } else { &[] };
    vec![service(name, &[addr], &[port]), slice(&format!("{name}-1"), name, port, endpoints)]
}

/// Healing that cannot see who has a socket would else do nothing, and say nothing.
#[test]
fn an_agent_that_cannot_heal_says_once_what_it_lacks() {
    needs_root!();
    let net = Topology::single().unwrap();
    let home = Home::new("no-ptrace").unwrap();
    home.apply("one", &datagrams("one", "10.0.1.101", false)).unwrap();
    let pod = net.node(1).add_pod("client", [10, 1, 1, 10].into()).unwrap();
    let client = pod.probe("client").unwrap();
    let granted: Vec<&str> = NEEDED.into_iter().chain(["sys_admin"]).collect();
    let mut agent = start_with(&net, &home, &granted);
    let host = net.node(1).probe("host").unwrap();
    let _refused =
        [&client, &host].map(|probe| probe.open_udp(&Udp::connected(at("10.0.1.101:53"))).unwrap());

    home.apply("one", &datagrams("one", "10.0.1.101", true)).unwrap();
    let warned = || home.log().matches("connected UDP sockets that lead nowhere may stay so").count();
    wait_until("the agent to say that it cannot heal", LIMIT, || warned() > 0).unwrap();
    // The pod's socket is in a namespace that only its processes show; the host's namespace is known.
    wait_until("both sockets to be missed", LIMIT, || {
        let log = home.log();
        let warnings = || log.lines().filter(|line| line.contains("WARN"));
        let said = |what: &str| warnings().any(|line| line.contains(what));
        said("which network namespaces they are in; it needs CAP_SYS_PTRACE")
            && said("which ones were refused; it needs CAP_SYS_PTRACE")
    })
    .unwrap();
    let rounds = || home.log().matches("looked for UDP sockets that lead nowhere").count();
    let before_that = warned();
    let before = rounds();
    home.apply("two", &datagrams("two", "10.0.1.102", true)).unwrap();
    wait_until("another round of healing", LIMIT, || rounds() > before).unwrap();
    agent.stop(LIMIT).unwrap();
    assert_eq!(warned(), before_that, "{}", home.log());
}

/// The agent's own command, in a namespace of processes where nobody has the socket, and then in the host's.
#[test]
fn healing_in_a_container_without_the_hosts_processes_fails_and_names_them() {
    needs_root!();
    let net = Topology::single().unwrap();
    let home = Home::new("no-hostpid").unwrap();
    home.apply("one", &datagrams("one", "10.0.1.101", false)).unwrap();
    let host = net.node(1).probe("host").unwrap();
    let mut agent = start_with(&net, &home, &NEEDED);
    let refused = host.open_udp(&Udp::connected(at("10.0.1.101:53"))).unwrap();
    agent.stop(LIMIT).unwrap();

    let heal = |mut command: Command| {
        command.arg(binary("lb-agent").unwrap()).args(["heal-sockets", "-o", "json"]);
        let output = command.env("LB_PIN_DIR", home.pin_dir()).output().unwrap();
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.success(), json, String::from_utf8(output.stderr).unwrap())
    };
    let container = || {
        let mut container = net.node(1).command("unshare");
        container.args(["--pid", "--fork", "--mount-proc", "--"]);
        container
    };
    let (ok, healed, said) = heal(container());
    assert!(!ok && said.contains("it needs the host's /proc (hostPID)"), "{said}");
    assert_eq!(
        (&healed["refused"], healed["failures"].as_object().unwrap().len()),
        (&json!(0), 1),
        "{healed:#}"
    );

    let (ok, healed, said) = heal(net.node(1).command("env"));
    assert!(ok, "{said}");
    assert_eq!((&healed["freed"], &healed["failures"]), (&json!(0), &json!({})), "nobody serves it yet");
    assert!(healed["refused"].as_u64().unwrap() >= 1, "{healed:#}");

    // A socket that was never translated is nobody's business, and no reason to ask for the host's processes.
    host.close(refused.handle).unwrap();
    let _foreign = host.open_udp(&Udp::connected(at("127.0.0.1:9"))).unwrap();
    let (ok, healed, said) = heal(container());
    assert!(ok, "{said}");
    assert_eq!((&healed["unseen"], &healed["failures"]), (&json!(1), &json!({})));
}
