//! A BPF file system of one's own, for pinned maps and links.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::names;

/// A bpffs mounted at a fresh folder in the folder for temporary files. Dropping it unmounts, which releases
/// every pin, and removes the folder.
#[derive(Debug)]
pub struct Bpffs {
    path: PathBuf,
}

impl Bpffs {
    /// Mounts. Needs root.
    pub fn new(label: &str) -> Result<Self> {
        let path = env::temp_dir().join(names::unique(label));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let bpffs = Self { path };
        mount(Some("bpf"), &bpffs.path, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .with_context(|| format!("cannot mount a bpf file system at {}", bpffs.path.display()))?;
        Ok(bpffs)
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Unmounts and removes what dead processes left.
pub(crate) fn sweep() {
    for path in names::left_over(&env::temp_dir()) {
        remove(&path);
    }
}

/// Detaching cannot fail for a reader that still holds a file, and removing a folder only works when it is
/// empty: whatever goes wrong, nothing but our own mount is lost.
fn remove(path: &Path) {
    match umount2(path, MntFlags::MNT_DETACH) {
        // Not mounted: the mount may have failed, or another process sweeps too.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => eprintln!("cannot unmount {}: {errno}", path.display()),
    }
    if let Err(error) = fs::remove_dir(path)
        && path.exists()
    {
        eprintln!("cannot remove {}: {error}", path.display());
    }
}
