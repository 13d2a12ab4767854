//! Plain HTTP for probes and scrapes: listening, and short answers.
//!
//! Header names are spelled as Go spells them, so that an answer is the same as kube-proxy's.

use core::{net::SocketAddr, time::Duration};
use std::{convert::Infallible, io, net::Ipv6Addr, sync::Arc};

use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::Full;
use hyper::{Request, Response, body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
    time::sleep,
};

/// A whole answer.
pub(super) type Answer = Response<Full<Bytes>>;

/// Answers a request by method and path. It must not block.
pub(super) type Answers = Arc<dyn Fn(&Method, &str) -> Answer + Send + Sync>;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 128;
/// Connections of one socket at a time. Who is one too many waits.
const MOST_CONNECTIONS: usize = 128;
/// A connection that has sent no whole request for so long is closed.
const SILENCE: Duration = Duration::from_secs(30);
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

/// Answers until it is dropped; connections end with it.
pub(super) async fn serve(listener: TcpListener, answers: Answers) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= MOST_CONNECTIONS {
            connections.join_next().await;
        }
        tokio::select! {
            Some(_ended) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(converse(stream, Arc::clone(&answers)));
                }
                // One that was given up while it waited, or no file descriptor for it.
                Err(_) => sleep(PAUSE).await,
            },
        }
    }
}

async fn converse(stream: TcpStream, answers: Answers) {
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let answer = answers(request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(SILENCE)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service);
    // A client that breaks off is nobody's fault.
    drop(connection.await);
}
