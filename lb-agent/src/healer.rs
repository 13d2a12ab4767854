//! Starts `lb-agent heal-sockets` when refused UDP sockets may have become connectable.
//!
//! A process of its own: it enters the namespaces of pods, which this one never does.

use std::{
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tracing::{debug, warn};

/// This program, also after its file was replaced.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// A process that is not done by then waits for something that may never come.
const LIMIT: Duration = Duration::from_mins(1);

/// Asks for healing; what is asked for while a run has not begun is one run.
#[derive(Debug)]
pub struct Healer(SyncSender<()>);

impl Healer {
    /// Starts the thread that waits for the processes.
    ///
    /// # Errors
    /// Those of the thread's creation.
    pub fn start(pin_dir: PathBuf) -> io::Result<Self> {
        Self::with(move || {
            let mut command = Command::new(OWN_PROGRAM);
            command.args(["heal-sockets", "--output", "json", "--pin-dir"]).arg(&pin_dir);
            output_within(&mut command, LIMIT)
        })
    }

    /// Asks for healing once the maps are programmed and the programs attached: an agent that stopped between a write and
    /// the healing after it has left sockets refused, and the next one finds nothing to write.
    pub fn heal_after_start(&self) {
        self.heal();
    }

    fn with(heal: impl FnMut() -> io::Result<Output> + Send + 'static) -> io::Result<Self> {
        let (asked, requests) = sync_channel(1);
        thread::Builder::new().name("healer".into()).spawn(move || serve(&requests, heal))?;
        Ok(Self(asked))
    }

    /// Lets refused sockets be freed whose Service has endpoints by now.
    pub fn heal(&self) {
        // A request that waits already begins after this moment, and sees what it should.
        let _already_asked = self.0.try_send(());
    }
}

fn serve(requests: &Receiver<()>, mut heal: impl FnMut() -> io::Result<Output>) {
    while requests.recv().is_ok() {
        match heal() {
            Ok(output) if output.status.success() => {
                debug!(result = %one_line(&output.stdout), "looked for refused UDP sockets");
            }
            Ok(output) => warn!(
                status = %output.status, error = %one_line(&output.stderr),
                "connected UDP sockets that were refused stay so until they connect anew"
            ),
            Err(error) => warn!(
                %error, "cannot run `lb-agent heal-sockets`: connected UDP sockets that were refused stay so for now"
            ),
        }
    }
}

/// Runs a command to its end and returns what it printed.
///
/// # Errors
/// Those of starting it; `TimedOut` if it ran longer than `limit`, and was killed.
fn output_within(command: &mut Command, limit: Duration) -> io::Result<Output> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (child, process) = with_handle(child)?;
    let (done, ended) = sync_channel(1);
    // A thread of its own, because even a killed process may take its time. It is also who takes the status then.
    let waits = thread::Builder::new().name("healer-wait".into()).spawn(move || {
        // Nobody listens after the limit.
        let _too_late = done.send(child.wait_with_output());
    });
    if waits.is_ok()
        && let Ok(output) = ended.recv_timeout(limit)
    {
        return output;
    }
    // By its handle, which is never another process's.
    pidfd_send_signal(&process, Signal::KILL)?;
    waits?;
    Err(io::Error::new(io::ErrorKind::TimedOut, format!("it has not ended within {limit:?} and was killed")))
}

/// A child and a handle of it, which another thread can use.
fn with_handle(mut child: Child) -> io::Result<(Child, OwnedFd)> {
    match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
        Ok(handle) => Ok((child, handle)),
        Err(errno) => {
            child.kill()?;
            child.wait()?;
            Err(errno.into())
        }
    }
}

fn one_line(text: &[u8]) -> String {
    String::from_utf8_lossy(text).split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::process::ExitStatusExt as _, process::ExitStatus, sync::mpsc::channel, time::Instant,
    };

    use super::*;

    #[test]
    fn requests_during_a_run_are_one_more_run_and_none_is_lost() {
        let (began, begins) = channel();
        let (end, ends) = channel::<()>();
        let healer = Healer::with(move || {
            began.send(()).unwrap();
            ends.recv().unwrap();
            Ok(Output { status: ExitStatus::from_raw(0), stdout: vec![], stderr: vec![] })
        })
        .unwrap();
        healer.heal();
        begins.recv().unwrap();
        for _ in 0..5 {
            healer.heal();
        }
        end.send(()).unwrap();
        begins.recv().unwrap();
        drop(healer);
        end.send(()).unwrap();
        assert!(begins.recv().is_err(), "two runs");
    }

    /// So long that nobody waits for it.
    const FOR_EVER: &str = "600";

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn what_a_command_prints_is_returned_however_much_it_is() {
        // More than a pipe holds.
        let script = "head -c 300000 /dev/zero; head -c 200000 /dev/zero >&2; exit 3";
        let output = output_within(&mut shell(script), LIMIT).unwrap();
        assert_eq!((output.stdout.len(), output.stderr.len()), (300_000, 200_000));
        assert_eq!(output.status.code(), Some(3));
        assert!(output_within(&mut Command::new("/nonexistent"), LIMIT).is_err());
    }

    #[test]
    fn a_command_that_hangs_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let script = format!("echo $$ > {}; exec sleep {FOR_EVER}", file.display());
        let begin = Instant::now();
        // It must have begun by the limit.
        let error = output_within(&mut shell(&script), Duration::from_secs(2)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begin.elapsed() < LIMIT, "{:?}", begin.elapsed());
        let number: i32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
        let deadline = Instant::now() + LIMIT;
        // Gone altogether, also from the table of processes.
        while rustix::process::test_kill_process(Pid::from_raw(number).unwrap()).is_ok() {
            assert!(Instant::now() < deadline, "process {number} still runs");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn healing_goes_on_after_a_run_that_hung() {
        let (ended, ends) = channel();
        let mut scripts = [format!("exec sleep {FOR_EVER}"), "true".to_owned()].into_iter();
        let healer = Healer::with(move || {
            let output = output_within(&mut shell(&scripts.next().unwrap()), Duration::from_secs(2));
            ended
                .send(output.as_ref().map_err(io::Error::kind).map(|output| output.status.success()))
                .unwrap();
            output
        })
        .unwrap();
        healer.heal_after_start();
        assert_eq!(ends.recv().unwrap(), Err(io::ErrorKind::TimedOut));
        healer.heal();
        assert_eq!(ends.recv().unwrap(), Ok(true));
    }
}
