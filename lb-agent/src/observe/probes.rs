//! What probes and scrapes are answered: /healthz, /livez, /readyz, and the metrics address.
//!
//! Bodies, codes and headers are kube-proxy's (HZ-1 to HZ-6, HZ-10; `pkg/proxy/healthcheck/proxy_health.go` and
//! `cmd/kube-proxy/app/server.go` of 1.36). Own additions: /readyz, and every time is in UTC.

use core::{fmt, net::SocketAddr, time::Duration};
use std::{io, sync::Arc, time::Instant};

use anyhow::Context as _;
use http::{Method, StatusCode};
use jiff::Timestamp;
use serde::Serialize;
use tokio::{net::TcpListener, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::{
    events::{Note, Recorder},
    health::{FamilyHealth, Health, Judgement},
    http::{Answer, Answers, Families, JSON, MOST_CONNECTIONS, TEXT, answer, listen, not_found, serve},
    metrics::{self, Metrics, Probed},
    room::Room,
    slis::Slis,
};

/// Between two attempts to listen (HZ-9: kube-proxy's too).
const AGAIN: Duration = Duration::from_secs(5);

/// What Go prints for a time that was never set.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// A family in an answer.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyBody {
    last_updated: String,
    healthy: bool,
}

/// Fields in kube-proxy's order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "Status::is_empty")]
    status: Status,
}

#[derive(Serialize)]
struct Status {
    #[serde(rename = "IPv4", skip_serializing_if = "Option::is_none")]
    v4: Option<FamilyBody>,
    #[serde(rename = "IPv6", skip_serializing_if = "Option::is_none")]
    v6: Option<FamilyBody>,
}

impl Status {
    const fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }

    /// A family is listed once it was updated or when it is late.
    fn of(judgement: &Judgement) -> Self {
        let [v4, v6] = judgement.families.map(|FamilyHealth { last_updated, is_healthy }| {
            let is_listed = last_updated.is_some() || !is_healthy;
            is_listed.then(|| FamilyBody { last_updated: time(last_updated), healthy: is_healthy })
        });
        Self { v4, v6 }
    }
}

/// RFC 3339.
fn time(at: Option<Timestamp>) -> String {
    at.map_or_else(|| NEVER.to_owned(), |at| at.to_string())
}

/// Whom a body is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asked {
    /// Load balancers (HZ-8): the state of the node counts (HZ-4).
    Healthz,
    /// Kubelets (HZ-7): it does not.
    Livez,
}

/// Code and body of /healthz and /livez (HZ-3 to HZ-5).
fn health_answer(asked: Asked, judgement: &Judgement, now: Timestamp) -> (bool, String) {
    let is_live = judgement.is_live();
    let is_ok = is_live && (asked == Asked::Livez || judgement.is_node_eligible);
    let body = Body {
        // Compatible with old releases of kube-proxy: "recent" while all is well.
        last_updated: time(if is_ok { Some(now) } else { judgement.last_updated() }),
        current_time: time(Some(now)),
        node_eligible: (asked == Asked::Healthz).then_some(judgement.is_node_eligible),
        healthy: is_live,
        status: Status::of(judgement),
    };
    // Of these types, nothing can fail to be written.
    (is_ok, serde_json::to_string(&body).unwrap_or_default())
}

const fn code(is_ok: bool) -> StatusCode {
    if is_ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// The answers on `--healthz-address`.
pub(super) fn health(health: Arc<Health>, metrics: Arc<Metrics>, slis: Arc<Slis>) -> Answers {
    Arc::new(move |_: &Method, path: &str| {
        let judgement = health.judge(Instant::now());
        let asked = match path {
            "/healthz" => Asked::Healthz,
            "/livez" => Asked::Livez,
            "/readyz" => {
                metrics.probed(Probed::Readyz, judgement.is_ready);
                slis.asked("readyz", &judgement);
                return readiness(judgement.is_ready);
            }
            _ => return not_found(),
        };
        let (is_ok, body) = health_answer(asked, &judgement, Timestamp::now());
        let (probed, kind) = match asked {
            Asked::Healthz => (Probed::Healthz, "healthz"),
            Asked::Livez => (Probed::Livez, "livez"),
        };
        metrics.probed(probed, is_ok);
        slis.asked(kind, &judgement);
        answer(code(is_ok), JSON, body)
    })
}

fn readiness(is_ready: bool) -> Answer {
    let body =
        if is_ready { "ok" } else { "not ready: not everything that is listed has been programmed yet\n" };
    answer(code(is_ready), TEXT, body)
}

/// What is answered from on `--metrics-address`.
pub(super) struct Scraped {
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
    pub(super) slis: Arc<Slis>,
    /// What is in force, as JSON.
    pub(super) configz: String,
}

/// The answers on `--metrics-address` (HZ-10). What of kube-proxy's is not there, and why, is in ARCHITECTURE, Decisions.
pub(super) fn scrapes(scraped: Scraped) -> Answers {
    let Scraped { metrics, health, slis, configz } = scraped;
    let text = |text: Result<String, fmt::Error>| match text {
        Ok(text) => answer(StatusCode::OK, metrics::CONTENT_TYPE, text),
        Err(_) => answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "cannot write the metrics\n"),
    };
    Arc::new(move |_: &Method, path: &str| match path {
        "/metrics" => text(metrics.text()),
        "/metrics/slis" => text(slis.text(&health.judge(Instant::now()))),
        "/configz" => answer(StatusCode::OK, JSON, configz.clone()),
        "/healthz" => answer(StatusCode::OK, TEXT, "ok"),
        "/proxyMode" => answer(StatusCode::OK, TEXT, "ebpf"),
        _ => not_found(),
    })
}

/// An address to answer at.
pub(super) struct Place {
    /// The flag that names it.
    pub(super) flag: &'static str,
    /// What it says.
    pub(super) address: String,
    /// The reason of the Event when it cannot be listened on (2.23).
    pub(super) event: &'static str,
    /// What is answered there.
    pub(super) answers: Answers,
}

impl Place {
    /// Listens and answers until `stop`, in the background. Where it cannot listen it tries again, unless `hard_fail`
    /// (HZ-9).
    ///
    /// # Errors
    /// The address cannot be understood; with `hard_fail`, it cannot be listened on.
    pub(super) fn open(
        self,
        hard_fail: bool,
        events: &Recorder,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let Self { flag, address, event, answers } = self;
        if address.is_empty() {
            return Ok(());
        }
        let at: SocketAddr = address.parse().with_context(|| {
            format!(
                "{flag} {address} is not an address with a port: write it like 0.0.0.0:10256 or [::1]:10256"
            )
        })?;
        let first = match listen(at, Families::Both) {
            Ok(listener) => Some(listener),
            Err(error) if hard_fail => {
                return Err(error).with_context(|| {
                    format!("cannot listen on {flag} {at}: free it, name another one, or leave out --bind-hard-fail")
                });
            }
            Err(error) => {
                say(flag, at, &error);
                events.record(Note::node(event, "Listen", format!("cannot listen on {flag} {at}: {error}")));
                None
            }
        };
        let stop = stop.clone();
        tokio::spawn(async move {
            let answering = async {
                let listener = match first {
                    Some(listener) => listener,
                    None => insist(at).await,
                };
                info!(flag, address = %at, "answering probes or scrapes");
                serve(listener, answers, Room::new(MOST_CONNECTIONS)).await;
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = answering => {}
            }
        });
        Ok(())
    }
}

fn say(flag: &str, address: SocketAddr, error: &io::Error) {
    error!(flag, %address, %error, again = ?AGAIN, "cannot listen, trying again");
}

/// Tries until it succeeds; that it fails has been said.
async fn insist(at: SocketAddr) -> TcpListener {
    loop {
        sleep(AGAIN).await;
        if let Ok(listener) = listen(at, Families::Both) {
            return listener;
        }
    }
}

#[cfg(test)]
mod tests;
