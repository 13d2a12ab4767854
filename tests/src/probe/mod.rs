//! A child process that opens sockets for a test, inside a namespace and a cgroup.
//!
//! Socket programs act on the cgroup of the process that makes the system call, so a test cannot open the
//! sockets itself. [`Probe`] is the test's handle; the program is `lb-probe`, which is [`worker`] reading
//! requests of [`protocol`] from stdin.
//!
//! A request ends within the limits it carries, and the handle waits for it a little longer than that, so a
//! lost probe is an error and never a hang. The process ends when its stdin closes: also when the test is
//! killed.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use lb_tests::Topology;
//! use lb_tests::probe::{Serve, Tcp};
//!
//! let net = Topology::pair()?;
//! let database = net.node(2).add_pod("database", [10, 2, 2, 10].into())?;
//! let server = database.probe("database")?;
//! server.serve(&Serve::tcp("db-1", "10.2.2.10:3306".parse()?))?;
//!
//! let client = net.node(1).probe("client")?;
//! let reached = client.tcp(&Tcp::to("10.2.2.10:3306".parse()?))?;
//! assert_eq!(reached.server(), "db-1");
//! # Ok(())
//! # }
//! ```

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver as Channel, RecvTimeoutError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Cgroup, Netns, Place as _, Process, binary};

mod client;
mod hold;
mod load;
mod options;
pub mod protocol;
mod server;
mod survey;
mod transfer;
pub mod worker;

pub use options::{
    Attempt, Ends, FastOpen, Hold, Look, Many, Protocol, Receiver, Serve, Survey, Task, Tcp, Transfers, Udp,
    Via,
};
pub use protocol::{Answer, Failure, Handle, Holding, Moved, Opened, Reached, Received, Seen, Step, Tally};

use protocol::Request;

/// What a request may take beyond the steps whose limits it names: starting threads on a busy machine.
const SLACK: Duration = Duration::from_secs(10);

/// What one step of a kept socket, or the last attempts of a load, may take: longer than any limit that tests give.
const STEP: Duration = Duration::from_mins(2);

/// How many answers to earlier requests may wait in a socket.
const LATE_ANSWERS: usize = 32;

/// Why a probe has no result.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The probe tried and the kernel, or the other side, said no.
    #[error("probe {probe}: {failure}")]
    Refused {
        /// Label of the probe.
        probe: String,
        /// What failed.
        failure: Failure,
    },
    /// The probe's process ended, hangs, or says what this side does not understand.
    #[error("probe {probe} is lost: {reason}")]
    Lost {
        /// Label of the probe.
        probe: String,
        /// How it was noticed.
        reason: String,
    },
}

impl ProbeError {
    /// Name of the error number ([`Failure::errno`]); `LOST` if the probe itself failed.
    pub fn errno(&self) -> &str {
        match self {
            Self::Refused { failure, .. } => &failure.errno,
            Self::Lost { .. } => "LOST",
        }
    }

    /// The step that failed; None if the probe itself failed.
    pub fn step(&self) -> Option<Step> {
        match self {
            Self::Refused { failure, .. } => Some(failure.step),
            Self::Lost { .. } => None,
        }
    }
}

/// Handle of one `lb-probe` process. Requests of several threads are done one after the other; what must run
/// at the same time is a [load](Probe::begin) or belongs into a second probe.
#[derive(Debug)]
pub struct Probe {
    label: String,
    process: Mutex<Process>,
    pipes: Mutex<Pipes>,
    id: u32,
}

#[derive(Debug)]
struct Pipes {
    requests: ChildStdin,
    answers: Channel<String>,
}

impl Probe {
    /// Starts a probe; `label` names it in messages.
    pub fn start(label: &str, netns: &Netns, cgroup: &Cgroup) -> Result<Self> {
        let mut command = Command::new(binary("lb-probe")?);
        command.arg(label).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process =
            Process::start(&format!("probe {label}"), command.in_netns(netns).in_cgroup(cgroup))?;
        let requests = process.child().stdin.take().context("stdin is a pipe")?;
        let stdout = process.child().stdout.take().context("stdout is a pipe")?;

        // One answer per request, so the channel never holds more than one line.
        let (sender, answers) = sync_channel(1);
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let id = process.id();
        let pipes = Mutex::new(Pipes { requests, answers });
        Ok(Self { label: label.to_owned(), process: Mutex::new(process), pipes, id })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Kills the process at once, as a crash would: the kernel closes its sockets.
    pub fn kill(&self) -> Result<()> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).kill().map(drop)
    }

    /// Starts a server. `local` of the result is where it listens.
    pub fn serve(&self, server: &Serve) -> Result<Opened, ProbeError> {
        self.ask(&Request::Serve(server.clone()), SLACK)
    }

    /// Connects, says something unless silent, closes.
    pub fn tcp(&self, tcp: &Tcp) -> Result<Reached, ProbeError> {
        self.ask(&Request::Tcp(tcp.clone()), steps(3, &tcp.via))
    }

    /// Sends one datagram from a new socket, waits for the answer, closes.
    pub fn udp(&self, udp: &Udp) -> Result<Reached, ProbeError> {
        self.ask(&Request::Udp(udp.clone()), steps(3, &udp.via))
    }

    /// Connects and keeps the connection.
    pub fn open_tcp(&self, tcp: &Tcp) -> Result<Opened, ProbeError> {
        self.ask(&Request::TcpOpen(tcp.clone()), steps(2, &tcp.via))
    }

    /// Makes a UDP socket, connects it if asked to, and keeps it. Sends nothing.
    pub fn open_udp(&self, udp: &Udp) -> Result<Opened, ProbeError> {
        self.ask(&Request::UdpOpen(udp.clone()), steps(1, &udp.via))
    }

    /// Sends `text` on a kept socket and waits for the answer.
    pub fn exchange(&self, handle: Handle, text: &str) -> Result<Received, ProbeError> {
        self.send(handle, text)?;
        self.receive_answer_to(handle, text)
    }

    /// Waits for the answer to `text`. Those to earlier requests, whose senders did not wait for them any more, are passed over.
    fn receive_answer_to(&self, handle: Handle, text: &str) -> Result<Received, ProbeError> {
        for _ in 0..LATE_ANSWERS {
            let received = self.receive(handle)?;
            if received.answer.text == text {
                return Ok(received);
            }
        }
        self.receive(handle)
    }

    /// Like [`Probe::exchange`], with sendto() to another address than the socket was opened for.
    pub fn exchange_with(&self, handle: Handle, to: SocketAddr, text: &str) -> Result<Received, ProbeError> {
        self.send_to(handle, to, text)?;
        self.receive_answer_to(handle, text)
    }

    /// Sends one line or datagram.
    pub fn send(&self, handle: Handle, text: &str) -> Result<(), ProbeError> {
        self.ask(&Request::Send { handle, to: None, text: text.to_owned() }, STEP)
    }

    /// Sends one datagram to `to`.
    pub fn send_to(&self, handle: Handle, to: SocketAddr, text: &str) -> Result<(), ProbeError> {
        self.ask(&Request::Send { handle, to: Some(to), text: text.to_owned() }, STEP)
    }

    /// Waits for one answer, within the limit with which the socket was opened.
    pub fn receive(&self, handle: Handle) -> Result<Received, ProbeError> {
        self.ask(&Request::Receive { handle }, STEP)
    }

    /// connect() of a kept socket to a new peer. A TCP connection ends without a word to its old one.
    pub fn reconnect(&self, handle: Handle, to: SocketAddr) -> Result<Opened, ProbeError> {
        self.ask(&Request::Reconnect { handle, to }, STEP)
    }

    /// getsockname() and getpeername() of a kept socket, now.
    pub fn names(&self, handle: Handle) -> Result<Opened, ProbeError> {
        self.ask(&Request::Names { handle }, SLACK)
    }

    /// Closes a kept socket; stops a server and closes its connections; ends a load.
    pub fn close(&self, handle: Handle) -> Result<(), ProbeError> {
        self.ask(&Request::Close { handle }, STEP)
    }

    /// Runs a load to its end.
    pub fn run(&self, many: &Many) -> Result<Tally, ProbeError> {
        let handle = self.begin(many)?;
        self.ask(&Request::Await { handle }, Duration::from_millis(many.for_ms) + STEP)
    }

    /// Begins a load and returns while it runs.
    pub fn begin(&self, many: &Many) -> Result<Handle, ProbeError> {
        self.ask(&Request::Begin(many.clone()), SLACK)
    }

    /// What a load has seen so far.
    pub fn tally(&self, handle: Handle) -> Result<Tally, ProbeError> {
        self.ask(&Request::Tally { handle }, SLACK)
    }

    /// Stops a load, waits for its attempts under way, and forgets it. Whether it still ran is what [`Probe::tally`] says
    /// before.
    pub fn finish(&self, handle: Handle) -> Result<Tally, ProbeError> {
        self.ask(&Request::Finish { handle }, STEP)
    }

    /// Looks at many destinations at once; what was seen is in the order of the looks.
    pub fn survey(&self, survey: &Survey) -> Result<Vec<Seen>, ProbeError> {
        self.ask(&Request::Survey(survey.clone()), STEP)
    }

    /// Moves many bytes over several connections at once.
    pub fn transfer(&self, transfers: &Transfers) -> Result<Vec<Result<Moved, Failure>>, ProbeError> {
        self.ask(&Request::Transfers(transfers.clone()), STEP)
    }

    /// Opens many connections and keeps them.
    pub fn hold(&self, hold: &Hold) -> Result<(Handle, Holding), ProbeError> {
        let time = Duration::from_secs(hold.count.checked_div(hold.per_second).unwrap_or_default());
        self.ask(&Request::Hold(hold.clone()), time + STEP)
    }

    /// Lets each of these connections say something.
    pub fn check(&self, handle: Handle) -> Result<Holding, ProbeError> {
        self.ask(&Request::Check { handle }, STEP)
    }

    /// Cookie of the probe's network namespace (`SO_NETNS_COOKIE`, Linux 5.14): the key by which programs
    /// know a pod.
    pub fn netns_cookie(&self) -> Result<u64, ProbeError> {
        self.ask(&Request::NetnsCookie, SLACK)
    }

    fn ask<T: DeserializeOwned>(&self, request: &Request, limit: Duration) -> Result<T, ProbeError> {
        let line = serde_json::to_string(request).map_err(|error| self.lost(error.to_string()))? + "\n";
        let mut pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        pipes.requests.write_all(line.as_bytes()).map_err(|error| self.lost(error.to_string()))?;
        let answer = pipes.answers.recv_timeout(limit).map_err(|error| {
            self.lost(match error {
                RecvTimeoutError::Timeout => {
                    // An answer that comes later would be taken for that of the next request.
                    let killed = self.kill();
                    format!("no answer within {limit:?} to {request:?}; killed: {killed:?}")
                }
                RecvTimeoutError::Disconnected => format!("its process ended before it answered {request:?}"),
            })
        })?;
        drop(pipes);
        let result: Result<Value, Failure> =
            serde_json::from_str(&answer).map_err(|error| self.lost(format!("{error}: {answer}")))?;
        let value = result.map_err(|failure| ProbeError::Refused { probe: self.label.clone(), failure })?;
        serde_json::from_value(value).map_err(|error| self.lost(format!("{error}: {answer}")))
    }

    fn lost(&self, reason: String) -> ProbeError {
        ProbeError::Lost { probe: self.label.clone(), reason }
    }
}

/// Limit of a request made of `count` steps that are each limited by `via`.
fn steps(count: u32, via: &Via) -> Duration {
    Duration::from_millis(via.timeout_ms) * count + SLACK
}
