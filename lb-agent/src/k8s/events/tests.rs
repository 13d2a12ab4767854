use std::sync::Mutex;

use axum::{Json, Router, extract::Request, http::StatusCode, response::IntoResponse as _};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;
use crate::{
    k8s::{Access, connect},
    observe::events::Recorder,
};

#[test]
fn a_server_that_is_busy_is_asked_again() {
    for (code, is) in [(400, true), (403, true), (409, true), (429, false), (500, false), (503, false)] {
        assert_eq!(is_final(code), is, "{code}");
    }
    let shares: Vec<f64> = (0..20).map(|_| random_share()).collect();
    assert!(shares.iter().all(|share| (0.0..1.0).contains(share)), "{shares:?}");
    #[expect(clippy::float_cmp, reason = "equal bits are what is asked for")]
    let all_equal = shares.iter().all(|share| *share == shares[0]);
    assert!(!all_equal, "{shares:?}");
}

#[test]
fn an_event_names_its_object_and_the_node_that_sends_it() {
    let name = ServiceName::new("shop", "web");
    let note = Note::service(&name, "InvalidField", "Program", "é".repeat(1000));
    let made = event(&note, "n1", Some("u".into()), Timestamp::UNIX_EPOCH);
    let regarding = made.regarding.unwrap();
    assert_eq!((regarding.kind.as_deref(), regarding.name.as_deref()), (Some("Service"), Some("web")));
    assert_eq!((regarding.namespace.as_deref(), regarding.uid.as_deref()), (Some("shop"), Some("u")));
    assert_eq!(made.metadata.namespace.as_deref(), Some("shop"));
    assert_eq!(made.reporting_instance.as_deref(), Some("n1"));
    assert_eq!(made.note.map(|note| note.len()), Some(1024));
    let made = event(&Note::starting(), "n1", None, Timestamp::UNIX_EPOCH);
    assert_eq!(made.metadata.namespace.as_deref(), Some("default"));
    assert_eq!(made.regarding.unwrap().kind.as_deref(), Some("Node"));
    assert_eq!((made.type_.as_deref(), made.reason.as_deref()), (Some("Normal"), Some("Starting")));
}

/// What a stub was asked: method, path and body.
type Asked = Arc<Mutex<Vec<(String, Value)>>>;

/// An API server that is busy for the first `busy` requests of each method. Returns its address and what it was asked.
async fn stub(busy: usize) -> (String, Asked) {
    let asked = Asked::default();
    let seen = Arc::clone(&asked);
    let answer = move |request: Request| async move {
        let method = request.method().to_string();
        let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let before = {
            let mut seen = seen.lock().unwrap();
            let before = seen.iter().filter(|(known, _)| *known == method).count();
            seen.push((method.clone(), body.clone()));
            before
        };
        if before < busy {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 429});
            return (StatusCode::TOO_MANY_REQUESTS, Json(status)).into_response();
        }
        if method == "POST" {
            return Json(body).into_response();
        }
        let item = json!({"metadata": {"name": "web", "namespace": "shop", "uid": "the-uid"}});
        let list = json!({
            "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "items": [item],
        });
        Json(list).into_response()
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    (address, asked)
}

/// 2.23: `kubectl describe` looks for the uid, and people look at the time.
#[tokio::test]
async fn an_event_has_the_uid_of_its_service_and_the_time_when_it_happened_however_late_it_is_sent() {
    let (address, asked) = stub(1).await;
    let access = Access { servers: vec![address], ..Access::default() };
    let client = connect(&access).await.unwrap();
    let metrics = Arc::new(Metrics::new(std::path::Path::new("/nowhere")));
    let (recorder, notes) = Recorder::new(Arc::clone(&metrics));
    let name = ServiceName::new("shop", "web");
    let at: Timestamp = "2026-02-03T04:05:06.789012Z".parse().unwrap();
    recorder.offer(Note::service(&name, "MapFull", "Program", "x".into()), at).unwrap();
    drop(recorder);
    // It ends with the last note.
    run(client, "n1".into(), notes, Arc::clone(&metrics), CancellationToken::new()).await;
    let asked = asked.lock().unwrap().clone();
    let methods: Vec<&str> = asked.iter().map(|(method, _)| method.as_str()).collect();
    assert_eq!(methods, ["GET", "GET", "POST", "POST"], "each was asked again");
    let (_, event) = asked.last().unwrap();
    assert_eq!((&event["regarding"]["uid"], &event["reason"]), (&json!("the-uid"), &json!("MapFull")));
    assert_eq!(event["eventTime"].as_str().unwrap().parse::<Timestamp>().unwrap(), at);
    assert!(metrics.text().unwrap().contains("lbagent_events_total{result=\"sent\"} 1\n"));
}
