//! UDP backends that are gone, and those that outlive their Service.

use std::net::SocketAddr;

use lb_common::abi::L4Addr;

use super::Owner;
use crate::{healer::Suspects, model::ServiceName};

impl Owner {
    /// Lets sockets be freed whose backends are gone. One whose Service is gone keeps what it has for as long as a slice says that it
    /// serves (NE-3): until then only those are freed whose frontend is another Service's by now.
    pub(super) fn heal_gone(&mut self, gone: Vec<L4Addr>, abandoned: Vec<(ServiceName, L4Addr)>) {
        let mut suspects = Suspects::default();
        suspects.gone.extend(gone.into_iter().map(SocketAddr::from));
        let state = &self.state;
        for name in &self.touched {
            let Some(known) = self.abandoned.get_mut(name) else { continue };
            suspects.gone.extend(known.extract_if(.., |at| !state.serves_udp(name, *at)));
            if known.is_empty() {
                self.abandoned.remove(name);
            }
        }
        for (name, at) in abandoned {
            let at = SocketAddr::from(at);
            if state.serves_udp(&name, at) {
                suspects.left.insert(at);
                self.abandoned.entry(name).or_default().insert(at);
            } else {
                suspects.gone.insert(at);
            }
        }
        if suspects != Suspects::default() {
            self.healer.heal(suspects);
        }
    }
}
