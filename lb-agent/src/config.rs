//! The command line and the environment: one definition that is parser, help and reference.

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc};

use clap::{Args, Parser, Subcommand, ValueEnum};
use lb_common::abi::SocketLb;

use crate::cli::Tool;

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
    Run(RunArgs),
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
    /// Where /healthz and /livez are answered over HTTP; nothing for nowhere.
    #[arg(long, env = "LB_HEALTHZ_ADDRESS", default_value = "0.0.0.0:10256", value_name = "ADDRESS:PORT")]
    pub healthz_address: String,
    /// Where /metrics is answered over HTTP; nothing for nowhere.
    #[arg(long, env = "LB_METRICS_ADDRESS", default_value = "127.0.0.1:10249", value_name = "ADDRESS:PORT")]
    pub metrics_address: String,
    /// Answer health checks of Services with spec.healthCheckNodePort; false leaves them to a kube-proxy on the same node.
    #[arg(long, env = "LB_HEALTH_CHECK_NODE_PORTS", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub health_check_node_ports: bool,
    /// End when one of these addresses cannot be listened on, instead of trying again.
    #[arg(long, env = "LB_BIND_HARD_FAIL", default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub bind_hard_fail: bool,
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
    /// The call goes to a loopback address where nobody listens: every kernel. Datagrams of unconnected sockets are lost
    /// without an error.
    Address,
}

/// `lb-agent run`
#[derive(Debug, Args)]
pub struct RunArgs {
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
    /// How sockets learn that a Service has no endpoints.
    #[arg(long, env = "LB_REFUSE_BY", value_enum, default_value_t = RefuseBy::Auto, value_name = "HOW")]
    pub refuse_by: RefuseBy,
    /// How to write log lines; what is written, RUST_LOG says.
    #[arg(long, env = "LB_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
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

    /// The sum of all choices.
    pub fn socket_lb(&self) -> SocketLb {
        self.socket_lb.iter().fold(SocketLb::NONE, |sum, choice| sum.with(choice.bits))
    }
}

/// One word of `--socket-lb`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketLbChoice {
    /// What it stands for.
    pub bits: SocketLb,
}

/// The words of `--socket-lb`.
const SOCKET_LB: [(&str, SocketLb); 8] = [
    ("all", SocketLb::ALL),
    ("none", SocketLb::NONE),
    ("tcp", SocketLb::TCP_HOST.with(SocketLb::TCP_PODS)),
    ("udp", SocketLb::UDP_HOST.with(SocketLb::UDP_PODS)),
    ("tcp:host", SocketLb::TCP_HOST),
    ("tcp:pods", SocketLb::TCP_PODS),
    ("udp:host", SocketLb::UDP_HOST),
    ("udp:pods", SocketLb::UDP_PODS),
];

/// The words for single bits that stand for `choice`.
pub fn socket_lb_words(choice: SocketLb) -> Vec<&'static str> {
    let single = SOCKET_LB.iter().filter(|(_, bits)| bits.bits.is_power_of_two());
    single.filter(|(_, bits)| choice.has(*bits)).map(|(word, _)| *word).collect()
}

/// A word that `--socket-lb` does not know.
#[derive(Debug)]
pub struct UnknownChoice;

impl fmt::Display for UnknownChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> = SOCKET_LB.iter().map(|(word, _)| *word).collect();
        write!(f, "expected one of {}", words.join(", "))
    }
}

impl core::error::Error for UnknownChoice {}

impl FromStr for SocketLbChoice {
    type Err = UnknownChoice;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        let found = SOCKET_LB.iter().find(|(known, _)| *known == word);
        found.map(|(_, bits)| Self { bits: *bits }).ok_or(UnknownChoice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(args: &[&str]) -> Result<RunArgs, clap::Error> {
        let args = ["lb-agent", "run"].iter().chain(args);
        Cli::try_parse_from(args).map(|cli| match cli.command {
            Command::Run(args) => args,
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

    /// As a variable is that a template left empty.
    #[test]
    fn an_empty_node_name_is_none() {
        let own = run(&[]).unwrap().node().unwrap();
        assert_eq!(run(&["--node-name", ""]).unwrap().node().unwrap(), own);
        assert_eq!(&*run(&["--node-name", "n1"]).unwrap().node().unwrap(), "n1");
    }

    #[test]
    fn manifests_and_an_api_server_exclude_each_other() {
        assert!(run(&["--manifests", "/m", "--api-server", "https://a"]).is_err());
    }
}
