//! Child cgroups of the v2 hierarchy: where tests attach programs and put processes.
//!
//! The root of the hierarchy belongs to the machine: it is never handed out, and every path given out by
//! this module is below a folder that this process made.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{names, wait_for};

/// Environment variable of every child placed in a [`Cgroup`], inherited by its own children. Its value is
/// the process id of the test.
const MARK: &str = "LB_TESTS_OWNER";

/// How long killed processes may take to leave a cgroup.
const EMPTY_LIMIT: Duration = Duration::from_secs(20);

/// How long a child of ours may take from fork to exec: before, it has no mark.
const EXEC_LIMIT: Duration = Duration::from_secs(1);

/// A cgroup v2 folder. Dropping it kills the processes in it that were placed there by this library, and
/// removes it with all folders below.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes a cgroup directly below the mount of the v2 hierarchy.
    pub fn new(label: &str) -> Result<Self> {
        let name = names::unique(label);
        Self::make(mount()?.join(name))
    }

    /// Makes a cgroup inside this one. Programs attached here see its processes too.
    pub fn child(&self, label: &str) -> Result<Self> {
        Self::make(self.path.join(names::unique(label)))
    }

    fn make(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("cannot make cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// The folder: what `lb-agent --cgroup` and a program's attach call take.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Process ids in this cgroup and in those below.
    pub fn processes(&self) -> Vec<u32> {
        folders(&self.path).iter().flat_map(|folder| processes(folder)).collect()
    }

    /// Kills every process here and below that this library placed, and waits until it has left.
    pub fn kill_all(&self) -> Result<()> {
        empty(&self.path)
    }

    /// Descriptor of `cgroup.procs`, or the error number.
    pub(crate) fn join_file(&self) -> Result<OwnedFd, i32> {
        let file = OpenOptions::new().write(true).open(self.path.join("cgroup.procs"));
        file.map(OwnedFd::from).map_err(|error| error.raw_os_error().unwrap_or(libc::ENOENT))
    }

    /// Name and value of the environment variable that marks our children.
    #[expect(clippy::unused_self, reason = "only who holds a cgroup has use for the mark")]
    pub(crate) fn mark(&self) -> (&'static str, String) {
        (MARK, process::id().to_string())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = empty(&self.path).and_then(|()| remove(&self.path)) {
            eprintln!("{error:#}");
        }
    }
}

/// Removes cgroups of dead processes, with what those processes left running inside.
pub(crate) fn sweep() {
    let Ok(mount) = mount() else { return };
    for path in names::left_over(&mount) {
        if let Err(error) = empty(&path).and_then(|()| remove(&path)) {
            eprintln!("left-over of an earlier run stays: {error:#}");
        }
    }
}

/// Where the v2 hierarchy is mounted. On a machine with both versions this is not `/sys/fs/cgroup`.
pub fn mount() -> Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    find_mount(&text).context("no cgroup2 file system is mounted (mount -t cgroup2 none /sys/fs/cgroup)")
}

/// Mount point of the first cgroup2 line. Format: proc_pid_mountinfo(5).
fn find_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let is_v2 = file_system.split(' ').next() == Some("cgroup2");
        is_v2.then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// `path` and all cgroups below, parents first.
fn folders(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(folders(&entry.path()));
        }
    }
    found
}

/// Ids in one cgroup. A cgroup that went away has none.
fn processes(folder: &Path) -> Vec<u32> {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn empty(path: &Path) -> Result<()> {
    let mut all = folders(path);
    all.reverse();
    let begin = Instant::now();
    wait_for(&format!("cgroup {} to be empty", path.display()), EMPTY_LIMIT, || {
        let inside: Vec<u32> = all.iter().flat_map(|folder| processes(folder)).collect();
        let stranger = inside.iter().find(|pid| owner(**pid) == Owner::Stranger);
        if let Some(stranger) = stranger.filter(|_| begin.elapsed() > EXEC_LIMIT) {
            return Ok(Err(anyhow!("process {stranger} in cgroup {} is none of ours", path.display())));
        }
        for pid in inside.iter().copied().filter(|pid| owner(*pid) == Owner::Us) {
            let pid = Pid::from_raw(i32::try_from(pid).map_err(|error| error.to_string())?);
            match kill(pid, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(format!("process {pid} cannot be killed: {errno}")),
            }
        }
        if inside.is_empty() { Ok(Ok(())) } else { Err(format!("processes {inside:?} are in it")) }
    })?
}

fn remove(path: &Path) -> Result<()> {
    let mut all = folders(path);
    all.reverse();
    for folder in all {
        wait_for(&format!("cgroup {} to be removed", folder.display()), EMPTY_LIMIT, || {
            match fs::remove_dir(&folder) {
                // A parent that was dropped first has taken its children along.
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                // A killed process leaves the list before it leaves the cgroup.
                result => result.map_err(|error| error.to_string()),
            }
        })?;
    }
    Ok(())
}

/// Who put a process into a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// This library.
    Us,
    /// Somebody else, such as a person who moved a shell: it is left alone, and nobody waits long for it.
    Stranger,
    /// It has no environment, as when it is ending: it will be gone.
    Nobody,
}

fn owner(pid: u32) -> Owner {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    if environment.is_empty() {
        return Owner::Nobody;
    }
    let is_marked = environment
        .split(|byte| *byte == 0)
        .any(|entry| entry.strip_prefix(MARK.as_bytes()).is_some_and(|rest| rest.starts_with(b"=")));
    if is_marked && pid != process::id() { Owner::Us } else { Owner::Stranger }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_v2_mount_is_found_beside_v1_mounts() {
        let text = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                    41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount(text), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(find_mount("27 1 254:0 / / rw - ext4 /dev/vda rw\n"), None);
    }
}
