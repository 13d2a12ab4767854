//! What the running agent says of kube-proxy's leftovers.

use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::{Found, find, running};
use crate::observe::metrics::Metrics;

/// How often it looks again while there is something.
const INTERVAL: Duration = Duration::from_secs(30);
/// The pause is at least so many times as long as the look: with 50,000 rules, one takes seconds.
const REST: u32 = 100;

/// Looks at once, and then each half minute, or less often where that takes long, until nothing is there. Says once what is there and what removes it, and once that it is gone.
///
/// On a thread of its own, which nobody waits for: tools of iptables may hang.
///
/// # Errors
/// There can be no further thread.
pub fn start(metrics: Arc<Metrics>) -> io::Result<watch::Receiver<Found>> {
    let (sender, receiver) = watch::channel(Found::default());
    thread::Builder::new().name("leftovers".into()).spawn(move || follow(&metrics, &sender))?;
    Ok(receiver)
}

fn follow(metrics: &Metrics, found: &watch::Sender<Found>) {
    let mut is_told = false;
    loop {
        let begin = Instant::now();
        let now = find();
        let pause = INTERVAL.max(begin.elapsed() * REST);
        metrics.set_leftovers(now.leftovers.len());
        let is_clean = now.leftovers.is_empty();
        if !is_told {
            tell(&now, &running());
            is_told = true;
        } else if is_clean {
            info!("nothing of kube-proxy is left in this node's kernel");
        }
        found.send_replace(now);
        if is_clean {
            return;
        }
        thread::sleep(pause);
    }
}

fn tell(found: &Found, running: &[u32]) {
    if !found.unseen.is_empty() {
        info!(why = found.unseen.join("; "), "cannot look everywhere for what a kube-proxy has left");
    }
    if !found.kept.is_empty() {
        debug!(kept = found.kept.join("; "), "looks like kube-proxy's and is used by others");
    }
    if found.leftovers.is_empty() {
        return;
    }
    for warning in &found.warnings {
        warn!("before `lb-agent cleanup --kube-proxy`: {warning}");
    }
    let what: Vec<String> = found.leftovers.iter().map(ToString::to_string).collect();
    let what = what.join("; ");
    if running.is_empty() {
        warn!(
            found = what,
            "rules of a kube-proxy are on this node, and packets meet them first: when its DaemonSet is gone, remove them with `lb-agent \
             cleanup --kube-proxy`"
        );
    } else {
        warn!(
            found = what,
            processes = ?running,
            "a kube-proxy runs on this node, and packets meet its rules first: to have lb-agent alone, remove its DaemonSet, then its \
             rules with `lb-agent cleanup --kube-proxy`"
        );
    }
}
