//! Attaching the programs to a cgroup by pinned links, and replacing the programs of links that exist.
//!
//! A pinned link outlives the agent: stopping it leaves traffic flowing. The next agent replaces the program behind the
//! link atomically, so there is no moment without one.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSockAddr, ProgramError, links::FdLink, loaded_programs},
};

use super::{PROGRAMS, Program};
use crate::maps::{
    pin::PinDir,
    sys::{self, LINK_TYPE_CGROUP, LinkInfo},
};

/// Why a program could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The cgroup folder cannot be opened.
    #[error("cannot open the cgroup {path}")]
    Cgroup {
        /// The folder.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A program that tolerates no other is in the way.
    #[error(
        "the cgroup {cgroup} has a program that allows no other beside it: {others}; detach it (bpftool cgroup show {cgroup}, \
         bpftool cgroup detach) or attach lb-agent elsewhere with --cgroup"
    )]
    InTheWay {
        /// The folder.
        cgroup: PathBuf,
        /// Names and ids.
        others: String,
    },
    /// The object lacks a program.
    #[error("the BPF object has no program {0}: it was not built with this agent")]
    Missing(&'static str),
    /// The object's program is not what it should be.
    #[error("cannot use the program {program}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What is wrong.
        #[source]
        source: Box<ProgramError>,
    },
    /// The kernel refused.
    #[error("cannot attach {program} to {cgroup}")]
    Kernel {
        /// The program.
        program: &'static str,
        /// The folder.
        cgroup: PathBuf,
        /// The kernel's answer.
        #[source]
        source: Box<ProgramError>,
    },
    /// The kernel refused to replace a program.
    #[error("cannot replace the program {program} behind its link")]
    Update {
        /// The program.
        program: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A pin under a link's name is not that link.
    #[error(
        "{path} is not a link of {program} to a cgroup: another program made it; remove it (rm {path}), or choose another \
         --pin-dir"
    )]
    Foreign {
        /// The pin.
        path: PathBuf,
        /// The program whose link it must be.
        program: &'static str,
    },
    /// A pin could not be made or replaced.
    #[error("cannot {what} the link {path}")]
    Pin {
        /// What was attempted.
        what: &'static str,
        /// The pin.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// How a program came to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attached {
    /// A new link was made.
    New,
    /// The program of a pinned link was replaced.
    Replaced,
}

/// Replaces the programs behind all pinned links, wherever they lead, and makes no new link.
///
/// # Errors
/// [`AttachError`]; without [`AttachError::Foreign`], which is found before anything is changed, some hooks run the new
/// programs and others what they ran before.
pub fn replace(ebpf: &mut Ebpf, dir: &PinDir) -> Result<(), AttachError> {
    for (program, old) in pinned_links(dir)? {
        if let Some((link, _)) = old {
            // A link whose cgroup is gone cannot be updated, and serves nobody.
            update(ebpf, program, &link)?;
        }
    }
    Ok(())
}

/// Attaches every program to `cgroup`, by the pinned links if they are there.
///
/// # Errors
/// [`AttachError`]. A hook that cannot be had, or a foreign pin, is found before anything is changed: every hook runs what it
/// ran before.
pub fn attach(
    ebpf: &mut Ebpf,
    dir: &PinDir,
    cgroup: &Path,
) -> Result<Vec<(&'static str, Attached)>, AttachError> {
    let target = Target::open(cgroup)?;
    let here = |(_, info): &Pinned| info.cgroup == target.inode;
    let (known, unknown): (Vec<_>, Vec<_>) = pinned_links(dir)?
        .into_iter()
        .map(|(program, old)| (program, old.filter(here)))
        .partition(|(_, old)| old.is_some());
    // Nothing holds new links but this list: if a later hook cannot be had, none of them stays.
    let mut made = Vec::new();
    for (program, _) in unknown {
        made.push((program, new_link(ebpf, program, &target)?));
    }
    for (program, old) in known {
        let is_updated = old.map_or(Ok(false), |(link, _)| update(ebpf, program, &link))?;
        if !is_updated {
            made.push((program, new_link(ebpf, program, &target)?));
        }
    }
    let new: Vec<Program> = made.iter().map(|(program, _)| *program).collect();
    for (program, link) in made {
        pin_link(dir, program.name, link)?;
    }
    let how = |program: &Program| if new.contains(program) { Attached::New } else { Attached::Replaced };
    Ok(PROGRAMS.iter().map(|program| (program.name, how(program))).collect())
}

/// A pinned link, and what the kernel says of it.
type Pinned = (OwnedFd, LinkInfo);

/// Where to attach.
struct Target<'a> {
    path: &'a Path,
    folder: File,
    /// The inode number of a cgroup folder is its cgroup id.
    inode: u64,
}

impl<'a> Target<'a> {
    fn open(path: &'a Path) -> Result<Self, AttachError> {
        let failed = |source| AttachError::Cgroup { path: path.to_owned(), source };
        let folder = File::open(path).map_err(failed)?;
        let inode = folder.metadata().map_err(failed)?.ino();
        Ok(Self { path, folder, inode })
    }

    fn failed(&self, program: Program, source: ProgramError) -> AttachError {
        AttachError::Kernel { program: program.name, cgroup: self.path.to_owned(), source: Box::new(source) }
    }
}

/// The loaded program.
fn loaded(ebpf: &mut Ebpf, program: Program) -> Result<&mut CgroupSockAddr, AttachError> {
    let found = ebpf.program_mut(program.name).ok_or(AttachError::Missing(program.name))?;
    found.try_into().map_err(|error| unusable(program, error))
}

fn unusable(program: Program, source: ProgramError) -> AttachError {
    AttachError::Program { program: program.name, source: Box::new(source) }
}

/// Replaces the program of a link; false if the link leads to no cgroup any more.
fn update(ebpf: &mut Ebpf, program: Program, link: &OwnedFd) -> Result<bool, AttachError> {
    let fd = loaded(ebpf, program)?.fd().map_err(|error| unusable(program, error))?;
    match sys::link_update(link.as_fd(), fd.as_fd()) {
        Ok(()) => Ok(true),
        // kernel/bpf/cgroup.c, cgroup_bpf_replace
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(false),
        Err(source) => Err(AttachError::Update { program: program.name, source }),
    }
}

/// A link that is not pinned: it ends with the value.
fn new_link(ebpf: &mut Ebpf, program: Program, target: &Target<'_>) -> Result<FdLink, AttachError> {
    let loaded = loaded(ebpf, program)?;
    let id = loaded
        .attach(&target.folder, CgroupAttachMode::Single)
        .map_err(|error| refused(error, program, target))?;
    let link = loaded.take_link(id).map_err(|error| unusable(program, error))?;
    FdLink::try_from(link).map_err(|error| pin_error("take", target.path, io::Error::other(error)))
}

/// Pins a link in the place of whatever is pinned under its name: sockets never miss both.
fn pin_link(dir: &PinDir, name: &str, link: FdLink) -> Result<(), AttachError> {
    let (pin, next) = (dir.link(name), dir.link(&format!("{name}_next")));
    match fs::remove_file(&next) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(pin_error("remove", &next, source));
        }
        _ => {}
    }
    link.pin(&next).map_err(|error| pin_error("pin", &next, io::Error::other(error)))?;
    fs::rename(&next, &pin).map_err(|source| pin_error("rename to", &pin, source))
}

/// The pinned link of each program, if there is one. Somebody else's object is neither used nor removed.
fn pinned_links(dir: &PinDir) -> Result<Vec<(Program, Option<Pinned>)>, AttachError> {
    PROGRAMS
        .into_iter()
        .map(|program| Ok((program, pinned_link(&dir.link(program.name), program)?)))
        .collect()
}

fn pinned_link(pin: &Path, program: Program) -> Result<Option<Pinned>, AttachError> {
    let link = match sys::obj_get(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(pin_error("open", pin, source)),
    };
    // A map or program answers with its own details, whose numbers do not fit both at once.
    match sys::link_info(link.as_fd()) {
        Ok(info) if info.kind == LINK_TYPE_CGROUP && info.attach_type == program.attach_type => {
            Ok(Some((link, info)))
        }
        _ => Err(AttachError::Foreign { path: pin.to_owned(), program: program.name }),
    }
}

fn pin_error(what: &'static str, path: &Path, source: io::Error) -> AttachError {
    AttachError::Pin { what, path: path.to_owned(), source }
}

/// `EPERM` means that a program was attached without `BPF_F_ALLOW_MULTI` here or above (kernel/bpf/cgroup.c).
fn refused(error: ProgramError, program: Program, target: &Target<'_>) -> AttachError {
    let errno = match &error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    };
    if errno != Some(libc::EPERM) {
        return target.failed(program, error);
    }
    let ids = sys::cgroup_programs(target.folder.as_fd(), program.attach_type).unwrap_or_default();
    // Names need CAP_SYS_ADMIN, ids do not.
    let names: BTreeMap<u32, String> = loaded_programs()
        .filter_map(Result::ok)
        .filter_map(|found| Some((found.id(), found.name_as_str()?.to_owned())))
        .collect();
    let name = |id: &u32| names.get(id).map_or("a program", String::as_str);
    let others: Vec<String> = ids.iter().map(|id| format!("{} (id {id})", name(id))).collect();
    let others = if others.is_empty() { "in a cgroup above it".to_owned() } else { others.join(", ") };
    AttachError::InTheWay { cgroup: target.path.to_owned(), others }
}
