//! The commands beside `run`, as clap reads them.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Subcommand, ValueEnum};

use crate::config::{PinArgs, SocketArgs};

/// Commands that look at what an agent has done, or undo it.
#[derive(Debug, Subcommand)]
pub enum Tool {
    /// Show the agent, its programs, maps and counters.
    ///
    /// Works while the agent is down: what the kernel holds is read from the kernel.
    Status(LookArgs),
    /// Show Services as the maps hold them.
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Show backends as the maps hold them.
    #[command(subcommand)]
    Backend(BackendCommand),
    /// Leave the sockets of single network namespaces alone.
    #[command(subcommand)]
    Netns(NetnsCommand),
    /// Free connected UDP sockets that lead nowhere: refused by a Service that has endpoints now, or with a backend that is
    /// gone.
    ///
    /// The agent starts this by itself when it is due. Such a socket hears ECONNABORTED once, and can connect again. Looks into every network namespace that has a name or a process.
    HealSockets(HealArgs),
    /// Detach the programs and remove every map: undo what `run` has done to this node.
    ///
    /// Refuses while an agent is running. Connections that exist go on.
    Cleanup(CleanupArgs),
}

/// `lb-agent service`
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// One line per address that accepts traffic.
    List(LookArgs),
    /// One Service with its frontends and backends.
    Show(ShowArgs),
}

/// `lb-agent backend`
#[derive(Debug, Subcommand)]
pub enum BackendCommand {
    /// One line per backend of each service port.
    List(LookArgs),
}

/// `lb-agent netns`
#[derive(Debug, Subcommand)]
pub enum NetnsCommand {
    /// From now on leave the sockets of a namespace alone: Service addresses stay what they are.
    Exempt(ExemptArgs),
    /// From now on load-balance the sockets of a namespace again.
    Include(IncludeArgs),
    /// Show the namespaces that are left alone.
    List(NetnsListArgs),
}

/// How to print.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// `-o`
#[derive(Clone, Debug, Args)]
pub struct OutputArgs {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "HOW")]
    pub output: Output,
}

/// Where to look, and how to print.
#[derive(Clone, Debug, Args)]
pub struct LookArgs {
    /// Where the pins are.
    #[command(flatten)]
    pub pins: PinArgs,
    /// Where the agent answers.
    #[command(flatten)]
    pub socket: SocketArgs,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `lb-agent cleanup`
#[derive(Debug, Args)]
pub struct CleanupArgs {
    /// Remove what a kube-proxy has left in the kernel instead: its chains of iptables, tables of nftables, ip sets and interface, and
    /// nothing else. An agent may be running. Open connections go on, unless nothing else on this node translates addresses by nftables or
    /// iptables: the kernel stops then. The command warns of that before it removes anything, and lb-agent status does.
    #[arg(long)]
    pub kube_proxy: bool,
    /// Where to look.
    #[command(flatten)]
    pub look: LookArgs,
}

/// `lb-agent service show`
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// NAMESPACE/NAME, or NAME if one namespace has it, or an address of it: 10.0.1.100, 10.0.1.100:3306 or fd00::1.
    #[arg(value_name = "SERVICE")]
    pub service: String,
    /// Where to look.
    #[command(flatten)]
    pub look: LookArgs,
}

/// `lb-agent netns exempt`
#[derive(Debug, Args)]
pub struct ExemptArgs {
    /// Namespace file, such as /run/netns/NAME or /proc/PID/ns/net.
    #[arg(value_name = "PATH")]
    pub namespace: PathBuf,
    /// Where the pins are.
    #[command(flatten)]
    pub pins: PinArgs,
}

/// `lb-agent netns include`
#[derive(Debug, Args)]
pub struct IncludeArgs {
    /// Namespace file, or for a namespace that is gone the cookie that `netns list` shows.
    #[arg(value_name = "PATH|COOKIE")]
    pub namespace: PathBuf,
    /// Where the pins are.
    #[command(flatten)]
    pub pins: PinArgs,
}

/// `lb-agent heal-sockets`
#[derive(Debug, Args)]
pub struct HealArgs {
    /// Look only for sockets of backends at these addresses, whose endpoints are gone. Without this and --left, for those of all
    /// backends that their frontend has no more.
    #[arg(long, value_name = "ADDRESS:PORT", value_delimiter = ',')]
    pub gone: Vec<SocketAddr>,
    /// And for sockets of backends at these addresses that their frontend has no more, if it still exists.
    #[arg(long, value_name = "ADDRESS:PORT", value_delimiter = ',')]
    pub left: Vec<SocketAddr>,
    /// Where the pins are.
    #[command(flatten)]
    pub pins: PinArgs,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `lb-agent netns list`
#[derive(Debug, Args)]
pub struct NetnsListArgs {
    /// Where the pins are.
    #[command(flatten)]
    pub pins: PinArgs,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}
