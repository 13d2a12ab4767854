//! What runs at the devices beside our programs, and what of ours somebody has taken off: seen with every look at the devices.

use std::collections::{BTreeMap, BTreeSet};

use tracing::{info, warn};

use super::{Owner, devices::Attached, express::Express};
use crate::datapath::hooks::{self, Hook, Hooks, Looker, Other};

/// What a look has found.
#[derive(Default)]
pub(super) struct Hooked {
    looker: Option<Looker>,
    others: Vec<Other>,
    /// Why nobody could look.
    error: Option<String>,
    /// How often programs were put back.
    put_back: u64,
}

/// Devices that have lost a program of ours, by interface index.
#[derive(Default)]
pub(super) struct Lost {
    /// One of those that see every packet.
    pub(super) packets: BTreeSet<u32>,
    /// `lb_xdp`.
    pub(super) express: BTreeSet<u32>,
}

impl Hooked {
    /// Programs of others.
    pub(super) fn others(&self) -> &[Other] {
        &self.others
    }

    /// See [`Hooked::put_back`].
    pub(super) const fn put_back(&self) -> u64 {
        self.put_back
    }

    /// Looks at every device that is served; `ours` are the ids of our programs.
    pub(super) fn look(
        &mut self,
        attached: &BTreeMap<u32, Attached>,
        express: &Express,
        ours: &BTreeSet<u32>,
    ) -> Lost {
        let mut lost = Lost::default();
        let mut looker = match self.looker.take().map_or_else(Looker::open, Ok) {
            Ok(looker) => looker,
            Err(error) => {
                self.fail(&error);
                return lost;
            }
        };
        let mut seen: BTreeMap<String, Hooks> = BTreeMap::new();
        for (index, at) in attached {
            match looker.look(*index) {
                Ok(hooks) => {
                    if [Hook::Ingress, Hook::Egress].into_iter().any(|hook| !hooks::has(&hooks, hook, ours)) {
                        lost.packets.insert(*index);
                    }
                    if express.is_on(*index) && !hooks::has(&hooks, Hook::Xdp, ours) {
                        lost.express.insert(*index);
                    }
                    seen.insert(at.served.name.to_string(), hooks);
                }
                // It has just gone, as netlink will tell.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                Err(error) => self.fail(&error),
            }
        }
        self.tell(looker.others(&seen, ours));
        self.looker = Some(looker);
        lost
    }

    fn fail(&mut self, error: &std::io::Error) {
        let text = error.to_string();
        if self.error.as_ref() != Some(&text) {
            warn!(%error, "cannot see what runs at the devices: programs that somebody takes off are not put back");
        }
        self.error = Some(text);
    }

    /// Names those that are new, and those that are gone.
    fn tell(&mut self, now: Vec<Other>) {
        for other in now.iter().filter(|other| !self.others.contains(other)) {
            if other.before {
                warn!("another program sees packets first, and those that it keeps are not served: {other}");
            } else {
                info!("another program sees packets too: {other}");
            }
        }
        for other in self.others.iter().filter(|other| !now.contains(other)) {
            info!("not there any more: {other}");
        }
        self.others = now;
    }

    /// Counts a device that has our programs again.
    pub(super) fn count(&mut self) {
        self.put_back += 1;
    }
}

impl Owner {
    /// Looks at what runs at the devices. Those that have lost a program of ours are to be served anew.
    pub(super) fn look_at_hooks(&mut self) -> Lost {
        let Some(ebpf) = self.running.as_ref().and_then(|running| running.ebpf.as_ref()) else {
            return Lost::default();
        };
        let ours = hooks::own_ids(ebpf);
        self.devices.hooked.look(&self.devices.attached, &self.devices.express, &ours)
    }
}
