//! The commands beside `run`: they read the pinned maps themselves, so they work while the agent is down.
//!
//! ```text
//! pinned.rs   maps and links in bpffs ──> served.rs   what is served, as rows (pure) ──> service.rs, backend.rs
//! namespaces.rs  network namespaces, entered one by one ──> netns.rs, heal
//! agent.rs    the agent's socket      ──> names, report                             ──> status.rs
//! table.rs    one renderer for people; serde for programs
//! ```

mod agent;
mod args;
mod backend;
mod cgroup;
mod cleanup;
mod exemptions;
mod heal;
mod kube_proxy;
mod namespaces;
mod netns;
mod pinned;
mod served;
mod service;
mod status;
mod table;

use std::io::{self, Write as _};

use anyhow::Context as _;
use serde::Serialize;

use crate::datapath::host;

pub use args::{
    BackendCommand, CleanupArgs, ExemptArgs, HealArgs, IncludeArgs, LookArgs, NetnsCommand, NetnsListArgs,
    Output, OutputArgs, ServiceCommand, ShowArgs, Tool,
};

/// Runs a command.
///
/// # Errors
/// What is missing, and the remedy.
pub fn run(tool: &Tool) -> anyhow::Result<()> {
    host::check_capabilities()?;
    match tool {
        Tool::Status(args) => status::run(args),
        Tool::Service(ServiceCommand::List(args)) => service::list(args),
        Tool::Service(ServiceCommand::Show(args)) => service::show(args),
        Tool::Backend(BackendCommand::List(args)) => backend::list(args),
        Tool::Netns(NetnsCommand::Exempt(args)) => netns::exempt(args),
        Tool::Netns(NetnsCommand::Include(args)) => netns::include(args),
        Tool::Netns(NetnsCommand::List(args)) => netns::list(args),
        Tool::HealSockets(args) => heal::run(args),
        Tool::Cleanup(args) if args.kube_proxy => kube_proxy::run(&args.look.output),
        Tool::Cleanup(args) => cleanup::run(&args.look),
    }
}

/// Prints `value` as JSON, or what `text` makes of it.
fn print<T: Serialize>(
    output: &OutputArgs,
    value: &T,
    text: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    let mut text = match output.output {
        Output::Table => text(value),
        Output::Json => serde_json::to_string_pretty(value).context("cannot write JSON")?,
    };
    text.push('\n');
    match io::stdout().lock().write_all(text.as_bytes()) {
        // The reader has seen enough: `lb-agent service list | head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to stdout"),
    }
}

#[cfg(test)]
mod tests;
