//! The tables of the older backend of iptables, which only its own tools can read and write without a private system call.
//!
//! A kernel says in /proc which tables there are; without any, no tool is needed, and none is run: it would make them.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    process::{Command, Output, Stdio},
    time::Duration,
};

use super::{
    Backend, Found,
    chains::{Chain, Plan, Rule, TABLES, Table},
};
use crate::{healer::output_within, model::Family};

/// A list that is not there by then waits for a lock that nobody gives back.
const LIMIT: Duration = Duration::from_secs(30);
/// Seconds that a change waits for the lock of iptables: kube-proxy itself waits for five.
const WAIT: &str = "5";

/// Tables by name.
type Tables = BTreeMap<String, Table<String>>;

/// What kube-proxy has left there.
pub(super) fn find() -> Found {
    let mut found = Found::default();
    for family in Family::BOTH {
        match read(family) {
            Ok(tables) => {
                for (name, table) in &tables {
                    found.add_plan(Backend::Legacy, family, name, &table.plan());
                }
            }
            Err(why) => found.unseen.push(why),
        }
    }
    found
}

/// Deletes it, each table by one transaction, and says what that was and what could not be deleted.
pub(super) fn remove() -> (Found, Vec<String>) {
    let (mut removed, mut failures) = (Found::default(), Vec::new());
    for family in Family::BOTH {
        let tables = match read(family) {
            Ok(tables) => tables,
            Err(why) => {
                removed.unseen.push(why);
                continue;
            }
        };
        for (name, table) in &tables {
            let plan = table.plan();
            match restore(family, &script(name, &plan)) {
                Ok(()) => removed.add_plan(Backend::Legacy, family, name, &plan),
                Err(error) => failures.push(format!("{} {family} {name}: {error}", Backend::Legacy)),
            }
        }
    }
    (removed, failures)
}

fn word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// The tables that have something to look at.
fn read(family: Family) -> Result<Tables, String> {
    // Of the namespace of this thread. Where the file is missing, the kernel has no such tables.
    let path = format!("/proc/thread-self/net/{}_tables_names", word(family));
    let names = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Tables::new()),
        names => names.map_err(|error| format!("cannot read {path}: {error}"))?,
    };
    if !names.lines().any(|name| TABLES.contains(&name)) {
        return Ok(Tables::new());
    }
    let saved = save(family).map_err(|error| {
        format!("the tables of iptables-legacy of {family} are in use, and cannot be looked at: {error}")
    })?;
    Ok(parse(&saved))
}

/// What `iptables-save` prints.
fn save(family: Family) -> io::Result<String> {
    let output = output_within(&mut tool(family, "save")?, LIMIT)?;
    check(&output)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn restore(family: Family, script: &str) -> io::Result<()> {
    if script.is_empty() {
        return Ok(());
    }
    let mut command = tool(family, "restore")?;
    command.args(["--noflush", "--wait", WAIT]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(script.as_bytes()));
    check(&child.wait_with_output()?)?;
    written
}

/// `iptables-legacy-save`, or `iptables-save` where that is the same: before 1.8, and where the distribution has it so.
fn tool(family: Family, action: &str) -> io::Result<Command> {
    let legacy = format!("{}tables-legacy-{action}", word(family));
    let plain = format!("{}tables-{action}", word(family));
    for name in [&legacy, &plain] {
        match output_within(Command::new(name).arg("--version"), LIMIT) {
            Ok(output) if !String::from_utf8_lossy(&output.stdout).contains("nf_tables") => {
                return Ok(Command::new(name));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Err(io::Error::other(format!("{legacy} is needed, of the package iptables")))
}

fn check(output: &Output) -> io::Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    Err(io::Error::other(format!("the tool ended with {}: {said}", output.status)))
}

/// What `iptables-restore --noflush` is told, in the order that it needs: naming a chain empties it, then it is in nobody's use,
/// then it goes. Empty if there is nothing to do.
fn script(table: &str, plan: &Plan<'_, String>) -> String {
    if plan.is_empty() {
        return String::new();
    }
    let emptied = plan.chains.iter().map(|chain| format!(":{chain} - [0:0]\n"));
    let jumps = plan.jumps.iter().map(|(chain, rule)| format!("-D {chain} {rule}\n"));
    let deleted = plan.chains.iter().map(|chain| format!("-X {chain}\n"));
    let lines: String = emptied.chain(jumps).chain(deleted).collect();
    format!("*{table}\n{lines}COMMIT\n")
}

/// Reads what `iptables-save` prints.
fn parse(saved: &str) -> Tables {
    let mut tables = Tables::new();
    let mut current = None;
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            current = TABLES.contains(&name).then(|| tables.entry(name.to_owned()).or_default());
        }
        let Some(table) = &mut current else { continue };
        if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split(' ');
            let name = words.next().unwrap_or_default();
            // Only what is at a hook has a policy.
            let is_base = words.next() != Some("-");
            table.chains.insert(name.to_owned(), Chain { is_base, rules: Vec::new() });
        } else if let Some((name, rule)) = line.strip_prefix("-A ").and_then(|line| line.split_once(' ')) {
            let target = target(rule, table);
            if let Some(chain) = table.chains.get_mut(name) {
                chain.rules.push(Rule { id: rule.to_owned(), target });
            }
        }
    }
    tables
}

/// The chain that a rule jumps or goes to: all chains are declared before the first rule. The last such pair, because a comment may
/// have one too.
fn target(rule: &str, table: &Table<String>) -> Option<String> {
    let words = words(rule);
    let is_jump = |pair: &&[&str]| ["-j", "-g"].contains(&pair[0]) && table.chains.contains_key(pair[1]);
    words.windows(2).rev().find(is_jump).map(|pair| pair[1].to_owned())
}

/// The words of a rule; a text in quotes is one. Inside, a backslash takes its meaning from the next character.
fn words(rule: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = rule.trim_start();
    while !rest.is_empty() {
        let (mut quoted, mut escaped) = (false, false);
        let end = rest.find(|c: char| {
            let ends = c == ' ' && !quoted;
            quoted ^= c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        words.push(word);
        rest = after.trim_start();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `iptables-save` printed on a node of a dual-stack LoadBalancer Service with affinity and policy Local, served by kube-proxy
    /// 1.36.3, among rules of others (`tests/tests/leftovers.rs` has them).
    const SAVED: &str = include_str!("fixtures/kube-proxy-1.36.txt");

    /// 2.24-leftovers.
    #[test]
    fn every_chain_of_a_real_kube_proxy_is_found() {
        let tables = parse(SAVED);
        let found = |name: &str| {
            let plan = tables[name].plan();
            (plan.chains.len(), plan.rules, plan.jumps.len(), plan.kept)
        };
        assert_eq!(found("mangle"), (1, 0, 0, vec![]));
        assert_eq!(found("filter"), (6, 6, 9, vec![]));
        assert_eq!(found("nat"), (10, 19, 3, vec![]));
        let left: Vec<&str> = tables["nat"]
            .chains
            .iter()
            .filter(|(name, chain)| !chain.is_base && !tables["nat"].plan().chains.contains(&name.as_str()))
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(left, ["CNI-HOSTPORT-DNAT", "KUBE-KUBELET-CANARY", "KUBE-ROUTER-INPUT"]);
    }

    /// 2.24-leftovers: one transaction names nothing but kube-proxy's chains and the rules that lead to them.
    #[test]
    fn a_script_empties_unlinks_and_deletes() {
        let tables = parse(SAVED);
        assert_eq!(
            script("mangle", &tables["mangle"].plan()),
            "*mangle\n:KUBE-PROXY-CANARY - [0:0]\n-X KUBE-PROXY-CANARY\nCOMMIT\n"
        );
        let nat = script("nat", &tables["nat"].plan());
        let unlinked: Vec<&str> = nat.lines().filter(|line| line.starts_with("-D")).collect();
        assert_eq!(
            unlinked,
            [
                "-D OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES",
                "-D POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING",
                "-D PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES",
            ]
        );
        assert!(!nat.contains("CNI") && !nat.contains("KUBELET"), "{nat}");
        assert_eq!(script("nat", &parse("*nat\n:A - [0:0]\nCOMMIT\n")["nat"].plan()), "");
    }

    #[test]
    fn a_target_is_told_from_what_comments_say() {
        let table = &parse("*nat\n:A - [0:0]\n:B - [0:0]\nCOMMIT\n")["nat"];
        for (rule, meant) in [
            ("-m comment --comment \"x -j A\" -j B", Some("B")),
            ("-m comment --comment \"x \\\" -j A\" -j DNAT --to-destination 10.0.0.1", None),
            ("-m comment --comment -j -g A", Some("A")),
            ("-m socket --transparent -j A", Some("A")),
            ("-m comment --comment \"a \\\\\" -j A", Some("A")),
            ("-p tcp", None),
            ("", None),
        ] {
            assert_eq!(target(rule, table).as_deref(), meant, "{rule}");
        }
    }
}
