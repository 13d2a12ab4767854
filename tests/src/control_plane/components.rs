//! The command lines of etcd, API server and controller manager.
//!
//! What differs between a control plane for tests and one with kubelets ([`Kubelets`]) is here.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::pki::AUTHORITY;
use super::run_folder::STORE;
use super::{API_ADDRESSES, API_PORT, Kubelets, Program, SERVICE_CIDRS, find};

/// The controllers worth running without kubelets and without a scheduler.
const CONTROLLERS: [&str; 6] = [
    "endpointslice-controller",
    "endpointslice-mirroring-controller",
    "deployment-controller",
    "replicaset-controller",
    "namespace-controller",
    "serviceaccount-controller",
];

/// etcd's address for clients. It speaks gRPC and, for [`super::ControlPlane::compact`], JSON.
pub(super) const ETCD_URL: &str = "http://127.0.0.1:2379";

pub(super) fn etcd(folder: &Path) -> Result<Command> {
    let mut command = Command::new(find(Program::Etcd)?);
    command
        .arg("--data-dir")
        .arg(folder.join(STORE))
        // The data of a test need not survive the machine.
        .arg("--unsafe-no-fsync")
        .args(["--listen-client-urls", ETCD_URL, "--advertise-client-urls", ETCD_URL])
        .args(["--listen-peer-urls", "http://127.0.0.1:2380", "--log-level", "warn"]);
    Ok(command)
}

pub(super) fn api_server(folder: &Path, kubelets: Kubelets) -> Result<Command> {
    let mut command = Command::new(find(Program::ApiServer)?);
    command
        .args(["--etcd-servers", ETCD_URL])
        // Compaction happens when a test asks for it, never by time.
        .args(["--etcd-compaction-interval", "0"])
        .args(["--secure-port", &API_PORT.to_string(), "--advertise-address", API_ADDRESSES[0]])
        .args(["--service-cluster-ip-range", SERVICE_CIDRS])
        .args(["--authorization-mode", "RBAC", "--service-account-issuer", "https://kubernetes.default.svc"])
        // Close watches at once when asked to end, not after a minute.
        .args(["--shutdown-send-retry-after", "--shutdown-watch-termination-grace-period", "1s"])
        .args(["--allow-privileged", "--profiling=false"]);
    match kubelets {
        // It would refuse pods until a controller has made the account and its token; there is no kubelet
        // to use them.
        Kubelets::Played => command.args(["--disable-admission-plugins", "ServiceAccount"]),
        // Names of nodes are in no DNS.
        Kubelets::Real => command.args(["--kubelet-preferred-address-types", "InternalIP"]),
    };
    for (flag, file) in [
        ("--tls-cert-file", "server.crt"),
        ("--tls-private-key-file", "server.key"),
        ("--service-account-key-file", "sa.pub"),
        ("--service-account-signing-key-file", "sa.key"),
        ("--token-auth-file", "tokens.csv"),
    ] {
        command.arg(flag).arg(folder.join(file));
    }
    Ok(command)
}

pub(super) fn controller_manager(folder: &Path, kubeconfig: &Path, kubelets: Kubelets) -> Result<Command> {
    let mut command = Command::new(find(Program::ControllerManager)?);
    command
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .arg("--service-account-private-key-file")
        .arg(folder.join("sa.key"))
        .args(["--leader-elect=false", "--secure-port", "0"])
        // The default of 20 requests per second is for sharing an API server with others.
        .args(["--kube-api-qps", "1000", "--kube-api-burst", "2000"]);
    match kubelets {
        Kubelets::Played => command.args(["--controllers", &CONTROLLERS.join(",")]),
        // Pods trust the API server by what this puts into every namespace.
        Kubelets::Real => command.arg("--root-ca-file").arg(folder.join(AUTHORITY)),
    };
    Ok(command)
}

/// Gives pods to nodes: where kubelets are real, nobody else does.
pub(super) fn scheduler(program: &Path, kubeconfig: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("--kubeconfig").arg(kubeconfig).args(["--leader-elect=false", "--secure-port", "0"]);
    command
}
