//! What the owner does in turn: takes in a burst of messages, works.

use std::time::Instant;

use anyhow::Context as _;
use tokio::{
    runtime::{Builder, Runtime},
    time::timeout,
};

use super::Owner;

/// For waiting with a limit on a thread that is no task.
pub(super) fn clock() -> anyhow::Result<Runtime> {
    Builder::new_current_thread().enable_time().build().context("cannot start the owner's clock")
}

impl Owner {
    /// Takes in what has come, after waiting for it; at the latest when what is held back is due. False for the end.
    pub(super) fn take_burst(&mut self, clock: &Runtime) -> bool {
        let first = match self.pace.wait(Instant::now()) {
            None => self.messages.blocking_recv(),
            Some(rest) => match clock.block_on(async { timeout(rest, self.messages.recv()).await }) {
                Ok(first) => first,
                Err(_elapsed) => return true,
            },
        };
        let Some(first) = first else { return false };
        let mut goes_on = self.take(first);
        // A burst is one pass.
        while goes_on && let Ok(next) = self.messages.try_recv() {
            goes_on = self.take(next);
        }
        goes_on
    }

    /// Works, unless changes came too early after the last ones (SY-2) or the last write failed a moment ago.
    pub(super) fn work_if_due(&mut self) -> anyhow::Result<()> {
        let has_changes = !self.touched.is_empty() || self.addresses_changed || self.devices.has_changed;
        let now = Instant::now();
        let is_early = !self.pace.allows(now) && has_changes && self.running.is_some();
        if is_early || !self.retry.allows(now) {
            self.hold_back();
            return Ok(());
        }
        self.work()?;
        self.publish(now);
        if has_changes {
            self.pace.passed(Instant::now());
        }
        Ok(())
    }
}
