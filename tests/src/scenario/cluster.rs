//! The objects that there are, for agents that start.

use std::collections::BTreeMap;
use std::sync::Arc;

use lb_agent::model::{Change, Event, Node, Service, ServiceName, Slice, SliceName};

use super::story::{Gone, Object};

/// The objects that there are.
#[derive(Clone, Default)]
pub struct Cluster {
    services: BTreeMap<ServiceName, Service>,
    slices: BTreeMap<SliceName, Slice>,
    nodes: BTreeMap<Arc<str>, Node>,
}

impl Cluster {
    /// An object appears or changes; what an agent that is there is told.
    pub fn put(&mut self, object: Object) -> Event {
        match object {
            Object::Service(service) => {
                self.services.insert(service.name.clone(), service.clone());
                Event::Service(Change::Apply(service))
            }
            Object::Slice(slice) => {
                self.slices.insert(slice.name.clone(), slice.clone());
                Event::Slice(Change::Apply(slice))
            }
            Object::Node(node) => {
                self.nodes.insert(Arc::clone(&node.name), node.clone());
                Event::Node(Change::Apply(node))
            }
        }
    }

    /// An object disappears; what an agent that is there is told.
    pub fn remove(&mut self, gone: Gone) -> Event {
        match gone {
            Gone::Service(name) => {
                self.services.remove(&name);
                Event::Service(Change::Delete(name))
            }
            Gone::Slice(name) => {
                self.slices.remove(&name);
                Event::Slice(Change::Delete(name))
            }
            Gone::Node(name) => {
                self.nodes.remove(&name);
                Event::Node(Change::Delete(name))
            }
        }
    }

    /// What an agent is told that starts now.
    pub fn lists(&self) -> Vec<Event> {
        let services = self.services.values().cloned().map(Change::Apply).map(Event::Service);
        let slices = self.slices.values().cloned().map(Change::Apply).map(Event::Slice);
        let nodes = self.nodes.values().cloned().map(Change::Apply).map(Event::Node);
        let mut events = vec![
            Event::Node(Change::Restart),
            Event::Service(Change::Restart),
            Event::Slice(Change::Restart),
        ];
        events.extend(nodes.chain(services).chain(slices));
        events.extend([
            Event::Node(Change::Complete),
            Event::Service(Change::Complete),
            Event::Slice(Change::Complete),
        ]);
        events
    }
}
