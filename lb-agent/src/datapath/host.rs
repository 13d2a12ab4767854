//! What this host is: kernel version, cgroup2, network namespace. Errors name the thing and the remedy.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use nix::{
    sys::{
        statfs::{CGROUP2_SUPER_MAGIC, statfs},
        utsname::uname,
    },
    unistd::geteuid,
};
use tracing::warn;

use super::cookie;

/// Why this host cannot run the agent.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Not root, or a root without its capabilities.
    #[error("lb-agent has no {missing}: run it as root, or grant CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")]
    Capabilities {
        /// Names of those that are missing.
        missing: String,
    },
    /// The kernel is too old.
    #[error("kernel {found} is too old: lb-agent needs 5.10 or newer")]
    Kernel {
        /// `uname -r`
        found: String,
    },
    /// `--refuse-by hook` on a kernel that cannot.
    #[error(
        "--refuse-by hook needs bpf_set_retval (kernel 5.18), and this kernel has none: use --refuse-by auto"
    )]
    NoSetRetval,
    /// There is no cgroup2 mount.
    #[error(
        "no cgroup2 is mounted: mount one (mount -t cgroup2 cgroup2 /sys/fs/cgroup) or name its folder with --cgroup"
    )]
    NoCgroup2,
    /// Only the cgroup of this container is mounted.
    #[error(
        "{path} is the cgroup of this container and not the root of cgroup2: mount the host's /sys/fs/cgroup into the container \
         and name it with --cgroup"
    )]
    NotRoot {
        /// The mount that was found.
        path: PathBuf,
    },
    /// The named folder is not on a cgroup2.
    #[error("{path} is not a cgroup2 folder: name one with --cgroup, or leave the flag out to use the root")]
    NotCgroup2 {
        /// The folder that was asked for.
        path: PathBuf,
    },
}

/// Oldest kernel that the programs load on.
const OLDEST: (u32, u32) = (5, 10);

/// Checks the kernel's version.
///
/// # Errors
/// [`HostError::Kernel`].
pub fn check_kernel() -> Result<(), HostError> {
    let name = uname().ok();
    let release =
        name.as_ref().map_or_else(String::new, |name| name.release().to_string_lossy().into_owned());
    match version(&release) {
        Some(found) if found < OLDEST => Err(HostError::Kernel { found: release }),
        _ => Ok(()),
    }
}

/// Major and minor of a release like `5.10.0-32-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

/// include/uapi/linux/capability.h
const CAP_SYS_ADMIN: u32 = 21;
/// What loading and attaching take where `CAP_SYS_ADMIN`, which holds all of it, is not there. `CAP_PERFMON`, because the
/// verifier lets nobody else compute with pointers into maps as compilers do.
const NEEDED: [(&str, u32); 3] = [("CAP_BPF", 39), ("CAP_NET_ADMIN", 12), ("CAP_PERFMON", 38)];

/// Checks that the process may load programs.
///
/// # Errors
/// [`HostError::Capabilities`].
pub fn check_capabilities() -> Result<(), HostError> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let missing = missing_capabilities(&status, geteuid().is_root());
    if missing.is_empty() {
        Ok(())
    } else {
        Err(HostError::Capabilities { missing: missing.join(" and no ") })
    }
}

/// Which of the needed capabilities a `/proc/self/status` (proc(5)) does not have. One that says nothing is root's or nobody's.
fn missing_capabilities(status: &str, is_root: bool) -> Vec<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(if is_root { u64::MAX } else { 0 });
    let has = |capability: u32| effective >> capability & 1 == 1;
    NEEDED
        .into_iter()
        .filter(|(_, capability)| !has(CAP_SYS_ADMIN) && !has(*capability))
        .map(|(name, _)| name)
        .collect()
}

/// The cgroup2 folder to attach to: the named one, else the root of cgroup2, wherever it is mounted.
///
/// # Errors
/// [`HostError::NoCgroup2`], [`HostError::NotCgroup2`], [`HostError::NotRoot`].
pub fn cgroup(named: Option<&Path>) -> Result<PathBuf, HostError> {
    if let Some(path) = named {
        return if is_cgroup2(path) {
            Ok(path.to_owned())
        } else {
            Err(HostError::NotCgroup2 { path: path.to_owned() })
        };
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    root_of(&visible(cgroup2_mounts(&mounts)))
}

fn is_cgroup2(path: &Path) -> bool {
    statfs(path).is_ok_and(|kind| kind.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// Without those that a later mount hides, which the kernel goes on listing: the path leads elsewhere, or nowhere.
fn visible(mounts: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    mounts.filter(|path| is_cgroup2(path)).collect()
}

/// The root of cgroup2 among its mounts. A container has a mount of its own whose root is its own cgroup: programs that are
/// attached there would serve nobody but the agent.
fn root_of(mounts: &[PathBuf]) -> Result<PathBuf, HostError> {
    // Every cgroup but the root has this file (Documentation/admin-guide/cgroup-v2.rst).
    let is_root = |path: &&PathBuf| !path.join("cgroup.type").exists();
    match (mounts.iter().find(is_root), mounts.first()) {
        (Some(root), _) => Ok(root.clone()),
        (None, Some(own)) => Err(HostError::NotRoot { path: own.clone() }),
        (None, None) => Err(HostError::NoCgroup2),
    }
}

/// The cgroup2 mounts of a mountinfo (proc(5)): hybrid hosts have one below the v1 controllers.
fn cgroup2_mounts(mountinfo: &str) -> impl Iterator<Item = PathBuf> {
    mountinfo.lines().filter_map(|line| {
        let (fields, kind) = line.split_once(" - ")?;
        let point = fields.split(' ').nth(4)?;
        (kind.split(' ').next() == Some("cgroup2")).then(|| PathBuf::from(point.replace("\\040", " ")))
    })
}

/// Cookie of this process's network namespace, which is the host's; 0 if it cannot be learned, which programs take for the
/// initial namespace. `cgroup` is the folder that programs are attached to.
pub fn netns_cookie(cgroup: &Path) -> u64 {
    cookie::of_this_process(cgroup).unwrap_or_else(|error| {
        warn!(
            error = &error as &dyn Error,
            "cannot learn the cookie of this network namespace, taking it for the initial one"
        );
        0
    })
}

#[cfg(test)]
mod tests {
    use core::slice;

    use super::*;

    #[test]
    fn versions_of_all_distributions_are_read() {
        assert_eq!(version("5.10.0-32-amd64"), Some((5, 10)));
        assert_eq!(version("6.18.44-fc-v595"), Some((6, 18)));
        assert_eq!(version("5.4"), Some((5, 4)));
        assert_eq!(version("unknown"), None);
    }

    #[test]
    fn each_missing_capability_is_named() {
        let status = |mask: u64| format!("Name:\tlb-agent\nCapInh:\t0\nCapEff:\t{mask:016x}\n");
        let missing = |mask| missing_capabilities(&status(mask), false);
        let all = NEEDED.map(|(_, capability)| 1 << capability).iter().sum::<u64>();
        assert!(missing(all).is_empty());
        assert!(missing(1 << CAP_SYS_ADMIN).is_empty());
        for (name, capability) in NEEDED {
            assert_eq!(missing(all & !(1 << capability)), [name]);
        }
        assert_eq!(missing(0).len(), NEEDED.len());
        assert_eq!((missing_capabilities("", true).len(), missing_capabilities("", false).len()), (0, 3));
    }

    #[test]
    fn a_hybrid_hosts_cgroup2_is_found_below_the_v1_controllers() {
        let mounts = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        let found: Vec<PathBuf> = cgroup2_mounts(mounts).collect();
        assert_eq!(found, [PathBuf::from("/sys/fs/cgroup/unified")]);
        assert_eq!(cgroup2_mounts("22 1 0:20 / / rw - ext4 /dev/vda rw\n").count(), 0);
    }

    #[test]
    fn a_mount_that_another_one_hides_is_none() {
        let hiding = tempfile::tempdir().unwrap();
        let mounts = [hiding.path().to_owned(), hiding.path().join("gone")];
        assert!(visible(mounts.into_iter()).is_empty());
    }

    /// 2.25-cgroup-root: inside a container the first mount is the container's own cgroup, and the host's may be mounted beside it.
    #[test]
    fn a_containers_own_cgroup_is_not_taken_for_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let [own, root] = ["own", "root"].map(|name| folder.path().join(name));
        fs::create_dir(&own).unwrap();
        fs::create_dir(&root).unwrap();
        fs::write(own.join("cgroup.type"), "domain\n").unwrap();
        assert_eq!(root_of(&[own.clone(), root.clone()]).unwrap(), root);
        let said = root_of(slice::from_ref(&own)).unwrap_err().to_string();
        assert!(said.starts_with(&format!("{} is the cgroup of this container", own.display())), "{said}");
        assert!(matches!(root_of(&[]), Err(HostError::NoCgroup2)));
    }
}
