//! What the agent does around its reconciler, without threads, clocks and Kubernetes.

use std::collections::{BTreeMap, BTreeSet};

use lb_agent::compile::PortKey;
use lb_agent::maps::{MapError, Maps};
use lb_agent::model::ServiceName;
use lb_agent::reconcile::{Contested, Desired, NoRoom, Outcome, Reconciler};
use lb_common::abi::SocketLb;

/// More passes than any state needs to come to rest.
const MANY: usize = 50;

/// Desired services and a reconciler that programs them.
pub struct Driver {
    /// The reconciler, for whoever wants to look.
    pub reconciler: Reconciler,
    desired: BTreeMap<ServiceName, Desired>,
    /// Ports without room.
    pub left_out: BTreeMap<PortKey, NoRoom>,
    /// Services that wait for a grace period.
    pub later: BTreeSet<ServiceName>,
    /// Frontends that somebody wants and another one has.
    pub contested: BTreeMap<PortKey, Vec<Contested>>,
}

impl Driver {
    /// An agent that starts and has listed nothing yet.
    ///
    /// # Errors
    /// Those of the maps.
    pub fn start(maps: Maps) -> Result<Self, MapError> {
        Ok(Self {
            reconciler: Reconciler::restore(maps, SocketLb::ALL)?,
            desired: BTreeMap::new(),
            left_out: BTreeMap::new(),
            later: BTreeSet::new(),
            contested: BTreeMap::new(),
        })
    }

    /// Replaces everything that is desired and programs the difference; returns the number of writes.
    ///
    /// # Errors
    /// See [`Reconciler::apply`].
    pub fn follow(&mut self, desired: &[Desired]) -> Result<usize, MapError> {
        let next: BTreeMap<ServiceName, Desired> =
            desired.iter().map(|service| (service.name.clone(), service.clone())).collect();
        let is_new = |service: &Desired| {
            self.desired
                .get(&service.name)
                .is_none_or(|known| (known.created_s, &known.ports) != (service.created_s, &service.ports))
        };
        let mut touched: BTreeSet<ServiceName> =
            next.values().filter(|service| is_new(service)).map(|service| service.name.clone()).collect();
        touched.extend(self.desired.keys().filter(|name| !next.contains_key(name)).cloned());
        self.desired = next;
        self.program(touched)
    }

    /// Programs one Service.
    ///
    /// # Errors
    /// See [`Reconciler::apply`].
    pub fn put(&mut self, service: Desired) -> Result<usize, MapError> {
        self.put_all(vec![service])
    }

    /// Programs some Services; without ports, one is removed.
    ///
    /// # Errors
    /// See [`Reconciler::apply`].
    pub fn put_all(&mut self, services: Vec<Desired>) -> Result<usize, MapError> {
        let touched = services.iter().map(|service| service.name.clone()).collect();
        self.desired.extend(services.into_iter().map(|service| (service.name.clone(), service)));
        self.program(touched)
    }

    /// Programs every Service and removes what belongs to none, as after a start; returns the number of writes.
    ///
    /// # Errors
    /// See [`Reconciler::apply`].
    pub fn everything(&mut self) -> Result<usize, MapError> {
        let writes = self.program(self.desired.keys().cloned().collect())?;
        let outcome = self.reconciler.remove_unclaimed()?;
        Ok(writes + outcome.writes + self.program(outcome.again)?)
    }

    /// Reads the maps again and programs everything until it succeeds: what the agent does after a failed write.
    /// Returns how often it was tried.
    pub fn recover(&mut self) -> usize {
        (1..=10_000)
            .find(|_| self.reconciler.reload().and_then(|()| self.everything()).is_ok())
            .unwrap_or(usize::MAX)
    }

    /// Takes in that grace periods have passed.
    ///
    /// # Errors
    /// See [`Reconciler::apply`].
    pub fn settle(&mut self) -> Result<usize, MapError> {
        let again = self.reconciler.settle()?;
        self.program(again)
    }

    fn program(&mut self, mut touched: BTreeSet<ServiceName>) -> Result<usize, MapError> {
        let mut writes = 0;
        for _ in 0..MANY {
            if touched.is_empty() {
                return Ok(writes);
            }
            let desired: Vec<Desired> = touched.iter().map(|name| self.desired_of(name)).collect();
            let outcome = self.reconciler.apply(&desired)?;
            writes += outcome.writes;
            touched = self.note(&touched, outcome);
        }
        panic!("the maps do not come to rest, {touched:?} again and again");
    }

    /// A Service that is gone has no ports.
    fn desired_of(&self, name: &ServiceName) -> Desired {
        self.desired.get(name).cloned().unwrap_or_else(|| Desired {
            name: name.clone(),
            created_s: i64::MAX,
            ports: Vec::new(),
        })
    }

    /// Keeps what a pass did not do, and returns what is to be planned again.
    fn note(&mut self, planned: &BTreeSet<ServiceName>, outcome: Outcome) -> BTreeSet<ServiceName> {
        self.left_out.retain(|port, _| !planned.contains(&port.service));
        self.contested.retain(|port, _| !planned.contains(&port.service));
        self.later.retain(|name| !planned.contains(name));
        self.left_out.extend(outcome.left_out);
        self.later.extend(outcome.later);
        for contested in outcome.contested {
            self.contested.entry(contested.port.clone()).or_default().push(contested);
        }
        outcome.again
    }
}
