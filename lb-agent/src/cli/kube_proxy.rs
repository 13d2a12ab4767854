//! `lb-agent cleanup --kube-proxy`: what a kube-proxy has left in this node's kernel is removed.

use std::io::{self, Write as _};

use anyhow::bail;
use serde::Serialize;

use super::{OutputArgs, print, table::section};
use crate::leftovers::{self, Leftover, Removed};

/// What was done.
#[derive(Debug, Default, Serialize)]
struct Done {
    #[serde(flatten)]
    result: Removed,
    /// What a second look has found.
    remaining: Vec<Leftover>,
    /// Processes of a kube-proxy that will write it again.
    running: Vec<u32>,
}

/// Removes what a kube-proxy has left in the network namespace of this process. An agent may be running.
pub(super) fn run(output: &OutputArgs) -> anyhow::Result<()> {
    let running = leftovers::running();
    for warning in leftovers::find().warnings {
        // Beside what is printed as a result, and before anything is done.
        writeln!(io::stderr(), "warning: {warning}")?;
    }
    let result = leftovers::remove();
    let done = Done { result, remaining: leftovers::find().leftovers, running };
    print(output, &done, Done::render)?;
    if !done.result.failures.is_empty() || !done.remaining.is_empty() {
        bail!("not everything that kube-proxy has left is gone");
    }
    Ok(())
}

impl Done {
    fn render(&self) -> String {
        let Self { result: Removed { removed, kept, unseen, failures }, remaining, running } = self;
        let lines = |items: &[Leftover]| items.iter().map(ToString::to_string).collect::<Vec<_>>();
        let nothing = removed.is_empty() && failures.is_empty();
        let running: Vec<String> = running.iter().map(|id| format!("process {id}")).collect();
        let sections = [
            nothing.then(|| "nothing to remove: no kube-proxy has left anything here".to_owned()),
            section("removed", &lines(removed)),
            section("not removed", failures),
            section("there again, or still", &lines(remaining)),
            section("kept", kept),
            section("not looked at", unseen),
            section(
                "a kube-proxy is running and will write its rules again, so remove its DaemonSet first",
                &running,
            ),
        ];
        sections.into_iter().flatten().collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2.24-leftovers.
    #[test]
    fn nothing_to_remove_is_said_and_so_is_a_kube_proxy_that_runs() {
        let mut done = Done::default();
        assert_eq!(done.render(), "nothing to remove: no kube-proxy has left anything here");
        done.result.removed.push(Leftover::Nftables { family: "IPv4".into(), rules: 7 });
        done.running.push(12);
        assert_eq!(
            done.render(),
            "removed:\n  nftables IPv4: the table kube-proxy with 7 rules\n\
             a kube-proxy is running and will write its rules again, so remove its DaemonSet first:\n  process 12"
        );
    }
}
