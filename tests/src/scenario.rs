//! Stories of Kubernetes objects, and what they come to in the maps.
//!
//! ```text
//! story.rs    steps of YAML -> objects
//! cluster.rs  the objects that there are
//! play.rs     objects -> model -> compile -> driver.rs -> maps, and what is there after each step
//! dump.rs     maps -> one fact per line
//! ```
//!
//! The same story is played on memory, on memory that fails, and on the kernel's maps.

mod cluster;
mod driver;
mod dump;
mod play;
mod story;

pub use cluster::Cluster;
pub use driver::Driver;
pub use dump::dump;
pub use play::{Played, play};
pub use story::{Gone, Object, Step, Story, read_all};
