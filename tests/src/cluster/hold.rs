//! The process that holds a cluster: it starts everything, says when it is up, and ends everything when it is told to.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::Api;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::layout::{Layout, State};
use super::node::{Node, Shape};
use super::objects::{self, NAME_SERVER_COUNT, NAME_SERVERS, NAMESPACE};
use super::programs::Programs;
use super::proxy::Proxy;
use super::{foreign, network};
use crate::control_plane::{ControlPlane, Trust};
use crate::wait_for;

/// How long a node may take until it is Ready: it imports the images first.
const NODE_LIMIT: Duration = Duration::from_mins(3);

/// How long the name servers may take from when they are asked for.
const DNS_LIMIT: Duration = Duration::from_mins(2);

/// How often the cluster is looked after.
const LOOK: Duration = Duration::from_secs(1);

/// Whether somebody wants this process to end, by SIGTERM or SIGINT.
#[derive(Clone, Debug)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// From now on.
    pub(super) fn on_signals() -> Result<Self> {
        let stop = Self(Arc::new(AtomicBool::new(false)));
        let flag = Arc::clone(&stop.0);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (mut terminate, mut interrupt) = {
            let _inside = runtime.enter();
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
        };
        thread::Builder::new().name("signals".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            });
            flag.store(true, Ordering::Relaxed);
        })?;
        Ok(stop)
    }

    /// Whether they do.
    pub(super) fn is_wanted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A cluster. Dropping it ends it: nodes first, because they would tell a control plane that is gone.
#[derive(Debug)]
struct Cluster {
    nodes: Vec<Node>,
    control_plane: ControlPlane,
    stop: Stop,
    begin: Instant,
}

/// Starts a cluster, publishes it in the layout, and ends it when this process is told to end.
///
/// # Errors
/// Something does not start, or ends by itself: what it is, and the end of its log. Nothing is left running then.
pub fn hold(layout: &Layout, proxy: Proxy, nodes: u8) -> Result<()> {
    let stop = Stop::on_signals()?;
    let _lock = layout.lock()?;
    layout.publish_holder()?;
    let cluster = Cluster::start(layout, proxy, nodes, stop)?;
    let state = State {
        proxy,
        control_plane: cluster.control_plane.netns().name().to_owned(),
        nodes: cluster.nodes.iter().map(|node| node.netns().to_owned()).collect(),
    };
    if proxy == Proxy::LbAgent {
        foreign::expect_none(&state)?;
    }
    layout.publish(&state)?;
    cluster.say("up");
    while !cluster.stop.is_wanted() {
        cluster.check_running()?;
        thread::sleep(LOOK);
    }
    Ok(())
}

impl Cluster {
    fn start(layout: &Layout, proxy: Proxy, nodes: u8, stop: Stop) -> Result<Self> {
        let begin = Instant::now();
        let programs = Programs::ensure(layout)?;
        let folder = layout.run().join("control-plane");
        let control_plane = ControlPlane::for_kubelets(&folder, &programs.scheduler)?;
        let mut cluster = Self { nodes: Vec::new(), control_plane, stop, begin };
        let control_plane = &cluster.control_plane;
        let urls = control_plane.node_urls();
        fs::rename(control_plane.kubeconfig(&urls[0], Trust::Authority)?, layout.kubeconfig())?;
        let from_here = control_plane.kubeconfig(&control_plane.host_url(), Trust::Authority)?;
        fs::rename(from_here, layout.host_kubeconfig())?;
        let netns = control_plane.netns();
        netns.ip(&network::bridge())?;
        for sysctl in network::FORWARDS {
            netns.sysctl(sysctl, "1")?;
        }
        cluster.say("the control plane is ready");

        let shape = Shape { layout, programs: &programs, proxy, nodes };
        for number in 1..=nodes {
            let node = Node::start(number, shape, cluster.control_plane.netns())
                .with_context(|| format!("node {}", network::name(number)))?;
            cluster.nodes.push(node);
        }
        for number in 1..=nodes {
            cluster.wait_for_node(number)?;
        }
        cluster.say(&format!("{nodes} nodes are ready"));

        for object in objects::dns() {
            cluster.control_plane.apply(&object)?;
        }
        cluster.wait_for_dns(proxy)?;
        cluster.say("the name servers are ready");
        // Like a cloud's controller, after the Nodes are there: kube-proxy 1.36 may miss a label that a Node has when it starts.
        for number in 1..=nodes {
            let node = objects::node(&network::name(number));
            cluster.control_plane.patch(&node, &objects::zone(number))?;
        }
        Ok(cluster)
    }

    /// Waits until kubelet has made its Node, gives that its pods' ranges, and waits until it is Ready.
    fn wait_for_node(&self, number: u8) -> Result<()> {
        let name = network::name(number);
        self.wait(&format!("the Node {name}"), NODE_LIMIT, || {
            self.node(&name)?.map(drop).ok_or("none yet".into())
        })?;
        let ranges = network::pods(number);
        let patch = json!({"spec": {"podCIDR": ranges[0], "podCIDRs": ranges}});
        self.control_plane.patch(&objects::node(&name), &patch)?;
        self.wait(&format!("the Node {name} to be Ready"), NODE_LIMIT, || {
            let conditions = self.node(&name)?.and_then(|node| node.status?.conditions).unwrap_or_default();
            match conditions.into_iter().find(|condition| condition.type_ == "Ready") {
                Some(condition) if condition.status == "True" => Ok(()),
                Some(condition) => Err(condition.message.unwrap_or(condition.status)),
                None => Err("it does not say".to_owned()),
            }
        })
    }

    fn node(&self, name: &str) -> Result<Option<NodeObject>, String> {
        let (nodes, name) = (Api::<NodeObject>::all(self.control_plane.client()), name.to_owned());
        self.control_plane.run(async move { nodes.get_opt(&name).await }).map_err(|error| error.to_string())
    }

    /// Waits for the name servers. They read the API through a cluster IP, so they show that the service proxies work.
    fn wait_for_dns(&self, proxy: Proxy) -> Result<()> {
        let api: Api<Deployment> = Api::namespaced(self.control_plane.client(), NAMESPACE);
        let ready = self.wait("the name servers to be ready", DNS_LIMIT, || {
            let api = api.clone();
            let found = self.control_plane.run(async move { api.get(NAME_SERVERS).await });
            let status = found.map_err(|error| error.to_string())?.status.unwrap_or_default();
            let ready = u64::try_from(status.ready_replicas.unwrap_or_default()).unwrap_or_default();
            if ready == NAME_SERVER_COUNT {
                Ok(())
            } else {
                Err(format!("{ready} of {NAME_SERVER_COUNT} are"))
            }
        });
        ready.with_context(|| {
            format!("name servers reach the API server by its cluster IP: look at n*/proxy.log of {proxy}, then at n*/kubelet.log")
        })
    }

    /// [`wait_for`], which ends early when this process is to end or a part of the cluster has.
    fn wait<T>(&self, what: &str, limit: Duration, mut look: impl FnMut() -> Result<T, String>) -> Result<T> {
        wait_for(what, limit, || {
            if self.stop.is_wanted() {
                return Ok(Err(anyhow!("told to end while waiting for {what}")));
            }
            match self.check_running() {
                Ok(()) => look().map(Ok),
                Err(error) => Ok(Err(error)),
            }
        })?
    }

    fn check_running(&self) -> Result<()> {
        self.control_plane.check_running()?;
        if !self.control_plane.is_serving() {
            bail!("the API server was stopped");
        }
        self.nodes.iter().try_for_each(Node::check_running)
    }

    /// For whoever started this process and waits.
    fn say(&self, what: &str) {
        println!("{:>3} s: {what}", self.begin.elapsed().as_secs());
    }
}
