//! Servers of a probe: each answers on one address, in one thread.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{SockaddrIn, SockaddrIn6, getsockopt, setsockopt, sockopt};
use socket2::{Domain, Protocol as SocketProtocol, Socket, Type};

use super::client::at;
use super::options::{Protocol, Serve, Task};
use super::protocol::{Answer, Failure, Step};
use super::{hold, transfer};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Connections that one server keeps; the oldest is closed for a new one beyond that.
const MOST_CONNECTIONS: usize = 4096;

/// Longest request line or datagram.
const LONGEST_REQUEST: usize = 4096;

/// A running server. Dropping it closes its socket and connections before drop returns.
#[derive(Debug)]
pub(super) struct Server {
    local: SocketAddr,
    /// Its other end is polled by the thread, which ends when this one closes.
    stop: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Binds and starts answering.
    pub(super) fn start(serve: &Serve) -> Result<Self, Failure> {
        let (kind, protocol) = match serve.protocol {
            Protocol::Tcp if serve.mptcp => (Type::STREAM, SocketProtocol::MPTCP),
            Protocol::Tcp => (Type::STREAM, SocketProtocol::TCP),
            Protocol::Udp => (Type::DGRAM, SocketProtocol::UDP),
        };
        let socket =
            Socket::new(Domain::for_address(serve.at), kind, Some(protocol)).map_err(at(Step::Socket))?;
        if serve.at.is_ipv6() {
            socket.set_only_v6(!serve.dual).map_err(at(Step::Socket))?;
        }
        if serve.protocol == Protocol::Tcp {
            // Connections of an earlier server may be in TIME_WAIT. On UDP the option would let two servers
            // share an address.
            socket.set_reuse_address(true).map_err(at(Step::Socket))?;
        }
        if serve.task == Task::Echo {
            // Several processes share the connections, because each may have only so many descriptors.
            setsockopt(&socket, sockopt::ReusePort, &true).map_err(|errno| at(Step::Socket)(errno.into()))?;
        }
        socket.set_nonblocking(true).map_err(at(Step::Socket))?;
        socket.bind(&serve.at.into()).map_err(at(Step::Bind))?;
        if serve.protocol == Protocol::Tcp {
            socket.listen(BACKLOG).map_err(at(Step::Bind))?;
        }
        let local = socket.local_addr().map_err(at(Step::Bind))?.as_socket();
        let local = local.ok_or_else(|| Failure::new(Step::Bind, "EAFNOSUPPORT"))?;
        let (stop, stopped) = UnixStream::pair().map_err(at(Step::Socket))?;
        let name = serve.name.clone();
        let thread = match serve.protocol {
            Protocol::Tcp if serve.task == Task::Transfer => {
                thread::spawn(move || transfer::serve(&socket.into(), &stopped))
            }
            Protocol::Tcp if serve.task == Task::Echo => {
                // What goes wrong shows in what is not answered.
                thread::spawn(move || drop(hold::echo(&socket.into(), &stopped)))
            }
            Protocol::Tcp => {
                let names = serve.task == Task::Redirected;
                thread::spawn(move || serve_tcp((&name, names), &socket.into(), &stopped))
            }
            Protocol::Udp => thread::spawn(move || serve_udp(&name, &socket.into(), &stopped)),
        };
        Ok(Self { local, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub(super) fn local(&self) -> SocketAddr {
        self.local
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing else closes the pair, so this cannot fail; the thread has no panic to report beyond its own.
        drop(self.stop.shutdown(Shutdown::Both));
        drop(self.thread.take().map(JoinHandle::join));
    }
}

struct Connection {
    name: String,
    stream: TcpStream,
    client: SocketAddr,
    pending: Vec<u8>,
}

fn serve_tcp((name, names_meant): (&str, bool), listener: &TcpListener, stopped: &UnixStream) {
    let mut connections: VecDeque<Connection> = VecDeque::new();
    loop {
        let mut waiting = vec![stopped.as_fd(), listener.as_fd()];
        waiting.extend(connections.iter().map(|connection| connection.stream.as_fd()));
        let ready = wait(&waiting);
        if ready[0] {
            return;
        }
        let mut is_ready = ready[2..].iter();
        connections.retain_mut(|connection| {
            let is_ready = is_ready.next().is_some_and(|ready| *ready);
            !is_ready || connection.answer().is_ok()
        });
        // One accept per round keeps `ready` and `connections` in step; poll returns at once for the next.
        if ready[1]
            && let Ok((stream, client)) = listener.accept()
            && stream.set_nonblocking(true).is_ok()
        {
            if connections.len() == MOST_CONNECTIONS {
                connections.pop_front();
            }
            let meant = if names_meant { meant(&stream) } else { None };
            let name = meant.map_or_else(|| name.to_owned(), |meant| format!("{name} for {meant}"));
            connections.push_back(Connection { name, stream, client, pending: Vec::new() });
        }
    }
}

/// Where a connection went before it was redirected, as connection tracking knows.
fn meant(stream: &TcpStream) -> Option<SocketAddr> {
    if stream.local_addr().ok()?.is_ipv4() {
        let meant = SockaddrIn::from(getsockopt(stream, sockopt::OriginalDst).ok()?);
        return Some(SocketAddrV4::from(meant).into());
    }
    let meant = SockaddrIn6::from(getsockopt(stream, sockopt::Ip6tOriginalDst).ok()?);
    Some(SocketAddrV6::from(meant).into())
}

impl Connection {
    /// Answers the complete lines that have arrived. An error means that the connection is over.
    fn answer(&mut self) -> io::Result<()> {
        let mut chunk = [0; LONGEST_REQUEST];
        let count = self.stream.read(&mut chunk)?;
        if count == 0 || self.pending.len() + count > LONGEST_REQUEST {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.pending.extend_from_slice(&chunk[..count]);
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            let mut answer = answer(&self.name, self.client, &line[..end])?;
            answer.push(b'\n');
            self.stream.write_all(&answer)?;
        }
        Ok(())
    }
}

fn serve_udp(name: &str, socket: &UdpSocket, stopped: &UnixStream) {
    let mut bytes = [0; LONGEST_REQUEST];
    while !wait(&[stopped.as_fd(), socket.as_fd()])[0] {
        // An error here is an ICMP answer to one of ours, which a client that has gone away causes.
        if let Ok((count, client)) = socket.recv_from(&mut bytes)
            && let Ok(answer) = answer(name, client, &bytes[..count])
        {
            drop(socket.send_to(&answer, client));
        }
    }
}

fn answer(name: &str, client: SocketAddr, text: &[u8]) -> io::Result<Vec<u8>> {
    let text = String::from_utf8_lossy(text).into_owned();
    Ok(serde_json::to_vec(&Answer { server: name.to_owned(), client, text })?)
}

/// Waits until one of `fds` is readable or closed, and says which are.
pub(super) fn wait(fds: &[BorrowedFd<'_>]) -> Vec<bool> {
    let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    if poll(&mut polled, PollTimeout::NONE).is_err() {
        // Interrupted: nothing is ready yet and the caller comes back.
        return vec![false; fds.len()];
    }
    polled.iter().map(|fd| fd.any().unwrap_or(true)).collect()
}
