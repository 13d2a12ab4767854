//! `lb-agent run --config`, its environment, and what it says of both.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{fs, path::Path, process::Command, time::Duration};

use lb_tests::{Agent, Home, Topology, binary, needs_root, wait_for};
use serde_json::json;

/// For limits of things that are expected to happen.
const SOON: Duration = Duration::from_mins(1);

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

/// Output of `lb-agent run --print-config`, and whether it was a success.
fn print(args: &[&str], variables: &[(&str, &str)]) -> (bool, String, String) {
    let mut command = Command::new(binary("lb-agent").unwrap());
    command.args(["run", "--print-config"]).args(args).env_clear().envs(variables.iter().copied());
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

fn line(text: &str, flag: &str) -> String {
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    let found = lines.into_iter().find(|line| line.starts_with(&format!("# --{flag}=")));
    found.unwrap_or_else(|| panic!("no --{flag} in {text}"))
}

fn write(home: &Home, text: &str) -> String {
    let path = home.manifests().with_file_name("config.conf");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    needs_root!();
    let home = Home::new("config-order").unwrap();
    let path =
        write(&home, &format!("{HEAD}clusterCIDR: 10.1.0.0/16\noomScoreAdj: 1\nhostnameOverride: file\n"));
    let variables = [("LB_CONFIG", path.as_str()), ("LB_OOM_SCORE_ADJ", "2"), ("NODE_NAME", "environment")];
    let (ok, out, err) = print(&["--node-name", "flag"], &variables);
    assert!(ok, "{err}");
    assert_eq!(line(&out, "cluster-cidr"), "# --cluster-cidr=10.1.0.0/16 file");
    assert_eq!(line(&out, "oom-score-adj"), "# --oom-score-adj=2 environment");
    assert_eq!(line(&out, "node-name"), "# --node-name=flag flag");
    assert_eq!(line(&out, "nodeport-addresses"), "# --nodeport-addresses=all file");

    let again = write(&home, &out);
    let (ok, out, err) = print(&["--config", &again], &[]);
    assert!(ok, "{err}");
    assert_eq!(line(&out, "node-name"), "# --node-name=flag file");
    assert_eq!(line(&out, "oom-score-adj"), "# --oom-score-adj=2 file");
}

/// What a template leaves empty is not given; where empty is a value, it counts.
#[test]
fn an_empty_variable_is_as_good_as_none() {
    let names = [
        "LB_CONFIG",
        "LB_KUBECONFIG",
        "LB_MANIFESTS",
        "LB_API_SERVER",
        "LB_CGROUP",
        "LB_PIN_DIR",
        "LB_SOCKET",
        "LB_LOG_LEVEL",
        "LB_LOG_FORMAT",
        "LB_BIND_HARD_FAIL",
        "LB_RESYNC_INTERVAL",
        "LB_NODEPORT_ADDRESSES",
        "LB_SOCKET_LB",
        "LB_REFUSE_BY",
        "LB_OOM_SCORE_ADJ",
        "LB_HEALTHZ_ADDRESS",
        "NODE_NAME",
        "RUST_LOG",
    ];
    let empty: Vec<(&str, &str)> = names.map(|name| (name, "")).into();
    let (ok, out, err) = print(&[], &empty);
    assert!(ok, "{err}");
    let (_, plain, _) = print(&["--healthz-address="], &[]);
    let values = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.starts_with("#   --"));
        lines.filter_map(|line| line.split_whitespace().nth(1).map(str::to_owned)).collect()
    };
    assert_eq!(values(&out), values(&plain));
    assert_eq!(line(&out, "healthz-address"), "# --healthz-address= environment");
    // What several commands share, too.
    let mut list = Command::new(binary("lb-agent").unwrap());
    let output = list.args(["netns", "list"]).env_clear().env("LB_PIN_DIR", "").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains("a value is required"), "{said}");
    // A folder and an empty name of a file do not contradict each other.
    let (ok, _, err) = print(&["--manifests", "/m"], &[("LB_KUBECONFIG", ""), ("LB_API_SERVER", "")]);
    assert!(ok, "{err}");
}

/// 3.1: flag, variable, RUST_LOG, file, default.
#[test]
fn what_is_logged_is_said_by_flag_variable_rust_log_and_file() {
    needs_root!();
    let home = Home::new("config-level").unwrap();
    let file = write(&home, &format!("{HEAD}logging:\n  verbosity: 4\n"));
    let variables = [("LB_CONFIG", file.as_str()), ("RUST_LOG", "error"), ("LB_LOG_LEVEL", "warn")];
    let shown = |args: &[&str], variables: &[(&str, &str)]| {
        let (ok, out, err) = print(args, variables);
        assert!(ok, "{err}");
        line(&out, "log-level").trim_start_matches("# --log-level=").to_owned()
    };
    assert_eq!(shown(&["--log-level", "trace"], &variables), "trace flag");
    assert_eq!(shown(&[], &variables), "warn environment");
    assert_eq!(shown(&[], &variables[..2]), "error environment");
    assert_eq!(shown(&[], &variables[..1]), "debug,kube_client=off,kube_runtime=off file");
    assert_eq!(shown(&[], &[]), "info,kube_client=off,kube_runtime=off default");
    let (ok, _, err) = print(&["--log-level", "loud"], &[]);
    assert!(!ok && err.contains("\"loud\" is no level: expected error, warn, info"), "{err}");
}

/// 3.1. In tests RUST_LOG asks for more.
#[test]
fn the_log_has_what_the_flag_asks_for_and_no_more() {
    needs_root!();
    let (net, home) = (Topology::single().unwrap(), Home::new("config-log").unwrap());
    let agent = Agent::start_with(net.node(1), &home, ["--log-level", "lb_agent=info"]).unwrap();
    let log = home.log();
    assert!(log.contains(" INFO lb_agent::") && !log.contains("DEBUG"), "{log}");
    agent.stop().unwrap();
}

#[test]
fn a_file_that_cannot_be_used_is_one_error_and_nothing_starts() {
    needs_root!();
    let (net, home) = (Topology::single().unwrap(), Home::new("config-bad").unwrap());
    for (text, wanted) in [
        (
            format!("{HEAD}iptables:\n  syncPeriod: 30\n"),
            "config.conf:4:15: iptables.syncPeriod: expected a duration",
        ),
        (format!("{HEAD}clusterCIDR: nonsense\n"), "config.conf:3:14: clusterCIDR: invalid value 'nonsense'"),
        (
            HEAD.replace("v1alpha1", "v1alpha2"),
            "config.conf:1:13: apiVersion: kubeproxy.config.k8s.io/v1alpha2 is not",
        ),
    ] {
        let path = write(&home, &text);
        let (succeeded, log) = Agent::run_to_end(net.node(1), &home, &["--config", &path]).unwrap();
        assert!(!succeeded && log.contains(wanted) && log.lines().count() == 1, "{log}");
        assert!(!home.pin_dir().exists());
    }
}

#[test]
fn what_is_not_used_is_warned_of_once_and_a_changed_file_too() {
    needs_root!();
    let (net, home) = (Topology::single().unwrap(), Home::new("config-run").unwrap());
    let text = format!(
        "{HEAD}clientConnection:\n  kubeconfig: /nowhere/kubeconfig.conf\n  burst: 10\nclusterCIDR: 10.244.0.0/16\n\
         conntrack:\n  min: 131072\nhealthzBindAddress: \"\"\nmode: iptables\nspelling: wrong\n"
    );
    let path = write(&home, &text);
    let agent =
        Agent::start_with(net.node(1), &home, ["--config", &path, "--service-cidr", "10.0.0.0/16"]).unwrap();
    let log = home.log();
    for field in ["clientConnection.burst", "conntrack.min", "spelling"] {
        let named = log.lines().filter(|line| line.contains("is not used") && line.contains(field));
        assert_eq!(named.count(), 1, "{field}: {log}");
    }
    assert_eq!(log.matches("a field of --config is not used").count(), 3, "{log}");
    let status = home.status().unwrap()["agent"].clone();
    assert_eq!(status["packets"], "pods have addresses in 10.244.0.0/16");
    assert_eq!(status["service_cidrs"], json!(["10.0.0.0/16"]));

    fs::write(&path, text.replace("131072", "0")).unwrap();
    wait_for("a word about the change", SOON, || {
        let log = home.log();
        if log.contains("--config has changed, restart lb-agent to use it") { Ok(()) } else { Err(log) }
    })
    .unwrap();
    agent.stop().unwrap();
}

#[test]
fn the_agent_is_the_last_to_go_when_memory_ends() {
    needs_root!();
    let (net, home) = (Topology::single().unwrap(), Home::new("config-oom").unwrap());
    let start = |wanted: &str| {
        let agent = Agent::start_with(net.node(1), &home, ["--oom-score-adj", wanted]).unwrap();
        let path = format!("/proc/{}/oom_score_adj", agent.id());
        let score = fs::read_to_string(Path::new(&path)).unwrap();
        agent.stop().unwrap();
        score.trim().to_owned()
    };
    // Raising it needs no right.
    assert_eq!(start("1000"), "1000");
    assert!(!home.log().contains("cannot set how likely"), "{}", home.log());
    // Where the test machine does not allow it, it is said.
    let score = start("-999");
    let warnings = home.log().matches("cannot set how likely this process is killed").count();
    assert_eq!(warnings, usize::from(score != "-999"), "{score}: {}", home.log());
}
