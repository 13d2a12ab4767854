//! A node with an agent and two clients, and servers on another node.
//!
//! ```text
//! node 1: lb-agent, client `host`, pod 10.1.1.10 with client `pod`     node 2: `servers` on 10.2.255.n
//! ```
//!
//! Numbers say who is who: Service `n` has the cluster IPs `10.0.n.100` and `fd00:10:0:n::100`, backend `n` the addresses
//! `10.2.255.n` and `fd00:10:2:255::n`. Service ports are TCP 80 and UDP 53, those of backends 8080 and 5353.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_tests::agent::{service, slice};
use lb_tests::probe::{Handle, Receiver, Serve, Tcp, Udp};
use lb_tests::{Agent, Home, Pod, Probe, Topology, wait_for};
use serde_json::{Value, json};

/// For limits of things that are expected to happen at once.
pub(crate) const SOON: Duration = Duration::from_mins(1);

/// For limits of things that are expected not to happen.
pub(crate) const SHORT: Duration = Duration::from_millis(200);

/// See the module. Fields are dropped in order: the agent before what it has pinned and attached.
pub(crate) struct Park {
    pub(crate) agent: Option<Agent>,
    pub(crate) host: Probe,
    pub(crate) pod: Probe,
    pub(crate) servers: Probe,
    pub(crate) home: Home,
    pub(crate) client: Pod,
    pub(crate) net: Topology,
}

impl Park {
    /// Everything but the agent.
    pub(crate) fn new(label: &str) -> Self {
        let net = Topology::pair().unwrap();
        let client = net.node(1).add_pod("client", [10, 1, 1, 10].into()).unwrap();
        Self {
            agent: None,
            host: net.node(1).probe("host").unwrap(),
            pod: client.probe("pod").unwrap(),
            servers: net.node(2).probe("servers").unwrap(),
            home: Home::new(label).unwrap(),
            client,
            net,
        }
    }

    /// Starts the agent, with further arguments.
    pub(crate) fn start(&mut self, args: &[&str]) {
        self.agent = Some(Agent::start_with(self.net.node(1), &self.home, args).unwrap());
    }

    /// Asks the agent to stop, and starts one with other arguments.
    pub(crate) fn restart(&mut self, args: &[&str]) {
        self.agent.take().unwrap().stop().unwrap();
        self.start(args);
    }

    /// Starts backend `n`: servers called `backend-n` for both protocols and families.
    pub(crate) fn serve(&self, n: u8) -> Vec<Handle> {
        let name = format!("backend-{n}");
        let mut handles = Vec::new();
        for addr in backend(n) {
            self.net.node(2).add_address(addr).unwrap();
            for server in [Serve::tcp(&name, (addr, 8080).into()), Serve::udp(&name, (addr, 5353).into())] {
                handles.push(self.servers.serve(&server).unwrap().handle);
            }
        }
        handles
    }

    /// Gives Service `n` these backends.
    pub(crate) fn program(&self, n: u8, backends: &[u8]) {
        self.home.apply(&format!("service-{n}"), &objects(n, backends)).unwrap();
    }

    /// Gives Service `n` these backends, and waits until new sockets meet all of them and nobody else.
    pub(crate) fn program_and_wait(&self, n: u8, backends: &[u8]) {
        self.program(n, backends);
        let wanted: Vec<String> = backends.iter().map(|n| format!("backend-{n}")).collect();
        wait_for(&format!("Service {n} to have the backends {backends:?}"), SOON, || {
            let mut met: Vec<String> = (0..16 * backends.len())
                .map(|_| match self.pod.udp(&Udp::to((cluster_ips(n)[0], 53).into()).timeout(SHORT)) {
                    Ok(reached) => reached.server().to_owned(),
                    Err(error) => error.to_string(),
                })
                .collect();
            met.sort();
            met.dedup();
            if met == wanted { Ok(()) } else { Err(format!("{met:?}")) }
        })
        .unwrap();
    }
}

/// Cluster IPs of Service `n`.
pub(crate) fn cluster_ips(n: u8) -> [IpAddr; 2] {
    [[10, 0, n, 100].into(), format!("fd00:10:0:{n}::100").parse().unwrap()]
}

/// Addresses of backend `n`.
pub(crate) fn backend(n: u8) -> [IpAddr; 2] {
    [[10, 2, 255, n].into(), format!("fd00:10:2:255::{n}").parse().unwrap()]
}

/// Service `n` and its slices.
pub(crate) fn objects(n: u8, backends: &[u8]) -> Vec<Value> {
    objects_at(n, &backends.iter().map(|n| backend(*n)).collect::<Vec<_>>())
}

/// Service `n`, and slices with endpoints at these addresses.
pub(crate) fn objects_at(n: u8, backends: &[[IpAddr; 2]]) -> Vec<Value> {
    let name = format!("service-{n}");
    let ips = cluster_ips(n).map(|ip| ip.to_string());
    let mut objects =
        vec![service(&name, &[&ips[0], &ips[1]], &[("stream", "TCP", 80), ("datagram", "UDP", 53)])];
    for (family, number) in [("v4", 0), ("v6", 1)] {
        let addresses: Vec<IpAddr> = backends.iter().map(|addresses| addresses[number]).collect();
        for port in [("stream", "TCP", 8080), ("datagram", "UDP", 5353)] {
            objects.push(slice(&format!("{name}-{family}-{}", port.0), &name, port, &addresses));
        }
    }
    objects
}

/// The four kinds of frontends, their addresses of both families, and their TCP and UDP ports.
pub(crate) const KINDS: [(&str, [&str; 2], [u16; 2]); 4] = [
    ("ClusterIP", ["10.0.1.100", "fd00:10:0:1::100"], [80, 53]),
    ("externalIP", ["198.51.100.7", "2001:db8::7"], [80, 53]),
    ("LoadBalancer", ["203.0.113.9", "2001:db8::9"], [80, 53]),
    ("NodePort", ["192.168.50.1", "fd00:192:168:50::1"], NODE_PORTS),
];

/// NodePorts for TCP and UDP, see [`everywhere`].
pub(crate) const NODE_PORTS: [u16; 2] = [30080, 30053];

/// Where the host itself, but no pod, reaches NodePorts too (NP-4).
pub(crate) const LOOPBACK: [&str; 2] = ["127.0.0.1", "::1"];

/// Service 1 with all of [`KINDS`].
pub(crate) fn everywhere(backends: &[u8]) -> Vec<Value> {
    let mut objects = objects(1, backends);
    let [_, (_, external, _), (_, balanced, _), _] = KINDS;
    let service = &mut objects[0];
    service["spec"]["type"] = json!("LoadBalancer");
    service["spec"]["externalIPs"] = json!(external);
    service["status"] =
        json!({"loadBalancer": {"ingress": balanced.map(|ip| json!({"ip": ip, "ipMode": "VIP"}))}});
    for (at, port) in NODE_PORTS.into_iter().enumerate() {
        service["spec"]["ports"][at]["nodePort"] = json!(port);
    }
    objects
}

/// Kinds of sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Socket {
    Tcp,
    UdpConnected,
    UdpUnconnected,
}

impl Socket {
    pub(crate) const ALL: [Self; 3] = [Self::Tcp, Self::UdpConnected, Self::UdpUnconnected];

    /// Which of two ports, TCP and UDP, such a socket uses.
    pub(crate) fn port(self, ports: [u16; 2]) -> u16 {
        ports[usize::from(self != Self::Tcp)]
    }

    /// Speaks to `to` and says who answered, and which addresses the application was shown. UDP is received in two
    /// ways, which have to agree.
    pub(crate) fn look(self, client: &Probe, to: SocketAddr, mapped: bool, limit: Duration) -> String {
        let seen = |receiver| {
            let reached = if self == Self::Tcp {
                let tcp = Tcp::to(to).timeout(limit);
                client.tcp(&if mapped { tcp.mapped() } else { tcp })
            } else {
                let udp = if self == Self::UdpConnected { Udp::connected(to) } else { Udp::to(to) };
                let udp = udp.receiver(receiver).timeout(limit);
                client.udp(&if mapped { udp.mapped() } else { udp })
            };
            match reached {
                Ok(reached) => story(reached.server(), reached.peer, reached.from),
                Err(error) => error.to_string(),
            }
        };
        let (first, second) = (seen(Receiver::RecvFrom), seen(Receiver::RecvMsg));
        if first == second { first } else { format!("recvfrom: {first}, but recvmsg: {second}") }
    }

    /// What [`Socket::look`] should say if `server` answers behind `to`.
    pub(crate) fn expect(self, server: &str, to: SocketAddr, mapped: bool) -> String {
        let shown = if mapped { as_mapped(to) } else { to };
        match self {
            Self::Tcp => story(server, Some(shown), None),
            Self::UdpConnected => story(server, Some(shown), Some(shown)),
            Self::UdpUnconnected => story(server, None, Some(shown)),
        }
    }
}

fn story(server: &str, peer: Option<SocketAddr>, from: Option<SocketAddr>) -> String {
    let or_none = |addr: Option<SocketAddr>| addr.map_or_else(|| "none".to_owned(), |addr| addr.to_string());
    format!("{server} answers, peer {}, source {}", or_none(peer), or_none(from))
}

/// `a.b.c.d` as an `AF_INET6` socket is shown it.
pub(crate) fn as_mapped(at: SocketAddr) -> SocketAddr {
    match at.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), at.port()),
        IpAddr::V6(_) => at,
    }
}

/// IPv4, IPv6, IPv4 on an `AF_INET6` socket: name, which of two addresses, whether mapped.
pub(crate) const FORMS: [(&str, usize, bool); 3] =
    [("IPv4", 0, false), ("IPv6", 1, false), ("mapped", 0, true)];

/// Fails with the whole list.
pub(crate) fn none_of(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
