//! Plain HTTP for probes and scrapes: listening, and short answers.
//!
//! Header names are spelled as Go spells them, so that an answer is the same as kube-proxy's.

use core::{net::SocketAddr, pin::pin, time::Duration};
use std::{convert::Infallible, io, net::Ipv6Addr, sync::Arc};

use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::Full;
use hyper::{Request, Response, body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::room::{Room, Seat};

/// A whole answer.
pub(super) type Answer = Response<Full<Bytes>>;

/// Answers a request by method and path. It must not block.
pub(super) type Answers = Arc<dyn Fn(&Method, &str) -> Answer + Send + Sync>;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 128;
/// Connections of an address for probes or scrapes at a time. One more ends the one that was silent for longest: probes do not
/// wait for the silent (HZ-3), whatever happens at other addresses.
pub(super) const MOST_CONNECTIONS: usize = 128;
/// The same of all health check node ports together: anybody who reaches the node may connect to them, and a Service more must not
/// be memory more.
pub(super) const MOST_HEALTH_CHECKS: usize = 256;
/// A connection is closed when its next request has not come, or its last answer was not taken, for so long.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most bytes of a request's head. Probes and scrapes send some hundred.
const LONGEST_HEAD: usize = 16 << 10;
/// After a connection could not be accepted, as without file descriptors.
const PAUSE: Duration = Duration::from_millis(200);

/// `text/plain`, as Go writes it.
pub(super) const TEXT: &str = "text/plain; charset=utf-8";
/// `application/json`
pub(super) const JSON: &str = "application/json";

/// Makes an answer. Browsers are told not to guess what it is.
pub(super) fn answer(code: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = code;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// What Go answers to a path that it does not know.
pub(super) fn not_found() -> Answer {
    answer(StatusCode::NOT_FOUND, TEXT, "404 page not found\n")
}

/// Which packets a socket gets that is bound to the unspecified address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Families {
    /// Those of the address's family alone.
    One,
    /// Those of both families, if the machine has them: what `0.0.0.0` means to a Go program.
    Both,
}

/// Listens at an address. Must be called inside a tokio runtime.
///
/// # Errors
/// The kernel's answer.
pub(super) fn listen(at: SocketAddr, families: Families) -> io::Result<TcpListener> {
    if families == Families::Both && at.ip().is_unspecified() {
        match listen_v6((Ipv6Addr::UNSPECIFIED, at.port()).into(), false) {
            Err(error) if has_no_family(&error) => {}
            result => return result,
        }
    }
    match at {
        SocketAddr::V4(_) => {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind(at)?;
            socket.listen(BACKLOG)
        }
        SocketAddr::V6(_) => listen_v6(at, true),
    }
}

fn listen_v6(at: SocketAddr, only: bool) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    rustix::net::sockopt::set_ipv6_v6only(&socket, only)?;
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    socket.listen(BACKLOG)
}

/// Whether the machine does not have the family at all.
pub(super) fn has_no_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

/// Answers until it is dropped; connections end with it. As many are open as `room` has seats for.
pub(super) async fn serve(listener: TcpListener, answers: Answers, room: Arc<Room>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_ended) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(converse(stream, Arc::clone(&answers), PATIENCE, room.enter()));
                }
                // One that was given up while it waited, or no file descriptor for it.
                Err(_) => sleep(PAUSE).await,
            },
        }
    }
}

/// Answers one client. Each request has `patience` in all: to come, and for its answer to be taken.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    answers: Answers,
    patience: Duration,
    seat: Seat,
) {
    let (request, mut requests) = watch::channel(());
    let service = service_fn(|asked: Request<hyper::body::Incoming>| {
        request.send_replace(());
        seat.heard();
        let answer = answers(asked.method(), asked.uri().path());
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_buf_size(LONGEST_HEAD)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    loop {
        tokio::select! {
            // A client that breaks off is nobody's fault.
            _ended = &mut connection => return,
            () = seat.given_up() => return,
            next = timeout(patience, requests.changed()) => if !matches!(next, Ok(Ok(()))) { return },
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
        net::TcpStream,
        runtime::{Builder, Runtime},
    };

    use super::*;

    /// Nobody waits for it to pass.
    const LONG: Duration = Duration::from_mins(1);

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn answers(body: &'static [u8]) -> Answers {
        Arc::new(move |_, _| answer(StatusCode::OK, TEXT, body))
    }

    /// HZ-3: a kubelet that hears nothing restarts the agent.
    #[test]
    fn silent_connections_do_not_keep_a_probe_waiting() {
        runtime().block_on(async {
            let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0)), Families::One).unwrap();
            let at = listener.local_addr().unwrap();
            let room = Room::new(MOST_CONNECTIONS);
            let server = tokio::spawn(serve(listener, answers(b"ok"), room));
            let mut silent = Vec::new();
            for _ in 0..MOST_CONNECTIONS {
                silent.push(TcpStream::connect(at).await.unwrap());
            }
            let mut probe = TcpStream::connect(at).await.unwrap();
            probe.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
            let mut said = String::new();
            // Less than PATIENCE, after which they would all have been closed anyway.
            timeout(PATIENCE / 2, probe.read_to_string(&mut said)).await.unwrap().unwrap();
            assert!(said.starts_with("HTTP/1.1 200 OK\r\n") && said.ends_with("ok"), "{said}");
            let ended = timeout(LONG, silent[0].read(&mut [0])).await.unwrap();
            assert!(matches!(ended, Ok(0) | Err(_)), "the oldest made way: {ended:?}");
            assert!(silent[1].try_read(&mut [0]).is_err(), "and nobody else");
            server.abort();
        });
    }

    /// A client, and whether its connection ends after so short a patience.
    async fn ends(request: &[u8], body: &'static [u8]) -> (DuplexStream, bool) {
        let (mut client, stream) = duplex(4096);
        client.write_all(request).await.unwrap();
        let talk = converse(stream, answers(body), Duration::from_millis(50), Room::new(1).enter());
        (client, timeout(LONG, talk).await.is_ok())
    }

    #[test]
    fn who_does_not_ask_and_who_does_not_listen_are_given_up() {
        static LARGE: [u8; 1 << 20] = [b'x'; 1 << 20];
        runtime().block_on(async {
            for request in ["", "GET / HTTP/1.1\r\nHo", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"] {
                let (_client, has_ended) = ends(request.as_bytes(), &LARGE).await;
                assert!(has_ended, "{request:?}");
            }
        });
    }

    #[test]
    fn a_head_without_end_is_refused() {
        runtime().block_on(async {
            let (mut client, stream) = duplex(4 * LONGEST_HEAD);
            client.write_all(b"GET / HTTP/1.1\r\nX: ").await.unwrap();
            client.write_all(&vec![b'x'; 2 * LONGEST_HEAD]).await.unwrap();
            timeout(LONG, converse(stream, answers(b"ok"), LONG * 2, Room::new(1).enter())).await.unwrap();
            let mut said = String::new();
            client.read_to_string(&mut said).await.unwrap();
            assert!(said.starts_with("HTTP/1.1 431 "), "{said}");
        });
    }
}
