//! What a socket remembers: written by programs into socket storage, freed with the socket, never evicted.

use super::{Addr, BackendId, L4Addr, ServiceId, mix};

/// Value of `lb_sock_tcp`: the frontend that getpeername() shows.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SockTcp {
    /// Network order.
    pub frontend_addr: Addr,
    /// Network order.
    pub backend_addr: Addr,
    /// Host order; 0 means that nothing is remembered.
    pub frontend_port: u16,
    /// Host order.
    pub backend_port: u16,
    /// Zero.
    pub pad: u32,
}

impl SockTcp {
    /// Nothing remembered.
    pub const NONE: Self = Self {
        frontend_addr: Addr::ANY_V6,
        backend_addr: Addr::ANY_V6,
        frontend_port: 0,
        backend_port: 0,
        pad: 0,
    };

    /// A translation.
    pub const fn new(frontend: L4Addr, backend: L4Addr) -> Self {
        Self {
            frontend_addr: frontend.addr,
            backend_addr: backend.addr,
            frontend_port: frontend.port,
            backend_port: backend.port,
            pad: 0,
        }
    }

    /// The frontend behind which the socket's peer `peer` was reached.
    pub fn frontend_of(&self, peer: L4Addr) -> Option<L4Addr> {
        let known =
            self.frontend_port != 0 && self.backend_addr == peer.addr && self.backend_port == peer.port;
        known.then_some(L4Addr { addr: self.frontend_addr, port: self.frontend_port })
    }
}

/// One (frontend, backend) pair of a UDP socket.
///
/// Threads that share a socket write without a lock. `check` is a fold of everything else, so a pair that was
/// caught half written is nobody's, instead of a wrong address.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UdpPeer {
    /// Network order.
    pub frontend_addr: Addr,
    /// Network order.
    pub backend_addr: Addr,
    /// Host order.
    pub frontend_port: u16,
    /// Host order.
    pub backend_port: u16,
    /// Who it is in `lb_backends`; [`BackendId::NONE`] for the refusing address of an empty service.
    pub backend: BackendId,
    /// Generation of that id when it was chosen.
    pub generation: u32,
    /// Whose frontend it was then. A frontend can change its owner while the backend lives on.
    pub service: ServiceId,
    /// Fold of all other fields, never 0.
    pub check: u32,
    /// Zero, and not part of the fold.
    pub pad: u32,
}

impl UdpPeer {
    /// Nothing remembered, as fresh storage is.
    pub const NONE: Self = Self {
        frontend_addr: Addr::ANY_V6,
        backend_addr: Addr::ANY_V6,
        frontend_port: 0,
        backend_port: 0,
        backend: BackendId::NONE,
        generation: 0,
        service: ServiceId { index: 0 },
        check: 0,
        pad: 0,
    };

    /// A translation for `service`, to `target`, which is `backend` in its `generation`.
    pub const fn new(
        service: ServiceId,
        frontend: L4Addr,
        target: L4Addr,
        (backend, generation): (BackendId, u32),
    ) -> Self {
        let peer = Self {
            frontend_addr: frontend.addr,
            backend_addr: target.addr,
            frontend_port: frontend.port,
            backend_port: target.port,
            backend,
            generation,
            service,
            check: 0,
            pad: 0,
        };
        Self { check: peer.fold(), ..peer }
    }

    /// The fold that `check` must equal.
    const fn fold(&self) -> u32 {
        let mut x = mix(0x6c62, self.frontend_addr.to_net_words());
        x = mix(x, self.backend_addr.to_net_words());
        let ports = (self.frontend_port as u32) << 16 | self.backend_port as u32;
        mix(x, [ports, self.backend.index, self.generation, self.service.index]) | 1
    }

    /// Whether the pair is there and was not caught half written.
    pub const fn is_whole(&self) -> bool {
        self.check == self.fold()
    }

    /// The frontend.
    pub const fn frontend(&self) -> L4Addr {
        L4Addr { addr: self.frontend_addr, port: self.frontend_port }
    }

    /// A pair as memory holds it: fields in order, multi-byte ones as this CPU writes them.
    fn from_memory(bytes: &[u8; size_of::<Self>()]) -> Self {
        let (frontend_addr, rest) = split(bytes);
        let (backend_addr, rest) = split(rest);
        let (frontend_port, rest) = split(rest);
        let (backend_port, rest) = split(rest);
        let (backend, rest) = split(rest);
        let (generation, rest) = split(rest);
        let (service, rest) = split(rest);
        let (check, _) = split(rest);
        Self {
            frontend_addr: Addr { octets: frontend_addr },
            backend_addr: Addr { octets: backend_addr },
            frontend_port: u16::from_ne_bytes(frontend_port),
            backend_port: u16::from_ne_bytes(backend_port),
            backend: BackendId { index: u32::from_ne_bytes(backend) },
            generation: u32::from_ne_bytes(generation),
            service: ServiceId { index: u32::from_ne_bytes(service) },
            check: u32::from_ne_bytes(check),
            pad: 0,
        }
    }

    /// The backend's address and port.
    pub const fn target(&self) -> L4Addr {
        L4Addr { addr: self.backend_addr, port: self.backend_port }
    }
}

/// The first bytes of a slice that is long enough, and the others. Zeros where it is not: no caller cuts a value short.
fn split<const N: usize>(bytes: &[u8]) -> ([u8; N], &[u8]) {
    bytes.split_first_chunk().map_or(([0; N], &[]), |(first, rest)| (*first, rest))
}

/// Pairs that one UDP socket remembers: a power of two, so that an index is masked instead of checked.
pub const UDP_PEERS: u32 = 4;

const _: () = assert!(UDP_PEERS.is_power_of_two(), "indices are masked");

/// Value of `lb_sock_udp`.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SockUdp {
    /// In no order.
    pub peers: [UdpPeer; UDP_PEERS as usize],
    /// Index of the pair that was used last: two frontends may share a backend, and the last one is the one whose
    /// reply is awaited.
    pub newest: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = assert!(
    size_of::<SockTcp>() == 40 && size_of::<UdpPeer>() == 56 && size_of::<SockUdp>() == 232,
    "no padding"
);

impl SockUdp {
    /// Nothing remembered.
    pub const NONE: Self = Self { peers: [UdpPeer::NONE; UDP_PEERS as usize], newest: 0, pad: 0 };

    /// A value as the kernel hands it out; nothing if it has another size.
    pub fn from_memory(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; size_of::<Self>()] = bytes.try_into().ok()?;
        let (peers, rest) = bytes.as_chunks::<{ size_of::<UdpPeer>() }>();
        let (newest, _) = split(rest);
        let peers = core::array::from_fn(|at| peers.get(at).map_or(UdpPeer::NONE, UdpPeer::from_memory));
        Some(Self { peers, newest: u32::from_ne_bytes(newest), pad: 0 })
    }

    /// The whole pair behind the peer `target` of a connected socket, the one used last before all others.
    pub fn behind(&self, target: L4Addr) -> Option<&UdpPeer> {
        let from_newest = (0..UDP_PEERS).map(|step| self.newest.wrapping_add(step) & (UDP_PEERS - 1));
        from_newest
            .filter_map(|index| self.peers.get(index as usize))
            .find(|peer| peer.is_whole() && peer.target() == target)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(d: u8, port: u16) -> L4Addr {
        L4Addr { addr: Addr::from_v4([10, 0, 0, d]), port }
    }

    proptest! {
        #[test]
        fn a_pair_caught_half_written_is_nobodys(
            (one, two) in ((0_u8..4, 0_u16..4, 0_u32..4), (0_u8..4, 0_u16..4, 0_u32..4)), cut in 0..size_of::<UdpPeer>()
        ) {
            let peer = |(d, port, id): (u8, u16, u32)| {
                let service = ServiceId { index: id };
                UdpPeer::new(service, at(d, port), at(d ^ 1, port), (BackendId { index: id }, id))
            };
            let (one, two) = (peer(one), peer(two));
            let torn = host_bytes(&one)[..cut].iter().chain(&host_bytes(&two)[cut..]).copied().collect::<std::vec::Vec<_>>();
            let torn = UdpPeer::from_memory(torn.as_slice().try_into().unwrap());
            prop_assert!(!torn.is_whole() || torn == one || torn == two);
        }
    }

    fn host_bytes(peer: &UdpPeer) -> std::vec::Vec<u8> {
        let mut bytes = std::vec::Vec::new();
        bytes.extend(peer.frontend_addr.octets);
        bytes.extend(peer.backend_addr.octets);
        bytes.extend(peer.frontend_port.to_ne_bytes());
        bytes.extend(peer.backend_port.to_ne_bytes());
        bytes.extend(peer.backend.index.to_ne_bytes());
        bytes.extend(peer.generation.to_ne_bytes());
        bytes.extend(peer.service.index.to_ne_bytes());
        bytes.extend(peer.check.to_ne_bytes());
        bytes.extend(peer.pad.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_value_is_read_back_from_memory_and_its_newest_pair_comes_first() {
        let pair = |frontend, id| {
            UdpPeer::new(
                ServiceId { index: id + 10 },
                at(frontend, 53),
                at(9, 5353),
                (BackendId { index: id }, 7),
            )
        };
        let sock =
            SockUdp { peers: [pair(1, 1), pair(2, 2), UdpPeer::NONE, UdpPeer::NONE], newest: 1, pad: 0 };
        let mut bytes: std::vec::Vec<u8> = sock.peers.iter().flat_map(host_bytes).collect();
        bytes.extend(1_u32.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        let read = SockUdp::from_memory(&bytes).unwrap();
        assert_eq!(read, sock);
        assert_eq!(read.behind(at(9, 5353)), Some(&pair(2, 2)));
        assert_eq!(read.behind(at(8, 5353)), None);
        assert_eq!(SockUdp::from_memory(&bytes[..bytes.len() - 1]), None);
    }

    #[test]
    fn a_pair_is_folded_with_everything_that_it_says() {
        let (frontend, target, backend) = (at(1, 53), at(9, 5353), BackendId { index: 3 });
        let new = |service| UdpPeer::new(ServiceId { index: service }, frontend, target, (backend, 7));
        let peer = new(1);
        assert!(peer.is_whole());
        for other in [
            UdpPeer { frontend_addr: target.addr, ..peer },
            UdpPeer { backend_addr: frontend.addr, ..peer },
            UdpPeer { frontend_port: 54, ..peer },
            UdpPeer { backend_port: 54, ..peer },
            UdpPeer { backend: BackendId { index: 4 }, ..peer },
            UdpPeer { generation: 8, ..peer },
            UdpPeer { service: new(2).service, ..peer },
        ] {
            assert!(!other.is_whole(), "{other:?}");
        }
    }

    #[test]
    fn fresh_storage_remembers_nothing() {
        assert!(!UdpPeer::NONE.is_whole());
        assert_eq!(SockTcp::NONE.frontend_of(at(1, 80)), None);
    }

    #[test]
    fn a_tcp_socket_shows_the_frontend_only_for_the_backend_it_was_sent_to() {
        let sock = SockTcp::new(at(100, 80), at(5, 8080));
        assert_eq!(sock.frontend_of(at(5, 8080)), Some(at(100, 80)));
        assert_eq!(sock.frontend_of(at(5, 8081)), None);
        assert_eq!(sock.frontend_of(at(6, 8080)), None);
    }
}
