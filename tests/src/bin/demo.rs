//! The main job on one machine: two nodes, a Web and a Database Service, what happens to them, and what was seen.
//!
//! `cargo xtask demo` builds everything and runs this. Everything is made in network namespaces, a child cgroup per node
//! and a bpffs per node, and is removed at the end, however it comes:
//!
//! ```text
//! demo: waits, for the end of the other one or for a signal, and removes what is left
//!  └─ demo, of its own process group: makes everything, plays, removes everything
//! ```

use std::{
    env,
    net::{IpAddr, Ipv4Addr},
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_agent::datapath::PROGRAMS;
use lb_tests::{
    Agent, Home, Node, Pod, Probe, Process, Topology,
    agent::{at, pinned},
    demo::{Bpftool, Report, manifest},
    names, privilege, probe,
    probe::{Handle, Many, Serve, Tcp},
    wait_for,
};
use nix::sys::signal::{SigSet, Signal};

/// A change of a manifest reaches new connections within this time, or the step has failed.
const LIMIT: Duration = Duration::from_secs(20);
const WEB: &str = "10.0.0.100:80";
const DATABASE: &str = "10.0.1.100:3306";
const MOVED_DATABASE: &str = "10.0.1.100:3307";
/// Connections per look at the distribution.
const MANY: u64 = 300;
/// Connections that show that a load goes on.
const FEW: u64 = 50;
/// Between two connections of a load, so that ports do not run out.
const PAUSE: Duration = Duration::from_millis(1);
/// Tells the process that plays what it is.
const PLAYER: &str = "LB_DEMO_PLAYER";
/// Ctrl-C, `kill`, and a terminal that closes.
const STOP: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

fn main() -> ExitCode {
    if !privilege::is_root() {
        eprintln!(
            "demo: needs root, to make network namespaces and to load BPF programs: sudo cargo xtask demo"
        );
        return ExitCode::FAILURE;
    }
    let result = if env::var_os(PLAYER).is_some() { play() } else { watch_over_player() };
    result.unwrap_or_else(|error| {
        eprintln!("demo: {error:#}");
        ExitCode::FAILURE
    })
}

/// Lets another process play, and leaves nothing behind whatever becomes of it.
fn watch_over_player() -> Result<ExitCode> {
    let mut awaited: SigSet = STOP.into_iter().collect();
    awaited.add(Signal::SIGCHLD);
    awaited.thread_block().context("cannot block signals")?;
    let mut command = Command::new(env::current_exe().context("cannot find the running executable")?);
    // Ctrl-C goes to a whole process group, and would take away what the player is about to use.
    command.args(env::args_os().skip(1)).env(PLAYER, "").process_group(0);
    let mut player = Process::start("the demo", &mut command)?;
    let mut stopped = None;
    while stopped.is_none() && player.is_running() {
        stopped =
            Some(awaited.wait().context("cannot wait for a signal")?).filter(|signal| STOP.contains(signal));
    }
    let status = if stopped.is_some() { player.kill()? } else { player.wait(LIMIT)? };
    names::sweep();
    match stopped {
        Some(signal) => bail!("stopped by {signal}"),
        None if status.success() => Ok(ExitCode::SUCCESS),
        None => Ok(ExitCode::FAILURE),
    }
}

fn play() -> Result<ExitCode> {
    // Blocked by the process that watches over this one, and inherited.
    SigSet::all().thread_unblock().context("cannot unblock signals")?;
    let begin = Instant::now();
    let mut report = Report::default();
    let result = Scene::set(&mut report).and_then(|mut scene| scene.play(&mut report));
    print!("{}", report.table());
    result?;
    println!(
        "{} of {} steps as expected, {:.1} s",
        report.passed(),
        report.len(),
        begin.elapsed().as_secs_f32()
    );
    Ok(if report.all_passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A pod with its server.
struct Server {
    pod: Pod,
    probe: Probe,
}

impl Server {
    fn start(node: &Node, name: &str, addr: Ipv4Addr, port: u16) -> Result<Self> {
        let pod = node.add_pod(name, addr)?;
        let probe = pod.probe(name)?;
        probe.serve(&Serve::tcp(name, (IpAddr::from(addr), port).into()))?;
        Ok(Self { pod, probe })
    }

    fn addr(&self) -> IpAddr {
        self.pod.ipv4.into()
    }
}

/// Two nodes with their agents, and the pods on them. Fields are dropped in order: agents before their homes.
struct Scene {
    agents: [Option<Agent>; 2],
    web: Server,
    databases: Vec<Server>,
    homes: [Home; 2],
    topology: Topology,
}

impl Scene {
    fn set(report: &mut Report) -> Result<Self> {
        println!(
            "node 1: pod web 10.1.1.10, node 2: pod database-1 10.2.2.10; one lb-agent per node, fed from manifests"
        );
        let topology = Topology::pair()?;
        let web = Server::start(topology.node(1), "web", [10, 1, 1, 10].into(), 80)?;
        let database = Server::start(topology.node(2), "database-1", [10, 2, 2, 10].into(), 3306)?;
        let homes = [Home::new("demo1")?, Home::new("demo2")?];
        for home in &homes {
            home.write("web.yaml", &manifest("web", "10.0.0.100", 80, 80, &[web.addr()]))?;
            home.write("database.yaml", &manifest("database", "10.0.1.100", 3306, 3306, &[database.addr()]))?;
        }
        println!("{}", manifest("database", "10.0.1.100", 3306, 3306, &[database.addr()]));
        let agents = [Agent::start(topology.node(1), &homes[0])?, Agent::start(topology.node(2), &homes[1])?];
        let attached = homes.iter().map(attached_programs).collect::<Result<Vec<_>>>()?;
        report.step(
            "both agents load, fill and attach",
            &format!("{0} programs on node 1, {0} on node 2", PROGRAMS.len()),
            format!("{} programs on node 1, {} on node 2", attached[0], attached[1]),
        );
        Ok(Self { agents: agents.map(Some), web, databases: vec![database], homes, topology })
    }

    fn play(&mut self, report: &mut Report) -> Result<()> {
        self.reach(report);
        self.scale_up(report)?;
        self.lose_a_pod(report)?;
        self.restore_the_pod(report)?;
        self.move_the_port(report)?;
        self.stop_an_agent(report)?;
        self.inspect(report)
    }

    /// Gives both nodes the same Database manifest.
    fn database(&self, port: u16, endpoints: &[&Server]) -> Result<()> {
        let addrs: Vec<IpAddr> = endpoints.iter().map(|server| server.addr()).collect();
        let text = manifest("database", "10.0.1.100", port, 3306, &addrs);
        self.homes.iter().try_for_each(|home| home.write("database.yaml", &text))
    }

    fn reach(&self, report: &mut Report) {
        for (who, from, to, server) in [
            ("web reaches the Database by its Service address", &self.web, DATABASE, "database-1"),
            ("the Database reaches Web by its Service address", &self.databases[0], WEB, "web"),
        ] {
            let reached = from.probe.tcp(&Tcp::to(at(to)));
            let seen = reached.map_or_else(
                |error| error.to_string(),
                |reached| {
                    let peer = reached.peer.map_or_else(|| "none".to_owned(), |peer| peer.to_string());
                    format!("answer from {}, peer {peer}", reached.server())
                },
            );
            report.step(who, &format!("answer from {server}, peer {to}"), seen);
        }
    }

    fn scale_up(&mut self, report: &mut Report) -> Result<()> {
        for number in 2..=3_u8 {
            let name = format!("database-{number}");
            self.databases.push(Server::start(
                self.topology.node(2),
                &name,
                [10, 2, 2, 9 + number].into(),
                3306,
            )?);
        }
        self.database(3306, &self.databases.iter().collect::<Vec<_>>())?;
        self.until("all three pods answer", |tally| tally.answered.len() == 3)?;
        let tally = many(&self.web.probe, DATABASE)?;
        let least = (1..=3).map(|number| tally.from(&format!("database-{number}"))).min().unwrap_or(0);
        report.claim(
            "the Database scales to three pods and load spreads",
            &format!("3 pods, each with at least {} of {MANY} connections, 0 failed", MANY / 6),
            spread(&tally),
            tally.answered.len() == 3 && least >= MANY / 6 && tally.failures() == 0,
        );
        Ok(())
    }

    fn lose_a_pod(&mut self, report: &mut Report) -> Result<()> {
        let lost = self.databases.remove(0);
        lost.probe.kill().context("cannot kill the server of database-1")?;
        let failing = many(&self.web.probe, DATABASE)?;
        report.claim(
            "database-1 fails; until its endpoint is removed, its share of connections fails",
            "some connections refused",
            spread(&failing),
            failing.failures() > 0,
        );
        self.database(3306, &self.databases.iter().collect::<Vec<_>>())?;
        let after = self.until("database-1 to leave the rotation", |tally| tally.failures() == 0)?;
        let again = many(&self.web.probe, DATABASE)?;
        report.claim(
            "its endpoint is removed: no connection fails any more",
            "2 pods, 0 failed",
            spread(&again),
            after.failures() == 0 && again.failures() == 0 && again.answered.len() == 2,
        );
        Ok(())
    }

    /// A new pod takes the old one's address, as after a restart of its node.
    fn restore_the_pod(&mut self, report: &mut Report) -> Result<()> {
        self.databases
            .insert(0, Server::start(self.topology.node(2), "database-4", [10, 2, 2, 10].into(), 3306)?);
        self.database(3306, &self.databases.iter().collect::<Vec<_>>())?;
        self.until("database-4 to answer", |tally| tally.from("database-4") > 0)?;
        let tally = many(&self.web.probe, DATABASE)?;
        report.claim(
            "a new pod joins at the lost pod's address",
            "3 pods with database-4, 0 failed",
            spread(&tally),
            tally.answered.len() == 3 && tally.failures() == 0,
        );
        Ok(())
    }

    fn move_the_port(&self, report: &mut Report) -> Result<()> {
        self.database(3307, &self.databases.iter().collect::<Vec<_>>())?;
        let moved = Tcp::to(at(MOVED_DATABASE)).timeout(Duration::from_millis(500));
        let reached = wait_for("the new port to answer", LIMIT, || {
            self.web.probe.tcp(&moved).map_err(|error| error.to_string())
        })?;
        let old = self.web.probe.tcp(&Tcp::to(at(DATABASE)).timeout(Duration::from_millis(300)));
        let seen = format!(
            "3307: answer from {}, 3306: {}",
            if reached.server().starts_with("database-") { "a database pod" } else { "somebody else" },
            if old.is_ok() { "still answers" } else { "no answer" }
        );
        report.step(
            "the Service's port changes from 3306 to 3307",
            "3307: answer from a database pod, 3306: no answer",
            seen,
        );
        self.database(3306, &self.databases.iter().collect::<Vec<_>>())?;
        // Each agent reads the manifest for itself.
        for client in [&self.web.probe, &self.databases[0].probe] {
            wait_for("the old port to come back", LIMIT, || {
                let back = Tcp::to(at(DATABASE)).timeout(Duration::from_millis(300));
                client.tcp(&back).map_err(|error| error.to_string())
            })?;
        }
        Ok(())
    }

    fn stop_an_agent(&mut self, report: &mut Report) -> Result<()> {
        let client = &self.databases[0].probe;
        let load = client.begin(&Many::until_finished(Tcp::to(at(WEB))).pause(PAUSE))?;
        goes_on(client, load)?;
        let agent = self.agents[1].take().context("the agent of node 2 runs")?;
        agent.stop()?;
        goes_on(client, load)?;
        let tally = client.finish(load)?;
        report.claim(
            "node 2's agent stops while its pods keep connecting to Web",
            "0 failed",
            spread(&tally),
            tally.failures() == 0,
        );
        let (web, database) = (many(client, WEB)?, many(client, DATABASE)?);
        report.claim(
            "without its agent, node 2 still reaches Web and the Database",
            &format!("web {MANY}, 0 failed; 3 pods, 0 failed"),
            format!("{}; {}", spread(&web), spread(&database)),
            web.from("web") == MANY && database.answered.len() == 3 && database.failures() == 0,
        );
        Ok(())
    }

    fn inspect(&self, report: &mut Report) -> Result<()> {
        let bpftool = Bpftool::new(pinned(&self.homes[0], ""));
        println!("\nwith bpftool alone, from {DATABASE} to its pods:");
        let found = bpftool.follow(at(DATABASE))?;
        let mut wanted: Vec<String> =
            self.databases.iter().map(|server| format!("{}:3306", server.addr())).collect();
        wanted.sort_unstable();
        report.step("bpftool finds the pods behind the Service address", &wanted.join(" "), found.join(" "));
        ensure!(self.agents[0].is_some(), "the agent of node 1 runs to the end");
        Ok(())
    }

    /// Connects from the Web pod until what is seen satisfies `done`.
    fn until(&self, what: &str, done: impl Fn(&probe::Tally) -> bool) -> Result<probe::Tally> {
        wait_for(what, LIMIT, || {
            let tally = self
                .web
                .probe
                .run(&Many::times(MANY, Tcp::to(at(DATABASE)).timeout(Duration::from_millis(500))))
                .map_err(|error| error.to_string())?;
            if done(&tally) { Ok(tally) } else { Err(spread(&tally)) }
        })
    }
}

/// Waits until a load has had further answers.
fn goes_on(client: &Probe, load: Handle) -> Result<()> {
    let count = || client.tally(load).map(|tally| tally.successes()).map_err(|error| error.to_string());
    let before = client.tally(load)?.successes();
    wait_for("further answers", LIMIT, || match count()? {
        now if now > before + FEW => Ok(()),
        now => Err(format!("{now} after {before}")),
    })
}

/// New connections, one after the other.
fn many(client: &Probe, to: &str) -> Result<probe::Tally> {
    Ok(client.run(&Many::times(MANY, Tcp::to(at(to))))?)
}

/// Programs that `lb-agent status` shows as attached.
fn attached_programs(home: &Home) -> Result<usize> {
    let status = home.status()?;
    let programs = status["programs"].as_array().context("lb-agent status lists programs")?;
    Ok(programs.iter().filter(|program| program["attached"] == true).count())
}

/// Who answered how often, and what failed.
fn spread(tally: &probe::Tally) -> String {
    let mut parts: Vec<String> =
        tally.answered.iter().map(|(server, count)| format!("{server} {count}")).collect();
    parts.extend(tally.failed.iter().map(|(failure, count)| format!("{failure} {count}")));
    parts.push(format!("{} failed", tally.failures()));
    parts.join(", ")
}
