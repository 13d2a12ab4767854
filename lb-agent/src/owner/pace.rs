//! When the owner works: not too often while changes keep coming (SY-2), not too often while writing fails (SY-3).
//! Pure.

use std::time::{Duration, Instant};

/// Pause after the first failure, and the shortest one there is; it doubles with each one.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// When changes are due: the first one at once, later ones together when the interval has passed.
#[derive(Debug)]
pub(super) struct Pace {
    interval: Duration,
    last: Option<Instant>,
    is_holding: bool,
}

impl Pace {
    /// One pass per `interval` at most.
    pub(super) const fn new(interval: Duration) -> Self {
        Self { interval, last: None, is_holding: false }
    }

    /// Whether changes may be written `now`; if not, they are held back.
    pub(super) fn allows(&mut self, now: Instant) -> bool {
        self.is_holding = !self.rest(now).is_zero();
        !self.is_holding
    }

    /// Changes were written.
    pub(super) const fn passed(&mut self, now: Instant) {
        self.last = Some(now);
    }

    /// How long changes are held back; nothing if there are none.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        self.is_holding.then(|| self.rest(now))
    }

    fn rest(&self, now: Instant) -> Duration {
        self.last.map_or(Duration::ZERO, |last| (last + self.interval).saturating_duration_since(now))
    }
}

/// When a failed write is tried again: after pauses that grow to `limit`.
#[derive(Debug)]
pub(super) struct Retry {
    limit: Duration,
    /// The last pause, and when it ends.
    pause: Option<(Duration, Instant)>,
}

impl Retry {
    /// Nothing has failed. Where the limit is too short, each message would have all maps read again.
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit: limit.max(FIRST_RETRY), pause: None }
    }

    /// A write has failed; returns the pause.
    pub(super) fn failed(&mut self, now: Instant) -> Duration {
        let pause = self.pause.map_or(FIRST_RETRY, |(pause, _)| pause * 2).min(self.limit);
        self.pause = Some((pause, now + pause));
        pause
    }

    /// Everything is written.
    pub(super) const fn succeeded(&mut self) {
        self.pause = None;
    }

    /// Whether something may be tried `now`.
    pub(super) fn allows(&self, now: Instant) -> bool {
        self.pause.is_none_or(|(_, end)| now >= end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(100);

    /// SY-2, SY-10: a change that comes alone waits for nothing.
    #[test]
    fn the_first_change_goes_at_once_and_later_ones_together() {
        let (start, mut pace) = (Instant::now(), Pace::new(INTERVAL));
        let at = |millis| start + Duration::from_millis(millis);
        assert!(pace.allows(at(0)));
        assert_eq!(pace.wait(at(0)), None, "nothing is held back");
        pace.passed(at(0));
        for (millis, rest) in [(1, 99), (50, 50), (99, 1)] {
            assert!(!pace.allows(at(millis)));
            assert_eq!(pace.wait(at(millis)), Some(Duration::from_millis(rest)));
        }
        assert!(pace.allows(at(100)));
        pace.passed(at(100));
        assert!(pace.allows(at(1000)), "a lone change");
    }

    #[test]
    fn without_an_interval_nothing_is_held_back() {
        let (now, mut pace) = (Instant::now(), Pace::new(Duration::ZERO));
        pace.passed(now);
        assert!(pace.allows(now));
    }

    /// SY-2, SY-3.
    #[test]
    fn a_failed_write_is_tried_again_within_the_resync_interval() {
        let (now, mut retry) = (Instant::now(), Retry::new(Duration::from_secs(5)));
        assert!(retry.allows(now));
        let pauses: Vec<u64> = (0..5).map(|_| retry.failed(now).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 5, 5]);
        assert!(!retry.allows(now + Duration::from_secs(4)));
        assert!(retry.allows(now + Duration::from_secs(5)));
        retry.succeeded();
        assert!(retry.allows(now));
        assert_eq!(retry.failed(now).as_secs(), 1);
    }

    /// SY-3.
    #[test]
    fn a_pause_is_never_shorter_than_a_second() {
        for limit in [Duration::ZERO, Duration::from_millis(1)] {
            let (now, mut retry) = (Instant::now(), Retry::new(limit));
            assert_eq!((retry.failed(now).as_secs(), retry.failed(now).as_secs()), (1, 1));
            assert!(!retry.allows(now + Duration::from_millis(999)));
        }
    }
}
