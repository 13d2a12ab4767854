//! Ethernet frames as short as they come, with right checksums.

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::Proto;

/// Link-layer addresses of both ends of a cable: of whom frames go to, and of whom they come from.
#[derive(Clone, Copy, Debug)]
pub struct Cable {
    /// Who receives.
    pub to: [u8; 6],
    /// Who sends.
    pub from: [u8; 6],
}

/// What a frame says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Says {
    /// A datagram.
    Udp,
    /// The first segment of a connection.
    Syn,
    /// Any later one.
    Ack,
}

impl Says {
    const fn proto(self) -> Proto {
        match self {
            Self::Udp => Proto::UDP,
            Self::Syn | Self::Ack => Proto::TCP,
        }
    }
}

/// Bytes of a frame: the shortest that Ethernet has, and what IPv6 and TCP need. A multiple of 8.
pub const fn frame_len(v6: bool) -> usize {
    if v6 { 80 } else { 64 }
}

/// Adds bytes, as big-endian halves, to an Internet checksum (RFC 1071).
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum()
}

fn checksum(mut sum: u32) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[expect(clippy::cast_possible_truncation, reason = "folded")]
    let short = !(sum as u16);
    short.to_be_bytes()
}

/// A frame from one end to another of the same family.
pub fn frame(cable: Cable, from: SocketAddr, to: SocketAddr, says: Says) -> Vec<u8> {
    let v6 = from.is_ipv6();
    let mut bytes = [cable.to, cable.from].concat();
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let ends = [octets(from.ip()), octets(to.ip())].concat();
    let proto = says.proto().number;
    let l4 = if v6 { 54 } else { 34 };
    let len = u16::try_from(frame_len(v6) - l4).unwrap_or(0);
    if v6 {
        bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        bytes.extend(len.to_be_bytes());
        bytes.extend([proto, 64]);
    } else {
        bytes.extend([0x08, 0x00, 0x45, 0]);
        bytes.extend((len + 20).to_be_bytes());
        bytes.extend([0, 0, 0x40, 0, 64, proto, 0, 0]);
    }
    bytes.extend(&ends);
    if !v6 {
        let header = checksum(sum(&bytes[14..]));
        bytes[24..26].copy_from_slice(&header);
    }
    bytes.extend(from.port().to_be_bytes());
    bytes.extend(to.port().to_be_bytes());
    let field = match says {
        Says::Udp => {
            bytes.extend(len.to_be_bytes());
            bytes.extend([0, 0]);
            6
        }
        Says::Syn | Says::Ack => {
            let flags = if says == Says::Syn { 0x02 } else { 0x10 };
            bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
            16
        }
    };
    bytes.resize(frame_len(v6), 0);
    let covered = checksum(sum(&ends) + u32::from(proto) + u32::from(len) + sum(&bytes[l4..]));
    bytes[l4 + field..l4 + field + 2].copy_from_slice(&covered);
    bytes
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    const CABLE: Cable = Cable { to: [2, 0, 0, 0, 0, 1], from: [2, 0, 0, 0, 0, 2] };

    #[test]
    fn frames_are_what_somebody_else_reads() {
        for (from, to) in [("198.18.0.1:7", "10.9.0.1:8080"), ("[2001:db8::1]:7", "[fd00:9::1]:8080")] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            for says in [Says::Udp, Says::Syn, Says::Ack] {
                let bytes = frame(CABLE, from, to, says);
                assert_eq!(bytes.len(), frame_len(from.is_ipv6()));
                let read = SlicedPacket::from_ethernet(&bytes).unwrap();
                let (sum, wanted, ports) = match (read.net.unwrap(), read.transport.unwrap()) {
                    (NetSlice::Ipv4(ip), TransportSlice::Udp(udp)) => {
                        assert_eq!(
                            ip.header().header_checksum(),
                            ip.header().to_header().calc_header_checksum()
                        );
                        let header = udp.to_header();
                        let wanted = header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload());
                        (udp.checksum(), wanted.unwrap(), [udp.source_port(), udp.destination_port()])
                    }
                    (NetSlice::Ipv4(ip), TransportSlice::Tcp(tcp)) => {
                        let wanted = tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination());
                        (tcp.checksum(), wanted.unwrap(), [tcp.source_port(), tcp.destination_port()])
                    }
                    (NetSlice::Ipv6(ip), TransportSlice::Udp(udp)) => {
                        let header = udp.to_header();
                        let wanted = header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload());
                        (udp.checksum(), wanted.unwrap(), [udp.source_port(), udp.destination_port()])
                    }
                    (NetSlice::Ipv6(ip), TransportSlice::Tcp(tcp)) => {
                        let wanted = tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination());
                        (tcp.checksum(), wanted.unwrap(), [tcp.source_port(), tcp.destination_port()])
                    }
                    other => panic!("{other:?}"),
                };
                assert_eq!((sum, ports), (wanted, [from.port(), to.port()]), "{from} {says:?}");
            }
        }
    }
}
