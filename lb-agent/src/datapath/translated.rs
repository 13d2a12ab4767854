//! Ports of this node that connections have which others masquerade: those of a kube-proxy whose place this agent has taken live on in
//! the kernel's connection tracking.
//!
//! Answers to them come to the same addresses of this node as answers to what is masqueraded here. A flow with the same port and the same
//! backend would take them away, and the connection would be reset. So these ports are left alone for as long as they are there.

use std::{collections::BTreeSet, io, path::Path};

use crate::netlink::{Attributes, Channel, NETLINK_NETFILTER, Request, attribute};

/// How many connections are tracked. Where there is no such file nobody tracks any, and asking would load the module.
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_GET`, as a type of message.
const GET: u16 = 1 << 8 | 1;
/// Bytes of `struct nfgenmsg`: all zero, for both families.
const NFGENMSG: [u8; 4] = [0; 4];
/// Numbers of `include/uapi/linux/netfilter/nfnetlink_conntrack.h`.
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
/// `IPS_SRC_NAT` and `IPS_DST_NAT` (include/uapi/linux/netfilter/nf_conntrack_common.h): what kube-proxy does with a connection that
/// it masquerades.
const BOTH_NAT: u32 = 1 << 4 | 1 << 5;

/// The ports of connections in the network namespace of this thread whose destination and source others have translated: 65,536 at most,
/// however many connections there are.
///
/// # Errors
/// The kernel's answer.
pub fn ports() -> io::Result<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    if !Path::new(COUNT).exists() {
        return Ok(ports);
    }
    let ask = Request::new(GET, &NFGENMSG, &Attributes::default());
    match Channel::open(NETLINK_NETFILTER)?.list(&ask, |entry| ports.extend(port(entry))) {
        // Connections come and go meanwhile: none that was there all the time is missing.
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(ports),
    }
}

/// The port that an entry of connection tracking is answered to, if others have translated both its ends.
fn port(entry: &[u8]) -> Option<u16> {
    let attributes = entry.get(NFGENMSG.len()..)?;
    let status = u32::from_be_bytes(*attribute(attributes, CTA_STATUS)?.first_chunk()?);
    if status & BOTH_NAT != BOTH_NAT {
        return None;
    }
    let proto = attribute(attribute(attributes, CTA_TUPLE_REPLY)?, CTA_TUPLE_PROTO)?;
    Some(u16::from_be_bytes(*attribute(proto, CTA_PROTO_DST_PORT)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(status: u32, port: u16) -> Vec<u8> {
        let proto = Attributes::default()
            .bytes(1, &[6])
            .bytes(2, &[0; 2])
            .bytes(CTA_PROTO_DST_PORT, &port.to_be_bytes());
        let reply = Attributes::default().bytes(CTA_TUPLE_PROTO, proto.as_bytes());
        let other =
            Attributes::default().bytes(CTA_TUPLE_PROTO, Attributes::default().bytes(3, &[9; 2]).as_bytes());
        let all = Attributes::default()
            .bytes(1, other.as_bytes())
            .bytes(CTA_TUPLE_REPLY, reply.as_bytes())
            .bytes(CTA_STATUS, &status.to_be_bytes());
        [&NFGENMSG, all.as_bytes()].concat()
    }

    /// BS-11
    #[test]
    fn a_port_is_taken_where_both_ends_are_translated() {
        let seen_and_sure = 1 << 1 | 1 << 3;
        assert_eq!(port(&entry(seen_and_sure | BOTH_NAT, 2000)), Some(2000));
        for one in [0, 1 << 4, 1 << 5] {
            assert_eq!(
                port(&entry(seen_and_sure | one, 2000)),
                None,
                "what pods send to others, or who sees the client"
            );
        }
        let whole = entry(BOTH_NAT, 2000);
        for length in 0..whole.len() {
            let _ = port(&whole[..length]);
        }
    }
}
