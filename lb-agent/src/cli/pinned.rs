//! Pinned maps and links, opened for reading.
//!
//! No lock: the agent may run or not. What is found must have the layout of this version, else nothing is read from it.

use core::fmt::Debug;
use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use aya::{Pod, maps::MapData};
use lb_common::abi::{Reason, maps};

use crate::maps::{
    counters,
    kernel::{KernelArray, KernelTable},
    pin::{self, SPECS},
    sys::{self, LinkInfo},
};

/// A pin folder with maps of this version.
pub(super) struct Pinned {
    dir: PathBuf,
    /// `lb_meta`
    pub(super) meta: KernelArray,
}

/// What the kernel says of a pinned map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct MapState {
    /// `max_entries`; socket storage has none.
    pub(super) capacity: Option<u32>,
    /// Kernel memory in bytes, as fdinfo shows it.
    pub(super) bytes: Option<u64>,
}

impl Pinned {
    /// The folder, if an agent has pinned its maps there.
    ///
    /// # Errors
    /// [`pin::PinError`], maps of another version.
    pub(super) fn find(dir: &Path) -> anyhow::Result<Option<Self>> {
        pin::check_bpffs(dir)?;
        let Some(map) = open(dir, maps::META)? else { return Ok(None) };
        let meta = KernelArray::new(maps::META, &map)?;
        pin::check_layout(dir, &meta)?;
        Ok(Some(Self { dir: dir.to_owned(), meta }))
    }

    /// The folder.
    ///
    /// # Errors
    /// As [`Pinned::find`], and if no agent has pinned its maps there.
    pub(super) fn open(dir: &Path) -> anyhow::Result<Self> {
        Self::find(dir)?.with_context(|| nothing_pinned(dir))
    }

    /// A hash.
    pub(super) fn table<K: Pod + Ord + Debug + Send, V: Pod + Send>(
        &self,
        name: &'static str,
    ) -> anyhow::Result<KernelTable<K, V>> {
        Ok(KernelTable::new(name, self.map(name)?)?)
    }

    /// An array of words.
    pub(super) fn array(&self, name: &'static str) -> anyhow::Result<KernelArray> {
        Ok(KernelArray::new(name, &self.map(name)?)?)
    }

    /// The counters of all CPUs, summed up.
    pub(super) fn reasons(&self) -> anyhow::Result<Vec<(Reason, u64)>> {
        counters::reasons(&self.dir)?.with_context(|| self.gone(maps::REASONS))
    }

    /// Size and memory of a map; nothing if it is not pinned.
    pub(super) fn state(&self, name: &'static str) -> anyhow::Result<Option<MapState>> {
        let Some(map) = open(&self.dir, name)? else { return Ok(None) };
        let entries = map.info().with_context(|| format!("cannot look at {name}"))?.max_entries();
        let fd = map.fd().as_fd().as_raw_fd();
        let fdinfo = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
        Ok(Some(MapState { capacity: (entries != 0).then_some(entries), bytes: memlock(&fdinfo) }))
    }

    /// Held by whoever writes `lb_netns`, until the file is closed.
    pub(super) fn folder(&self) -> anyhow::Result<File> {
        let path = pin::maps_dir(&self.dir);
        File::open(&path).with_context(|| format!("cannot open {}", path.display()))
    }

    /// The map itself, for the kernel.
    pub(super) fn descriptor(&self, name: &'static str) -> anyhow::Result<MapData> {
        self.map(name)
    }

    fn map(&self, name: &'static str) -> anyhow::Result<MapData> {
        open(&self.dir, name)?.with_context(|| self.gone(name))
    }

    fn gone(&self, name: &str) -> String {
        let path = pin::maps_dir(&self.dir).join(name);
        format!("{} is gone: start lb-agent, which makes it anew", path.display())
    }
}

/// A pinned link; nothing if there is no such pin.
pub(super) fn link(dir: &Path, program: &str) -> anyhow::Result<Option<LinkInfo>> {
    let path = pin::links_dir(dir).join(program);
    let link = match sys::obj_get(&path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot open {}", path.display())),
    };
    match sys::link_info(link.as_fd()) {
        Ok(info) if info.kind == sys::LINK_TYPE_CGROUP => Ok(Some(info)),
        _ => bail!(
            "{} is not the link of a program at a cgroup: something else than lb-agent made it; remove it with `lb-agent cleanup`",
            path.display()
        ),
    }
}

/// The sentence for a folder without maps.
pub(super) fn nothing_pinned(dir: &Path) -> String {
    format!(
        "no maps are pinned in {}: no lb-agent has programmed this node with this --pin-dir, or it has been cleaned up",
        dir.display()
    )
}

/// A pinned map, if it is there and what its name says.
fn open(dir: &Path, name: &'static str) -> anyhow::Result<Option<MapData>> {
    let spec = SPECS.iter().find(|spec| spec.name == name).context("every map has a specification")?;
    Ok(pin::open_spec(dir, spec)?)
}

/// The `memlock` line of a map's fdinfo (proc(5)).
fn memlock(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_maps_memory_is_read_from_its_fdinfo() {
        let fdinfo =
            "pos:\t0\nflags:\t02000002\nmap_type:\t2\nmax_entries:\t4096\nmemlock:\t131328\nmap_id:\t7\n";
        assert_eq!(memlock(fdinfo), Some(131_328));
        assert_eq!(memlock("pos:\t0\n"), None);
    }
}
