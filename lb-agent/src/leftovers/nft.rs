//! What nf_tables holds: kube-proxy's own tables, and the tables that `iptables-nft` keeps there.
//!
//! Everything is deleted by one transaction of the kernel, which names the generation of the rule set that was read: had anybody
//! changed a rule since, nothing would be deleted. Numbers are those of `include/uapi/linux/netfilter/nf_tables.h`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io, thread,
    time::Duration,
};

use super::{
    Backend, Found, Leftover,
    chains::{Chain, Rule, TABLES, Table},
};
use crate::{
    model::Family,
    netlink::{Attributes, Channel, NETLINK_NETFILTER, Request, attribute, attributes, text},
};

/// The table of kube-proxy's nftables mode, one for each family (`pkg/proxy/nftables/proxier.go`).
const OWN_TABLE: &str = "kube-proxy";

/// `NFNL_SUBSYS_NFTABLES`, where it is part of a type of message.
const SUBSYSTEM: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_BATCH_GENID: u16 = 1;

const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_DELCHAIN: u16 = 5;
const NFT_MSG_GETRULE: u16 = 7;
const NFT_MSG_DELRULE: u16 = 8;
const NFT_MSG_GETGEN: u16 = 16;

const NFTA_GEN_ID: u16 = 1;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CHAIN: u16 = 2;

/// Bytes of `struct nfgenmsg`.
const NFGENMSG: usize = 4;
/// How often somebody else may change a rule between our look and our transaction.
const ATTEMPTS: u32 = 20;
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// Handles of rules, as the kernel writes them.
type Handle = [u8; 8];

/// What was read, all of one generation.
#[derive(Default)]
struct Ruleset {
    generation: Vec<u8>,
    /// Rules in kube-proxy's own tables.
    own: BTreeMap<Family, usize>,
    /// Who has chains that translate addresses: the family, and whether they are kube-proxy's own.
    translated: BTreeSet<(Family, bool)>,
    /// Tables of iptables that have a chain of kube-proxy's name.
    iptables: BTreeMap<(Family, String), Table<Handle>>,
}

/// What kube-proxy has left there.
///
/// # Errors
/// The kernel's answer.
pub(super) fn find() -> io::Result<Found> {
    Ok(again(|| Ruleset::read(open()?.as_ref()))?.found())
}

/// Deletes it, and says what that was.
///
/// # Errors
/// The kernel's answer; nothing is deleted then.
pub(super) fn remove() -> io::Result<Found> {
    again(|| {
        let channel = open()?;
        let ruleset = Ruleset::read(channel.as_ref())?;
        let found = ruleset.found();
        let begin = message(
            NFNL_MSG_BATCH_BEGIN,
            &Attributes::default().bytes(NFNL_BATCH_GENID, &ruleset.generation),
        );
        let end = message(NFNL_MSG_BATCH_END, &Attributes::default());
        if let Some(channel) = &channel {
            channel.transact(&begin, &ruleset.deletions(), &end)?;
        }
        Ok(found)
    })
}

/// Nothing where the kernel has no nfnetlink: then it has no rules either.
fn open() -> io::Result<Option<Channel>> {
    match Channel::open(NETLINK_NETFILTER) {
        Ok(channel) => Ok(Some(channel)),
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Tries until nobody else changes rules at the same time.
fn again<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let has_changed = |error: &io::Error| {
        matches!(error.raw_os_error(), Some(libc::ERESTART)) || error.kind() == io::ErrorKind::Interrupted
    };
    for _ in 1..ATTEMPTS {
        match attempt() {
            Err(error) if has_changed(&error) => thread::sleep(PAUSE),
            result => return result,
        }
    }
    attempt()
}

impl Ruleset {
    fn read(channel: Option<&Channel>) -> io::Result<Self> {
        let mut read = Self::default();
        let Some(channel) = channel else { return Ok(read) };
        let generation = request(NFT_MSG_GETGEN, None, &Attributes::default());
        let answer = channel.ask(&generation, |body| {
            let generation = attribute(attributes_of(body), NFTA_GEN_ID);
            generation.unwrap_or_default().clone_into(&mut read.generation);
        });
        match answer {
            // No nf_tables in this kernel.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(read),
            answer => answer?,
        }
        read.translated = translated(channel)?;
        for family in Family::BOTH {
            if table_names(channel, family)?.iter().any(|name| name == OWN_TABLE) {
                read.own.insert(family, 0);
            }
            for (name, mut table) in chains(channel, family)? {
                let is_own = name == OWN_TABLE;
                if !is_own && !Table::<Handle>::may_have_leftovers(table.chains.keys().map(String::as_str)) {
                    continue;
                }
                for (chain, read) in &mut table.chains {
                    read.rules = rules(channel, family, &name, chain)?;
                }
                if is_own {
                    read.own.insert(family, table.chains.values().map(|chain| chain.rules.len()).sum());
                } else {
                    read.iptables.insert((family, name), table);
                }
            }
        }
        Ok(read)
    }

    fn found(&self) -> Found {
        let mut found = Found::default();
        for (family, rules) in &self.own {
            found.leftovers.push(Leftover::Nftables { family: family.to_string(), rules: *rules });
            if self.translated.contains(&(*family, true)) && !self.translated.contains(&(*family, false)) {
                found.warnings.push(warning(*family));
            }
        }
        for ((family, name), table) in &self.iptables {
            found.add_plan(Backend::Nft, *family, name, &table.plan());
        }
        found
    }

    fn deletions(&self) -> Vec<Request> {
        let named = |name: &str| Attributes::default().text(NFTA_TABLE_NAME, name);
        let mut requests: Vec<Request> = self
            .own
            .keys()
            .map(|family| request(NFT_MSG_DELTABLE, Some(*family), &named(OWN_TABLE)))
            .collect();
        for ((family, table), read) in &self.iptables {
            let plan = read.plan();
            let rules = |chain: &str| named(table).text(NFTA_RULE_CHAIN, chain);
            // Rules before the chains that they lead to: those must not be in use.
            for (chain, handle) in &plan.jumps {
                let rule = rules(chain).bytes(NFTA_RULE_HANDLE, *handle);
                requests.push(request(NFT_MSG_DELRULE, Some(*family), &rule));
            }
            for chain in &plan.chains {
                requests.push(request(NFT_MSG_DELRULE, Some(*family), &rules(chain)));
            }
            for chain in &plan.chains {
                let chain = named(table).text(NFTA_CHAIN_NAME, chain);
                requests.push(request(NFT_MSG_DELCHAIN, Some(*family), &chain));
            }
        }
        requests
    }
}

/// What becomes of open connections when the only chains that translate go.
fn warning(family: Family) -> String {
    let table = match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    format!(
        "{family}: nothing but kube-proxy's table translates addresses here, and with its last such chain the kernel ends to translate connections that \
         are open: what kube-proxy has masqueraded or led to a pod is reset. To keep them, add a chain that does nothing before (nft 'add table \
         {table} keep; add chain {table} keep post {{ type nat hook postrouting priority 100; }}'), and delete it when they are gone"
    )
}

/// Who has chains that translate addresses, as [`Ruleset::translated`] has it. Each of them keeps the kernel's hooks for all.
fn translated(channel: &Channel) -> io::Result<BTreeSet<(Family, bool)>> {
    let mut found = BTreeSet::new();
    channel.list(&request(NFT_MSG_GETCHAIN, None, &Attributes::default()), |body| {
        let families: &[Family] = match body.first().map(|family| i32::from(*family)) {
            Some(libc::NFPROTO_IPV4) => &[Family::V4],
            Some(libc::NFPROTO_IPV6) => &[Family::V6],
            Some(libc::NFPROTO_INET) => &Family::BOTH,
            _ => &[],
        };
        let is_inet = families.len() > 1;
        let body = attributes_of(body);
        if text(body, NFTA_CHAIN_TYPE) == Some("nat") && attribute(body, NFTA_CHAIN_HOOK).is_some() {
            let is_own = !is_inet && text(body, NFTA_CHAIN_TABLE) == Some(OWN_TABLE);
            found.extend(families.iter().map(|family| (*family, is_own)));
        }
    })?;
    // The older tables translate as soon as they are there, whatever they hold.
    for (family, names) in [(Family::V4, "ip_tables_names"), (Family::V6, "ip6_tables_names")] {
        let names = fs::read_to_string(format!("/proc/thread-self/net/{names}")).unwrap_or_default();
        found.extend(names.lines().any(|name| name == "nat").then_some((family, false)));
    }
    Ok(found)
}

fn table_names(channel: &Channel, family: Family) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    channel.list(&request(NFT_MSG_GETTABLE, Some(family), &Attributes::default()), |body| {
        names.extend(text(attributes_of(body), NFTA_TABLE_NAME).map(str::to_owned));
    })?;
    Ok(names)
}

/// The tables that may have something, with their chains and without rules.
fn chains(channel: &Channel, family: Family) -> io::Result<BTreeMap<String, Table<Handle>>> {
    let mut tables: BTreeMap<String, Table<Handle>> = BTreeMap::new();
    channel.list(&request(NFT_MSG_GETCHAIN, Some(family), &Attributes::default()), |body| {
        let body = attributes_of(body);
        let (table, name) = (text(body, NFTA_CHAIN_TABLE), text(body, NFTA_CHAIN_NAME));
        if let (Some(table), Some(name)) =
            (table.filter(|table| *table == OWN_TABLE || TABLES.contains(table)), name)
        {
            let is_base = attribute(body, NFTA_CHAIN_HOOK).is_some();
            let chains = &mut tables.entry(table.to_owned()).or_default().chains;
            chains.insert(name.to_owned(), Chain { is_base, rules: Vec::new() });
        }
    })?;
    Ok(tables)
}

/// The rules of one chain. Not those of a table at once: for each packet of answers the kernel counts anew from the first rule, which
/// took 50 s with 50,000 rules on two busy cores.
fn rules(channel: &Channel, family: Family, table: &str, chain: &str) -> io::Result<Vec<Rule<Handle>>> {
    let mut rules = Vec::new();
    let wanted = Attributes::default().text(NFTA_RULE_TABLE, table).text(NFTA_RULE_CHAIN, chain);
    channel.list(&request(NFT_MSG_GETRULE, Some(family), &wanted), |body| {
        let body = attributes_of(body);
        let is_wanted =
            text(body, NFTA_RULE_TABLE) == Some(table) && text(body, NFTA_RULE_CHAIN) == Some(chain);
        let handle = attribute(body, NFTA_RULE_HANDLE).and_then(|handle| handle.try_into().ok());
        if let Some(id) = handle.filter(|_| is_wanted) {
            rules.push(Rule { id, target: target(body) });
        }
    })?;
    Ok(rules)
}

/// The chain that a rule jumps or goes to. A rule of iptables ends with its one verdict.
fn target(rule: &[u8]) -> Option<String> {
    let expressions = attribute(rule, NFTA_RULE_EXPRESSIONS)?;
    let verdicts = attributes(expressions).filter_map(|(_, expression)| {
        let data = attribute(expression, NFTA_EXPR_DATA)?;
        let is_verdict = text(expression, NFTA_EXPR_NAME) == Some("immediate");
        let verdict = attribute(attribute(data, NFTA_IMMEDIATE_DATA)?, NFTA_DATA_VERDICT)?;
        text(verdict, NFTA_VERDICT_CHAIN).filter(|_| is_verdict)
    });
    verdicts.last().map(str::to_owned)
}

fn request(kind: u16, family: Option<Family>, attributes: &Attributes) -> Request {
    let family = match family {
        None => libc::NFPROTO_UNSPEC,
        Some(Family::V4) => libc::NFPROTO_IPV4,
        Some(Family::V6) => libc::NFPROTO_IPV6,
    };
    // Every protocol family fits.
    let fixed = [u8::try_from(family).unwrap_or_default(), 0, 0, 0];
    Request::new(SUBSYSTEM << 8 | kind, &fixed, attributes)
}

/// A message of nfnetlink itself, about [`SUBSYSTEM`].
fn message(kind: u16, attributes: &Attributes) -> Request {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    Request::new(kind, &[0, 0, high, low], attributes)
}

/// What follows `struct nfgenmsg`.
fn attributes_of(body: &[u8]) -> &[u8] {
    body.get(NFGENMSG..).unwrap_or_default()
}
