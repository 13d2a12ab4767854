//! Where a cluster keeps its files, and whether one is up.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use xtask::paths::target_dir;

use super::proxy::Proxy;

/// The folder of a cluster.
#[derive(Clone, Debug)]
pub struct Layout(PathBuf);

/// A cluster that is up, as [`Layout::state`] reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// Who serves Services.
    pub(super) proxy: Proxy,
    /// Name of the control plane's network namespace.
    pub(super) control_plane: String,
    /// Names of the nodes' network namespaces, by number from 1.
    pub(super) nodes: Vec<String>,
}

impl Layout {
    /// The cluster in `folder`; without one in `target/cluster`.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new(folder: Option<PathBuf>) -> Result<Self> {
        let folder = folder.unwrap_or_else(|| target_dir().join("cluster"));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        // Nodes have it in mounts and in configuration.
        let folder = folder.canonicalize().with_context(|| format!("cannot resolve {}", folder.display()))?;
        Ok(Self(folder))
    }

    /// All of it.
    pub(super) fn folder(&self) -> &Path {
        &self.0
    }

    /// Programs, in a folder for each state of their Go module. They outlive clusters.
    pub(super) fn programs(&self) -> PathBuf {
        self.0.join("programs")
    }

    /// Whatever belongs to the cluster that is up, or to the last one: certificates, logs, state of nodes.
    pub(super) fn run(&self) -> PathBuf {
        self.0.join("run")
    }

    /// What `cluster hold` says.
    pub(super) fn log(&self) -> PathBuf {
        self.run().join("cluster.log")
    }

    /// A kubeconfig for the nodes and for the tests.
    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.run().join("kubeconfig")
    }

    /// A kubeconfig for this machine's own network namespace.
    pub(super) fn host_kubeconfig(&self) -> PathBuf {
        self.run().join("kubeconfig-host")
    }

    /// The archive of images.
    pub(super) fn images(&self) -> PathBuf {
        self.run().join("images.tar")
    }

    /// The folder of a node.
    pub(super) fn node(&self, name: &str) -> PathBuf {
        self.run().join(name)
    }

    /// What the tests came to.
    pub(super) fn results(&self) -> PathBuf {
        self.0.join("results")
    }

    /// Takes the right to be the cluster of this folder; it ends with the returned file.
    ///
    /// # Errors
    /// Another one has it.
    pub(super) fn lock(&self) -> Result<File> {
        match self.try_lock()? {
            Some(lock) => Ok(lock),
            None => bail!("a cluster is up in {}: end it with `cargo xtask cluster down`", self.0.display()),
        }
    }

    /// The same; `None` while another one has it.
    pub(super) fn try_lock(&self) -> Result<Option<File>> {
        let path = self.0.join("lock");
        let file = File::options().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        Ok(file.try_lock().is_ok().then_some(file))
    }

    /// Writes what is up, for [`Self::state`].
    pub(super) fn publish(&self, state: &State) -> Result<()> {
        // Whoever looks while it is written must not see half of it.
        let unfinished = self.run().join("state.unfinished");
        let text = serde_json::to_string_pretty(state)?;
        fs::write(&unfinished, text).and_then(|()| fs::rename(&unfinished, self.state_file()))?;
        Ok(())
    }

    /// What is up; `None` when nothing is, or not yet.
    pub(super) fn state(&self) -> Result<Option<State>> {
        let text = match fs::read_to_string(self.state_file()) {
            Ok(text) => text,
            // The lock is not even tried: a cluster that is just starting must find it free.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context("cannot read state.json"),
        };
        // The file of one that has ended stays.
        if self.try_lock()?.is_some() {
            return Ok(None);
        }
        Ok(Some(serde_json::from_str(&text).context("state.json has another form")?))
    }

    fn state_file(&self) -> PathBuf {
        self.run().join("state.json")
    }

    /// Writes who holds the cluster: known before anything is up.
    pub(super) fn publish_holder(&self) -> Result<()> {
        let path = self.run().join("pid");
        fs::write(&path, std::process::id().to_string())
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The process that holds the cluster, of which only the lock says that it lives.
    pub(super) fn holder(&self) -> Option<i32> {
        fs::read_to_string(self.run().join("pid")).ok()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_cluster_and_tells_of_it_only_while_it_is_up() {
        let folder = std::env::temp_dir().join(format!("lb-cluster-layout-{}", std::process::id()));
        let layout = Layout::new(Some(folder.clone())).unwrap();
        fs::create_dir_all(layout.run()).unwrap();
        let state =
            State { proxy: Proxy::LbAgent, control_plane: "c".into(), nodes: vec!["a".into(), "b".into()] };
        let lock = layout.lock().unwrap();
        assert_eq!(layout.state().unwrap(), None);
        layout.publish(&state).unwrap();
        assert_eq!(layout.state().unwrap(), Some(state));
        let refused = layout.lock().unwrap_err().to_string();
        assert!(refused.contains("cargo xtask cluster down"), "{refused}");
        drop(lock);
        assert_eq!(layout.state().unwrap(), None);
        fs::remove_dir_all(folder).unwrap();
    }
}
