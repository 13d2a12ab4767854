//! Options of the packet path.

use core::{fmt, str::FromStr};

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use lb_common::abi::PacketLb;

use super::families::PerFamily;

/// Longest name of a network interface (`IFNAMSIZ` without the final zero, include/uapi/linux/if.h).
const LONGEST_INTERFACE: usize = 15;

/// How a packet is known to come from a pod of this node (semantics 2.9). The words are kube-proxy's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum DetectLocalMode {
    /// Its source is in --cluster-cidr; without one nobody is a pod.
    #[value(name = "ClusterCIDR")]
    ClusterCidr,
    /// Its source is in the pod ranges of the own Node.
    #[value(name = "NodeCIDR")]
    NodeCidr,
    /// It comes in by --pod-bridge-interface.
    #[value(name = "BridgeInterface")]
    BridgeInterface,
    /// It comes in by an interface whose name begins with --pod-interface-prefix.
    #[value(name = "InterfaceNamePrefix")]
    InterfaceNamePrefix,
}

/// Name of a network interface, or what one begins with; empty for none.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct InterfaceName(
    /// The name.
    pub String,
);

/// A text that cannot be an interface's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected the name of a network interface: at most 15 characters, without spaces and slashes")]
pub struct NotAnInterface;

impl FromStr for InterfaceName {
    type Err = NotAnInterface;

    fn from_str(text: &str) -> Result<Self, NotAnInterface> {
        let is_odd = |c: char| c == '/' || c.is_whitespace() || c.is_control();
        let is_name = text.len() <= LONGEST_INTERFACE && !text.contains(is_odd);
        if is_name { Ok(Self(text.to_owned())) } else { Err(NotAnInterface) }
    }
}

/// Which devices packets are served at.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Devices {
    /// Those that addresses and routes tell.
    #[default]
    Auto,
    /// Those that one of these is like; none without any.
    Only(Vec<DevicePattern>),
}

/// A device's name, or what one begins with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DevicePattern {
    name: String,
    is_prefix: bool,
}

impl DevicePattern {
    /// Whether a device has such a name.
    pub fn is_like(&self, name: &str) -> bool {
        if self.is_prefix { name.starts_with(&self.name) } else { name == self.name }
    }
}

impl fmt::Display for DevicePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.name, if self.is_prefix { "*" } else { "" })
    }
}

/// A text that names no devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "expected auto, none, or names of network interfaces with commas between them, each with or without a * at its end"
)]
pub struct NotDevices;

impl FromStr for Devices {
    type Err = NotDevices;

    fn from_str(text: &str) -> Result<Self, NotDevices> {
        match text {
            "auto" => return Ok(Self::Auto),
            "none" => return Ok(Self::Only(Vec::new())),
            _ => {}
        }
        let pattern = |text: &str| {
            let name = text.strip_suffix('*').unwrap_or(text);
            let is_prefix = name.len() != text.len();
            let is_name = !name.contains('*') && name.parse::<InterfaceName>().is_ok();
            let is_empty = name.is_empty() && !is_prefix;
            (is_name && !is_empty)
                .then(|| DevicePattern { name: name.to_owned(), is_prefix })
                .ok_or(NotDevices)
        };
        text.split(',').map(pattern).collect::<Result<_, _>>().map(Self::Only)
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Only(patterns) if patterns.is_empty() => f.write_str("none"),
            Self::Only(patterns) => {
                let texts: Vec<String> = patterns.iter().map(ToString::to_string).collect();
                f.write_str(&texts.join(","))
            }
        }
    }
}

/// Whether frames of uplinks are served before the kernel makes packets of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum XdpOption {
    /// They are not.
    #[default]
    Off,
    /// Where the driver can.
    Native,
    /// Everywhere, by the kernel's own code, which is slower than tc.
    Generic,
}

impl XdpOption {
    /// The flag's word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// Flags of the packet path.
#[derive(Clone, Debug, Args)]
pub struct PacketArgs {
    /// Network interfaces towards other machines at which packets to Services are served: auto (those that have an address, or a
    /// route through a gateway), none, or names and patterns (eth0,bond*).
    #[arg(long, env = "LB_DEVICES", default_value_t = Devices::Auto, value_name = "auto|none|NAME[*][,..]")]
    pub devices: Devices,
    /// The same for those towards pods of this node, which serve pods whose sockets the hooks do not see: auto means those
    /// whose other end is in another network namespace, and that have no network of their own.
    #[arg(long, env = "LB_POD_DEVICES", default_value_t = Devices::Auto, value_name = "auto|none|NAME[*][,..]")]
    pub pod_devices: Devices,
    /// XDP at --devices, for packets from one machine to another one that are part of a known flow: off, native (where the
    /// driver can), or generic (for tests: it is slower than without). A device gets it once it has passed a test with one of its
    /// neighbours. Off by default, because some drivers interrupt their link for it.
    #[arg(long, env = "LB_XDP", value_enum, default_value_t = XdpOption::Off, value_name = "off|native|generic")]
    pub xdp: XdpOption,
    /// How a packet is known to come from a pod of this node.
    #[arg(
        long, env = "LB_DETECT_LOCAL_MODE", value_enum, default_value_t = DetectLocalMode::ClusterCidr,
        value_name = "HOW"
    )]
    pub detect_local_mode: DetectLocalMode,
    /// Addresses of pods, at most one range for each family.
    #[arg(
        long,
        env = "LB_CLUSTER_CIDR",
        default_value = "",
        hide_default_value = true,
        value_name = "CIDR[,CIDR]"
    )]
    pub cluster_cidr: PerFamily<IpNet>,
    /// Bridge that pods of this node are joined to, for mode BridgeInterface.
    #[arg(
        long,
        env = "LB_POD_BRIDGE_INTERFACE",
        default_value = "",
        hide_default_value = true,
        value_name = "NAME"
    )]
    pub pod_bridge_interface: InterfaceName,
    /// What interfaces towards pods of this node begin with, for mode InterfaceNamePrefix.
    #[arg(
        long,
        env = "LB_POD_INTERFACE_PREFIX",
        default_value = "",
        hide_default_value = true,
        value_name = "PREFIX"
    )]
    pub pod_interface_prefix: InterfaceName,
    /// Give every packet to a Service an address of this node as its source.
    #[arg(
        long, env = "LB_MASQUERADE_ALL", default_value_t = false, action = clap::ArgAction::Set,
        num_args = 0..=1, default_missing_value = "true", value_name = "BOOL"
    )]
    pub masquerade_all: bool,
    /// Serve cluster IPs to clients outside of the cluster too, whose packets reach this node because a route leads here.
    #[arg(
        long, env = "LB_EXTERNAL_CLUSTER_IP", default_value_t = false, action = clap::ArgAction::Set,
        num_args = 0..=1, default_missing_value = "true", value_name = "BOOL"
    )]
    pub external_cluster_ip: bool,
    /// Drop packets that leave for an address of a ServiceCIDR, or of --service-cidr, that no Service has, as kube-proxy does in its
    /// nftables mode; false lets them go where the routes lead, as in its iptables mode.
    #[arg(
        long, env = "LB_DROP_UNALLOCATED", default_value_t = true, action = clap::ArgAction::Set,
        num_args = 0..=1, default_missing_value = "true", value_name = "BOOL"
    )]
    pub drop_unallocated: bool,
}

/// Options of the packet path, checked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PacketOptions {
    /// Where packets are served, and who is a pod of this node.
    pub devices: DeviceOptions,
    /// `--masquerade-all`
    pub masquerade_all: bool,
    /// `--external-cluster-ip`
    pub external_cluster_ip: bool,
    /// `--drop-unallocated`
    pub drop_unallocated: bool,
    /// `--xdp`
    pub xdp: XdpOption,
}

/// Where packets are served.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeviceOptions {
    /// `--devices`
    pub uplinks: Devices,
    /// `--pod-devices`
    pub pods: Devices,
    /// Who is a pod of this node.
    pub detect_local: DetectLocal,
}

impl DeviceOptions {
    /// Nobody wants packets to be served.
    pub fn are_off(&self) -> bool {
        let none = |devices: &Devices| *devices == Devices::Only(Vec::new());
        none(&self.uplinks) && none(&self.pods)
    }
}

/// Who is a pod of this node (semantics 2.9).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum DetectLocal {
    /// Nobody is known to be one.
    #[default]
    Off,
    /// Whoever has an address in the range of its family; a family without a range is off.
    ClusterCidr(PerFamily<IpNet>),
    /// Whoever has an address in the pod ranges of the own Node.
    NodeCidr,
    /// Whoever comes in by the interface.
    BridgeInterface(String),
    /// Whoever comes in by an interface whose name begins so.
    InterfaceNamePrefix(String),
}

/// A mode without what it needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("--detect-local-mode {mode} needs --{flag}: give it, or choose another mode")]
pub struct ModeNeeds {
    mode: &'static str,
    flag: &'static str,
}

impl PacketArgs {
    /// Checks them against each other.
    ///
    /// # Errors
    /// [`ModeNeeds`]
    pub fn options(&self) -> Result<PacketOptions, ModeNeeds> {
        let given = |name: &InterfaceName, mode, flag| {
            if name.0.is_empty() { Err(ModeNeeds { mode, flag }) } else { Ok(name.0.clone()) }
        };
        let detect_local = match self.detect_local_mode {
            DetectLocalMode::ClusterCidr if self.cluster_cidr.is_empty() => DetectLocal::Off,
            DetectLocalMode::ClusterCidr => DetectLocal::ClusterCidr(self.cluster_cidr),
            DetectLocalMode::NodeCidr => DetectLocal::NodeCidr,
            DetectLocalMode::BridgeInterface => DetectLocal::BridgeInterface(given(
                &self.pod_bridge_interface,
                "BridgeInterface",
                "pod-bridge-interface",
            )?),
            DetectLocalMode::InterfaceNamePrefix => DetectLocal::InterfaceNamePrefix(given(
                &self.pod_interface_prefix,
                "InterfaceNamePrefix",
                "pod-interface-prefix",
            )?),
        };
        let devices =
            DeviceOptions { uplinks: self.devices.clone(), pods: self.pod_devices.clone(), detect_local };
        let Self { masquerade_all, external_cluster_ip, drop_unallocated, xdp, .. } = *self;
        Ok(PacketOptions { devices, masquerade_all, external_cluster_ip, drop_unallocated, xdp })
    }
}

impl PacketOptions {
    /// The same as programs have it.
    pub const fn bits(&self) -> PacketLb {
        let all = if self.masquerade_all { PacketLb::MASQUERADE_ALL.bits } else { 0 };
        let outside = if self.external_cluster_ip { PacketLb::EXTERNAL_CLUSTER_IP.bits } else { 0 };
        PacketLb { bits: all | outside }
    }
}

impl fmt::Display for PacketOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.devices.detect_local {
            DetectLocal::Off => f.write_str("nobody is known to be a pod")?,
            DetectLocal::ClusterCidr(ranges) => write!(f, "pods have addresses in {ranges}")?,
            DetectLocal::NodeCidr => f.write_str("pods have addresses in the pod ranges of the own Node")?,
            DetectLocal::BridgeInterface(name) => write!(f, "pods are behind interface {name}")?,
            DetectLocal::InterfaceNamePrefix(prefix) => write!(f, "pods are behind interfaces {prefix}*")?,
        }
        f.write_str(if self.masquerade_all { ", everything is masqueraded" } else { "" })?;
        f.write_str(if self.external_cluster_ip {
            ", cluster IPs are served to clients outside"
        } else {
            ""
        })?;
        f.write_str(if self.drop_unallocated {
            ""
        } else {
            ", cluster IPs that no Service has are left alone"
        })
    }
}
