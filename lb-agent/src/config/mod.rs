//! The command line, the environment and kube-proxy's configuration file: one definition that is parser, help and
//! reference.
//!
//! ```text
//! file/         KubeProxyConfiguration -> values of flags     \
//!                                                              > parse.rs   flag > environment > file > default
//! mod.rs, ..    flags, their variables, defaults and help     /
//! effective.rs  what is in force, and where each value comes from
//! reference.rs  docs/configuration.md
//! ```

mod conntrack;
mod duration;
mod effective;
mod families;
pub mod file;
pub mod log_level;
mod node_ports;
mod packets;
mod parse;
#[cfg(test)]
mod reference;
mod socket_lb;

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use anyhow::bail;
use clap::{Args, Parser, Subcommand, ValueEnum};
use lb_common::abi::{SocketLb, maps};

use crate::{cli::Tool, model::Algorithm};

pub use conntrack::ConntrackArgs;
pub use duration::{GoDuration, NotADuration};
pub use families::{ListError, PerFamily, Ranges};
pub use log_level::LogFilter;
pub use node_ports::{NodePortAddresses, NodePortAddressesError, NodePortsOn};
pub use packets::{
    DetectLocal, DetectLocalMode, DeviceOptions, DevicePattern, Devices, InterfaceName, ModeNeeds,
    NotAnInterface, NotDevices, PacketArgs, PacketOptions, XdpOption,
};
pub use parse::{ParseError, Parsed, parse};
pub use socket_lb::{SocketLbChoice, UnknownChoice, socket_lb_words};

/// A Kubernetes service load balancer in eBPF.
#[derive(Debug, Parser)]
#[command(name = "lb-agent", version, about, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Keep this node's maps equal to the cluster's Services.
    Run(Box<RunArgs>),
    /// Look at what an agent has done, or undo it.
    #[command(flatten)]
    Tool(Tool),
}

/// Where pins live; every command needs it.
#[derive(Clone, Debug, Args)]
pub struct PinArgs {
    /// Folder on a bpffs for the pinned maps and links.
    #[arg(long, env = "LB_PIN_DIR", default_value = "/sys/fs/bpf/lb", value_name = "DIR")]
    pub pin_dir: PathBuf,
}

/// Where the agent answers questions.
#[derive(Clone, Debug, Args)]
pub struct SocketArgs {
    /// Unix socket on which the agent answers questions over HTTP.
    #[arg(long, env = "LB_SOCKET", default_value = "/run/lb-agent/agent.sock", value_name = "PATH")]
    pub socket: PathBuf,
}

/// Where the agent answers probes and scrapes.
#[derive(Clone, Debug, Args)]
pub struct ObserveArgs {
    /// Where /healthz, /livez and /readyz are answered over HTTP; nothing for nowhere.
    #[arg(long, env = "LB_HEALTHZ_ADDRESS", default_value = "0.0.0.0:10256", value_name = "ADDRESS:PORT")]
    pub healthz_address: String,
    /// Where /metrics is answered over HTTP; nothing for nowhere.
    #[arg(long, env = "LB_METRICS_ADDRESS", default_value = "127.0.0.1:10249", value_name = "ADDRESS:PORT")]
    pub metrics_address: String,
    /// Answer health checks of Services with spec.healthCheckNodePort; false leaves them to a kube-proxy on the same node.
    #[arg(
        long, env = "LB_HEALTH_CHECK_NODE_PORTS", default_value_t = true, action = clap::ArgAction::Set,
        num_args = 0..=1, default_missing_value = "true", value_name = "BOOL"
    )]
    pub health_check_node_ports: bool,
    /// End when one of these addresses cannot be listened on, instead of trying again.
    #[arg(
        long, env = "LB_BIND_HARD_FAIL", default_value_t = false, action = clap::ArgAction::Set,
        num_args = 0..=1, default_missing_value = "true", value_name = "BOOL"
    )]
    pub bind_hard_fail: bool,
}

/// On which addresses of this node something is served.
#[derive(Clone, Debug, Args)]
pub struct AddressArgs {
    /// Addresses of this node, at most one for each family, instead of those that its Node object names.
    #[arg(long, env = "LB_NODE_IP", default_value = "", hide_default_value = true, value_name = "IP[,IP]")]
    pub node_ip: PerFamily<IpAddr>,
    /// On which addresses of this node NodePorts are served: primary, all, or address ranges, and localhost beside
    /// them.
    ///
    /// primary is the first address of each family that the Node object names, InternalIP before ExternalIP. A family
    /// that ranges do not mention is served on all of its addresses.
    #[arg(long, env = "LB_NODEPORT_ADDRESSES", default_value = "primary", value_name = "WHICH")]
    pub nodeport_addresses: NodePortAddresses,
    /// Serve NodePorts on 127.0.0.1 and ::1 for processes of the host too, unless --nodeport-addresses has ranges
    /// without them. The word localhost there serves them in any case.
    #[arg(
        long, env = "LB_LOCALHOST_NODEPORTS", default_value_t = true, action = clap::ArgAction::Set,
        num_args = 0..=1, default_missing_value = "true", value_name = "BOOL"
    )]
    pub localhost_nodeports: bool,
}

/// Whether something is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum OnOff {
    /// It is.
    On,
    /// It is not.
    Off,
}

/// Which objects are served.
#[derive(Clone, Debug, Args)]
pub struct SelectArgs {
    /// Serve the Services whose label service.kubernetes.io/service-proxy-name has this value, instead of those without
    /// it.
    #[arg(
        long, env = "LB_SERVICE_PROXY_NAME", default_value = "", hide_default_value = true,
        value_parser = label_value, value_name = "NAME"
    )]
    pub service_proxy_name: String,
    /// Whether spec.externalIPs are served.
    ///
    /// Whoever may write a Service can take over any address with them (CVE-2020-8554). Where nobody needs them, switch
    /// them off.
    #[arg(long, env = "LB_EXTERNAL_IPS", value_enum, default_value_t = OnOff::On, value_name = "HOW")]
    pub external_ips: OnOff,
    /// Address ranges of cluster IPs, beside those of ServiceCIDR objects, which a folder of manifests does not give.
    #[arg(
        long,
        env = "LB_SERVICE_CIDR",
        default_value = "",
        hide_default_value = true,
        value_name = "CIDR[,CIDR..]"
    )]
    pub service_cidr: Ranges,
}

/// How much is remembered.
#[derive(Clone, Debug, Args)]
pub struct MapArgs {
    /// How many pairs of a client and a service port with session affinity are remembered at least; the least recently used one makes
    /// room. Each takes 128 bytes. A number below that of the pinned map takes effect after `lb-agent cleanup` or a reboot.
    #[arg(
        long, env = "LB_MAP_MAX_AFFINITY", default_value_t = maps::AFFINITY_ENTRIES,
        value_parser = clap::value_parser!(u32).range(1..=1 << 24), value_name = "ENTRIES"
    )]
    pub map_max_affinity: u32,
    /// How many flows of packets that have proved both directions are remembered at least, for each family that this node has: nothing
    /// that comes later evicts them. A quarter as many that have not proved both are remembered beside them. Maps that are in use
    /// keep their size: another number takes effect after `lb-agent cleanup` or a reboot. The default is the least that kube-proxy gives
    /// connection tracking (--conntrack-min).
    #[arg(
        long, env = "LB_MAP_MAX_FLOWS", default_value_t = 131_072,
        value_parser = clap::value_parser!(u32).range(2..=1 << 24), value_name = "FLOWS"
    )]
    pub map_max_flows: u32,
}

/// When something is written.
#[derive(Clone, Debug, Args)]
pub struct SyncArgs {
    /// Longest pause before a failed write is tried again, above zero; one shorter than a second counts as a second.
    /// /healthz fails when a change has waited for twice as long,
    /// 10 s at least, and --min-sync-interval more.
    #[arg(long, env = "LB_RESYNC_INTERVAL", default_value = "30s", value_name = "DURATION")]
    pub resync_interval: GoDuration,
    /// Shortest time between two passes over what has changed, --resync-interval at most. A change that comes alone is
    /// written at once.
    #[arg(long, env = "LB_MIN_SYNC_INTERVAL", default_value = "100ms", value_name = "DURATION")]
    pub min_sync_interval: GoDuration,
}

/// A value of a label (`k8s.io/apimachinery/pkg/util/validation`, `IsValidLabelValue`).
fn label_value(text: &str) -> Result<String, &'static str> {
    let is_end = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    let is_inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    if bytes.len() <= 63 && is_end(bytes.first()) && is_end(bytes.last()) && bytes.iter().all(is_inner) {
        Ok(text.to_owned())
    } else {
        Err(
            "expected the value of a label: at most 63 letters, digits, '-', '_' and '.', the first and the last one a \
             letter or digit",
        )
    }
}

/// How to write log lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// How connect() and sendto() to a Service without endpoints come to fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum RefuseBy {
    /// By the hook where the kernel can, else by an address.
    Auto,
    /// The hook itself returns ECONNREFUSED: kernel 5.18 or newer.
    Hook,
    /// The call goes to a loopback address where nobody listens: every kernel. Datagrams of unconnected sockets are
    /// lost without an error.
    Address,
}

/// `lb-agent run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Take values from this KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1), as kube-proxy does; flags and
    /// variables win. Read once: a change needs a restart.
    #[arg(long, env = "LB_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print what is in force and where each value comes from, and end. The text can be given to --config.
    #[arg(long)]
    pub print_config: bool,
    /// Take the objects from YAML and JSON files in this folder instead of an API server.
    #[arg(long, env = "LB_MANIFESTS", value_name = "DIR", conflicts_with_all = ["kubeconfig", "api_server"])]
    pub manifests: Option<PathBuf>,
    /// Kubeconfig file; without it the pod's service account, else $KUBECONFIG or ~/.kube/config.
    #[arg(long, env = "LB_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// API server to use instead of the configured one; several are tried in order.
    #[arg(long, env = "LB_API_SERVER", value_name = "URL", value_delimiter = ',')]
    pub api_server: Vec<String>,
    /// Name of this node's Node object; without it the host name.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Cgroup2 folder to attach to; without it the root of cgroup2.
    #[arg(long, env = "LB_CGROUP", value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// Which sockets are load-balanced: any of tcp, udp, tcp:host, tcp:pods, udp:host, udp:pods, all, none.
    #[arg(long, env = "LB_SOCKET_LB", default_value = "all", value_delimiter = ',', value_name = "WHICH")]
    pub socket_lb: Vec<SocketLbChoice>,
    /// How backends are chosen for Services without the annotation lb.io/algorithm: random, maglev, round-robin.
    ///
    /// maglev leads packets with the same ends to the same backend on every node, also after other endpoints have come or gone, but
    /// for few. It takes 32 KiB for each Service port and family, 512 KiB from 11 endpoints on, 2 MiB from 164 on. Sockets choose at
    /// random then. round-robin counts on each CPU for itself. Session affinity comes first.
    #[arg(long, env = "LB_ALGORITHM", default_value = "random", value_name = "WHICH")]
    pub algorithm: Algorithm,
    /// How sockets learn that a Service has no endpoints.
    #[arg(long, env = "LB_REFUSE_BY", value_enum, default_value_t = RefuseBy::Auto, value_name = "HOW")]
    pub refuse_by: RefuseBy,
    /// What is logged: error, warn, info, debug, trace or off, for targets as in lb_agent::k8s=debug, separated by commas.
    /// Without flag and variable RUST_LOG says it.
    #[arg(
        long, env = "LB_LOG_LEVEL", default_value = log_level::DEFAULT_FILTER, value_name = "LEVEL[,TARGET=LEVEL..]"
    )]
    pub log_level: LogFilter,
    /// How to write log lines.
    #[arg(long, env = "LB_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Likelihood of being killed when memory ends, -1000 to 1000 (proc_pid_oom_score_adj(5)).
    #[arg(
        long, env = "LB_OOM_SCORE_ADJ", default_value_t = -999, allow_negative_numbers = true,
        value_parser = clap::value_parser!(i16).range(-1000..=1000), value_name = "NUMBER"
    )]
    pub oom_score_adj: i16,
    /// Where something is served.
    #[command(flatten)]
    pub addresses: AddressArgs,
    /// What is served.
    #[command(flatten)]
    pub select: SelectArgs,
    /// When something is written.
    #[command(flatten)]
    pub sync: SyncArgs,
    /// How much is remembered.
    #[command(flatten)]
    pub maps: MapArgs,
    /// What only packets need.
    #[command(flatten)]
    pub packets: PacketArgs,
    /// What the kernel's own connection tracking is told.
    #[command(flatten)]
    pub conntrack: ConntrackArgs,
    /// Where the pins are.
    #[command(flatten)]
    pub pins: PinArgs,
    /// Where questions are answered.
    #[command(flatten)]
    pub socket: SocketArgs,
    /// Where probes and scrapes are answered.
    #[command(flatten)]
    pub observe: ObserveArgs,
}

impl RunArgs {
    /// The own Node's name.
    ///
    /// # Errors
    /// If no name was given and the host has none that is UTF-8.
    pub fn node(&self) -> anyhow::Result<Arc<str>> {
        if let Some(name) = self.node_name.as_ref().filter(|name| !name.is_empty()) {
            return Ok(name.as_str().into());
        }
        let name = nix::unistd::gethostname()?;
        // Kubelets register in lower case.
        let name = name.into_string().map_err(|name| {
            anyhow::anyhow!("the host name {} is not UTF-8: name the Node with --node-name", name.display())
        })?;
        Ok(name.to_lowercase().into())
    }

    /// Checks what no single flag shows.
    ///
    /// # Errors
    /// Names the flags, and the remedy.
    pub fn check(&self) -> anyhow::Result<()> {
        let SyncArgs { resync_interval, min_sync_interval } = &self.sync;
        if resync_interval.0.is_zero() {
            bail!(
                "--resync-interval {resync_interval} would try a failed write again without a pause: name a second or more"
            );
        }
        if min_sync_interval > resync_interval {
            bail!(
                "--min-sync-interval {min_sync_interval} is longer than --resync-interval {resync_interval}: \
                 a failed write would be tried again before it may be written; shorten the first or lengthen the second"
            );
        }
        self.packets.options()?;
        Ok(())
    }

    /// The sum of all choices.
    pub fn socket_lb(&self) -> SocketLb {
        self.socket_lb.iter().fold(SocketLb::NONE, |sum, choice| sum.with(choice.bits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(args: &[&str]) -> Result<RunArgs, clap::Error> {
        let args = ["lb-agent", "run"].iter().chain(args);
        Cli::try_parse_from(args).map(|cli| match cli.command {
            Command::Run(args) => *args,
            Command::Tool(tool) => panic!("parsed as {tool:?}"),
        })
    }

    #[test]
    fn socket_lb_is_the_sum_of_its_words() {
        assert_eq!(run(&[]).unwrap().socket_lb(), SocketLb::ALL);
        assert_eq!(run(&["--socket-lb", "tcp:host,udp"]).unwrap().socket_lb().bits, 1 + 4 + 8);
        assert_eq!(run(&["--socket-lb", "none"]).unwrap().socket_lb(), SocketLb::NONE);
        let error = run(&["--socket-lb", "sctp"]).unwrap_err().to_string();
        assert!(error.contains("tcp:host"), "the error lists the words: {error}");
    }

    /// 5.9-annotation.
    #[test]
    fn the_default_algorithm_is_a_word() {
        assert_eq!(run(&[]).unwrap().algorithm, Algorithm::Random);
        assert_eq!(run(&["--algorithm", "round-robin"]).unwrap().algorithm, Algorithm::RoundRobin);
        let error = run(&["--algorithm", "rr"]).unwrap_err().to_string();
        assert!(error.contains("expected one of random, maglev, round-robin"), "{error}");
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let check = |args: &[&str]| run(args).unwrap().check().map_err(|error| error.to_string());
        assert_eq!(check(&[]), Ok(()));
        let error = check(&["--min-sync-interval", "1m"]).unwrap_err();
        assert!(
            error.starts_with("--min-sync-interval 1m0s is longer than --resync-interval 30s"),
            "{error}"
        );
        let error = check(&["--resync-interval", "0", "--min-sync-interval", "0"]).unwrap_err();
        assert!(
            error.starts_with("--resync-interval 0s would try a failed write again without a pause"),
            "{error}"
        );
        for (mode, needed) in
            [("BridgeInterface", "--pod-bridge-interface"), ("InterfaceNamePrefix", "--pod-interface-prefix")]
        {
            let error = check(&["--detect-local-mode", mode]).unwrap_err();
            assert!(error.contains(needed), "{error}");
            assert_eq!(check(&["--detect-local-mode", mode, needed, "cali"]), Ok(()));
        }
    }

    #[test]
    fn values_that_cannot_be_meant_are_refused() {
        for args in [
            ["--oom-score-adj", "-1001"],
            ["--resync-interval", "30"],
            ["--log-level", "loud"],
            ["--service-proxy-name", "a,b"],
            ["--service-cidr", "10.96.0.0"],
            ["--cluster-cidr", "10.0.0.0/8,10.0.0.0/9"],
            ["--pod-interface-prefix", "a/b"],
            ["--node-ip", "::1"],
        ] {
            assert!(run(&args).is_err(), "{args:?}");
        }
    }

    /// 2.9-detector.
    #[test]
    fn options_of_the_packet_path_are_kept() {
        let options = |args: &[&str]| run(args).unwrap().packets.options().unwrap().to_string();
        assert_eq!(options(&[]), "nobody is known to be a pod");
        assert_eq!(
            options(&["--cluster-cidr", "10.42.0.0/16,fd00:42::/56", "--masquerade-all"]),
            "pods have addresses in 10.42.0.0/16,fd00:42::/56, everything is masqueraded"
        );
        assert_eq!(
            options(&["--drop-unallocated", "false"]),
            "nobody is known to be a pod, cluster IPs that no Service has are left alone"
        );
        for (mode, flag, said) in [
            ("NodeCIDR", None, "pods have addresses in the pod ranges of the own Node"),
            ("BridgeInterface", Some("--pod-bridge-interface"), "cbr0"),
            ("InterfaceNamePrefix", Some("--pod-interface-prefix"), "cbr0"),
        ] {
            let mut args = vec!["--detect-local-mode", mode];
            args.extend(flag.into_iter().flat_map(|flag| [flag, "cbr0"]));
            assert!(options(&args).contains(said), "{mode}: {}", options(&args));
        }
        assert_ne!(
            options(&["--detect-local-mode", "BridgeInterface", "--pod-bridge-interface", "cbr0"]),
            options(&["--detect-local-mode", "InterfaceNamePrefix", "--pod-interface-prefix", "cbr0"]),
        );
    }

    #[test]
    fn the_way_to_refuse_is_found_out_unless_it_is_named() {
        assert_eq!(run(&[]).unwrap().refuse_by, RefuseBy::Auto);
        assert_eq!(run(&["--refuse-by", "address"]).unwrap().refuse_by, RefuseBy::Address);
        assert!(run(&["--refuse-by", "icmp"]).is_err());
    }

    #[test]
    fn every_choice_is_shown_by_its_smallest_words() {
        assert_eq!(socket_lb_words(SocketLb::ALL), ["tcp:host", "tcp:pods", "udp:host", "udp:pods"]);
        assert_eq!(socket_lb_words(run(&["--socket-lb", "udp:pods"]).unwrap().socket_lb()), ["udp:pods"]);
        assert!(socket_lb_words(SocketLb::NONE).is_empty());
    }

    /// ND-5: the host's name in lower case; an empty one is as a variable that a template left empty.
    #[test]
    fn an_empty_node_name_is_none() {
        let own = run(&[]).unwrap().node().unwrap();
        let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
        assert_eq!(*own, *host.to_lowercase());
        assert_eq!(run(&["--node-name", ""]).unwrap().node().unwrap(), own);
        assert_eq!(&*run(&["--node-name", "n1"]).unwrap().node().unwrap(), "n1");
    }

    #[test]
    fn manifests_and_an_api_server_exclude_each_other() {
        assert!(run(&["--manifests", "/m", "--api-server", "https://a"]).is_err());
    }
}
