//! The load: connect, one byte there and back, reset; or requests over open connections, or in datagrams. Client and server are processes
//! of their own, pinned to one CPU.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
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

/// Bytes of a request and of its answer.
const REQUEST: [u8; 32] = [b'q'; 32];
/// Requests before those that are timed: both directions of a flow are known by then.
const FIRST: u64 = 64;

/// What one round of the client saw, of connections or of requests.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Round {
    /// How many per second, stalled ones left out. A connection is one from connect to reset.
    pub rate: f64,
    /// connect(), or one request, in microseconds.
    pub p50: f64,
    /// The same.
    pub p95: f64,
    /// The same.
    pub p99: f64,
    /// Those that took more than 100 ms.
    pub stalls: u64,
    /// Those that failed.
    pub failures: u64,
}

/// What is done again and again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Asking {
    /// A request on each of so many open connections, then the answers.
    Tcp(u16),
    /// A datagram and its answer by one socket, which is not connected.
    UdpFixed,
    /// The same by a new socket each time, and so from a new port, as resolvers ask.
    UdpFresh,
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
    let mut targets = targets.iter().cycle();
    again(time, 1, || targets.next().map(|to| once(*to)))
}

/// Does something until `time` has passed; each time, `parts` of what is counted.
fn again(time: Duration, parts: u16, mut once: impl FnMut() -> Option<Result<Duration>>) -> Result<Round> {
    let begin = Instant::now();
    let (mut done, mut stalls, mut failures) = (0_u64, 0_u64, 0_u64);
    let mut stalled = Duration::ZERO;
    let mut seen = Vec::with_capacity(200_000);
    let mut last = None;
    while begin.elapsed() < time {
        let start = Instant::now();
        match once().context("nothing to do")? {
            Ok(took) => {
                done += 1;
                let whole = start.elapsed();
                if whole > STALL {
                    stalls += 1;
                    stalled += whole;
                } else {
                    seen.push(took.as_secs_f64() * 1e6);
                }
            }
            Err(error) => {
                failures += 1;
                stalled += start.elapsed();
                last = Some(error);
            }
        }
    }
    ensure!(done > 0, "nothing succeeded: {last:?}");
    seen.sort_by(f64::total_cmp);
    let busy = begin.elapsed().saturating_sub(stalled).as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a count of connections")]
    let rate = seen.len() as f64 * f64::from(parts) / busy;
    let [p50, p95, p99] = [0.5, 0.95, 0.99].map(|fraction| quantile(&seen, fraction));
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

/// Answers requests over any number of connections, and datagrams, for ever.
///
/// # Errors
/// An address cannot be bound.
pub fn answer(addrs: &[SocketAddr]) -> Result<()> {
    let mut sockets = Vec::new();
    for addr in addrs {
        let why = || format!("cannot listen on {addr}");
        sockets.push((TcpListener::bind(addr).with_context(why)?, UdpSocket::bind(addr).with_context(why)?));
    }
    println!("ready");
    thread::scope(|scope| {
        for (listener, socket) in &sockets {
            scope.spawn(move || answer_datagrams(socket));
            scope.spawn(move || {
                for stream in listener.incoming().filter_map(Result::ok) {
                    thread::spawn(move || answer_stream(stream));
                }
            });
        }
    });
    Ok(())
}

fn answer_stream(mut stream: TcpStream) {
    let mut request = REQUEST;
    if stream.set_nodelay(true).is_ok() {
        while stream.read_exact(&mut request).is_ok() && stream.write_all(&request).is_ok() {}
    }
}

fn answer_datagrams(socket: &UdpSocket) {
    let mut request = REQUEST;
    loop {
        if let Ok((len, from)) = socket.recv_from(&mut request) {
            drop(socket.send_to(&request[..len], from));
        }
    }
}

/// Asks `to` for `time`.
///
/// # Errors
/// No request was answered.
pub fn ask(to: SocketAddr, asking: Asking, time: Duration) -> Result<Round> {
    match asking {
        Asking::Tcp(count) => {
            let connect = |_| -> Result<_> {
                let stream = TcpStream::connect_timeout(&to, LIMIT)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(LIMIT))?;
                Ok(stream)
            };
            let mut streams = (0..count).map(connect).collect::<Result<Vec<_>>>()?;
            for _ in 0..FIRST {
                ask_all(&mut streams)?;
            }
            again(time, count, || Some(ask_all(&mut streams)))
        }
        Asking::UdpFixed => {
            let socket = socket(to)?;
            for _ in 0..FIRST {
                ask_once(&socket, to)?;
            }
            again(time, 1, || Some(ask_once(&socket, to)))
        }
        Asking::UdpFresh => again(time, 1, || Some(socket(to).and_then(|socket| ask_once(&socket, to)))),
    }
}

/// One request on each connection.
fn ask_all(streams: &mut [TcpStream]) -> Result<Duration> {
    let start = Instant::now();
    for stream in &mut *streams {
        stream.write_all(&REQUEST)?;
    }
    let mut answer = REQUEST;
    streams.iter_mut().try_for_each(|stream| stream.read_exact(&mut answer))?;
    Ok(start.elapsed())
}

/// A socket that is connected to nobody.
fn socket(to: SocketAddr) -> Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(LIMIT))?;
    Ok(socket)
}

/// One datagram, whose answer has to come from whom it was sent to.
fn ask_once(socket: &UdpSocket, to: SocketAddr) -> Result<Duration> {
    let start = Instant::now();
    socket.send_to(&REQUEST, to)?;
    let (_, from) = socket.recv_from(&mut [0; REQUEST.len()])?;
    ensure!(from == to, "{to} was asked, {from} answered");
    Ok(start.elapsed())
}
