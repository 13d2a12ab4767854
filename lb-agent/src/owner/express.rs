//! Which uplinks have `lb_xdp`: those that have passed the self-test, one step after the other.

use std::{collections::BTreeMap, time::Instant};

use aya::Ebpf;
use lb_common::abi::Device;
use tracing::{info, warn};

use super::{
    Message, Owner,
    devices::{Attached, LOOK_AGAIN},
};
use crate::{
    config::XdpOption,
    datapath::{
        Layer,
        links::Role,
        selftest::{self, Neighbour, Unfit},
        xdp::{self, Tested, XdpError},
    },
    maps::pin::PinDir,
};

/// What a thread of the self-test has come to.
#[derive(Debug)]
pub enum Step {
    /// Who can be asked.
    Found(Result<Vec<Neighbour>, Unfit>),
    /// Whether it has answered.
    Asked(Result<(), Unfit>),
}

/// How far a device is.
enum State {
    /// Neighbours are looked for.
    Looking,
    /// There is none; it is looked again then.
    Waiting(Instant),
    /// A neighbour is being asked.
    Testing(Tested),
    /// The program serves.
    On,
    /// It does not, for as long as this agent runs.
    Unfit(String),
}

/// The devices at which `lb_xdp` serves, or may.
pub(super) struct Express {
    option: XdpOption,
    states: BTreeMap<u32, State>,
}

impl Express {
    /// Nothing is known yet.
    pub(super) const fn new(option: XdpOption) -> Self {
        Self { option, states: BTreeMap::new() }
    }

    /// Bits of [`Device::bits`] of a device.
    pub(super) fn bits(&self, index: u32) -> u32 {
        if self.is_on(index) { Device::EXPRESS } else { 0 }
    }

    /// Whether the program serves a device.
    pub(super) fn is_on(&self, index: u32) -> bool {
        matches!(self.states.get(&index), Some(State::On))
    }

    /// For people: how a device is served, or why not; nothing where nobody wants it.
    pub(super) fn text(&self, index: u32) -> Option<String> {
        let state = self.states.get(&index)?;
        Some(match state {
            State::Looking | State::Testing(_) => "being tested".to_owned(),
            State::Waiting(_) => Unfit::NoNeighbour.to_string(),
            State::On => self.option.name().to_owned(),
            State::Unfit(why) => why.clone(),
        })
    }

    /// Devices that are not served any more lose their state; their programs go with [`Express::sweep`].
    pub(super) fn keep(&mut self, is_served: impl Fn(u32) -> bool) {
        self.states.retain(|index, _| is_served(*index));
    }

    /// Takes in the devices at which a former agent's program serves; says whether there are any that are new here.
    pub(super) fn adopt(&mut self, dir: &PinDir, attached: &BTreeMap<u32, Attached>) -> bool {
        if self.option == XdpOption::Off {
            return false;
        }
        let mut is_new = false;
        for index in xdp::pinned(dir) {
            if attached.get(&index).is_some_and(is_fit) {
                is_new |= !self.states.contains_key(&index);
                self.states.entry(index).or_insert(State::On);
            }
        }
        is_new
    }

    /// Takes the program off devices where it is not to be. No program sends frames there any more.
    pub(super) fn sweep(&self, dir: &PinDir) {
        for index in xdp::pinned(dir) {
            if !self.is_on(index) && xdp::detach(dir, index) {
                info!(index, "no XDP at this device any more");
            }
        }
    }

    /// Somebody has taken the program off: the device is tested again.
    pub(super) fn lost(&mut self, index: u32, name: &str) {
        warn!(device = %name, "somebody has taken XDP off this device, testing it again");
        self.states.remove(&index);
    }

    fn fail(&mut self, index: u32, name: &str, why: String) {
        warn!(device = %name, why, "no XDP here: tc serves all packets");
        self.states.insert(index, State::Unfit(why));
    }

    /// A device's neighbours are known: one of them is asked.
    fn test(
        &mut self,
        ebpf: &mut Ebpf,
        index: u32,
        done: impl FnOnce(Step) + Send + 'static,
        who: Vec<Neighbour>,
    ) -> Result<(), XdpError> {
        let tested = xdp::attach_test(ebpf, index, self.option)?;
        selftest::ask(index, who, xdp::probe(ebpf)?, move |result| done(Step::Asked(result)));
        self.states.insert(index, State::Testing(tested));
        Ok(())
    }
}

/// Whether frames of a device may be served at XDP.
fn is_fit(attached: &Attached) -> bool {
    attached.served.role == Role::Uplink && attached.served.layer == Layer::Ethernet
}

impl Owner {
    /// Begins the self-test where it is due, one device at a time: they share what is asked.
    pub(super) fn express_devices(&mut self) {
        let express = &mut self.devices.express;
        if express.option == XdpOption::Off
            || express.states.values().any(|state| matches!(state, State::Looking | State::Testing(_)))
        {
            return;
        }
        let now = Instant::now();
        for (index, _) in self.devices.attached.iter().filter(|(_, attached)| is_fit(attached)) {
            match express.states.get(index) {
                Some(State::Waiting(again)) if *again > now => continue,
                None | Some(State::Waiting(_)) => {}
                Some(_) => continue,
            }
            express.states.insert(*index, State::Looking);
            let (index, sender) = (*index, self.sender.clone());
            selftest::look(index, move |found| {
                if let Some(sender) = sender.upgrade() {
                    drop(sender.blocking_send(Message::Express(index, Step::Found(found))));
                }
            });
            return;
        }
    }

    /// Takes in what a thread of the self-test has come to.
    pub(super) fn take_express(&mut self, index: u32, step: Step) {
        let Some(ebpf) = self.running.as_mut().and_then(|running| running.ebpf.as_mut()) else { return };
        let express = &mut self.devices.express;
        let Some(attached) = self.devices.attached.get(&index) else { return };
        let name = attached.served.name.clone();
        let text = |error: XdpError| format!("{:#}", anyhow::Error::from(error));
        match (express.states.remove(&index), step) {
            (Some(State::Looking), Step::Found(Ok(who))) => {
                let sender = self.sender.clone();
                let done = move |step| {
                    if let Some(sender) = sender.upgrade() {
                        drop(sender.blocking_send(Message::Express(index, step)));
                    }
                };
                if let Err(error) = express.test(ebpf, index, done, who) {
                    express.fail(index, &name, text(error));
                }
            }
            (Some(State::Looking), Step::Found(Err(_))) => {
                express.states.insert(index, State::Waiting(Instant::now() + LOOK_AGAIN));
            }
            (Some(State::Testing(tested)), Step::Asked(Ok(()))) => {
                match xdp::turn_on(ebpf, &self.pins, index, tested) {
                    Ok(()) => {
                        info!(device = %name, mode = express.option.name(), "serving packets at XDP");
                        express.states.insert(index, State::On);
                    }
                    Err(error) => express.fail(index, &name, text(error)),
                }
            }
            (Some(State::Testing(_)), Step::Asked(Err(why))) => express.fail(index, &name, why.to_string()),
            (state, _) => {
                // Of a device that has come again since.
                if let Some(state) = state {
                    express.states.insert(index, state);
                }
            }
        }
        self.devices.has_changed = true;
    }
}
