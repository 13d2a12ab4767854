//! The folder itself: which files it has, in what state, and when to look again.

use core::time::Duration;
use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::{fs, fs::Metadata};

use rustix::fs::OFlags;
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;
use tracing::debug;

use super::parse::Format;

/// The folder is looked at this often even if the kernel reports nothing: reports are missing for files behind symbolic
/// links, on network file systems, and when the user's number of inotify instances is used up.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What tells one content of a file from another without reading it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Signature {
    device: u64,
    inode: u64,
    size: u64,
    /// Nanoseconds since 1970.
    modified: i128,
    /// Nanoseconds since 1970; catches a write that leaves size and time of modification as they were.
    changed: i128,
}

impl Signature {
    fn of(meta: &Metadata) -> Self {
        let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: nanos(meta.mtime(), meta.mtime_nsec()),
            changed: nanos(meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// The format of a manifest, by its name; `None` for other files. Names that begin with a dot are left alone: editors'
/// temporary files, and the folders behind a mounted `ConfigMap`.
pub(super) fn format(path: &Path) -> Option<Format> {
    let name = path.file_name()?.to_str()?;
    if name.starts_with('.') {
        return None;
    }
    match path.extension()?.to_str()? {
        "yaml" | "yml" => Some(Format::Yaml),
        "json" => Some(Format::Json),
        _ => None,
    }
}

/// What has the name of a manifest in a folder, links followed, whatever it is: [`read`] tells.
pub(super) fn scan(folder: &Path) -> io::Result<BTreeMap<Arc<Path>, Signature>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if format(&path).is_none() {
            continue;
        }
        let meta = match fs::metadata(&path) {
            // Such as a link to itself: nothing that concerns the other files.
            Err(error) if error.kind() != io::ErrorKind::NotFound => fs::symlink_metadata(&path),
            result => result,
        };
        match meta {
            Ok(meta) => {
                found.insert(path.into(), Signature::of(&meta));
            }
            // Gone again, or a link to nowhere: the same as not there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Reads a file, and says which content it was. Folders, pipes and devices are refused: a pipe
/// that nobody writes to would block for ever.
pub(super) fn read(path: &Path) -> io::Result<(Vec<u8>, Signature)> {
    let check = |meta: &Metadata| {
        if meta.is_file() { Ok(()) } else { Err(io::Error::other("it is not a regular file")) }
    };
    // Before, because opening a pipe tells its writer; and after, because it may be another file by then.
    check(&fs::metadata(path)?)?;
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut file = fs::File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    check(&file.metadata()?)?;
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut file, &mut bytes)?;
    Ok((bytes, Signature::of(&file.metadata()?)))
}

#[expect(
    deprecated,
    reason = "its successor is unsafe to call; an `OwnedFd` stays open for as long as it lives"
)]
fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

/// Waits for changes of a folder.
pub(super) struct Wake {
    folder: Arc<Path>,
    /// `None` where inotify cannot be had; then the folder is looked at regularly and no more.
    inotify: Option<AsyncFd<OwnedFd>>,
}

impl Wake {
    pub(super) fn new(folder: Arc<Path>) -> Self {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)
            .map_err(io::Error::from)
            .and_then(register)
            .inspect_err(
                |error| debug!(%error, "inotify cannot be used, the folder is looked at once a second"),
            )
            .ok();
        Self { folder, inotify }
    }

    /// Reports changes from now on. Called before each look at the folder: the folder may have been replaced, and watching
    /// the same one again changes nothing.
    pub(super) fn watch(&self) {
        let flags = WatchFlags::CREATE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        if let Some(inotify) = &self.inotify
            && let Err(error) = inotify::add_watch(inotify.get_ref(), &*self.folder, flags)
        {
            debug!(%error, folder = %self.folder.display(), "folder cannot be watched");
        }
    }

    /// Returns when the folder may have changed, after [`LOOK_EVERY`] at the latest.
    pub(super) async fn changed(&self) {
        let Some(inotify) = &self.inotify else {
            tokio::time::sleep(LOOK_EVERY).await;
            return;
        };
        if let Ok(Ok(mut guard)) = tokio::time::timeout(LOOK_EVERY, inotify.readable()).await {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reports = Reader::new(inotify.get_ref(), &mut buffer);
            // What happened does not matter: the folder is compared as a whole.
            while reports.next().is_ok() {}
            guard.clear_ready();
        }
    }
}
