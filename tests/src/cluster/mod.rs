//! A real cluster on this machine: a control plane, nodes with kubelet and containerd, DNS, and on every node a service proxy;
//! and upstream's own tests of one.
//!
//! ```text
//!  cluster up ─ starts ─> cluster hold, which owns everything below and ends it when it is told to (cluster down)
//!
//!  network namespace of the control plane             of node n1, with mount, PID, cgroup, UTS and IPC namespaces
//!  ----------------------------------------------     ----------------------------------------------------------
//!  etcd, API server, controllers, scheduler           node.sh ─┬─ containerd ── runc ── pods, on bridge cni0
//!  cluster e2e: ginkgo, upstream's tests              (pid 1)  ├─ kubelet
//!  bridge nodes ── veth ─────────────── eth0                   └─ the service proxy
//! ```
//!
//! Nothing outside is needed or touched: images are made from programs of this machine (`image`) and given to containerd as a
//! file; a node's processes are below a child cgroup, which is all that the node sees of cgroups, so programs that it attaches to its root
//! are attached to that child. There is no address translation but the service proxy's and that of the CNI plugin for host ports.
//!
//! ```text
//! up.rs        from outside: starting the process that holds a cluster, and ending it
//! hold.rs      inside it: everything, in order
//! layout.rs    the folder of a cluster, and who is up in it
//! programs.rs  what is built with Go
//! image.rs     the images
//! network.rs   addresses, wires and routes (pure)
//! node.rs      a node's configuration, namespaces and processes; tests/cluster/node.sh is its process 1
//! proxy.rs     command lines of service proxies
//! objects.rs   DNS, as objects (pure)
//! e2e.rs       running the tests
//! results.rs   what they came to, beside the baseline (pure)
//! foreign.rs   rules of a service proxy in the kernel
//! ```

mod e2e;
mod foreign;
mod hold;
mod image;
mod layout;
mod network;
mod node;
mod objects;
mod programs;
mod proxy;
mod results;
mod up;

pub use e2e::{Selection, run as e2e};
pub use hold::hold;
pub use layout::Layout;
pub use proxy::Proxy;
pub use up::{down, up};
