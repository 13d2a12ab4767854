//! The agent and its source of objects, as one answer.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

use serde::{Deserialize, Serialize};

use crate::{leftovers::Found, maps::pin, owner::Report};

/// Answer of `GET /v1/status`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// What the owner of the maps says.
    #[serde(flatten)]
    pub report: Report,
    /// `--pin-dir`, as the agent sees it.
    pub pin_dir: String,
    /// [`folder_id`] of that folder.
    pub folder: String,
    /// Files of `--manifests` that cannot be used, each with line and reason.
    pub problems: Vec<String>,
    /// What a kube-proxy has left on this node, as far as it was looked for.
    #[serde(default)]
    pub kube_proxy: Found,
}

/// Tells pin folders apart, whatever they are called in the caller's mount namespace: device and inode of the folder of
/// the maps.
///
/// # Errors
/// `ENOENT` if no agent has used `pin_dir`.
pub fn folder_id(pin_dir: &Path) -> io::Result<String> {
    let folder = fs::metadata(pin::maps_dir(pin_dir))?;
    Ok(format!("{}:{}", folder.dev(), folder.ino()))
}
