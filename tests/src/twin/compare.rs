//! What the same client saw on both nodes, and whether it is the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::model::{Port, Service};
use super::nodes::{DetectLocal, Question};
use super::targets::Target;
use crate::probe::Seen;

/// Shortest affinity that outlives a look: below it, one client may meet several backends.
const LASTING_AFFINITY: u32 = 60;

/// Which node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    KubeProxy,
    Agent,
}

/// How attempts fail.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Failure {
    Refused,
    Silent,
    /// Another errno.
    Other(String),
}

/// What a client saw at a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) backends: BTreeSet<String>,
    pub(super) failures: BTreeSet<Failure>,
    /// What it was shown as its peer, other than the destination itself.
    pub(super) wrong_peers: BTreeSet<SocketAddr>,
    /// What the backends saw as the client.
    pub(super) sources: BTreeMap<String, BTreeSet<IpAddr>>,
}

impl Outcome {
    pub(super) fn new(target: &Target, seen: &Seen, by: By) -> Self {
        let failure = |errno: &String| match errno.as_str() {
            "ECONNREFUSED" => Failure::Refused,
            "TIMEOUT" => Failure::Silent,
            // Netfilter also fails the send() of a process of the node itself. A hook must not.
            "EPERM ECONNREFUSED" if by == By::KubeProxy => Failure::Refused,
            "EPERM TIMEOUT" if by == By::KubeProxy => Failure::Silent,
            _ => Failure::Other(errno.clone()),
        };
        Self {
            backends: seen.answered.keys().cloned().collect(),
            failures: seen.failed.keys().map(failure).collect(),
            wrong_peers: seen.peers.iter().copied().filter(|peer| *peer != target.at).collect(),
            sources: seen.sources.clone(),
        }
    }

    /// Nobody answers, and attempts fail in this one way.
    pub(super) fn is_only(&self, failure: &Failure) -> bool {
        self.backends.is_empty() && self.failures.len() == 1 && self.failures.contains(failure)
    }

    /// Somebody answers every time.
    pub(super) fn is_served(&self) -> bool {
        !self.backends.is_empty() && self.failures.is_empty()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { backends, failures, wrong_peers, sources } = self;
        write!(f, "{backends:?}")?;
        if !failures.is_empty() {
            write!(f, " {failures:?}")?;
        }
        if !wrong_peers.is_empty() {
            write!(f, " shown as {wrong_peers:?}")?;
        }
        let sources: BTreeSet<_> = sources.values().flatten().collect();
        if !sources.is_empty() {
            write!(f, " from {sources:?}")?;
        }
        Ok(())
    }
}

/// In what two outcomes differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aspect {
    /// Who answers, and how attempts fail.
    Answer,
    /// The peer that the client is shown.
    Peer,
    /// The client that a backend sees, where both met the backend.
    Source,
}

/// A destination at which the nodes differ.
#[derive(Debug)]
pub(super) struct Difference<'a> {
    pub(super) aspect: Aspect,
    pub(super) question: Question,
    pub(super) service: &'a Service,
    /// The port that it leads to, if any.
    pub(super) port: Option<&'a Port>,
    pub(super) detect: DetectLocal,
    pub(super) kube_proxy: Outcome,
    pub(super) agent: Outcome,
}

impl fmt::Display for Difference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { aspect, question: Question { client, target, .. }, kube_proxy, agent, .. } = self;
        write!(
            f,
            "{aspect:?} differs: {client:?} -> {target}\n  kube-proxy: {kube_proxy}\n  lb-agent:   {agent}"
        )
    }
}

/// The aspects in which the outcomes at a destination differ.
pub(super) fn aspects(affinity: Option<u32>, kube_proxy: &Outcome, agent: &Outcome) -> Vec<Aspect> {
    let mut found = Vec::new();
    let is_same = match affinity {
        // One backend per client; nobody says which.
        Some(LASTING_AFFINITY..) if kube_proxy.is_served() && agent.is_served() => {
            kube_proxy.backends.len() == 1 && agent.backends.len() == 1
        }
        Some(1..LASTING_AFFINITY) => {
            kube_proxy.backends.is_empty() == agent.backends.is_empty()
                && kube_proxy.failures == agent.failures
        }
        _ => kube_proxy.backends == agent.backends && kube_proxy.failures == agent.failures,
    };
    if !is_same {
        found.push(Aspect::Answer);
    }
    if kube_proxy.wrong_peers != agent.wrong_peers {
        found.push(Aspect::Peer);
    }
    let differs = |(server, sources)| agent.sources.get(server).is_some_and(|others| others != sources);
    if kube_proxy.sources.iter().any(differs) {
        found.push(Aspect::Source);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(backends: &[&str], failures: &[Failure]) -> Outcome {
        Outcome {
            backends: backends.iter().map(|&name| name.to_owned()).collect(),
            failures: failures.iter().cloned().collect(),
            wrong_peers: BTreeSet::new(),
            sources: BTreeMap::new(),
        }
    }

    fn is_same(affinity: Option<u32>, first: &Outcome, second: &Outcome) -> bool {
        aspects(affinity, first, second).is_empty()
    }

    #[test]
    fn without_affinity_both_must_meet_the_same_backends_and_failures() {
        assert!(is_same(None, &outcome(&["a", "b"], &[]), &outcome(&["b", "a"], &[])));
        assert!(!is_same(None, &outcome(&["a", "b"], &[]), &outcome(&["a"], &[])));
        assert!(!is_same(None, &outcome(&[], &[Failure::Refused]), &outcome(&[], &[Failure::Silent])));
    }

    /// Which backend a client sticks to is chosen at random, on each node.
    #[test]
    fn with_affinity_each_must_meet_one_backend_whichever_it_is() {
        assert!(is_same(Some(300), &outcome(&["a"], &[]), &outcome(&["b"], &[])));
        assert!(!is_same(Some(300), &outcome(&["a"], &[]), &outcome(&["a", "b"], &[])));
        assert!(!is_same(Some(300), &outcome(&["a"], &[]), &outcome(&[], &[Failure::Refused])));
        assert!(is_same(Some(1), &outcome(&["a"], &[]), &outcome(&["a", "b"], &[])));
    }

    #[test]
    fn sources_are_compared_where_both_met_the_backend() {
        let from = |server: &str, ip: &str| {
            let mut outcome = outcome(&[server], &[]);
            outcome.sources.insert(server.to_owned(), [ip.parse().unwrap()].into());
            outcome
        };
        assert_eq!(aspects(None, &from("a", "10.0.0.1"), &from("a", "10.0.0.2")), [Aspect::Source]);
        assert_eq!(aspects(Some(300), &from("a", "10.0.0.1"), &from("b", "10.0.0.2")), []);
    }
}
