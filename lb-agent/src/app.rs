//! Builds the parts of the running agent in order, and ends them.

use std::{
    fs,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{
        mpsc::{Receiver, Sender, channel},
        watch,
    },
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    collector::Collector,
    config::{OnOff, RunArgs},
    datapath::{addresses::NodePortOptions, conntrack, devices, host, load::Switches},
    healer::Healer,
    k8s::{self, Access, Interest, manifests::Problem},
    leftovers,
    maps::pin::PinDir,
    model::Event,
    observe::{
        self, Outlets,
        events::Recorded,
        health::Health,
        server::{Server, Sources},
    },
    owner::{Mailbox, Message, Owner, Settings, Stamp, unix_s},
};

/// Messages in flight: a slow owner slows its sources.
const QUEUE: usize = 4096;
/// How often the owner looks after what was left undone.
const TICK: Duration = Duration::from_secs(1);
/// How often the file of `--config` is looked at.
const LOOK_AT_CONFIG: Duration = Duration::from_secs(10);

/// What the configuration came to, beside the values themselves.
#[derive(Debug)]
pub struct Configured {
    /// What the file of `--config` said.
    pub file: Option<String>,
    /// What is in force, as `/configz` answers it.
    pub configz: String,
}

/// Runs until SIGTERM or SIGINT. Programs, links and maps stay: traffic goes on.
///
/// # Errors
/// What makes a start impossible, each with its remedy.
pub fn run(args: &RunArgs, configured: Configured) -> anyhow::Result<()> {
    let Configured { file, configz } = configured;
    host::check_kernel()?;
    host::check_capabilities()?;
    let cgroup = host::cgroup(args.cgroup.as_deref())?;
    let switches = Switches::probe(host::netns_cookie(&cgroup), args.refuse_by)?;
    let settings = settings(args, cgroup, switches)?;
    protect_from_oom(args.oom_score_adj);
    let pins = PinDir::open(&args.pins.pin_dir)?;
    info!(
        version = env!("CARGO_PKG_VERSION"), node = %settings.node, cgroup = %settings.cgroup.display(),
        pin_dir = %args.pins.pin_dir.display(), refuses_directly = settings.switches.has_set_retval, "starting"
    );
    raise_descriptors();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let watch_config = args.config.clone().zip(file).map(|(path, text)| watch_config(path, text));
    runtime.block_on(async {
        watch_config.map(tokio::spawn);
        supervise(args, configz, settings, pins).await
    })
}

fn settings(args: &RunArgs, cgroup: PathBuf, switches: Switches) -> anyhow::Result<Settings> {
    Ok(Settings {
        node: args.node()?,
        cgroup,
        socket_lb: args.socket_lb(),
        switches,
        node_ports: NodePortOptions {
            on: args.addresses.nodeport_addresses.clone(),
            localhost: args.addresses.localhost_nodeports,
            node_ip: args.addresses.node_ip,
        },
        service_cidrs: args.select.service_cidr.clone(),
        packets: args.packets.options()?,
        affinity_clients: args.maps.map_max_affinity,
        flows: args.maps.map_max_flows,
        min_sync_interval: args.sync.min_sync_interval.0,
        resync_interval: args.sync.resync_interval.0,
    })
}

/// Without this agent a node's Services stand still, so it should be the last to go when memory ends. Lowering the
/// number needs CAP_SYS_RESOURCE, and nothing else does.
fn protect_from_oom(score: i16) {
    if let Err(error) = fs::write("/proc/self/oom_score_adj", score.to_string()) {
        warn!(
            score, %error,
            "cannot set how likely this process is killed when memory ends: give it CAP_SYS_RESOURCE, or name the \
             score it has by --oom-score-adj"
        );
    }
}

/// Says once that the file is not what it was at the start: kube-proxy ends then, to be started again with the new
/// content.
async fn watch_config(path: PathBuf, text: String) {
    loop {
        tokio::time::sleep(LOOK_AT_CONFIG).await;
        // It may be gone for a moment while it is replaced.
        if fs::read_to_string(&path).is_ok_and(|now| now != text) {
            warn!(file = %path.display(), "--config has changed, restart lb-agent to use it");
            return;
        }
    }
}

/// Each health check node port takes a descriptor per family, and the soft limit is 1024 for programs that use select(2). Where
/// it cannot be raised, the ports that have no room say so (HC-8).
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        debug!(%error, "the limit of open files stays as it is");
    }
}

/// Runs the owner on a thread of its own, and everything that sends to it here.
async fn supervise(args: &RunArgs, configz: String, settings: Settings, pins: PinDir) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let server = Server::bind(&args.socket.socket)?;
    let (sender, messages) = channel(QUEUE);
    let node = Arc::clone(&settings.node);
    let health = Health::new(settings.resync_interval, settings.min_sync_interval);
    let (outlets, notes) = observe::outlets(&args.pins.pin_dir, args.manifests.is_none(), health);
    let metrics = Arc::clone(&outlets.metrics);
    let healed =
        move |freed, has_failed, took: Duration| metrics.healed(freed, has_failed, took.as_secs_f64());
    let healer =
        Healer::start(args.pins.pin_dir.clone(), healed).context("cannot start the healer's thread")?;
    let metrics = Arc::clone(&outlets.metrics);
    // It ends with the agent.
    let _collector = Collector::start(&args.pins.pin_dir, move |round| metrics.collected(&round))
        .context("cannot start the thread that collects flows")?;
    observe::start(&args.observe, configz, &outlets, &stop)?;
    let leftovers = leftovers::watch::start(Arc::clone(&outlets.metrics)).context("cannot start a thread")?;
    let mailbox = Mailbox { messages, sender: sender.downgrade() };
    let owner = Owner::new(settings, pins, healer, outlets.clone(), mailbox);
    let (ended, mut end) = tokio::sync::oneshot::channel();
    thread::Builder::new()
        .name("owner".into())
        .spawn(move || drop(ended.send(owner.run())))
        .context("cannot start the owner's thread")?;

    tokio::spawn(devices::run(sender.clone(), Message::Network, stop.clone()));
    tokio::spawn(conntrack::run(args.conntrack.sysctls(), stop.clone()));
    tokio::spawn(tick(sender.clone(), Arc::clone(&outlets.health), stop.clone()));
    let (report, problems) = watch::channel(Vec::new());
    let to_owner = ToOwner { sender: sender.clone(), outlets, notes };
    tokio::spawn(source(args, node, to_owner, report, stop.clone()).await?);
    let pin_dir = args.pins.pin_dir.as_path().into();
    let sources = Sources { owner: sender.clone(), problems, leftovers, pin_dir };
    tokio::spawn(server.run(sources, stop.clone()));

    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let result = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        result = &mut end => Some(result),
    };
    stop.cancel();
    let result = if let Some(result) = result {
        result
    } else {
        info!("stopping, programs and maps stay");
        // A closed channel means that the owner has ended by itself.
        drop(sender.send(Message::Stop).await);
        end.await
    };
    result.unwrap_or_else(|_| Err(anyhow::anyhow!("the owner's thread panicked; its message is above")))
}

/// Wakes the owner regularly.
async fn tick(sender: Sender<Message>, health: Arc<Health>, stop: CancellationToken) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let now = Instant::now();
        health.tick_queued(now);
        if sender.send(Message::Tick(now)).await.is_err() {
            return;
        }
    }
}

/// The task that feeds the owner with objects, from a folder or from an API server.
async fn source(
    args: &RunArgs,
    node: Arc<str>,
    to_owner: ToOwner,
    problems: watch::Sender<Vec<Problem>>,
    stop: CancellationToken,
) -> anyhow::Result<Pin<Box<dyn Future<Output = ()> + Send>>> {
    let (events, objects) = channel::<Event>(QUEUE);
    let ToOwner { sender, outlets, notes } = to_owner;
    let metrics = Arc::clone(&outlets.metrics);
    let forward = forward(objects, sender, outlets);
    let interest = Arc::new(Interest {
        own_node: Arc::clone(&node),
        proxy_name: args.select.service_proxy_name.as_str().into(),
        external_ips: args.select.external_ips == OnOff::On,
        algorithm: args.algorithm,
    });
    if let Some(folder) = args.manifests.clone() {
        let source = k8s::manifests::run(folder, interest, events, problems, stop);
        return Ok(Box::pin(async {
            tokio::join!(source, forward);
        }));
    }
    let access = Access { kubeconfig: args.kubeconfig.clone(), servers: args.api_server.clone() };
    let client = k8s::connect(&access).await?;
    if let Some(notes) = notes {
        tokio::spawn(k8s::events::run(client.clone(), node, notes, Arc::clone(&metrics), stop.clone()));
    }
    let source = k8s::api::run(client, interest, events, metrics, stop);
    Ok(Box::pin(async {
        tokio::join!(source, forward);
    }))
}

/// What a source needs beside where it reads from.
struct ToOwner {
    sender: Sender<Message>,
    outlets: Outlets,
    /// Events for the API server, if there is one.
    notes: Option<Receiver<Recorded>>,
}

/// Passes objects on to the owner, and notes it: an owner that does not take them is found by their age (HZ-2).
async fn forward(mut objects: Receiver<Event>, sender: Sender<Message>, outlets: Outlets) {
    while let Some(event) = objects.recv().await {
        let stamp = Stamp::now();
        outlets.health.object_queued(&event, stamp.at);
        outlets.metrics.queued(&event, unix_s(stamp.time));
        if sender.send(Message::Object(event, stamp)).await.is_err() {
            return;
        }
    }
}
