//! The programs and maps that the owner works with: loaded over what is pinned, taken over, and replaced by larger ones.

use std::time::Instant;

use anyhow::Context as _;
use aya::Ebpf;
use tracing::info;

use super::{
    FEWEST_FLOWS, FULL_PASS, GROW_AGAIN, Message, Owner, Running,
    need::{self, Need},
};
use crate::{
    datapath::{
        attach,
        load::{self, LoadError, Loaded},
    },
    maps::{
        memory::Capacities,
        pin::{Content, Staged},
    },
    reconcile::Reconciler,
};

/// Loaded programs whose maps this agent writes.
pub(super) struct Taken {
    pub(super) ebpf: Ebpf,
    /// Maps that take the place of the pinned ones when they are filled.
    staged: Option<Staged>,
}

impl Owner {
    /// How large the maps must be for everything that is known now.
    fn need(&self) -> Capacities {
        self.with_flows(Need::of(&self.state, self.node_addresses.entries().len()).capacities())
    }

    /// Loads the programs over maps that are large enough. Whatever fails changes nothing.
    fn load(&self, need: Capacities) -> Result<Loaded, LoadError> {
        let sender = self.sender.clone();
        // A full channel wakes the owner anyway.
        let on_grace = move || {
            let _woken = sender.upgrade().is_some_and(|sender| sender.try_send(Message::Grace).is_ok());
        };
        load::load(&self.pins, self.settings.switches, need, on_grace)
    }

    /// The same over smaller maps, those that are there if there are any, when large ones cannot be had: what fits follows its
    /// endpoints.
    pub(super) fn load_what_is_possible(&self) -> Result<(Loaded, Option<LoadError>), LoadError> {
        let need = Capacities { affinity: self.settings.affinity_clients, ..self.need() };
        let smallest = Capacities { affinity: 1, ..Need::default().capacities() };
        let few = |flows: u32| flows.min(FEWEST_FLOWS);
        let smallest = Capacities { flows4: few(need.flows4), flows6: few(need.flows6), ..smallest };
        match self.load(need) {
            Ok(loaded) => Ok((loaded, None)),
            // What is wrong with both is not the size.
            Err(error) if need != smallest => match self.load(smallest) {
                Ok(loaded) => Ok((loaded, Some(error))),
                Err(_) => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// Works with loaded maps from now on.
    ///
    /// If they hold what the pinned ones hold, programs that are attached are replaced first: some maps may be both, and what is
    /// written to those must not be read by a program that looks up the rest in old ones. Maps that were made anew are empty:
    /// programs that are attached go on with the old ones until [`Owner::hand_over`].
    ///
    /// # Errors
    /// What leaves some hooks on new maps and others on old ones.
    pub(super) fn take_over(&mut self, loaded: Loaded) -> anyhow::Result<Taken> {
        let Loaded { mut ebpf, maps, capacities, flush_log, staged } = loaded;
        let staged = match staged.content {
            Content::Same => {
                self.pins.commit(&staged)?;
                attach::replace(&mut ebpf, &self.pins)?;
                self.replace_at_devices(&mut ebpf)?;
                None
            }
            Content::Other => {
                info!("making all maps anew");
                Some(staged)
            }
        };
        let reconciler =
            Reconciler::restore(maps, self.settings.socket_lb).context("cannot take over the pinned maps")?;
        self.running = Some(Running {
            reconciler,
            capacities,
            attached: self.running.take().map_or_else(Vec::new, |before| before.attached),
            ebpf: None,
            flush_log,
            full_pass: Instant::now() + FULL_PASS,
            doubtful: false,
        });
        self.addresses_changed = true;
        Ok(Taken { ebpf, staged })
    }

    /// Lets pins and programs follow to maps that were made anew and are filled now.
    pub(super) fn hand_over(&self, taken: &mut Taken) -> anyhow::Result<()> {
        if let Some(staged) = &taken.staged {
            self.pins.commit(staged)?;
            attach::replace(&mut taken.ebpf, &self.pins)?;
            self.replace_at_devices(&mut taken.ebpf)?;
        }
        Ok(())
    }

    /// Replaces the maps by bigger ones; without memory for them, what does not fit is named.
    ///
    /// # Errors
    /// What leaves some hooks on the bigger maps and others on the old ones. Nothing may be written then: the next start
    /// tries again, and traffic goes on with what the maps hold.
    pub(super) fn grow(&mut self) -> anyhow::Result<()> {
        let Some(running) = &self.running else { return Ok(()) };
        if self.failed_growth.is_some_and(|when| when.elapsed() < GROW_AGAIN) {
            return Ok(());
        }
        let now = running.capacities;
        let need = need::with_room(self.need().at_least(&now), &now, self.left_out.values());
        // That of affinity is what was asked for at the start, or what could be had.
        let need = Capacities { affinity: now.affinity, ..need };
        let keep = |now: u32, need: u32| if now > 1 { now } else { need };
        let need = Capacities {
            flows4: keep(now.flows4, need.flows4),
            flows6: keep(now.flows6, need.flows6),
            ..need
        };
        if need == now {
            return Ok(());
        }
        info!(?now, ?need, "growing the maps");
        match self.load(need) {
            Ok(loaded) => self.switch_to(loaded).context("cannot switch the programs to bigger maps"),
            Err(error) => {
                self.cannot_grow(&error.into());
                Ok(())
            }
        }
    }

    fn switch_to(&mut self, loaded: Loaded) -> anyhow::Result<()> {
        let mut taken = self.take_over(loaded)?;
        self.failed_growth = None;
        match self.everything() {
            Ok(()) => {
                self.hand_over(&mut taken)?;
                self.serve_packets(taken.ebpf);
                // What the maps before had to tell of backends that are gone went with them.
                self.healer.heal_after_start();
                Ok(())
            }
            // Half filled, and nobody uses them.
            Err(error) if taken.staged.is_some() => Err(error),
            Err(error) => {
                self.fail(&error);
                Ok(())
            }
        }
    }
}
