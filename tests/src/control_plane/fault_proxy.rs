//! A proxy in front of the API server that does, on demand, what no real server does on demand.
//!
//! It speaks plain HTTP to the client under test and passes everything on to the real API server, but for
//! the requests that a test has planned a [`Fault`] for. It keeps a list of what it has seen, so that a
//! test can tell that a client listed again, or waited before it did.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::State;
use axum::http::header::{ACCEPT_ENCODING, AUTHORIZATION, HOST, TRANSFER_ENCODING};
use axum::http::{self, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use futures::{StreamExt as _, stream};
use kube::Client;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::{API_ADDRESSES, ControlPlane};

/// The longest request body: the API server's own limit is 3 MiB.
const LONGEST_BODY: usize = 4 << 20;

/// Time for the bytes before a cut to leave.
const FLUSH: Duration = Duration::from_millis(20);

/// What a request asks for, of a collection such as `/api/v1/services`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// The first page of a list, or all of it.
    List,
    /// A later page of a list.
    NextPage,
    /// A watch.
    Watch,
    /// Anything else.
    Other,
}

/// What a planned answer does instead of the API server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This HTTP status and a body that is not a Kubernetes object, like a broken load balancer on the way.
    Status(u16),
    /// HTTP 410 with a `Status` object of reason `Expired`: the resource version or continue token is too
    /// old.
    Expired,
    /// A watch that opens, reports `Expired` in its first event, and ends.
    ExpiredEvent,
    /// HTTP 200 with something that is not JSON.
    Garbage,
    /// The true answer up to this many bytes; then the connection is closed.
    CutAfter(usize),
    /// No answer at all.
    Silence,
}

/// A request that the proxy has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What it asked for.
    pub verb: Verb,
    /// Last part of the path, for collections their name: `services`.
    pub resource: String,
    /// The query as the client sent it, without `?`.
    pub query: String,
    /// What happened instead of the true answer.
    pub fault: Option<Fault>,
}

/// A running proxy. It ends, with all its connections, when it is dropped.
#[derive(Debug)]
pub struct FaultProxy {
    shared: Arc<Shared>,
    port: u16,
    host_port: u16,
    server: AbortHandle,
}

struct Shared {
    client: Client,
    plan: Mutex<Plan>,
    /// A change ends every answer that is under way.
    cut: watch::Sender<()>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("plan", &self.plan).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Plan {
    faults: VecDeque<(Verb, String, Fault)>,
    seen: Vec<Request>,
    page_size: Option<u32>,
    watch_seconds: Option<u32>,
}

impl FaultProxy {
    /// Starts a proxy in the API server's namespace, without any fault.
    pub fn start(control_plane: &ControlPlane) -> Result<Self> {
        let runtime = control_plane.runtime();
        let shared = Arc::new(Shared {
            client: control_plane.client(),
            plan: Mutex::default(),
            cut: watch::Sender::new(()),
        });
        let app = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let (port, server) = runtime.run(async move {
            let listener = tokio::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
            let port = listener.local_addr()?.port();
            let server = tokio::spawn(async move {
                // It serves until it is aborted.
                drop(axum::serve(listener, app).await);
            });
            io::Result::Ok((port, server.abort_handle()))
        })?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on 127.0.0.1")?;
        let host_port = listener.local_addr()?.port();
        runtime.forward(listener, format!("127.0.0.1:{port}"))?;
        Ok(Self { shared, port, host_port, server })
    }

    /// The address for clients on linked nodes.
    pub fn node_url(&self) -> String {
        format!("http://{}:{}", API_ADDRESSES[0], self.port)
    }

    /// The address for clients in the namespace of the test process itself.
    pub fn host_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.host_port)
    }

    /// Plans `fault` for the next `times` requests that ask `verb` of `resource` (`services`,
    /// `endpointslices`, ..).
    pub fn plan(&self, verb: Verb, resource: &str, fault: Fault, times: usize) {
        let planned = std::iter::repeat_n((verb, resource.to_owned(), fault), times);
        self.shared.plan().faults.extend(planned);
    }

    /// Forgets the planned faults that have not happened yet.
    pub fn heal(&self) {
        self.shared.plan().faults.clear();
    }

    /// The number of planned faults that have not happened yet.
    pub fn planned(&self) -> usize {
        self.shared.plan().faults.len()
    }

    /// Lets the real API server answer lists in pages of `size` objects, whatever the client asks for.
    pub fn set_page_size(&self, size: u32) {
        self.shared.plan().page_size = Some(size);
    }

    /// Lets the real API server close each watch after `seconds`, whatever the client asks for.
    pub fn set_watch_seconds(&self, seconds: u32) {
        self.shared.plan().watch_seconds = Some(seconds);
    }

    /// Cuts every answer that is under way, watches above all, and closes its connection.
    pub fn cut(&self) {
        self.shared.cut.send_replace(());
    }

    /// All requests so far, oldest first.
    pub fn seen(&self) -> Vec<Request> {
        self.shared.plan().seen.clone()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.server.abort();
        self.cut();
    }
}

impl Shared {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the API server.
    async fn forward(&self, request: http::Request<Body>, uri: Uri) -> Result<Response> {
        let (parts, body) = request.into_parts();
        let mut forwarded = http::Request::builder().method(parts.method).uri(uri);
        for (name, value) in &parts.headers {
            // The client of this side sends its own; compressed bytes would make no good cut.
            if ![HOST, AUTHORIZATION, ACCEPT_ENCODING, TRANSFER_ENCODING].contains(name) {
                forwarded = forwarded.header(name, value);
            }
        }
        let body = axum::body::to_bytes(body, LONGEST_BODY).await?;
        let answer = self.client.send(forwarded.body(body.into())?).await?;
        let (mut parts, body) = answer.into_parts();
        parts.headers.remove(TRANSFER_ENCODING);
        Ok(Response::from_parts(parts, Body::new(body)))
    }
}

impl Plan {
    /// Notes a request and gives the fault that is planned for it.
    fn note(&mut self, method: &Method, uri: &Uri) -> Option<Fault> {
        let (verb, query) = (verb_of(method, uri), uri.query().unwrap_or_default().to_owned());
        let resource = uri.path().rsplit('/').next().unwrap_or_default().to_owned();
        let place = self.faults.iter().position(|(planned, name, _)| *planned == verb && *name == resource);
        let fault = place.and_then(|place| self.faults.remove(place)).map(|(_, _, fault)| fault);
        self.seen.push(Request { verb, resource, query, fault });
        fault
    }

    /// The address that the API server is asked for.
    fn rewrite(&self, uri: &Uri) -> Result<Uri> {
        let mut query = uri.query().unwrap_or_default().to_owned();
        for (name, value) in [("limit", self.page_size), ("timeoutSeconds", self.watch_seconds)] {
            if let Some(value) = value {
                query = with_parameter(&query, name, &value.to_string());
            }
        }
        Ok(format!("{}?{query}", uri.path()).parse()?)
    }
}

/// Answers one request, by the plan or by the API server.
async fn answer(State(shared): State<Arc<Shared>>, request: http::Request<Body>) -> Response {
    let (fault, uri) = {
        let mut plan = shared.plan();
        (plan.note(request.method(), request.uri()), plan.rewrite(request.uri()))
    };
    let limit = match fault {
        None => None,
        Some(Fault::CutAfter(bytes)) => Some(bytes),
        Some(Fault::Silence) => return std::future::pending().await,
        Some(fault) => return canned(fault),
    };
    let forwarded = match uri {
        Ok(uri) => shared.forward(request, uri).await,
        Err(error) => Err(error),
    };
    match forwarded {
        Ok(answer) => answer.map(|body| Cuttable::new(body, limit, shared.cut.subscribe()).into_body()),
        Err(error) => (StatusCode::BAD_GATEWAY, format!("{error:#}")).into_response(),
    }
}

/// The answers that need no API server.
fn canned(fault: Fault) -> Response {
    let expired = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Expired", "code": 410,
        "message": "The provided continue parameter or resource version is too old.",
    });
    match fault {
        Fault::Status(code) => {
            let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            (code, "no Kubernetes object").into_response()
        }
        Fault::Expired => (StatusCode::GONE, axum::Json(expired)).into_response(),
        Fault::ExpiredEvent => axum::Json(json!({"type": "ERROR", "object": expired})).into_response(),
        Fault::Garbage => ([("content-type", "application/json")], "<html>\0{]}").into_response(),
        Fault::CutAfter(_) | Fault::Silence => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// The body of an answer that ends early when its limit is reached or the proxy is told to cut.
struct Cuttable {
    data: BodyDataStream,
    left: Option<usize>,
    cut: watch::Receiver<()>,
}

impl Cuttable {
    fn new(body: Body, left: Option<usize>, cut: watch::Receiver<()>) -> Self {
        Self { data: body.into_data_stream(), left, cut }
    }

    fn into_body(self) -> Body {
        Body::from_stream(stream::unfold(self, Self::next))
    }

    async fn next(mut self) -> Option<(io::Result<Bytes>, Self)> {
        if self.left == Some(0) {
            tokio::time::sleep(FLUSH).await;
            return Some((Err(io::ErrorKind::ConnectionAborted.into()), self));
        }
        let chunk = tokio::select! {
            _ = self.cut.changed() => return Some((Err(io::ErrorKind::ConnectionAborted.into()), self)),
            chunk = self.data.next() => chunk?,
        };
        let mut chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => return Some((Err(io::Error::other(error)), self)),
        };
        if let Some(left) = &mut self.left {
            chunk.truncate(*left);
            *left -= chunk.len();
        }
        Some((Ok(chunk), self))
    }
}

fn verb_of(method: &Method, uri: &Uri) -> Verb {
    let parameters = uri.query().unwrap_or_default().split('&');
    let has = |wanted: &[&str]| parameters.clone().any(|parameter| wanted.contains(&parameter));
    if method != Method::GET {
        Verb::Other
    } else if has(&["watch=1", "watch=true"]) {
        Verb::Watch
    } else if parameters.clone().any(|parameter| parameter.starts_with("continue=")) {
        Verb::NextPage
    } else {
        Verb::List
    }
}

/// `query` with `name` set to `value` if it has that parameter, else unchanged: a list has no time limit
/// and a watch no page size.
fn with_parameter(query: &str, name: &str, value: &str) -> String {
    let replaced = query.split('&').map(|parameter| match parameter.split_once('=') {
        Some((present, _)) if present == name => format!("{name}={value}"),
        _ => parameter.to_owned(),
    });
    replaced.collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_with(verb: Verb, resource: &str, fault: Fault) -> Plan {
        Plan { faults: [(verb, resource.to_owned(), fault)].into(), ..Plan::default() }
    }

    #[test]
    fn a_fault_hits_its_verb_and_resource_once() {
        let mut plan = plan_with(Verb::Watch, "services", Fault::Garbage);
        let mut ask = |uri: &str| plan.note(&Method::GET, &uri.parse().unwrap());
        assert_eq!(ask("/api/v1/services?limit=500"), None);
        assert_eq!(ask("/api/v1/nodes?watch=true"), None);
        assert_eq!(ask("/api/v1/services?watch=true&resourceVersion=7"), Some(Fault::Garbage));
        assert_eq!(ask("/api/v1/services?watch=true&resourceVersion=7"), None);
        assert_eq!(plan.seen.len(), 4);
    }

    #[test]
    fn a_continue_token_makes_a_next_page() {
        let verb = |uri: &str| verb_of(&Method::GET, &uri.parse().unwrap());
        assert_eq!(verb("/api/v1/services?limit=2&continue=abc"), Verb::NextPage);
        assert_eq!(verb("/api/v1/services"), Verb::List);
        assert_eq!(verb_of(&Method::POST, &"/api/v1/services".parse().unwrap()), Verb::Other);
    }

    #[test]
    fn page_size_and_watch_time_replace_only_what_is_asked_for() {
        let plan = Plan { page_size: Some(2), watch_seconds: Some(1), ..Plan::default() };
        let rewritten = |uri: &str| plan.rewrite(&uri.parse().unwrap()).unwrap().to_string();
        assert_eq!(rewritten("/a?limit=500"), "/a?limit=2");
        assert_eq!(rewritten("/a?watch=true&timeoutSeconds=290"), "/a?watch=true&timeoutSeconds=1");
        assert_eq!(rewritten("/a"), "/a?");
    }
}
