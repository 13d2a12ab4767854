//! Whether both sides agree, and what is said if they do not.

use std::collections::BTreeMap;
use std::fmt::Debug;

use anyhow::{Result, bail, ensure};
use lb_common::abi::{Affinity, AffinityKey};

use super::host::{DROP, REDIRECT, Read, XDP_ABORTED};
use super::kernel::Outcome;
use super::packet::{Packet, Program, hex};
use super::sums::{Change, answer_fault};

/// Milliseconds by which the clocks of a program and of the host may differ: whoever else has the CPU.
const LATE_MS: u64 = 1000;

/// Compares what became of a packet, and looks whether its checksums are as right as before.
///
/// # Errors
/// They differ.
pub(super) fn outcomes(packet: &Packet, ours: &Outcome, theirs: &Outcome) -> Result<()> {
    let is_gone = if packet.program == Program::Xdp { XDP_ABORTED } else { DROP };
    let same = ours.action == theirs.action && (ours.action == is_gone || ours.bytes == theirs.bytes);
    ensure!(
        same,
        "the last packet is read as {:?}\nhost    {} {}\nprogram {} {}",
        packet.read(),
        ours.action.cast_signed(),
        hex(&ours.bytes),
        theirs.action.cast_signed(),
        hex(&theirs.bytes),
    );
    if theirs.action == is_gone || theirs.bytes == packet.bytes {
        return Ok(());
    }
    if let Some(fault) = fault(packet, theirs) {
        bail!("the last packet has become {}: {fault}", hex(&theirs.bytes));
    }
    Ok(())
}

/// What is wrong with the checksums of a packet that is another one now.
fn fault(packet: &Packet, theirs: &Outcome) -> Option<&'static str> {
    let (l3, read) = packet.read()?;
    let is_answer = matches!(packet.program, Program::Ingress | Program::Egress)
        && theirs.action == REDIRECT
        && theirs.bytes.get(..6) == packet.bytes.get(6..12);
    // What has had no Ethernet header has one now.
    let pad = usize::from(packet.program.is_bare() && theirs.action == REDIRECT) * 14;
    let (before, after) = (&packet.bytes[..], &theirs.bytes[pad..]);
    match read {
        Read::V4(_) if is_answer => answer_fault::<lb_common::abi::Addr4>(after, l3),
        Read::V6(_) if is_answer => answer_fault::<lb_common::abi::Addr>(after, l3),
        Read::V4(headers) => Change { headers: &headers, l3, before, after }.fault(),
        Read::V6(headers) => Change { headers: &headers, l3, before, after }.fault(),
    }
}

/// Compares all entries of a map.
///
/// # Errors
/// The first ones that differ.
pub(super) fn maps<K: Ord + Debug, V: PartialEq + Debug>(
    name: &str,
    ours: &BTreeMap<K, V>,
    theirs: &BTreeMap<K, V>,
) -> Result<()> {
    for (key, value) in ours {
        let other = theirs.get(key);
        ensure!(other == Some(value), "{name}, {key:?}:\nhost    {value:?}\nprogram {other:?}");
    }
    let more = theirs.iter().find(|(key, _)| !ours.contains_key(*key));
    ensure!(more.is_none(), "{name}: only the programs have {more:?}");
    Ok(())
}

/// Compares the entries of clients, whose times may differ a little.
///
/// # Errors
/// The first ones that differ.
pub(super) fn affinity(
    ours: &BTreeMap<AffinityKey, Affinity>,
    theirs: &BTreeMap<AffinityKey, Affinity>,
) -> Result<()> {
    let mut timed = ours.clone();
    for (key, entry) in &mut timed {
        if let Some(other) = theirs.get(key)
            && other.seen_ms.abs_diff(entry.seen_ms) < LATE_MS
        {
            entry.seen_ms = other.seen_ms;
        }
    }
    maps("lb_affinity", &timed, theirs)
}
