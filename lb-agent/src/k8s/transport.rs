//! One connection pool to one address of the API server.
//!
//! kube's own client would do but for two things: it cannot be told to probe idle connections, so that an agent would go on
//! waiting for news from a machine that is gone, and it logs each failed request as an error, where one line per outage
//! is enough.

use core::time::Duration;

use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt as _};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

/// Time limits of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Limits {
    /// Until a connection with its TLS session stands.
    pub(super) connect: Duration,
    /// From a request to the first line of its answer.
    pub(super) answer: Duration,
    /// Between two pieces of an answer.
    pub(super) silence: Duration,
    /// Until it is noticed that the machine at the other end is gone.
    pub(super) loss: Duration,
}

/// A client for `config.cluster_url`. Proxies of the configuration are refused: no feature for them is built in.
pub(super) fn client(config: Config, limits: &Limits) -> kube::Result<Client> {
    if config.proxy_url.is_some() {
        return Client::try_from(config);
    }
    let namespace = config.default_namespace.clone();
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    // Half of the time nothing is sent, the other half is for three probes.
    http.set_keepalive(Some(limits.loss / 2));
    http.set_keepalive_interval(Some(limits.loss / 6));
    http.set_keepalive_retries(Some(3));
    http.set_tcp_user_timeout(Some(limits.loss));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(http)?);
    connector.set_connect_timeout(Some(limits.connect));
    connector.set_read_timeout(Some(limits.silence));
    connector.set_reset_reader_on_write(true);
    let pool = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(pool);
    Ok(Client::new(service, namespace))
}
