//! Requests to the kernel over netlink(7), and what it answers: as much as nf_tables, ip sets, connection tracking, filters and one
//! interface need.
//!
//! By hand, because no library on crates.io that this program uses anyway speaks nf_tables, and the tools `nft` and `iptables` are
//! missing in most images: ten kinds of messages made of one kind of attribute.

use std::io;

use netlink_sys::Socket;

/// Families of netlink (include/uapi/linux/netlink.h).
pub(crate) const NETLINK_ROUTE: isize = 0;
pub(crate) const NETLINK_NETFILTER: isize = 12;

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// `NLMSG_ALIGNTO`, `NLA_ALIGNTO`
const ALIGN: usize = 4;
/// Bytes of `struct nlattr`.
const ATTRIBUTE: usize = 4;
/// `NLA_TYPE_MASK`: the two highest bits are flags.
const TYPE: u16 = 0x3fff;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;

/// Attributes that are being written.
#[derive(Clone, Default, Debug)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    /// What was written so far, as the value of another attribute.
    #[cfg(test)]
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Adds bytes.
    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        // No name and no number is longer than 64 KiB.
        let length = u16::try_from(ATTRIBUTE + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(ALIGN), 0);
        self
    }

    /// Adds a text, which ends with a zero byte.
    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }
}

/// The attributes in some bytes, each with its type and value.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    core::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?) & TYPE;
        let value = bytes.get(ATTRIBUTE..length)?;
        bytes = bytes.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of a type.
pub(crate) fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// The first attribute of a type, as a text.
pub(crate) fn text(bytes: &[u8], wanted: u16) -> Option<&str> {
    let value = attribute(bytes, wanted)?;
    str::from_utf8(value.split(|byte| *byte == 0).next()?).ok()
}

/// A message to the kernel.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    kind: u16,
    body: Vec<u8>,
}

impl Request {
    /// `fixed` is what the protocol has before the attributes: `struct nfgenmsg`, `struct ifinfomsg`.
    pub(crate) fn new(kind: u16, fixed: &[u8], attributes: &Attributes) -> Self {
        Self { kind, body: [fixed, &attributes.0].concat() }
    }

    fn write(&self, flags: u16, to: &mut Vec<u8>) {
        let length = u32::try_from(HEADER + self.body.len()).unwrap_or(u32::MAX);
        to.extend(length.to_ne_bytes());
        to.extend(self.kind.to_ne_bytes());
        to.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        // Sequence number and port: one socket has one question open.
        to.extend([0; 8]);
        to.extend(&self.body);
        to.resize(to.len().next_multiple_of(ALIGN), 0);
    }
}

/// A message from the kernel.
struct Answer<'a> {
    kind: u16,
    flags: u16,
    body: &'a [u8],
}

impl Answer<'_> {
    /// What an error, an acknowledgement or the end of a list says.
    fn result(&self) -> io::Result<()> {
        let code = self.body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
        if code < 0 { Err(io::Error::from_raw_os_error(-code)) } else { Ok(()) }
    }
}

/// The messages of a datagram.
fn answers(mut bytes: &[u8]) -> impl Iterator<Item = Answer<'_>> {
    core::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
        let flags = u16::from_ne_bytes(*bytes.get(6..)?.first_chunk()?);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some(Answer { kind, flags, body })
    })
}

/// A netlink socket in the namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Channel(Socket);

impl Channel {
    /// # Errors
    /// Those of socket(2); `EPROTONOSUPPORT` if the kernel does not have this protocol.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        Ok(Self(socket))
    }

    /// Asks for one thing, or has one thing done. `each` gets what comes back.
    ///
    /// # Errors
    /// The kernel's answer.
    pub(crate) fn ask(&self, request: &Request, each: impl FnMut(&[u8])) -> io::Result<()> {
        self.exchange(request, NLM_F_ACK, each)
    }

    /// Asks for a list. `each` gets one entry after the other.
    ///
    /// # Errors
    /// The kernel's answer; `Interrupted` if the list changed meanwhile, and may lack something.
    pub(crate) fn list(&self, request: &Request, each: impl FnMut(&[u8])) -> io::Result<()> {
        self.exchange(request, NLM_F_DUMP, each)
    }

    fn exchange(&self, request: &Request, flags: u16, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut bytes = Vec::new();
        request.write(flags, &mut bytes);
        self.0.send(&bytes, 0)?;
        let mut has_changed = false;
        loop {
            let (datagram, _) = self.0.recv_from_full()?;
            for answer in answers(&datagram) {
                has_changed |= answer.flags & NLM_F_DUMP_INTR != 0;
                match answer.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        answer.result()?;
                        return if has_changed { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) };
                    }
                    _ => each(answer.body),
                }
            }
        }
    }

    /// Has all of these done, or none: `begin` and `end` frame a transaction of nfnetlink.
    ///
    /// # Errors
    /// The kernel's first complaint; nothing is done then.
    pub(crate) fn transact(&self, begin: &Request, requests: &[Request], end: &Request) -> io::Result<()> {
        let Some((last, others)) = requests.split_last() else { return Ok(()) };
        let mut bytes = Vec::new();
        begin.write(0, &mut bytes);
        for request in others {
            request.write(0, &mut bytes);
        }
        // One word is enough: the kernel says it after the whole transaction.
        last.write(NLM_F_ACK, &mut bytes);
        end.write(0, &mut bytes);
        // A transaction is one datagram, however long it is.
        rustix::net::sockopt::set_socket_send_buffer_size_force(&self.0, bytes.len().saturating_mul(2))?;
        self.0.send(&bytes, 0)?;
        // The kernel works and answers while it is being sent to.
        self.0.set_non_blocking(true)?;
        let mut is_done = false;
        loop {
            match self.0.recv_from_full() {
                Ok((datagram, _)) => {
                    for answer in answers(&datagram).filter(|answer| answer.kind == NLMSG_ERROR) {
                        answer.result()?;
                        is_done = true;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if is_done { Ok(()) } else { Err(io::Error::other("the kernel does not say what became of it")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let written = Attributes::default().text(1, "nat").bytes(3, &[1, 2, 3, 4]).text(2, "");
        assert_eq!(text(&written.0, 1), Some("nat"));
        assert_eq!(attribute(&written.0, 3), Some(&[1, 2, 3, 4][..]));
        assert_eq!((text(&written.0, 2), text(&written.0, 4)), (Some(""), None));
        assert_eq!(attributes(&written.0).count(), 3);
    }

    #[test]
    fn bytes_that_end_early_are_the_end() {
        let written = Attributes::default().text(1, "nat").text(2, "KUBE-SERVICES");
        for length in 0..written.0.len() {
            assert!(attributes(&written.0[..length]).count() < 3);
        }
        assert_eq!(
            attributes(&[0, 0, 0, 0, 0, 0, 0, 0]).count(),
            0,
            "a length of nothing does not go on for ever"
        );
        assert_eq!(answers(&[0; 64]).count(), 0);
    }
}
