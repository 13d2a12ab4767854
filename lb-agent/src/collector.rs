//! Empties the tables of proven flows of those that are over: nothing else does, and their room and their ports for
//! masquerading come back.
//!
//! Nothing rests on it: programs know by themselves that a flow is over when another one begins.

use core::{fmt::Debug, hash::Hash};
use std::{
    io,
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::Duration,
};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData},
};
use lb_common::abi::{Addr, Addr4, Flow, FlowAddr, FlowKey, FlowState, Proto, maps};
use rustix::time::{ClockId, clock_gettime};
use tracing::{debug, warn};

use crate::maps::pin::maps_dir;

/// Between two rounds.
const ROUND: Duration = Duration::from_secs(30);

/// How long flows are kept after their last packet, in the programs' seconds, which are 2^30 ns.
mod lifetime {
    /// A connection both ends of which may still send: more than keepalive probes need to find that it is dead (7,200 s and nine
    /// times 75 s, tcp(7)).
    pub(super) const OPEN_S: u32 = 24 * 3600;
    /// One end has said that it sends no more; the other may take its time (kube-proxy: conntrack.tcpCloseWaitTimeout).
    pub(super) const HALF_CLOSED_S: u32 = 3600;
    /// Both have, or one has reset it: as long as old segments may be on their way (nf_conntrack_tcp_timeout_time_wait).
    pub(super) const CLOSED_S: u32 = 120;
    /// UDP (nf_conntrack_udp_timeout_stream): the next packet is another flow.
    pub(super) const UDP_S: u32 = 120;
    /// SCTP and whatever else (nf_conntrack_sctp_timeout_established).
    pub(super) const OTHER_S: u32 = 2 * 3600;
}

/// What a round found, in entries: two for each flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Round {
    /// `lb_flows4`
    pub v4: Looked,
    /// `lb_flows6`
    pub v6: Looked,
}

/// What was found in one table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Looked {
    /// Entries that are left.
    pub left: usize,
    /// Entries that were taken out.
    pub collected: usize,
    /// Entries that there is room for.
    pub capacity: usize,
}

/// Ends the thread when it is dropped.
#[derive(Debug)]
pub struct Collector {
    _stop: Sender<()>,
}

impl Collector {
    /// Starts the thread; `told` hears of every round.
    ///
    /// # Errors
    /// Those of the thread's creation.
    pub fn start(pin_dir: &Path, told: impl Fn(Round) + Send + 'static) -> io::Result<Self> {
        let (stop, stopped) = channel();
        let folder = maps_dir(pin_dir);
        thread::Builder::new().name("collector".into()).spawn(move || run(&folder, &stopped, told))?;
        Ok(Self { _stop: stop })
    }
}

fn run(folder: &Path, stopped: &Receiver<()>, told: impl Fn(Round)) {
    let mut said = None;
    while stopped.recv_timeout(ROUND) == Err(RecvTimeoutError::Timeout) {
        let found = (
            collect::<Addr4>(&folder.join(maps::FLOWS4), now_s()),
            collect::<Addr>(&folder.join(maps::FLOWS6), now_s()),
        );
        match found {
            (Ok(v4), Ok(v6)) => {
                debug!(?v4, ?v6, "flows that are over were collected");
                told(Round { v4, v6 });
                said = None;
            }
            (Err(error), _) | (_, Err(error)) => {
                let text = format!("{error:#}");
                if said.as_ref() != Some(&text) {
                    warn!(error = %text, "cannot take flows that are over out of their tables");
                }
                said = Some(text);
            }
        }
    }
}

/// The programs' clock.
fn now_s() -> u32 {
    let now = clock_gettime(ClockId::Monotonic);
    let ns = now.tv_sec.unsigned_abs().wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec.unsigned_abs());
    // It wraps, as theirs does.
    u32::try_from((ns >> 30) & u64::from(u32::MAX)).unwrap_or_default()
}

/// Takes out of a pinned table what is over.
fn collect<A>(pin: &Path, now_s: u32) -> anyhow::Result<Looked>
where
    A: FlowAddr + Hash,
    FlowKey<A>: Pod + Debug,
    Flow<A>: Pod,
{
    if !pin.exists() {
        return Ok(Looked::default());
    }
    let map = MapData::from_pin(pin)?;
    // A walk over a table that changes may begin again; it ends all the same.
    let capacity = map.info()?.max_entries() as usize;
    let mut table = HashMap::<_, FlowKey<A>, Flow<A>>::try_from(Map::HashMap(map))?;
    let (mut count, mut over) = (0, Vec::new());
    for entry in table.iter().take(2 * capacity) {
        let (key, flow) = entry?;
        count += 1;
        let other = || table.get(&flow.other_key(&key), 0).ok();
        if flow.is_of(&key) && is_over(key.proto, &flow, other, now_s) {
            over.push(key);
        }
    }
    let mut collected = 0;
    for key in over {
        // A packet may have come since.
        let is_idle = table.get(&key, 0).is_ok_and(|flow| idle_s(now_s, flow.seen_s) >= lifetime::CLOSED_S);
        collected += usize::from(is_idle && table.remove(&key).is_ok());
    }
    Ok(Looked { left: count - collected, collected, capacity })
}

/// Seconds since the last packet; 0 if one came after the clock was read.
const fn idle_s(now_s: u32, seen_s: u32) -> u32 {
    let idle = now_s.wrapping_sub(seen_s);
    if idle > u32::MAX / 2 { 0 } else { idle }
}

/// Whether an entry has outlived its flow. `other` is that of the other direction.
fn is_over<A: FlowAddr>(
    proto: Proto,
    flow: &Flow<A>,
    other: impl FnOnce() -> Option<Flow<A>>,
    now_s: u32,
) -> bool {
    let idle = idle_s(now_s, flow.seen_s);
    let limit = match proto {
        Proto::UDP => lifetime::UDP_S,
        Proto::TCP if idle < lifetime::CLOSED_S => return false,
        Proto::TCP if flow.state.has(FlowState::RESET) => lifetime::CLOSED_S,
        Proto::TCP => {
            let ends = [Some(*flow), other()].map(|flow| flow.is_none_or(|flow| flow.state.is_closing()));
            match ends {
                [true, true] => lifetime::CLOSED_S,
                [false, false] => lifetime::OPEN_S,
                _ => lifetime::HALF_CLOSED_S,
            }
        }
        _ => lifetime::OTHER_S,
    };
    idle >= limit
}

#[cfg(test)]
mod tests {
    use lb_common::abi::Direction;

    use super::*;

    const NOW: u32 = 1_000_000;

    fn flow(idle: u32, state: FlowState) -> Flow<Addr4> {
        Flow { seen_s: NOW.wrapping_sub(idle), state, direction: Direction::Original as u8, ..Flow::NONE }
    }

    fn lives(proto: Proto, states: [FlowState; 2], seconds: u32) -> bool {
        !is_over(proto, &flow(seconds, states[0]), || Some(flow(seconds, states[1])), NOW)
    }

    /// CT-5, CT-6
    #[test]
    fn a_connection_is_kept_for_a_day_and_one_that_is_closed_for_two_minutes() {
        let (open, fin) = (FlowState::PROVEN, FlowState::PROVEN.with(FlowState::FIN));
        let reset = FlowState::PROVEN.with(FlowState::RESET);
        for (states, seconds) in [
            ([open, open], 24 * 3600),
            ([fin, open], 3600),
            ([open, fin], 3600),
            ([fin, fin], 120),
            ([reset, open], 120),
        ] {
            assert!(lives(Proto::TCP, states, seconds - 1), "{states:?}");
            assert!(!lives(Proto::TCP, states, seconds), "{states:?}");
        }
    }

    #[test]
    fn udp_and_sctp_have_lifetimes_of_their_own() {
        let both = [FlowState::PROVEN; 2];
        assert!(lives(Proto::UDP, both, 119) && !lives(Proto::UDP, both, 120));
        assert!(lives(Proto::SCTP, both, 7199) && !lives(Proto::SCTP, both, 7200));
    }

    #[test]
    fn what_has_lost_its_other_half_goes_when_both_would() {
        let alone = |idle| is_over(Proto::TCP, &flow(idle, FlowState::PROVEN), || None, NOW);
        assert!(!alone(3599) && alone(3600));
    }

    /// The clock was read before the packet came.
    #[test]
    fn a_packet_of_a_moment_ago_is_not_of_a_century_ago() {
        assert_eq!(idle_s(NOW, NOW + 1), 0);
        assert_eq!(idle_s(3, u32::MAX), 4, "it wraps");
    }

    #[test]
    fn the_clock_is_that_of_the_programs() {
        let before = now_s();
        assert!(now_s().wrapping_sub(before) <= 60);
    }
}
