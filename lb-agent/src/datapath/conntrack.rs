//! Settings of the kernel's own connection tracking, which kube-proxy sets and other programs of a node count on.

use std::{fs, io, path::Path, time::Duration};

use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Where the kernel has them, for the network namespace of the reader.
const FOLDER: &str = "/proc/sys/net/netfilter";

/// Between two looks whether connection tracking has come.
const LOOK: Duration = Duration::from_secs(30);

/// Gives each sysctl its value. They are there with the module nf_conntrack, which may come later, with the first rule that needs it.
pub async fn run(sysctls: Vec<(&'static str, u64)>, stop: CancellationToken) {
    while !set_all(Path::new(FOLDER), &sysctls) {
        debug!("no connection tracking in the kernel yet");
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Whether all that is to be done was tried: not if one is not there.
fn set_all(folder: &Path, sysctls: &[(&'static str, u64)]) -> bool {
    let mut are_there = true;
    for (name, value) in sysctls {
        match set(&folder.join(name), *value) {
            Ok(false) => {}
            Ok(true) => info!(name, value, "set a sysctl of connection tracking"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => are_there = false,
            Err(error) => warn!(
                name, value, %error,
                "cannot set a sysctl of connection tracking: set it on the node, or leave it to the node by the flag \
                 --conntrack-.. with 0"
            ),
        }
    }
    are_there
}

/// Whether it had another value. What is right is not written: /proc/sys may be read-only.
fn set(path: &Path, value: u64) -> io::Result<bool> {
    let value = value.to_string();
    if fs::read_to_string(path)?.trim_end() == value {
        return Ok(false);
    }
    fs::write(path, value)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_right_is_left_and_what_is_missing_is_awaited() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("a"), "5\n").unwrap();
        assert!(!set(&path("a"), 5).unwrap());
        assert!(!set_all(folder.path(), &[("a", 7), ("b", 8)]), "b has not come yet");
        assert_eq!(fs::read_to_string(path("a")).unwrap(), "7");
        fs::write(path("b"), "1\n").unwrap();
        assert!(set_all(folder.path(), &[("a", 7), ("b", 8)]));
        assert_eq!(fs::read_to_string(path("b")).unwrap(), "8");
    }
}
