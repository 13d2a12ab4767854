//! What the running agent tells to whoever asks.
//!
//! ```text
//! server.rs           HTTP on a Unix socket -> a question to the owner -> JSON
//! status.rs           the answer of /v1/status
//!
//! health.rs           what the owner was told and what of that it has done
//! probes.rs           /healthz, /livez, /readyz; the metrics address
//! service_health.rs   health check node ports
//! metrics/            values written where things happen, read without the owner
//! events.rs           Kubernetes Events on their way to k8s/events.rs
//! slis.rs             /metrics/slis
//! http.rs, room.rs    listening and answering, for all of them, and how many connections at a time
//! ```
//!
//! What the maps hold is not here: `lb-agent status` and its neighbours read the maps themselves.

pub mod events;
pub mod health;
mod http;
pub mod metrics;
mod probes;
mod room;
pub mod server;
pub mod service_health;
mod slis;
mod status;

use std::{path::Path, sync::Arc};

use tokio::sync::{mpsc::Receiver, watch};
use tokio_util::sync::CancellationToken;

use crate::config::ObserveArgs;
use events::{Note, Recorded, Recorder};
use health::Health;
use metrics::Metrics;
use probes::{Place, Scraped};
use service_health::{HealthPorts, ListenOn, ServiceHealth};
use slis::Slis;

pub use status::{Status, folder_id};

/// Where the owner and the sources leave what others are told. Nothing here waits for anybody.
#[derive(Clone, Debug)]
pub struct Outlets {
    /// What was queued and what is done.
    pub health: Arc<Health>,
    /// Counters and the like.
    pub metrics: Arc<Metrics>,
    /// Kubernetes Events.
    pub events: Recorder,
    /// Health check node ports.
    pub health_ports: Arc<HealthPorts>,
    /// Where they are answered: nowhere until the addresses of this node are known.
    pub listen_on: watch::Sender<ListenOn>,
}

/// The outlets, and the Events to be sent, of which there are none without an API server. Counters of the programs are read
/// from `pin_dir`.
pub fn outlets(
    pin_dir: &Path,
    has_api_server: bool,
    health: Health,
) -> (Outlets, Option<Receiver<Recorded>>) {
    let metrics = Arc::new(Metrics::new(pin_dir));
    let (events, notes) = if has_api_server {
        let (events, notes) = Recorder::new(Arc::clone(&metrics));
        (events, Some(notes))
    } else {
        (Recorder::nowhere(Arc::clone(&metrics)), None)
    };
    let (listen_on, _) = watch::channel(ListenOn::default());
    (Outlets { health: Arc::new(health), metrics, events, health_ports: Arc::default(), listen_on }, notes)
}

/// Answers probes, scrapes and health checks in the background until `stop`. `configz` is what is in force, as JSON.
///
/// # Errors
/// An address cannot be understood, or not be listened on with `--bind-hard-fail` (HZ-9).
pub fn start(
    args: &ObserveArgs,
    configz: String,
    outlets: &Outlets,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let Outlets { health, metrics, events, health_ports, listen_on } = outlets;
    let slis = Arc::new(Slis::new());
    let scraped = Scraped {
        metrics: Arc::clone(metrics),
        health: Arc::clone(health),
        slis: Arc::clone(&slis),
        configz,
    };
    let places = [
        Place {
            flag: "--healthz-address",
            address: args.healthz_address.clone(),
            event: "FailedToStartProxierHealthcheck",
            answers: probes::health(Arc::clone(health), Arc::clone(metrics), slis),
        },
        Place {
            flag: "--metrics-address",
            address: args.metrics_address.clone(),
            event: "FailedToStartMetricServer",
            answers: probes::scrapes(scraped),
        },
    ];
    for place in places {
        place.open(args.bind_hard_fail, events, stop)?;
    }
    if args.health_check_node_ports {
        let service_health = ServiceHealth::new(
            Arc::clone(health),
            Arc::clone(metrics),
            events.clone(),
            listen_on.subscribe(),
        );
        tokio::spawn(service_health.run(Arc::clone(health_ports), stop.clone()));
    }
    events.record(Note::starting());
    Ok(())
}
