//! Pauses between watches that end at once.
//!
//! kube's watcher begins the next watch as soon as one has ended in order. A server that has to close them, or a proxy on the way
//! that does, would be asked again and again without a pause.

use core::time::Duration;
use std::sync::{Arc, Mutex, PoisonError};

use http::{Request, Response, Uri};
use kube::Client;
use kube::client::Body;
use tokio::time::{Instant, sleep_until};

/// A watch that has lasted so long may be followed by the next one at once.
const LONG: Duration = Duration::from_secs(1);

struct Pace<P> {
    /// When the latest watch began.
    began: Option<Instant>,
    pauses: P,
}

impl<P: Iterator<Item = Duration>> Pace<P> {
    /// When the next watch may begin, if it is wanted now.
    fn next(&mut self) -> Instant {
        let now = Instant::now();
        let wait = match self.began {
            Some(began) if now < began + LONG => began + LONG.max(self.pauses.next().unwrap_or(LONG)),
            _ => now,
        };
        self.began = Some(wait);
        wait
    }
}

/// A client for one kind of objects, whose watches begin at least [`LONG`] after each other; while they go on ending at once, the
/// time between them grows with `pauses`.
pub(super) fn paced(client: Client, pauses: impl Iterator<Item = Duration> + Send + 'static) -> Client {
    let pace = Arc::new(Mutex::new(Pace { began: None, pauses }));
    let namespace = client.default_namespace().to_owned();
    let service = tower::service_fn(move |request: Request<Body>| {
        let begin =
            is_watch(request.uri()).then(|| pace.lock().unwrap_or_else(PoisonError::into_inner).next());
        let client = client.clone();
        async move {
            if let Some(begin) = begin {
                sleep_until(begin).await;
            }
            let answer: Result<Response<Body>, kube::Error> = client.send(request).await;
            answer
        }
    });
    Client::new(service, namespace)
}

fn is_watch(uri: &Uri) -> bool {
    uri.query().unwrap_or_default().split('&').any(|parameter| parameter == "watch=true")
}
