//! A folder for the files of one running control plane.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};
use xtask::paths::target_dir;

/// etcd's data in the folder.
pub(super) const STORE: &str = "etcd";

/// `target/control-plane/run/<pid>-<number>/`. On drop it loses the store's data and keeps certificates and logs, for
/// whoever asks why a test failed; the next process to make one removes the folders of processes that are gone.
#[derive(Debug)]
pub(super) struct RunFolder(PathBuf);

impl RunFolder {
    pub(super) fn make() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let all = target_dir().join("control-plane").join("run");
        fs::create_dir_all(&all).with_context(|| format!("cannot make {}", all.display()))?;
        remove_abandoned(&all)?;
        let name = format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let folder = all.join(name);
        // One with our name can only be left from an earlier process with the same id.
        drop(fs::remove_dir_all(&folder));
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self(folder))
    }

    /// A folder that somebody else looks after, made if need be.
    pub(super) fn at(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self(folder.to_owned()))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        // What cannot be removed now is removed by a later run.
        drop(fs::remove_dir_all(self.0.join(STORE)));
    }
}

/// Removes the folders of processes that are gone.
fn remove_abandoned(all: &Path) -> Result<()> {
    for entry in fs::read_dir(all)? {
        let entry = entry?;
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.split('-').next()).unwrap_or_default();
        if !Path::new("/proc").join(pid).exists() {
            // Another process may be removing the same folder.
            drop(fs::remove_dir_all(entry.path()));
        }
    }
    Ok(())
}
