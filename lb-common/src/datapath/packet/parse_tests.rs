//! What is read of packets: compared with what another library has written.

use core::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::{string::ToString as _, vec, vec::Vec};

use etherparse::{
    IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv4Options, Ipv6Extensions, Ipv6FragmentHeader,
    Ipv6Header, Ipv6RawExtHeader, PacketBuilder, TcpOptionElement,
};
use proptest::prelude::*;
use rstest::rstest;

use super::parse::{Fragment, Headers, TcpFlags, v4, v6};
use crate::{
    abi::{Addr, Addr4, FlowAddr, Proto},
    host::Frame,
};

const L3: usize = 14;

pub(super) fn ipv4(ttl: u8, proto: IpNumber) -> IpHeaders {
    let header = Ipv4Header::new(0, ttl, proto, [192, 0, 2, 1], [198, 51, 100, 7]).unwrap();
    IpHeaders::Ipv4(header, Ipv4Extensions::default())
}

pub(super) fn ipv6(hop_limit: u8, extensions: Ipv6Extensions) -> IpHeaders {
    let [source, destination] =
        ["2001:db8::1", "2001:db8::7"].map(|text| text.parse::<Ipv6Addr>().unwrap().octets());
    let header = Ipv6Header { hop_limit, source, destination, ..Ipv6Header::default() };
    IpHeaders::Ipv6(header, extensions)
}

/// What a packet carries.
#[derive(Clone, Copy, Debug)]
pub(super) enum Inner {
    Tcp(TcpFlags),
    Udp,
}

pub(super) fn frame(ip: IpHeaders, inner: Inner, (sport, dport): (u16, u16), payload: &[u8]) -> Frame {
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ip(ip);
    match inner {
        Inner::Udp => builder.udp(sport, dport).write(&mut bytes, payload),
        Inner::Tcp(flags) => {
            let tcp = builder.tcp(sport, dport, 1000, 2000);
            let tcp = if flags.has(TcpFlags::FIN) { tcp.fin() } else { tcp };
            let tcp = if flags.has(TcpFlags::SYN) { tcp.syn() } else { tcp };
            let tcp = if flags.has(TcpFlags::RST) { tcp.rst() } else { tcp };
            let tcp = if flags.has(TcpFlags::ACK) { tcp.ack(7) } else { tcp };
            tcp.options(&[TcpOptionElement::MaximumSegmentSize(1460)]).unwrap().write(&mut bytes, payload)
        }
    }
    .unwrap();
    Frame { bytes }
}

fn ends<A: FlowAddr>(headers: &Headers<A>) -> [SocketAddr; 2] {
    [headers.key.from(), headers.key.to()].map(SocketAddr::from)
}

fn at(addr: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(addr.into(), port)
}

#[rstest]
#[case::syn(Inner::Tcp(TcpFlags::SYN), true)]
#[case::syn_ack(Inner::Tcp(TcpFlags { bits: 2 | 16 }), false)]
#[case::ack(Inner::Tcp(TcpFlags::ACK), false)]
#[case::fin(Inner::Tcp(TcpFlags { bits: 1 | 16 }), false)]
#[case::rst(Inner::Tcp(TcpFlags::RST), false)]
#[case::syn_and_fin(Inner::Tcp(TcpFlags { bits: 1 | 2 }), false)]
#[case::udp(Inner::Udp, true)]
fn both_families_are_read_alike(#[case] inner: Inner, #[case] opens: bool) {
    let flags = if let Inner::Tcp(flags) = inner { flags } else { TcpFlags::default() };
    let proto = if let Inner::Tcp(_) = inner { Proto::TCP } else { Proto::UDP };
    let four = v4(&frame(ipv4(61, IpNumber::TCP), inner, (4000, 80), b"hello"), L3).unwrap();
    let six = v6(&frame(ipv6(61, Ipv6Extensions::default()), inner, (4000, 80), b"hello"), L3).unwrap();
    assert_eq!(ends(&four), [at([192, 0, 2, 1], 4000), at([198, 51, 100, 7], 80)]);
    assert_eq!(ends(&six).map(|end| end.to_string()), ["[2001:db8::1]:4000", "[2001:db8::7]:80"]);
    assert_eq!((four.l4, six.l4), (34, 54));
    assert_eq!((four.key.proto, four.tcp, four.ttl, four.fragment), (proto, flags, 61, Fragment::WHOLE));
    assert_eq!((six.key.proto, six.tcp, six.ttl, six.fragment), (proto, flags, 61, Fragment::WHOLE));
    assert_eq!((four.opens(), six.opens()), (opens, opens));
    assert_eq!(four.asks(), opens && proto == Proto::TCP);
}

#[test]
fn ipv4_options_come_before_the_ports() {
    for words in 0..=10 {
        let mut header = Ipv4Header::new(0, 64, IpNumber::UDP, [192, 0, 2, 1], [198, 51, 100, 7]).unwrap();
        header.options = Ipv4Options::try_from(&vec![1; words * 4][..]).unwrap();
        let ip = IpHeaders::Ipv4(header, Ipv4Extensions::default());
        let headers = v4(&frame(ip, Inner::Udp, (4000, 53), b"x"), L3).unwrap();
        assert_eq!(ends(&headers)[1], at([198, 51, 100, 7], 53), "{words}");
        assert_eq!(headers.l4, 34 + words * 4);
    }
}

#[test]
#[expect(clippy::large_stack_arrays, reason = "extensions are large in the other library")]
fn ipv6_extension_headers_that_change_nothing_are_passed_over() {
    let raw = |words: usize| Ipv6RawExtHeader::new_raw(IpNumber::UDP, &vec![0; 6 + words * 8]).unwrap();
    let fragment = |offset: u16, more| {
        Ipv6FragmentHeader::new(IpNumber::UDP, offset.try_into().unwrap(), more, 0x0102_0304)
    };
    for (extensions, l4, wanted) in [
        (
            Ipv6Extensions { hop_by_hop_options: Some(raw(0)), ..Ipv6Extensions::default() },
            62,
            Fragment::WHOLE,
        ),
        (
            Ipv6Extensions {
                hop_by_hop_options: Some(raw(3)),
                destination_options: Some(raw(1)),
                ..Ipv6Extensions::default()
            },
            54 + 32 + 16,
            Fragment::WHOLE,
        ),
        (
            Ipv6Extensions { fragment: Some(fragment(0, false)), ..Ipv6Extensions::default() },
            62,
            // RFC 6946: all of it.
            Fragment::WHOLE,
        ),
        (
            Ipv6Extensions { fragment: Some(fragment(0, true)), ..Ipv6Extensions::default() },
            62,
            Fragment::first(0x0102_0304),
        ),
    ] {
        let headers = v6(&frame(ipv6(64, extensions), Inner::Udp, (4000, 53), b"x"), L3).unwrap();
        assert_eq!(headers.key.proto, Proto::UDP);
        assert_eq!((headers.l4, headers.fragment, headers.key.dport), (l4, wanted, 53));
    }
}

#[test]
fn a_routing_header_hides_what_is_behind_it() {
    let raw = Ipv6RawExtHeader::new_raw(IpNumber::UDP, &[0; 6]).unwrap();
    let routing = etherparse::Ipv6RoutingExtensions { routing: raw, final_destination_options: None };
    let extensions = Ipv6Extensions { routing: Some(routing), ..Ipv6Extensions::default() };
    let headers = v6(&frame(ipv6(64, extensions), Inner::Udp, (4000, 53), b"x"), L3).unwrap();
    assert_eq!(headers.key.proto.number, 43);
    assert!(!headers.opens());
}

#[test]
fn pieces_of_ipv4_datagrams_have_a_number_and_only_the_first_has_ports() {
    let whole = frame(ipv4(64, IpNumber::UDP), Inner::Udp, (4000, 53), b"hello");
    for (field, wanted, port) in [
        (0x4000_u16, Fragment::WHOLE, 53),
        (0x2000, Fragment::first(0x1234), 53),
        (0x2003, Fragment::later(0x1234), 0),
        (0x0003, Fragment::later(0x1234), 0),
    ] {
        let mut piece = Frame { bytes: whole.bytes.clone() };
        piece.bytes[L3 + 4..L3 + 6].copy_from_slice(&[0x12, 0x34]);
        piece.bytes[L3 + 6..L3 + 8].copy_from_slice(&field.to_be_bytes());
        let headers = v4(&piece, L3).unwrap();
        assert_eq!((headers.fragment, headers.key.dport), (wanted, port), "{field:#x}");
        assert_eq!(headers.opens(), port != 0);
    }
}

#[rstest]
#[case(1, TcpFlags::SYN)]
#[case(2, TcpFlags::default())]
#[case(3, TcpFlags::default())]
#[case(6, TcpFlags::RST)]
#[case(7, TcpFlags::FIN)]
#[case(8, TcpFlags::FIN)]
#[case(14, TcpFlags::FIN)]
fn the_first_chunk_says_what_an_sctp_packet_is(#[case] chunk: u8, #[case] wanted: TcpFlags) {
    let mut sctp = frame(ipv4(64, IpNumber::UDP), Inner::Udp, (4000, 53), &[0; 20]);
    sctp.bytes[L3 + 9] = Proto::SCTP.number;
    sctp.bytes[34 + 12] = chunk;
    let headers = v4(&sctp, L3).unwrap();
    assert_eq!((headers.key.proto, headers.tcp, headers.key.dport), (Proto::SCTP, wanted, 53));
    assert_eq!(headers.opens(), chunk == 1);
}

/// Every packet that is cut somewhere is nobody's, or has been read as far as anything was asked of it.
#[test]
fn packets_that_end_early_are_nobodys() {
    let inner = [Inner::Tcp(TcpFlags::SYN), Inner::Udp];
    for inner in inner {
        let four = frame(ipv4(64, IpNumber::TCP), inner, (4000, 80), &[]);
        let six = frame(ipv6(64, Ipv6Extensions::default()), inner, (4000, 80), &[]);
        let header = if let Inner::Udp = inner { 8 } else { 20 };
        for end in 0..four.bytes.len() {
            let cut = Frame { bytes: four.bytes[..end].to_vec() };
            assert_eq!(v4(&cut, L3).is_some(), end >= 34 + header, "{end}");
        }
        for end in 0..six.bytes.len() {
            let cut = Frame { bytes: six.bytes[..end].to_vec() };
            assert_eq!(v6(&cut, L3).is_some(), end >= 54 + header, "{end}");
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..200), l3 in 0_usize..40) {
        let frame = Frame { bytes };
        let _anything: (Option<Headers<Addr4>>, Option<Headers<Addr>>) = (v4(&frame, l3), v6(&frame, l3));
    }

    #[test]
    fn another_version_is_not_read(version: u8) {
        let mut four = frame(ipv4(64, IpNumber::UDP), Inner::Udp, (1, 2), &[0; 40]);
        four.bytes[L3] = version << 4 | 5;
        prop_assert_eq!(v4(&four, L3).is_some(), version & 15 == 4);
        prop_assert_eq!(v6(&four, L3).is_some(), version & 15 == 6);
    }
}

/// RFC 791: a header shorter than five words is none.
#[test]
fn a_short_ipv4_header_is_none() {
    let whole = frame(ipv4(64, IpNumber::UDP), Inner::Udp, (1, 2), &[0; 40]);
    for words in 0..16_u8 {
        let mut odd = Frame { bytes: whole.bytes.clone() };
        odd.bytes[L3] = 4 << 4 | words;
        assert_eq!(v4(&odd, L3).is_some(), words >= 5, "{words}");
    }
}
