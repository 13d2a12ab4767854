//! Connected UDP sockets of one network namespace, over sock_diag(7): listing and freeing them.

use std::io;

use lb_common::abi::{Addr, L4Addr};
use netlink_packet_core::{
    Emitable as _, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_UDP, SOCK_DESTROY, SOCK_DIAG_BY_FAMILY, SockDiagMessage,
    inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags},
};
use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};

use crate::model::Family;

/// A connected UDP socket.
#[derive(Clone, Debug)]
pub(super) struct Connected {
    family: u8,
    id: SocketId,
    /// Whom it is connected to, as the kernel knows it.
    pub(super) peer: L4Addr,
    /// What a link in `/proc/PID/fd` calls it.
    pub(super) inode: u32,
}

/// A sock_diag request: the library has one kind of message for it, and two kinds exist.
#[derive(Clone, Debug)]
struct Request {
    kind: u16,
    inet: InetRequest,
}

impl NetlinkSerializable for Request {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.inet.buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        self.inet.emit(buffer);
    }
}

/// sock_diag of the namespace that the calling thread is in.
pub(super) struct Diag(Socket);

impl Diag {
    /// # Errors
    /// Those of socket(2).
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        Ok(Self(socket))
    }

    /// All connected UDP sockets of a family. IPv4-mapped ones count as IPv6.
    ///
    /// # Errors
    /// The kernel's answer; `ENOENT` if it cannot list UDP sockets (CONFIG_INET_UDP_DIAG).
    pub(super) fn connected(&self, family: Family) -> io::Result<Vec<Connected>> {
        let (family, id) = match family {
            Family::V4 => (AF_INET, SocketId::new_v4()),
            Family::V6 => (AF_INET6, SocketId::new_v6()),
        };
        self.send(SOCK_DIAG_BY_FAMILY, request(family, id), NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut found = Vec::new();
        self.answers(|message| {
            if let SockDiagMessage::InetResponse(socket) = message {
                let InetResponseHeader { family, socket_id: id, inode, .. } = socket.header;
                let peer = L4Addr { addr: Addr::from(id.destination_address), port: id.destination_port };
                found.push(Connected { family, id, peer, inode });
            }
        })?;
        Ok(found)
    }

    /// Frees a socket: who waits in it gets `ECONNABORTED`, and it is not connected any more. False if it has gone or has
    /// another peer by now.
    ///
    /// # Errors
    /// The kernel's answer; `EOPNOTSUPP` without CONFIG_INET_DIAG_DESTROY.
    pub(super) fn free(&self, socket: &Connected) -> io::Result<bool> {
        self.send(SOCK_DESTROY, request(socket.family, socket.id.clone()), NLM_F_REQUEST | NLM_F_ACK)?;
        match self.answers(|_| {}) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn send(&self, kind: u16, inet: InetRequest, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let payload = NetlinkPayload::InnerMessage(Request { kind, inet });
        let mut message = NetlinkMessage::new(header, payload);
        message.finalize();
        let mut buffer = vec![0; message.buffer_len()];
        message.serialize(&mut buffer);
        self.0.send(&buffer, 0).map(drop)
    }

    /// Reads until the kernel says that this was all, or an error.
    fn answers(&self, mut each: impl FnMut(SockDiagMessage)) -> io::Result<()> {
        loop {
            let (datagram, _) = self.0.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let message =
                    NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
                // Messages begin at multiples of four bytes (netlink(7)).
                let length = (message.header.length as usize).next_multiple_of(4);
                rest = rest.get(length.max(4)..).unwrap_or_default();
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(()),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(answer) => each(answer),
                    _ => {}
                }
            }
        }
    }
}

fn request(family: u8, socket_id: SocketId) -> InetRequest {
    InetRequest {
        family,
        protocol: IPPROTO_UDP,
        extensions: ExtensionFlags::empty(),
        // What a connected UDP socket is called too.
        states: StateFlags::ESTABLISHED,
        socket_id,
    }
}
