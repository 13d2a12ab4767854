//! Questions to the running agent.

use core::time::Duration;
use std::{io, path::Path};

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request,
    body::Bytes,
    client::conn::http1,
    header::{CONNECTION, HOST},
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::UnixStream, time::timeout};

use super::{
    LookArgs,
    served::{Names, PortLabel},
};
use crate::{
    observe::{Status, folder_id, server},
    owner::{PortName, Receipt},
};

/// How long to wait: the agent itself gives up a bit earlier and says why.
const LIMIT: Duration = server::LIMIT.saturating_add(Duration::from_secs(2));

/// The status of the agent that works with the folder `look` names.
///
/// # Errors
/// Nobody answers, or one that works with other pins: its names would be wrong here.
pub(super) fn status(look: &LookArgs) -> anyhow::Result<Status> {
    let socket = &look.socket.socket;
    let status: Status = get(socket, "/v1/status")?;
    let own = folder_id(&look.pins.pin_dir).unwrap_or_default();
    if status.folder != own {
        bail!(
            "the lb-agent at {} works with the pins in {}, not with those in {}: name its socket with --socket",
            socket.display(),
            status.pin_dir,
            look.pins.pin_dir.display()
        );
    }
    Ok(status)
}

/// The names behind service ids; none, and a line on stderr, if no agent tells them.
pub(super) fn names(look: &LookArgs) -> Names {
    let asked = status(look).and_then(|_| get::<Vec<PortName>>(&look.socket.socket, "/v1/ports"));
    match asked {
        Ok(ports) => ports
            .into_iter()
            .map(|PortName { id, namespace, name, port }| (id, PortLabel { namespace, name, port }))
            .collect(),
        Err(error) => {
            eprintln!("lb-agent: names of Services need a running agent: {error:#}");
            Names::new()
        }
    }
}

/// What became of the latest change of each Service, if the agent of these pins tells it. Whoever shows names has said why not.
pub(super) fn receipts(look: &LookArgs) -> Vec<Receipt> {
    let asked = status(look).and_then(|_| get(&look.socket.socket, "/v1/receipts"));
    asked.unwrap_or_default()
}

/// Asks the agent and waits for the answer.
fn get<T: DeserializeOwned>(socket: &Path, route: &str) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let answer = runtime.block_on(async { timeout(LIMIT, exchange(socket, route)).await });
    let body = match answer {
        Ok(answer) => answer?,
        Err(_elapsed) => bail!("the lb-agent at {} does not answer within {LIMIT:?}", socket.display()),
    };
    serde_json::from_slice(&body).with_context(|| {
        format!("what answers at {} does not speak as an lb-agent of this version", socket.display())
    })
}

async fn exchange(socket: &Path, route: &str) -> anyhow::Result<Bytes> {
    let stream = UnixStream::connect(socket).await.map_err(|error| not_connected(socket, error))?;
    let failed = || format!("the lb-agent at {} broke off", socket.display());
    let (mut requests, connection) = http1::handshake(TokioIo::new(stream)).await.with_context(failed)?;
    // Ends with the connection, which ends with the answer.
    tokio::spawn(connection);
    let request = Request::get(route)
        .header(HOST, "lb-agent")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .context("the request is well formed")?;
    let response = requests.send_request(request).await.with_context(failed)?;
    let code = response.status();
    let body = response.into_body().collect().await.with_context(failed)?.to_bytes();
    if !code.is_success() {
        bail!("the lb-agent at {} answers {code}: {}", socket.display(), String::from_utf8_lossy(&body));
    }
    Ok(body)
}

fn not_connected(socket: &Path, error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            anyhow::anyhow!("no lb-agent answers at {}", socket.display())
        }
        _ => anyhow::Error::new(error).context(format!("cannot connect to {}", socket.display())),
    }
}
