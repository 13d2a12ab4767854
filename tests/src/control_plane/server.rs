//! Starting, restarting and stopping a control plane, and talking to it.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::http::Request;
use kube::Client;
use serde_json::{Value, json};

use super::components::{self, ETCD_URL};
use super::daemon::{Daemon, tail};
use super::kubeconfig::{self, Trust};
use super::run_folder::RunFolder;
use super::runtime::NetnsRuntime;
use super::{API_ADDRESSES, API_PORT, pki};
use crate::{Netns, wait_for};

/// The API server in its own namespace.
const LOCAL_URL: &str = "https://127.0.0.1:6443";

/// How long a start may take. Seconds are normal, on a busy machine too.
const START_PATIENCE: Duration = Duration::from_mins(1);

/// How long an API server may finish its requests when it is asked to end.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// Names of the API server's certificate besides [`API_ADDRESSES`].
const OTHER_NAMES: [&str; 6] =
    ["127.0.0.1", "::1", "10.0.0.1", "fd00:10::1", "localhost", "kubernetes.default.svc"];

/// Who does the work of kubelets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kubelets {
    /// Tests do: they write what kubelets would. Some controllers run, and no scheduler.
    Played,
    /// Kubelets run: every controller, the scheduler and service accounts.
    Real,
}

/// A running control plane in a network namespace of its own. Dropping it ends it; the logs stay in
/// [`Self::folder`] until the next run.
// Fields drop in this order: programs before the namespace, files last.
#[derive(Debug)]
pub struct ControlPlane {
    scheduler: Option<Daemon>,
    controllers: Daemon,
    api_server: Mutex<Option<Daemon>>,
    etcd: Daemon,
    client: KubeClient,
    runtime: NetnsRuntime,
    host_port: u16,
    token: String,
    files: AtomicU32,
    links: Mutex<u8>,
    kubelets: Kubelets,
    folder: RunFolder,
}

/// [`Client`] has no `Debug`.
struct KubeClient(Client);

impl std::fmt::Debug for KubeClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KubeClient")
    }
}

impl ControlPlane {
    /// Starts one and waits until the API server is ready. Builds the programs if they are nowhere yet.
    ///
    /// # Errors
    /// The process is not root, the programs cannot be had, or one of them does not start: then the end of its log is
    /// in the message.
    pub fn start() -> Result<Self> {
        Self::start_with(RunFolder::make()?, None)
    }

    /// Starts one for real kubelets, with its files in `folder`; `scheduler` is the program of that name.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn for_kubelets(folder: &Path, scheduler: &Path) -> Result<Self> {
        Self::start_with(RunFolder::at(folder)?, Some(scheduler))
    }

    fn start_with(folder: RunFolder, scheduler: Option<&Path>) -> Result<Self> {
        let kubelets = if scheduler.is_some() { Kubelets::Real } else { Kubelets::Played };
        let path = folder.path();
        let token = random_token()?;
        std::fs::write(path.join("tokens.csv"), format!("{token},admin,admin,\"system:masters\"\n"))?;
        pki::write(path, &[&OTHER_NAMES[..], &API_ADDRESSES[..]].concat())?;
        let local = path.join("kubeconfig");
        kubeconfig::write(&local, LOCAL_URL, &path.join(pki::AUTHORITY), &token, Trust::Authority)?;

        let runtime = NetnsRuntime::start(network()?)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on 127.0.0.1")?;
        let host_port = listener.local_addr()?.port();
        runtime.forward(listener, format!("127.0.0.1:{API_PORT}"))?;
        let run = |name: &str, command: Command| {
            Daemon::start(name, command, runtime.netns(), &path.join(format!("{name}.log")))
        };
        let etcd = run("etcd", components::etcd(path)?)?;
        let api_server = run("kube-apiserver", components::api_server(path, kubelets)?)?;
        let client = runtime.run(kubeconfig::client(local.clone()))?;
        wait_ready(&runtime, &client, &[&etcd, &api_server])?;
        let controllers =
            run("kube-controller-manager", components::controller_manager(path, &local, kubelets)?)?;
        let scheduler = scheduler.map(|program| components::scheduler(program, &local));
        let scheduler = scheduler.map(|command| run("kube-scheduler", command)).transpose()?;
        Ok(Self {
            scheduler,
            controllers,
            api_server: Mutex::new(Some(api_server)),
            etcd,
            client: KubeClient(client),
            runtime,
            host_port,
            token,
            files: AtomicU32::new(0),
            links: Mutex::new(0),
            kubelets,
            folder,
        })
    }

    /// The network namespace of the API server.
    pub fn netns(&self) -> &Netns {
        self.runtime.netns()
    }

    /// The folder of certificates and logs.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A client with all rights, for futures given to [`Self::run`].
    pub fn client(&self) -> Client {
        self.client.0.clone()
    }

    /// Runs `future` in the API server's namespace and waits for its result. Not to be called from async
    /// code.
    pub fn run<F>(&self, future: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        self.runtime.run(future)
    }

    /// The runtime inside the API server's namespace.
    pub fn runtime(&self) -> &NetnsRuntime {
        &self.runtime
    }

    /// Where the API server is reached from the namespace of the test process itself:
    /// `https://127.0.0.1:<port>`.
    pub fn host_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.host_port)
    }

    /// Where the API server is reached from every linked node: one address for each of [`API_ADDRESSES`].
    pub fn node_urls(&self) -> [String; 3] {
        API_ADDRESSES.map(|address| {
            if address.contains(':') {
                format!("https://[{address}]:{API_PORT}")
            } else {
                format!("https://{address}:{API_PORT}")
            }
        })
    }

    /// Writes a kubeconfig for `server` (a URL of this type's, or of a [`super::FaultProxy`]) and returns
    /// its path.
    pub fn kubeconfig(&self, server: &str, trust: Trust) -> Result<PathBuf> {
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        let path = self.folder().join(format!("kubeconfig-{number}"));
        kubeconfig::write(&path, server, &self.authority(), &self.token, trust)?;
        Ok(path)
    }

    /// The certificate (PEM) of the authority that signed the API server's.
    pub fn authority(&self) -> PathBuf {
        self.folder().join(pki::AUTHORITY)
    }

    /// The administrator's bearer token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Asks the API server to end, which closes watches in order. Does nothing when it is stopped already.
    pub fn stop_api_server(&self) {
        if let Some(mut server) = self.api_server().take() {
            server.terminate(STOP_PATIENCE);
        }
    }

    /// Kills the API server: connections end without a word. Does nothing when it is stopped already.
    pub fn kill_api_server(&self) {
        drop(self.api_server().take());
    }

    /// True unless the API server is stopped.
    pub fn is_serving(&self) -> bool {
        self.api_server().is_some()
    }

    /// Starts the API server on the same data and waits until it is ready. Does nothing when it runs.
    pub fn start_api_server(&self) -> Result<()> {
        let mut running = self.api_server();
        if running.is_some() {
            return Ok(());
        }
        let command = components::api_server(self.folder(), self.kubelets)?;
        let log = self.folder().join("kube-apiserver.log");
        let server = running.insert(Daemon::start("kube-apiserver", command, self.netns(), &log)?);
        wait_ready(&self.runtime, &self.client(), &[&self.etcd, server])
    }

    /// Compacts etcd up to its present revision, which it returns: older resource versions are then
    /// answered with 410.
    ///
    /// The API server remembers changes that it has seen in a cache of its own, which a restart empties.
    pub fn compact(&self) -> Result<i64> {
        let range = json!({"key": "AA==", "limit": 1});
        let revision = self.etcd("/v3/kv/range", &range)?;
        let revision = revision["header"]["revision"].as_str().context("etcd's answer has no revision")?;
        let revision: i64 = revision.parse()?;
        let compaction = json!({"revision": revision, "physical": true});
        self.etcd("/v3/kv/compaction", &compaction).context("compaction")?;
        Ok(revision)
    }

    /// The last lines of every log, for a failure message.
    pub fn log_tails(&self) -> String {
        ["etcd", "kube-apiserver", "kube-controller-manager"]
            .map(|name| tail(&self.folder().join(format!("{name}.log"))))
            .concat()
    }

    /// Fails with the end of a log when etcd, the controller manager or the scheduler has ended.
    pub fn check_running(&self) -> Result<()> {
        self.etcd.check_running()?;
        self.scheduler.as_ref().map_or(Ok(()), Daemon::check_running)?;
        self.controllers.check_running()
    }

    /// The number of the next link, from 1.
    pub(super) fn next_link(&self) -> Result<u8> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        *links = links.checked_add(1).filter(|&number| number < 255).context("too many links")?;
        Ok(*links)
    }

    fn api_server(&self) -> MutexGuard<'_, Option<Daemon>> {
        self.api_server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request to etcd's JSON gateway.
    fn etcd(&self, path: &str, body: &Value) -> Result<Value> {
        let request = Request::post(path).body(serde_json::to_vec(body)?)?;
        self.run(async move {
            let etcd = Client::try_from(kube::Config::new(ETCD_URL.parse()?))?;
            Ok(etcd.request::<Value>(request).await?)
        })
    }
}

/// A namespace whose loopback has the API server's addresses.
fn network() -> Result<Netns> {
    let netns = Netns::new("control-plane")?;
    let addresses = API_ADDRESSES.map(|address| format!("address add {address} dev lo\n"));
    netns.ip(&addresses.concat())?;
    Ok(netns)
}

/// Waits until the API server says that it is ready, or one of `programs` has ended.
fn wait_ready(runtime: &NetnsRuntime, client: &Client, programs: &[&Daemon]) -> Result<()> {
    let mut ended = Ok(());
    let ready = wait_for("the API server", START_PATIENCE, || {
        ended = programs.iter().try_for_each(|program| program.check_running());
        if ended.is_err() {
            return Ok(());
        }
        let client = client.clone();
        let answer = runtime.run(async move {
            let request = Request::get("/readyz").body(Vec::new()).expect("a constant request is valid");
            client.request_text(request).await
        });
        match answer {
            Ok(answer) if answer == "ok" => Ok(()),
            Ok(answer) => Err(answer),
            Err(error) => Err(error.to_string()),
        }
    });
    ended?;
    ready.with_context(|| programs.iter().map(|program| program.log_tail()).collect::<String>())
}

/// 128 random bits in hex.
fn random_token() -> Result<String> {
    let mut bytes = [0; 16];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}
