//! What our programs remember of other processes' sockets.
//!
//! Socket storage is read through a descriptor of the socket, so a copy of one is taken from a process that has it
//! (pidfd_getfd(2), kernel 5.6). sock_diag shows the storage of TCP sockets only.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd},
};

use lb_common::abi::SockUdp;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::Step;
use crate::maps::sys;

/// A process and its name for a socket.
#[derive(Clone, Copy, Debug)]
struct Holder {
    process: Pid,
    descriptor: RawFd,
}

/// Who has which socket.
pub(super) struct Holders {
    /// By inode.
    found: HashMap<u32, Holder>,
    /// Some processes do not show their files to this one.
    pub(super) is_partial: bool,
}

/// What is known of a socket.
#[derive(Debug)]
pub(super) enum Memory {
    /// No process that shows its files has it, or not any more.
    NoHolder,
    /// Our programs remember nothing of it.
    Nothing,
    /// What `lb_sock_udp` holds for it.
    Of(Box<SockUdp>),
}

impl Holders {
    /// Looks for the holders of these sockets among all processes that can be seen.
    pub(super) fn of(inodes: &HashSet<u32>) -> Self {
        let mut holders = Self { found: HashMap::new(), is_partial: false };
        for process in numbers(fs::read_dir("/proc")) {
            let Some(process) = Pid::from_raw(process) else { continue };
            if let Err(error) = holders.add(process, inodes) {
                // Processes end and close files all the time.
                holders.is_partial |= error.kind() == io::ErrorKind::PermissionDenied;
            }
        }
        holders
    }

    fn add(&mut self, process: Pid, inodes: &HashSet<u32>) -> io::Result<()> {
        let folder = format!("/proc/{}/fd", process.as_raw_nonzero());
        for descriptor in numbers(Ok(fs::read_dir(&folder)?)) {
            let target = match fs::read_link(format!("{folder}/{descriptor}")) {
                Ok(target) => target,
                // All of them are refused then.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
                Err(_) => continue,
            };
            if let Some(inode) = target.to_str().and_then(socket_inode)
                && inodes.contains(&inode)
            {
                self.found.insert(inode, Holder { process, descriptor });
            }
        }
        Ok(())
    }

    /// What is known of a socket.
    ///
    /// # Errors
    /// The kernel's answer, and what it refused: `EPERM` from pidfd_getfd(2) without CAP_SYS_PTRACE.
    pub(super) fn remembered(&self, map: BorrowedFd<'_>, inode: u32) -> Result<Memory, (Step, io::Error)> {
        let Some(holder) = self.found.get(&inode) else { return Ok(Memory::NoHolder) };
        let socket = match holder.copy() {
            Ok(socket) => socket,
            Err(error) => {
                return match error.raw_os_error() {
                    // The process or the descriptor has gone.
                    Some(libc::ESRCH | libc::EBADF) => Ok(Memory::NoHolder),
                    _ => Err((Step::Copy, error)),
                };
            }
        };
        match sys::socket_storage::<{ size_of::<SockUdp>() }>(map, socket.as_fd()) {
            Ok(bytes) => {
                Ok(SockUdp::from_memory(&bytes).map_or(Memory::Nothing, |sock| Memory::Of(Box::new(sock))))
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => Ok(Memory::Nothing),
                // The descriptor is no socket any more.
                Some(libc::ENOTSOCK) => Ok(Memory::NoHolder),
                _ => Err((Step::Read, error)),
            },
        }
    }
}

impl Holder {
    fn copy(self) -> io::Result<OwnedFd> {
        let process = pidfd_open(self.process, PidfdFlags::empty())?;
        Ok(pidfd_getfd(process, self.descriptor, PidfdGetfdFlags::empty())?)
    }
}

/// The entries of a folder that are numbers.
fn numbers(folder: io::Result<fs::ReadDir>) -> Vec<i32> {
    let names = folder.into_iter().flatten().flatten();
    names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The number in `socket:[4711]`.
fn socket_inode(target: &str) -> Option<u32> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_socket_is_found_and_a_copy_is_that_socket() {
        use std::os::fd::AsRawFd as _;
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        let inode = socket_inode(link.to_str().unwrap()).unwrap();
        let holders = Holders::of(&HashSet::from([inode]));
        let copy = std::net::UdpSocket::from(holders.found[&inode].copy().unwrap());
        assert_eq!(copy.local_addr().unwrap(), socket.local_addr().unwrap());
        assert_eq!(socket_inode("pipe:[1]"), None);
    }
}
