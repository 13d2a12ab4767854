//! Events for the API server, `events.k8s.io/v1`. It needs the right to create them; without it a line in the log says so.

use core::time::Duration;
use std::{
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::Instant,
};

use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Service},
        events::v1::Event,
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
    core::Status,
};
use tokio::{sync::mpsc::Receiver, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    model::ServiceName,
    observe::{
        events::{Admission, Budget, Filter, Note, Recorded, Subject},
        metrics::{EventResult, Metrics},
    },
};

/// `reportingController`
const CONTROLLER: &str = "lb-agent";
/// Namespace of Events about objects that have none.
const DEFAULT: &str = "default";
/// Longest `note` that the API takes, in bytes.
const LONGEST_NOTE: usize = 1024;
/// Longest `reportingInstance` that the API takes, in bytes.
const LONGEST_INSTANCE: usize = 128;
/// Pauses before a server that gave no answer, or has too much to do, is tried again.
const PAUSES: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(15), Duration::from_secs(30)];

/// Sends what is recorded about `node` and Services until `stop`.
pub async fn run(
    client: Client,
    node: Arc<str>,
    mut notes: Receiver<Recorded>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let (filter, budget) = (Filter::default(), Budget::new(Instant::now()));
    let mut sender = Sending { client, node, metrics, filter, budget, has_warned: false };
    let sending = async {
        while let Some(note) = notes.recv().await {
            sender.take(&note).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = sending => {}
    }
}

struct Sending {
    client: Client,
    node: Arc<str>,
    metrics: Arc<Metrics>,
    filter: Filter,
    budget: Budget,
    /// Why no Event can be sent has been said.
    has_warned: bool,
}

impl Sending {
    async fn take(&mut self, recorded: &Recorded) {
        let result = match self.filter.admit(&recorded.note, Instant::now()) {
            Admission::Repeated => EventResult::Repeated,
            Admission::Limited => EventResult::Limited,
            Admission::Send => {
                sleep(self.budget.pause(Instant::now(), random_share())).await;
                self.send(recorded).await
            }
        };
        self.metrics.event(result);
    }

    async fn send(&mut self, Recorded { note, at }: &Recorded) -> EventResult {
        let uid = match &note.subject {
            // The kubelet's Events and kube-proxy's have the name here, and kubectl looks for both.
            Subject::Node => Some(self.node.to_string()),
            Subject::Service(name) => match insist(|| self.uid(name)).await {
                Ok(uid) => uid,
                // Better without than not at all.
                Err(kube::Error::Api(status)) if is_final(status.code) => None,
                Err(_) => return EventResult::Failed,
            },
        };
        let event = event(note, &self.node, uid, *at);
        let namespace = event.metadata.namespace.as_deref().unwrap_or(DEFAULT);
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        match insist(|| async { api.create(&PostParams::default(), &event).await }).await {
            Ok(_) => {
                self.has_warned = false;
                EventResult::Sent
            }
            Err(error) => {
                if let kube::Error::Api(status) = &error
                    && is_final(status.code)
                {
                    self.refused(status);
                }
                EventResult::Failed
            }
        }
    }

    /// `kubectl describe` shows Events of this uid only; a Service that is gone has none. Listing is a right that the agent has
    /// anyway.
    async fn uid(&self, name: &ServiceName) -> kube::Result<Option<String>> {
        let api: Api<Service> = Api::namespaced(self.client.clone(), &name.namespace);
        let one = ListParams::default().fields(&format!("metadata.name={}", name.name)).limit(1);
        Ok(api.list_metadata(&one).await?.items.pop().and_then(|service| service.metadata.uid))
    }

    /// Said once until an Event is taken again, and not of what is nobody's fault: the namespace is going or gone, or the
    /// credentials are refused, which is said where objects are watched.
    fn refused(&mut self, status: &Status) {
        let Status { code, message, .. } = status;
        let causes = status.details.iter().flat_map(|details| &details.causes);
        let is_leaving = causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating");
        let is_known = is_leaving || matches!(code, 401 | 404);
        if is_known || core::mem::replace(&mut self.has_warned, true) {
            debug!(code, message, "an Event was refused");
            return;
        }
        let remedy = (*code == 403).then_some(
            "bind a ClusterRole that may create events of API group events.k8s.io in all namespaces",
        );
        warn!(
            code,
            message, remedy, "Events are refused by the API server, their content is in this log only"
        );
    }
}

/// Asks until the server answers, a few times.
async fn insist<T, A: Future<Output = kube::Result<T>>>(ask: impl Fn() -> A) -> kube::Result<T> {
    let mut pauses = PAUSES.into_iter();
    loop {
        let error = match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if matches!(&error, kube::Error::Api(status) if is_final(status.code)) {
            return Err(error);
        }
        debug!(%error, "an Event was not taken");
        let Some(pause) = pauses.next() else { return Err(error) };
        sleep(pause).await;
    }
}

/// Whether the server will answer the same when it is asked again. 429 is its priority and fairness: "later".
const fn is_final(code: u16) -> bool {
    code < 500 && code != 429
}

/// In 0..1, another one each time.
fn random_share() -> f64 {
    // Keys of the standard library's maps are random enough to spread nodes.
    let [one, two, ..] = RandomState::new().hash_one(()).to_le_bytes();
    f64::from(u16::from_le_bytes([one, two])) / 65536.0
}

/// The object. The node is in it, because every node may have the same to say of a Service.
fn event(note: &Note, node: &str, uid: Option<String>, at: Timestamp) -> Event {
    let (kind, namespace, name) = match &note.subject {
        Subject::Node => ("Node", None, node.to_owned()),
        Subject::Service(name) => ("Service", Some(name.namespace.to_string()), name.name.to_string()),
    };
    Event {
        metadata: ObjectMeta {
            namespace: Some(namespace.clone().unwrap_or_else(|| DEFAULT.to_owned())),
            generate_name: Some(format!("{name}-")),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(at)),
        type_: Some(if note.is_warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(note.reason.to_owned()),
        action: Some(note.action.to_owned()),
        note: Some(cut(&note.text, LONGEST_NOTE).to_owned()),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(cut(node, LONGEST_INSTANCE).to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.to_owned()),
            namespace,
            name: Some(name),
            uid,
            ..ObjectReference::default()
        }),
        ..Event::default()
    }
}

/// The beginning of a text, in whole characters.
fn cut(text: &str, most: usize) -> &str {
    text.get(..text.floor_char_boundary(most)).unwrap_or(text)
}

#[cfg(test)]
mod tests;
