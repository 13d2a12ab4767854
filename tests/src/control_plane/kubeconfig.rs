//! Ways for a client to reach the API server: kubeconfig files and `kube` clients.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;

/// How a client checks that it speaks to the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// By the certificate authority of this control plane.
    Authority,
    /// Not at all (`insecure-skip-tls-verify`).
    Nobody,
}

/// Writes a kubeconfig for the administrator to `path`. Servers with a plain `http` address get no
/// authority.
pub(super) fn write(path: &Path, server: &str, authority: &Path, token: &str, trust: Trust) -> Result<()> {
    let mut cluster = json!({"server": server});
    if server.starts_with("https:") {
        match trust {
            Trust::Authority => cluster["certificate-authority"] = json!(authority),
            Trust::Nobody => cluster["insecure-skip-tls-verify"] = json!(true),
        }
    }
    // JSON is YAML, and every client reads it.
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tests", "cluster": cluster}],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "admin"}}],
        "current-context": "tests",
    });
    let text = serde_json::to_string_pretty(&config)?;
    std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}

/// A client of what the kubeconfig file names. Its background task runs on the present runtime.
pub(super) async fn client(kubeconfig: PathBuf) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(&kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}
