//! What must hold for whatever a source sends: any objects, in any order, however wrong.
//!
//! ```text
//! bytes -> history.rs    lines of JSON -> steps
//!       -> node.rs       objects -> model -> compile -> reconcile -> maps in memory, as on one node
//!       -> promises.rs   what compile promises of each Service
//! ```
//!
//! A history is text, so that what the fuzzer finds can be read, edited and checked in. Each line is a step:
//!
//! ```text
//! {"kind": "Service", ..}     the object is there, new or changed; EndpointSlices and Nodes likewise
//! -{"kind": "Service", ..}    the object of that kind and name is gone
//!                             (empty) the agent programs the maps
//! !                           the agent ends; another one starts
//! ```
//!
//! A line that is none of these, or an object that conversion refuses, does not happen.
//!
//! [`spoil()`] changes a history and leaves it readable, for the fuzzer and for tests.
//!
//! Run by `cargo xtask fuzz` (`tests/fuzz`), and over what is checked in there by `tests/fuzz.rs`.

mod history;
mod node;
mod promises;
mod spoil;

pub use history::{Step, read};
pub use node::FuzzedNode;
pub use spoil::spoil;

use lb_agent::model::Names;

/// Plays a history and panics if a promise is broken.
///
/// After each pass nothing dangles in the maps. At the end a second pass writes nothing, nor does an agent that starts on
/// these maps; the maps mean what the objects say, whatever the history; and the objects alone, in any order, come to the
/// same. Where the maps are too small, the last two say nothing.
pub fn objects(data: &[u8]) {
    let mut node = FuzzedNode::start();
    for step in read(data, &mut Names::default()) {
        node.follow(step);
    }
    node.finish();
}
