//! Every field of `KubeProxyConfiguration` v1alpha1: what it holds, and what it means here.
//!
//! Source: `k8s.io/kube-proxy/config/v1alpha1`, types of Kubernetes 1.36.

/// What a field holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A text.
    Text,
    /// `true` or `false`, which are two values; a field that is absent is a third.
    Bool,
    /// A whole number, likewise.
    Number,
    /// A text such as `30s`; zero is as good as absent.
    Duration,
    /// The same where zero is a value.
    DurationOrZero,
    /// A list of texts.
    Texts,
    /// A map of anything.
    Map,
}

/// How kube-proxy would do its work, by `mode`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// Not said.
    Unset,
    /// `iptables`
    Iptables,
    /// `ipvs`
    Ipvs,
    /// `nftables`
    Nftables,
}

/// What a field means to this agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Meaning {
    /// The flag of that name, without dashes.
    Flag(&'static str),
    /// The same, if kube-proxy reads the section in one of these modes.
    FlagIn(&'static str, &'static [Mode]),
    /// It chooses defaults only.
    Mode,
    /// Nothing, and why.
    Nothing(&'static str),
}

/// A field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Field {
    /// Names from the top, joined by dots.
    pub(crate) path: &'static str,
    /// What it holds.
    pub(crate) kind: Kind,
    /// What it means.
    pub(crate) meaning: Meaning,
}

const fn flag(path: &'static str, kind: Kind, flag: &'static str) -> Field {
    Field { path, kind, meaning: Meaning::Flag(flag) }
}

const fn flag_in(path: &'static str, kind: Kind, flag: &'static str, modes: &'static [Mode]) -> Field {
    Field { path, kind, meaning: Meaning::FlagIn(flag, modes) }
}

const fn nothing(path: &'static str, kind: Kind, why: &'static str) -> Field {
    Field { path, kind, meaning: Meaning::Nothing(why) }
}

const CLIENT: &str = "objects are watched, nothing else is asked of the API server";
const CONNTRACK: &str =
    "what is load-balanced needs no entry of the kernel's connection tracking; set the sysctl on the node";
const IPVS: &str = "there is no IPVS here";
const LOGGING: &str = "--log-level says what is logged";
const MARK: &str = "no packet is marked";
const WINDOWS: &str = "it is for Windows";

/// The field that chooses a level by number.
pub(crate) const VERBOSITY: &str = "logging.verbosity";

/// Modes in which kube-proxy reads the section `iptables`: it is the default on Linux.
const IPTABLES: &[Mode] = &[Mode::Unset, Mode::Iptables];
/// Modes in which kube-proxy reads `iptables.masqueradeAll`.
const MASQUERADES: &[Mode] = &[Mode::Unset, Mode::Iptables, Mode::Ipvs];

/// The fields, in the order of the API's documentation.
pub(crate) const FIELDS: &[Field] = &[
    nothing("featureGates", Kind::Map, "there are no feature gates here"),
    flag("clientConnection.kubeconfig", Kind::Text, "kubeconfig"),
    nothing("clientConnection.acceptContentTypes", Kind::Text, CLIENT),
    nothing("clientConnection.contentType", Kind::Text, CLIENT),
    nothing("clientConnection.qps", Kind::Number, CLIENT),
    nothing("clientConnection.burst", Kind::Number, CLIENT),
    flag("logging.format", Kind::Text, "log-format"),
    nothing("logging.flushFrequency", Kind::Map, LOGGING),
    flag(VERBOSITY, Kind::Number, "log-level"),
    nothing("logging.vmodule", Kind::Map, LOGGING),
    nothing("logging.options", Kind::Map, LOGGING),
    flag("hostnameOverride", Kind::Text, "node-name"),
    flag("bindAddress", Kind::Text, "node-ip"),
    flag("healthzBindAddress", Kind::Text, "healthz-address"),
    flag("metricsBindAddress", Kind::Text, "metrics-address"),
    flag("bindAddressHardFail", Kind::Bool, "bind-hard-fail"),
    nothing("enableProfiling", Kind::Bool, "there is no profiling over HTTP"),
    nothing("showHiddenMetricsForVersion", Kind::Text, "no metric is hidden"),
    Field { path: "mode", kind: Kind::Text, meaning: Meaning::Mode },
    nothing("iptables.masqueradeBit", Kind::Number, MARK),
    flag_in("iptables.masqueradeAll", Kind::Bool, "masquerade-all", MASQUERADES),
    flag_in("iptables.localhostNodePorts", Kind::Bool, "localhost-nodeports", IPTABLES),
    flag_in("iptables.syncPeriod", Kind::Duration, "resync-interval", IPTABLES),
    flag_in("iptables.minSyncPeriod", Kind::Duration, "min-sync-interval", IPTABLES),
    flag_in("ipvs.syncPeriod", Kind::Duration, "resync-interval", &[Mode::Ipvs]),
    flag_in("ipvs.minSyncPeriod", Kind::Duration, "min-sync-interval", &[Mode::Ipvs]),
    nothing("ipvs.scheduler", Kind::Text, IPVS),
    nothing("ipvs.excludeCIDRs", Kind::Texts, IPVS),
    nothing("ipvs.strictARP", Kind::Bool, IPVS),
    nothing("ipvs.tcpTimeout", Kind::Duration, IPVS),
    nothing("ipvs.tcpFinTimeout", Kind::Duration, IPVS),
    nothing("ipvs.udpTimeout", Kind::Duration, IPVS),
    nothing("nftables.masqueradeBit", Kind::Number, MARK),
    flag_in("nftables.masqueradeAll", Kind::Bool, "masquerade-all", &[Mode::Nftables]),
    flag_in("nftables.syncPeriod", Kind::Duration, "resync-interval", &[Mode::Nftables]),
    flag_in("nftables.minSyncPeriod", Kind::Duration, "min-sync-interval", &[Mode::Nftables]),
    nothing("winkernel.networkName", Kind::Text, WINDOWS),
    nothing("winkernel.sourceVip", Kind::Text, WINDOWS),
    nothing("winkernel.enableDSR", Kind::Bool, WINDOWS),
    nothing("winkernel.rootHnsEndpointName", Kind::Text, WINDOWS),
    nothing("winkernel.forwardHealthCheckVip", Kind::Bool, WINDOWS),
    flag("detectLocalMode", Kind::Text, "detect-local-mode"),
    flag("detectLocal.bridgeInterface", Kind::Text, "pod-bridge-interface"),
    flag("detectLocal.interfaceNamePrefix", Kind::Text, "pod-interface-prefix"),
    flag("clusterCIDR", Kind::Text, "cluster-cidr"),
    flag("nodePortAddresses", Kind::Texts, "nodeport-addresses"),
    flag("oomScoreAdj", Kind::Number, "oom-score-adj"),
    nothing("conntrack.maxPerCore", Kind::Number, CONNTRACK),
    nothing("conntrack.min", Kind::Number, CONNTRACK),
    flag("conntrack.tcpEstablishedTimeout", Kind::DurationOrZero, "conntrack-tcp-timeout-established"),
    flag("conntrack.tcpCloseWaitTimeout", Kind::DurationOrZero, "conntrack-tcp-timeout-close-wait"),
    flag("conntrack.tcpBeLiberal", Kind::Bool, "conntrack-tcp-be-liberal"),
    flag("conntrack.udpTimeout", Kind::Duration, "conntrack-udp-timeout"),
    flag("conntrack.udpStreamTimeout", Kind::Duration, "conntrack-udp-timeout-stream"),
    nothing(
        "configSyncPeriod",
        Kind::Duration,
        "a watch delivers every change; there is nothing to read again",
    ),
    nothing("portRange", Kind::Text, "kube-proxy does not use it either"),
    nothing("windowsRunAsService", Kind::Bool, WINDOWS),
];

impl Field {
    /// The field at `path`.
    pub(crate) fn at(path: &str) -> Option<&'static Self> {
        FIELDS.iter().find(|field| field.path == path)
    }

    /// Whether `path` leads to fields.
    pub(crate) fn has_below(path: &str) -> bool {
        FIELDS.iter().any(|field| field.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
    }

    /// The flag, if it has one.
    pub(crate) const fn flag(&self) -> Option<&'static str> {
        match self.meaning {
            Meaning::Flag(flag) | Meaning::FlagIn(flag, _) => Some(flag),
            Meaning::Mode | Meaning::Nothing(_) => None,
        }
    }
}

impl Mode {
    /// The mode of that name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "" => Some(Self::Unset),
            "iptables" => Some(Self::Iptables),
            "ipvs" => Some(Self::Ipvs),
            "nftables" => Some(Self::Nftables),
            _ => None,
        }
    }
}
