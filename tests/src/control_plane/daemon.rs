//! A program that runs in the background, writes its output to a file, and never outlives the test process.
//!
//! Every program has a thread of its own, which starts it and waits for it. The kernel sends the
//! parent-death signal when the *thread* that forked ends, so a program started from a test's thread would
//! die with that test; a thread that lives exactly as long as its program ties it to the test process
//! instead.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, getpid, getppid};

use crate::{Netns, Place as _};

/// Lines of a log that an error message shows.
const TAIL_LINES: usize = 25;

/// A running program. Dropping it kills the program and waits for its end.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    pid: Pid,
    log: PathBuf,
    exit: Arc<Exit>,
    waiter: Option<thread::JoinHandle<()>>,
}

/// How the program ended; `None` while its pid is still its own.
#[derive(Debug, Default)]
struct Exit {
    status: Mutex<Option<io::Result<ExitStatus>>>,
    changed: Condvar,
}

impl Daemon {
    /// Starts `command` in `netns`, both outputs appended to `log`, standard input empty.
    pub fn start(name: &str, mut command: Command, netns: &Netns, log: &Path) -> Result<Self> {
        let output = File::options().create(true).append(true).open(log);
        let output = output.with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).in_netns(netns);
        die_with_this_thread(&mut command);
        let exit = Arc::new(Exit::default());
        let (started, start) = mpsc::sync_channel(1);
        let thread_exit = Arc::clone(&exit);
        let waiter = thread::Builder::new().name(name.to_owned()).spawn(move || match command.spawn() {
            Ok(child) => {
                let pid = Pid::from_raw(child.id().cast_signed());
                if started.send(Ok(pid)).is_ok() {
                    thread_exit.wait_for(child, pid);
                }
            }
            // The receiver waits for this one message.
            Err(error) => drop(started.send(Err(error))),
        })?;
        let pid = start.recv().map_err(|_gone| anyhow!("the thread that starts {name} ended"))?;
        let pid = pid.with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), pid, log: log.to_owned(), exit, waiter: Some(waiter) })
    }

    /// Process id; it belongs to the program as long as [`Self::check_running`] is fine.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().cast_unsigned()
    }

    /// Where the program writes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Fails with the end of the log when the program has ended.
    pub fn check_running(&self) -> Result<()> {
        match &*self.exit.status.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(Ok(status)) => Err(anyhow!("{} ended with {status}\n{}", self.name, self.log_tail())),
            Some(Err(error)) => Err(anyhow!("{} cannot be waited for: {error}", self.name)),
        }
    }

    /// The last lines of the log, with a head line that names the file.
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }

    /// Asks the program to end (`SIGTERM`), kills it after `patience`, and returns once it is gone.
    pub fn terminate(&mut self, patience: Duration) {
        self.signal(Signal::SIGTERM);
        self.exit.wait_timeout(patience);
        self.kill();
    }

    /// Kills the program (`SIGKILL`) and returns once it is gone.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        if let Some(waiter) = self.waiter.take() {
            // A panic of the waiter has been printed by then, and the program is gone either way.
            drop(waiter.join());
        }
    }

    /// Sends `signal` if the pid is still this program's.
    pub fn signal(&self, signal: Signal) {
        let status = self.exit.status.lock().unwrap_or_else(PoisonError::into_inner);
        if status.is_none() {
            // It cannot fail while the lock is held: the waiter reaps under the same lock.
            kill(self.pid, signal).ok();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Exit {
    /// Waits for the end, and reaps under the lock, so that a pid seen under the lock is never somebody
    /// else's.
    fn wait_for(&self, mut child: Child, pid: Pid) {
        while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(nix::Error::EINTR) {}
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        *status = Some(child.wait());
        self.changed.notify_all();
    }

    fn wait_timeout(&self, patience: Duration) {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_timeout_while(status, patience, |status| status.is_none()));
    }
}

/// The last lines of a log file, with a head line that names the file.
pub(super) fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let shown = lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default();
    let mut message = format!("--- last lines of {}\n", log.display());
    for line in shown {
        message += line;
        message.push('\n');
    }
    message
}

/// Lets the kernel kill the program when the thread that forks it ends, however that happens.
#[expect(unsafe_code, reason = "the parent-death signal must be set between fork and exec")]
pub(super) fn die_with_this_thread(command: &mut Command) {
    let parent = getpid();
    let prepare = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died before the line above; then nobody would send the signal.
        if getppid() == parent { Ok(()) } else { Err(io::Error::from(nix::Error::ESRCH)) }
    };
    // SAFETY: between fork and exec the closure makes two system calls (prctl, getppid) and converts an
    // errno; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(prepare) };
}
