//! Where maps and links live in bpffs, and whether what is found there is ours.
//!
//! ```text
//! <pin dir>/v1/maps/lb_frontends ...    every map
//! <pin dir>/v1/links/lb_connect4 ...    every link; it holds its program
//! ```

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use aya::maps::{MapData, MapInfo, MapType};
use lb_common::abi::{
    Addr, Addr4, Address, Affinity, AffinityKey, Backend, Config, Device, Flow, FlowKey, Frontend,
    FrontendKey, Netns, PortList, RangePrefix, Service, Slot, SockTcp, SockUdp, maps, meta,
};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::Array;

/// What a map must look like to be ours.
#[derive(Clone, Copy, Debug)]
pub struct MapSpec {
    /// Name in the object, in bpffs and in the kernel.
    pub name: &'static str,
    /// Kind of map.
    pub kind: MapType,
    /// Size of a key in bytes.
    pub key: u32,
    /// Size of a value in bytes.
    pub value: u32,
    /// `BPF_F_*`
    pub flags: u32,
}

impl MapSpec {
    /// What is found under this name.
    fn found_as(&self, info: &MapInfo) -> Self {
        let kind = info.map_type().unwrap_or(MapType::Unspecified);
        Self {
            name: self.name,
            kind,
            key: info.key_size(),
            value: info.value_size(),
            flags: info.map_flags(),
        }
    }

    /// Whether a map is this one, whatever its capacity.
    fn is_like(&self, info: &MapInfo) -> bool {
        let found = self.found_as(info);
        found.kind == self.kind && (found.key, found.value, found.flags) == (self.key, self.value, self.flags)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "layouts are a few dozen bytes")]
const fn spec<K, V>(name: &'static str, kind: MapType, flags: usize) -> MapSpec {
    MapSpec { name, kind, key: size_of::<K>() as u32, value: size_of::<V>() as u32, flags: flags as u32 }
}

/// Every map of the object.
pub const SPECS: [MapSpec; 19] = [
    spec::<FrontendKey, Frontend>(maps::FRONTENDS, MapType::Hash, maps::NO_PREALLOC),
    spec::<Addr, Address>(maps::ADDRESSES, MapType::Hash, maps::NO_PREALLOC),
    spec::<u32, Service>(maps::SERVICES, MapType::Array, maps::MMAPABLE),
    spec::<u32, Slot>(maps::SLOTS, MapType::Array, maps::MMAPABLE),
    spec::<u32, Backend>(maps::BACKENDS, MapType::Array, maps::MMAPABLE),
    spec::<u64, Netns>(maps::NETNS, MapType::Hash, maps::NO_PREALLOC),
    spec::<u32, Config>(maps::CONFIG, MapType::Array, maps::MMAPABLE),
    spec::<u32, u64>(maps::META, MapType::Array, maps::MMAPABLE),
    spec::<u32, SockTcp>(maps::SOCK_TCP, MapType::SkStorage, maps::NO_PREALLOC),
    spec::<u32, SockUdp>(maps::SOCK_UDP, MapType::SkStorage, maps::NO_PREALLOC),
    spec::<AffinityKey, Affinity>(maps::AFFINITY, MapType::LruHash, 0),
    spec::<u32, Device>(maps::DEVICES, MapType::Hash, maps::NO_PREALLOC),
    spec::<RangePrefix, u32>(maps::SRC_RANGES, MapType::LpmTrie, maps::NO_PREALLOC),
    spec::<u32, PortList>(maps::PORTS, MapType::Array, maps::MMAPABLE),
    spec::<FlowKey<Addr4>, Flow<Addr4>>(maps::NEW4, MapType::LruHash, 0),
    spec::<FlowKey<Addr>, Flow<Addr>>(maps::NEW6, MapType::LruHash, 0),
    spec::<FlowKey<Addr4>, Flow<Addr4>>(maps::FLOWS4, MapType::Hash, 0),
    spec::<FlowKey<Addr>, Flow<Addr>>(maps::FLOWS6, MapType::Hash, 0),
    spec::<u32, u64>(maps::REASONS, MapType::PerCpuArray, 0),
];

/// Why the folder in bpffs cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The path is not on a bpffs.
    #[error(
        "{path} is not on a bpffs: mount one (mount -t bpf bpf /sys/fs/bpf) or name its folder with --pin-dir"
    )]
    NotBpffs {
        /// The folder that was asked for.
        path: PathBuf,
    },
    /// Another agent runs with the same folder.
    #[error("another lb-agent is running with {path}: stop it, or give this one a --pin-dir of its own")]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// A pin is not a map of this layout.
    #[error(
        "{path} is not a map of this version: expected {expected}, found {found}; another program made it, or another version of \
         lb-agent: remove it with `lb-agent cleanup`, or choose another --pin-dir"
    )]
    Foreign {
        /// The pin.
        path: PathBuf,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The maps have the right sizes, and another meaning.
    #[error(
        "the maps in {path} have layout {found}, and this lb-agent has layout {expected}: use the lb-agent that made them, or \
         remove them with `lb-agent cleanup`",
        expected = meta::LAYOUT
    )]
    Layout {
        /// The folder.
        path: PathBuf,
        /// What `lb_meta` says.
        found: u64,
    },
    /// Any other failure of the file system.
    #[error("cannot {what} {path}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// The versioned folder, locked against other agents while it is held.
#[derive(Debug)]
pub struct PinDir {
    root: PathBuf,
    _lock: Flock<File>,
}

/// Version of the folder's layout. Layouts of maps have their own: `lb_common::abi::meta::LAYOUT`.
const VERSION: &str = "v1";

/// So long the lock may outlive a killed agent: a process that it was starting has it until it executes its own program.
const PATIENCE: Duration = Duration::from_secs(2);

/// Waits for a lock, `EWOULDBLOCK` after `patience`.
fn lock(mut file: File, patience: Duration) -> Result<Flock<File>, Errno> {
    let begin = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((unlocked, Errno::EWOULDBLOCK)) if begin.elapsed() < patience => file = unlocked,
            result => return result.map_err(|(_, errno)| errno),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

impl PinDir {
    /// Creates the folder if needed and locks it.
    ///
    /// # Errors
    /// [`PinError::NotBpffs`], [`PinError::Locked`], [`PinError::Io`].
    pub fn open(dir: &Path) -> Result<Self, PinError> {
        check_bpffs(dir)?;
        let root = dir.join(VERSION);
        for folder in [&maps_folder(&root), &links_folder(&root)] {
            fs::create_dir_all(folder).map_err(|error| io_error("create", folder, error))?;
        }
        let file = File::open(&root).map_err(|error| io_error("open", &root, error))?;
        let lock = lock(file, PATIENCE).map_err(|errno| match errno {
            Errno::EWOULDBLOCK => PinError::Locked { path: dir.to_owned() },
            errno => io_error("lock", &root, errno.into()),
        })?;
        Ok(Self { root, _lock: lock })
    }

    /// A folder that need not be on a bpffs, for owners of maps in memory.
    ///
    /// # Panics
    /// If there is no such folder.
    #[cfg(test)]
    pub(crate) fn for_memory(root: &Path) -> Self {
        let file = File::open(root).unwrap();
        Self { root: root.to_owned(), _lock: lock(file, PATIENCE).unwrap() }
    }

    /// Path of a map's pin.
    pub fn map(&self, name: &str) -> PathBuf {
        maps_folder(&self.root).join(name)
    }

    /// Path of a link's pin.
    pub fn link(&self, name: &str) -> PathBuf {
        links_folder(&self.root).join(name)
    }

    /// Folder of the links.
    pub fn links(&self) -> PathBuf {
        links_folder(&self.root)
    }

    /// What is pinned under a map's name, if it is that map.
    ///
    /// # Errors
    /// [`PinError::Foreign`].
    pub fn found(&self, spec: &MapSpec) -> Result<Option<MapInfo>, PinError> {
        let path = self.map(spec.name);
        if !path.exists() {
            return Ok(None);
        }
        let foreign =
            |found: String| PinError::Foreign { path: path.clone(), expected: describe(spec), found };
        let info = MapInfo::from_pin(&path).map_err(|error| foreign(format!("something else ({error})")))?;
        if spec.is_like(&info) { Ok(Some(info)) } else { Err(foreign(describe(&spec.found_as(&info)))) }
    }

    /// Whether the maps of this folder, whose `lb_meta` is given, have the layout of this agent.
    ///
    /// # Errors
    /// [`PinError::Layout`].
    pub fn check_layout(&self, meta: &dyn Array) -> Result<(), PinError> {
        check_layout(&self.root, meta)
    }

    /// Pins `map` beside the pin that it will replace: nobody looks there before [`PinDir::commit`].
    ///
    /// # Errors
    /// [`PinError::Io`]; every pin is still what it was.
    pub fn stage(&self, name: &str, map: &MapData) -> Result<(), PinError> {
        let next = self.next(name);
        remove(&next)?;
        map.pin(&next).map_err(|error| io_error("pin", &next, io::Error::other(error)))
    }

    /// Puts staged maps in the place of what is pinned under their names.
    ///
    /// Maps of one content take their places one by one, each atomically: any mixture of old and new pins is whole. Of two
    /// contents it is not. Then all old pins go first, and whoever finds only some of [`DATA`] makes all of it anew.
    ///
    /// # Errors
    /// [`PinError::Io`]; some pins may be new ones.
    pub fn commit(&self, staged: &Staged) -> Result<(), PinError> {
        if staged.content == Content::Other {
            staged.names.iter().try_for_each(|name| remove(&self.map(name)))?;
        }
        staged.names.iter().try_for_each(|name| {
            let path = self.map(name);
            fs::rename(self.next(name), &path).map_err(|error| io_error("rename to", &path, error))
        })
    }

    /// Removes what was staged and never committed: it holds a map's memory, and nobody looks for it.
    pub fn unstage(&self) {
        for MapSpec { name, .. } in SPECS {
            // What cannot be removed is named when something is staged there.
            drop(fs::remove_file(self.next(name)));
        }
    }

    fn next(&self, name: &str) -> PathBuf {
        self.map(&format!("{name}_next"))
    }
}

/// Maps that are not yet under their names, see [`PinDir::commit`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "nobody finds the maps before they are committed"]
pub struct Staged {
    /// Whose pins will be replaced.
    pub names: Vec<&'static str>,
    /// What they hold.
    pub content: Content,
}

/// What a staged map holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// The same entries as the map that is pinned.
    Same,
    /// Nothing yet, and in the end something else.
    Other,
}

/// The maps that have a meaning only together.
pub const DATA: [&str; 9] = [
    maps::FRONTENDS,
    maps::ADDRESSES,
    maps::SERVICES,
    maps::SLOTS,
    maps::BACKENDS,
    maps::CONFIG,
    maps::META,
    maps::SRC_RANGES,
    maps::PORTS,
];
/// What is made anew when one of them is missing: also what programs remember by ids that mean something else from then on.
pub const ANEW: [&str; 10] = {
    let [a, b, c, d, e, f, g, h, i] = DATA;
    [a, b, c, d, e, f, g, h, i, maps::AFFINITY]
};

fn remove(path: &Path) -> Result<(), PinError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path, error)),
        _ => Ok(()),
    }
}

/// Fails unless `lb_meta` of the folder `path` says that the maps have the layout of this agent, or nothing yet.
///
/// # Errors
/// [`PinError::Layout`].
pub fn check_layout(path: &Path, words: &dyn Array) -> Result<(), PinError> {
    let (magic, found) = (words.load(meta::MAGIC_AT as usize), words.load(meta::LAYOUT_AT as usize));
    // Both are zero in the moment between the creation of the maps and their first use.
    let is_known = [(0, 0), (0, meta::LAYOUT), (meta::MAGIC, meta::LAYOUT)].contains(&(magic, found));
    if is_known { Ok(()) } else { Err(PinError::Layout { path: path.to_owned(), found }) }
}

/// Fails unless `dir`, or where it would be made, is on a bpffs.
///
/// # Errors
/// [`PinError::NotBpffs`], [`PinError::Io`].
pub fn check_bpffs(dir: &Path) -> Result<(), PinError> {
    let exists = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let kind = statfs(exists).map_err(|errno| io_error("look at", exists, errno.into()))?;
    if kind.filesystem_type() == BPF_FS_MAGIC {
        Ok(())
    } else {
        Err(PinError::NotBpffs { path: dir.to_owned() })
    }
}

/// Folder of the maps under a pin dir, for tools that only read.
pub fn maps_dir(dir: &Path) -> PathBuf {
    maps_folder(&dir.join(VERSION))
}

/// Folder of the links under a pin dir.
pub fn links_dir(dir: &Path) -> PathBuf {
    links_folder(&dir.join(VERSION))
}

fn maps_folder(root: &Path) -> PathBuf {
    root.join("maps")
}

fn links_folder(root: &Path) -> PathBuf {
    root.join("links")
}

fn io_error(what: &'static str, path: &Path, source: io::Error) -> PinError {
    PinError::Io { what, path: path.to_owned(), source }
}

fn describe(spec: &MapSpec) -> String {
    format!(
        "{:?} with {}-byte keys, {}-byte values and flags {:#x}",
        spec.kind, spec.key, spec.value, spec.flags
    )
}

/// Opens a pinned map for reading, without a lock: the agent may run or not. Nothing if there is no such pin.
///
/// # Errors
/// [`PinError::Foreign`] if it is something else, [`PinError::Io`].
pub fn open_spec(dir: &Path, spec: &MapSpec) -> Result<Option<MapData>, PinError> {
    let path = maps_dir(dir).join(spec.name);
    if !path.try_exists().map_err(|error| io_error("look at", &path, error))? {
        return Ok(None);
    }
    let foreign = |found| PinError::Foreign { path: path.clone(), expected: describe(spec), found };
    let map = MapData::from_pin(&path)
        .map_err(|error| foreign(format!("something that cannot be opened as a map ({error})")))?;
    let info = map.info().map_err(|error| io_error("look at", &path, io::Error::other(error)))?;
    if spec.is_like(&info) { Ok(Some(map)) } else { Err(foreign(describe(&spec.found_as(&info)))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_a_dying_process_holds_is_waited_for_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let open = || File::open(folder.path()).unwrap();
        let held = lock(open(), Duration::ZERO).unwrap();
        assert_eq!(lock(open(), Duration::from_millis(50)).unwrap_err(), Errno::EWOULDBLOCK);
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(100));
                drop(held);
            });
            lock(open(), Duration::from_mins(1)).unwrap();
        });
    }

    #[test]
    fn a_folder_outside_bpffs_is_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let error = check_bpffs(&folder.path().join("not/there")).unwrap_err().to_string();
        assert!(error.contains("is not on a bpffs: mount one"), "{error}");
    }
}
