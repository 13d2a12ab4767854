//! What a kube-proxy has left in this node's kernel: found, named, and removed on request only (`lb-agent cleanup --kube-proxy`).
//!
//! ```text
//! nft.rs      nf_tables: kube-proxy's own tables, and those of iptables-nft ──┐
//! legacy.rs   iptables-legacy, by its tools                                  ─┼─> chains.rs   what is kube-proxy's (pure)
//! ipvs.rs     an interface, ip sets
//! watch.rs    what `run` looks at and says
//! ```
//!
//! kube-proxy's rules stay in force when it ends (SY-5). Its DNAT and REJECT shadow what a packet would meet here. What is removed is what
//! `kube-proxy --cleanup` removes (v1.36), with two differences. A chain that somebody else's rule leads to stays, with all that it leads
//! to, where kube-proxy fails half-way. And virtual servers of IPVS stay, which kube-proxy deletes whoever made them. Entries of the
//! kernel's connection tracking stay too: open connections go on.

mod chains;
mod ipvs;
mod legacy;
mod nft;
pub mod watch;

use core::fmt;
use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

use crate::model::Family;
use chains::Plan;

/// Something that kube-proxy has left.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Leftover {
    /// Chains in a table of iptables.
    Iptables {
        /// Who keeps the table.
        backend: Backend,
        /// `IPv4` or `IPv6`.
        family: String,
        /// Name of the table.
        table: String,
        /// Chains of kube-proxy.
        chains: usize,
        /// Rules in them.
        rules: usize,
        /// Rules of other chains that lead to them.
        jumps: usize,
    },
    /// The table of kube-proxy's nftables mode.
    Nftables {
        /// `IPv4` or `IPv6`.
        family: String,
        /// Rules in it.
        rules: usize,
    },
    /// The interface of its IPVS mode.
    Interface {
        /// Name of the interface.
        name: String,
    },
    /// A set of addresses of its IPVS mode.
    IpSet {
        /// Name of the set.
        name: String,
    },
}

/// Who keeps a table of iptables.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// nf_tables.
    Nft,
    /// The older x_tables.
    Legacy,
}

/// What a look has found.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Found {
    /// What can be removed.
    pub leftovers: Vec<Leftover>,
    /// What looks like kube-proxy's and is in use by others, or may be: never removed.
    pub kept: Vec<String>,
    /// Where nobody could look, and why.
    pub unseen: Vec<String>,
    /// What a removal would do to others, and how to avoid it.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// What a removal has come to.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Removed {
    /// What is gone.
    pub removed: Vec<Leftover>,
    /// As in [`Found`].
    pub kept: Vec<String>,
    /// As in [`Found`].
    pub unseen: Vec<String>,
    /// What could not be removed, and why.
    pub failures: Vec<String>,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nft => "iptables-nft",
            Self::Legacy => "iptables-legacy",
        })
    }
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iptables { backend, family, table, chains, rules, jumps } => {
                write!(
                    f,
                    "{backend} {family} {table}: {chains} chains with {rules} rules, {jumps} rules that lead to them"
                )
            }
            Self::Nftables { family, rules } => {
                write!(f, "nftables {family}: the table kube-proxy with {rules} rules")
            }
            Self::Interface { name } => write!(f, "the interface {name}"),
            Self::IpSet { name } => write!(f, "the ip set {name}"),
        }
    }
}

impl Found {
    fn add_plan<Id>(&mut self, backend: Backend, family: Family, table: &str, plan: &Plan<'_, Id>) {
        if !plan.is_empty() {
            self.leftovers.push(Leftover::Iptables {
                backend,
                family: family.to_string(),
                table: table.to_owned(),
                chains: plan.chains.len(),
                rules: plan.rules,
                jumps: plan.jumps.len(),
            });
        }
        self.kept.extend(plan.kept.iter().map(|(chain, user)| {
            format!("{backend} {family} {table}: {chain} and what it leads to, because a rule of {user} leads there")
        }));
    }

    fn add(&mut self, other: Self) {
        self.leftovers.extend(other.leftovers);
        self.kept.extend(other.kept);
        self.unseen.extend(other.unseen);
        self.warnings.extend(other.warnings);
    }
}

/// What kube-proxy has left in the network namespace of this thread.
pub fn find() -> Found {
    let mut found = nft::find().unwrap_or_else(|error| Found {
        unseen: vec![format!("cannot list nf_tables: {error}")],
        ..Found::default()
    });
    found.add(legacy::find());
    found.add(ipvs::find());
    found
}

/// Removes it. Rules go first, for they may name sets.
pub fn remove() -> Removed {
    let (mut found, mut failures) = match nft::remove() {
        Ok(found) => (found, Vec::new()),
        Err(error) => (Found::default(), vec![format!("nf_tables, where nothing was removed: {error}")]),
    };
    for (removed, failed) in [legacy::remove(), ipvs::remove()] {
        found.add(removed);
        failures.extend(failed);
    }
    let Found { leftovers: removed, kept, unseen, warnings: _ } = found;
    Removed { removed, kept, unseen, failures }
}

/// Processes of this network namespace that are called kube-proxy, as far as this one sees processes. k3s and others have one inside
/// a process of another name.
pub fn running() -> Vec<u32> {
    running_in(Path::new("/proc"))
}

fn running_in(proc: &Path) -> Vec<u32> {
    let own = fs::read_link(proc.join("thread-self/ns/net")).ok();
    let is_one = |process: &Path| {
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        // Who may not be looked at is counted: this is for a warning.
        let namespace = fs::read_link(process.join("ns/net")).ok();
        name.trim_end() == "kube-proxy" && (namespace.is_none() || namespace == own)
    };
    let processes = fs::read_dir(proc).into_iter().flatten().flatten().map(|entry| entry.path());
    let ids =
        processes.filter(|path| is_one(path)).filter_map(|path| path.file_name()?.to_str()?.parse().ok());
    let mut ids: Vec<u32> = ids.collect();
    ids.sort_unstable();
    ids
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// 2.24-leftovers.
    #[test]
    fn a_kube_proxy_of_another_namespace_is_not_this_nodes() {
        let folder = tempfile::tempdir().unwrap();
        let process = |name: &str, comm: &str, namespace: &str| {
            fs::create_dir_all(folder.path().join(name).join("ns")).unwrap();
            fs::write(folder.path().join(name).join("comm"), comm).unwrap();
            symlink(namespace, folder.path().join(name).join("ns/net")).unwrap();
        };
        process("thread-self", "lb-agent\n", "net:[1]");
        process("70", "kube-proxy\n", "net:[1]");
        process("8", "kube-proxy\n", "net:[1]");
        process("9", "kube-proxy\n", "net:[2]");
        process("10", "kube-proxy-helper\n", "net:[1]");
        assert_eq!(running_in(folder.path()), [8, 70]);
    }

    #[test]
    fn leftovers_are_named_by_what_and_where() {
        let mut found = Found::default();
        let plan: Plan<'_, u64> = Plan {
            jumps: vec![("PREROUTING", &1)],
            chains: vec!["KUBE-SERVICES"],
            rules: 3,
            kept: vec![("KUBE-MARK-MASQ", "CNI")],
        };
        found.add_plan(Backend::Nft, Family::V6, "nat", &plan);
        assert_eq!(
            found.leftovers[0].to_string(),
            "iptables-nft IPv6 nat: 1 chains with 3 rules, 1 rules that lead to them"
        );
        assert_eq!(
            found.kept,
            ["iptables-nft IPv6 nat: KUBE-MARK-MASQ and what it leads to, because a rule of CNI leads there"]
        );
    }
}
