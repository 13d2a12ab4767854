//! A real Kubernetes control plane for tests: etcd, API server and the controllers that make
//! EndpointSlices.
//!
//! ```text
//!  test threads            control plane's network namespace              node's namespace
//!  ------------   ----------------------------------------------------   ----------------
//!  run(future) -> runtime thread, kube client -> 127.0.0.1:6443
//!  127.0.0.1:n -> forward ---------------------> API server <- API_ADDRESSES on lo <- veth <- agent
//!                                                    |    ^ FaultProxy
//!                                                  etcd   controller manager
//! ```
//!
//! No kubelet runs: a test makes Nodes and Pods, writes their status ([`objects`]), and the EndpointSlice
//! controller does the rest. [`ControlPlane::shared`] serves all tests of a binary, each with its
//! [`Namespace`]; a test that stops the API server starts a control plane of its own
//! ([`ControlPlane::start`]). [`FaultProxy`] does what no real server does on demand, [`KubeProxy`] is the
//! peer of the benchmarks.
//!
//! Nothing survives the test process: the programs die with it, the namespace goes with them, and the next
//! start removes the folder in `target/control-plane/run/`, whose logs are there to be read until then.

mod components;
mod daemon;
mod fault_proxy;
pub(crate) mod go_build;
mod kube_proxy;
mod kubeconfig;
mod link;
mod namespace;
pub mod objects;
mod pki;
mod programs;
mod run_folder;
mod runtime;
mod server;
mod shared;
mod writes;

pub use daemon::Daemon;
pub use fault_proxy::{Fault, FaultProxy, Request, Verb};
pub use kube_proxy::{KubeProxy, ProxyMode};
pub use kubeconfig::Trust;
pub use link::Link;
pub use namespace::Namespace;
pub use programs::find;
pub use runtime::NetnsRuntime;
pub use server::{ControlPlane, Kubelets};
pub use shared::{NO_CLUSTER_VARIABLE, is_left_out};
pub use xtask::control_plane::{ASSETS_VARIABLE, Program, cache_folder};

/// The addresses of the API server in its namespace that every linked node reaches: two of IPv4, one of
/// IPv6.
pub const API_ADDRESSES: [&str; 3] = ["172.31.255.1", "172.31.255.2", "fd00:31:255::1"];

/// The port of the API server on [`API_ADDRESSES`].
pub const API_PORT: u16 = 6443;

/// The ranges that Services get their cluster addresses from.
pub const SERVICE_CIDRS: &str = "10.0.0.0/16,fd00:10::/112";
