//! HTTP on a Unix socket: what only the running agent knows.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/status` | [`Status`] as JSON |
//! | `GET /v1/ports` | a list of [`PortName`] as JSON, by id |
//! | `GET /v1/receipts` | a list of [`Receipt`] as JSON, by name; `?namespace=N&name=S` for one Service |
//!
//! The owner of the maps answers between two passes. While it is busy for longer than [`LIMIT`] the answer is 503 with a
//! sentence. Only the user who runs the agent may connect (mode 0600).

use core::{fmt, time::Duration};
use std::{
    fs, io,
    os::unix::{fs::FileTypeExt as _, net::UnixStream},
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use nix::sys::stat::{Mode, fchmod};
use serde::Deserialize;
use tokio::{
    net::{UnixListener, UnixSocket},
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Status, folder_id};
use crate::{
    k8s::manifests::Problem,
    leftovers::Found,
    owner::{Message, Owner, PortName, Receipt},
};

/// How long a question may wait for the owner.
pub const LIMIT: Duration = Duration::from_secs(5);

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 16;

/// Why nobody can be answered at a path.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another process answers there.
    #[error("another lb-agent answers at {path}: stop it, or give this one a --socket of its own")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is not a socket is there.
    #[error("{path} is not a socket and stays as it is: name another path with --socket")]
    NotASocket {
        /// What was found.
        path: PathBuf,
    },
    /// Any other failure of the file system.
    #[error("cannot {what} {path}: name a socket that can be made with --socket")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// A socket that is listened on. Dropping it removes the socket.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    file: SocketFile,
}

/// The file of a socket that this process made.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            warn!(socket = %self.0.display(), %error, "cannot remove the socket");
        }
    }
}

/// Whom to ask.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The owner of the maps.
    pub owner: mpsc::Sender<Message>,
    /// What is wrong with the source of objects now.
    pub problems: watch::Receiver<Vec<Problem>>,
    /// What a kube-proxy has left on this node.
    pub leftovers: watch::Receiver<Found>,
    /// `--pin-dir`
    pub pin_dir: Arc<Path>,
}

/// Why a question has no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum NoAnswer {
    /// The owner did not come to it.
    Busy(Duration),
    /// The agent is ending.
    Ending,
}

impl Server {
    /// Listens at `path`, in a folder that is made if needed, in the place of a socket where nobody answers.
    ///
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`ServerError`]; what was at `path` is still there, but for a socket where nobody answers.
    pub fn bind(path: &Path) -> Result<Self, ServerError> {
        let failed = |what| move |source| ServerError::Io { what, path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed("make the folder of"))?;
        }
        remove_stale(path)?;
        let socket = UnixSocket::new_stream().map_err(failed("make a socket for"))?;
        // The file takes its mode from the unbound socket (unix_bind_bsd), so nobody else can connect at any moment.
        fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|errno| failed("restrict")(errno.into()))?;
        socket.bind(path).map_err(failed("bind"))?;
        let file = SocketFile(path.to_owned());
        let listener = socket.listen(BACKLOG).map_err(failed("listen on"))?;
        Ok(Self { listener, file })
    }

    /// Answers until `stop`.
    pub async fn run(self, sources: Sources, stop: CancellationToken) {
        let Self { listener, file } = self;
        info!(socket = %file.0.display(), "answering questions");
        let router = Router::new()
            .route("/v1/status", get(status))
            .route("/v1/ports", get(ports))
            .route("/v1/receipts", get(receipts))
            .with_state(sources);
        let served = axum::serve(listener, router).into_future();
        // Nobody is waited for: a client that stays connected must not hold up the end.
        tokio::select! {
            () = stop.cancelled() => {}
            Err(error) = served => warn!(%error, "no further questions are answered"),
        }
    }
}

/// Removes a socket where nobody answers.
pub(crate) fn remove_stale(path: &Path) -> Result<bool, ServerError> {
    let failed = |what| move |source| ServerError::Io { what, path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed("look at")(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ServerError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ServerError::InUse { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("remove the stale socket"))?;
            Ok(true)
        }
        Err(error) => Err(failed("connect to")(error)),
    }
}

async fn status(State(sources): State<Sources>) -> Result<Json<Status>, NoAnswer> {
    let report = ask(&sources.owner, LIMIT, Owner::report).await?;
    Ok(Json(Status {
        report,
        pin_dir: sources.pin_dir.display().to_string(),
        folder: folder_id(&sources.pin_dir).unwrap_or_default(),
        problems: sources.problems.borrow().iter().map(ToString::to_string).collect(),
        kube_proxy: sources.leftovers.borrow().clone(),
    }))
}

async fn ports(State(sources): State<Sources>) -> Result<Json<Vec<PortName>>, NoAnswer> {
    ask(&sources.owner, LIMIT, Owner::port_names).await.map(Json)
}

/// Of which Services; what is not given is all of them.
#[derive(Debug, Deserialize)]
struct Wanted {
    namespace: Option<String>,
    name: Option<String>,
}

async fn receipts(
    State(sources): State<Sources>,
    Query(Wanted { namespace, name }): Query<Wanted>,
) -> Result<Json<Vec<Receipt>>, NoAnswer> {
    let look = move |owner: &Owner| {
        owner.receipts(|service| {
            let is =
                |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|wanted| wanted == found);
            is(&namespace, &service.namespace) && is(&name, &service.name)
        })
    };
    ask(&sources.owner, LIMIT, look).await.map(Json)
}

/// Has the owner look at itself.
async fn ask<T: Send + 'static>(
    owner: &mpsc::Sender<Message>,
    limit: Duration,
    look: impl FnOnce(&Owner) -> T + Send + 'static,
) -> Result<T, NoAnswer> {
    let (answer, answered) = oneshot::channel();
    // Who asked may have gone away meanwhile.
    let question = Message::Ask(Box::new(move |owner| drop(answer.send(look(owner)))));
    let exchange = async {
        owner.send(question).await.ok()?;
        answered.await.ok()
    };
    match timeout(limit, exchange).await {
        Ok(answer) => answer.ok_or(NoAnswer::Ending),
        Err(_elapsed) => Err(NoAnswer::Busy(limit)),
    }
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy(limit) => write!(f, "the agent is busy and has not answered within {limit:?}"),
            Self::Ending => f.write_str("the agent is ending"),
        }
    }
}

impl IntoResponse for NoAnswer {
    fn into_response(self) -> Response {
        (StatusCode::SERVICE_UNAVAILABLE, self.to_string()).into_response()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn bind(path: &Path) -> Result<Server, ServerError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        Server::bind(path)
    }

    fn asked(owner: &mpsc::Sender<Message>) -> Result<Vec<PortName>, NoAnswer> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(ask(owner, Duration::from_millis(20), Owner::port_names))
    }

    #[test]
    fn the_socket_is_its_owners_alone_and_goes_away_with_the_server() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/agent.sock");
        let server = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(server);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_where_nobody_answers_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "closing does not remove it");
        assert!(bind(&path).is_ok());
    }

    #[test]
    fn a_socket_where_somebody_answers_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(ServerError::InUse { .. })));
        assert!(path.exists());
    }

    #[test]
    fn a_file_that_is_not_a_socket_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes.txt");
        fs::write(&path, "mine").unwrap();
        assert!(matches!(bind(&path), Err(ServerError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }

    #[test]
    fn an_owner_that_is_busy_or_gone_is_not_waited_for() {
        let (owner, messages) = mpsc::channel(1);
        assert_eq!(asked(&owner), Err(NoAnswer::Busy(Duration::from_millis(20))));
        // The question above still fills the channel, so this one cannot even be sent.
        assert_eq!(asked(&owner), Err(NoAnswer::Busy(Duration::from_millis(20))));
        drop(messages);
        assert_eq!(asked(&owner), Err(NoAnswer::Ending));
    }
}
