//! The service proxies that a cluster can have, and how a node starts them.

use std::fmt;
use std::path::Path;

use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::network::POD_RANGES;
use crate::control_plane::{Program, find};

/// Who serves Services on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proxy {
    /// This project's agent, and nobody beside it.
    LbAgent,
    /// Upstream's, in nftables mode: what the baseline was measured with.
    KubeProxy,
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LbAgent => "lb-agent",
            Self::KubeProxy => "kube-proxy",
        })
    }
}

impl Proxy {
    /// The command line on the node `name`, program first.
    ///
    /// # Errors
    /// The program cannot be had.
    pub(super) fn command(self, name: &str, kubeconfig: &Path) -> Result<Vec<String>> {
        let program = match self {
            Self::LbAgent => crate::binary("lb-agent")?,
            Self::KubeProxy => find(Program::KubeProxy)?,
        };
        let mut command = vec![program.display().to_string()];
        command.extend(self.arguments(name, &kubeconfig.display().to_string()));
        Ok(command)
    }

    fn arguments(self, name: &str, kubeconfig: &str) -> Vec<String> {
        // Lowering it needs a capability that the machine may not have.
        let common = ["--kubeconfig", kubeconfig, "--cluster-cidr", POD_RANGES, "--oom-score-adj", "0"];
        let own: &[&str] = match self {
            // What a node sees as the root of cgroups is a child of the machine's, which the agent would not take for the root.
            Self::LbAgent => &["--node-name", name, "--cgroup", "/sys/fs/cgroup"],
            Self::KubeProxy => {
                &["--hostname-override", name, "--proxy-mode", "nftables", "--conntrack-max-per-core", "0"]
            }
        };
        let verb = (self == Self::LbAgent).then_some("run");
        verb.into_iter().chain(common).chain(own.iter().copied()).map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_know_their_node_and_the_pods_of_the_cluster() {
        for proxy in [Proxy::LbAgent, Proxy::KubeProxy] {
            let arguments = proxy.arguments("n2", "/k");
            for pair in [["--kubeconfig", "/k"], ["--cluster-cidr", POD_RANGES]] {
                assert!(arguments.windows(2).any(|words| words == pair), "{proxy}: {arguments:?}");
            }
            assert!(arguments.iter().any(|word| word == "n2"), "{proxy}: {arguments:?}");
        }
    }

    #[test]
    fn the_name_on_the_command_line_is_the_one_in_messages() {
        for proxy in Proxy::value_variants() {
            assert_eq!(proxy.to_possible_value().unwrap().get_name(), proxy.to_string());
        }
    }
}
