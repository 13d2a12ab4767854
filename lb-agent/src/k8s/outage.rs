//! What is logged while the API server cannot be followed: one line when that begins, with the remedy where it is known,
//! and one when it is over.
//!
//! The kinds of objects usually fail together and for the same reason; only the first of them is heard then.

use core::error::Error;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::runtime::watcher;
use rustls::CertificateError;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::connect::NoAnswer;
use crate::observe::metrics::Metrics;

/// Longest message of a server that is repeated, in characters: some proxies answer with a whole page.
const LONGEST_MESSAGE: usize = 300;

const CREDENTIALS: &str =
    "check the token or client certificate in the kubeconfig, or the service account of the pod";
const RIGHTS: &str =
    "bind a ClusterRole that may list and watch services, endpointslices.discovery.k8s.io and nodes";
const AUTHORITY: &str =
    "name the authority that signed the API server's certificate by certificate-authority in the kubeconfig";
const NAME: &str =
    "use an address that the API server's certificate names, or set tls-server-name in the kubeconfig";
const VALIDITY: &str = "check this node's clock, or renew the API server's certificate";
const SERVICE_ADDRESS: &str =
    "the address is a Service's and needs a service proxy: give the API server's own one by --api-server";

/// The kinds of objects that cannot be followed.
#[derive(Debug)]
pub(super) struct Outages {
    metrics: Arc<Metrics>,
    kinds: Mutex<BTreeMap<&'static str, Outage>>,
}

#[derive(Debug)]
struct Outage {
    since: Instant,
    /// As it was logged, or would have been.
    text: String,
    remedy: Option<&'static str>,
}

impl Outages {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, kinds: Mutex::default() }
    }

    /// A list or watch of `kind` has failed and will be tried again.
    pub(super) fn failed(&self, kind: &'static str, error: &watcher::Error) {
        self.metrics.api_failed(kind);
        let (text, remedy) = (brief(error), remedy(error));
        let mut kinds = self.kinds();
        let known = kinds.get(kind);
        let is_news = known
            .map_or_else(|| !is_break(error), |known| remedy.is_some() && remedy != known.remedy)
            && kinds.values().all(|other| other.text != text);
        if is_news {
            warn!(
                kind,
                error = text,
                remedy,
                "objects cannot be watched, the last known ones stay in force, retrying"
            );
        } else {
            debug!(kind, error = text, "watch failed, retrying");
        }
        if is_news || (known.is_none() && !is_break(error)) {
            let since = known.map_or_else(Instant::now, |known| known.since);
            kinds.insert(kind, Outage { since, text, remedy });
        }
    }

    /// `kind` is followed again.
    pub(super) fn ended(&self, kind: &'static str) {
        let mut kinds = self.kinds();
        if let Some(outage) = kinds.remove(kind) {
            let after = outage.since.elapsed();
            if kinds.is_empty() {
                info!(?after, "objects are watched again");
            } else {
                debug!(kind, ?after, "objects of this kind are watched again");
            }
        }
    }

    /// The server does not give `kind`, and that is well.
    pub(super) fn done_without(&self, kind: &'static str) {
        self.metrics.api_not_given(kind);
        self.ended(kind);
    }

    /// Whether `kind` cannot be followed.
    pub(super) fn has(&self, kind: &str) -> bool {
        self.kinds().contains_key(kind)
    }

    fn kinds(&self) -> MutexGuard<'_, BTreeMap<&'static str, Outage>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A watch that was there has ended, which is everyday life; that it cannot be resumed is an outage.
pub(super) const fn is_break(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchFailed(_) | watcher::Error::WatchError(_))
}

/// One line: what the server said, or why it said nothing.
fn brief(error: &watcher::Error) -> String {
    match request_error(error) {
        Some(kube::Error::Api(status)) => {
            let message: String = status.message.chars().take(LONGEST_MESSAGE).collect();
            format!("HTTP {}: {}", status.code, message.split_whitespace().collect::<Vec<_>>().join(" "))
        }
        Some(other) => match no_answer(other) {
            Some(no_answer) => no_answer.to_string(),
            None => with_root_cause(other),
        },
        None => error.to_string(),
    }
}

/// An error with its innermost source, which the texts of outer errors often do not reach.
pub(super) fn with_root_cause(error: &(dyn Error + 'static)) -> String {
    let (text, root) = (error.to_string(), sources(error).last().unwrap_or(error).to_string());
    if text.contains(&root) { text } else { format!("{text}: {root}") }
}

/// What a person can do about it, where that is known.
fn remedy(error: &watcher::Error) -> Option<&'static str> {
    match request_error(error)? {
        kube::Error::Api(status) => match status.code {
            401 => Some(CREDENTIALS),
            403 => Some(RIGHTS),
            _ => None,
        },
        other => {
            let no_answer = no_answer(other)?;
            let certificate = no_answer.errors.iter().find_map(|(_, error)| certificate_remedy(error));
            certificate.or_else(|| no_answer.is_service_address.then_some(SERVICE_ADDRESS))
        }
    }
}

fn certificate_remedy(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let tls = sources(error).find_map(|source| source.downcast_ref::<rustls::Error>())?;
    let rustls::Error::InvalidCertificate(reason) = tls else { return None };
    match reason {
        CertificateError::UnknownIssuer => Some(AUTHORITY),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Some(NAME),
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => Some(VALIDITY),
        _ => None,
    }
}

fn request_error(error: &watcher::Error) -> Option<&kube::Error> {
    use watcher::Error::{InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(error) | WatchStartFailed(error) | WatchFailed(error) => Some(error),
        WatchError(_) | NoResourceVersion => None,
    }
}

fn no_answer(error: &kube::Error) -> Option<&NoAnswer> {
    match error {
        kube::Error::Service(inner) => inner.downcast_ref(),
        _ => None,
    }
}

/// The error and everything below it.
fn sources<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    core::iter::successors(Some(error), |&error| {
        // An I/O error names the source of what it wraps as its own, and so passes over what it wraps.
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        }
    })
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use rstest::rstest;

    use super::*;

    fn list_failed(error: kube::Error) -> watcher::Error {
        watcher::Error::InitialListFailed(error)
    }

    fn status(code: u16, message: &str) -> watcher::Error {
        list_failed(kube::Error::Api(Status::failure(message, "").with_code(code).boxed()))
    }

    fn no_answer(error: impl Into<tower::BoxError>, is_service_address: bool) -> watcher::Error {
        let errors = vec![("https://10.0.0.1:6443".parse().unwrap(), kube::Error::Service(error.into()))];
        list_failed(kube::Error::Service(NoAnswer { errors, is_service_address }.into()))
    }

    /// As the libraries nest it: an I/O error in an I/O error.
    fn bad_certificate(reason: CertificateError) -> watcher::Error {
        no_answer(io::Error::other(io::Error::other(rustls::Error::InvalidCertificate(reason))), true)
    }

    #[rstest]
    #[case::no_credentials(status(401, "Unauthorized"), Some(CREDENTIALS))]
    #[case::no_rights(status(403, "forbidden"), Some(RIGHTS))]
    #[case::another_status(status(500, "broken"), None)]
    #[case::unknown_authority(bad_certificate(CertificateError::UnknownIssuer), Some(AUTHORITY))]
    #[case::another_name(bad_certificate(CertificateError::NotValidForName), Some(NAME))]
    #[case::clock(bad_certificate(CertificateError::NotValidYet), Some(VALIDITY))]
    #[case::service_without_a_proxy(no_answer(io::Error::other("timed out"), true), Some(SERVICE_ADDRESS))]
    #[case::refused(no_answer(io::Error::other("refused"), false), None)]
    fn what_can_be_put_right_has_a_remedy(#[case] error: watcher::Error, #[case] wanted: Option<&str>) {
        assert_eq!(remedy(&error), wanted);
    }

    #[test]
    fn the_text_is_one_line_with_address_and_cause() {
        let text = brief(&bad_certificate(CertificateError::UnknownIssuer));
        assert!(text.contains("10.0.0.1:6443") && text.contains("UnknownIssuer"), "{text}");
        let page = format!("<html>\n{}", "x".repeat(10_000));
        let text = brief(&status(502, &page));
        assert!(text.starts_with("HTTP 502: <html> xx") && text.len() < 400, "{text}");
    }

    #[test]
    fn a_break_alone_is_no_outage() {
        let outages = Outages::new(Arc::new(Metrics::new(std::path::Path::new("/nowhere"))));
        outages
            .failed("services", &watcher::Error::WatchFailed(kube::Error::LinesCodecMaxLineLengthExceeded));
        assert!(!outages.has("services"));
        outages.failed("services", &status(500, "broken"));
        assert!(outages.has("services") && !outages.has("nodes"));
        outages.ended("services");
        assert!(!outages.has("services"));
    }
}
