//! One client socket of a probe.

use std::io::{self, IoSliceMut, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, SockaddrStorage, recvfrom, recvmsg, setsockopt, sockopt};
use rustix::net::connect_unspec;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::options::{FastOpen, Receiver, Tcp, Udp, Via};
use super::protocol::{Answer, Failure, Handle, Opened, Reached, Received, Step};

/// What a client says when the request names no text.
const TEXT: &str = "hello";

/// Longest answer. Ours are below 200 bytes.
const LONGEST_ANSWER: usize = 4096;

/// A socket of either protocol.
#[derive(Debug)]
pub(super) struct Client {
    socket: Socket,
    mapped: bool,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Tcp { said: Option<&'static str> },
    Udp { default_to: Option<SocketAddr>, receiver: Receiver },
}

impl Client {
    /// A connected TCP socket.
    pub(super) fn tcp(tcp: &Tcp) -> Result<Self, Failure> {
        let protocol = if tcp.mptcp { Protocol::MPTCP } else { Protocol::TCP };
        let socket = prepare(Type::STREAM, protocol, tcp.to, &tcp.via)?;
        if tcp.reset {
            socket.set_linger(Some(Duration::ZERO)).map_err(at(Step::Socket))?;
        }
        let mut client = Self { socket, mapped: tcp.via.mapped, kind: Kind::Tcp { said: None } };
        let to = SockAddr::from(client.shape(tcp.to));
        match tcp.fast_open {
            FastOpen::SendTo => {
                let line = format!("{TEXT}\n");
                let sent = client.socket.send_to_with_flags(line.as_bytes(), &to, libc::MSG_FASTOPEN);
                sent.map_err(at(Step::Connect))?;
                client.kind = Kind::Tcp { said: Some(TEXT) };
            }
            FastOpen::Connect => {
                setsockopt(&client.socket, sockopt::TcpFastOpenConnect, &true)
                    .map_err(|errno| Failure::new(Step::Socket, name(errno)))?;
                client.socket.connect(&to).map_err(at(Step::Connect))?;
            }
            FastOpen::No if tcp.nonblocking => {
                connect_without_blocking(&client.socket, &to, Duration::from_millis(tcp.via.timeout_ms))
                    .map_err(at(Step::Connect))?;
            }
            FastOpen::No => client.socket.connect(&to).map_err(at(Step::Connect))?,
        }
        Ok(client)
    }

    /// A UDP socket, connected or not.
    pub(super) fn udp(udp: &Udp) -> Result<Self, Failure> {
        let socket = prepare(Type::DGRAM, Protocol::UDP, udp.to, &udp.via)?;
        let default_to = (!udp.connected).then_some(udp.to);
        let kind = Kind::Udp { default_to, receiver: udp.receiver };
        let mut client = Self { socket, mapped: udp.via.mapped, kind };
        if udp.connected {
            client.connect(udp.to)?;
        }
        Ok(client)
    }

    /// connect() of a socket that may be connected already. A TCP socket has to give up its connection first.
    pub(super) fn connect(&mut self, to: SocketAddr) -> Result<(), Failure> {
        match &mut self.kind {
            Kind::Tcp { said } => {
                *said = None;
                connect_unspec(&self.socket).map_err(|errno| at(Step::Connect)(errno.into()))?;
            }
            Kind::Udp { default_to, .. } => *default_to = None,
        }
        self.socket.connect(&self.shape(to).into()).map_err(at(Step::Connect))
    }

    /// Says something unless `silent`, and tells how it went.
    pub(super) fn reach(&mut self, silent: bool) -> Result<Reached, Failure> {
        let received = if silent {
            None
        } else {
            if !matches!(self.kind, Kind::Tcp { said: Some(_) }) {
                self.send(None, TEXT)?;
            }
            Some(self.receive()?)
        };
        let (from, answer) = received.map_or((None, None), |it| (it.from, Some(it.answer)));
        Ok(Reached { local: self.local()?, peer: self.peer()?, from, answer })
    }

    /// Sends one line or datagram.
    pub(super) fn send(&mut self, to: Option<SocketAddr>, text: &str) -> Result<(), Failure> {
        match self.kind {
            Kind::Tcp { .. } => self.socket.write_all(format!("{text}\n").as_bytes()).map_err(at(Step::Send)),
            Kind::Udp { default_to, .. } => {
                let sent = match to.or(default_to) {
                    Some(to) => self.socket.send_to(text.as_bytes(), &self.shape(to).into()),
                    None => self.socket.send(text.as_bytes()),
                };
                sent.map(drop).map_err(at(Step::Send))
            }
        }
    }

    /// Waits for one answer.
    pub(super) fn receive(&mut self) -> Result<Received, Failure> {
        let (from, bytes) = match self.kind {
            Kind::Tcp { .. } => (None, self.read_line().map_err(at(Step::Receive))?),
            Kind::Udp { receiver, .. } => self.read_datagram(receiver).map_err(at(Step::Receive))?,
        };
        if bytes.is_empty() {
            return Err(Failure::new(Step::Receive, "EOF"));
        }
        let answer: Answer = serde_json::from_slice(&bytes)
            .map_err(|error| Failure::new(Step::Receive, format!("FOREIGN ({error})")))?;
        Ok(Received { from, answer })
    }

    /// getsockname and getpeername.
    pub(super) fn opened(&self, handle: Handle) -> Result<Opened, Failure> {
        Ok(Opened { handle, local: self.local()?, peer: self.peer()? })
    }

    fn local(&self) -> Result<SocketAddr, Failure> {
        let address = self.socket.local_addr().map_err(at(Step::Socket))?;
        address.as_socket().ok_or_else(|| Failure::new(Step::Socket, "EAFNOSUPPORT"))
    }

    fn peer(&self) -> Result<Option<SocketAddr>, Failure> {
        match self.socket.peer_addr() {
            Ok(address) => Ok(address.as_socket()),
            Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => Ok(None),
            Err(error) => Err(at(Step::Socket)(error)),
        }
    }

    /// `to` as this socket's family wants it.
    fn shape(&self, to: SocketAddr) -> SocketAddr {
        shape(to, self.mapped)
    }

    /// Bytes up to a newline, or up to the end of the stream.
    fn read_line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        let mut chunk = [0; LONGEST_ANSWER];
        while !line.ends_with(b"\n") && line.len() < LONGEST_ANSWER {
            match self.socket.read(&mut chunk)? {
                0 => break,
                count => line.extend_from_slice(&chunk[..count]),
            }
        }
        Ok(line)
    }

    fn read_datagram(&self, receiver: Receiver) -> io::Result<(Option<SocketAddr>, Vec<u8>)> {
        let fd = self.socket.as_raw_fd();
        let mut bytes = vec![0; LONGEST_ANSWER];
        let (count, from) = match receiver {
            Receiver::Recv => ((&self.socket).read(&mut bytes)?, None),
            Receiver::RecvFrom => recvfrom::<SockaddrStorage>(fd, &mut bytes)?,
            Receiver::RecvMsg => {
                let mut parts = [IoSliceMut::new(&mut bytes)];
                let message = recvmsg::<SockaddrStorage>(fd, &mut parts, None, MsgFlags::empty())?;
                (message.bytes, message.address)
            }
        };
        bytes.truncate(count);
        Ok((from.and_then(|address| socket_address(&address)), bytes))
    }
}

/// socket(), options and bind().
pub(super) fn prepare(kind: Type, protocol: Protocol, to: SocketAddr, via: &Via) -> Result<Socket, Failure> {
    let domain = Domain::for_address(shape(to, via.mapped));
    let socket = Socket::new(domain, kind, Some(protocol)).map_err(at(Step::Socket))?;
    let limit = Some(Duration::from_millis(via.timeout_ms.max(1)));
    socket.set_read_timeout(limit).map_err(at(Step::Socket))?;
    // On Linux this also limits a blocking connect().
    socket.set_write_timeout(limit).map_err(at(Step::Socket))?;
    if let Some(device) = &via.device {
        socket.bind_device(Some(device.as_bytes())).map_err(at(Step::Socket))?;
    }
    if let Some(address) = via.bind {
        socket.set_reuse_address(true).map_err(at(Step::Socket))?;
        socket.bind(&shape(address, via.mapped).into()).map_err(at(Step::Bind))?;
    }
    Ok(socket)
}

fn connect_without_blocking(socket: &Socket, to: &SockAddr, limit: Duration) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    match socket.connect(to) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
            let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
            let ready = poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)], timeout)?;
            if ready == 0 {
                // A refusal by ICMP that comes while connect() still runs, as on one machine it does, is kept in the socket
                // (`tcp_v4_err`). The kernel acts on it when it has sent again, after a second; SO_ERROR shows it now.
                return Err(socket.take_error()?.unwrap_or(error));
            }
            socket.take_error()?.map_or(Ok(()), Err)?;
        }
        result => result?,
    }
    socket.set_nonblocking(false)
}

fn shape(address: SocketAddr, mapped: bool) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if mapped => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        _ => address,
    }
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|it| SocketAddrV4::from(*it).into());
    v4.or_else(|| address.as_sockaddr_in6().map(|it| SocketAddrV6::from(*it).into()))
}

/// Turns an I/O error of `step` into a [`Failure`].
pub(super) fn at(step: Step) -> impl Fn(io::Error) -> Failure {
    move |error| {
        Failure::new(
            step,
            match error.raw_os_error() {
                // How the kernel reports that SO_RCVTIMEO or SO_SNDTIMEO passed.
                Some(libc::EAGAIN | libc::EINPROGRESS) => "TIMEOUT".to_owned(),
                Some(number) => name(Errno::from_raw(number)),
                None => error.to_string(),
            },
        )
    }
}

/// `ECONNREFUSED` and the like.
pub(super) fn name(errno: Errno) -> String {
    format!("{errno:?}")
}
