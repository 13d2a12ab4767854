//! Ports that connections of a former kube-proxy have: known before the first packet is served, and until there are none.

use std::{
    collections::BTreeSet,
    io, thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::WeakSender;
use tracing::{info, warn};

use super::{Message, Owner};
use crate::datapath::translated;

/// How often it is looked again while there are some.
const INTERVAL: Duration = Duration::from_secs(30);
/// The pause is at least so many times as long as the look: with a million connections, one takes seconds.
const REST: u32 = 100;

impl Owner {
    /// Looks for such ports, once: after that, a thread does.
    pub(super) fn look_for_translated(&mut self) {
        if !self.devices.are_on() || self.devices.looks_for_translated {
            return;
        }
        self.devices.looks_for_translated = true;
        let begin = Instant::now();
        match translated::ports() {
            Ok(ports) => {
                if !ports.is_empty() {
                    info!(
                        ports = ports.len(),
                        "connections that others masquerade have these ports, which are left alone until they are free"
                    );
                }
                self.devices.translated = ports;
                let (sender, took) = (self.sender.clone(), begin.elapsed());
                // Also where there were none: a kube-proxy may have had some more before the programs were attached.
                let follower = thread::Builder::new().name("translated".into());
                if let Err(error) = follower.spawn(move || follow(&sender, took)) {
                    warn!(%error, "ports of connections that others masquerade are left alone until the next start");
                }
            }
            Err(error) => tell(&error),
        }
    }

    /// Takes in the ports that there are now.
    pub(super) fn take_translated(&mut self, ports: BTreeSet<u16>) {
        if ports.is_empty() && !self.devices.translated.is_empty() {
            info!("no connection that others masquerade is left");
        }
        self.devices.has_changed |= self.devices.translated != ports;
        self.devices.translated = ports;
    }
}

fn follow(sender: &WeakSender<Message>, took: Duration) {
    let mut took = took;
    loop {
        thread::sleep(INTERVAL.max(took * REST));
        let begin = Instant::now();
        let ports = match translated::ports() {
            Ok(ports) => ports,
            Err(error) => return tell(&error),
        };
        took = begin.elapsed();
        let is_last = ports.is_empty();
        let Some(sender) = sender.upgrade() else { return };
        if sender.blocking_send(Message::Translated(ports)).is_err() || is_last {
            return;
        }
    }
}

fn tell(error: &io::Error) {
    warn!(%error, "cannot read the kernel's connection tracking: connections that a kube-proxy masquerades may be reset");
}
