//! A node: what its programs are configured with, its namespaces, and its processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use xtask::paths::workspace_root;

use super::image::SANDBOX;
use super::layout::Layout;
use super::network::{self, NAME_SERVER};
use super::programs::Programs;
use super::proxy::Proxy;
use crate::control_plane::Daemon;
use crate::{Cgroup, Netns, Place as _, wait_until};

/// How long the kernel may take to end what ran in a node.
const END_LIMIT: Duration = Duration::from_secs(30);

/// A running node. Dropping it ends all of its processes and removes its cgroup and network namespace.
#[derive(Debug)]
pub(super) struct Node {
    first: Daemon,
    cgroup: Cgroup,
    netns: Netns,
    folder: PathBuf,
}

/// What all nodes of a cluster share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape<'a> {
    pub(super) layout: &'a Layout,
    pub(super) programs: &'a Programs,
    pub(super) proxy: Proxy,
    /// How many nodes there are.
    pub(super) nodes: u8,
}

impl Node {
    /// Starts node `number`, wired to the bridge in the namespace of the control plane.
    pub(super) fn start(number: u8, shape: Shape<'_>, control_plane: &Netns) -> Result<Self> {
        let name = network::name(number);
        let folder = shape.layout.node(&name);
        configure(&folder, number)?;
        let netns = Netns::new(&name)?;
        netns.join("eth0", control_plane, &name)?;
        netns.ip(&network::node(number, shape.nodes))?;
        control_plane.ip(&network::port(number))?;
        for sysctl in network::FORWARDS {
            netns.sysctl(sysctl, "1")?;
        }
        let cgroup = Cgroup::new(&name)?;
        let kubeconfig = shape.layout.kubeconfig();
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "--cgroup",
                "--uts",
                "--ipc",
            ])
            .arg(workspace_root().join("tests/cluster/node.sh"))
            .arg(&name)
            .arg(&folder)
            .arg(shape.layout.images())
            .arg(&shape.programs.kubelet)
            .arg(&kubeconfig)
            .arg(network::addresses(number).join(","))
            .args(shape.proxy.command(&name, &kubeconfig)?)
            .in_cgroup(&cgroup);
        let first = Daemon::start(&name, command, &netns, &folder.join("node.log"))?;
        Ok(Self { first, cgroup, netns, folder })
    }

    /// Name of the network namespace.
    pub(super) fn netns(&self) -> &str {
        self.netns.name()
    }

    /// Fails with the end of the node's log when it has ended.
    pub(super) fn check_running(&self) -> Result<()> {
        self.first.check_running()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // `unshare` takes process 1 with it, and that one everybody else in the PID namespace.
        self.first.kill();
        let what = format!("the end of {}", self.netns.name());
        if let Err(error) = wait_until(&what, END_LIMIT, || self.cgroup.processes().is_empty()) {
            eprintln!("{error:#}");
        }
        // Gigabytes of unpacked images; configuration and logs stay. What cannot be removed is removed by the next `up`.
        drop(fs::remove_dir_all(self.folder.join("state")));
    }
}

/// Writes the files that node.sh names.
fn configure(folder: &Path, number: u8) -> Result<()> {
    let networks = folder.join("net.d");
    fs::create_dir_all(&networks).with_context(|| format!("cannot make {}", networks.display()))?;
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    write("containerd.toml", containerd(&networks))?;
    write("net.d/10-cluster.conflist", pod_network(number).to_string())?;
    write("kubelet.json", kubelet(&folder.join("resolv.conf")).to_string())?;
    write("resolv.conf", format!("nameserver {NAME_SERVER}\n"))
}

/// containerd as Kubernetes uses it, without what a child cgroup or a small machine lacks.
fn containerd(networks: &Path) -> String {
    let networks = networks.display();
    format!(
        r#"version = 2
# Snapshotters that look for devices and file systems of the machine, and a folder in /opt.
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.opt",
]

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{SANDBOX}"
# The node's cgroup has no controllers, so containers have no limits.
disable_cgroup = true
# Lowering a score needs a capability that the machine may not have.
restrict_oom_score_adj = true
disable_apparmor = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{networks}"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"#
    )
}

/// The list of CNI plugins: a bridge with the node's ranges, and host ports.
fn pod_network(number: u8) -> Value {
    let ranges = network::pods(number).map(|subnet| json!([{"subnet": subnet}]));
    json!({
        "cniVersion": "0.4.0",
        "name": "cluster",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                // A pod may reach itself through a Service.
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/run/cni",
                    "ranges": ranges,
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

/// KubeletConfiguration of `kubelet.config.k8s.io/v1beta1`.
fn kubelet(resolv_conf: &Path) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        // Only this machine reaches it, and the API server has no certificate for it.
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        // Pods have cgroups, but no limits: there are no controllers.
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": false,
        "enforceNodeAllocatable": [],
        "oomScoreAdj": 0,
        "failSwapOn": false,
        "clusterDNS": [NAME_SERVER],
        "clusterDomain": "cluster.local",
        "resolvConf": resolv_conf,
        // The disk is the developer's own: it is fuller than a node's, and pods are not evicted for it.
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
            "imagefs.inodesFree": "1%",
        },
        // An image that is collected cannot be pulled again.
        "imageGCHighThresholdPercent": 100,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_get_addresses_of_both_families_from_the_node_s_ranges() {
        let network = pod_network(2);
        let subnet = |index| network["plugins"][0]["ipam"]["ranges"][index][0]["subnet"].clone();
        assert_eq!([subnet(0), subnet(1)], ["10.244.2.0/24", "fd00:10:244:2::/64"]);
    }

    #[test]
    fn every_file_that_the_script_names_is_written() {
        let folder = std::env::temp_dir().join(format!("lb-cluster-node-{}", std::process::id()));
        configure(&folder, 1).unwrap();
        let script = fs::read_to_string(workspace_root().join("tests/cluster/node.sh")).unwrap();
        for name in ["containerd.toml", "kubelet.json"] {
            assert!(script.contains(&format!("$folder/{name}")), "node.sh does not read {name}");
            assert!(folder.join(name).is_file(), "{name} is not written");
        }
        fs::remove_dir_all(folder).unwrap();
    }
}
