//! The readers: sockets of every kind that find out whom they really reach.

use std::collections::BTreeSet;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, setsockopt, sockopt};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::shared::Shared;
use crate::world::{Kind, Random, any, endpoints, frontend, is_there, listening_port};

/// How long a datagram may take to a socket of the same machine.
const LIMIT: Duration = Duration::from_secs(5);

/// Calls after which TCP and unconnected UDP pause: they take much longer than connecting a UDP socket, and seldom look into
/// the maps meanwhile.
const CALLS: u64 = 32;
const PAUSE: Duration = Duration::from_micros(500);

/// Connects to Services of a kind, and judges whom it has reached, until the test is over.
pub(crate) fn run(kind: Kind, shared: &Shared) {
    let mut random = Random((kind as u64 + 1) << 32);
    let mut way = way(kind);
    while !shared.is_over() {
        let number = choose(kind, shared, &mut random);
        let first = shared.finished(number);
        let reached = way.reach(number).map_err(|error| error.to_string());
        shared.judge(number, first, reached);
        if shared.count(kind).is_multiple_of(CALLS) && matches!(kind, Kind::Datagrams | Kind::Streams) {
            thread::sleep(PAUSE);
        }
    }
}

/// Mostly a Service that is being changed.
fn choose(kind: Kind, shared: &Shared, random: &mut Random) -> u32 {
    let Range { start, end } = if random.once_in(4) { kind.numbers() } else { shared.hot(kind) };
    start + random.below(end - start)
}

/// Nothing changes any more: every endpoint of every Service is met, and nobody else.
pub(crate) fn assert_meet_exactly_the_last_ones(kind: Kind, shared: &Shared) {
    let mut way = way(kind);
    for number in kind.numbers().filter(|number| is_there(*number, shared.finished(*number))) {
        let should: BTreeSet<SocketAddr> = endpoints(number, shared.finished(number)).into_iter().collect();
        let mut met = BTreeSet::new();
        // The chance that one of n endpoints is never met is below n * e^-40.
        for _ in 0..40 * should.len() {
            way.forget();
            met.insert(way.reach(number).unwrap());
        }
        assert_eq!(met, should, "Service {number}");
    }
}

fn way(kind: Kind) -> Box<dyn Way> {
    match kind {
        Kind::Connected | Kind::Guest => Box::new(Connected::new()),
        Kind::Datagrams => Box::new(Datagrams::new()),
        Kind::Streams => Box::new(Streams::new()),
    }
}

/// How a reader reaches a Service, and whom.
trait Way {
    /// Connects to a Service, and finds out where it got.
    fn reach(&mut self, number: u32) -> io::Result<SocketAddr>;

    /// Forgets earlier choices.
    fn forget(&mut self) {}
}

/// One socket per family, connected again and again. connect() sends nothing, so nobody has to listen.
struct Connected([Socket; 2]);

impl Connected {
    fn new() -> Self {
        Self(
            [0, 1]
                .map(|number| Socket::new(Domain::for_address(frontend(number)), Type::DGRAM, None).unwrap()),
        )
    }
}

impl Way for Connected {
    fn reach(&mut self, number: u32) -> io::Result<SocketAddr> {
        let socket = &self.0[number as usize % 2];
        socket.connect(&SockAddr::from(frontend(number)))?;
        peer(socket)
    }
}

/// One socket per family that sends; per Service one that tells to which address a datagram came.
struct Datagrams {
    senders: [UdpSocket; 2],
    servers: Vec<UdpSocket>,
    sent: u64,
}

impl Datagrams {
    fn new() -> Self {
        let listen = |number| {
            let server = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, listening_port(number))).unwrap();
            server.set_read_timeout(Some(LIMIT)).unwrap();
            setsockopt(&server, sockopt::Ipv6RecvPacketInfo, &true).unwrap();
            server
        };
        Self { senders: Self::senders(), servers: Kind::Datagrams.numbers().map(listen).collect(), sent: 0 }
    }

    fn senders() -> [UdpSocket; 2] {
        [0, 1].map(|number| UdpSocket::bind((any(number), 0)).unwrap())
    }
}

impl Way for Datagrams {
    fn reach(&mut self, number: u32) -> io::Result<SocketAddr> {
        self.sent += 1;
        self.senders[number as usize % 2].send_to(&self.sent.to_ne_bytes(), frontend(number))?;
        let server = &self.servers[place(Kind::Datagrams, number)];
        loop {
            let mut text = [0; 8];
            let mut parts = [IoSliceMut::new(&mut text)];
            let mut control = nix::cmsg_space!(libc::in6_pktinfo);
            let fd = server.as_raw_fd();
            let message = recvmsg::<SockaddrIn6>(fd, &mut parts, Some(&mut control), MsgFlags::empty())?;
            let to = message.cmsgs()?.find_map(|part| match part {
                ControlMessageOwned::Ipv6PacketInfo(info) => Some(Ipv6Addr::from(info.ipi6_addr.s6_addr)),
                _ => None,
            });
            let to = to.ok_or_else(|| io::Error::other("a datagram without its destination"))?;
            if u64::from_ne_bytes(text) == self.sent {
                let addr = to.to_ipv4_mapped().map_or(IpAddr::V6(to), IpAddr::V4);
                return Ok(SocketAddr::new(addr, listening_port(number)));
            }
            // One that came too late, and was complained about then.
        }
    }

    fn forget(&mut self) {
        self.senders = Self::senders();
    }
}

/// A new connection each time, reset at once.
struct Streams(Vec<TcpListener>);

impl Streams {
    fn new() -> Self {
        let listen = |number| {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, listening_port(number))).unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        };
        Self(Kind::Streams.numbers().map(listen).collect())
    }
}

impl Way for Streams {
    fn reach(&mut self, number: u32) -> io::Result<SocketAddr> {
        let to = SockAddr::from(frontend(number));
        let socket = Socket::new(to.domain(), Type::STREAM, None)?;
        socket.set_linger(Some(Duration::ZERO))?;
        socket.connect(&to)?;
        let peer = peer(&socket)?;
        drop(socket);
        // Whoever is not taken fills the queue; a foreign one stays, and is complained about.
        drop(self.0[place(Kind::Streams, number)].accept());
        Ok(peer)
    }
}

fn peer(socket: &Socket) -> io::Result<SocketAddr> {
    socket.peer_addr()?.as_socket().ok_or_else(|| io::Error::other("a peer without an address"))
}

/// Which one of its kind a Service is.
fn place(kind: Kind, number: u32) -> usize {
    (number - kind.numbers().start) as usize
}
