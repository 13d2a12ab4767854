//! What a [`Probe`](crate::Probe) and its process say to each other: one JSON value per line, one answer per
//! request, in order.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::options::{Hold, Many, Serve, Survey, Tcp, Transfers, Udp};

/// Names a socket, server or load inside one probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Handle(pub u64);

/// One request.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Answered with [`Opened`].
    Serve(Serve),
    /// Connect, exchange, close: answered with [`Reached`].
    Tcp(Tcp),
    /// Send, receive, close: answered with [`Reached`].
    Udp(Udp),
    /// Connect and keep: answered with [`Opened`].
    TcpOpen(Tcp),
    /// Answered with [`Opened`].
    UdpOpen(Udp),
    /// Text from a kept socket, to its peer or to `to`.
    Send {
        /// Socket.
        handle: Handle,
        /// sendto instead of send. None on an unconnected UDP socket: the address it was opened for.
        to: Option<SocketAddr>,
        /// What the server will repeat.
        text: String,
    },
    /// Waits for one answer on a kept socket: answered with [`Received`].
    Receive {
        /// Socket.
        handle: Handle,
    },
    /// connect() on a kept socket, to another address than before: answered with [`Opened`].
    Reconnect {
        /// Socket.
        handle: Handle,
        /// New peer.
        to: SocketAddr,
    },
    /// getsockname and getpeername: answered with [`Opened`].
    Names {
        /// Socket.
        handle: Handle,
    },
    /// Closes a socket, or stops a server with all its connections.
    Close {
        /// Socket or server.
        handle: Handle,
    },
    /// Begins a load in the background: answered with a [`Handle`].
    Begin(Many),
    /// What a load has seen so far: answered with [`Tally`].
    Tally {
        /// Load.
        handle: Handle,
    },
    /// Waits for the end of a load that reaches its bounds: answered with [`Tally`].
    Await {
        /// Load.
        handle: Handle,
    },
    /// Stops a load: answered with [`Tally`].
    Finish {
        /// Load.
        handle: Handle,
    },
    /// Looks at many destinations: answered with as many [`Seen`].
    Survey(Survey),
    /// Does transfers: answered with a result for each, [`Moved`] or a failure.
    Transfers(Transfers),
    /// Opens many connections: answered with a [`Handle`] and [`Holding`].
    Hold(Hold),
    /// Whether they are still there: answered with [`Holding`].
    Check {
        /// Connections.
        handle: Handle,
    },
    /// The cookie of the network namespace: answered with a number.
    NetnsCookie,
}

/// What one of our servers says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Name of the server.
    pub server: String,
    /// Address and port that the server saw as its client's. IPv4 clients of a dual server are mapped.
    pub client: SocketAddr,
    /// The line or datagram that it answers.
    pub text: String,
}

/// A socket or server that is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Its name in later requests.
    pub handle: Handle,
    /// getsockname().
    pub local: SocketAddr,
    /// getpeername(); None: the socket has no peer.
    pub peer: Option<SocketAddr>,
}

/// One received answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// The source that recvfrom() or recvmsg() named. Always None for TCP.
    pub from: Option<SocketAddr>,
    /// What the server said.
    pub answer: Answer,
}

/// What one connection or datagram came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// getsockname().
    pub local: SocketAddr,
    /// getpeername(); None: the socket has no peer.
    pub peer: Option<SocketAddr>,
    /// The source that recvfrom() or recvmsg() named; None for TCP.
    pub from: Option<SocketAddr>,
    /// What the server said; None for a silent connection.
    pub answer: Option<Answer>,
}

impl Reached {
    /// Name of the server that answered; empty if none was asked.
    pub fn server(&self) -> &str {
        self.answer.as_ref().map_or("", |answer| &answer.server)
    }
}

/// The counts of a load.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Successful attempts by name of the server (empty for silent ones).
    pub answered: BTreeMap<String, u64>,
    /// Failed attempts by step and errno, such as `connect ECONNREFUSED`.
    pub failed: BTreeMap<String, u64>,
    /// Successful attempts by the peer that getpeername() showed, or for unconnected UDP the source that
    /// recvfrom() showed.
    pub peers: BTreeMap<String, u64>,
    /// The first failures: milliseconds since the start, and what. At most [`Tally::KEPT_FAILURES`].
    pub first_failures: Vec<(u64, String)>,
    /// Milliseconds since the start, or from start to end.
    pub elapsed_ms: u64,
    /// Slowest successful attempt, in microseconds.
    pub slowest_us: u64,
    /// Whether all threads have ended.
    pub is_done: bool,
}

impl Tally {
    /// Most entries of [`Tally::first_failures`].
    pub const KEPT_FAILURES: usize = 16;

    /// Successful attempts.
    pub fn successes(&self) -> u64 {
        self.answered.values().sum()
    }

    /// Failed attempts.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Successful attempts that `server` answered.
    pub fn from(&self, server: &str) -> u64 {
        self.answered.get(server).copied().unwrap_or(0)
    }
}

/// What one destination of a survey came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Answers by name of the server.
    pub answered: BTreeMap<String, u64>,
    /// The clients' addresses that each server saw, IPv4 ones not mapped.
    pub sources: BTreeMap<String, BTreeSet<IpAddr>>,
    /// What getpeername() showed, or for unconnected UDP the source of the answer; IPv4 ones not mapped.
    pub peers: BTreeSet<SocketAddr>,
    /// Failed attempts by errno ([`Failure::errno`]).
    pub failed: BTreeMap<String, u64>,
}

/// What a transfer has moved, every byte as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Bytes that the server has received.
    pub up: u64,
    /// Bytes that the client has received.
    pub down: u64,
}

/// Many connections that are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// Those that are there, and have just said something and been answered.
    pub alive: u64,
    /// Those that could not be opened, or are gone since the last time, by step and errno.
    pub failed: BTreeMap<String, u64>,
    /// Milliseconds that opening, or asking, all of them took.
    pub took_ms: u64,
}

/// Part of a socket's life in which something went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// The request itself: unknown handle, wrong kind, bounds.
    Request,
    /// socket(), and options.
    Socket,
    /// bind() or listen().
    Bind,
    /// connect().
    Connect,
    /// send(), sendto().
    Send,
    /// recv(), recvfrom(), recvmsg().
    Receive,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Request => "request",
            Self::Socket => "socket",
            Self::Bind => "bind",
            Self::Connect => "connect",
            Self::Send => "send",
            Self::Receive => "receive",
        })
    }
}

/// A step that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{step} {errno}")]
pub struct Failure {
    /// Where.
    pub step: Step,
    /// Name of the error number, such as `ECONNREFUSED`, or one of ours: `TIMEOUT` (the limit of the request
    /// passed; the kernel's own is `ETIMEDOUT`), `EOF` (the peer closed), `FOREIGN` (the answer is not that
    /// of one of our servers).
    pub errno: String,
}

impl Failure {
    /// A failed `step`.
    pub fn new(step: Step, errno: impl Into<String>) -> Self {
        Self { step, errno: errno.into() }
    }
}
