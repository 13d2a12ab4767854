//! Tests of the file by itself, and of what it comes to with flags and defaults.

use std::fs;

use rstest::rstest;

use super::*;
use crate::config::{Command, ParseError, Parsed, RunArgs, parse};

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

/// Flags that a file gives, in its order.
fn given(text: &str) -> Vec<String> {
    let config = read(&format!("{HEAD}{text}")).unwrap_or_else(|fault| panic!("{fault}"));
    config.given.iter().map(|given| format!("{}={}", given.flag, given.text)).collect()
}

/// Fields of a file that are not used.
fn ignored(text: &str) -> Vec<String> {
    let config = read(&format!("{HEAD}{text}")).unwrap_or_else(|fault| panic!("{fault}"));
    config.ignored.iter().map(|ignored| format!("{}: {}", ignored.path, ignored.value)).collect()
}

/// Parses `lb-agent run --config FILE` with more arguments.
fn with_file(text: &str, args: &[&str]) -> Result<Parsed, ParseError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.conf");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap();
    parse(["lb-agent", "run", "--config", path].iter().chain(args).copied())
}

fn run(parsed: Parsed) -> RunArgs {
    match parsed.cli.command {
        Command::Run(args) => *args,
        Command::Tool(tool) => panic!("parsed as {tool:?}"),
    }
}

fn error(text: &str) -> String {
    match with_file(text, &[]) {
        Err(ParseError::Config(error)) => {
            let text = format!("{error:#}");
            text.split_once("config.conf").unwrap().1.to_owned()
        }
        other => panic!("{other:?}"),
    }
}

/// NP-3.
#[test]
fn what_kubeadm_writes_is_taken_over_and_what_it_leaves_open_is_said() {
    let config = read(include_str!("fixtures/kubeadm.yaml")).unwrap();
    assert_eq!(config.ignored, []);
    let args = run(with_file(include_str!("fixtures/kubeadm.yaml"), &[]).unwrap());
    assert_eq!(args.kubeconfig.unwrap().to_str(), Some("/var/lib/kube-proxy/kubeconfig.conf"));
    assert_eq!(args.packets.cluster_cidr.to_string(), "10.244.0.0/16");
    assert_eq!(args.addresses.nodeport_addresses.to_string(), "all", "its mode is empty");
    let said = |args: &[&str]| {
        let parsed = with_file(include_str!("fixtures/kubeadm.yaml"), args).unwrap();
        assert_eq!(
            parsed.effective().contains("# --config says neither mode"),
            parsed.assumption().is_some()
        );
        parsed.assumption()
    };
    assert!(said(&[]).unwrap().contains("nodePortAddresses: [primary]"));
    assert_eq!(said(&["--nodeport-addresses", "all"]), None, "whoever says it knows it");
    assert_eq!(with_file(&format!("{HEAD}mode: iptables\n"), &[]).unwrap().assumption(), None);
    assert_eq!(args.observe.healthz_address, "0.0.0.0:10256");
    assert_eq!(args.sync.min_sync_interval.to_string(), "100ms");
    assert!(args.addresses.node_ip.is_empty(), "0.0.0.0 is no address of the node");
}

#[test]
fn what_k3s_says_is_taken_over_and_what_means_nothing_here_is_named() {
    let parsed = with_file(include_str!("fixtures/k3s.yaml"), &[]).unwrap();
    let named: Vec<&str> = parsed.ignored.iter().map(|ignored| ignored.path.as_str()).collect();
    assert_eq!(
        named,
        [
            "clientConnection.burst",
            "clientConnection.contentType",
            "clientConnection.qps",
            "configSyncPeriod",
            "conntrack.min",
            "iptables.masqueradeBit",
            "ipvs.syncPeriod",
            "logging.flushFrequency",
            "nftables.masqueradeBit",
            "nftables.minSyncPeriod",
            "nftables.syncPeriod",
        ]
    );
    let args = run(parsed);
    assert_eq!(&*args.node().unwrap(), "k3s-server-1");
    assert_eq!(args.observe.healthz_address, "127.0.0.1:10256");
    assert_eq!(args.sync.min_sync_interval.to_string(), "1s");
    assert_eq!(args.addresses.nodeport_addresses.to_string(), "all", "mode iptables");
}

/// NP-3.
#[rstest]
#[case::unset("", "all")]
#[case::empty("mode: ''\n", "all")]
#[case::nftables("mode: nftables\n", "primary")]
#[case::iptables("mode: iptables\n", "all")]
#[case::ipvs("mode: ipvs\n", "all")]
#[case::an_empty_list_is_none("mode: iptables\nnodePortAddresses: []\n", "all")]
#[case::a_list_wins("mode: iptables\nnodePortAddresses: [10.0.0.0/8, 'fd00::/8']\n", "10.0.0.0/8,fd00::/8")]
#[case::a_word("nodePortAddresses: [primary, localhost]\n", "primary,localhost")]
fn the_mode_chooses_where_node_ports_are_served(#[case] text: &str, #[case] wanted: &str) {
    let args = run(with_file(&format!("{HEAD}{text}"), &[]).unwrap());
    assert_eq!(args.addresses.nodeport_addresses.to_string(), wanted);
}

/// NP-5.
#[rstest]
#[case::absent("mode: iptables\n", true)]
#[case::null("mode: iptables\niptables: {localhostNodePorts: null}\n", true)]
#[case::switched_off("mode: iptables\niptables: {localhostNodePorts: false}\n", false)]
#[case::of_another_mode("mode: nftables\niptables: {localhostNodePorts: false}\n", true)]
fn node_ports_on_loopback_can_be_switched_off(#[case] text: &str, #[case] wanted: bool) {
    let args = run(with_file(&format!("{HEAD}{text}"), &[]).unwrap());
    assert_eq!(args.addresses.localhost_nodeports, wanted);
}

/// 3.1: kube-proxy's numbers are levels here, and the file says less than flag, variable and RUST_LOG.
#[rstest]
#[case(0, "info,kube_client=off,kube_runtime=off")]
#[case(2, "info,kube_client=off,kube_runtime=off")]
#[case(4, "debug,kube_client=off,kube_runtime=off")]
#[case(9, "trace,kube_client=off,kube_runtime=off")]
fn the_verbosity_chooses_what_is_logged(#[case] verbosity: u32, #[case] wanted: &str) {
    let text = format!("{HEAD}logging: {{verbosity: {verbosity}}}\n");
    assert_eq!(run(with_file(&text, &[]).unwrap()).log_level.to_string(), wanted);
    let flag = run(with_file(&text, &["--log-level", "warn"]).unwrap());
    assert_eq!(flag.log_level.to_string(), "warn");
    let shown = with_file(HEAD, &["--log-level", "warn"]).unwrap().effective();
    assert!(
        shown.contains("# logging.verbosity: no number means this: give --log-level beside it"),
        "{shown}"
    );
    assert_eq!(ignored("logging: {verbosity: -1}\n"), ["logging.verbosity: -1"]);
}

/// SY-2, SY-4: the periods are those of the mode; informers that are read again there are none.
#[test]
fn every_mode_has_its_section() {
    let text = "iptables: {syncPeriod: 1m, minSyncPeriod: 2s, masqueradeAll: true}\nipvs: {syncPeriod: 3m}\n\
                nftables: {syncPeriod: 2m, minSyncPeriod: 3s}\nconfigSyncPeriod: 15m\n";
    let of = |mode: &str| given(&format!("{text}mode: {mode}\n"));
    let iptables = ["resync-interval=1m", "min-sync-interval=2s", "masquerade-all=true"];
    assert_eq!(of("''")[..3], iptables);
    assert_eq!(of("iptables")[..3], iptables);
    assert_eq!(of("nftables"), ["resync-interval=2m", "min-sync-interval=3s"]);
    assert_eq!(of("ipvs")[..2], ["masquerade-all=true", "resync-interval=3m"]);
    assert!(ignored(text).contains(&"configSyncPeriod: \"15m\"".to_owned()));
}

#[test]
fn addresses_without_a_port_get_the_usual_one() {
    let text = "healthzBindAddress: 10.0.0.1\nmetricsBindAddress: '::1'\nbindAddress: 10.0.0.1\n";
    assert_eq!(
        given(text),
        [
            "healthz-address=10.0.0.1:10256",
            "metrics-address=[::1]:10249",
            "node-ip=10.0.0.1",
            "nodeport-addresses=all"
        ]
    );
    assert_eq!(given("bindAddress: '::'\n"), ["nodeport-addresses=all"]);
    assert_eq!(ignored("bindAddress: 127.0.0.1\n"), ["bindAddress: \"127.0.0.1\""]);
}

#[test]
fn what_is_not_used_is_named_with_its_value() {
    let text = "featureGates: {A: true}\nipTables: {}\nconntrack: {min: 5, tcpBeLiberal: true, max: 3}\n";
    assert_eq!(
        ignored(text),
        ["featureGates: {A: true}", "ipTables: {}", "conntrack.min: 5", "conntrack.max: 3"]
    );
}

#[test]
fn what_connection_tracking_is_told_is_taken_over() {
    let text = "conntrack: {tcpCloseWaitTimeout: 2h, tcpEstablishedTimeout: 0s, tcpBeLiberal: true}\n";
    let args = run(with_file(&format!("{HEAD}{text}"), &[]).unwrap());
    assert_eq!(
        args.conntrack.sysctls(),
        [("nf_conntrack_tcp_timeout_close_wait", 7200), ("nf_conntrack_tcp_be_liberal", 1)]
    );
}

#[rstest]
#[case::no_yaml("kind: [\n", ":1:7: unclosed bracket")]
#[case::no_object("- a\n", ":1:1: expected KubeProxyConfiguration")]
#[case::empty("", ":1:1: ")]
#[case::two_documents("kind: KubeProxyConfiguration\n---\nkind: KubeProxyConfiguration\n", ":3:")]
#[case::no_kind("apiVersion: kubeproxy.config.k8s.io/v1alpha1\n", ": kind: it is missing")]
#[case::the_next_version(
    "apiVersion: kubeproxy.config.k8s.io/v1alpha2\nkind: KubeProxyConfiguration\n",
    ":1:13: apiVersion: kubeproxy.config.k8s.io/v1alpha2 is not read here"
)]
#[case::another_kind(
    "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\n",
    ":1:7: kind: KubeletConfiguration is not read here"
)]
fn what_is_no_configuration_is_refused_by_name(#[case] text: &str, #[case] wanted: &str) {
    let error = error(text);
    assert!(error.contains(wanted), "{error}");
}

#[rstest]
#[case::number_for_a_text("clusterCIDR: 10\n", ":3:14: clusterCIDR: expected a text, found the number 10")]
#[case::text_for_a_number(
    "oomScoreAdj: low\n",
    ":3:14: oomScoreAdj: expected a whole number, found the text \"low\""
)]
#[case::fraction("oomScoreAdj: 1.5\n", ":3:14: oomScoreAdj: expected a whole number, found the number 1.5")]
#[case::text_for_a_list("nodePortAddresses: primary\n", ":3:20: nodePortAddresses: expected a list of texts")]
#[case::number_in_a_list("nodePortAddresses:\n- 10\n", ":4:3: nodePortAddresses: expected a text")]
#[case::number_for_a_duration(
    "iptables:\n  syncPeriod: 30\n",
    ":4:15: iptables.syncPeriod: expected a duration"
)]
#[case::no_duration("ipvs: {udpTimeout: soon}\n", ":3:20: ipvs.udpTimeout: expected a duration")]
#[case::no_section("iptables: yes please\n", ":3:11: iptables: expected a map")]
#[case::a_mode_of_windows("mode: kernelspace\n", ":3:7: mode: \"kernelspace\" is not known")]
#[case::what_the_flag_refuses(
    "clusterCIDR: 10.0.0.0/8,11.0.0.0/8\n",
    ":3:14: clusterCIDR: invalid value '10.0.0.0/8,11.0.0.0/8' for '--cluster-cidr"
)]
#[case::a_mode_that_is_none("detectLocalMode: Guess\n", ":3:18: detectLocalMode: invalid value 'Guess'")]
#[case::mixed("nodePortAddresses: [primary, 10.0.0.0/8]\n", ":3:20: nodePortAddresses: invalid value")]
#[case::twice("clusterCIDR: 10.0.0.0/8\nclusterCIDR: 10.0.0.0/8\n", ":4:1: ")]
#[case::contradiction(
    "iptables: {minSyncPeriod: 1m}\n",
    ": --min-sync-interval 1m0s is longer than --resync-interval 30s"
)]
fn a_wrong_value_is_one_error_with_its_place(#[case] text: &str, #[case] wanted: &str) {
    let error = error(&format!("{HEAD}{text}"));
    assert!(error.starts_with(wanted), "{error}");
}

#[test]
fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
    let text = format!("{HEAD}clusterCIDR: 10.42.0.0/16\noomScoreAdj: 0\nhostnameOverride: n7\n");
    let parsed = with_file(&text, &["--oom-score-adj", "-5"]).unwrap();
    let shown = parsed.effective();
    let line = |flag: &str| {
        let lines = shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        lines.into_iter().find(|line| line.starts_with(&format!("# --{flag}="))).unwrap()
    };
    assert_eq!(line("oom-score-adj"), "# --oom-score-adj=-5 flag");
    assert_eq!(line("cluster-cidr"), "# --cluster-cidr=10.42.0.0/16 file");
    assert_eq!(line("resync-interval"), "# --resync-interval=30s default");
    let args = run(parsed);
    assert_eq!((args.oom_score_adj, &*args.node().unwrap()), (-5, "n7"));
}

#[test]
fn what_is_printed_can_be_given_to_config_again() {
    let text = format!(
        "{HEAD}clusterCIDR: 10.42.0.0/16,fd00:42::/56\nmode: ipvs\nipvs: {{syncPeriod: 1m}}\nlogging: {{verbosity: 4}}\n"
    );
    let args = ["--nodeport-addresses", "10.0.0.0/8,localhost", "--node-ip", "10.0.0.7", "--masquerade-all"];
    let parsed = with_file(&text, &args).unwrap();
    let again = with_file(&parsed.effective(), &[]).unwrap();
    assert_eq!(again.ignored, []);
    let values = |parsed: &Parsed| {
        let values = parsed.values().into_iter();
        values.map(|(flag, value, _)| (flag, value)).collect::<Vec<_>>()
    };
    assert_eq!(values(&again), values(&parsed));
}

/// HZ-10.
#[test]
fn what_is_in_force_is_shown_as_kube_proxy_shows_it() {
    let text =
        format!("{HEAD}clusterCIDR: 10.42.0.0/16\niptables: {{syncPeriod: 1m, masqueradeAll: true}}\n");
    let shown = with_file(&text, &["--socket-lb", "tcp", "--oom-score-adj", "-5"]).unwrap().configz();
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let config = &shown["kubeproxy.config.k8s.io"];
    assert_eq!(config["kind"], "KubeProxyConfiguration");
    assert_eq!(config["clusterCIDR"], "10.42.0.0/16");
    assert_eq!(config["oomScoreAdj"], -5);
    assert_eq!(
        config["iptables"],
        serde_json::json!({
            "masqueradeAll": true, "localhostNodePorts": true, "syncPeriod": "1m", "minSyncPeriod": "100ms",
        })
    );
    assert_eq!(config["nodePortAddresses"], serde_json::json!(["all"]));
    assert_eq!(shown["lb-agent"]["socket-lb"], "tcp", "what has no field there");
}

/// An empty address is the default one in the file, and none at all as a flag.
#[test]
fn what_the_file_cannot_say_is_said_beside_it() {
    let shown = with_file(HEAD, &["--healthz-address", ""]).unwrap().effective();
    let wanted = "# healthzBindAddress: a file cannot say \"nowhere\": give --healthz-address= beside it";
    assert!(shown.lines().any(|line| line == wanted), "{shown}");
    assert!(!shown.contains("\nhealthzBindAddress"), "{shown}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let result = parse(["lb-agent", "run", "--config", "/nowhere/config.conf"]);
    let Err(ParseError::Config(error)) = result else { panic!("{result:?}") };
    assert!(format!("{error:#}").starts_with("cannot read --config /nowhere/config.conf: "), "{error:#}");
}
