//! What our programs remember of other processes' sockets.
//!
//! Socket storage is read through a descriptor of the socket, so a copy of one is taken from a process that has it
//! (pidfd_getfd(2), kernel 5.6). sock_diag shows the storage of TCP sockets only.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd},
    path::Path,
};

use lb_common::abi::SockUdp;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::maps::sys;

/// A process and its name for a socket.
#[derive(Clone, Copy, Debug)]
struct Holder {
    process: Pid,
    descriptor: RawFd,
}

/// Who has which socket, by inode.
pub(super) struct Holders(HashMap<u32, Holder>);

impl Holders {
    /// Looks for the holders of these sockets among all processes that can be seen.
    pub(super) fn of(inodes: &HashSet<u32>) -> Self {
        let mut found = HashMap::new();
        for process in numbers(Path::new("/proc")) {
            let Some(process) = Pid::from_raw(process) else { continue };
            let folder = format!("/proc/{}/fd", process.as_raw_nonzero());
            for descriptor in numbers(Path::new(&folder)) {
                // Processes end and close files all the time.
                let Ok(target) = fs::read_link(format!("{folder}/{descriptor}")) else { continue };
                if let Some(inode) = target.to_str().and_then(socket_inode)
                    && inodes.contains(&inode)
                {
                    found.insert(inode, Holder { process, descriptor });
                }
            }
        }
        Self(found)
    }

    /// What `lb_sock_udp` holds for a socket; nothing if it is not one of ours or has been closed.
    ///
    /// # Errors
    /// `EPERM` without CAP_SYS_PTRACE.
    pub(super) fn remembered(&self, map: BorrowedFd<'_>, inode: u32) -> io::Result<Option<SockUdp>> {
        let Some(holder) = self.0.get(&inode) else { return Ok(None) };
        let storage = holder
            .copy()
            .and_then(|socket| sys::socket_storage::<{ size_of::<SockUdp>() }>(map, socket.as_fd()));
        match storage {
            Ok(bytes) => Ok(SockUdp::from_memory(&bytes)),
            Err(error) => match error.raw_os_error() {
                // The process, the descriptor or the entry has gone; or the descriptor is no socket any more.
                Some(libc::ESRCH | libc::EBADF | libc::ENOENT | libc::ENOTSOCK) => Ok(None),
                _ => Err(error),
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
fn numbers(folder: &Path) -> Vec<i32> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten();
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
        let copy = std::net::UdpSocket::from(holders.0[&inode].copy().unwrap());
        assert_eq!(copy.local_addr().unwrap(), socket.local_addr().unwrap());
        assert_eq!(socket_inode("pipe:[1]"), None);
    }
}
