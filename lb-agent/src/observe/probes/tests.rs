use http_body_util::BodyExt as _;
use rstest::rstest;

use super::*;
use crate::observe::{
    events::{Recorded, Subject},
    health::{NodeState, Settled, TIMEOUT},
};

fn family(last_updated: Option<i64>, is_healthy: bool) -> FamilyHealth {
    let last_updated = last_updated.map(|seconds| Timestamp::from_second(seconds).unwrap());
    FamilyHealth { last_updated, is_healthy }
}

fn judgement(families: [FamilyHealth; 2], is_node_eligible: bool) -> Judgement {
    Judgement { families, is_node_eligible, is_ready: true }
}

fn said(asked: Asked, judgement: &Judgement) -> (bool, String) {
    health_answer(asked, judgement, Timestamp::from_second(1_000_000_000).unwrap())
}

const NOW: &str = "2001-09-09T01:46:40Z";

/// HZ-3, HZ-4, HZ-7.
#[rstest]
#[case::all_well([true, true], true, true, true)]
#[case::one_family_late([true, false], true, false, false)]
#[case::both_late([false, false], true, false, false)]
#[case::node_leaves([true, true], false, false, true)]
fn a_leaving_node_fails_healthz_alone_and_a_late_family_both(
    #[case] healthy: [bool; 2],
    #[case] is_node_eligible: bool,
    #[case] healthz: bool,
    #[case] livez: bool,
) {
    let judgement = judgement(healthy.map(|is_healthy| family(Some(5), is_healthy)), is_node_eligible);
    assert_eq!(said(Asked::Healthz, &judgement).0, healthz);
    assert_eq!(said(Asked::Livez, &judgement).0, livez);
}

/// HZ-5. The bodies are those that kube-proxy 1.36 marshals (`healthcheck/proxy_health.go`).
#[test]
fn bodies_have_the_fields_and_times_of_kube_proxy() {
    let well = judgement([family(Some(5), true), family(Some(6), true)], true);
    let status = r#""status":{"IPv4":{"lastUpdated":"1970-01-01T00:00:05Z","healthy":true},"IPv6":{"lastUpdated":"1970-01-01T00:00:06Z","healthy":true}}"#;
    let times = format!(r#""lastUpdated":"{NOW}","currentTime":"{NOW}""#);
    let wanted = format!(r#"{{{times},"nodeEligible":true,"healthy":true,{status}}}"#);
    assert_eq!(said(Asked::Healthz, &well).1, wanted);
    assert_eq!(said(Asked::Livez, &well).1, format!(r#"{{{times},"healthy":true,{status}}}"#));

    let late = judgement([family(Some(5), true), family(Some(6), false)], true);
    let body = said(Asked::Livez, &late).1;
    assert!(body.starts_with(r#"{"lastUpdated":"1970-01-01T00:00:06Z","#), "the latest of both: {body}");
    assert!(body.contains(r#""healthy":false,"status""#), "{body}");
    assert!(body.ends_with(r#""IPv6":{"lastUpdated":"1970-01-01T00:00:06Z","healthy":false}}}"#), "{body}");

    let leaving = judgement([family(Some(5), true); 2], false);
    let body = said(Asked::Healthz, &leaving).1;
    assert!(body.contains(r#""nodeEligible":false,"healthy":true,"#), "{body}");
    assert!(body.starts_with(r#"{"lastUpdated":"1970-01-01T00:00:05Z","#), "{body}");
}

/// HZ-2, HZ-5.
#[test]
fn before_the_first_update_there_is_no_status() {
    let fresh = judgement([family(None, true); 2], true);
    let wanted = format!(r#"{{"lastUpdated":"{NOW}","currentTime":"{NOW}","healthy":true}}"#);
    assert_eq!(said(Asked::Livez, &fresh), (true, wanted));
    let hung = judgement([family(None, false); 2], true);
    let (is_ok, body) = said(Asked::Livez, &hung);
    assert!(!is_ok && body.starts_with(&format!(r#"{{"lastUpdated":"{NEVER}""#)), "{body}");
}

fn outlets() -> (Arc<Health>, Arc<Metrics>) {
    (Arc::default(), Arc::new(Metrics::new(std::path::Path::new("/nowhere"))))
}

async fn ask(answers: &Answers, path: &str) -> (u16, String, String) {
    let answer = answers(&Method::GET, path);
    let kind = answer.headers().get("content-type").and_then(|value| value.to_str().ok());
    let (code, kind) = (answer.status().as_u16(), kind.unwrap_or_default().to_owned());
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (code, kind, String::from_utf8(body.to_vec()).unwrap())
}

/// HZ-1, HZ-6.
#[tokio::test]
async fn the_health_address_answers_three_paths() {
    let (state, metrics) = outlets();
    let answers = health(Arc::clone(&state), Arc::clone(&metrics), Arc::new(Slis::new()));
    assert_eq!(ask(&answers, "/readyz").await.0, 503, "nothing is programmed yet");
    assert_eq!(ask(&answers, "/livez").await.0, 200);
    state.settled(Settled { updated: true, ..Settled::default() }, Timestamp::now());
    assert_eq!(ask(&answers, "/readyz").await, (200, TEXT.into(), "ok".into()));
    state.set_node(NodeState::Leaving);
    let (code, kind, body) = ask(&answers, "/healthz").await;
    assert_eq!((code, &*kind), (503, JSON));
    assert!(body.contains(r#""nodeEligible":false"#), "{body}");
    assert_eq!(ask(&answers, "/livez").await.0, 200);
    assert_eq!(ask(&answers, "/").await, (404, TEXT.into(), "404 page not found\n".into()));
    let text = metrics.text().unwrap();
    for line in [
        "lbagent_healthz_total{code=\"503\"} 1",
        "lbagent_livez_total{code=\"200\"} 2",
        "lbagent_readyz_total{code=\"503\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
}

/// HZ-10.
#[tokio::test]
async fn the_metrics_address_answers_as_the_tests_of_kubernetes_ask() {
    let (state, metrics) = outlets();
    let slis = Arc::new(Slis::new());
    let probes = health(Arc::clone(&state), Arc::clone(&metrics), Arc::clone(&slis));
    let configz = r#"{"kubeproxy.config.k8s.io":{}}"#.to_owned();
    let answers = scrapes(Scraped { metrics, health: Arc::clone(&state), slis, configz: configz.clone() });
    assert_eq!(ask(&answers, "/healthz").await, (200, TEXT.into(), "ok".into()));
    assert_eq!(ask(&answers, "/proxyMode").await, (200, TEXT.into(), "ebpf".into()));
    let (code, kind, text) = ask(&answers, "/metrics").await;
    assert_eq!((code, &*kind), (200, metrics::CONTENT_TYPE));
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert_eq!(ask(&answers, "/configz").await, (200, JSON.into(), configz));
    // Not here: ARCHITECTURE, Decisions.
    for path in ["/debug", "/debug/pprof/profile", "/flagz", "/statusz"] {
        assert_eq!(ask(&answers, path).await.0, 404, "{path}");
    }

    for path in ["/livez", "/healthz", "/readyz"] {
        ask(&probes, path).await;
    }
    state.set_node(NodeState::Leaving);
    ask(&probes, "/healthz").await;
    let (code, kind, text) = ask(&answers, "/metrics/slis").await;
    assert_eq!((code, &*kind), (200, metrics::CONTENT_TYPE));
    for line in [
        "kubernetes_healthcheck{name=\"maps\",type=\"livez\"} 1",
        "kubernetes_healthcheck{name=\"maps\",type=\"healthz\"} 1",
        "kubernetes_healthcheck{name=\"node\",type=\"healthz\"} 0",
        "kubernetes_healthcheck{name=\"programmed\",type=\"readyz\"} 0",
        "kubernetes_healthchecks_total{name=\"maps\",type=\"livez\",status=\"success\"} 1",
        "kubernetes_healthchecks_total{name=\"maps\",type=\"livez\",status=\"error\"} 0",
        "kubernetes_healthchecks_total{name=\"maps\",type=\"healthz\",status=\"success\"} 2",
        "kubernetes_healthchecks_total{name=\"node\",type=\"healthz\",status=\"success\"} 1",
        "kubernetes_healthchecks_total{name=\"node\",type=\"healthz\",status=\"error\"} 1",
        "kubernetes_healthchecks_total{name=\"programmed\",type=\"readyz\",status=\"error\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
}

fn place(address: &str) -> Place {
    let (state, metrics) = outlets();
    Place {
        flag: "--healthz-address",
        address: address.to_owned(),
        event: "FailedToStartProxierHealthcheck",
        answers: health(state, metrics, Arc::new(Slis::new())),
    }
}

fn recorder() -> (Recorder, tokio::sync::mpsc::Receiver<Recorded>) {
    Recorder::new(outlets().1)
}

/// HZ-9, 2.23-FailedToStartProxierHealthcheck.
#[tokio::test]
async fn an_address_that_is_taken_is_waited_for_or_ends_the_agent() {
    let (events, mut notes) = recorder();
    let stop = CancellationToken::new();
    let taken = std::net::TcpListener::bind("127.77.1.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();

    let error = place(&at).open(true, &events, &stop).unwrap_err().to_string();
    assert!(error.contains(&at) && error.contains("--bind-hard-fail"), "{error}");
    assert!(notes.try_recv().is_err());

    place(&at).open(false, &events, &stop).unwrap();
    let note = notes.try_recv().unwrap().note;
    assert_eq!((note.subject, note.reason), (Subject::Node, "FailedToStartProxierHealthcheck"));
    drop(taken);
    let answering = async {
        while tokio::net::TcpStream::connect(&at).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(tokio::time::timeout(TIMEOUT, answering).await.is_ok(), "it is not tried again");
}

#[tokio::test]
async fn an_address_is_empty_or_has_a_port() {
    let (events, _notes) = recorder();
    let stop = CancellationToken::new();
    assert!(place("").open(true, &events, &stop).is_ok(), "nowhere");
    for address in ["10256", "localhost:1", "0.0.0.0", ":10256"] {
        let error = place(address).open(false, &events, &stop).unwrap_err().to_string();
        assert!(error.contains(address) && error.contains("write it like"), "{error}");
    }
}

/// HZ-1: 0.0.0.0 means what it means to kube-proxy, every address of both families.
#[tokio::test]
async fn the_unspecified_address_is_listened_on_in_both_families() {
    let listener = listen("0.0.0.0:0".parse().unwrap(), Families::Both).unwrap();
    let port = listener.local_addr().unwrap().port();
    assert!(tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok());
    if listener.local_addr().unwrap().is_ipv6() {
        assert!(tokio::net::TcpStream::connect(("::1", port)).await.is_ok());
    }
}
