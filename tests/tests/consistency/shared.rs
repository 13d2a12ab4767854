//! What writer and readers know of each other, and the judgement over a connection.

use std::array;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::world::{ALL, Kind, Origin, Random, frontend, is_there};

/// Wrong connections after which the test ends.
const ENOUGH: usize = 20;

/// See the module.
pub(crate) struct Shared {
    /// The change of each Service that the writer has begun, and the one that it has finished.
    begun: [AtomicU32; ALL as usize],
    finished: [AtomicU32; ALL as usize],
    /// For each [`Kind`], the first of the Services that are changed most often now.
    hot: [AtomicU32; 4],
    /// For each [`Kind`], the connections that were judged.
    connects: [AtomicU64; 4],
    is_over: AtomicBool,
    wrong: Mutex<Vec<String>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            begun: array::from_fn(|_| AtomicU32::new(0)),
            finished: array::from_fn(|_| AtomicU32::new(0)),
            hot: Kind::ALL.map(|kind| AtomicU32::new(kind.numbers().start)),
            connects: Default::default(),
            is_over: AtomicBool::new(false),
            wrong: Mutex::default(),
        }
    }
}

/// Ends the test when it is dropped.
pub(crate) struct Over<'a>(&'a Shared);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    /// The writer is about to make the next change of a Service; returns its number.
    pub(crate) fn begin(&self, number: u32) -> u32 {
        self.begun[number as usize].fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The maps hold the last change of a Service.
    pub(crate) fn finish(&self, number: u32) {
        let begun = self.begun[number as usize].load(Ordering::SeqCst);
        self.finished[number as usize].store(begun, Ordering::SeqCst);
    }

    /// The change that a call which begins now may find at the earliest.
    pub(crate) fn finished(&self, number: u32) -> u32 {
        self.finished[number as usize].load(Ordering::SeqCst)
    }

    /// Judges a call to Service `number` that began when its change `first` was finished, and ended now, by where it got.
    pub(crate) fn judge(&self, number: u32, first: u32, reached: Result<SocketAddr, String>) {
        let last = self.begun[number as usize].load(Ordering::SeqCst);
        let complaint = match reached {
            Err(error) => error,
            Ok(peer) if peer == frontend(number) => {
                if (first..=last).any(|change| !is_there(number, change)) {
                    return;
                }
                "its address was not translated".to_owned()
            }
            Ok(peer) => match Origin::of(number, peer) {
                Some(origin) if origin.is_there_between(number, first, last) => return,
                Some(origin) => format!("reached {peer}, of its change {}", origin.change),
                None => format!("reached {peer}, which is none of its backends"),
            },
        };
        let mut wrong = self.wrong.lock().unwrap();
        wrong.push(format!(
            "Service {number} ({:?}), between its changes {first} and {last}: {complaint}",
            Kind::of(number)
        ));
        if wrong.len() >= ENOUGH {
            self.is_over.store(true, Ordering::SeqCst);
        }
    }

    /// Counts a connection, and says how many there are of this kind.
    pub(crate) fn count(&self, kind: Kind) -> u64 {
        self.connects[kind as usize].fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Connections of a kind that were judged.
    pub(crate) fn connects(&self, kind: Kind) -> u64 {
        self.connects[kind as usize].load(Ordering::Relaxed)
    }

    /// Panics with every wrong connection.
    pub(crate) fn assert_nothing_wrong(&self) {
        let wrong = self.wrong.lock().unwrap();
        assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    }

    /// The Services of a kind that are changed most often now.
    pub(crate) fn hot(&self, kind: Kind) -> Range<u32> {
        let first = self.hot[kind as usize].load(Ordering::Relaxed);
        first..first + kind.hot()
    }

    /// Chooses other Services to be changed most often.
    pub(crate) fn heat(&self, random: &mut Random) {
        for (hot, kind) in self.hot.iter().zip(Kind::ALL) {
            let Range { start, end } = kind.numbers();
            hot.store(start + kind.hot() * random.below((end - start) / kind.hot()), Ordering::Relaxed);
        }
    }

    /// Whether readers should end.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    /// Ends the test when the value is dropped.
    pub(crate) const fn over_when_dropped(&self) -> Over<'_> {
        Over(self)
    }
}
