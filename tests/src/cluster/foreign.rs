//! That no node has a rule of a service proxy in its kernel: the claim that lb-agent stands in kube-proxy's place.

use std::fs::File;
use std::path::Path;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use lb_agent::leftovers;
use nix::sched::{CloneFlags, setns};

use super::layout::State;
use super::network;

/// What the nodes have, one line each, with the node's name first.
///
/// # Errors
/// A node's rules cannot all be seen.
pub(super) fn rules(state: &State) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for (number, netns) in (1..).zip(&state.nodes) {
        let name = network::name(number);
        let found = find(netns).with_context(|| format!("node {name}"))?;
        ensure!(found.unseen.is_empty(), "node {name}: {}", found.unseen.join(", "));
        lines.extend(found.leftovers.iter().map(|leftover| format!("{name}: {leftover}")));
        lines.extend(found.kept.iter().map(|kept| format!("{name}: {kept}")));
    }
    Ok(lines)
}

/// Fails if a node has any.
pub(super) fn expect_none(state: &State) -> Result<()> {
    let rules = rules(state)?;
    ensure!(
        rules.is_empty(),
        "nodes have rules of a service proxy, which lb-agent does without:\n{}",
        rules.join("\n")
    );
    Ok(())
}

/// Looks from a thread of its own in the network namespace of that name.
fn find(netns: &str) -> Result<leftovers::Found> {
    let path = Path::new("/run/netns").join(netns);
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let look = move || {
        setns(file, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace (needs root)")?;
        Ok(leftovers::find())
    };
    thread::spawn(look).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
