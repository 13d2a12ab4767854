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
    time::{Duration, Instant},
};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData},
};
use lb_common::abi::{Addr, Addr4, Flow, FlowAddr, FlowKey, FlowState, Proto, maps};
use rustix::time::{ClockId, clock_gettime};
use tracing::{debug, warn};

use crate::maps::pin::maps_dir;

/// Between two rounds, at most.
const ROUND: Duration = Duration::from_secs(30);
/// At least.
const SOON: Duration = Duration::from_secs(5);
/// At least, where a table is [crowded](Looked::is_crowded).
const CROWDED: Duration = Duration::from_secs(2);

/// How long flows are kept after their last packet, in the programs' seconds, which are 2^30 ns.
mod lifetime {
    /// A connection both ends of which may still send: more than keepalive probes need to find that it is dead (7,200 s and nine
    /// times 75 s, tcp(7)).
    pub(super) const OPEN_S: u32 = 24 * 3600;
    /// One end has said that it sends no more; the other may take its time (kube-proxy: conntrack.tcpCloseWaitTimeout).
    pub(super) const HALF_CLOSED_S: u32 = 3600;
    /// Both have, or one has reset it: as long as old segments may be on their way (nf_conntrack_tcp_timeout_time_wait).
    pub(super) const CLOSED_S: u32 = 120;
    /// The same in a full table: longer than programs leave the port of such a connection alone.
    pub(super) const CLOSED_FULL_S: u32 = 4;
    /// UDP (nf_conntrack_udp_timeout_stream), and what the entry's time may be too early: the next packet is another flow.
    pub(super) const UDP_S: u32 = lb_common::datapath::packet::UDP_IDLE_S;
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

impl Looked {
    /// Whether more than half of the room is taken: entries of what is over are collected sooner, because an open connection that finds no
    /// room stays among the new ones, which a flood can evict.
    const fn is_crowded(&self) -> bool {
        self.left > self.capacity / 2
    }
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
    let (mut said, mut pause) = (None, SOON);
    while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        let begin = Instant::now();
        let found = (
            collect::<Addr4>(&folder.join(maps::FLOWS4), now_s()),
            collect::<Addr>(&folder.join(maps::FLOWS6), now_s()),
        );
        match found {
            (Ok(v4), Ok(v6)) => {
                debug!(?v4, ?v6, "flows that are over were collected");
                let round = Round { v4, v6 };
                pause = pause_after(&round, begin.elapsed());
                told(round);
                said = None;
            }
            (Err(error), _) | (_, Err(error)) => {
                let text = format!("{error:#}");
                if said.as_ref() != Some(&text) {
                    warn!(error = %text, "cannot take flows that are over out of their tables");
                }
                said = Some(text);
                pause = ROUND;
            }
        }
    }
}

/// How long to wait after a round that took so long: rounds take a twentieth of a CPU at most, where a table is crowded a fifth.
fn pause_after(round: &Round, took: Duration) -> Duration {
    if round.v4.is_crowded() || round.v6.is_crowded() {
        (took * 4).clamp(CROWDED, ROUND)
    } else {
        (took * 19).clamp(SOON, ROUND)
    }
}

/// How long closed connections are kept in a table with so many entries: up to half of its room [`lifetime::CLOSED_S`], then less,
/// from three quarters on [`lifetime::CLOSED_FULL_S`].
fn closed_s(count: usize, capacity: usize) -> u32 {
    let quarter = (capacity / 4).max(1);
    let spare = (3 * quarter).saturating_sub(count).min(quarter);
    let whole = lifetime::CLOSED_S as usize;
    u32::try_from(whole * spare / quarter).unwrap_or(lifetime::CLOSED_S).max(lifetime::CLOSED_FULL_S)
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
    let full = lifetime::CLOSED_FULL_S;
    for entry in table.iter().take(2 * capacity) {
        let (key, flow) = entry?;
        count += 1;
        let other = || table.get(&flow.other_key(&key), 0).ok();
        if flow.is_of(&key) && is_over(key.proto, &flow, other, (now_s, full)) {
            over.push(key);
        }
    }
    let closed_s = closed_s(count, capacity);
    let mut collected = 0;
    for key in over {
        // A packet may have come since.
        let is_over = table.get(&key, 0).is_ok_and(|flow| {
            let other = || table.get(&flow.other_key(&key), 0).ok();
            is_over(key.proto, &flow, other, (now_s, closed_s))
        });
        collected += usize::from(is_over && table.remove(&key).is_ok());
    }
    Ok(Looked { left: count - collected, collected, capacity })
}

/// Seconds since the last packet; 0 if one came after the clock was read.
const fn idle_s(now_s: u32, seen_s: u32) -> u32 {
    let idle = now_s.wrapping_sub(seen_s);
    if idle > u32::MAX / 2 { 0 } else { idle }
}

/// Whether an entry has outlived its flow. `other` is that of the other direction; closed connections are kept for `closed_s`.
fn is_over<A: FlowAddr>(
    proto: Proto,
    flow: &Flow<A>,
    other: impl FnOnce() -> Option<Flow<A>>,
    (now_s, closed_s): (u32, u32),
) -> bool {
    let idle = idle_s(now_s, flow.seen_s);
    let limit = match proto {
        Proto::UDP => lifetime::UDP_S,
        Proto::TCP if idle < closed_s => return false,
        Proto::TCP if flow.state.has(FlowState::RESET) => closed_s,
        Proto::TCP => {
            let ends = [Some(*flow), other()].map(|flow| flow.is_none_or(|flow| flow.state.is_closing()));
            match ends {
                [true, true] => closed_s,
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
        !is_over(
            proto,
            &flow(seconds, states[0]),
            || Some(flow(seconds, states[1])),
            (NOW, lifetime::CLOSED_S),
        )
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
        assert!(lives(Proto::UDP, both, 127) && !lives(Proto::UDP, both, 128));
        assert!(lives(Proto::SCTP, both, 7199) && !lives(Proto::SCTP, both, 7200));
    }

    #[test]
    fn what_has_lost_its_other_half_goes_when_both_would() {
        let alone = |idle| is_over(Proto::TCP, &flow(idle, FlowState::PROVEN), || None, (NOW, 120));
        assert!(!alone(3599) && alone(3600));
    }

    #[test]
    fn closed_connections_make_way_where_there_is_little_room() {
        assert_eq!([0, 500, 625, 750, 999].map(|count| closed_s(count, 1000)), [120, 120, 60, 4, 4]);
        let fin = FlowState::PROVEN.with(FlowState::FIN);
        let is_over = |states: [FlowState; 2], proto| {
            is_over(proto, &flow(4, states[0]), || Some(flow(4, states[1])), (NOW, 4))
        };
        assert!(is_over([fin, fin], Proto::TCP));
        assert!(!is_over([fin, FlowState::PROVEN], Proto::TCP), "one end may go on");
        assert!(!is_over([FlowState::PROVEN; 2], Proto::UDP));
    }

    #[test]
    fn rounds_follow_each_other_sooner_where_there_is_little_room() {
        let round = |left| Round { v4: Looked { left, collected: 0, capacity: 100 }, ..Round::default() };
        let pause = |left, ms| pause_after(&round(left), Duration::from_millis(ms)).as_secs();
        assert_eq!([pause(50, 1), pause(50, 1000), pause(50, 9000)], [5, 19, 30]);
        assert_eq!([pause(51, 1), pause(51, 1000), pause(51, 9000)], [2, 4, 30]);
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
