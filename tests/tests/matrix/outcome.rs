//! What becomes of a client that asks a Service: worked out from the rules alone.

use lb_tests::topology::site::{PodNetwork, Shape};

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// A machine behind the router.
    Outside,
    /// Node 2 itself.
    OtherNode,
    /// A pod of node 1 whose sockets the hooks see.
    Pod,
    /// A pod of node 1 whose sockets no hook sees.
    BarePod,
    /// Node 1 itself.
    Node,
}

impl Client {
    pub(crate) const ALL: [Self; 5] = [Self::Outside, Self::OtherNode, Self::Pod, Self::BarePod, Self::Node];
}

/// Which address of the Service is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frontend {
    ClusterIp,
    /// The NodePort at node 1.
    NodePort,
    /// The NodePort at node 2.
    OtherNodePort,
    LoadBalancer,
    ExternalIp,
}

impl Frontend {
    pub(crate) const ALL: [Self; 5] =
        [Self::ClusterIp, Self::NodePort, Self::OtherNodePort, Self::LoadBalancer, Self::ExternalIp];
}

/// The Service's only endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// [`Client::Pod`]
    Pod,
    /// [`Client::BarePod`]
    BarePod,
    /// A pod of node 2.
    OtherPod,
    /// Node 1 itself.
    Node,
    /// Node 2 itself.
    OtherNode,
    /// There is none.
    Nobody,
}

impl Backend {
    pub(crate) const ALL: [Self; 6] =
        [Self::Pod, Self::BarePod, Self::OtherPod, Self::Node, Self::OtherNode, Self::Nobody];

    /// Number of its node.
    pub(crate) const fn node(self) -> Option<usize> {
        match self {
            Self::Pod | Self::BarePod | Self::Node => Some(1),
            Self::OtherPod | Self::OtherNode => Some(2),
            Self::Nobody => None,
        }
    }

    const fn is_node(self) -> bool {
        matches!(self, Self::Node | Self::OtherNode)
    }
}

/// Both traffic policies of the Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    Cluster,
    Local,
}

/// Who asks whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) client: Client,
    pub(crate) frontend: Frontend,
    pub(crate) backend: Backend,
    pub(crate) policy: Policy,
}

/// The agents' options that matter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// `--external-cluster-ip`
    pub(crate) external_cluster_ip: bool,
}

/// An address, as a backend sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Outside,
    Pod,
    BarePod,
    /// What the node of this number has on the network between the nodes.
    Node(usize),
    /// From what it speaks to its own pods.
    ToOwnPods(usize),
    /// From what it speaks to the other node's pods.
    ToOtherPods(usize),
}

/// What a client meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The endpoint, which sees this source.
    Served(Source),
    Refused,
    Silent,
}

/// Where it is decided who serves, and what the client is there (2.8: P, H, X).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decided {
    /// At a socket of node 1 or 2: of a pod, or of the node.
    Socket(usize),
    /// Where packets of a pod of node 1 enter it.
    PodDevice,
    /// Where packets of strangers enter node 1 or 2.
    Uplink(usize),
}

impl Decided {
    const fn node(self) -> usize {
        match self {
            Self::Socket(node) | Self::Uplink(node) => node,
            Self::PodDevice => 1,
        }
    }
}

/// What becomes of a cell.
pub(crate) fn outcome(cell: Cell, shape: Shape, options: Options) -> Outcome {
    let Cell { client, frontend, backend, policy } = cell;
    let decided = decided(client, frontend);
    let is_stranger = matches!(decided, Decided::Uplink(_));
    let is_internal = frontend == Frontend::ClusterIp;
    if is_internal && is_stranger && !options.external_cluster_ip {
        // Cluster IPs are for the cluster; the routes lead nowhere.
        return Outcome::Silent;
    }
    let Some(at) = backend.node() else { return Outcome::Refused };
    let is_here = at == decided.node();
    // EP-8, MQ-4: pods of this node and the node itself meet everybody at external addresses.
    let uses_local = policy == Policy::Local && (is_internal || is_stranger);
    if uses_local && !is_here {
        return Outcome::Silent;
    }
    Outcome::Served(match decided {
        Decided::Socket(node) => own(client, node, backend, shape),
        // MQ-6: who meets himself sees the node. MQ-10, and MQ-3 leaves it open: the answer passes the pod's device in any case.
        Decided::PodDevice if backend == Backend::BarePod => Source::ToOwnPods(1),
        Decided::PodDevice => own(client, 1, backend, shape),
        // MQ-4; MQ-3 leaves it open: the answer passes this node in any case.
        Decided::Uplink(node) if is_here => arriving(client, node, shape),
        // MQ-2, MQ-3: it would not.
        Decided::Uplink(node) => speaks(node, backend),
    })
}

fn decided(client: Client, frontend: Frontend) -> Decided {
    match (client, frontend) {
        // NP-15: sockets know the NodePorts of their own node alone.
        (Client::Pod | Client::BarePod | Client::Node | Client::Outside, Frontend::OtherNodePort) => {
            Decided::Uplink(2)
        }
        (Client::OtherNode, Frontend::NodePort) | (Client::Outside, _) => Decided::Uplink(1),
        (Client::Pod | Client::Node, _) => Decided::Socket(1),
        (Client::OtherNode, _) => Decided::Socket(2),
        (Client::BarePod, _) => Decided::PodDevice,
    }
}

/// What a backend sees of a client on `node` whose source nobody in between has touched but its own network.
fn own(client: Client, node: usize, backend: Backend, shape: Shape) -> Source {
    match client {
        Client::Pod | Client::BarePod if backend == Backend::OtherNode => arriving(client, 2, shape),
        Client::Pod => Source::Pod,
        Client::BarePod => Source::BarePod,
        Client::Outside => Source::Outside,
        Client::Node | Client::OtherNode => speaks(node, backend),
    }
}

/// The source with which packets of `client` arrive at an address of `node` itself.
fn arriving(client: Client, node: usize, shape: Shape) -> Source {
    let is_hidden = shape.pod_network == PodNetwork::Vxlan && node == 2;
    match client {
        Client::Pod | Client::BarePod if is_hidden => Source::Node(1),
        Client::Pod => Source::Pod,
        Client::BarePod => Source::BarePod,
        Client::Outside => Source::Outside,
        Client::Node => Source::Node(1),
        Client::OtherNode => Source::Node(2),
    }
}

/// From what a node speaks to a backend.
fn speaks(node: usize, backend: Backend) -> Source {
    match backend.node() {
        _ if backend.is_node() => Source::Node(node),
        Some(at) if at == node => Source::ToOwnPods(node),
        _ => Source::ToOtherPods(node),
    }
}
