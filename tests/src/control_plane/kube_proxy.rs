//! The real kube-proxy in a node's namespace: the peer of the benchmarks.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::daemon::Daemon;
use super::{ControlPlane, Program, Trust, find};
use crate::{Netns, Place as _, wait_for};

/// How kube-proxy programs the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyMode {
    /// Maps of nftables.
    Nftables,
    /// Chains of iptables, by whatever `iptables` on the `PATH` is (`iptables-nft` on Debian and Ubuntu).
    Iptables,
}

impl ProxyMode {
    /// The program that kube-proxy calls, which is the name of its package on Debian and Ubuntu too, but
    /// for `nft`.
    fn tool(self) -> (&'static str, &'static str) {
        match self {
            Self::Nftables => ("nft", "nftables"),
            Self::Iptables => ("iptables", "iptables"),
        }
    }
}

impl fmt::Display for ProxyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        })
    }
}

/// A running kube-proxy. Dropping it kills it; its rules stay in the namespace.
#[derive(Debug)]
pub struct KubeProxy<'a> {
    daemon: Daemon,
    netns: &'a Netns,
    mode: ProxyMode,
}

impl<'a> KubeProxy<'a> {
    /// Starts kube-proxy for the Node `node` in `netns`, which is linked to `control_plane`
    /// ([`ControlPlane::link`]).
    ///
    /// The Node should exist with the addresses of `netns`: kube-proxy waits for it. Limits and timeouts of
    /// connection tracking are left as they are, because they belong to the machine.
    ///
    /// # Errors
    /// The program cannot be had, or `nft` or `iptables` is not installed.
    pub fn start(
        control_plane: &ControlPlane,
        netns: &'a Netns,
        node: &str,
        mode: ProxyMode,
    ) -> Result<Self> {
        let (tool, package) = mode.tool();
        let tool_runs = Command::new(tool).arg("--version").output();
        tool_runs.with_context(|| format!("kube-proxy needs {tool}: install the package {package}"))?;
        let kubeconfig = control_plane.kubeconfig(&control_plane.node_urls()[0], Trust::Authority)?;
        let mut command = Command::new(find(Program::KubeProxy)?);
        command
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["--hostname-override", node, "--proxy-mode", &mode.to_string()])
            .args(["--conntrack-max-per-core", "0", "--conntrack-min", "0"])
            .args(["--conntrack-tcp-timeout-established", "0", "--conntrack-tcp-timeout-close-wait", "0"])
            .args(["--metrics-bind-address", "127.0.0.1:10249", "--healthz-bind-address", "127.0.0.1:10256"])
            // The default protects it from the machine's out-of-memory killer.
            .args(["--oom-score-adj", "0"]);
        let log = control_plane.folder().join(format!("kube-proxy-{}.log", netns.name()));
        let daemon = Daemon::start("kube-proxy", command, netns, &log)?;
        Ok(Self { daemon, netns, mode })
    }

    /// Waits until the rules pass TCP connections for `address` and `port` on to an endpoint.
    pub fn wait_programmed(&self, address: IpAddr, port: u16, limit: Duration) -> Result<()> {
        let programmed = wait_for(&format!("kube-proxy to program {address} port {port}"), limit, || {
            self.daemon.check_running().map_err(|error| format!("{error:#}"))?;
            match self.is_programmed(address, port) {
                Ok(true) => Ok(()),
                Ok(false) => Err("no rule".to_owned()),
                Err(error) => Err(format!("{error:#}")),
            }
        });
        programmed.with_context(|| self.daemon.log_tail())
    }

    /// Waits until kube-proxy and its children have used no CPU time to speak of (2 %) for `quiet`.
    pub fn wait_idle(&self, quiet: Duration, limit: Duration) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < limit {
            let before = self.cpu_time()?;
            thread::sleep(quiet);
            if self.cpu_time()?.saturating_sub(before) * 50 <= quiet {
                return Ok(());
            }
        }
        bail!("kube-proxy is busy for {limit:?} already")
    }

    /// CPU time of kube-proxy and of the children that it has waited for, in steps of 10 ms.
    pub fn cpu_time(&self) -> Result<Duration> {
        self.daemon.check_running()?;
        let stat =
            std::fs::read_to_string(Path::new("/proc").join(self.daemon.pid().to_string()).join("stat"))?;
        cpu_time(&stat).context("/proc/<pid>/stat has another form")
    }

    /// The running program.
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    fn is_programmed(&self, address: IpAddr, port: u16) -> Result<bool> {
        match self.mode {
            ProxyMode::Nftables => {
                let family = if address.is_ipv4() { "ip" } else { "ip6" };
                let element = format!("{{ {address} . tcp . {port} }}");
                // It fails while the table or the element is missing.
                let words = ["get", "element", family, "kube-proxy", "service-ips", &element];
                Ok(self.tool("nft", &words)?.is_some_and(|rules| rules.contains("goto service-")))
            }
            ProxyMode::Iptables => {
                let (tool, length) = if address.is_ipv4() { ("iptables", 32) } else { ("ip6tables", 128) };
                let rules =
                    self.tool(tool, &["--wait", "-t", "nat", "-S", "KUBE-SERVICES"])?.unwrap_or_default();
                let (to, port) = (format!("-d {address}/{length} "), format!("--dport {port} "));
                let mut rules = rules.lines();
                Ok(rules
                    .any(|rule| rule.contains(&to) && rule.contains(&port) && rule.contains("-j KUBE-SVC-")))
            }
        }
    }

    /// What a program prints in the node's namespace; `None` when it fails.
    fn tool(&self, program: &str, words: &[&str]) -> Result<Option<String>> {
        let output = Command::new(program).args(words).in_netns(self.netns).output();
        let output = output.with_context(|| format!("cannot run {program}"))?;
        Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
    }
}

/// User and system time, own and of children, in the text of `/proc/<pid>/stat` (fields 14 to 17, proc(5),
/// in ticks of 10 ms on every architecture).
fn cpu_time(stat: &str) -> Option<Duration> {
    // The second field is the program's name in parentheses and may itself contain any character.
    let (_, after_name) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().map(|field| field.parse::<u64>().ok()).sum::<Option<u64>>()?;
    Some(Duration::from_millis(ticks * 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_counts_the_process_and_its_children_whatever_the_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 10 0 0 0 1 20 300 4000 20 0 1 0 55";
        assert_eq!(cpu_time(stat), Some(Duration::from_millis(43_210)));
        assert_eq!(cpu_time("7 (a"), None);
    }
}
