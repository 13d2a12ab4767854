//! Who runs where.

use std::thread;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::timer::TimerSetTimeFlags;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags};
use nix::time::{self, clock_gettime};
use nix::unistd::Pid;

use crate::shared::Shared;

/// Timers that expire together, and how many watch each of them.
const TIMERS: usize = 256;
const WATCHERS: usize = 64;

/// How long setting all timers may take.
const ARMED: Duration = Duration::from_micros(500);

/// From one halt to the next, without the halt.
const PAUSE: Duration = Duration::from_millis(2);

/// The first two processors that this process may use.
fn cpus() -> Option<(usize, usize)> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let mut all = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu) == Ok(true));
    Some((all.next()?, all.next()?))
}

fn on<R>(cpu: Option<usize>, work: impl FnOnce() -> R) -> R {
    if let Some(cpu) = cpu {
        let mut set = CpuSet::new();
        set.set(cpu).unwrap();
        sched_setaffinity(Pid::from_raw(0), &set).unwrap();
    }
    work()
}

/// Runs the writer on a processor of its own, if there is more than one.
pub(crate) fn on_writer<R>(work: impl FnOnce() -> R) -> R {
    on(cpus().map(|(first, _)| first), work)
}

/// Runs all readers on another one.
pub(crate) fn on_reader<R>(work: impl FnOnce() -> R) -> R {
    on(cpus().map(|(_, second)| second), work)
}

/// Halts its own processor for a millisecond or two, wherever that is at the time, again and again until the test is over.
///
/// A program takes less than a microsecond and is hardly ever preempted, so without this nobody would stand between two
/// of its look-ups while the writer makes a change. Real machines have such moments: interrupts, and hosts that take a
/// virtual processor away. Here all timers expire in one interrupt, and each of them has many to tell of it.
pub(crate) fn halt(shared: &Shared) {
    let timers: Vec<TimerFd> = (0..TIMERS)
        .map(|_| TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC).unwrap())
        .collect();
    let watchers: Vec<Epoll> =
        (0..WATCHERS).map(|_| Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap()).collect();
    for (timer, watcher) in timers.iter().flat_map(|timer| watchers.iter().map(move |it| (timer, it))) {
        watcher.add(timer, EpollEvent::new(EpollFlags::EPOLLIN, 0)).unwrap();
    }
    while !shared.is_over() {
        let now = Duration::from(clock_gettime(time::ClockId::CLOCK_MONOTONIC).unwrap());
        let then = Expiration::OneShot((now + ARMED).into());
        for timer in &timers {
            timer.set(then, TimerSetTimeFlags::TFD_TIMER_ABSTIME).unwrap();
        }
        thread::sleep(PAUSE);
    }
}
