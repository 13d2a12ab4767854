//! List and watch at an API server: Services, `EndpointSlice`s, the own Node and, where it has them, ServiceCIDRs.
//!
//! Built on kube's `watcher`, without its store: each object is converted as it arrives and dropped. What the watcher cannot
//! do by itself is here: waiting between attempts, and starting over where its position is of no use any more.

use core::fmt::Debug;
use core::mem;
use core::time::Duration;
use std::pin::pin;
use std::sync::Arc;

use backon::ExponentialBuilder;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node as ApiNode, Service as ApiService};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::utils::ResetTimerBackoff;
use kube::runtime::watcher::{self, Config, ExponentialBackoff, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::heard::heard;
use super::outage::{Outages, is_break};
use super::pace::paced;
use super::select::{Interest, NOT_HEADLESS};
use super::{Refused, namespace, node, service, service_cidr, slice::watched};
use crate::model::{Change, Event, Names, ServiceName, SliceName};
use crate::observe::metrics::Metrics;

/// Pauses between attempts grow from the first to the second, and chance adds up to as much again. The longest is a third
/// of client-go's: an attempt at a server that is away costs it nothing, and after its return every pause is added to the
/// age of what a node knows.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// Objects per page of a list: bounds what is held of API objects at once.
const PAGE: u32 = 500;
/// A watch without a failure for so long works; nothing else tells, because a quiet cluster sends no events.
const RECOVERED: Duration = Duration::from_mins(1);
/// A server that answers and refuses to resume a watch so many times in a row gets a new list request: the position may be
/// one that it will never know, as after a restored backup.
const REFUSALS: u32 = 5;
/// A kind that can be done without and that the server does not give is asked for again this often.
const ASK_AGAIN: Duration = Duration::from_mins(10);

/// Follows the API server until `shutdown`, and sends what it says.
///
/// Failures are retried for ever, with growing pauses; until a new list is complete nothing is deleted. Only what is of
/// `interest` is asked for.
///
/// Answers and failures are counted in `metrics`. Returns when `shutdown` is cancelled or nobody receives any more.
pub async fn run(
    client: Client,
    interest: Arc<Interest>,
    events: mpsc::Sender<Event>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
) {
    let ask = |resource| paced(heard(client.clone(), resource, Arc::clone(&metrics)), pauses());
    let own_node = Arc::clone(&interest.own_node);
    let objects = Config::default().labels(&interest.label_selector()).page_size(PAGE);
    let services = Kind {
        name: "services",
        api: Api::all(ask("services")),
        config: objects.clone().fields(NOT_HEADLESS),
        can_do_without_fields: true,
        is_optional: false,
        convert: Box::new(move |event, names| service_event(event, names, &interest)),
    };
    let slices = Kind {
        name: "endpointslices",
        api: Api::all(ask("endpointslices")),
        config: objects,
        can_do_without_fields: true,
        is_optional: false,
        convert: Box::new(slice_event),
    };
    let nodes = Kind {
        name: "nodes",
        api: Api::all(ask("nodes")),
        config: Config::default().fields(&format!("metadata.name={}", escaped(&own_node))),
        // Every Node of a large cluster, and each of their changes.
        can_do_without_fields: false,
        is_optional: false,
        convert: Box::new(node_event),
    };
    // Kubernetes 1.33; nothing that sockets need follows from them.
    let cidrs = Kind {
        name: "servicecidrs",
        api: Api::all(ask("servicecidrs")),
        config: Config::default().page_size(PAGE),
        can_do_without_fields: true,
        is_optional: true,
        convert: Box::new(service_cidr_event),
    };
    // SY-1: said before anything else can be complete, so that they are waited for.
    if events.send(Event::ServiceCidr(Change::Restart)).await.is_err() {
        return;
    }
    let outages = Outages::new(metrics);
    let mut presence = Presence { own_node, is_listed: false, is_there: None };
    let all = async {
        tokio::join!(
            nodes.follow(&events, &outages, |event| presence.look(event)),
            services.follow(&events, &outages, |_| ()),
            slices.follow(&events, &outages, |_| ()),
            cidrs.follow(&events, &outages, |_| ()),
        )
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        _ = all => {}
    }
}

/// One kind of object.
struct Kind<K> {
    /// As in the path of its requests.
    name: &'static str,
    api: Api<K>,
    config: Config,
    /// Servers that do not know the field selector are asked without it.
    can_do_without_fields: bool,
    /// Where the server does not know the kind or does not show it, things go on without.
    is_optional: bool,
    convert: Convert<K>,
}

type Convert<K> = Box<dyn Fn(watcher::Event<K>, &mut Names) -> Event + Send + Sync>;

/// What was said of a kind that can be done without.
#[derive(Default)]
struct Optional {
    /// A list was complete, or was said to be.
    is_listed: bool,
    was_said: bool,
}

/// How a watch goes on after a failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    /// From where it was.
    Resume,
    /// With a new list.
    List,
    /// With a new list, without the field selector.
    ListWithoutFields,
    /// Without the kind, for long.
    DoWithout,
}

impl<K> Kind<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    /// Shows each event to `look` before it is sent. Returns when nobody receives any more.
    async fn follow(mut self, events: &mpsc::Sender<Event>, outages: &Outages, mut look: impl FnMut(&Event)) {
        let mut names = Names::default();
        // A watch that breaks off says nothing about the server, so what an outage has grown does not count for it; a
        // sequence of its own keeps a watch that breaks off at once each time from asking for list after list.
        let (mut after_breaks, mut after_failures) = (pauses(), pauses());
        let mut state = Optional::default();
        loop {
            let mut refusals = 0;
            let mut stream = pin!(watcher(self.api.clone(), self.config.clone()));
            let next = loop {
                let Some(result) = self.next(&mut stream, outages).await else { break Next::List };
                match result {
                    Ok(event) => {
                        refusals = 0;
                        // Only says that a list will be asked for.
                        if !matches!(event, watcher::Event::Init) {
                            outages.ended(self.name);
                        }
                        state.is_listed |= matches!(event, watcher::Event::InitDone);
                        let event = (self.convert)(event, &mut names);
                        look(&event);
                        if events.send(event).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        let next = self.after(&error, &mut refusals);
                        if next == Next::DoWithout {
                            outages.done_without(self.name);
                            if !self.go_without(&error, &mut state, events, &mut names).await {
                                return;
                            }
                            break next;
                        }
                        outages.failed(self.name, &error);
                        let pauses = if is_break(&error) { &mut after_breaks } else { &mut after_failures };
                        sleep(pauses.next().unwrap_or(PAUSES.1)).await;
                        if next != Next::Resume {
                            break next;
                        }
                    }
                }
            };
            if next == Next::ListWithoutFields {
                info!(kind = self.name, "the API server does not know the field selector, it is left out");
                self.config.field_selector = None;
            }
        }
    }

    /// The next item of the stream; an outage ends when none comes for long, because a failure would be one.
    async fn next<S: StreamExt + Unpin>(&self, stream: &mut S, outages: &Outages) -> Option<S::Item> {
        if outages.has(self.name) {
            match timeout(RECOVERED, stream.next()).await {
                Ok(item) => return item,
                Err(_elapsed) => outages.ended(self.name),
            }
        }
        stream.next().await
    }

    /// Says once that the server does not give the kind, and nothing of it counts as listed (SY-1): what was listed
    /// before stays. Returns after a long while; false if nobody receives any more.
    async fn go_without(
        &self,
        error: &watcher::Error,
        state: &mut Optional,
        events: &mpsc::Sender<Event>,
        names: &mut Names,
    ) -> bool {
        if !mem::replace(&mut state.was_said, true) {
            warn!(
                kind = self.name, %error,
                "the API server does not give these objects, going on without; they are asked for again now and then"
            );
        }
        let is_open =
            state.is_listed || events.send((self.convert)(watcher::Event::InitDone, names)).await.is_ok();
        state.is_listed = true;
        if is_open {
            sleep(ASK_AGAIN).await;
        }
        is_open
    }

    fn after(&self, error: &watcher::Error, refusals: &mut u32) -> Next {
        use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
        match error {
            InitialListFailed(kube::Error::Api(status))
                if self.is_optional && [403, 404].contains(&status.code) =>
            {
                Next::DoWithout
            }
            InitialListFailed(kube::Error::Api(status))
                if status.code == 400
                    && self.can_do_without_fields
                    && self.config.field_selector.is_some() =>
            {
                Next::ListWithoutFields
            }
            // The watcher itself would ask for the same position for ever.
            WatchStartFailed(kube::Error::Api(status)) if status.code == 410 => Next::List,
            WatchStartFailed(kube::Error::Api(_)) => {
                *refusals += 1;
                if *refusals < REFUSALS { Next::Resume } else { Next::List }
            }
            // A line that is no event was lost: what follows it on the stream does not make up for it. The client takes
            // most such lines for a status, of which every field is optional.
            WatchFailed(kube::Error::SerdeError(_) | kube::Error::Api(_)) => Next::List,
            _ => Next::Resume,
        }
    }
}

type Pauses = ResetTimerBackoff<ExponentialBackoff>;

/// Without end; short again after [`RECOVERED`] without a failure.
fn pauses() -> Pauses {
    let growing = ExponentialBuilder::new()
        .with_min_delay(PAUSES.0)
        .with_max_delay(PAUSES.1)
        .with_factor(2.0)
        .with_jitter()
        .without_max_times();
    ResetTimerBackoff::new(ExponentialBackoff::from(growing), RECOVERED)
}

/// A value in the form that a field selector takes it (`k8s.io/apimachinery/pkg/fields`, `EscapeValue`).
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=")
}

/// Whether there is a Node of the agent's name.
struct Presence {
    own_node: Arc<str>,
    /// The list under way has it.
    is_listed: bool,
    /// What was said last.
    is_there: Option<bool>,
}

impl Presence {
    fn look(&mut self, event: &Event) {
        let Event::Node(change) = event else { return };
        match change {
            Change::Restart => self.is_listed = false,
            Change::Apply(node) if node.name == self.own_node => {
                self.is_listed = true;
                self.say(true);
            }
            Change::Delete(name) if *name == self.own_node => self.say(false),
            Change::Apply(_) | Change::Delete(_) | Change::Refuse(..) => {}
            Change::Complete => self.say(self.is_listed),
        }
    }

    fn say(&mut self, is_there: bool) {
        let node = &self.own_node;
        match self.is_there.replace(is_there) {
            Some(before) if before == is_there => {}
            None if is_there => {}
            _ if is_there => info!(%node, "the own Node is there"),
            _ => warn!(
                %node,
                "the API server has no Node of this name, so no endpoint counts as being on this node: check --node-name"
            ),
        }
    }
}

fn service_event(event: watcher::Event<ApiService>, names: &mut Names, interest: &Interest) -> Event {
    Event::Service(change(
        event,
        |object| service(object, names).map(|service| interest.restrict(service)),
        |meta| ServiceName::new(namespace(meta), meta.name.as_deref().unwrap_or_default()),
    ))
}

pub(super) fn slice_event(event: watcher::Event<EndpointSlice>, names: &mut Names) -> Event {
    Event::Slice(change(
        event,
        |object| watched(object, names),
        |meta| SliceName::new(namespace(meta), meta.name.as_deref().unwrap_or_default()),
    ))
}

fn node_event(event: watcher::Event<ApiNode>, names: &mut Names) -> Event {
    Event::Node(change(
        event,
        |object| node(object, names),
        |meta| meta.name.as_deref().unwrap_or_default().into(),
    ))
}

fn service_cidr_event(event: watcher::Event<ServiceCIDR>, names: &mut Names) -> Event {
    Event::ServiceCidr(change(
        event,
        |object| service_cidr(object, names),
        |meta| meta.name.as_deref().unwrap_or_default().into(),
    ))
}

/// An object that cannot be used any more, such as a slice that lost its owner, is as good as deleted, and is named.
fn change<K, N, V>(
    event: watcher::Event<K>,
    convert: impl FnOnce(&K) -> Result<V, Refused>,
    name: impl FnOnce(&ObjectMeta) -> N,
) -> Change<N, V>
where
    K: Resource,
{
    match event {
        watcher::Event::Init => Change::Restart,
        watcher::Event::InitDone => Change::Complete,
        watcher::Event::Apply(object) | watcher::Event::InitApply(object) => match convert(&object) {
            Ok(value) => Change::Apply(value),
            Err(refused) => Change::Refuse(name(object.meta()), refused.fault()),
        },
        watcher::Event::Delete(object) => Change::Delete(name(object.meta())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Node;

    /// A server may send more than was asked for.
    #[test]
    fn only_a_node_of_the_own_name_is_the_own_node() {
        let mut presence = Presence { own_node: "n1".into(), is_listed: false, is_there: None };
        let mut after = |change| {
            presence.look(&Event::Node(change));
            presence.is_there
        };
        assert_eq!(after(Change::Restart), None);
        assert_eq!(after(Change::Apply(Node::new("n2".into()))), None);
        assert_eq!(after(Change::Complete), Some(false));
        assert_eq!(after(Change::Apply(Node::new("n1".into()))), Some(true));
        assert_eq!(after(Change::Delete("n2".into())), Some(true));
        assert_eq!(after(Change::Delete("n1".into())), Some(false));
    }
}
