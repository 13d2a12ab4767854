//! Many connections that stay open.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Protocol, Type};

use super::client::{at, prepare};
use super::options::{Hold, Via};
use super::protocol::{Failure, Holding, Step};

/// Source ports of connections from given addresses.
const LOWEST_PORT: u16 = 1024;
const PORTS: u16 = 64_000;

/// What each connection says and hears again.
const BYTE: [u8; 1] = [42];

/// Connections that are kept.
#[derive(Debug, Default)]
pub(super) struct Held {
    streams: Mutex<VecDeque<TcpStream>>,
    /// How many have been begun.
    begun: AtomicU64,
}

impl Held {
    /// Opens further ones, and returns when all have been opened.
    pub(super) fn open(&self, hold: &Hold) -> Result<Holding, Failure> {
        raise_limit()?;
        let (started, failed) = (AtomicU64::new(0), Mutex::<BTreeMap<String, u64>>::default());
        let before = self.begun.fetch_add(hold.count, Ordering::Relaxed);
        let begin = Instant::now();
        thread::scope(|scope| {
            for _ in 0..hold.threads {
                scope.spawn(|| {
                    loop {
                        let number = started.fetch_add(1, Ordering::Relaxed);
                        if number >= hold.count {
                            return;
                        }
                        if let Some(due) = (number * 1_000_000).checked_div(hold.per_second) {
                            thread::sleep(Duration::from_micros(due).saturating_sub(begin.elapsed()));
                        }
                        match connect(hold, before + number) {
                            Ok(stream) => self.keep(stream, hold.keep),
                            Err(failure) => {
                                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                                *failed.entry(failure.to_string()).or_default() += 1;
                            }
                        }
                    }
                });
            }
        });
        let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        let took_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        let alive = self.lock().len() as u64;
        Ok(Holding { alive, failed, took_ms })
    }

    /// Lets each connection that is left say something; those that hear nothing are dropped.
    pub(super) fn check(&self) -> Holding {
        let begin = Instant::now();
        let mut failed = BTreeMap::<String, u64>::new();
        let mut streams = self.lock();
        streams.retain_mut(|stream| match exchange(stream) {
            Ok(()) => true,
            Err(failure) => {
                *failed.entry(failure.to_string()).or_default() += 1;
                false
            }
        });
        let took_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        Holding { alive: streams.len() as u64, failed, took_ms }
    }

    fn keep(&self, stream: TcpStream, most: u64) {
        let oldest = {
            let mut streams = self.lock();
            streams.push_back(stream);
            if streams.len() as u64 > most { streams.pop_front() } else { None }
        };
        drop(oldest);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<TcpStream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn connect(hold: &Hold, number: u64) -> Result<TcpStream, Failure> {
    let addresses = hold.from.len().max(1) as u64;
    let from = hold.from.get(usize::try_from(number % addresses).unwrap_or_default());
    // All of them in turn: the kernel takes long to find one of the last free ones.
    let port = u16::try_from(number / addresses % u64::from(PORTS)).unwrap_or_default() + LOWEST_PORT;
    let bind = from.map(|from: &IpAddr| (*from, port).into());
    let via = Via { bind, timeout_ms: hold.timeout_ms, ..Via::default() };
    let socket = prepare(Type::STREAM, Protocol::TCP, hold.to, &via)?;
    socket.connect(&hold.to.into()).map_err(at(Step::Connect))?;
    let mut stream = TcpStream::from(socket);
    exchange(&mut stream)?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream) -> Result<(), Failure> {
    stream.write_all(&BYTE).map_err(at(Step::Send))?;
    let mut heard = [0];
    match stream.read(&mut heard).map_err(at(Step::Receive))? {
        0 => Err(Failure::new(Step::Receive, "EOF")),
        _ if heard == BYTE => Ok(()),
        _ => Err(Failure::new(Step::Receive, "FOREIGN")),
    }
}

/// Sends every byte back, until `stopped` closes.
pub(super) fn echo(listener: &TcpListener, stopped: &UnixStream) -> io::Result<()> {
    const LISTENER: u64 = 0;
    const STOPPED: u64 = 1;
    drop(raise_limit());
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    epoll.add(stopped, EpollEvent::new(EpollFlags::EPOLLIN, STOPPED))?;
    let mut streams = HashMap::new();
    let mut next = STOPPED;
    let mut events = vec![EpollEvent::empty(); 256];
    loop {
        let count = epoll.wait(&mut events, EpollTimeout::NONE)?;
        for event in &events[..count] {
            match event.data() {
                STOPPED => return Ok(()),
                LISTENER => {
                    while let Ok((stream, _)) = listener.accept() {
                        stream.set_nonblocking(true)?;
                        next += 1;
                        epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, next))?;
                        streams.insert(next, stream);
                    }
                }
                number => {
                    if streams.get_mut(&number).is_some_and(|stream| !send_back(stream)) {
                        // Closing it takes it out of the set.
                        streams.remove(&number);
                    }
                }
            }
        }
    }
}

/// False if the connection is over.
fn send_back(stream: &mut TcpStream) -> bool {
    let mut bytes = [0; 64];
    match stream.read(&mut bytes) {
        Ok(0) => false,
        Ok(count) => stream.write_all(&bytes[..count]).is_ok(),
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

/// As many descriptors as this process may have.
fn raise_limit() -> Result<(), Failure> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit { current: maximum, maximum };
    setrlimit(Resource::Nofile, limit).map_err(|errno| at(Step::Socket)(errno.into()))
}
