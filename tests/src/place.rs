//! Child processes that start inside a network namespace and a cgroup.
#![expect(
    unsafe_code,
    reason = "a child enters its namespace and cgroup between fork and exec, which std marks unsafe"
)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, write};

use crate::cgroup::Cgroup;
use crate::netns::Netns;
use crate::wait_for;

/// Where a [`Command`]'s child begins. Both hold from before exec, so the program's first socket is already
/// in place.
pub trait Place {
    /// The child starts in `netns`. `/sys` and `/proc/sys` outside `net` stay those of the caller.
    fn in_netns(&mut self, netns: &Netns) -> &mut Self;

    /// The child starts in `cgroup` and carries the mark by which [`Cgroup`] knows whom it may kill.
    fn in_cgroup(&mut self, cgroup: &Cgroup) -> &mut Self;
}

impl Place for Command {
    fn in_netns(&mut self, netns: &Netns) -> &mut Self {
        let fd = owned(netns.as_fd());
        // SAFETY: between fork and exec the closure makes one system call on a descriptor that it owns; it
        // takes no lock and allocates nothing.
        unsafe {
            self.pre_exec(move || {
                let fd = fd.as_ref().map_err(|error| io::Error::from_raw_os_error(*error))?;
                Ok(setns(fd, CloneFlags::CLONE_NEWNET)?)
            })
        }
    }

    fn in_cgroup(&mut self, cgroup: &Cgroup) -> &mut Self {
        let fd = cgroup.join_file();
        let (name, value) = cgroup.mark();
        self.env(name, value);
        // SAFETY: between fork and exec the closure makes one system call on a descriptor that it owns; it
        // takes no lock and allocates nothing. "0" names the writing process.
        unsafe {
            self.pre_exec(move || {
                let fd = fd.as_ref().map_err(|error| io::Error::from_raw_os_error(*error))?;
                write(fd, b"0")?;
                Ok(())
            })
        }
    }
}

/// A copy of `fd` for a child, or the error number, which the child reports when it starts: the builder
/// methods above cannot fail.
fn owned(fd: impl AsFd) -> Result<OwnedFd, i32> {
    fd.as_fd().try_clone_to_owned().map_err(|error| error.raw_os_error().unwrap_or(libc::EMFILE))
}

/// A child process that is killed, and waited for, when this value is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    what: String,
}

impl Process {
    /// Starts `command`; `what` names it in messages.
    pub fn start(what: &str, command: &mut Command) -> Result<Self> {
        let child = command.spawn().with_context(|| format!("cannot start {what}: {command:?}"))?;
        Ok(Self { child, what: what.to_owned() })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends `signal`.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).context("process ids fit in 31 bits")?);
        kill(pid, signal).with_context(|| format!("cannot send {signal} to {}", self.what))
    }

    /// Sends SIGTERM and waits up to `limit` for the end. On error the process still runs.
    pub fn stop(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(limit)
    }

    /// Waits up to `limit` for the process to end by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let Self { child, what } = self;
        wait_for(&format!("{what} to end"), limit, || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("it still runs".to_owned()),
            Err(error) => Err(error.to_string()),
        })
    }

    /// Kills at once, as a crash would, and waits for the end.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill().with_context(|| format!("cannot kill {}", self.what))?;
        self.child.wait().with_context(|| format!("cannot wait for {}", self.what))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{error:#}");
        }
    }
}
