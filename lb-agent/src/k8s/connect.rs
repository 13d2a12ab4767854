//! A client for the API server: where it is, who we are, and what to do when one of several addresses does not answer.

use core::time::Duration;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fmt, io};

use http::{Request, Response, StatusCode, Uri};
use kube::client::Body;
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tokio::time::timeout;
use tracing::info;

use super::outage::with_root_cause;
use super::transport::{self, Limits};

/// An address that has not answered by then is given up for the next one.
pub(super) const LIMITS: Limits = Limits {
    connect: Duration::from_secs(5),
    // Watches begin at once, and so does a page of a list unless the server is overloaded.
    answer: Duration::from_secs(30),
    // An API server sends a bookmark about once a minute on each watch; whoever is silent for longer than two of them
    // hangs.
    silence: Duration::from_secs(150),
    loss: Duration::from_secs(30),
};

/// Where a pod has the token of its service account.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// How to reach the API server.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Access {
    /// A kubeconfig file. Without one: the service account of the pod if it has one, then `$KUBECONFIG`, then, if
    /// `servers` is empty, `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
    /// Addresses such as `https://10.0.0.1:6443`, tried in this order. Empty means the one that the configuration names,
    /// which inside a cluster is a Service address and needs a service proxy to be reached.
    pub servers: Vec<String>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig file cannot be used.
    #[error("cannot use kubeconfig {path}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: KubeconfigError,
    },
    /// Neither a file nor a service account.
    #[error("no service account and no kubeconfig: give --kubeconfig or --api-server, or set KUBECONFIG")]
    NoKubeconfig(#[source] KubeconfigError),
    /// The pod's service account cannot be used.
    #[error("cannot use the service account of this pod")]
    ServiceAccount(#[source] InClusterError),
    /// An address is not a URL.
    #[error("{server:?} is not an API server address; write it like https://10.0.0.1:6443")]
    NotAnAddress {
        /// The text.
        server: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No client can be made of the configuration.
    #[error("cannot make a client for {server}")]
    Client {
        /// The address.
        server: Uri,
        /// Why, for example a certificate that cannot be read.
        #[source]
        source: Box<kube::Error>,
    },
}

/// A client that uses the first address that answers, and stays with it until it does not answer any more.
///
/// Nothing is sent yet. Certificates and token are the same for all addresses. Must be called inside a tokio runtime.
pub async fn connect(access: &Access) -> Result<Client, ConnectError> {
    connect_within(access, LIMITS).await
}

/// The same with other limits.
pub(super) async fn connect_within(access: &Access, limits: Limits) -> Result<Client, ConnectError> {
    let servers: Vec<Uri> = access.servers.iter().map(|text| server(text)).collect::<Result<_, _>>()?;
    let config = config(access.kubeconfig.as_deref(), &servers).await?;
    let is_service_address = servers.is_empty() && access.kubeconfig.is_none() && has_service_account();
    let namespace = config.default_namespace.clone();
    let servers = if servers.is_empty() { vec![config.cluster_url.clone()] } else { servers };
    let clients = servers
        .into_iter()
        .map(|server| {
            let mut config = config.clone();
            config.cluster_url = server.clone();
            transport::client(config, &limits)
                .map(|client| (server.clone(), client))
                .map_err(|source| ConnectError::Client { server, source: Box::new(source) })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let servers = Arc::new(Servers {
        clients,
        patience: limits.answer,
        is_service_address,
        current: AtomicUsize::new(0),
        announced: AtomicUsize::new(usize::MAX),
    });
    let service = tower::service_fn(move |request| {
        let servers = Arc::clone(&servers);
        async move { servers.send(request).await }
    });
    Ok(Client::new(service, namespace))
}

fn server(text: &str) -> Result<Uri, ConnectError> {
    let refused = |source| ConnectError::NotAnAddress { server: text.to_owned(), source };
    let server: Uri = text.parse().map_err(|error: http::uri::InvalidUri| refused(error.into()))?;
    if server.authority().is_none() || !matches!(server.scheme_str(), Some("http" | "https")) {
        return Err(refused(io::Error::other("it has no scheme http or https").into()));
    }
    Ok(server)
}

async fn config(kubeconfig: Option<&Path>, servers: &[Uri]) -> Result<Config, ConnectError> {
    let options = KubeConfigOptions::default();
    if let Some(path) = kubeconfig {
        let refused = |source| ConnectError::Kubeconfig { path: path.to_owned(), source };
        let file = Kubeconfig::read_from(path).map_err(refused)?;
        return Config::from_custom_kubeconfig(file, &options).await.map_err(refused);
    }
    if has_service_account() {
        return Config::incluster().map_err(ConnectError::ServiceAccount);
    }
    match servers {
        // Credentials of whatever cluster a home folder names are not sent to addresses given by hand.
        [first, ..] if env::var_os("KUBECONFIG").is_none() => Ok(Config::new(first.clone())),
        _ => Config::from_kubeconfig(&options).await.map_err(ConnectError::NoKubeconfig),
    }
}

/// Whether this is a pod that has a service account: one with `automountServiceAccountToken: false` has the environment of a
/// pod and no token. Client-go asks for both too (`rest.InClusterConfig`).
fn has_service_account() -> bool {
    env::var_os("KUBERNETES_SERVICE_HOST").is_some_and(|host| !host.is_empty()) && Path::new(TOKEN).exists()
}

/// A request got no answer.
#[derive(Debug)]
pub(super) struct NoAnswer {
    /// The addresses, and why each gave none.
    pub(super) errors: Vec<(Uri, kube::Error)>,
    /// The address is that of a Service, from the environment of a pod.
    pub(super) is_service_address: bool,
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no answer")?;
        for (at, (server, error)) in self.errors.iter().enumerate() {
            let start = if at == 0 { " from" } else { ";" };
            write!(f, "{start} {server}: {}", with_root_cause(error))?;
        }
        Ok(())
    }
}

impl core::error::Error for NoAnswer {}

/// The first line of an answer did not come.
#[derive(Debug, thiserror::Error)]
#[error("silence for {0:?}")]
struct Silence(Duration);

/// The addresses of one API server.
struct Servers {
    clients: Vec<(Uri, Client)>,
    /// How long each is waited for.
    patience: Duration,
    is_service_address: bool,
    /// The one in use.
    current: AtomicUsize,
    /// The one that was logged as being in use.
    announced: AtomicUsize,
}

impl Servers {
    /// Sends the request to the address in use, and if nothing answers there to each other one in turn.
    ///
    /// An answer of any status is an answer, but after a server's error the next request goes to the next address. A
    /// request with a streaming body, of which this agent has none, goes to one address only.
    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, kube::Error> {
        let (parts, body) = request.into_parts();
        let mut body = Some(body);
        let first = self.current.load(Ordering::Relaxed);
        let mut errors = Vec::new();
        for step in 0..self.clients.len() {
            let at = (first + step) % self.clients.len();
            let (server, client) = &self.clients[at];
            let Some(this) = body.take() else { break };
            body = this.try_clone();
            let answer = timeout(self.patience, client.send(Request::from_parts(parts.clone(), this))).await;
            match answer.unwrap_or_else(|_| Err(kube::Error::Service(Silence(self.patience).into()))) {
                Ok(response) => {
                    self.answered(at, response.status());
                    return Ok(response);
                }
                Err(error) => errors.push((server.clone(), error)),
            }
        }
        let is_service_address = self.is_service_address;
        Err(kube::Error::Service(NoAnswer { errors, is_service_address }.into()))
    }

    fn answered(&self, at: usize, status: StatusCode) {
        if status.is_server_error() {
            self.current.store((at + 1) % self.clients.len(), Ordering::Relaxed);
            return;
        }
        self.current.store(at, Ordering::Relaxed);
        if self.announced.swap(at, Ordering::Relaxed) != at {
            info!(server = %self.clients[at].0, "API server in use");
        }
    }
}
