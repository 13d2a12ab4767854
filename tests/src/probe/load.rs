//! Many attempts in the background, counted.

use std::mem;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::client::Client;
use super::options::{Attempt, Many};
use super::protocol::{Failure, Reached, Step, Tally};

/// A running or ended load. Dropping it stops it.
#[derive(Debug)]
pub(super) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    many: Many,
    start: Instant,
    started: AtomicU64,
    is_stopped: AtomicBool,
    tally: Mutex<Tally>,
}

impl Load {
    /// Starts the threads.
    pub(super) fn start(many: &Many) -> Result<Self, Failure> {
        let is_bounded = (1..=Many::MAX_COUNT).contains(&many.count)
            && Duration::from_millis(many.for_ms) <= Many::MAX_TIME
            && (1..=Many::MAX_THREADS).contains(&many.threads);
        if !is_bounded {
            return Err(Failure::new(Step::Request, "the load exceeds its bounds"));
        }
        let shared = Arc::new(Shared {
            many: many.clone(),
            start: Instant::now(),
            started: AtomicU64::new(0),
            is_stopped: AtomicBool::new(false),
            tally: Mutex::default(),
        });
        let threads = (0..many.threads)
            .map(|_| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || shared.work())
            })
            .collect();
        Ok(Self { shared, threads })
    }

    /// The counts so far.
    pub(super) fn tally(&self) -> Tally {
        let mut tally = self.shared.tally.lock().unwrap_or_else(PoisonError::into_inner).clone();
        tally.is_done = self.threads.iter().all(JoinHandle::is_finished);
        tally.elapsed_ms = if tally.is_done { tally.elapsed_ms } else { self.shared.elapsed_ms() };
        tally
    }

    /// Waits until the bounds are reached.
    pub(super) fn wait(&mut self) -> Tally {
        for thread in mem::take(&mut self.threads) {
            // A panic has printed itself; the attempts counted so far are still true.
            drop(thread.join());
        }
        self.tally()
    }

    /// Stops after the attempts under way.
    pub(super) fn stop(&mut self) -> Tally {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
        self.wait()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn work(&self) {
        let end = Duration::from_millis(self.many.for_ms);
        while !self.is_stopped.load(Ordering::Relaxed)
            && self.start.elapsed() < end
            && self.started.fetch_add(1, Ordering::Relaxed) < self.many.count
        {
            let begin = Instant::now();
            let result = attempt(&self.many.attempt);
            self.count(result, begin.elapsed());
            if self.many.pause_us > 0 {
                thread::sleep(Duration::from_micros(self.many.pause_us));
            }
        }
    }

    fn count(&self, result: Result<Reached, Failure>, took: Duration) {
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.elapsed_ms = self.elapsed_ms();
        match result {
            Ok(reached) => {
                *tally.answered.entry(reached.server().to_owned()).or_default() += 1;
                let peer = reached.peer.or(reached.from).as_ref().map(SocketAddr::to_string);
                *tally.peers.entry(peer.unwrap_or_default()).or_default() += 1;
                let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                tally.slowest_us = tally.slowest_us.max(took);
            }
            Err(failure) => {
                let what = failure.to_string();
                if tally.first_failures.len() < Tally::KEPT_FAILURES {
                    let at = tally.elapsed_ms;
                    tally.first_failures.push((at, what.clone()));
                }
                *tally.failed.entry(what).or_default() += 1;
            }
        }
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// A new socket, from its first system call to its last but close().
pub(super) fn attempt(attempt: &Attempt) -> Result<Reached, Failure> {
    match attempt {
        Attempt::Tcp(tcp) => Client::tcp(tcp)?.reach(tcp.silent),
        Attempt::Udp(udp) => Client::udp(udp)?.reach(false),
    }
}
