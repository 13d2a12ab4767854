//! Which network namespace a thread is in, by the number that programs see.
//!
//! From kernel 5.14 on every socket tells it. Before, only a program at connect() can: one is attached to the cgroup
//! beside whatever else is there, sees one connect() of a socket of this thread, and is gone again with its maps. Sockets
//! of others pass it untouched.

use std::{
    fs::File,
    io,
    net::UdpSocket,
    os::{fd::AsFd as _, unix::net::UnixDatagram},
    path::Path,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, MapError},
    programs::{CgroupAttachMode, CgroupSockAddr, ProgramError},
};
use nix::errno::Errno;
use rustix::net::sockopt::socket_cookie;

use super::OBJECT;
use crate::maps::sys;

/// Its name in the object.
const PROGRAM: &str = "lb_ask_netns";
/// The map that it answers in.
const ANSWER: &str = "lb_netns_cookie";
/// The global that says whom it answers.
const ASKING: &str = "LB_ASKING_SOCKET";

/// Why the namespace stays unknown.
#[derive(Debug, thiserror::Error)]
pub enum CookieError {
    /// A socket of this process, or the cgroup's folder.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The kernel refused the object.
    #[error("cannot load the BPF object")]
    Object(#[from] EbpfError),
    /// The object lacks a part.
    #[error("the BPF object has no {0}: it was not built with this agent")]
    Missing(&'static str),
    /// The kernel refused the program, or to attach it.
    #[error("cannot run {PROGRAM} at the cgroup")]
    Program(#[from] ProgramError),
    /// The answer cannot be read.
    #[error("cannot read {ANSWER}")]
    Map(#[from] MapError),
    /// connect() went past the program.
    #[error("this process is in no cgroup that a program can be attached to")]
    Outside,
}

/// Cookie of this process's network namespace. `cgroup` is the folder that programs are attached to.
///
/// # Errors
/// [`CookieError`]; from kernel 5.14 on none is expected.
pub fn of_this_process(cgroup: &Path) -> Result<u64, CookieError> {
    of_this_thread(&[cgroup])
}

/// Cookie of the network namespace that the calling thread is in. `cgroups` are folders that programs can be attached to;
/// the first that holds this process is used, below kernel 5.14 alone.
///
/// # Errors
/// [`CookieError`]; from kernel 5.14 on none is expected.
pub fn of_this_thread(cgroups: &[impl AsRef<Path>]) -> Result<u64, CookieError> {
    // Every namespace has Unix sockets, with no interface up and no address family loaded.
    let socket = UnixDatagram::unbound()?;
    match sys::netns_cookie(socket.as_fd()) {
        Err(error) if error.raw_os_error() == Some(Errno::ENOPROTOOPT as i32) => {
            let answers = cgroups.iter().map(|cgroup| ask_program(cgroup.as_ref()));
            let is_final = |answer: &Result<u64, CookieError>| !matches!(answer, Err(CookieError::Outside));
            answers.into_iter().find(is_final).unwrap_or(Err(CookieError::Outside))
        }
        told => Ok(told?),
    }
}

/// Asks by a connect() that a program sees.
fn ask_program(cgroup: &Path) -> Result<u64, CookieError> {
    // Below 5.11 maps count against the limit on locked memory; where it cannot be raised, loading will say so.
    drop(sys::unlimit_memlock());
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let asking = socket_cookie(&socket).map_err(io::Error::from)?;
    // Maps of its own, of the smallest size and not pinned.
    let mut ebpf = EbpfLoader::new().override_global(ASKING, &asking, true).load(OBJECT)?;
    let program = ebpf.program_mut(PROGRAM).ok_or(CookieError::Missing(PROGRAM))?;
    let program: &mut CgroupSockAddr = program.try_into()?;
    program.load()?;
    program.attach(File::open(cgroup)?, CgroupAttachMode::Single)?;
    // Sends nothing. The program has run whatever comes of it: a program of an earlier agent may refuse this port, and
    // the namespace may have no loopback device.
    drop(socket.connect("127.0.0.1:9"));
    answer(&ebpf)
    // Dropping the object detaches the program; the kernel does that too if this process ends before.
}

fn answer(ebpf: &Ebpf) -> Result<u64, CookieError> {
    let map = ebpf.map(ANSWER).ok_or(CookieError::Missing(ANSWER))?;
    match Array::<_, u64>::try_from(map)?.get(&0, 0)? {
        0 => Err(CookieError::Outside),
        cookie => Ok(cookie),
    }
}
