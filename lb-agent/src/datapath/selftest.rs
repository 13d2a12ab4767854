//! The self-test of a device before `lb_xdp` is let loose on it: a neighbour is asked by XDP, and has to answer.
//!
//! The kernel is told to look again whether the neighbour is there. It asks, and the neighbour's answer comes in, which `lb_xdp_test` turns
//! into a question of its own and sends back. Its answer proves that frames come in whole and go out. See [`Probe`].

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use futures::TryStreamExt as _;
use lb_common::{
    abi::{Addr, FlowKey, L4Addr, Probe, Proto, join32, split32},
    datapath::packet::{refuse::Answers as _, rewrite::Difference},
};
use rtnetlink::{
    Handle, new_connection,
    packet_route::{
        link::LinkAttribute,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    },
};

use crate::maps::Array as _;
use crate::maps::kernel::KernelArray;

/// How long a neighbour has for both answers. The kernel repeats its question after a second.
const PATIENCE: Duration = Duration::from_millis(2500);
/// Between two looks whether it has answered.
const LOOK: Duration = Duration::from_millis(20);
/// Neighbours that are asked before a device counts as unfit.
const MOST: usize = 3;

/// Somebody who can be asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Neighbour {
    /// Its address.
    pub addr: IpAddr,
    /// Its link-layer address.
    pub mac: [u8; 6],
    /// The question.
    pub question: [u8; 80],
}

/// Why a device was not found fit.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unfit {
    /// Nobody can be asked.
    #[error("waiting for a neighbour to test it with")]
    NoNeighbour,
    /// The question went out, or should have, and nothing came back.
    #[error("the self-test failed: {0}")]
    Failed(&'static str),
    /// rtnetlink or a map refused.
    #[error("the self-test failed: {0}")]
    Broken(String),
}

fn broken(error: impl core::fmt::Display) -> Unfit {
    Unfit::Broken(error.to_string())
}

/// Looks for neighbours of a device, in a thread of its own.
pub fn look(index: u32, found: impl FnOnce(Result<Vec<Neighbour>, Unfit>) + Send + 'static) {
    thread::spawn(move || found(with_netlink(|handle| Box::pin(neighbours(handle, index)))));
}

/// Tests a device at which `lb_xdp_test` is attached, in a thread of its own.
pub fn ask(
    index: u32,
    neighbours: Vec<Neighbour>,
    mut probe: KernelArray,
    done: impl FnOnce(Result<(), Unfit>) + Send + 'static,
) {
    thread::spawn(move || {
        let mut result = Err(Unfit::NoNeighbour);
        for neighbour in &neighbours {
            result = ask_one(index, neighbour, &mut probe);
            if result.is_ok() {
                break;
            }
        }
        done(result);
    });
}

fn ask_one(index: u32, neighbour: &Neighbour, probe: &mut KernelArray) -> Result<(), Unfit> {
    let (words, _) = neighbour.question.as_chunks::<8>();
    probe.store(0, 0).map_err(broken)?;
    for (at, word) in (1..).zip(words) {
        probe.store(at, u64::from_ne_bytes(*word)).map_err(broken)?;
    }
    probe.store(0, join32(Probe::ARMED, index)).map_err(broken)?;
    let (addr, mac) = (neighbour.addr, neighbour.mac);
    with_netlink(|handle| {
        Box::pin(async move {
            let request = handle.neighbours().add(index, addr).link_layer_address(&mac);
            request.state(NeighbourState::Probe).replace().execute().await.map_err(broken)
        })
    })?;
    let begin = Instant::now();
    let mut state = Probe::ARMED;
    while state != Probe::ANSWERED && begin.elapsed() < PATIENCE {
        thread::sleep(LOOK);
        (state, _) = split32(probe.load(0));
    }
    probe.store(0, 0).map_err(broken)?;
    match state {
        Probe::ANSWERED => Ok(()),
        Probe::SENT => Err(Unfit::Failed("frames that are sent back by XDP are not answered")),
        _ => Err(Unfit::Failed("no answer of a neighbour was seen by XDP")),
    }
}

type Task<'a, T> = core::pin::Pin<Box<dyn Future<Output = Result<T, Unfit>> + 'a>>;

/// Runs something with netlink on this thread.
fn with_netlink<T>(task: impl FnOnce(Handle) -> Task<'static, T>) -> Result<T, Unfit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(broken)?;
    runtime.block_on(async {
        let (connection, handle, _) = new_connection().map_err(broken)?;
        let connection = tokio::spawn(connection);
        let result = task(handle).await;
        connection.abort();
        result
    })
}

async fn neighbours(handle: Handle, index: u32) -> Result<Vec<Neighbour>, Unfit> {
    let mut link = handle.link().get().match_index(index).execute();
    let link = link.try_next().await.map_err(broken)?.ok_or(Unfit::NoNeighbour)?;
    let own = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok(),
        _ => None,
    });
    let own = own.ok_or(Unfit::NoNeighbour)?;
    let mut found = Vec::new();
    let mut messages = handle.neighbours().get().execute();
    while let Some(message) = messages.try_next().await.map_err(broken)? {
        if message.header.ifindex == index
            && let Some(one) = neighbour(&message, own)
        {
            found.push((message.header.state != NeighbourState::Reachable, one));
        }
    }
    found.sort_by_key(|(is_doubtful, one)| (*is_doubtful, one.addr));
    let found: Vec<_> = found.into_iter().map(|(_, one)| one).take(MOST).collect();
    if found.is_empty() { Err(Unfit::NoNeighbour) } else { Ok(found) }
}

/// A neighbour that has answered before. Permanent entries stay what they are.
fn neighbour(message: &NeighbourMessage, own: [u8; 6]) -> Option<Neighbour> {
    let fit =
        [NeighbourState::Reachable, NeighbourState::Stale, NeighbourState::Delay, NeighbourState::Probe];
    if !fit.contains(&message.header.state) {
        return None;
    }
    let (mut addr, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => addr = Some(IpAddr::from(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => addr = Some(IpAddr::from(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            _ => {}
        }
    }
    let (addr, mac) = (addr?, mac?);
    Some(Neighbour { addr, mac, question: question(own, addr) })
}

/// Whose link-layer address belongs to `target`? From nobody's address, so that the answer tells itself from answers to the kernel.
fn question(own: [u8; 6], target: IpAddr) -> [u8; 80] {
    let mut frame = [0; 80];
    let mut bytes = Vec::with_capacity(frame.len());
    match target {
        IpAddr::V4(target) => {
            bytes.extend([0xff; 6]);
            bytes.extend(own);
            // ARP over Ethernet for IPv4, a request.
            bytes.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
            bytes.extend(own);
            bytes.extend([0; 4 + 6]);
            bytes.extend(target.octets());
        }
        IpAddr::V6(target) => {
            let [.., a, b, c] = target.octets();
            let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c];
            let [checksum, rest] = solicitation_checksum(group, target.octets());
            bytes.extend([0x33, 0x33, 0xff, a, b, c]);
            bytes.extend(own);
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, SOLICITATION_LEN, ICMPV6, 255]);
            bytes.extend([0; 16]);
            bytes.extend(group);
            bytes.extend([SOLICITATION, 0, checksum, rest, 0, 0, 0, 0]);
            bytes.extend(target.octets());
        }
    }
    for (to, from) in frame.iter_mut().zip(bytes) {
        *to = from;
    }
    frame
}

/// ICMPv6, a neighbour solicitation of it, and its bytes without options (RFC 4861 4.3).
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const SOLICITATION_LEN: u8 = 24;

fn solicitation_checksum(group: [u8; 16], target: [u8; 16]) -> [u8; 2] {
    let at = |octets| L4Addr { addr: Addr { octets }, port: 0 };
    let key = FlowKey::<Addr>::new(at([0; 16]), at(group), Proto { number: ICMPV6 });
    let mut sum = Addr::pseudo(&key, SOLICITATION_LEN.into());
    let [a, b, c, d] = Addr { octets: target }.to_net_words();
    for word in [u32::from_ne_bytes([SOLICITATION, 0, 0, 0]), a, b, c, d] {
        sum = sum.and(Difference::default().word(0, word));
    }
    sum.checksum().to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [u8; 6] = [2, 0, 0, 0, 0, 7];

    #[test]
    fn an_ipv4_neighbour_is_asked_by_arp_from_nobody() {
        let frame = question(OWN, [192, 0, 2, 9].into());
        let mut wanted = vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 7, 8, 6];
        wanted.extend([0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 192, 0, 2, 9]);
        assert_eq!(frame[..Probe::ARP], wanted);
    }

    #[test]
    fn an_ipv6_neighbour_is_solicited_by_nobody() {
        let frame = question(OWN, "2001:db8::abcd:ef01".parse().unwrap());
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0xcd, 0xef, 1]);
        assert_eq!(frame[22..38], [0; 16], "the unspecified address");
        // The sum over the pseudo header and everything behind the IP header.
        let mut sum: u32 = 24 + 58;
        let (halves, _) = frame[22..Probe::NEIGHBOUR].as_chunks::<2>();
        for half in halves {
            sum += u32::from(u16::from_be_bytes(*half));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        assert_eq!(sum, 0xffff);
    }
}
