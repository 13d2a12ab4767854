//! `lb-agent status`, `service`, `backend`, `netns` and `cleanup` beside a running agent, without one, and over what does not
//! belong to it.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{
    fs::{self, File},
    os::fd::AsFd as _,
    path::Path,
    process::Command,
    time::Duration,
};

use lb_agent::{datapath::PROGRAMS, maps::sys};
use lb_tests::{
    Node, Pod, Probe, Topology,
    agent::{Agent, Home, at, pinned, service, slice},
    binary, needs_root,
    probe::{Serve, Tcp},
    wait_until,
};
use serde_json::{Value, json};

/// For limits of things that are expected to happen at once.
const SOON: Duration = Duration::from_secs(20);
/// For limits of things that are expected not to happen.
const SHORT: Duration = Duration::from_millis(150);
/// `BPF_CGROUP_INET4_CONNECT` (include/uapi/linux/bpf.h).
const CONNECT4: u32 = 10;

const DATABASE: &str = "10.0.1.100:3306";

/// What a command said.
#[derive(Debug)]
struct Said {
    ok: bool,
    out: String,
    err: String,
}

impl Said {
    fn json(&self) -> Value {
        assert!(self.ok, "{self:?}");
        serde_json::from_str(&self.out).unwrap()
    }

    /// The words of the line that begins with `first`.
    fn line(&self, first: &str) -> Vec<&str> {
        let mut lines = self.out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        lines
            .find(|words| words.first() == Some(&first))
            .unwrap_or_else(|| panic!("no line {first} in {self:?}"))
    }

    fn failed(&self, why: &str) {
        assert!(!self.ok && self.err.contains(why), "expected {why:?}, got {self:?}");
    }
}

/// Runs a command over the pins in `dir`.
fn tool(dir: &Path, socket: &Path, args: &[&str]) -> Said {
    let mut command = Command::new(binary("lb-agent").unwrap());
    let output = command.args(args).env("LB_PIN_DIR", dir).env("LB_SOCKET", socket).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { ok: output.status.success(), out: text(output.stdout), err: text(output.stderr) }
}

fn run(home: &Home, args: &[&str]) -> Said {
    tool(&home.pin_dir(), &home.socket(), args)
}

/// A node with a Service `database` that has a cluster IP, a node port and one backend, and an empty one.
fn database(label: &str) -> (Topology, Home) {
    let net = Topology::single().unwrap();
    let home = Home::new(label).unwrap();
    let mut database = service("database", &["10.0.1.100"], &[("mysql", "TCP", 3306)]);
    database["spec"]["type"] = json!("NodePort");
    database["spec"]["ports"][0]["nodePort"] = json!(30306);
    let endpoints = slice("database-1", "database", ("mysql", "TCP", 3306), &[[10, 1, 2, 10].into()]);
    let empty = service("empty", &["10.0.1.101"], &[("", "TCP", 80)]);
    home.apply("objects", &[database, endpoints, empty]).unwrap();
    (net, home)
}

/// A pod that answers as the backend of `database`, and one that asks.
fn pods(node: &Node) -> ((Pod, Probe), (Pod, Probe)) {
    let database = node.add_pod("database", [10, 1, 2, 10].into()).unwrap();
    let server = database.probe("server").unwrap();
    server.serve(&Serve::tcp("db-1", at("10.1.2.10:3306"))).unwrap();
    let web = node.add_pod("web", [10, 1, 1, 10].into()).unwrap();
    let client = web.probe("client").unwrap();
    ((database, server), (web, client))
}

fn programs(node: &Node) -> usize {
    let cgroup = File::open(node.cgroup.path()).unwrap();
    sys::cgroup_programs(cgroup.as_fd(), CONNECT4).unwrap().len()
}

#[test]
fn beside_a_running_agent_services_have_names() {
    needs_root!();
    let (net, home) = database("cli-up");
    let _agent = Agent::start(net.node(1), &home).unwrap();

    let list = run(&home, &["service", "list"]);
    assert_eq!(list.err, "");
    let rows: Vec<Vec<&str>> = list.out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["SERVICE", "PORT", "ID", "KIND", "FRONTEND", "BACKENDS"]);
    assert_eq!(rows.len(), 4, "{list:?}");
    for (service, port, kind, rest) in [
        ("default/database", "mysql", "NodePort", &["0.0.0.0:30306/TCP", "1", "cluster"][..]),
        ("default/database", "mysql", "ClusterIP", &["10.0.1.100:3306/TCP", "1", "cluster"]),
        ("default/empty", "-", "ClusterIP", &["10.0.1.101:80/TCP", "none,", "refused"]),
    ] {
        let is_meant = |row: &&Vec<&str>| (row[0], row[1], row[3], &row[4..]) == (service, port, kind, rest);
        assert!(rows.iter().any(|row| is_meant(&row)), "{service} {kind}: {list:?}");
    }

    let shown = run(&home, &["service", "show", "database", "-o", "json"]).json();
    assert_eq!(shown[0]["namespace"], "default");
    assert_eq!(shown[0]["backends"][0]["address"], "10.1.2.10");
    assert_eq!(shown[0]["backends"][0]["state"], "active");
    assert_eq!(run(&home, &["service", "show", "default/database", "-o", "json"]).json(), shown);
    assert_eq!(run(&home, &["service", "show", "10.0.1.100", "-o", "json"]).json(), shown);
    for node_port in [format!("{}:30306", net.node(1).ipv4), "127.0.0.1:30306".to_owned()] {
        assert_eq!(run(&home, &["service", "show", &node_port, "-o", "json"]).json(), shown, "{node_port}");
    }
    run(&home, &["service", "show", "192.0.2.1:30306"]).failed("no service port accepts traffic");
    run(&home, &["service", "show", "nobody"]).failed("no Service nobody is programmed");

    let backends = run(&home, &["backend", "list"]);
    let line = backends.line("10.1.2.10:3306/TCP");
    assert_eq!(line[3..7], ["active", "cluster", "default/database", "mysql"], "{backends:?}");
}

#[test]
fn status_shows_agent_programs_maps_switches_counters_and_what_is_wrong() {
    needs_root!();
    let (net, home) = database("cli-status");
    let node = net.node(1);
    home.write("broken.yaml", "kind: Service\n  metadata: [").unwrap();
    let _agent = Agent::start_with(node, &home, ["--socket-lb", "tcp"]).unwrap();
    let (_server, (_web, client)) = pods(node);
    assert_eq!(client.tcp(&Tcp::to(at(DATABASE))).unwrap().server(), "db-1");

    let status = run(&home, &["status", "-o", "json"]).json();
    let agent = &status["agent"];
    assert_eq!((&agent["progress"], &agent["node"]), (&json!("ready"), &json!("node1")), "{status:#}");
    let problem = agent["problems"][0].as_str().unwrap();
    assert!(problem.contains("broken.yaml:"), "{problem}");
    let programs = status["programs"].as_array().unwrap();
    assert_eq!(programs.len(), PROGRAMS.len());
    let path = node.cgroup.path().to_str().unwrap();
    assert!(programs.iter().all(|row| row["attached"] == true && row["cgroup"] == path), "{programs:#?}");
    assert_eq!(status["node"]["node_ports"], json!([30306, 30306]));
    assert_eq!(status["node"]["socket_lb"], json!(["tcp:host", "tcp:pods"]));
    let row = |table: &str, name: &str| {
        let rows = status[table].as_array().unwrap();
        rows.iter().find(|row| row["name"] == name).unwrap().clone()
    };
    let frontends = row("maps", "lb_frontends");
    assert_eq!(
        (&frontends["used"], &frontends["capacity"]),
        (&json!(5), &json!(4096)),
        "two of them refuse other ports"
    );
    assert!(row("maps", "lb_slots")["bytes"].as_u64().unwrap() >= 4096 * 32);
    assert_eq!(row("reasons", "connect")["count"], 1);
    assert_eq!(row("reasons", "refused_connect")["count"], 0);

    let text = run(&home, &["status"]);
    assert_eq!(text.line("agent")[1], "ready,");
    assert_eq!(text.line("lb_connect4")[2], path);
    assert_eq!(text.line("connect")[1], "1");
    assert!(text.out.contains("manifests that cannot be used:\n  "), "{text:?}");
}

/// SY-7: what is attached is looked at, not remembered.
#[test]
fn a_link_that_was_detached_is_told_from_one_that_is_missing() {
    needs_root!();
    let (net, home) = database("cli-detached");
    let node = net.node(1);
    Agent::start(node, &home).unwrap().stop().unwrap();
    let links = home.pin_dir().join("v1/links");
    let detach =
        Command::new("bpftool").args(["link", "detach", "pinned"]).arg(links.join("lb_connect4")).status();
    assert!(detach.unwrap().success());
    fs::remove_file(links.join("lb_connect6")).unwrap();
    let status = run(&home, &["status"]);
    let said = |program: &str| status.line(program).join(" ");
    assert!(
        said("lb_connect4").contains("its link was detached, or its cgroup is gone; restart"),
        "{status:?}"
    );
    assert!(said("lb_connect6").ends_with("nothing: no link is pinned"), "{status:?}");

    let _agent = Agent::start(node, &home).unwrap();
    let programs = run(&home, &["status", "-o", "json"]).json()["programs"].clone();
    assert!(
        programs.as_array().unwrap().iter().all(|row| row["attached"] == true),
        "the remedy: {programs:#}"
    );
}

#[test]
fn without_an_agent_the_maps_are_shown_without_names() {
    needs_root!();
    let (net, home) = database("cli-down");
    let node = net.node(1);
    let agent = Agent::start(node, &home).unwrap();
    let with_names = run(&home, &["service", "list", "-o", "json"]).json();
    run(&home, &["cleanup"]).failed("nothing was removed: an lb-agent is running with");
    agent.stop().unwrap();
    assert!(!home.socket().exists(), "the agent takes its socket along");
    assert_eq!(programs(node), 1, "traffic goes on");

    let list = run(&home, &["service", "list", "-o", "json"]);
    assert!(list.err.contains("names of Services need a running agent: no lb-agent answers at"), "{list:?}");
    assert_eq!(list.err.lines().count(), 1, "{list:?}");
    let rows = list.json();
    assert_eq!(rows.as_array().unwrap().len(), 2);
    assert!(rows.as_array().unwrap().iter().all(|row| row.get("name").is_none()));
    let frontends = |rows: &Value| {
        rows.as_array().unwrap().iter().map(|row| row["frontends"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(frontends(&rows), frontends(&with_names));
    run(&home, &["service", "show", "database"]).failed("give one of its addresses");
    assert_eq!(run(&home, &["service", "show", DATABASE]).line("10.1.2.10:3306/TCP")[3], "active");
    assert_eq!(run(&home, &["backend", "list"]).line("10.1.2.10:3306/TCP")[5], "-");
    let status = run(&home, &["status"]);
    assert_eq!(status.line("agent")[1..3], ["not", "reached:"]);
    assert_eq!(status.line("lb_frontends")[1], "5");

    // An agent with other pins knows other names.
    let other = Home::new("cli-other").unwrap();
    let _other = Agent::start(node, &other).unwrap();
    let crossed = tool(&home.pin_dir(), &other.socket(), &["service", "list", "-o", "json"]);
    assert!(crossed.err.contains("not with those in"), "{crossed:?}");
    assert_eq!(crossed.json(), rows);
}

#[test]
fn cleanup_detaches_the_programs_and_leaves_nothing() {
    needs_root!();
    let (net, home) = database("cli-cleanup");
    let node = net.node(1);
    Agent::start(node, &home).unwrap().crash().unwrap();
    assert!(home.socket().exists(), "a crash leaves the socket");

    let done = run(&home, &["cleanup", "-o", "json"]).json();
    assert_eq!(done["detached"].as_array().unwrap().len(), PROGRAMS.len());
    assert_eq!(done["remaining"], json!([]));
    assert!(!home.pin_dir().exists() && !home.socket().exists(), "{done:#}");
    wait_until("programs to be detached", SOON, || programs(node) == 0).unwrap();

    let again = run(&home, &["cleanup"]);
    assert!(again.ok && again.out.contains("nothing to remove"), "{again:?}");
    run(&home, &["status"]).failed("no maps are pinned in");
    run(&home, &["service", "list"]).failed("no maps are pinned in");

    // What was cleaned up can be made again.
    let _agent = Agent::start(node, &home).unwrap();
    assert_eq!(programs(node), 1);
}

#[test]
fn cleanup_keeps_what_is_not_the_agents() {
    needs_root!();
    let (net, home) = database("cli-foreign");
    Agent::start(net.node(1), &home).unwrap().stop().unwrap();
    let theirs = home.pin_dir().join("their_map");
    fs::rename(pinned(&home, "lb_config"), &theirs).unwrap();
    let done = run(&home, &["cleanup", "-o", "json"]).json();
    assert_eq!(done["remaining"], json!([theirs]));
    assert!(theirs.exists());
    assert_eq!(run(&home, &["cleanup", "-o", "json"]).json()["remaining"], json!([theirs]));
}

#[test]
fn what_is_pinned_under_our_names_is_not_taken_for_ours() {
    needs_root!();
    let (net, home) = database("cli-wrong");
    Agent::start(net.node(1), &home).unwrap().stop().unwrap();
    fs::rename(pinned(&home, "lb_config"), pinned(&home, "lb_services")).unwrap();
    run(&home, &["service", "list"])
        .failed("lb_services is not a map of this version: expected Array with 4-byte keys");
    run(&home, &["status"]).failed("lb_config is gone: start lb-agent, which makes it anew");
    let links = home.pin_dir().join("v1/links");
    fs::rename(pinned(&home, "lb_slots"), links.join("lb_connect4")).unwrap();
    fs::rename(pinned(&home, "lb_services"), pinned(&home, "lb_config")).unwrap();
    run(&home, &["status"]).failed("lb_connect4 is not the link of a program at a cgroup");
    assert!(run(&home, &["cleanup"]).ok);
    assert!(!home.pin_dir().exists());

    let outside = std::env::temp_dir().join("lb-nowhere");
    for args in [&["status"][..], &["service", "list"], &["netns", "list"], &["cleanup"]] {
        tool(&outside, &home.socket(), args).failed("is not on a bpffs: mount one");
    }
    assert!(!outside.exists());
}

#[test]
fn an_exempt_namespace_is_left_alone_until_it_is_included() {
    needs_root!();
    let (net, home) = database("cli-netns");
    let node = net.node(1);
    let agent = Agent::start(node, &home).unwrap();
    let (_server, (web, client)) = pods(node);
    let host = node.probe("host").unwrap();
    let (to, nobody) = (Tcp::to(at(DATABASE)), Tcp::to(at(DATABASE)).timeout(SHORT));
    let netns = web.netns.path();
    let path = netns.to_str().unwrap();
    assert_eq!(client.tcp(&to).unwrap().server(), "db-1");

    let said = run(&home, &["netns", "exempt", path]);
    assert!(said.ok && said.out.ends_with("is left alone from now on\n"), "{said:?}");
    assert_eq!(client.tcp(&nobody).unwrap_err().errno(), "TIMEOUT");
    assert_eq!(host.tcp(&to).unwrap().server(), "db-1", "only that namespace");
    assert!(run(&home, &["netns", "exempt", path]).out.ends_with("is left alone already\n"));

    let rows = run(&home, &["netns", "list", "-o", "json"]).json();
    assert_eq!(rows.as_array().unwrap().len(), 1);
    assert!(rows[0]["namespaces"].as_array().unwrap().contains(&json!(path)), "{rows:#}");
    assert_eq!(
        run(&home, &["status", "-o", "json"]).json()["node"]["exempt_netns"],
        json!([rows[0]["cookie"]])
    );

    // It outlives the agent.
    agent.stop().unwrap();
    assert_eq!(client.tcp(&nobody).unwrap_err().errno(), "TIMEOUT");
    let _agent = Agent::start(node, &home).unwrap();
    assert_eq!(client.tcp(&nobody).unwrap_err().errno(), "TIMEOUT");

    let host_path = node.netns.path();
    assert!(run(&home, &["netns", "exempt", host_path.to_str().unwrap()]).ok);
    let cookie = rows[0]["cookie"].to_string();
    assert!(run(&home, &["netns", "include", &cookie]).out.ends_with("is load-balanced again\n"));
    assert_eq!(client.tcp(&to).unwrap().server(), "db-1");
    assert_eq!(host.tcp(&nobody).unwrap_err().errno(), "TIMEOUT", "the other one is still left alone");
    assert!(run(&home, &["netns", "include", host_path.to_str().unwrap()]).ok);
    assert_eq!(host.tcp(&to).unwrap().server(), "db-1");
    assert!(run(&home, &["netns", "include", &cookie]).out.ends_with("is not one that was left alone\n"));
    assert_eq!(run(&home, &["netns", "list", "-o", "json"]).json(), json!([]));
    run(&home, &["netns", "exempt", "/proc/self/ns/uts"]).failed("is not a network namespace");
}
