//! Socket load balancing: what connect(), sendmsg(), recvmsg() and getpeername() do to an address.
//!
//! ```text
//! connect   TCP, MPTCP: choose, remember the frontend for getpeername
//!           UDP:        choose, remember the pair for getpeername and recvmsg
//! send      UDP without a peer: the remembered backend while it lives and has the frontend, else choose and remember
//! received  backend -> frontend, for recvmsg and for getpeername of UDP sockets
//! peer      backend -> frontend, for getpeername of TCP sockets
//! ```
//!
//! The hook sees a destination before routing, so no packet is ever rewritten and a pod that reaches itself needs no
//! masquerade. What a socket remembers is in socket storage: it lives exactly as long as the socket.
//!
//! Not told apart: a datagram to a frontend, and later one to the same backend's own address on the same
//! unconnected socket. Both replies come from the backend, and both show the frontend.

use super::{
    select::{Algorithm, Chosen, Room, Served, choose},
    tables::{Tables, owned_frontend},
};
use crate::abi::{
    Address, Backend, BackendId, Client, Frontend, FrontendKey, FrontendKind, L4Addr, Netns, Proto, Reason,
    Run, ServiceFlags, ServiceId, SockTcp, SocketLb, UDP_PEERS, UdpPeer,
};

/// The UDP port of the loopback address where the kernel itself answers port unreachable, as kube-proxy's REJECT does:
/// tcpmux (RFC 1078) has no UDP service.
///
/// On port 0 nobody could listen at all, but sendto() calls it EINVAL, and getpeername() takes a peer with that port for
/// none (ENOTCONN) before any hook is asked.
pub const REFUSING_UDP_PORT: u16 = 1;

/// What the data path may ask of the socket at hand.
///
/// Storage does not exist until something is written; reading it then gives nothing.
pub trait Socket {
    /// Cookie of the socket's network namespace.
    fn netns(&self) -> u64;
    /// Whether that is the host's network namespace.
    fn is_host(&self) -> bool;
    /// Whether what it sends leaves by one device (`SO_BINDTODEVICE`, or a VRF), to the loopback address too.
    fn is_bound_to_device(&self) -> bool;
    /// What `lb_sock_tcp` holds.
    fn tcp(&self) -> Option<SockTcp>;
    /// Writes `lb_sock_tcp`, creating it. False if there is no memory.
    fn remember_tcp(&mut self, sock: &SockTcp) -> bool;
    /// Voids `lb_sock_tcp` if it exists. Not that of an MPTCP socket, whose subflows come by here too.
    fn forget_tcp(&mut self);
    /// Whether `lb_sock_udp` exists; with `create`, makes it. The other UDP methods need it.
    fn open_udp(&mut self, create: bool) -> bool;
    /// A pair of `lb_sock_udp`; `index` is below [`UDP_PEERS`].
    fn udp_peer(&self, index: u32) -> UdpPeer;
    /// The frontend of a pair, unchecked: searching copies no more than it compares.
    fn udp_frontend(&self, index: u32) -> L4Addr;
    /// The backend of a pair, unchecked.
    fn udp_target(&self, index: u32) -> L4Addr;
    /// Id and generation of a pair's backend, unchecked; nothing if the pair is nobody's.
    fn udp_backend(&self, index: u32) -> Option<(BackendId, u32)>;
    /// The service of a pair, unchecked.
    fn udp_service(&self, index: u32) -> ServiceId;
    /// Makes a pair nobody's.
    fn void_udp_peer(&mut self, index: u32);
    /// Writes a pair of `lb_sock_udp`.
    fn put_udp_peer(&mut self, index: u32, peer: &UdpPeer);
    /// Which pair was used last.
    fn newest_udp(&self) -> u32;
    /// Notes which pair was used last.
    fn put_newest_udp(&mut self, index: u32);
}

/// What happens to the destination of a connect() or sendmsg().
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Not a Service, or not for us: the address stays.
    Pass,
    /// The kernel goes on with this address.
    To(L4Addr),
    /// A Service without endpoints: the call fails with `ECONNREFUSED` (NE-1), by the hook or by an address that
    /// refuses.
    Refuse,
    /// The same for a socket that reaches no such address, see [`Socket::is_bound_to_device`]: the hook itself fails
    /// the call, with `EPERM` where it cannot choose the error.
    RefuseHere,
}

/// Decides a connect() of a `proto` socket to `to`.
///
/// A connected UDP socket gets no verdict [`Verdict::Refuse`]: connecting is legal, and the refusal belongs to the
/// first send. It is sent to [`REFUSING_UDP_PORT`]. One that is bound to a device would never hear that refusal, and
/// its sends pass no hook, so connecting it fails.
#[inline(always)]
pub fn connect<T: Tables, S: Socket>(tables: &T, socket: &mut S, proto: Proto, to: L4Addr) -> Verdict {
    connect_to(tables, socket, proto, meant(to))
}

/// [`connect`], with the destination that is meant.
#[inline(always)]
fn connect_to<T: Tables, S: Socket>(tables: &T, socket: &mut S, proto: Proto, to: L4Addr) -> Verdict {
    let tcp = proto.number == Proto::TCP.number;
    let Some(served) = resolve(tables, socket, proto, to) else {
        // The same socket may have tried a Service before, and reach that backend by its own address now.
        if tcp {
            socket.forget_tcp();
        } else {
            forget_backend(socket, to);
        }
        return Verdict::Pass;
    };
    if served.run.is_elsewhere() {
        tables.count(Reason::Elsewhere);
        if tcp {
            socket.forget_tcp();
        } else {
            // To itself: so it is found and freed when somebody serves here, for what it sends passes no hook.
            let silent = UdpPeer::new(served.service, to, to, (BackendId::NONE, 0));
            remember_udp(tables, socket, &silent);
        }
        return Verdict::Pass;
    }
    let Chosen { target, backend, generation } =
        if let Some(chosen) = choose(tables, &served, &mut Room::EMPTY.clone()) {
            tables.count(Reason::Connect);
            chosen
        } else {
            tables.count(Reason::RefusedConnect);
            if socket.is_bound_to_device() {
                return Verdict::RefuseHere;
            }
            if tcp {
                return Verdict::Refuse;
            }
            let refusing = L4Addr { addr: to.addr.loopback(), port: REFUSING_UDP_PORT };
            Chosen { target: refusing, backend: BackendId::NONE, generation: 0 }
        };
    let remembered = if tcp {
        socket.remember_tcp(&SockTcp::new(to, target))
    } else {
        remember_udp(tables, socket, &UdpPeer::new(served.service, to, target, (backend, generation)))
    };
    if !remembered {
        tables.count(Reason::NoStorage);
    }
    Verdict::To(target)
}

/// Decides a datagram that an unconnected UDP socket sends to `to`.
///
/// The first datagram to a frontend chooses a backend, and every later one of this socket goes there for as long as
/// that backend serves and the frontend belongs to the same service: protocols of several datagrams (TFTP, QUIC) depend
/// on it. A frontend that went to another service leads to that one's backends at once (CT-4).
#[inline(always)]
pub fn send<T: Tables, S: Socket>(tables: &T, socket: &mut S, to: L4Addr) -> Verdict {
    send_to(tables, socket, meant(to))
}

/// [`send`], with the destination that is meant.
#[inline(always)]
fn send_to<T: Tables, S: Socket>(tables: &T, socket: &mut S, to: L4Addr) -> Verdict {
    let Some(served) = resolve(tables, socket, Proto::UDP, to) else {
        return Verdict::Pass;
    };
    let service = served.service;
    let opened = socket.open_udp(false);
    if opened
        && let Some((index, peer)) = newest_with(socket, |socket, index| {
            socket.udp_frontend(index) == to
                && socket.udp_service(index) == service
                && is_alive(tables, socket.udp_backend(index))
        })
        // Another thread may have put another pair there since.
        && peer.frontend() == to
        && peer.service == service
        && is_alive(tables, Some((peer.backend, peer.generation)))
    {
        if socket.newest_udp() != index {
            socket.put_newest_udp(index);
        }
        tables.count(Reason::Send);
        return Verdict::To(peer.target());
    }
    if served.run.is_elsewhere() {
        tables.count(Reason::Elsewhere);
        return Verdict::Pass;
    }
    // What the frontend led to before serves no more, or not this frontend.
    let moved = opened && newest_with(socket, |socket, index| socket.udp_frontend(index) == to).is_some();
    let Some(chosen) = choose(tables, &served, &mut Room::EMPTY.clone()) else {
        tables.count(Reason::RefusedSend);
        return if socket.is_bound_to_device() { Verdict::RefuseHere } else { Verdict::Refuse };
    };
    if moved {
        tables.count(Reason::Moved);
    }
    let target = chosen.target;
    if !remember_udp(tables, socket, &UdpPeer::new(service, to, target, (chosen.backend, chosen.generation)))
    {
        tables.count(Reason::NoStorage);
    }
    tables.count(Reason::Send);
    Verdict::To(target)
}

/// The frontend to show instead of `from`: the source of a received datagram, or the peer of a UDP socket.
#[inline(always)]
pub fn received<S: Socket>(socket: &mut S, from: L4Addr) -> Option<L4Addr> {
    if !socket.open_udp(false) {
        return None;
    }
    let (_, peer) = newest_with(socket, |socket, index| socket.udp_target(index) == from)?;
    // Another thread may have put another pair there since.
    (peer.target() == from).then(|| peer.frontend())
}

/// The frontend that a TCP socket shows instead of its peer `peer`.
#[inline(always)]
pub fn peer<S: Socket>(socket: &S, peer: L4Addr) -> Option<L4Addr> {
    socket.tcp()?.frontend_of(peer)
}

/// Where the kernel would go with `to`: it takes an unspecified address for this host's loopback, in getpeername()
/// too, but puts that in its place only after the hook.
///
/// Frontends with an unspecified address are NodePorts, which [`node_port`] and nobody else may look up. So callers
/// hand the result to a function that does not see `to`; as a shadowed local it also makes LLVM copy 16-byte aligned
/// memory, which its BPF back end cannot.
#[inline(always)]
fn meant(to: L4Addr) -> L4Addr {
    // For nearly every destination this one word decides.
    let [.., last] = to.addr.to_net_words();
    let addr = if last == 0 && to.addr == to.addr.any() { to.addr.loopback() } else { to.addr };
    L4Addr { addr, port: to.port }
}

/// Who serves this socket's traffic to `to`; nothing if the socket hooks leave it alone. The order of matching is that of
/// semantics 2.22.
#[inline(always)]
fn resolve<T: Tables, S: Socket>(tables: &T, socket: &S, proto: Proto, to: L4Addr) -> Option<Served> {
    let exact = owned_frontend(tables, &FrontendKey::new(to, proto));
    let frontend = match exact {
        Some(frontend) => frontend,
        // NP-9: NodePort is the last match but for the addresses that have no other port at all.
        None => match node_port(tables, socket, proto, to) {
            Some(frontend) => frontend,
            None => owned_frontend(tables, &FrontendKey::other_ports(to.addr))?,
        },
    };
    let host = socket.is_host();
    let config = tables.config();
    let asked = match (proto.number == Proto::TCP.number, host) {
        (true, true) => SocketLb::TCP_HOST,
        (true, false) => SocketLb::TCP_PODS,
        (false, true) => SocketLb::UDP_HOST,
        (false, false) => SocketLb::UDP_PODS,
    };
    if !config.socket_lb.has(asked) {
        return None;
    }
    let netns = socket.netns();
    if config.netns_entries != 0 && tables.netns(netns).is_some_and(|netns| netns.has(Netns::EXEMPT)) {
        return None;
    }
    served(tables, frontend, Client::of_netns(netns), host)
}

/// The NodePort frontend for a destination on this node (NP-15: never for another node's address).
#[inline(always)]
fn node_port<T: Tables, S: Socket>(tables: &T, socket: &S, proto: Proto, to: L4Addr) -> Option<Frontend> {
    if !tables.config().may_be_node_port(to.port) {
        return None;
    }
    let address = tables.address(&to.addr)?;
    let serves = address.has(Address::NODE) || (address.has(Address::LOOPBACK) && socket.is_host());
    if !serves {
        return None;
    }
    owned_frontend(tables, &FrontendKey::new(L4Addr { addr: to.addr.any(), port: to.port }, proto))
}

/// What clients on this node meet behind a frontend; nothing if it is not for the hook to say.
#[inline(always)]
fn served<T: Tables>(tables: &T, frontend: Frontend, client: Client, host: bool) -> Option<Served> {
    let service = frontend.service;
    if frontend.kind == FrontendKind::OtherPorts as u8 {
        let algorithm = Algorithm::RANDOM;
        return Some(Served { service, client, run: Run::EMPTY, affinity_s: 0, algorithm, member: 0 });
    }
    let Some((flags, affinity_s)) = tables.policy(service) else {
        tables.count(Reason::Dangling);
        return None;
    };
    if !may_use(frontend.kind, flags, host) {
        tables.count(Reason::Restricted);
        return None;
    }
    let (run, member) = if uses_local_run(frontend.kind, flags) {
        (tables.local_run(service)?, Backend::IN_LOCAL)
    } else {
        (tables.cluster_run(service)?, Backend::IN_CLUSTER)
    };
    Some(Served { service, client, run, affinity_s, algorithm: Algorithm::of_socket(flags), member })
}

/// Whether a hook may serve a client of this node at a frontend of this kind: of a load-balancer address with source
/// ranges (SR-1) it knows only whether they hold the host's own address (SR-3). A pod's own address is not known at
/// connect(), so its packets are left to whoever sees them.
#[inline(always)]
pub const fn may_use(kind: u8, flags: ServiceFlags, host: bool) -> bool {
    let restricted = kind == FrontendKind::LoadBalancer as u8 && flags.has(ServiceFlags::RESTRICTED);
    !restricted || (host && flags.has(ServiceFlags::HOST_ALLOWED))
}

/// Whether clients on this node use the local run (MQ-4, EP-8): for a ClusterIP with `internalTrafficPolicy: Local`, while
/// everything else uses the cluster run. `kind` is a [`FrontendKind`] as the map holds it.
#[inline(always)]
pub const fn uses_local_run(kind: u8, flags: ServiceFlags) -> bool {
    kind == FrontendKind::ClusterIp as u8 && flags.has(ServiceFlags::INTERNAL_LOCAL)
}

/// The whole pair that satisfies `wanted`, the one used last before all others.
#[inline(always)]
fn newest_with<S: Socket>(socket: &S, wanted: impl Fn(&S, u32) -> bool) -> Option<(u32, UdpPeer)> {
    let newest = socket.newest_udp();
    for step in 0..UDP_PEERS {
        let index = newest.wrapping_add(step) & (UDP_PEERS - 1);
        if wanted(socket, index) {
            let peer = socket.udp_peer(index);
            if peer.is_whole() {
                return Some((index, peer));
            }
        }
    }
    None
}

/// Whether a remembered backend still serves. The refusing address of an empty service has none and does not.
#[inline(always)]
fn is_alive<T: Tables>(tables: &T, remembered: Option<(BackendId, u32)>) -> bool {
    let Some((backend, generation)) = remembered else { return false };
    tables.backend(backend).is_some_and(|backend| backend.serves(generation))
}

/// Keeps a pair as the one used last. False if there is no memory.
///
/// It takes the place of the same frontend and backend; else a free place; else that of a backend that serves no more, or
/// not this frontend, which is kept until then because its last replies may be on their way; else of the pair after the
/// last one, which is the oldest while pairs are only added.
#[inline(always)]
fn remember_udp<T: Tables, S: Socket>(tables: &T, socket: &mut S, peer: &UdpPeer) -> bool {
    if !socket.open_udp(true) {
        return false;
    }
    let mut index = socket.newest_udp().wrapping_add(1) & (UDP_PEERS - 1);
    let mut best = 0;
    for other in 0..UDP_PEERS {
        let same_frontend = socket.udp_frontend(other) == peer.frontend();
        let fitness = if same_frontend && socket.udp_target(other) == peer.target() {
            3
        } else {
            match socket.udp_backend(other) {
                None => 2,
                // A connected socket shows its frontend by this pair.
                Some((BackendId::NONE, _)) => 0,
                remembered => {
                    let left = same_frontend && socket.udp_service(other) != peer.service;
                    u32::from(left || !is_alive(tables, remembered))
                }
            }
        };
        if fitness > best {
            (index, best) = (other, fitness);
        }
    }
    socket.put_udp_peer(index, peer);
    socket.put_newest_udp(index);
    true
}

/// Voids what a UDP socket remembers of `backend`, which it now reaches by its own address.
#[inline(always)]
fn forget_backend<S: Socket>(socket: &mut S, backend: L4Addr) {
    if !socket.open_udp(false) {
        return;
    }
    for index in 0..UDP_PEERS {
        if socket.udp_target(index) == backend {
            socket.void_udp_peer(index);
        }
    }
}
