//! The programs of nodes and of upstream's tests: built with Go from pinned modules, or packages of the distribution.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use xtask::paths::workspace_root;

use super::layout::Layout;
use crate::control_plane::go_build::{self, Recipe};

/// The Go module of Kubernetes' own programs, from the workspace root.
const KUBERNETES: &str = "tests/cluster/kubernetes";

/// That of the DNS server.
const DNS: &str = "tests/cluster/dns";

/// What packages bring: a program of each, and the package.
const PACKAGES: [(&str, &str); 4] = [
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("busybox", "busybox-static"),
];

/// Paths of what is built.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    pub(super) kubelet: PathBuf,
    pub(super) scheduler: PathBuf,
    pub(super) kubectl: PathBuf,
    /// The server and client of upstream's tests, to be put into an image.
    pub(super) agnhost: PathBuf,
    /// The peer that one test of connection tracking needs, to be put into an image.
    pub(super) regression: PathBuf,
    pub(super) coredns: PathBuf,
    /// Runs tests in parallel.
    pub(super) ginkgo: PathBuf,
    /// Upstream's tests.
    pub(super) e2e: PathBuf,
}

impl Programs {
    /// Finds them, and builds what is not there.
    ///
    /// # Errors
    /// A package is missing, or what [`go_build::ensure`] says.
    pub(super) fn ensure(layout: &Layout) -> Result<Self> {
        for (program, package) in PACKAGES {
            if find_in_path(program).is_none() {
                bail!(
                    "{program} is not installed: `cargo xtask cluster up` does it, by the package {package}"
                );
            }
        }
        let cache = layout.programs();
        let build = |name| {
            let recipe = recipe(name);
            go_build::ensure(&recipe, &recipe.folder(&cache)?)
        };
        Ok(Self {
            kubelet: build("kubelet")?,
            scheduler: build("kube-scheduler")?,
            kubectl: build("kubectl")?,
            agnhost: build("agnhost")?,
            regression: build("regression-issue-74839")?,
            coredns: build("coredns")?,
            ginkgo: build("ginkgo")?,
            e2e: build("e2e.test")?,
        })
    }
}

fn recipe(name: &'static str) -> Recipe {
    let (module, package) = match name {
        "kubelet" => (KUBERNETES, "k8s.io/kubernetes/cmd/kubelet"),
        "kube-scheduler" => (KUBERNETES, "k8s.io/kubernetes/cmd/kube-scheduler"),
        "kubectl" => (KUBERNETES, "k8s.io/kubernetes/cmd/kubectl"),
        "agnhost" => (KUBERNETES, "k8s.io/kubernetes/test/images/agnhost"),
        "ginkgo" => (KUBERNETES, "github.com/onsi/ginkgo/v2/ginkgo"),
        "e2e.test" => (KUBERNETES, "k8s.io/kubernetes/test/e2e"),
        "coredns" => (DNS, "clusterdns"),
        _ => (KUBERNETES, "k8s.io/kubernetes/test/images/regression-issue-74839"),
    };
    Recipe { name, module: workspace_root().join(module), package, is_test: name == "e2e.test" }
}

/// Where a program lies: on the `PATH`, or where administrators' programs are.
pub(super) fn find_in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    // `join` keeps an absolute path as it is.
    folders.map(|folder| folder.join(name)).find(|path| Path::is_file(path))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use xtask::control_plane::module_folder;

    fn release(module: &Path) -> String {
        let text = fs::read_to_string(module.join("go.mod")).unwrap();
        go_build::kubernetes_version(&text).unwrap().to_owned()
    }

    #[test]
    fn nodes_and_control_plane_are_of_one_release() {
        assert_eq!(release(&workspace_root().join(KUBERNETES)), release(&module_folder()));
    }

    #[test]
    fn the_module_lists_every_program_that_is_built_from_it() {
        let text = fs::read_to_string(workspace_root().join(KUBERNETES).join("go.mod")).unwrap();
        for name in ["kubelet", "kube-scheduler", "kubectl", "agnhost", "ginkgo", "regression-issue-74839"] {
            let package = recipe(name).package;
            assert!(text.lines().any(|line| line.trim() == package), "no tool line for {package}");
        }
    }

    #[test]
    fn only_the_tests_are_built_as_tests() {
        assert!(recipe("e2e.test").is_test && !recipe("kubelet").is_test);
    }
}
