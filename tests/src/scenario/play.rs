//! Playing a story on maps.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use lb_agent::maps::Maps;
use lb_agent::model::{ClusterState, Event, Names, ServiceName};
use lb_agent::reconcile::Desired;
use lb_common::abi::FrontendKey;

use super::story::Story;
use super::{Cluster, Driver, dump};
use crate::invariants::{Meant, assert_no_dangling, meaning};
use crate::wait_until;

/// The node on which stories happen.
const NODE: &str = "node-1";

/// What came of a story.
#[derive(Debug)]
pub struct Played {
    /// What the maps hold after each step, one fact per line.
    pub text: String,
    /// What they mean after each step, whatever the ids.
    pub meanings: Vec<BTreeMap<FrontendKey, Meant>>,
}

/// Plays a story. `open` gives the maps to an agent that starts; the one before it is gone then.
///
/// Writes may fail: then the agent reads the maps again and programs everything, until it succeeds.
///
/// # Errors
/// A step that cannot be read.
pub fn play(story: &Story, open: &mut dyn FnMut() -> Maps) -> Result<Played> {
    let mut names = Names::default();
    let mut cluster = Cluster::default();
    let mut agent = Agent::start(&cluster, open)?;
    let mut played = Played { text: format!("{}\n", story.shows), meanings: Vec::new() };
    for step in &story.steps {
        let mut events = Vec::new();
        for object in step.objects(&mut names)? {
            events.push(cluster.put(object));
        }
        for gone in step.gone()? {
            events.push(cluster.remove(gone));
        }
        if step.restart {
            drop(agent);
            agent = Agent::start(&cluster, open)?;
        } else {
            agent.follow(events)?;
        }
        let maps = agent.driver.reconciler.maps();
        assert_no_dangling(maps);
        played.meanings.push(meaning(maps)?);
        let again = if step.restart { " (after a restart)" } else { "" };
        write!(played.text, "\n--- {}{again}\n{}", step.step, dump(&agent.driver)?)?;
        for notice in agent.notices() {
            writeln!(played.text, "{notice}")?;
        }
    }
    Ok(played)
}

/// State and maps of one agent.
struct Agent {
    state: ClusterState,
    driver: Driver,
}

impl Agent {
    fn start(cluster: &Cluster, open: &mut dyn FnMut() -> Maps) -> Result<Self> {
        let driver = loop {
            if let Ok(driver) = Driver::start(open()) {
                break driver;
            }
        };
        let mut agent = Self { state: ClusterState::new(Arc::from(NODE)), driver };
        agent.follow(cluster.lists())?;
        if agent.driver.everything().is_err() {
            agent.driver.recover();
        }
        agent.settle()?;
        Ok(agent)
    }

    /// Takes in what happens and waits until the maps are at rest.
    fn follow(&mut self, events: Vec<Event>) -> Result<()> {
        let mut touched = BTreeSet::new();
        for event in events {
            self.state.apply(event, &mut touched);
        }
        let changed = touched.iter().map(|name| self.desired(name)).collect();
        if self.driver.put_all(changed).is_err() {
            self.driver.recover();
        }
        self.settle()
    }

    fn desired(&self, name: &ServiceName) -> Desired {
        let created_s = self.state.service(name).map_or(i64::MAX, |service| service.created_s);
        Desired { name: name.clone(), created_s, ports: self.state.compile(name).ports }
    }

    fn settle(&mut self) -> Result<()> {
        wait_until("all grace periods have passed", Duration::from_secs(20), || {
            if self.driver.settle().is_err() {
                self.driver.recover();
            }
            self.driver.reconciler.is_settled()
        })
    }

    fn notices(&self) -> impl Iterator<Item = String> {
        let notices = self.state.services().flat_map(|name| self.state.compile(name).notices);
        notices.map(|notice| format!("NOTE {notice}"))
    }
}
