//! Grace periods of this kernel, waited for by a thread of their own: each takes several milliseconds.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::Duration,
};

use tracing::{error, info};

use super::{Grace, MapError, Op, sys::GraceMap};

/// Pauses before a wait that the kernel refused is tried again: the first one, and the longest they grow to. A new request is
/// tried at once.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What the kernel refuses, one time after the other.
#[derive(Debug, Default)]
struct Refusals {
    /// The errno that was said last.
    said: Option<i32>,
    pause: Duration,
}

impl Refusals {
    /// Whether this one is to be said, because it has another cause than the one before, and how long to pause.
    fn next(&mut self, error: &io::Error) -> (bool, Duration) {
        let cause = error.raw_os_error().unwrap_or_default();
        let is_new = self.said.replace(cause) != Some(cause);
        self.pause = (self.pause * 2).clamp(PAUSES.0, PAUSES.1);
        (is_new, self.pause)
    }
}

/// How far the waiting thread is.
#[derive(Debug, Default)]
struct Progress {
    /// Highest ticket that has passed.
    ticket: u64,
    /// Why the one after it cannot pass now.
    failure: Option<io::Error>,
}

/// What the waiting thread shares.
#[derive(Debug, Default)]
struct Passed {
    progress: Mutex<Progress>,
    changed: Condvar,
}

impl Passed {
    fn get(&self) -> u64 {
        self.lock().ticket
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

/// What errors call it.
const MAP: &str = "array of maps for grace periods";

/// RCU grace periods of this kernel.
pub struct KernelGrace {
    requested: u64,
    requests: Sender<u64>,
    passed: Arc<Passed>,
}

impl KernelGrace {
    /// Starts the waiting thread. `on_passed` is called on it whenever grace periods have passed.
    ///
    /// # Errors
    /// Creating the maps needs `CAP_BPF`.
    pub fn start(on_passed: impl Fn() + Send + 'static) -> Result<Self, MapError> {
        let failed = |errno| MapError::Kernel { map: MAP, op: Op::Create, errno };
        let map = GraceMap::create().map_err(failed)?;
        let passed = Arc::new(Passed::default());
        // The sender allows one request per plan, and plans wait for nothing, so a bound would only add a deadlock.
        let (requests, wanted) = channel();
        let shared = Arc::clone(&passed);
        thread::Builder::new()
            .name("grace".into())
            .spawn(move || wait_for_all(|| map.wait(), &wanted, &shared, &on_passed))
            .map_err(failed)?;
        Ok(Self { requested: 0, requests, passed })
    }
}

/// Waits once for all requests that have come until then. Nothing is reused without a grace period, so what the kernel
/// refuses is tried until it succeeds or nobody asks any more.
fn wait_for_all(
    wait: impl Fn() -> io::Result<()>,
    wanted: &Receiver<u64>,
    passed: &Passed,
    on_passed: &impl Fn(),
) {
    while let Ok(first) = wanted.recv() {
        let mut ticket = wanted.try_iter().last().unwrap_or(first);
        let mut refusals = Refusals::default();
        while let Err(errno) = wait() {
            let (is_new, pause) = refusals.next(&errno);
            if is_new {
                error!(%errno, "cannot wait for a grace period, freed slots stay unused; trying again after growing pauses");
            }
            passed.set(|progress| progress.failure = Some(errno));
            match wanted.recv_timeout(pause) {
                Ok(next) => ticket = next,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        if refusals.said.is_some() {
            info!("grace periods pass again");
        }
        passed.set(|progress| *progress = Progress { ticket, failure: None });
        on_passed();
    }
}

impl Grace for KernelGrace {
    fn request(&mut self) -> u64 {
        self.requested += 1;
        // The receiver lives as long as its thread, which ends only when this sender is dropped.
        if self.requests.send(self.requested).is_err() {
            error!("the grace thread has ended, freed slots stay unused");
        }
        self.requested
    }

    fn passed(&self) -> u64 {
        self.passed.get()
    }

    fn wait(&mut self, ticket: u64) -> Result<(), MapError> {
        let mut now = self.passed.lock();
        while now.ticket < ticket {
            if let Some(failure) = now.failure.take() {
                return Err(MapError::Kernel { map: MAP, op: Op::Wait, errno: failure });
            }
            now = self.passed.changed.wait(now).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_refusal_is_said_once_for_each_cause_and_tried_again_after_growing_pauses() {
        let mut refusals = Refusals::default();
        let causes =
            [libc::ENOMEM, libc::ENOMEM, libc::EPERM, libc::EPERM, libc::ENOMEM, libc::ENOMEM, libc::ENOMEM];
        let answers = causes.map(|errno| refusals.next(&io::Error::from_raw_os_error(errno)));
        assert_eq!(answers.map(|(is_new, _)| is_new), [true, false, true, false, true, false, false]);
        assert_eq!(answers.map(|(_, pause)| pause.as_secs()), [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn a_wait_that_the_kernel_refuses_ends_with_its_reason_and_passes_when_it_can() {
        let passed = Arc::new(Passed::default());
        let (requests, wanted) = channel();
        let works = Arc::new(AtomicBool::new(false));
        let wait = {
            let works = Arc::clone(&works);
            move || {
                let refused = || io::Error::from_raw_os_error(libc::ENOMEM);
                works.load(Ordering::Relaxed).then_some(()).ok_or_else(refused)
            }
        };
        let shared = Arc::clone(&passed);
        let thread = thread::spawn(move || wait_for_all(wait, &wanted, &shared, &|| {}));
        let mut grace = KernelGrace { requested: 0, requests, passed };
        let ticket = grace.request();
        let error = grace.wait(ticket).unwrap_err().to_string();
        assert!(error.contains("grace periods"), "{error}");
        assert_eq!(grace.passed(), 0);
        works.store(true, Ordering::Relaxed);
        // Another request wakes the thread before its pause is over; a failure may still be on its way.
        let ticket = grace.request();
        while grace.wait(ticket).is_err() {}
        assert_eq!(grace.passed(), ticket);
        drop(grace);
        thread.join().unwrap();
    }
}
