//! Twin nodes: the same objects from one API server, served on one node by kube-proxy and on the other by lb-agent.
//!
//! ```text
//!  generate.rs: Services, slices, changes ---> API server ---> kube-proxy  on one node  (nodes.rs)
//!                                                                      '--> lb-agent    on the other
//!  targets.rs: every address and port of them  ---> a client in a pod and one in the node, on both nodes
//!  compare.rs: who answered, how others failed, whose address was shown   meant.rs: where that may differ
//! ```
//!
//! A seed gives the same objects and changes again. What the kernel, the API server and the proxies do meanwhile is not
//! repeated with it, so a rare failure may need several tries.

mod compare;
mod generate;
mod meant;
mod model;
mod nodes;
mod session;
mod targets;
mod yaml;

pub use nodes::{DetectLocal, Pair};
pub use session::{Laboratory, Seed};
