//! The load: connect, one byte there and back, reset. Client and server are processes of their own, pinned to one CPU.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::socket::{setsockopt, sockopt::Linger},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use super::stats::quantile;

/// A connection that took longer has been stalled by something else than work.
const STALL: Duration = Duration::from_millis(100);
/// A connection that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(3);

/// What one round of the client saw.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Round {
    /// Connections per second, connect to reset, stalled ones left out.
    pub rate: f64,
    /// connect() in microseconds.
    pub p50: f64,
    /// connect() in microseconds.
    pub p95: f64,
    /// connect() in microseconds.
    pub p99: f64,
    /// Connections that took more than 100 ms.
    pub stalls: u64,
    /// Connections that failed.
    pub failures: u64,
}

/// Pins this process to a CPU.
///
/// # Errors
/// There is no such CPU.
pub fn pin(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).with_context(|| format!("cannot pin to CPU {cpu}"))
}

/// Echoes one byte per connection, for ever.
///
/// # Errors
/// An address cannot be bound.
pub fn serve(addrs: &[SocketAddr]) -> Result<()> {
    let listeners: Vec<TcpListener> = addrs
        .iter()
        .map(|addr| TcpListener::bind(addr).with_context(|| format!("cannot listen on {addr}")))
        .collect::<Result<_>>()?;
    println!("ready");
    thread::scope(|scope| {
        for listener in &listeners {
            scope.spawn(move || {
                for stream in listener.incoming().filter_map(Result::ok) {
                    echo(stream);
                }
            });
        }
    });
    Ok(())
}

fn echo(mut stream: TcpStream) {
    let mut byte = [0];
    if stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {
        // The client resets; its reset ends this.
        drop(stream.read(&mut byte));
    }
}

/// Connects to `targets` in turn for `time`.
///
/// # Errors
/// No connection succeeded.
pub fn load(targets: &[SocketAddr], time: Duration) -> Result<Round> {
    ensure!(!targets.is_empty(), "no target");
    let begin = Instant::now();
    let (mut done, mut stalls, mut failures) = (0_u64, 0_u64, 0_u64);
    let mut stalled = Duration::ZERO;
    let mut connects = Vec::with_capacity(200_000);
    while begin.elapsed() < time {
        #[expect(clippy::cast_possible_truncation, reason = "an index")]
        let to = targets[(done + failures) as usize % targets.len()];
        let start = Instant::now();
        if let Ok(connect) = once(to) {
            done += 1;
            let whole = start.elapsed();
            if whole > STALL {
                stalls += 1;
                stalled += whole;
            } else {
                connects.push(connect.as_secs_f64() * 1e6);
            }
        } else {
            failures += 1;
            stalled += start.elapsed();
        }
    }
    ensure!(done > 0, "no connection to {targets:?} succeeded");
    connects.sort_by(f64::total_cmp);
    let busy = begin.elapsed().saturating_sub(stalled).as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a count of connections")]
    let rate = connects.len() as f64 / busy;
    let [p50, p95, p99] = [0.5, 0.95, 0.99].map(|fraction| quantile(&connects, fraction));
    Ok(Round { rate, p50, p95, p99, stalls, failures })
}

/// One connection; returns what connect() took.
fn once(to: SocketAddr) -> Result<Duration> {
    let start = Instant::now();
    let mut stream = TcpStream::connect_timeout(&to, LIMIT)?;
    let connect = start.elapsed();
    // A reset leaves no TIME_WAIT, so that ports do not run out.
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&stream.as_fd(), Linger, &linger)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(&[1])?;
    stream.read_exact(&mut [0])?;
    Ok(connect)
}
