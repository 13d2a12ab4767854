//! What the tests' control plane is made of and where its programs are kept: `cargo xtask test` looks before it builds
//! anything, lb-tests builds them and runs them.

use std::{
    env, fmt, fs,
    hash::{DefaultHasher, Hasher as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::paths;

/// The environment variable with a folder of ready programs, as `setup-envtest` makes one.
pub const ASSETS_VARIABLE: &str = "KUBEBUILDER_ASSETS";

/// A program that the tests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The API server's store.
    Etcd,
    /// The API server.
    ApiServer,
    /// Makes EndpointSlices out of Services and Pods, among other things.
    ControllerManager,
    /// The service proxy that we are compared with.
    KubeProxy,
}

impl Program {
    /// All of them, slowest build first.
    pub const ALL: [Self; 4] = [Self::ApiServer, Self::Etcd, Self::ControllerManager, Self::KubeProxy];

    /// The name of the file, in the cache and in `KUBEBUILDER_ASSETS`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::KubeProxy => "kube-proxy",
        }
    }

    /// The Go package of the program; `tests/control-plane/go.mod` lists each as a tool.
    #[must_use]
    pub fn package(self) -> &'static str {
        match self {
            Self::Etcd => "go.etcd.io/etcd/server/v3",
            Self::ApiServer => "k8s.io/kubernetes/cmd/kube-apiserver",
            Self::ControllerManager => "k8s.io/kubernetes/cmd/kube-controller-manager",
            Self::KubeProxy => "k8s.io/kubernetes/cmd/kube-proxy",
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The folders that programs are looked for in.
#[derive(Clone, Debug)]
pub struct Folders {
    /// `KUBEBUILDER_ASSETS`, if it is set to anything.
    pub assets: Option<PathBuf>,
    /// What [`cache_folder`] says.
    pub cache: PathBuf,
}

impl Folders {
    /// Those of this process.
    ///
    /// # Errors
    /// When the Go module cannot be read.
    pub fn current() -> Result<Self> {
        let assets = env::var_os(ASSETS_VARIABLE).filter(|value| !value.is_empty());
        Ok(Self { assets: assets.map(PathBuf::from), cache: cache_folder()? })
    }

    /// Where `program` is; `None` when it is still to be built.
    ///
    /// A folder of `setup-envtest` has etcd and the API server; the other programs then come from the cache.
    ///
    /// # Errors
    /// When `KUBEBUILDER_ASSETS` names a folder without etcd or API server.
    pub fn find(&self, program: Program) -> Result<Option<PathBuf>> {
        if let Some(assets) = &self.assets {
            let path = assets.join(program.name());
            if path.is_file() {
                return Ok(Some(path));
            }
            if matches!(program, Program::Etcd | Program::ApiServer) {
                bail!(
                    "{ASSETS_VARIABLE}={} has no {program}: put it there, or unset {ASSETS_VARIABLE} to have it built",
                    assets.display()
                );
            }
        }
        let path = self.cache.join(program.name());
        Ok(path.is_file().then_some(path))
    }
}

/// The Go module that pins everything.
#[must_use]
pub fn module_folder() -> PathBuf {
    paths::workspace_root().join("tests/control-plane")
}

/// The folder that keeps the programs of the present `go.mod` and `go.sum`. It need not exist.
///
/// # Errors
/// When one of the two cannot be read.
pub fn cache_folder() -> Result<PathBuf> {
    Ok(paths::target_dir().join("control-plane").join(fingerprint(&module_folder())?))
}

/// A name for what is built from the Go module in `folder`: another `go.mod` or `go.sum` gives another one.
///
/// # Errors
/// When one of the two cannot be read.
pub fn fingerprint(folder: &Path) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    for file in ["go.mod", "go.sum"] {
        let path = folder.join(file);
        hasher.write(&fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
        hasher.write_u8(0xff);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// What a person can do who has no control plane, to end a line with.
#[must_use]
pub fn remedy(leave_out: &str) -> String {
    format!(
        "install Go 1.21 or newer (https://go.dev/dl), or set {ASSETS_VARIABLE}=<folder with etcd, kube-apiserver, \
         kube-controller-manager and kube-proxy>, or leave out what needs them with {leave_out}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(assets: &[&str], cached: &[&str]) -> (tempfile::TempDir, Folders) {
        let root = tempfile::tempdir().unwrap();
        let folder = |name: &str, programs: &[&str]| {
            let folder = root.path().join(name);
            fs::create_dir(&folder).unwrap();
            for program in programs {
                fs::write(folder.join(program), "").unwrap();
            }
            folder
        };
        let folders = Folders { assets: Some(folder("assets", assets)), cache: folder("cache", cached) };
        (root, folders)
    }

    #[test]
    fn assets_of_setup_envtest_serve_etcd_and_the_api_server_only() {
        let (_root, folders) = folders(&["etcd", "kube-apiserver", "kubectl"], &["kube-proxy"]);
        let assets = folders.assets.clone().unwrap();
        assert_eq!(folders.find(Program::Etcd).unwrap(), Some(assets.join("etcd")));
        assert_eq!(folders.find(Program::ApiServer).unwrap(), Some(assets.join("kube-apiserver")));
        assert_eq!(folders.find(Program::ControllerManager).unwrap(), None);
        assert_eq!(folders.find(Program::KubeProxy).unwrap(), Some(folders.cache.join("kube-proxy")));
    }

    #[test]
    fn assets_without_an_api_server_are_an_error_even_if_one_was_built() {
        let (_root, folders) = folders(&["etcd"], &["kube-apiserver"]);
        let error = folders.find(Program::ApiServer).unwrap_err().to_string();
        assert!(error.contains("kube-apiserver") && error.contains("/assets"), "{error}");
        assert!(error.contains("unset KUBEBUILDER_ASSETS") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn without_assets_everything_comes_from_the_cache() {
        let (_root, folders) = folders(&["etcd"], &["kube-apiserver"]);
        let folders = Folders { assets: None, ..folders };
        assert_eq!(folders.find(Program::ApiServer).unwrap(), Some(folders.cache.join("kube-apiserver")));
        assert_eq!(folders.find(Program::Etcd).unwrap(), None);
    }

    #[test]
    fn the_remedy_names_both_ways_and_the_flag() {
        let line = remedy("--no-cluster");
        for part in ["https://go.dev/dl", "KUBEBUILDER_ASSETS", "--no-cluster"] {
            assert!(line.contains(part), "{line}");
        }
        assert!(!line.contains('\n'));
    }
}
