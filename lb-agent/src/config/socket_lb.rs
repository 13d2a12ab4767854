//! `--socket-lb`: which sockets are served.

use std::{fmt, str::FromStr};

use lb_common::abi::SocketLb;

/// One word of `--socket-lb`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketLbChoice {
    /// What it stands for.
    pub bits: SocketLb,
}

/// The words of `--socket-lb`.
const SOCKET_LB: [(&str, SocketLb); 8] = [
    ("all", SocketLb::ALL),
    ("none", SocketLb::NONE),
    ("tcp", SocketLb::TCP_HOST.with(SocketLb::TCP_PODS)),
    ("udp", SocketLb::UDP_HOST.with(SocketLb::UDP_PODS)),
    ("tcp:host", SocketLb::TCP_HOST),
    ("tcp:pods", SocketLb::TCP_PODS),
    ("udp:host", SocketLb::UDP_HOST),
    ("udp:pods", SocketLb::UDP_PODS),
];

/// The words for single bits that stand for `choice`.
pub fn socket_lb_words(choice: SocketLb) -> Vec<&'static str> {
    let single = SOCKET_LB.iter().filter(|(_, bits)| bits.bits.is_power_of_two());
    single.filter(|(_, bits)| choice.has(*bits)).map(|(word, _)| *word).collect()
}

/// A word that `--socket-lb` does not know.
#[derive(Debug)]
pub struct UnknownChoice;

impl fmt::Display for UnknownChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> = SOCKET_LB.iter().map(|(word, _)| *word).collect();
        write!(f, "expected one of {}", words.join(", "))
    }
}

impl core::error::Error for UnknownChoice {}

impl FromStr for SocketLbChoice {
    type Err = UnknownChoice;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        let found = SOCKET_LB.iter().find(|(known, _)| *known == word);
        found.map(|(_, bits)| Self { bits: *bits }).ok_or(UnknownChoice)
    }
}
