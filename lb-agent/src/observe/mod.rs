//! What the running agent tells to whoever asks.
//!
//! ```text
//! server.rs   HTTP on a Unix socket -> a question to the owner -> JSON
//! status.rs   the answer of /v1/status
//! ```
//!
//! What the maps hold is not here: `lb-agent status` and its neighbours read the maps themselves.

pub mod server;
mod status;

pub use status::{Status, folder_id};
