//! Names of kernel objects that outlive a killed process, and the removal of such left-overs.
//!
//! Every name is `lbt-<pid>-<number>-<label>`: unique while the process lives, so tests run in parallel, and
//! attributable to a dead process afterwards. [`unique`] sweeps once per process before it gives out the
//! first name; it touches only names of this form whose process is gone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{agent, bpffs, cgroup, netns};

const PREFIX: &str = "lbt-";

/// A name that no other object of this machine has: `lbt-<pid>-<number>-<label>`.
///
/// Characters of `label` other than letters, digits, `.` and `-` become `-`.
pub fn unique(label: &str) -> String {
    static SWEEP: Once = Once::new();
    static NUMBER: AtomicU32 = AtomicU32::new(1);

    SWEEP.call_once(sweep);
    let label: String =
        label.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    format!("{PREFIX}{}-{}-{label}", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Removes what dead processes left, agents and probes that still run included.
pub fn sweep() {
    netns::sweep();
    cgroup::sweep();
    // Homes first: their folders look like mount points of a bpffs.
    agent::sweep();
    bpffs::sweep();
}

/// Entries of `folder` that carry the name of a process which no longer runs. No folder, no entries.
pub(crate) fn left_over(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().and_then(owner).is_some_and(|pid| !is_running(pid)))
        .map(|entry| entry.path())
        .collect()
}

/// Process id in a name made by [`unique`].
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

fn is_running(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_our_form_have_an_owner() {
        assert_eq!(owner("lbt-42-1-node1"), Some(42));
        assert_eq!(owner("lbt-x-1-node1"), None);
        assert_eq!(owner("cni-42-1"), None);
    }

    #[test]
    fn names_of_running_processes_are_not_left_over() {
        let folder = std::env::temp_dir().join(format!("names-{}", process::id()));
        // No process has id u32::MAX: the kernel's limit is 2^22.
        let dead = folder.join("lbt-4294967295-1-x");
        for name in [folder.join(format!("lbt-{}-1-x", process::id())), dead.clone(), folder.join("other")] {
            fs::create_dir_all(name).unwrap();
        }
        assert_eq!(left_over(&folder), [dead]);
        fs::remove_dir_all(folder).unwrap();
    }
}
