//! The network namespaces of this node, as far as this process sees them.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    panic::resume_unwind,
    path::{Path, PathBuf},
    thread,
};

use nix::sched::{CloneFlags, setns};

/// A namespace, held open.
pub(super) struct Namespace {
    /// Keeps it alive.
    pub(super) file: File,
    /// Its names, or without one its process with the lowest id.
    pub(super) paths: Vec<PathBuf>,
}

/// Every namespace that has a name or a process, each once. Processes of others are seen only with the host's /proc
/// (`hostPID`).
pub(super) fn all() -> Vec<Namespace> {
    seen().0
}

/// The same, and whether processes refused to show theirs: without CAP_SYS_PTRACE those do that may do more than this one.
pub(super) fn seen() -> (Vec<Namespace>, bool) {
    let mut processes: Vec<(u32, PathBuf)> = entries("/proc")
        .into_iter()
        .filter_map(|path| Some((process_id(&path)?, path.join("ns/net"))))
        .collect();
    processes.sort();
    let mut found: BTreeMap<(u64, u64), Namespace> = BTreeMap::new();
    let mut is_partial = false;
    let names = entries("/run/netns").into_iter().map(|path| (path, true));
    for (path, is_name) in names.chain(processes.into_iter().map(|(_, path)| (path, false))) {
        if let Err(error) = add(&mut found, path, is_name) {
            // Namespaces and processes come and go.
            is_partial |= error.kind() == io::ErrorKind::PermissionDenied;
        }
    }
    (found.into_values().collect(), is_partial)
}

fn add(found: &mut BTreeMap<(u64, u64), Namespace>, path: PathBuf, is_name: bool) -> io::Result<()> {
    let file = File::open(&path)?;
    let inode = file.metadata().map(|namespace| (namespace.dev(), namespace.ino()))?;
    let known = found.entry(inode).or_insert_with(|| Namespace { file, paths: Vec::new() });
    if is_name || known.paths.is_empty() {
        known.paths.push(path);
    }
    Ok(())
}

/// Does something inside a namespace: a thread of its own enters it, because a thread cannot be trusted to come back.
pub(super) fn inside<T: Send>(
    namespace: &File,
    action: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    thread::scope(|scope| {
        let entered = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            action()
        });
        entered.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

fn entries(folder: &str) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn process_id(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_namespace_is_found_once() {
        let own = fs::metadata("/proc/self/ns/net").unwrap().ino();
        let found = all();
        let inode = |namespace: &&Namespace| namespace.file.metadata().is_ok_and(|file| file.ino() == own);
        assert_eq!(found.iter().filter(inode).count(), 1);
        assert!(found.iter().all(|namespace| !namespace.paths.is_empty()));
    }
}
