//! Bytes to steps.

use lb_agent::model::Names;
use serde_json::Value;

use crate::scenario::{Gone, Object};

/// One thing that happens.
#[derive(Debug)]
pub enum Step {
    /// An object is there, new or changed.
    Put(Box<Object>),
    /// An object is gone.
    Remove(Gone),
    /// The agent programs the maps.
    Pass,
    /// The agent ends, and another one starts.
    Restart,
}

/// The steps of a history. What cannot be read or used is left out.
pub fn read(data: &[u8], names: &mut Names) -> Vec<Step> {
    data.split(|byte| *byte == b'\n').filter_map(|line| step(line, names)).collect()
}

fn step(line: &[u8], names: &mut Names) -> Option<Step> {
    match line {
        [] => Some(Step::Pass),
        [b'!'] => Some(Step::Restart),
        [b'-', object @ ..] => Some(Step::Remove(Gone::read(&value(object)?)?)),
        object => Some(Step::Put(Box::new(Object::read(value(object)?, names).ok()?))),
    }
}

fn value(line: &[u8]) -> Option<Value> {
    serde_json::from_slice(line).ok()
}
