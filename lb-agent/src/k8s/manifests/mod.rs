//! A folder of manifests as a source, for machines without a cluster: YAML or JSON as `kubectl get -o yaml` prints it.
//!
//! ```text
//! folder.rs   which files there are, when to look again
//!     | parse.rs   text -> objects (pure)
//!     v
//! files.rs    which file gives which object (key.rs) -> events (pure)
//! ```
//!
//! A file is read when two looks at the folder in a row found it the same, so that a file that is being written is not
//! taken for a broken one, at the start no later than `PATIENCE`. Writing beside the file and renaming over it is the way that needs no luck.
//!
//! A broken file leaves in force what it gave when it was good, and an object that cannot be used any more stays as it was
//! before; other files go on. An object in two files comes from the
//! first one in path order, and from the next one's last good content when that one loses it. A deleted file deletes its objects; a folder that cannot be read deletes nothing.

mod files;
#[cfg(test)]
mod files_tests;
mod folder;
mod key;
mod parse;
mod problem;
#[cfg(test)]
mod tests;

use core::convert::Infallible;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{io, mem};

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::files::Files;
use self::folder::{Signature, Wake};
use self::parse::{Format, Parsed};
use super::Interest;
use crate::model::{Change, Event, Names};

pub use problem::Problem;

/// A file that stays the same for so long is not being written.
const SETTLE: Duration = Duration::from_millis(100);

/// At the start a file is waited for no longer than this: one that is written all the time must not hold up all others.
const PATIENCE: Duration = Duration::from_secs(2);

/// Reads `folder` until `shutdown`, and sends what it says.
///
/// All three kinds are complete when the files that were there at the start have been read; a folder that does not exist is
/// waited for. `problems` always holds what is wrong now. Only what is of `interest` is sent.
///
/// Returns when `shutdown` is cancelled or nobody receives any more.
pub async fn run(
    folder: PathBuf,
    interest: Arc<Interest>,
    events: mpsc::Sender<Event>,
    problems: watch::Sender<Vec<Problem>>,
    shutdown: CancellationToken,
) {
    let mut source = Source::new(folder.into(), interest, events, problems);
    tokio::select! {
        () = shutdown.cancelled() => {}
        Err(Closed) = source.follow() => {}
    }
}

/// Nobody receives events any more.
struct Closed;

struct Source {
    folder: Arc<Path>,
    interest: Arc<Interest>,
    files: Files,
    names: Names,
    /// The content of each file that was taken in, or that cannot be.
    read: BTreeMap<Arc<Path>, Signature>,
    /// Files that are not as they were read, as the last look found them; `None` is gone.
    settling: BTreeMap<Arc<Path>, Option<Signature>>,
    /// The first look at the folder that succeeded.
    started: Option<Instant>,
    is_complete: bool,
    events: mpsc::Sender<Event>,
    problems: watch::Sender<Vec<Problem>>,
}

impl Source {
    fn new(
        folder: Arc<Path>,
        interest: Arc<Interest>,
        events: mpsc::Sender<Event>,
        problems: watch::Sender<Vec<Problem>>,
    ) -> Self {
        Self {
            folder,
            interest,
            files: Files::default(),
            names: Names::default(),
            read: BTreeMap::new(),
            settling: BTreeMap::new(),
            started: None,
            is_complete: false,
            events,
            problems,
        }
    }

    async fn follow(&mut self) -> Result<Infallible, Closed> {
        let wake = Wake::new(Arc::clone(&self.folder));
        self.send([
            Event::Node(Change::Restart),
            Event::Service(Change::Restart),
            Event::Slice(Change::Restart),
        ])
        .await?;
        loop {
            wake.watch();
            self.look().await?;
            if self.settling.is_empty() {
                wake.changed().await;
            } else {
                tokio::time::sleep(SETTLE).await;
            }
        }
    }

    async fn send(&self, events: impl IntoIterator<Item = Event>) -> Result<(), Closed> {
        for event in events {
            self.events.send(event).await.ok().ok_or(Closed)?;
        }
        Ok(())
    }

    /// One look at the folder: takes in what has settled and notes what has not.
    async fn look(&mut self) -> Result<(), Closed> {
        let folder = Arc::clone(&self.folder);
        let found = match blocking(move || folder::scan(&folder)).await {
            Ok(found) => found,
            Err(error) => {
                let reason =
                    format!("the folder cannot be read: {error}; what it gave before stays in force");
                self.publish(vec![Problem::of_file(&self.folder, reason)]);
                return Ok(());
            }
        };
        self.started.get_or_insert_with(Instant::now);
        for (path, signature) in self.settled(&found) {
            self.take_in(path, signature).await?;
        }
        if !self.is_complete && self.settling.is_empty() {
            self.is_complete = true;
            self.send([
                Event::Node(Change::Complete),
                Event::Service(Change::Complete),
                Event::Slice(Change::Complete),
            ])
            .await?;
        }
        self.publish(self.files.problems());
        Ok(())
    }

    /// Files that differ from what was read of them and were found the same twice; `None` is gone.
    fn settled(&mut self, found: &BTreeMap<Arc<Path>, Signature>) -> BTreeMap<Arc<Path>, Option<Signature>> {
        let before = mem::take(&mut self.settling);
        let paths: BTreeSet<&Arc<Path>> = found.keys().chain(self.read.keys()).collect();
        let mut settled = BTreeMap::new();
        for path in paths {
            let now = found.get(path).copied();
            if now == self.read.get(path).copied() {
                continue;
            }
            let is_settled = before.get(path) == Some(&now) || self.is_impatient();
            let target = if is_settled { &mut settled } else { &mut self.settling };
            target.insert(Arc::clone(path), now);
        }
        settled
    }

    /// Whether files that do not settle are read as they are.
    fn is_impatient(&self) -> bool {
        !self.is_complete && self.started.is_some_and(|started| started.elapsed() >= PATIENCE)
    }

    /// Takes in one file, and the ones that have to be read again because of it.
    async fn take_in(&mut self, path: Arc<Path>, signature: Option<Signature>) -> Result<(), Closed> {
        let mut waiting = BTreeMap::from([(path, signature)]);
        while let Some((path, expected)) = waiting.pop_first() {
            let mut events = Vec::new();
            let again = match (expected, self.read(&path).await) {
                (expected, Ok((parsed, signature))) if expected == Some(signature) || self.is_impatient() => {
                    debug!(file = %path.display(), objects = parsed.objects.len(), "manifest read");
                    self.read.insert(Arc::clone(&path), signature);
                    self.files.put(&path, parsed, &mut events)
                }
                (_, Ok((_, signature))) => {
                    // Changed between look and read: it has to settle again.
                    self.settling.insert(path, Some(signature));
                    continue;
                }
                (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                    self.read.remove(&path);
                    self.files.remove(&path, &mut events)
                }
                (expected, Err(error)) => {
                    // Read again when the file changes; a change of its permissions is one.
                    self.read.extend(expected.map(|expected| (Arc::clone(&path), expected)));
                    let parsed = Parsed::broken(format!("the file cannot be read: {error}"));
                    self.files.put(&path, parsed, &mut events)
                }
            };
            self.send(events).await?;
            waiting.extend(again.into_iter().map(|path| {
                let signature = self.read.get(&path).copied();
                (path, signature)
            }));
        }
        Ok(())
    }

    async fn read(&mut self, path: &Arc<Path>) -> io::Result<(Parsed, Signature)> {
        let format = folder::format(path).unwrap_or(Format::Yaml);
        let path = Arc::clone(path);
        let interest = Arc::clone(&self.interest);
        let mut names = mem::take(&mut self.names);
        let (names, result) = blocking(move || {
            let result = folder::read(&path)
                .map(|(bytes, signature)| (parse::parse(&bytes, format, &interest, &mut names), signature));
            (names, result)
        })
        .await;
        self.names = names;
        result
    }

    /// Publishes what is wrong now, and logs what is new: each problem once.
    fn publish(&self, now: Vec<Problem>) {
        let before = self.problems.borrow().clone();
        if before == now {
            return;
        }
        for problem in now.iter().filter(|problem| !before.contains(problem)) {
            warn!(
                file = %problem.path.display(),
                line = problem.line,
                column = problem.column,
                reason = problem.reason,
                "manifest cannot be used"
            );
        }
        if now.is_empty() {
            info!(folder = %self.folder.display(), "all manifests can be used again");
        }
        self.problems.send_replace(now);
    }
}

/// Runs file work on a thread where it may wait.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work)
        .await
        .expect("the work does not panic, and nobody holds a handle to cancel it")
}
