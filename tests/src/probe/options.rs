//! What a test asks for: servers, clients, loads, and how each is made.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::protocol::Handle;

/// How long one step of a socket's life may take unless a test says otherwise: it is expected to succeed, on a slow
/// machine too.
const DEFAULT_TIMEOUT_MS: u64 = 20_000;

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP, over MPTCP sockets where asked for.
    Tcp,
    /// UDP.
    Udp,
}

/// What a TCP server does with its connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Answers each line with an [`Answer`](super::protocol::Answer).
    #[default]
    Answer,
    /// The same, and its name is followed by the address that the client has meant, before a rule of its own has redirected it:
    /// `NAME for ADDRESS:PORT` (`SO_ORIGINAL_DST`).
    Redirected,
    /// The other end of [`Transfers`].
    Transfer,
    /// The other end of [`Hold`]: sends every byte back, on any number of connections.
    Echo,
}

/// A server. It answers each line (TCP, unless [`Serve::task`] says otherwise) or datagram (UDP) with an
/// [`Answer`](super::protocol::Answer).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Serve {
    /// What it calls itself in answers.
    pub name: String,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where it listens; port 0 lets the kernel choose. A UDP server answers from this address, so it should
    /// be a specific one.
    pub at: SocketAddr,
    /// Only with `[::]`: take IPv4 clients too, which are seen as `::ffff:a.b.c.d`.
    pub dual: bool,
    /// Listen with an MPTCP socket.
    pub mptcp: bool,
    /// For TCP.
    pub task: Task,
}

impl Serve {
    /// A TCP server.
    pub fn tcp(name: &str, at: SocketAddr) -> Self {
        let name = name.to_owned();
        Self { name, protocol: Protocol::Tcp, at, dual: false, mptcp: false, task: Task::Answer }
    }

    /// A UDP server.
    pub fn udp(name: &str, at: SocketAddr) -> Self {
        Self { protocol: Protocol::Udp, ..Self::tcp(name, at) }
    }

    /// Takes IPv4 clients on an IPv6 socket.
    #[must_use]
    pub fn dual(self) -> Self {
        Self { dual: true, ..self }
    }

    /// Listens with an MPTCP socket.
    #[must_use]
    pub fn mptcp(self) -> Self {
        Self { mptcp: true, ..self }
    }

    /// Does this with TCP connections.
    #[must_use]
    pub fn task(self, task: Task) -> Self {
        Self { task, ..self }
    }
}

/// How a client socket is made, whatever its protocol.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Via {
    /// An `AF_INET6` socket that speaks to `::ffff:a.b.c.d`.
    pub mapped: bool,
    /// bind() to this address first; port 0 lets the kernel choose.
    pub bind: Option<SocketAddr>,
    /// `SO_BINDTODEVICE` first.
    pub device: Option<String>,
    /// Limit of each single step, in milliseconds. Afterwards the errno is `TIMEOUT`.
    pub timeout_ms: u64,
}

impl Default for Via {
    fn default() -> Self {
        Self { mapped: false, bind: None, device: None, timeout_ms: DEFAULT_TIMEOUT_MS }
    }
}

/// How the first segment may carry data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FastOpen {
    /// connect(), then send().
    #[default]
    No,
    /// sendto() with `MSG_FASTOPEN` and the text `hello`, whose answer a kept connection can receive first.
    SendTo,
    /// `TCP_FASTOPEN_CONNECT`, connect(), send().
    Connect,
}

/// A TCP client.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[must_use]
pub struct Tcp {
    /// Where connect() goes.
    pub to: SocketAddr,
    /// How the socket is made.
    pub via: Via,
    /// Only connect and close, say nothing.
    pub silent: bool,
    /// Non-blocking connect, poll, `SO_ERROR`; otherwise connect() itself waits.
    pub nonblocking: bool,
    /// `IPPROTO_MPTCP`.
    pub mptcp: bool,
    /// TCP fast open.
    pub fast_open: FastOpen,
    /// Close by RST (`SO_LINGER` 0), so that no port stays in `TIME_WAIT`.
    pub reset: bool,
}

impl Tcp {
    /// A plain blocking client of `to`.
    pub fn to(to: SocketAddr) -> Self {
        Self {
            to,
            via: Via::default(),
            silent: false,
            nonblocking: false,
            mptcp: false,
            fast_open: FastOpen::No,
            reset: false,
        }
    }

    /// On an `AF_INET6` socket, to `::ffff:a.b.c.d`.
    pub fn mapped(mut self) -> Self {
        self.via.mapped = true;
        self
    }

    /// From this source address.
    pub fn bind(mut self, at: SocketAddr) -> Self {
        self.via.bind = Some(at);
        self
    }

    /// Over this interface.
    pub fn device(mut self, name: &str) -> Self {
        self.via.device = Some(name.to_owned());
        self
    }

    /// With this limit for each step.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.via.timeout_ms = millis(limit);
        self
    }

    /// Only connect.
    pub fn silent(self) -> Self {
        Self { silent: true, ..self }
    }

    /// With a non-blocking connect.
    pub fn nonblocking(self) -> Self {
        Self { nonblocking: true, ..self }
    }

    /// On an MPTCP socket.
    pub fn mptcp(self) -> Self {
        Self { mptcp: true, ..self }
    }

    /// With TCP fast open.
    pub fn fast_open(self, fast_open: FastOpen) -> Self {
        Self { fast_open, ..self }
    }

    /// Closed by RST.
    pub fn reset(self) -> Self {
        Self { reset: true, ..self }
    }
}

/// Which system call receives a datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Receiver {
    /// recvfrom().
    #[default]
    RecvFrom,
    /// recv(), which names no source.
    Recv,
    /// recvmsg().
    RecvMsg,
}

/// A UDP client.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[must_use]
pub struct Udp {
    /// Where connect() or sendto() goes.
    pub to: SocketAddr,
    /// How the socket is made.
    pub via: Via,
    /// connect() first, then send(); otherwise sendto().
    pub connected: bool,
    /// How answers are read.
    pub receiver: Receiver,
}

impl Udp {
    /// An unconnected socket whose datagrams go to `to`, unless a send names another address.
    pub fn to(to: SocketAddr) -> Self {
        Self { to, via: Via::default(), connected: false, receiver: Receiver::RecvFrom }
    }

    /// A socket connected to `to`.
    pub fn connected(to: SocketAddr) -> Self {
        Self { connected: true, ..Self::to(to) }
    }

    /// On an `AF_INET6` socket, to `::ffff:a.b.c.d`.
    pub fn mapped(mut self) -> Self {
        self.via.mapped = true;
        self
    }

    /// From this source address.
    pub fn bind(mut self, at: SocketAddr) -> Self {
        self.via.bind = Some(at);
        self
    }

    /// Over this interface.
    pub fn device(mut self, name: &str) -> Self {
        self.via.device = Some(name.to_owned());
        self
    }

    /// With this limit for each step.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.via.timeout_ms = millis(limit);
        self
    }

    /// Reads answers with this system call.
    pub fn receiver(self, receiver: Receiver) -> Self {
        Self { receiver, ..self }
    }
}

/// What one attempt of a load is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Attempt {
    /// Connect, exchange unless silent, close.
    Tcp(Tcp),
    /// A new socket, send, receive, close.
    Udp(Udp),
}

impl From<Tcp> for Attempt {
    fn from(tcp: Tcp) -> Self {
        Self::Tcp(tcp)
    }
}

impl From<Udp> for Attempt {
    fn from(udp: Udp) -> Self {
        Self::Udp(udp)
    }
}

/// The same attempt again and again, until the first of its bounds is reached.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[must_use]
pub struct Many {
    /// What is repeated.
    pub attempt: Attempt,
    /// Attempts of all threads together, at most [`Many::MAX_COUNT`].
    pub count: u64,
    /// Milliseconds, at most [`Many::MAX_TIME`].
    pub for_ms: u64,
    /// Threads, 1 to [`Many::MAX_THREADS`].
    pub threads: u32,
    /// Pause of a thread after each attempt, in microseconds.
    pub pause_us: u64,
}

impl Many {
    /// Most attempts of one load.
    pub const MAX_COUNT: u64 = 10_000_000;
    /// Longest time of one load: longer than any test that finishes its load by itself.
    pub const MAX_TIME: Duration = Duration::from_mins(10);
    /// Most threads of one load.
    pub const MAX_THREADS: u32 = 64;

    /// `count` attempts, in one thread.
    pub fn times(count: u64, attempt: impl Into<Attempt>) -> Self {
        Self { attempt: attempt.into(), count, for_ms: millis(Self::MAX_TIME), threads: 1, pause_us: 0 }
    }

    /// As many attempts as one thread makes until the load is finished. A test that takes longer than
    /// [`Many::MAX_TIME`] finds it done before.
    pub fn until_finished(attempt: impl Into<Attempt>) -> Self {
        Self::during(Self::MAX_TIME, attempt)
    }

    /// As many attempts as one thread makes in `time`.
    pub fn during(time: Duration, attempt: impl Into<Attempt>) -> Self {
        Self { for_ms: millis(time), ..Self::times(Self::MAX_COUNT, attempt) }
    }

    /// In this many threads.
    pub fn threads(self, threads: u32) -> Self {
        Self { threads, ..self }
    }

    /// With this pause of a thread after each attempt.
    pub fn pause(self, pause: Duration) -> Self {
        Self { pause_us: u64::try_from(pause.as_micros()).unwrap_or(u64::MAX), ..self }
    }
}

/// One destination of a [`Survey`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[must_use]
pub struct Look {
    /// What is tried.
    pub attempt: Attempt,
    /// How often, each time with a new socket.
    pub times: u32,
    /// Failures after which there is no further attempt: a silent destination costs a timeout each.
    pub failures: u32,
}

/// Many destinations at once.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[must_use]
pub struct Survey {
    /// The destinations.
    pub looks: Vec<Look>,
    /// How many destinations are looked at at the same time, 1 to [`Survey::MAX_THREADS`].
    pub threads: u32,
}

impl Survey {
    /// Most threads of a survey: nearly all of them wait for silent destinations.
    pub const MAX_THREADS: u32 = 256;
}

/// Who is first to end its direction of a [transfer](Transfers).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ends {
    /// Both send at once; whoever is done says so.
    Both,
    /// The client sends and ends its direction; only then the server begins.
    Client,
    /// The server sends and closes, and the client sends nothing.
    Server,
}

/// TCP connections at the same time that move many bytes, each of which is compared with what it should be.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[must_use]
pub struct Transfers {
    /// Where they go: a server with [`Task::Transfer`].
    pub to: SocketAddr,
    /// How the sockets are made.
    pub via: Via,
    /// How many.
    pub flows: u32,
    /// Bytes from client to server.
    pub up: u64,
    /// Bytes from server to client.
    pub down: u64,
    /// Who ends first.
    pub ends: Ends,
}

impl Transfers {
    /// `flows` connections that move as many `bytes` up as down, both at once.
    pub fn to(to: SocketAddr, flows: u32, bytes: u64) -> Self {
        Self { to, via: Via::default(), flows, up: bytes, down: bytes, ends: Ends::Both }
    }

    /// With another order of the ends.
    pub fn ends(self, ends: Ends) -> Self {
        Self { ends, ..self }
    }

    /// From this source address.
    pub fn bind(mut self, at: SocketAddr) -> Self {
        self.via.bind = Some(at);
        self
    }
}

/// TCP connections to a server with [`Task::Echo`], opened at a steady rate and kept until there are too many. Each says a byte
/// and hears it again.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[must_use]
pub struct Hold {
    /// Where they go.
    pub to: SocketAddr,
    /// How many are opened altogether.
    pub count: u64,
    /// How many in a second; 0: as fast as they come.
    pub per_second: u64,
    /// How many are kept at most; the oldest is closed for a new one beyond that.
    pub keep: u64,
    /// They come to those of this handle.
    pub into: Option<Handle>,
    /// Source addresses, in turn, each with all of its ports in turn; none: what the kernel chooses.
    pub from: Vec<IpAddr>,
    /// How many are opened at the same time.
    pub threads: u32,
    /// Limit of each step, in milliseconds.
    pub timeout_ms: u64,
}

impl Hold {
    /// `count` connections, all of which are kept.
    pub fn all(to: SocketAddr, count: u64) -> Self {
        Self {
            to,
            count,
            per_second: 0,
            keep: count,
            into: None,
            from: Vec::new(),
            threads: 8,
            timeout_ms: DEFAULT_TIMEOUT_MS,
        }
    }

    /// At this rate, if that can be.
    pub fn per_second(self, per_second: u64) -> Self {
        Self { per_second, ..self }
    }

    /// Keeps only so many.
    pub fn keep(self, keep: u64) -> Self {
        Self { keep, ..self }
    }

    /// From these source addresses, in turn.
    pub fn from(self, from: Vec<IpAddr>) -> Self {
        Self { from, ..self }
    }

    /// With this limit for each step.
    pub fn timeout(self, limit: Duration) -> Self {
        Self { timeout_ms: millis(limit), ..self }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
