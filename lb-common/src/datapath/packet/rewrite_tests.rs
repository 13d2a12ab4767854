//! Rewritten packets are what another library writes for the new ends.

use etherparse::{IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header};
use proptest::prelude::*;
use std::vec::Vec;

use super::{
    parse::{Fragment, TcpFlags, v4, v6},
    parse_tests::{Inner, frame},
    rewrite::{Difference, rewrite},
};
use crate::abi::{Addr, Addr4, FlowAddr, FlowKey, L4Addr};

const L3: usize = 14;

/// Both ends of a packet.
#[derive(Clone, Copy, Debug)]
struct Ends {
    src: [u8; 16],
    dst: [u8; 16],
    ports: (u16, u16),
}

fn ends() -> impl Strategy<Value = Ends> {
    (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<(u16, u16)>()).prop_map(|(src, dst, ports)| Ends {
        src,
        dst,
        ports,
    })
}

fn inner() -> impl Strategy<Value = Inner> {
    prop_oneof![Just(Inner::Udp), Just(Inner::Tcp(TcpFlags::SYN)), Just(Inner::Tcp(TcpFlags::ACK))]
}

fn four(octets: [u8; 16]) -> [u8; 4] {
    let [a, b, c, d, ..] = octets;
    [a, b, c, d]
}

fn ip(v6: bool, ends: Ends, ttl: u8) -> IpHeaders {
    if v6 {
        let header =
            Ipv6Header { hop_limit: ttl, source: ends.src, destination: ends.dst, ..Ipv6Header::default() };
        IpHeaders::Ipv6(header, Ipv6Extensions::default())
    } else {
        let header = Ipv4Header::new(0, ttl, IpNumber::UDP, four(ends.src), four(ends.dst)).unwrap();
        IpHeaders::Ipv4(header, Ipv4Extensions::default())
    }
}

fn key<A: FlowAddr>(src: Addr, dst: Addr, ends: Ends, like: &FlowKey<A>) -> FlowKey<A> {
    let at = |addr, port| L4Addr { addr, port };
    FlowKey::new(at(src, ends.ports.0), at(dst, ends.ports.1), like.proto)
}

proptest! {
    #[test]
    fn every_byte_is_that_of_a_packet_with_the_new_ends(
        v6_family: bool,
        inner in inner(),
        before in ends(),
        after in ends(),
        ttl in 2_u8..,
        forwards: bool,
        payload in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut packet = frame(ip(v6_family, before, ttl), inner, before.ports, &payload);
        let new_ttl = if forwards { ttl - 1 } else { ttl };
        let wanted = frame(ip(v6_family, after, new_ttl), inner, after.ports, &payload);
        if v6_family {
            let headers = v6(&packet, L3).unwrap();
            let key: FlowKey<Addr> =
                key(Addr { octets: after.src }, Addr { octets: after.dst }, after, &headers.key);
            prop_assert!(rewrite(&mut packet, L3, &headers, &key, forwards));
        } else {
            let headers = v4(&packet, L3).unwrap();
            let [src, dst] = [after.src, after.dst].map(|octets| Addr::from_v4(four(octets)));
            let key: FlowKey<Addr4> = key(src, dst, after, &headers.key);
            prop_assert!(rewrite(&mut packet, L3, &headers, &key, forwards));
        }
        prop_assert_eq!(&packet.bytes, &wanted.bytes);
    }

    /// What the helpers of tc are given comes to the same.
    #[test]
    fn a_difference_may_be_folded_before_it_is_applied(words: Vec<(u32, u32)>, checksum: u16) {
        let difference = words.iter().fold(Difference::default(), |sum, (old, new)| sum.word(*old, *new));
        let mut folded = difference.folded() + u64::from(!checksum);
        while folded >> 16 != 0 {
            folded = (folded & 0xffff) + (folded >> 16);
        }
        prop_assert_eq!(difference.apply(checksum), !u16::try_from(folded).unwrap());
    }
}

/// RFC 768: an IPv4 datagram may have no checksum, and gets none.
#[test]
fn a_datagram_without_a_checksum_stays_without() {
    let ends = Ends { src: [1; 16], dst: [2; 16], ports: (4000, 53) };
    let after = Ends { src: [3; 16], dst: [4; 16], ports: (4001, 5353) };
    let mut packet = frame(ip(false, ends, 64), Inner::Udp, ends.ports, b"hello");
    packet.bytes[40..42].copy_from_slice(&[0, 0]);
    let headers = v4(&packet, L3).unwrap();
    let [src, dst] = [after.src, after.dst].map(|octets| Addr::from_v4(four(octets)));
    assert!(rewrite(&mut packet, L3, &headers, &key::<Addr4>(src, dst, after, &headers.key), true));
    assert_eq!(packet.bytes[40..42], [0, 0]);
    let wanted = frame(ip(false, after, 63), Inner::Udp, after.ports, b"hello");
    assert_eq!(packet.bytes[..40], wanted.bytes[..40]);
}

/// 2.25-fragments.
#[test]
fn of_a_later_piece_only_the_ip_header_is_written() {
    let ends = Ends { src: [1; 16], dst: [2; 16], ports: (4000, 53) };
    let after = Ends { src: [3; 16], dst: [4; 16], ports: (4001, 5353) };
    let mut packet = frame(ip(false, ends, 64), Inner::Udp, ends.ports, b"hello");
    let mut headers = v4(&packet, L3).unwrap();
    headers.fragment = Fragment::later(7);
    let behind = packet.bytes[34..].to_vec();
    let [src, dst] = [after.src, after.dst].map(|octets| Addr::from_v4(four(octets)));
    assert!(rewrite(&mut packet, L3, &headers, &key::<Addr4>(src, dst, after, &headers.key), true));
    assert_eq!(packet.bytes[34..], behind);
    let wanted = frame(ip(false, after, 63), Inner::Udp, after.ports, b"hello");
    assert_eq!(packet.bytes[..34], wanted.bytes[..34]);
}
