//! Which chains of an iptables table are kube-proxy's, and what of the table goes with them.
//!
//! Pure: what both backends of iptables keep is read into a [`Table`], and a [`Plan`] says what is to be deleted of it.

use std::collections::{BTreeMap, BTreeSet};

/// Tables that kube-proxy writes to.
pub(super) const TABLES: [&str; 3] = ["nat", "filter", "mangle"];

/// Chains of kube-proxy in any of its modes (`pkg/proxy/{iptables,ipvs}/proxier.go`, v1.36). Not among them, because they are the
/// kubelet's: KUBE-FIREWALL, KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT, KUBE-MARK-DROP.
const NAMES: [&str; 13] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    POSTROUTING,
    MARK_MASQ,
    // IPVS mode.
    "KUBE-NODE-PORT",
    "KUBE-LOAD-BALANCER",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];
const POSTROUTING: &str = "KUBE-POSTROUTING";
const MARK_MASQ: &str = "KUBE-MARK-MASQ";

/// One per Service port or endpoint: such a beginning, then a hash. KUBE-XLB- went with 1.24.
const PREFIXES: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-FW-", "KUBE-EXT-", "KUBE-SEP-", "KUBE-XLB-"];
/// Characters of the hash, of base32.
const HASH: usize = 16;

/// Chains that kube-proxy enters from the chains of the kernel's hooks. It jumps to no other from there.
const ENTRIES: [&str; 9] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    POSTROUTING,
    "KUBE-NODE-PORT",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];

/// A chain that only a kubelet before 1.28 makes, which makes [`MARK_MASQ`] and [`POSTROUTING`] too (KEP 3178).
const OLD_KUBELET: &str = "KUBE-MARK-DROP";

/// A table of iptables. `Id` is how its backend calls a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Table<Id> {
    pub(super) chains: BTreeMap<String, Chain<Id>>,
}

/// A chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Chain<Id> {
    /// It is at a hook of the kernel: PREROUTING and the like.
    pub(super) is_base: bool,
    pub(super) rules: Vec<Rule<Id>>,
}

/// A rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Rule<Id> {
    pub(super) id: Id,
    /// The chain that it jumps or goes to.
    pub(super) target: Option<String>,
}

/// What of a table is to be deleted.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Plan<'a, Id> {
    /// Rules of chains that stay, with their chain.
    pub(super) jumps: Vec<(&'a str, &'a Id)>,
    /// Chains with all of their rules.
    pub(super) chains: Vec<&'a str>,
    /// So many.
    pub(super) rules: usize,
    /// Chains of kube-proxy that others use, which stay, each with the chain that has such a rule.
    pub(super) kept: Vec<(&'a str, &'a str)>,
}

impl<Id> Default for Table<Id> {
    fn default() -> Self {
        Self { chains: BTreeMap::new() }
    }
}

impl<Id> Plan<'_, Id> {
    /// Whether there is nothing to delete.
    pub(super) const fn is_empty(&self) -> bool {
        self.jumps.is_empty() && self.chains.is_empty()
    }
}

impl<Id> Table<Id> {
    /// Whether any chain has a name of kube-proxy's.
    pub(super) fn may_have_leftovers<'a>(mut names: impl Iterator<Item = &'a str>) -> bool {
        names.any(is_of_kube_proxy)
    }

    /// What is kube-proxy's.
    ///
    /// A rule in a foreign chain that jumps to a chain of kube-proxy (a CNI plug-in that marks for masquerade, say) keeps that chain
    /// and all that it leads to: without them the foreign rule would do something else, or could not be.
    pub(super) fn plan(&self) -> Plan<'_, Id> {
        let mut ours: BTreeSet<&str> = self.names().filter(|name| is_of_kube_proxy(name)).collect();
        if self.chains.contains_key(OLD_KUBELET) {
            ours.remove(MARK_MASQ);
            ours.remove(POSTROUTING);
        }
        let kept = self.kept(&ours);
        let held = self.held(&kept);
        ours.retain(|name| !held.contains(name));
        let staying = self.chains.iter().filter(|(name, _)| !ours.contains(name.as_str()));
        let jumps = staying.flat_map(|(name, chain)| {
            let leading = chain.rules.iter().filter(|rule| leads_to(rule, &ours));
            leading.map(|rule| (name.as_str(), &rule.id))
        });
        let jumps = jumps.collect();
        let rules =
            ours.iter().filter_map(|name| self.chains.get(*name)).map(|chain| chain.rules.len()).sum();
        Plan { jumps, chains: ours.into_iter().collect(), rules, kept }
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.chains.iter().filter(|(_, chain)| !chain.is_base).map(|(name, _)| name.as_str())
    }

    /// Chains among `ours` that a foreign rule leads to, each with one such chain.
    fn kept<'a>(&'a self, ours: &BTreeSet<&str>) -> Vec<(&'a str, &'a str)> {
        let mut kept = BTreeMap::new();
        for (name, chain) in self.chains.iter().filter(|(name, _)| !ours.contains(name.as_str())) {
            for rule in chain.rules.iter().filter(|rule| leads_to(rule, ours)) {
                let Some(target) = rule.target.as_deref() else { continue };
                if !(chain.is_base && ENTRIES.contains(&target)) {
                    kept.entry(target).or_insert(name.as_str());
                }
            }
        }
        kept.into_iter().collect()
    }

    /// These chains and all that they lead to.
    fn held<'a>(&'a self, kept: &[(&'a str, &'a str)]) -> BTreeSet<&'a str> {
        let mut held = BTreeSet::new();
        let mut open: Vec<&str> = kept.iter().map(|(name, _)| *name).collect();
        while let Some(name) = open.pop() {
            if !held.insert(name) {
                continue;
            }
            let chain = self.chains.get_key_value(name);
            let rules = chain.iter().flat_map(|(_, chain)| &chain.rules);
            open.extend(rules.filter_map(|rule| rule.target.as_deref()));
            // The mark does nothing without the chain that masquerades what has it.
            if name == MARK_MASQ {
                open.push(POSTROUTING);
            }
        }
        held
    }
}

fn leads_to<Id>(rule: &Rule<Id>, chains: &BTreeSet<&str>) -> bool {
    rule.target.as_deref().is_some_and(|target| chains.contains(target))
}

fn is_of_kube_proxy(name: &str) -> bool {
    let is_hash =
        |rest: &str| rest.len() == HASH && rest.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'2'..=b'7'));
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.strip_prefix(prefix).is_some_and(is_hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `name*` is a chain at a hook; then the targets of its rules.
    fn made_of(chains: &[(&str, &[&str])]) -> Table<usize> {
        let rule = |(id, target): (usize, &&str)| Rule { id, target: Some((*target).to_owned()) };
        let chain = |(name, targets): &(&str, &[&str])| {
            let rules = targets.iter().enumerate().map(rule).collect();
            let is_base = name.ends_with('*');
            (name.trim_end_matches('*').to_owned(), Chain { is_base, rules })
        };
        Table { chains: chains.iter().map(chain).collect() }
    }

    const NAT: [(&str, &[&str]); 8] = [
        ("PREROUTING*", &["CNI-HOSTPORT-DNAT", "KUBE-SERVICES"]),
        ("POSTROUTING*", &["KUBE-POSTROUTING", "MASQUERADE"]),
        ("KUBE-SERVICES", &["KUBE-SVC-TCOU7JCQXEZGVUNU", "KUBE-NODEPORTS"]),
        ("KUBE-NODEPORTS", &[]),
        ("KUBE-SVC-TCOU7JCQXEZGVUNU", &["KUBE-MARK-MASQ", "KUBE-SEP-ZZZZ7JCQXEZGVUNU"]),
        ("KUBE-SEP-ZZZZ7JCQXEZGVUNU", &["KUBE-MARK-MASQ", "DNAT"]),
        ("KUBE-MARK-MASQ", &["MARK"]),
        ("KUBE-POSTROUTING", &["RETURN", "MARK", "MASQUERADE"]),
    ];

    /// 2.24-leftovers.
    #[test]
    fn what_kube_proxy_made_goes_and_nothing_else() {
        let table = made_of(
            &[
                &NAT[..],
                &[
                    ("CNI-HOSTPORT-DNAT", &["DNAT"]),
                    ("KUBE-KUBELET-CANARY", &[]),
                    ("KUBE-FIREWALL", &["DROP"]),
                    ("KUBE-SVC-BY-HAND", &["RETURN"]),
                    ("KUBE-POD-FW-TCOU7JCQXEZGVUNU", &["RETURN"]),
                ],
            ]
            .concat(),
        );
        let plan = table.plan();
        assert_eq!(plan.jumps, [("POSTROUTING", &0), ("PREROUTING", &1)]);
        let mut ours: Vec<&str> = NAT[2..].iter().map(|(name, _)| *name).collect();
        ours.sort_unstable();
        assert_eq!(plan.chains, ours);
        assert_eq!((plan.rules, plan.kept), (10, vec![]));
    }

    /// 2.24-leftovers: with what a foreign chain uses, what that needs stays.
    #[test]
    fn a_chain_that_others_use_stays_with_all_that_it_leads_to() {
        let table = made_of(&[&NAT[..], &[("CNI-DN-1", &["KUBE-MARK-MASQ", "DNAT"])]].concat());
        let plan = table.plan();
        assert_eq!(plan.kept, [("KUBE-MARK-MASQ", "CNI-DN-1")]);
        assert_eq!(plan.jumps, [("PREROUTING", &1)]);
        assert!(!plan.chains.contains(&"KUBE-MARK-MASQ") && !plan.chains.contains(&"KUBE-POSTROUTING"));
        assert_eq!(plan.chains.len(), 4);

        let by_hand = [("OUTPUT*", &["KUBE-SVC-TCOU7JCQXEZGVUNU"][..])];
        let table = made_of(&[&NAT[..], &by_hand].concat());
        let plan = table.plan();
        assert_eq!(plan.kept, [("KUBE-SVC-TCOU7JCQXEZGVUNU", "OUTPUT")]);
        assert_eq!(plan.chains, ["KUBE-NODEPORTS", "KUBE-SERVICES"]);
    }

    /// 2.24-leftovers: a kubelet before 1.28 has two of these chains itself.
    #[test]
    fn what_an_old_kubelet_made_stays() {
        let kubelet = [("KUBE-MARK-DROP", &["MARK"][..])];
        let table = made_of(&[&NAT[..], &kubelet].concat());
        let plan = table.plan();
        assert_eq!((&plan.jumps[..], plan.chains.len()), (&[("PREROUTING", &1)][..], 4));
        let table = made_of(&[&NAT[1..2], &NAT[6..], &kubelet].concat());
        assert!(table.plan().is_empty());
        assert_eq!(table.plan().kept, []);
    }
}
