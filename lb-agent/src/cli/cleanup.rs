//! `lb-agent cleanup`: the programs are detached and every pin is removed.

use std::{
    cmp::Reverse,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use nix::net::if_::if_nameindex;
use serde::Serialize;

use super::{LookArgs, print, table::section};
use crate::{
    datapath::{PROGRAMS, tc},
    maps::pin::{PinDir, PinError, check_bpffs, links_dir, maps_dir},
    observe::server,
};

/// What every pin's name begins with.
const PREFIX: &str = "lb_";

/// What was done.
#[derive(Debug, Default, Serialize)]
struct Done {
    /// Links: their programs are detached.
    detached: Vec<PathBuf>,
    /// Filters of devices: their programs are detached.
    filters: Vec<String>,
    /// Maps, folders and the socket of an agent that is gone.
    removed: Vec<PathBuf>,
    /// What is not lb-agent's.
    remaining: Vec<PathBuf>,
}

/// Removes what agents have left in a pin folder, and their socket.
pub(super) fn run(look: &LookArgs) -> anyhow::Result<()> {
    let dir = &look.pins.pin_dir;
    check_bpffs(dir)?;
    let mut done = Done::default();
    if root(dir).exists() {
        // Held to the end, so that no agent starts over pins that are going away.
        let _lock = match PinDir::open(dir) {
            Err(PinError::Locked { path }) => {
                bail!("nothing was removed: an lb-agent is running with {}, stop it first", path.display())
            }
            opened => opened?,
        };
        done.pins(dir)?;
    }
    done.filters();
    done.socket(&look.socket.socket);
    done.remaining = below(dir);
    print(&look.output, &done, |done| done.render(dir))
}

/// The versioned folder.
fn root(dir: &Path) -> PathBuf {
    maps_dir(dir).parent().map_or_else(|| dir.to_owned(), Path::to_owned)
}

impl Done {
    /// Links first: a program must never look into maps that nobody can find any more.
    fn pins(&mut self, dir: &Path) -> anyhow::Result<()> {
        let mut links = pins(&links_dir(dir))?;
        // Stable: what is not a link of this version goes first.
        links.sort_by_key(|pin| {
            Reverse(PROGRAMS.iter().position(|at| pin.file_name().is_some_and(|name| name == at.name)))
        });
        for pin in links {
            remove(&pin)?;
            self.detached.push(pin);
        }
        for pin in pins(&maps_dir(dir))? {
            remove(&pin)?;
            self.removed.push(pin);
        }
        for folder in [links_dir(dir), maps_dir(dir), root(dir), dir.to_owned()] {
            match fs::remove_dir(&folder) {
                Ok(()) => self.removed.push(folder),
                // Something of somebody else's is inside, or it is the bpffs itself.
                Err(error) if is_kept(&error) => {}
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("cannot remove the folder {}", folder.display()));
                }
            }
        }
        Ok(())
    }

    /// The programs of devices where the kernel has no links for them.
    fn filters(&mut self) {
        let names: Vec<String> = if_nameindex()
            .map(|devices| {
                devices.iter().map(|device| device.name().to_string_lossy().into_owned()).collect()
            })
            .unwrap_or_default();
        self.filters = tc::remove_filters(names.iter().map(String::as_str));
    }

    /// The socket of an agent that has crashed. What is not such a socket is none of our business.
    fn socket(&mut self, socket: &Path) {
        if matches!(server::remove_stale(socket), Ok(true)) {
            self.removed.push(socket.to_owned());
        }
    }

    fn render(&self, dir: &Path) -> String {
        let nothing = self.detached.is_empty() && self.filters.is_empty() && self.removed.is_empty();
        let nothing =
            nothing.then(|| format!("nothing to remove: no lb-agent has left anything in {}", dir.display()));
        let paths =
            |paths: &[PathBuf]| paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
        let sections = [
            nothing,
            section("detached", &paths(&self.detached)),
            section("filters taken off", &self.filters),
            section("removed", &paths(&self.removed)),
            section("remaining, not made by lb-agent", &paths(&self.remaining)),
        ];
        sections.into_iter().flatten().collect::<Vec<_>>().join("\n")
    }
}

/// Our pins in a folder, sorted.
fn pins(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let failed = || format!("cannot read the folder {}", folder.display());
    let mut pins = Vec::new();
    for entry in fs::read_dir(folder).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            pins.push(entry.path());
        }
    }
    pins.sort();
    Ok(pins)
}

fn remove(pin: &Path) -> anyhow::Result<()> {
    fs::remove_file(pin).with_context(|| format!("cannot remove {}", pin.display()))
}

fn is_kept(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy)
}

/// Everything that is not a folder at or below `path`, sorted.
fn below(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(below(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pin folder made of files: removing a file and removing a pin are the same call.
    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join("lb").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        folder
    }

    #[test]
    fn links_go_before_maps_and_empty_folders_go_too() {
        let folder = folder(&["v1/maps/lb_services", "v1/links/lb_connect4", "v1/maps/lb_frontends_next"]);
        let dir = folder.path().join("lb");
        let mut done = Done::default();
        done.pins(&dir).unwrap();
        assert_eq!(done.detached, [dir.join("v1/links/lb_connect4")]);
        assert_eq!(
            done.removed[..2],
            [dir.join("v1/maps/lb_frontends_next"), dir.join("v1/maps/lb_services")]
        );
        assert!(!dir.exists());
    }

    /// While a reply could still show the backend, nothing hides one.
    #[test]
    fn programs_are_detached_in_the_opposite_order() {
        let names: Vec<String> = PROGRAMS.iter().map(|at| format!("v1/links/{}", at.name)).collect();
        let folder = folder(&names.iter().map(String::as_str).collect::<Vec<_>>());
        fs::create_dir(folder.path().join("lb/v1/maps")).unwrap();
        let dir = folder.path().join("lb");
        let mut done = Done::default();
        done.pins(&dir).unwrap();
        assert_eq!(done.detached, names.iter().rev().map(|name| dir.join(name)).collect::<Vec<_>>());
    }

    #[test]
    fn what_somebody_else_has_put_there_stays_and_is_named() {
        let folder =
            folder(&["v1/maps/lb_services", "v1/links/lb_connect4", "v1/maps/other", "v2/maps/lb_services"]);
        let dir = folder.path().join("lb");
        let mut done = Done::default();
        done.pins(&dir).unwrap();
        assert_eq!(below(&dir), [dir.join("v1/maps/other"), dir.join("v2/maps/lb_services")]);
    }

    #[test]
    fn nothing_to_remove_is_said() {
        let text = Done { remaining: vec!["/b/other".into()], ..Done::default() }.render(Path::new("/b/lb"));
        assert_eq!(
            text,
            "nothing to remove: no lb-agent has left anything in /b/lb\nremaining, not made by lb-agent:\n  /b/other"
        );
    }
}
