//! Service ports that are not in the maps as they should be: which, why, and when they are planned again.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    time::{Duration, Instant},
};

use tracing::{error, warn};

use super::{GROW_AGAIN, Owner};
use crate::{
    compile::PortKey,
    model::{Family, Protocol, ServiceName},
    reconcile::NoRoom,
};

/// Service ports without room that are named in the log; all of them are in the status.
const MOST_NAMED: usize = 20;

/// See the module.
pub(super) struct LeftOut {
    /// Ports that found no room and were left as they were.
    ports: BTreeMap<PortKey, NoRoom>,
    /// Services with a port that has room when a grace period has passed.
    later: BTreeSet<ServiceName>,
    /// When they were last planned for no other reason than that time has passed.
    looked: Instant,
}

/// What of a Service is not in the maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lack {
    /// Nothing: it is there as it should be.
    Nothing,
    /// It will be there when a grace period has passed, which takes milliseconds.
    Later,
    /// Ports of these families (IPv4, IPv6) found no room.
    Room([bool; 2]),
}

impl LeftOut {
    pub(super) const fn new(now: Instant) -> Self {
        Self { ports: BTreeMap::new(), later: BTreeSet::new(), looked: now }
    }

    /// A pass has planned these Services, and this is what it did not do.
    pub(super) fn planned(
        &mut self,
        planned: &BTreeSet<&ServiceName>,
        left_out: Vec<(PortKey, NoRoom)>,
        later: BTreeSet<ServiceName>,
    ) {
        self.ports.retain(|port, _| !planned.contains(&port.service));
        self.later.retain(|service| !planned.contains(service));
        self.ports.extend(left_out);
        self.later.extend(later);
    }

    /// Whose ports are to be planned again although nothing is known to have made room: once each `interval`.
    ///
    /// That is only for what nobody has thought of. Whatever is given back after a grace period, and each frontend that is
    /// given up, names the Services that have room for it (`Reconciler::settle`, `Outcome::again`); bigger maps are followed by
    /// a full pass. Thousands of ports without room, planned with each tick, would take a processor for themselves.
    pub(super) fn due(&mut self, now: Instant, interval: Duration) -> impl Iterator<Item = ServiceName> {
        let is_due = !self.ports.is_empty() && now.saturating_duration_since(self.looked) >= interval;
        // Who is left out for the first time now waits for a whole interval.
        if is_due || self.ports.is_empty() {
            self.looked = now;
        }
        self.ports.keys().filter(move |_| is_due).map(|port| port.service.clone())
    }

    /// What of `service` is not in the maps.
    pub(super) fn lack(&self, service: &ServiceName) -> Lack {
        let mut families = [false; 2];
        for (port, _) in self.of(service) {
            families[port.family as usize] = true;
        }
        match families {
            [false, false] if self.later.contains(service) => Lack::Later,
            [false, false] => Lack::Nothing,
            families => Lack::Room(families),
        }
    }

    /// The ports of `service` without room.
    fn of(&self, service: &ServiceName) -> impl Iterator<Item = (&PortKey, &NoRoom)> {
        let first = PortKey {
            service: service.clone(),
            port: "".into(),
            protocol: Protocol::Tcp,
            family: Family::V4,
        };
        self.ports.range(first..).take_while(move |(port, _)| port.service == *service)
    }

    pub(super) fn contains(&self, port: &PortKey) -> bool {
        self.ports.contains_key(port)
    }

    pub(super) fn iter(&self) -> btree_map::Iter<'_, PortKey, NoRoom> {
        self.ports.iter()
    }

    pub(super) fn values(&self) -> btree_map::Values<'_, PortKey, NoRoom> {
        self.ports.values()
    }

    pub(super) fn len(&self) -> usize {
        self.ports.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }
}

impl Owner {
    /// Names what has no room, in the log and by Events.
    pub(super) fn cannot_grow(&mut self, error: &anyhow::Error) {
        self.failed_growth = Some(Instant::now());
        error!(error = %format!("{error:#}"), again = ?GROW_AGAIN, "cannot grow the maps, what has no room is left as it was");
        if self.addresses_changed {
            warn!("the addresses of this node have no room: NodePorts keep the last known ones");
        }
        self.outputs.left_out(&self.left_out);
        for (port, no_room) in self.left_out.iter().take(MOST_NAMED) {
            warn!(service = %port.service, port = %port.port, %no_room, "service port left as it was");
        }
        if self.left_out.len() > MOST_NAMED {
            warn!(
                ports = self.left_out.len(),
                "`lb-agent status` names all service ports that were left as they were"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(service: &str, family: Family) -> (PortKey, NoRoom) {
        let service = ServiceName::new("ns", service);
        (PortKey { service, port: "p".into(), protocol: Protocol::Udp, family }, NoRoom::Services)
    }

    fn lacks(left_out: &LeftOut) -> [Lack; 3] {
        ["a", "b", "c"].map(|service| left_out.lack(&ServiceName::new("ns", service)))
    }

    #[test]
    fn what_a_service_lacks_is_what_its_last_plan_said() {
        let mut left_out = LeftOut::new(Instant::now());
        let [a, b, c] = ["a", "b", "c"].map(|service| ServiceName::new("ns", service));
        let ports = vec![port("a", Family::V6), port("c", Family::V4), port("c", Family::V6)];
        left_out.planned(&BTreeSet::from([&a, &b, &c]), ports, BTreeSet::from([b.clone()]));
        assert_eq!(lacks(&left_out), [Lack::Room([false, true]), Lack::Later, Lack::Room([true, true])]);
        left_out.planned(&BTreeSet::from([&a, &b]), vec![], BTreeSet::from([a.clone()]));
        assert_eq!(lacks(&left_out), [Lack::Later, Lack::Nothing, Lack::Room([true, true])]);
        assert_eq!(left_out.len(), 2);
    }

    #[test]
    fn without_news_ports_are_planned_again_once_an_interval() {
        let (begin, interval) = (Instant::now(), Duration::from_secs(30));
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut left_out = LeftOut::new(begin);
        assert_eq!(left_out.due(at(100), interval).count(), 0);
        let (key, no_room) = port("a", Family::V4);
        left_out.planned(&BTreeSet::new(), vec![(key, no_room)], BTreeSet::new());
        let due: Vec<(u64, usize)> = [101, 129, 130, 131, 159, 160]
            .map(|seconds| (seconds, left_out.due(at(seconds), interval).count()))
            .to_vec();
        assert_eq!(due, [(101, 0), (129, 0), (130, 1), (131, 0), (159, 0), (160, 1)]);
    }
}
