//! Reading single fields, as leniently as Kubernetes reads them, and collecting what cannot be used.

use core::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::model::{Fault, Few, Protocol, Reason};

/// More faults than this of one object only repeat themselves; the rest is counted.
const MOST_FAULTS: usize = 16;
/// Longer texts are cut where a fault repeats them.
const LONGEST_TEXT: usize = 64;

/// Faults of one object.
#[derive(Default)]
pub(super) struct Faults {
    kept: Vec<Fault>,
    left_out: usize,
}

impl Faults {
    /// Adds a fault; `field` is only called if it is kept.
    pub(super) fn add(&mut self, field: impl FnOnce() -> String, reason: Reason) {
        if self.kept.len() < MOST_FAULTS {
            self.kept.push(Fault::new(field(), reason));
        } else {
            self.left_out += 1;
        }
    }

    /// All of them; `object` is the path of the count of those left out, and only called if there are any.
    pub(super) fn finish(mut self, object: impl FnOnce() -> String) -> Few<Fault> {
        if self.left_out > 0 {
            self.kept.push(Fault::new(object(), Reason::More(self.left_out)));
        }
        self.kept.into()
    }
}

/// A text in the form a fault repeats it.
pub(super) fn shown(text: &str) -> Box<str> {
    if text.chars().count() <= LONGEST_TEXT {
        text.into()
    } else {
        let mut cut: String = text.chars().take(LONGEST_TEXT).collect();
        cut.push('…');
        cut.into()
    }
}

/// An address as kube-proxy reads it (ES-7): leading zeros are decimal, an IPv4-mapped IPv6 address is IPv4.
pub(super) fn address(text: &str) -> Result<IpAddr, Reason> {
    let addr = text
        .parse::<IpAddr>()
        .ok()
        .or_else(|| dotted_with_zeros(text).map(IpAddr::V4))
        .ok_or_else(|| Reason::NotAnAddress(shown(text)))?;
    Ok(addr.to_canonical())
}

/// An address that traffic can be sent to or received at.
pub(super) fn host_address(text: &str) -> Result<IpAddr, Reason> {
    let addr = address(text)?;
    let is_special = addr.is_unspecified()
        || addr.is_loopback()
        || addr.is_multicast()
        || addr == IpAddr::V4(Ipv4Addr::BROADCAST);
    if is_special { Err(Reason::SpecialAddress(addr)) } else { Ok(addr) }
}

/// Go's `ParseIPSloppy`: four decimal numbers with any number of leading zeros.
fn dotted_with_zeros(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    }
    parts.next().is_none().then(|| octets.into())
}

/// An address range, whitespace around it ignored (SP-8), host bits cleared.
pub(super) fn range(text: &str) -> Result<IpNet, Reason> {
    let refused = || Reason::NotARange(shown(text));
    let (addr, len) = text.trim().split_once('/').ok_or_else(refused)?;
    let addr = address(addr).ok().ok_or_else(refused)?;
    let is_number = !len.is_empty() && len.bytes().all(|byte| byte.is_ascii_digit());
    let len = len.parse().ok().filter(|_| is_number).ok_or_else(refused)?;
    IpNet::new(addr, len).map(|range| range.trunc()).ok().ok_or_else(refused)
}

/// The ranges of a list, without those that cannot be used.
pub(super) fn ranges(given: &[String], field: &'static str, faults: &mut Faults) -> Box<[IpNet]> {
    let mut usable = Vec::with_capacity(given.len());
    for (at, text) in given.iter().enumerate() {
        match range(text) {
            Ok(range) => usable.push(range),
            Err(reason) => faults.add(|| format!("{field}[{at}]"), reason),
        }
    }
    usable.into()
}

/// A port number, 1..=65535.
pub(super) fn port(number: i32) -> Result<u16, Reason> {
    u16::try_from(number).ok().filter(|port| *port != 0).ok_or(Reason::PortOutOfRange(number.into()))
}

/// A protocol; absent means TCP.
pub(super) fn protocol(text: Option<&str>) -> Result<Protocol, Reason> {
    match text {
        None | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(Reason::UnknownProtocol(shown(other))),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// ES-7.
    #[rstest]
    #[case::plain("10.1.2.3", "10.1.2.3")]
    #[case::leading_zeros_are_decimal("010.001.002.003", "10.1.2.3")]
    #[case::many_zeros("10.0.0.000000001", "10.0.0.1")]
    #[case::ipv6_is_shortened("2001:DB8:0:0::0:1", "2001:db8::1")]
    #[case::mapped_is_ipv4("::ffff:10.1.2.3", "10.1.2.3")]
    fn addresses_are_read_leniently(#[case] text: &str, #[case] want: &str) {
        assert_eq!(address(text).unwrap().to_string(), want);
    }

    #[rstest]
    #[case("")]
    #[case("10.1.2")]
    #[case("10.1.2.3.4")]
    #[case("10.1.2.256")]
    #[case("10.1.2.+3")]
    #[case("10.1..3")]
    #[case("fe80::1%eth0")]
    #[case("web.example")]
    fn what_is_not_an_address_is_named(#[case] text: &str) {
        assert_eq!(address(text), Err(Reason::NotAnAddress(text.into())));
    }

    #[rstest]
    #[case("0.0.0.0")]
    #[case("::")]
    #[case("127.0.0.1")]
    #[case("::1")]
    #[case("::ffff:127.0.0.1")]
    #[case("224.0.0.1")]
    #[case("ff02::1")]
    #[case("255.255.255.255")]
    fn special_addresses_are_not_hosts(#[case] text: &str) {
        assert!(matches!(host_address(text), Err(Reason::SpecialAddress(_))));
    }

    /// SP-8.
    #[rstest]
    #[case::whitespace(" 10.0.0.0/8 ", "10.0.0.0/8")]
    #[case::host_bits("10.1.2.3/8", "10.0.0.0/8")]
    #[case::ipv6("2001:db8::/32", "2001:db8::/32")]
    fn ranges_are_read_leniently(#[case] text: &str, #[case] want: &str) {
        assert_eq!(range(text).unwrap().to_string(), want);
    }

    #[rstest]
    #[case("10.0.0.0")]
    #[case("10.0.0.0/33")]
    #[case("10.0.0.0/+8")]
    #[case("10.0.0.0/")]
    #[case("x/8")]
    fn what_is_not_a_range_is_named(#[case] text: &str) {
        assert_eq!(range(text), Err(Reason::NotARange(text.into())));
    }

    #[rstest]
    #[case(0)]
    #[case(-1)]
    #[case(65_536)]
    #[case(i32::MAX)]
    fn ports_outside_1_to_65535_are_refused(#[case] number: i32) {
        assert_eq!(port(number), Err(Reason::PortOutOfRange(number.into())));
    }

    #[test]
    fn a_flood_of_faults_is_counted_and_long_texts_are_cut() {
        let mut faults = Faults::default();
        for n in 0..1000 {
            faults.add(|| format!("spec.externalIPs[{n}]"), address(&"x".repeat(10_000)).unwrap_err());
        }
        let kept = faults.finish(|| "spec".to_owned());
        assert_eq!(kept.len(), MOST_FAULTS + 1);
        assert_eq!(kept[MOST_FAULTS].reason, Reason::More(1000 - MOST_FAULTS));
        assert!(kept.iter().all(|fault| fault.reason.to_string().len() < 200));
    }
}
