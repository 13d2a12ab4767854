//! Many bytes over a connection, each of which is looked at.
//!
//! The client says what it wants in a header; the bytes of both directions are those of one pattern. The server ends with a
//! trailer: how many bytes it has received, if all of them were right.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use super::client::{at, prepare};
use super::options::{Ends, Transfers};
use super::protocol::{Failure, Moved, Step};
use super::server::wait;

/// A prime: what is lost or comes twice moves all bytes behind it to places where others belong.
const PATTERN: usize = 65_521;
/// Bytes of a header: how many bytes the client wants, and [`Ends`].
const HEADER: usize = 16;
/// Bytes of a trailer.
const TRAILER: u64 = 8;
/// In a trailer: something was not what it should be.
const WRONG: u64 = u64::MAX;
/// How long the server waits for each step of a client.
const PATIENCE: Duration = Duration::from_secs(30);

/// Does all transfers at the same time.
pub(super) fn run(transfers: &Transfers) -> Vec<Result<Moved, Failure>> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..transfers.flows).map(|_| scope.spawn(|| one(transfers))).collect();
        let lost = |_| Err(Failure::new(Step::Request, "a thread has panicked"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(lost)).collect()
    })
}

fn one(transfers: &Transfers) -> Result<Moved, Failure> {
    let Transfers { to, via, up, down, ends, .. } = transfers;
    let socket = prepare(socket2::Type::STREAM, socket2::Protocol::TCP, *to, via)?;
    socket.connect(&(*to).into()).map_err(at(Step::Connect))?;
    let mut stream = TcpStream::from(socket);
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(&down.to_le_bytes());
    header[8] = *ends as u8;
    stream.write_all(&header).map_err(at(Step::Send))?;
    let mut sender = stream.try_clone().map_err(at(Step::Socket))?;
    let send_all = move || -> io::Result<()> {
        if *ends == Ends::Server {
            return Ok(());
        }
        send(&mut sender, *up)?;
        sender.shutdown(Shutdown::Write)
    };
    let received = thread::scope(|scope| {
        let sending = scope.spawn(send_all);
        let received = receive(&mut stream, Some(*down + TRAILER));
        let sent = sending.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
        sent.map_err(at(Step::Send))?;
        received.map_err(at(Step::Receive))
    })?;
    match received {
        Received { right: true, count, trailer: Some(confirmed) } if confirmed != WRONG => {
            Ok(Moved { up: confirmed, down: count })
        }
        received => Err(Failure::new(Step::Receive, format!("{received:?} of {down}"))),
    }
}

/// Serves transfers until `stopped` closes, each in a thread of its own.
pub(super) fn serve(listener: &TcpListener, stopped: &UnixStream) {
    while !wait(&[stopped.as_fd(), listener.as_fd()])[0] {
        if let Ok((stream, _)) = listener.accept() {
            // The client sees what goes wrong.
            thread::spawn(move || drop(answer(stream)));
        }
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    let [a, b, c, d, e, f, g, h, ends, ..] = header;
    let down = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let mut sender = stream.try_clone()?;
    if ends == Ends::Server as u8 {
        send(&mut sender, down)?;
        return sender.write_all(&0_u64.to_le_bytes());
    }
    let early = (ends == Ends::Both as u8).then(|| thread::spawn(move || send(&mut sender, down)));
    let Received { right, count, .. } = receive(&mut stream, None)?;
    match early {
        Some(sending) => sending.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))?,
        None => send(&mut stream, down)?,
    }
    stream.write_all(&if right { count } else { WRONG }.to_le_bytes())
}

/// What came before the other end was done.
#[derive(Debug)]
struct Received {
    right: bool,
    /// Without a trailer.
    count: u64,
    trailer: Option<u64>,
}

fn pattern() -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    };
    (0..PATTERN).map(next).collect::<Vec<u8>>().repeat(2)
}

fn send(stream: &mut impl Write, count: u64) -> io::Result<()> {
    let pattern = pattern();
    let mut left = count;
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(PATTERN).min(PATTERN);
        stream.write_all(&pattern[..now])?;
        left -= now as u64;
    }
    Ok(())
}

/// Reads to the end. With `expected` bytes, the last ones are a trailer.
fn receive(stream: &mut impl Read, expected: Option<u64>) -> io::Result<Received> {
    let pattern = pattern();
    let body = expected.map_or(u64::MAX, |expected| expected - TRAILER);
    let mut received = Received { right: true, count: 0, trailer: None };
    let (mut chunk, mut trailer) = (vec![0; PATTERN], Vec::new());
    loop {
        let read = stream.read(&mut chunk)?;
        if read == 0 {
            break;
        }
        let in_body = usize::try_from(body - received.count).unwrap_or(read).min(read);
        let place = usize::try_from(received.count % PATTERN as u64).unwrap_or_default();
        received.right &= chunk[..in_body] == pattern[place..place + in_body];
        received.count += in_body as u64;
        trailer.extend_from_slice(&chunk[in_body..read]);
    }
    received.trailer = trailer.try_into().ok().map(u64::from_le_bytes);
    Ok(received)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_byte_and_a_wrong_one_are_noticed() {
        let mut sent = Vec::new();
        send(&mut sent, 200_000).unwrap();
        let right = |bytes: &[u8]| receive(&mut &*bytes, None).unwrap().right;
        assert!(right(&sent) && sent.len() == 200_000);
        let mut lost = sent.clone();
        lost.remove(70_000);
        assert!(!right(&lost));
        sent[199_999] ^= 1;
        assert!(!right(&sent));
    }
}
