//! Attaching the programs to devices: by pinned links where the kernel has them (tcx, 6.6), else as filters of a clsact qdisc.
//!
//! Both outlive the agent. The next agent replaces the program behind a link, or of a filter, so there is no moment without one.
//! Which of the two a kernel has is found by trying.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        Link as _, LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::FdLink,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError as AyaError, TcHandle},
    },
};
use std::os::fd::AsFd as _;

use super::{DEVICE_PROGRAMS, Layer, xdp};
use crate::maps::{
    pin::PinDir,
    sys::{self, LINK_TYPE_TCX},
};

/// Filters of lower numbers come first; 0 would let the kernel choose.
const PRIORITY: u16 = 1;
/// By this the filters are known as ours: "lb" in ASCII, and a number that nobody gets by counting.
const HANDLE: TcHandle = TcHandle::new(0x6c62, 1);

/// How a device's programs are attached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mode {
    /// By links.
    Tcx,
    /// As filters.
    Clsact,
}

impl Mode {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// Why programs could not be attached to a device.
#[derive(Debug, thiserror::Error)]
pub enum TcError {
    /// The object lacks a program, or has it as another kind.
    #[error("the BPF object has no program {0} for devices: it was not built with this agent")]
    Missing(&'static str),
    /// The kernel refused.
    #[error("cannot attach {program} to the device {device}")]
    Kernel {
        /// The program.
        program: &'static str,
        /// Its name.
        device: String,
        /// The kernel's answer.
        #[source]
        source: Box<ProgramError>,
    },
    /// A pin could not be made, replaced or removed.
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

/// A device and its interface index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct At<'a> {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: &'a str,
    /// What its packets begin with.
    pub layer: Layer,
}

const fn side(program: &str) -> TcAttachType {
    // The names are those of `DEVICE_PROGRAMS`, which differ in their last letters.
    if matches!(program.as_bytes(), [.., b'i', b'n', b'g', b'r', b'e', b's', b's']) {
        TcAttachType::Ingress
    } else {
        TcAttachType::Egress
    }
}

/// Lets both programs see a device's packets: those that are there are replaced, and those that are not are attached.
///
/// # Errors
/// [`TcError`]; one of the two may be attached.
pub fn attach(ebpf: &mut Ebpf, dir: &PinDir, at: At<'_>) -> Result<Mode, TcError> {
    // What restores answers comes before what makes them necessary.
    let mut mode = Mode::Tcx;
    for program in at.layer.programs().into_iter().rev() {
        mode = attach_one(ebpf, dir, at, program)?;
    }
    Ok(mode)
}

fn attach_one(ebpf: &mut Ebpf, dir: &PinDir, at: At<'_>, program: &'static str) -> Result<Mode, TcError> {
    let pin = dir.link(&pin_name(program, at.index));
    if update(ebpf, &pin, program, Some(at.index))? {
        return Ok(Mode::Tcx);
    }
    let loaded = loaded(ebpf, program)?;
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    match loaded.attach_with_options(at.name, side(program), order) {
        Ok(id) => {
            let failed =
                |source| TcError::Kernel { program, device: at.name.to_owned(), source: Box::new(source) };
            let link = loaded.take_link(id).map_err(failed)?;
            let link =
                FdLink::try_from(link).map_err(|error| pin_error("take", &pin, io::Error::other(error)))?;
            remove(&pin)?;
            link.pin(&pin).map_err(|error| pin_error("pin", &pin, io::Error::other(error)))?;
            // Of an agent that could not do this yet: two would translate twice.
            drop(filter(at.name, program).map(SchedClassifierLink::detach));
            Ok(Mode::Tcx)
        }
        // BPF_LINK_CREATE knows no such attach type.
        Err(error) if errno(&error) == Some(libc::EINVAL) => {
            attach_filter(loaded, at.name, program)?;
            Ok(Mode::Clsact)
        }
        Err(source) => Err(TcError::Kernel { program, device: at.name.to_owned(), source: Box::new(source) }),
    }
}

/// Adds a filter, or replaces the program of the one that is there.
fn attach_filter(loaded: &mut SchedClassifier, device: &str, program: &'static str) -> Result<(), TcError> {
    let failed = |source| TcError::Kernel { program, device: device.to_owned(), source: Box::new(source) };
    if replace_filter(loaded, device, program).is_ok() {
        return Ok(());
    }
    // It may be there already. Where there is none, the filter cannot be added either, and that says why.
    drop(tc::qdisc_add_clsact(device));
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
    let id = loaded
        .attach_with_options(device, side(program), TcAttachOptions::Netlink(options))
        .map_err(failed)?;
    keep(loaded, id).map_err(failed)
}

fn replace_filter(
    loaded: &mut SchedClassifier,
    device: &str,
    program: &'static str,
) -> Result<(), ProgramError> {
    let link = filter(device, program).map_err(AyaError::IoError)?;
    let id = loaded.attach_to_link(link)?;
    keep(loaded, id)
}

/// Leaves a filter where it is when the agent ends.
fn keep(
    loaded: &mut SchedClassifier,
    id: <SchedClassifierLink as aya::programs::links::Link>::Id,
) -> Result<(), ProgramError> {
    // Dropped, it would be detached.
    core::mem::forget(loaded.take_link(id)?);
    Ok(())
}

/// Our filter of a device, whether there is one or not.
fn filter(device: &str, program: &'static str) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(device, side(program), PRIORITY, HANDLE, None)
}

/// Replaces the programs of every pinned link, and of our filters at `devices`; makes none.
///
/// # Errors
/// [`TcError`]; some devices then run the new programs and others the old ones.
pub fn replace<'a>(
    ebpf: &mut Ebpf,
    dir: &PinDir,
    devices: impl Iterator<Item = (&'a str, Layer)>,
) -> Result<(), TcError> {
    for (program, pin) in pins(dir) {
        update(ebpf, &pin, program, None)?;
    }
    xdp::replace(ebpf, dir);
    for (device, layer) in devices {
        for program in layer.programs() {
            // Nearly always there is none.
            drop(replace_filter(loaded(ebpf, program)?, device, program));
        }
    }
    Ok(())
}

/// Takes both programs off a device; nothing if they are not there.
///
/// # Errors
/// [`TcError::Pin`].
pub fn detach(dir: &PinDir, (index, device): (u32, &str)) -> Result<(), TcError> {
    // What makes answers necessary goes before what restores them.
    for program in DEVICE_PROGRAMS {
        remove(&dir.link(&pin_name(program, index)))?;
    }
    for program in Layer::Ethernet.programs() {
        remove_filter(device, program);
    }
    Ok(())
}

/// Takes our filters off devices; returns those that were there.
pub fn remove_filters<'a>(devices: impl Iterator<Item = &'a str>) -> Vec<String> {
    // Where a filter is tells whose it is, so that those of another layer are the same.
    let programs =
        |device: &'a str| Layer::Ethernet.programs().into_iter().map(move |program| (device, program));
    devices
        .flat_map(programs)
        .filter(|(device, program)| remove_filter(device, program))
        .map(|(device, program)| format!("{program} of {device}"))
        .collect()
}

fn remove_filter(device: &str, program: &'static str) -> bool {
    filter(device, program).is_ok_and(|filter| filter.detach().is_ok())
}

/// Removes pins of devices that are gone: they hold programs, and nobody looks for them.
pub fn sweep(dir: &PinDir) {
    for (_, pin) in pins(dir) {
        let info = sys::obj_get(&pin).and_then(|link| sys::link_info(link.as_fd()));
        if info.is_ok_and(|info| info.kind == LINK_TYPE_TCX && info.ifindex() == 0) {
            drop(fs::remove_file(&pin));
        }
    }
}

/// Pins of our links to devices.
fn pins(dir: &PinDir) -> Vec<(&'static str, PathBuf)> {
    let folder = dir.links();
    let names = fs::read_dir(&folder).into_iter().flatten().flatten();
    names
        .filter_map(|entry| {
            let name = entry.file_name();
            let name = name.to_str()?;
            let is_ours = |program: &&str| {
                let index = name.strip_prefix(*program).and_then(|rest| rest.strip_prefix('_'));
                index.is_some_and(|index| index.parse::<u32>().is_ok())
            };
            let program = DEVICE_PROGRAMS.into_iter().find(is_ours)?;
            Some((program, folder.join(name)))
        })
        .collect()
}

/// Replaces the program of a pinned link; false if there is none, or none to the device `index`.
fn update(ebpf: &mut Ebpf, pin: &Path, program: &'static str, index: Option<u32>) -> Result<bool, TcError> {
    let link = match sys::obj_get(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(pin_error("open", pin, source)),
    };
    let info = sys::link_info(link.as_fd()).map_err(|source| pin_error("look at", pin, source))?;
    // A link whose device is gone leads nowhere, and its number may be another device's by now.
    let leads = info.kind == LINK_TYPE_TCX && info.ifindex() != 0;
    if !leads || index.is_some_and(|index| index != info.ifindex()) {
        return Ok(false);
    }
    let failed =
        |source| TcError::Kernel { program, device: info.ifindex().to_string(), source: Box::new(source) };
    let fd = loaded(ebpf, program)?.fd().map_err(failed)?;
    match sys::link_update(link.as_fd(), fd.as_fd()) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(false),
        Err(source) => Err(pin_error("replace the program of", pin, source)),
    }
}

fn pin_name(program: &str, index: u32) -> String {
    format!("{program}_{index}")
}

fn loaded<'a>(ebpf: &'a mut Ebpf, program: &'static str) -> Result<&'a mut SchedClassifier, TcError> {
    let found = ebpf.program_mut(program).and_then(|found| found.try_into().ok());
    found.ok_or(TcError::Missing(program))
}

fn remove(pin: &Path) -> Result<(), TcError> {
    match fs::remove_file(pin) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(pin_error("remove", pin, source)),
        _ => Ok(()),
    }
}

fn pin_error(what: &'static str, path: &Path, source: io::Error) -> TcError {
    TcError::Pin { what, path: path.to_owned(), source }
}

fn errno(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    }
}
