//! List and watch against a stub, for what no real server does on demand: garbage, refusals, silence. The rest is tested
//! against a real API server.

use core::time::Duration;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::connect::{LIMITS, connect_within};
use super::transport::Limits;
use super::{Access, Interest, api, connect};
use crate::model::{Change, ClusterState, Event, Names, Reason, ServiceName, SliceName};
use crate::observe::metrics::Metrics;
use crate::owner::unix_s;

const OWN_NODE: &str = "n1";

/// From one watch to the next, if the first one breaks off.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// Answers a request for one kind; the counter says the how many-th list or watch it is. `None`: an ordinary answer.
type Script = fn(is_watch: bool, count: usize, query: &str) -> Option<Response>;

#[derive(Clone)]
struct Stub {
    /// What the requests for the kind begin with.
    path: &'static str,
    script: Script,
    /// Path and query of each request, decoded.
    requests: Arc<Mutex<Vec<String>>>,
}

impl Stub {
    fn new(script: Script) -> Self {
        Self::of("/api/v1/services", script)
    }

    fn of(path: &'static str, script: Script) -> Self {
        Self { path, script, requests: Arc::default() }
    }

    /// Serves until the test ends, and returns the address.
    async fn serve(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    fn requests(&self, part: &str) -> Vec<String> {
        self.requests.lock().unwrap().iter().filter(|request| request.contains(part)).cloned().collect()
    }
}

async fn answer(State(stub): State<Stub>, request: Request) -> Response {
    let target = request.uri().path_and_query().unwrap().as_str();
    let target = [("%21", "!"), ("%2C", ","), ("%2F", "/"), ("%3D", "="), ("%5C", "\\")]
        .into_iter()
        .fold(target.to_owned(), |target, (code, text)| target.replace(code, text));
    let is_watch = target.contains("watch=true");
    let count = {
        let mut requests = stub.requests.lock().unwrap();
        let same = |past: &&String| past.starts_with(stub.path) && past.contains("watch=true") == is_watch;
        let count = requests.iter().filter(same).count();
        requests.push(target.clone());
        count
    };
    let scripted = if target.starts_with(stub.path) { (stub.script)(is_watch, count, &target) } else { None };
    scripted.unwrap_or_else(|| if is_watch { watch(&[]) } else { list(&[]) })
}

fn list(items: &[Value]) -> Response {
    let list =
        json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": items});
    axum::Json(list).into_response()
}

/// The given lines, then silence.
fn watch(lines: &[String]) -> Response {
    let lines: Vec<Result<String, std::io::Error>> =
        lines.iter().map(|line| Ok(format!("{line}\n"))).collect();
    Body::from_stream(futures::stream::iter(lines).chain(futures::stream::pending())).into_response()
}

fn refusal(code: u16, reason: &str) -> Response {
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason});
    (StatusCode::from_u16(code).unwrap(), axum::Json(status)).into_response()
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "ns", "resourceVersion": "8"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
    })
}

fn event(kind: &str, object: &Value) -> String {
    json!({"type": kind, "object": object}).to_string()
}

fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new(std::path::Path::new("/nowhere")))
}

/// A running source and the state that its events make.
struct Running {
    events: mpsc::Receiver<Event>,
    state: ClusterState,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn start(servers: Vec<String>) -> Self {
        Self::start_within(servers, LIMITS).await
    }

    async fn start_within(servers: Vec<String>, limits: Limits) -> Self {
        Self::start_with(servers, limits, Interest::new(OWN_NODE.into())).await
    }

    async fn start_with(servers: Vec<String>, limits: Limits, interest: Interest) -> Self {
        let client = connect_within(&Access { kubeconfig: None, servers }, limits).await.unwrap();
        let (sender, events) = mpsc::channel(4);
        let shutdown = CancellationToken::new();
        let metrics = metrics();
        let run = api::run(client, Arc::new(interest), sender, Arc::clone(&metrics), shutdown.clone());
        Self { events, state: ClusterState::new(OWN_NODE.into()), metrics, shutdown, task: tokio::spawn(run) }
    }

    /// Takes in events until the state is complete and the services are as wanted.
    async fn until(&mut self, want: &[&str]) {
        let wait = async {
            while !self.state.is_complete() || self.services() != want {
                let event = self.events.recv().await.expect("the source runs");
                self.state.apply(event, &mut BTreeSet::new());
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), wait).await;
        assert!(waited.is_ok(), "{:?} instead of {want:?}", self.services());
    }

    fn services(&self) -> Vec<String> {
        self.state.services().map(|name| name.name.to_string()).collect()
    }

    /// Takes in events until the ranges of ServiceCIDRs are as wanted.
    async fn until_ranges(&mut self, want: &[&str]) {
        let wait = async {
            while self.ranges() != want {
                let event = self.events.recv().await.expect("the source runs");
                self.state.apply(event, &mut BTreeSet::new());
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), wait).await;
        assert!(waited.is_ok(), "{:?} instead of {want:?}", self.ranges());
    }

    fn ranges(&self) -> Vec<String> {
        self.state.service_cidrs().map(|range| range.to_string()).collect()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.task).await.expect("it stops").unwrap();
    }
}

/// SEL-1, SEL-3, ND-1.
#[tokio::test]
async fn lists_and_watches_ask_for_no_more_than_concerns_us() {
    let stub = Stub::new(|is_watch, count, _| match (is_watch, count) {
        (false, 0) => Some(list(&[service("one"), service("two")])),
        (true, 0) => Some(watch(&[event("ADDED", &service("three")), event("DELETED", &service("one"))])),
        _ => None,
    });
    let mut running = Running::start(vec![stub.serve().await]).await;
    running.until(&["three", "two"]).await;
    let labels = "labelSelector=!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";
    for kind in ["/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices"] {
        let requests = stub.requests(kind);
        assert!(requests.iter().all(|request| request.contains(labels)), "{requests:?}");
        assert!(requests[0].contains("limit=500"), "{requests:?}");
    }
    let requests = stub.requests("/api/v1/services");
    assert!(
        requests.iter().all(|request| request.contains("fieldSelector=spec.clusterIP!=None")),
        "{requests:?}"
    );
    let requests = stub.requests("/api/v1/nodes");
    assert!(
        requests.iter().all(|request| request.contains("fieldSelector=metadata.name=n1")),
        "{requests:?}"
    );
    running.stop().await;
}

#[tokio::test]
async fn a_server_that_refuses_the_field_selector_is_asked_without_it() {
    let stub = Stub::new(|is_watch, _, query| match is_watch {
        _ if query.contains("spec.clusterIP") => Some(refusal(400, "BadRequest")),
        false => Some(list(&[service("web")])),
        true => None,
    });
    let mut running = Running::start(vec![stub.serve().await]).await;
    running.until(&["web"]).await;
    running.stop().await;
}

/// SEL-1: with a name of its own, the proxy asks for what has that name.
#[tokio::test]
async fn a_proxy_with_a_name_asks_for_what_has_the_name() {
    let stub = Stub::new(|_, _, _| None);
    let interest = Interest { proxy_name: "mine".into(), ..Interest::new(OWN_NODE.into()) };
    let mut running = Running::start_with(vec![stub.serve().await], LIMITS, interest).await;
    running.until(&[]).await;
    let labels =
        "labelSelector=service.kubernetes.io/service-proxy-name=mine,!service.kubernetes.io/headless";
    for kind in ["/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices"] {
        let requests = stub.requests(kind);
        assert!(!requests.is_empty() && requests.iter().all(|it| it.contains(labels)), "{requests:?}");
    }
    running.stop().await;
}

/// SY-1: they are part of what is waited for.
#[tokio::test]
async fn service_cidrs_are_listed_and_watched() {
    let stub = Stub::of("/apis/networking.k8s.io/v1/servicecidrs", move |is_watch, count, _| {
        let cidr = |name: &str, range: &str| {
            json!({
                "metadata": {"name": name, "resourceVersion": "8"}, "spec": {"cidrs": [range, "nonsense"]},
            })
        };
        match (is_watch, count) {
            (false, 0) => Some(refusal(500, "InternalError")),
            (false, _) => Some(list(&[cidr("kubernetes", "10.96.0.0/12")])),
            (true, 0) => {
                let mut more = cidr("more", "fd00::/108");
                more["kind"] = json!("ServiceCIDR");
                more["apiVersion"] = json!("networking.k8s.io/v1");
                Some(watch(&[event("ADDED", &more)]))
            }
            _ => None,
        }
    });
    let mut running = Running::start(vec![stub.serve().await]).await;
    running.until(&[]).await;
    assert!(running.ranges().contains(&"10.96.0.0/12".to_owned()), "complete without them");
    running.until_ranges(&["10.96.0.0/12", "fd00::/108"]).await;
    running.stop().await;
}

/// SY-1: API servers before 1.33 do not know them, and a role may leave them out.
#[tokio::test]
async fn without_service_cidrs_the_rest_goes_on() {
    for script in
        [(|_, _, _| Some(refusal(404, "NotFound"))) as Script, |_, _, _| Some(refusal(403, "Forbidden"))]
    {
        let stub = Stub::of("/apis/networking.k8s.io/v1/servicecidrs", script);
        let mut running = Running::start(vec![stub.serve().await]).await;
        running.until(&[]).await;
        assert_eq!(running.ranges(), [""; 0]);
        running.stop().await;
        assert_eq!(stub.requests("servicecidrs").len(), 1, "it is not asked for again and again");
    }
}

/// The value of a line of the metrics.
fn value(metrics: &Metrics, line: &str) -> Option<f64> {
    let text = metrics.text().unwrap();
    let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
    value.map(|value| value.parse().unwrap())
}

/// An operator sees by kind that the server is away, that it refuses, and when it was heard last: nothing else tells.
#[tokio::test]
async fn answers_failures_and_the_last_word_are_counted_by_kind() {
    let begin = unix_s(jiff::Timestamp::now());
    // One list fails; the first watch says a word and ends.
    let stub = Stub::new(|is_watch, count, _| match (is_watch, count) {
        (false, 0) => Some(refusal(500, "InternalError")),
        (true, 0) => Some(Body::from(format!("{}\n", event("ADDED", &service("a")))).into_response()),
        _ => None,
    });
    let mut running = Running::start(vec![stub.serve().await]).await;
    running.until(&["a"]).await;
    let metrics = Arc::clone(&running.metrics);
    let of =
        |what: &str, labels: &str| value(&metrics, &format!("lbagent_api_{what}{{resource=\"{labels}}}"));
    let waited = async {
        while of("requests_total", "services\",code=\"2xx\"") < Some(3.0) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waited).await.unwrap();
    assert_eq!(of("requests_total", "services\",code=\"5xx\""), Some(1.0));
    assert_eq!(of("requests_total", "nodes\",code=\"5xx\""), Some(0.0));
    assert!(of("watch_failures_total", "services\"") >= Some(1.0));
    assert_eq!(of("watch_failures_total", "nodes\""), Some(0.0));
    for kind in ["services\"", "endpointslices\"", "nodes\"", "servicecidrs\""] {
        assert!(of("last_heard_timestamp_seconds", kind) >= Some(begin), "{kind}");
    }
    running.stop().await;
}

/// A server without ServiceCIDRs is nobody's fault.
#[tokio::test]
async fn a_kind_that_the_server_does_not_have_is_not_missed() {
    let stub = Stub::of("/apis/networking.k8s.io", |_, _, _| Some(refusal(404, "NotFound")));
    let mut running = Running::start(vec![stub.serve().await]).await;
    running.until(&[]).await;
    let of = |what: &str| value(&running.metrics, &format!("lbagent_api_{what}"));
    assert_eq!(of("requests_total{resource=\"servicecidrs\",code=\"4xx\"}"), Some(1.0));
    assert_eq!(of("watch_failures_total{resource=\"servicecidrs\"}"), Some(0.0));
    assert_eq!(of("last_heard_timestamp_seconds{resource=\"servicecidrs\"}"), None);
    assert!(of("last_heard_timestamp_seconds{resource=\"services\"}").is_some());
    running.stop().await;
}

/// A quiet watch says only that it is there: bookmarks.
#[tokio::test]
async fn a_bookmark_is_a_word_of_the_server() {
    let stub = Stub::new(|is_watch, _, _| {
        let bookmark = json!({"kind": "Service", "apiVersion": "v1", "metadata": {"resourceVersion": "9"}});
        let line = format!("{}\n", event("BOOKMARK", &bookmark));
        let late = futures::stream::once(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<_, std::io::Error>(line)
        });
        is_watch.then(|| Body::from_stream(late.chain(futures::stream::pending())).into_response())
    });
    let mut running = Running::start(vec![stub.serve().await]).await;
    running.until(&[]).await;
    let heard = || value(&running.metrics, "lbagent_api_last_heard_timestamp_seconds{resource=\"services\"}");
    // The list, then the beginning of the watch.
    let begun = async {
        while stub.requests("/services?").iter().all(|request| !request.contains("watch=true")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), begun).await.unwrap();
    let begun = unix_s(jiff::Timestamp::now()) + 0.5;
    let waited = async {
        while heard() < Some(begun) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waited).await.unwrap();
    running.stop().await;
}

/// Any name can be given on the command line. Without the selector every Node of the cluster would come.
#[tokio::test]
async fn an_odd_node_name_asks_for_no_other_node() {
    let name = r"a,b=c\d";
    let stub = Stub::of("/api/v1/nodes", |_, _, _| Some(refusal(400, "BadRequest")));
    let access = Access { kubeconfig: None, servers: vec![stub.serve().await] };
    let client = connect_within(&access, LIMITS).await.unwrap();
    let (sender, mut events) = mpsc::channel(4);
    let shutdown = CancellationToken::new();
    let interest = Arc::new(Interest::new(name.into()));
    let task = tokio::spawn(api::run(client, interest, sender, metrics(), shutdown.clone()));
    let asked = async {
        while stub.requests("/nodes").len() < 2 {
            drop(tokio::time::timeout(Duration::from_millis(50), events.recv()).await);
        }
    };
    tokio::time::timeout(Duration::from_secs(20), asked).await.unwrap();
    let requests = stub.requests("/nodes");
    let selector = r"fieldSelector=metadata.name=a\,b\=c\\d";
    assert!(requests.iter().all(|request| request.contains(selector)), "{requests:?}");
    shutdown.cancel();
    task.await.unwrap();
}

/// What a garbled event said is found out by a new list.
#[tokio::test]
async fn a_garbled_event_leads_to_a_new_list() {
    let stub = Stub::new(|is_watch, count, _| match (is_watch, count) {
        (false, 0) => Some(list(&[service("old")])),
        (true, 0) => Some(watch(&[r#"{"type":"DELETED","object":7}"#.to_owned()])),
        (false, _) => Some(list(&[service("new")])),
        _ => None,
    });
    let mut running = Running::start(vec![stub.serve().await]).await;
    running.until(&["new"]).await;
    running.stop().await;
}

/// SY-9.
#[tokio::test]
async fn a_position_that_is_gone_leads_to_a_new_list() {
    let stub = Stub::new(|is_watch, count, _| match (is_watch, count) {
        (false, 0) => Some(list(&[service("old")])),
        (true, 0) => Some(refusal(410, "Expired")),
        (false, _) => Some(list(&[service("new")])),
        _ => None,
    });
    let mut running = Running::start(vec![stub.serve().await]).await;
    running.until(&["new"]).await;
    running.stop().await;
}

/// SY-8, SY-9: while a new list is under way or fails, nothing is deleted.
#[tokio::test]
async fn a_list_that_fails_deletes_nothing() {
    let stub = Stub::new(|is_watch, count, _| match (is_watch, count) {
        (false, 0) => Some(list(&[service("kept")])),
        (true, 0) => {
            Some(watch(&[event("ERROR", &json!({"kind": "Status", "code": 410, "status": "Failure"}))]))
        }
        (false, 1) => Some(refusal(500, "InternalError")),
        (false, _) => Some(list(&[service("kept"), service("new")])),
        _ => None,
    });
    let mut running = Running::start(vec![stub.serve().await]).await;
    running.until(&["kept"]).await;
    while running.services() != ["kept", "new"] {
        assert!(running.services().contains(&"kept".to_owned()));
        let event =
            tokio::time::timeout(Duration::from_secs(20), running.events.recv()).await.unwrap().unwrap();
        running.state.apply(event, &mut BTreeSet::new());
    }
    running.stop().await;
}

#[tokio::test]
async fn the_next_address_is_used_when_one_does_not_answer() {
    let stub = Stub::new(|is_watch, _, _| (!is_watch).then(|| list(&[service("web")])));
    // Bound and given back: nobody listens there.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut running = Running::start(vec![format!("http://{silent}"), stub.serve().await]).await;
    running.until(&["web"]).await;
    running.stop().await;
}

/// It accepts connections and says nothing, as a process that is stopped does.
#[tokio::test]
async fn the_next_address_is_used_when_one_keeps_silent() {
    let stub = Stub::new(|is_watch, _, _| (!is_watch).then(|| list(&[service("web")])));
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let servers = vec![format!("http://{}", silent.local_addr().unwrap()), stub.serve().await];
    let limits = Limits { answer: Duration::from_millis(300), ..LIMITS };
    let mut running = Running::start_within(servers, limits).await;
    running.until(&["web"]).await;
    running.stop().await;
}

/// kube's watcher by itself would ask at once, each time.
#[tokio::test]
async fn watches_that_end_at_once_are_asked_for_with_pauses() {
    let stub = Stub::new(|is_watch, _, _| is_watch.then(|| Body::empty().into_response()));
    let begin = std::time::Instant::now();
    let mut running = Running::start(vec![stub.serve().await]).await;
    running.until(&[]).await;
    let watches = || stub.requests("/api/v1/services").iter().filter(|it| it.contains("watch=true")).count();
    let some = async {
        while watches() < 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), some).await.expect("watches go on");
    // Every one after the first waits; who does not asks thousands of times meanwhile.
    let (watches, took) = (u32::try_from(watches()).unwrap(), begin.elapsed());
    assert!(took >= SHORTEST_PAUSE * (watches - 1), "{watches} watches in {took:?}");
    running.stop().await;
}

#[tokio::test]
async fn an_address_that_is_none_is_named() {
    for text in ["10.0.0.1:6443", "ftp://10.0.0.1", "https://", "not a url"] {
        let refused =
            connect(&Access { kubeconfig: None, servers: vec![text.to_owned()] }).await.err().unwrap();
        assert!(refused.to_string().contains(text), "{refused}");
    }
}

/// What an `EndpointSlice` of Service ns/web with changes comes to.
fn slice_event(change: impl FnOnce(&mut Value)) -> Event {
    use kube::runtime::watcher;
    let mut object = json!({
        "metadata": {"name": "web-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080}], "endpoints": [{"addresses": ["10.0.0.1"]}],
    });
    change(&mut object);
    let event = watcher::Event::Apply(serde_json::from_value(object).unwrap());
    api::slice_event(event, &mut Names::default())
}

/// ES-2: the label can be taken away.
#[test]
fn a_slice_that_is_nobodys_any_more_is_as_good_as_deleted_and_named() {
    let Event::Slice(Change::Refuse(name, fault)) = slice_event(|slice| {
        slice["metadata"]["labels"] = json!({});
    }) else {
        panic!("taken in")
    };
    assert_eq!(name, SliceName::new("ns", "web-1"));
    assert_eq!((&*fault.field, &fault.reason), ("metadata.labels", &Reason::NoOwner));
}

/// ES-1: the Service it was made for can say what is wrong.
#[test]
fn a_slice_of_another_address_type_is_a_fault_of_its_service() {
    for kind in ["FQDN", "IPX"] {
        let event = slice_event(|slice| slice["addressType"] = json!(kind));
        let Event::Slice(Change::Apply(slice)) = event else { panic!("{event:?}") };
        assert_eq!(slice.service, ServiceName::new("ns", "web"));
        assert_eq!((slice.ports.len(), slice.endpoints().len()), (0, 0), "nothing of it serves");
        let said: Vec<String> =
            slice.faults.iter().map(|fault| format!("{}: {}", fault.field, fault.reason)).collect();
        let wanted =
            format!("endpointslice web-1: addressType: addressType \"{kind}\" is neither IPv4 nor IPv6; ");
        assert!(said.len() == 1 && said[0].starts_with(&wanted), "{said:?}");
    }
    let orphan = slice_event(|slice| {
        slice["addressType"] = json!("FQDN");
        slice["metadata"]["labels"] = json!({});
    });
    assert!(matches!(orphan, Event::Slice(Change::Refuse(..))), "{orphan:?}");
}
