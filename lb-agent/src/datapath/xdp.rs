//! Attaching `lb_xdp`: first `lb_xdp_test`, and in its place, once a frame has gone out and been answered, the other one.
//!
//! The link outlives the agent. A device that was tested stays as it is when the next agent comes: that replaces the program only.

use std::{fs, io, os::fd::AsFd as _, path::PathBuf};

use aya::{
    Ebpf,
    programs::{
        ProgramError, Xdp, XdpMode,
        links::FdLink,
        xdp::{XdpLink, XdpLinkId},
    },
};

use tracing::warn;

use super::load::inner;
use crate::{
    config::XdpOption,
    maps::{
        MapError,
        kernel::KernelArray,
        pin::PinDir,
        sys::{self, LINK_TYPE_XDP},
    },
};

/// The program that serves.
pub const SERVES: &str = "lb_xdp";
/// The program that tests.
const TESTS: &str = "lb_xdp_test";
/// What it asks.
pub const PROBE: &str = "lb_probe";

/// Why a device goes without.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    /// The object lacks a program, or has it as another kind.
    #[error("the BPF object has no {0}: it was not built with this agent")]
    Missing(&'static str),
    /// The kernel or the driver refused.
    #[error("cannot attach")]
    Kernel(#[source] Box<ProgramError>),
    /// A pin could not be made.
    #[error("cannot pin the link {path}")]
    Pin {
        /// The pin.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The map of the test.
    #[error(transparent)]
    Map(#[from] MapError),
}

impl From<ProgramError> for XdpError {
    fn from(error: ProgramError) -> Self {
        Self::Kernel(Box::new(error))
    }
}

/// A device with `lb_xdp_test`. Dropped, it is without.
#[derive(Debug)]
pub struct Tested(XdpLink);

/// Attaches `lb_xdp_test` to a device.
///
/// # Errors
/// [`XdpError::Kernel`]: among others `EBUSY` if another program is there, `EOPNOTSUPP` if the driver cannot.
pub fn attach_test(ebpf: &mut Ebpf, index: u32, option: XdpOption) -> Result<Tested, XdpError> {
    let mode = match option {
        XdpOption::Generic => XdpMode::Skb,
        XdpOption::Native | XdpOption::Off => XdpMode::Driver,
    };
    let program = loaded(ebpf, TESTS)?;
    let id = program.attach_to_if_index(index, mode)?;
    Ok(Tested(program.take_link(id)?))
}

/// Puts `lb_xdp` in the place of the test, and lets it stay.
///
/// # Errors
/// [`XdpError`]; the device is without then.
pub fn turn_on(ebpf: &mut Ebpf, dir: &PinDir, index: u32, tested: Tested) -> Result<(), XdpError> {
    let program = loaded(ebpf, SERVES)?;
    let id: XdpLinkId = program.attach_to_link(tested.0)?;
    let link = program.take_link(id)?;
    let path = pin(dir, index);
    let failed = |path: &PathBuf, source| XdpError::Pin { path: path.clone(), source };
    let link = FdLink::try_from(link).map_err(|error| failed(&path, io::Error::other(error)))?;
    drop(fs::remove_file(&path));
    link.pin(&path).map_err(|error| failed(&path, io::Error::other(error)))?;
    Ok(())
}

/// Takes `lb_xdp` off a device; says whether it was there.
pub fn detach(dir: &PinDir, index: u32) -> bool {
    fs::remove_file(pin(dir, index)).is_ok()
}

/// Interface indices of the devices at which it is; pins of devices that are gone are removed.
pub fn pinned(dir: &PinDir) -> Vec<u32> {
    let names = fs::read_dir(dir.links()).into_iter().flatten().flatten();
    let indices = names.filter_map(|entry| {
        let name = entry.file_name();
        name.to_str()?.strip_prefix(SERVES)?.strip_prefix('_')?.parse::<u32>().ok()
    });
    let leads = |index: &u32| {
        let link = sys::obj_get(&pin(dir, *index)).and_then(|link| sys::link_info(link.as_fd()));
        let leads = link.is_ok_and(|info| info.kind == LINK_TYPE_XDP && info.ifindex() == *index);
        if !leads {
            detach(dir, *index);
        }
        leads
    };
    indices.filter(leads).collect()
}

/// Replaces the program at every device that has it. One that does not take the new program goes without.
pub fn replace(ebpf: &mut Ebpf, dir: &PinDir) {
    for index in pinned(dir) {
        let replaced = serves(ebpf).and_then(|program| {
            let failed = |source| XdpError::Pin { path: pin(dir, index), source };
            let link = sys::obj_get(&pin(dir, index)).map_err(failed)?;
            sys::link_update(link.as_fd(), program.fd()?.as_fd()).map_err(failed)
        });
        if let Err(error) = replaced {
            warn!(index, %error, "no XDP at this device any more: tc serves all packets");
            detach(dir, index);
        }
    }
}

/// What the test asks, in the object that is loaded.
///
/// # Errors
/// [`XdpError::Missing`], [`XdpError::Map`]
pub fn probe(ebpf: &Ebpf) -> Result<KernelArray, XdpError> {
    let map = ebpf.map(PROBE).and_then(inner).ok_or(XdpError::Missing(PROBE))?;
    Ok(KernelArray::new(PROBE, map)?)
}

fn serves(ebpf: &mut Ebpf) -> Result<&mut Xdp, XdpError> {
    loaded(ebpf, SERVES)
}

/// Loads a program when it is needed first: a kernel that refuses it serves at tc.
fn loaded<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, XdpError> {
    let program: &mut Xdp =
        ebpf.program_mut(name).and_then(|found| found.try_into().ok()).ok_or(XdpError::Missing(name))?;
    if program.fd().is_err() {
        program.load()?;
    }
    Ok(program)
}

fn pin(dir: &PinDir, index: u32) -> PathBuf {
    dir.link(&format!("{SERVES}_{index}"))
}
