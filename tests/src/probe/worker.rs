//! The inside of `lb-probe`: reads requests, does them, answers.

use std::collections::HashMap;
use std::io::{self, BufRead, Write};

use nix::errno::Errno;
use nix::sys::socket::getsockopt;
use nix::{getsockopt_impl, sockopt_impl};
use serde::Serialize;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use super::client::{Client, at, name};
use super::load::{Load, attempt};
use super::options::Attempt;
use super::protocol::{Failure, Handle, Opened, Request, Step};
use super::server::Server;
use super::{hold, survey, transfer};

sockopt_impl!(
    /// `SO_NETNS_COOKIE`, Linux 5.14.
    NetnsCookie,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_NETNS_COOKIE,
    u64
);

/// Serves requests, one JSON value per line, until `input` ends.
///
/// Errors are those of `input` and `output`; a line that is no request is answered with a failure.
pub fn run(input: impl BufRead, mut output: impl Write) -> io::Result<()> {
    let mut worker = Worker::default();
    for line in input.lines() {
        let result = serde_json::from_str(&line?)
            .map_err(|error| Failure::new(Step::Request, error.to_string()))
            .and_then(|request| worker.answer(request));
        let mut answer = serde_json::to_vec(&result)?;
        answer.push(b'\n');
        output.write_all(&answer)?;
        output.flush()?;
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Worker {
    last: u64,
    held: HashMap<Handle, Held>,
}

#[derive(Debug)]
enum Held {
    Client(Client),
    Server(Server),
    Load(Load),
    Connections(hold::Held),
}

impl Worker {
    fn answer(&mut self, request: Request) -> Result<Value, Failure> {
        match request {
            Request::Serve(serve) => {
                let server = Server::start(&serve)?;
                let local = server.local();
                let handle = self.keep(Held::Server(server));
                value(Opened { handle, local, peer: None })
            }
            Request::Tcp(tcp) => value(attempt(&Attempt::Tcp(tcp))?),
            Request::Udp(udp) => value(attempt(&Attempt::Udp(udp))?),
            Request::TcpOpen(tcp) => self.open(Client::tcp(&tcp)?),
            Request::UdpOpen(udp) => self.open(Client::udp(&udp)?),
            Request::Send { handle, to, text } => value(self.client(handle)?.send(to, &text)?),
            Request::Receive { handle } => value(self.client(handle)?.receive()?),
            Request::Reconnect { handle, to } => {
                let client = self.client(handle)?;
                client.connect(to)?;
                value(client.opened(handle)?)
            }
            Request::Names { handle } => match self.held.get(&handle) {
                Some(Held::Client(client)) => value(client.opened(handle)?),
                Some(Held::Server(server)) => value(Opened { handle, local: server.local(), peer: None }),
                _ => Err(unknown()),
            },
            Request::Close { handle } => {
                self.held.remove(&handle).ok_or_else(unknown)?;
                value(())
            }
            Request::Begin(many) => {
                let load = Load::start(&many)?;
                value(self.keep(Held::Load(load)))
            }
            Request::Tally { handle } => value(self.load(handle)?.tally()),
            Request::Await { handle } => {
                let tally = self.load(handle)?.wait();
                self.held.remove(&handle);
                value(tally)
            }
            Request::Finish { handle } => {
                let tally = self.load(handle)?.stop();
                self.held.remove(&handle);
                value(tally)
            }
            Request::Survey(survey) => value(survey::run(&survey)?),
            Request::Transfers(transfers) => value(transfer::run(&transfers)),
            Request::Hold(hold) => {
                let handle = hold.into.unwrap_or_else(|| self.keep(Held::Connections(hold::Held::default())));
                let holding = self.connections(handle)?.open(&hold)?;
                value((handle, holding))
            }
            Request::Check { handle } => value(self.connections(handle)?.check()),
            Request::NetnsCookie => value(netns_cookie()?),
        }
    }

    fn open(&mut self, client: Client) -> Result<Value, Failure> {
        let handle = Handle(self.last + 1);
        let opened = client.opened(handle)?;
        self.keep(Held::Client(client));
        value(opened)
    }

    fn keep(&mut self, held: Held) -> Handle {
        self.last += 1;
        self.held.insert(Handle(self.last), held);
        Handle(self.last)
    }

    fn client(&mut self, handle: Handle) -> Result<&mut Client, Failure> {
        match self.held.get_mut(&handle) {
            Some(Held::Client(client)) => Ok(client),
            _ => Err(unknown()),
        }
    }

    fn connections(&self, handle: Handle) -> Result<&hold::Held, Failure> {
        match self.held.get(&handle) {
            Some(Held::Connections(connections)) => Ok(connections),
            _ => Err(unknown()),
        }
    }

    fn load(&mut self, handle: Handle) -> Result<&mut Load, Failure> {
        match self.held.get_mut(&handle) {
            Some(Held::Load(load)) => Ok(load),
            _ => Err(unknown()),
        }
    }
}

fn netns_cookie() -> Result<u64, Failure> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).map_err(at(Step::Socket))?;
    getsockopt(&socket, NetnsCookie).map_err(|errno: Errno| Failure::new(Step::Socket, name(errno)))
}

fn unknown() -> Failure {
    Failure::new(Step::Request, "no such handle, or of another kind")
}

fn value(answer: impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(answer).map_err(|error| Failure::new(Step::Request, error.to_string()))
}
