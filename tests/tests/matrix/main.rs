//! Every client at every kind of frontend, under real agents on both nodes of sites that are wired in different ways: who
//! answers, and from which source the backend is asked.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod outcome;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use lb_tests::agent::{Agent, Home};
use lb_tests::probe::{Attempt, Look, Protocol, Seen, Serve, Survey, Tcp, Udp};
use lb_tests::topology::service::{Numbered, PORT, TARGET_PORT};
use lb_tests::topology::site::{PodLinks, PodNetwork, Shape, Site};
use lb_tests::{Pod, Probe, needs_root};
use outcome::{Backend, Cell, Client, Frontend, Options, Outcome, Policy, Source, outcome};
use serde_json::{Value, json};

/// Limit of a look that is expected to lead nowhere.
const SHORT: Duration = Duration::from_millis(400);
/// Looks at the same time, of one client. Nearly all of them take no time.
const THREADS: u32 = 24;
/// Attempts where a refusal is expected: of ICMP errors, a node tells only so many at once.
const REFUSALS: u32 = 4;

/// A cell, asked by one protocol in one family (0: IPv4, 1: IPv6).
#[derive(Clone, Copy, Debug)]
struct Question {
    cell: Cell,
    protocol: Protocol,
    family: usize,
}

/// A site with agents on both nodes, a client of every kind and all backends.
struct World {
    site: Site,
    options: Options,
    homes: [Home; 2],
    clients: Vec<Probe>,
    servers: Vec<Probe>,
    pods: [Pod; 3],
}

impl World {
    fn new(shape: Shape, options: Options) -> Self {
        let site = Site::new(shape).unwrap();
        let pods = [
            site.add_pod(1, "pod", Ipv4Addr::new(10, 1, 1, 10)).unwrap(),
            site.add_pod(1, "bare", Ipv4Addr::new(10, 1, 1, 11)).unwrap(),
            site.add_pod(2, "other", Ipv4Addr::new(10, 2, 1, 10)).unwrap(),
        ];
        let clients = vec![
            site.probe("outside").unwrap(),
            site.node(2).probe("other-node").unwrap(),
            pods[0].probe("pod").unwrap(),
            site.probe_without_hooks("bare-pod", &pods[1]).unwrap(),
            site.node(1).probe("node").unwrap(),
        ];
        let servers = vec![
            pods[0].probe("server").unwrap(),
            pods[1].probe("server").unwrap(),
            pods[2].probe("server").unwrap(),
            site.node(1).probe("server").unwrap(),
            site.node(2).probe("server").unwrap(),
        ];
        let homes = ["matrix-1", "matrix-2"].map(|label| Home::new(label).unwrap());
        let world = Self { site, options, homes, clients, servers, pods };
        for (backend, server) in Backend::ALL.into_iter().zip(&world.servers) {
            for addr in world.backend(backend) {
                server.serve(&Serve::tcp(&format!("{backend:?}"), (addr, TARGET_PORT).into())).unwrap();
                server.serve(&Serve::udp(&format!("{backend:?}"), (addr, TARGET_PORT).into())).unwrap();
            }
        }
        for home in &world.homes {
            home.apply("services", &world.objects()).unwrap();
        }
        world
    }

    fn start_agents(&self) -> Vec<Agent> {
        let flag = self.options.external_cluster_ip.then_some("--external-cluster-ip");
        self.site.start_agents(&self.homes, flag.as_slice()).unwrap()
    }

    /// Addresses of a backend.
    fn backend(&self, backend: Backend) -> Vec<IpAddr> {
        let of = |pod: &Pod| vec![pod.ipv4.into(), pod.ipv6.into()];
        match backend {
            Backend::Pod => of(&self.pods[0]),
            Backend::BarePod => of(&self.pods[1]),
            Backend::OtherPod => of(&self.pods[2]),
            Backend::Node => self.site.addresses(1).into(),
            Backend::OtherNode => self.site.addresses(2).into(),
            Backend::Nobody => Vec::new(),
        }
    }

    fn source(&self, source: Source, family: usize) -> IpAddr {
        match source {
            Source::Outside => Site::CLIENT[family],
            Source::Pod => self.backend(Backend::Pod)[family],
            Source::BarePod => self.backend(Backend::BarePod)[family],
            Source::Node(number) => self.site.addresses(number)[family],
            Source::ToOwnPods(number) => self.site.towards_own_pods(number)[family],
            Source::ToOtherPods(number) => self.site.towards_other_pods(number)[family],
        }
    }

    /// One Service for each backend and policy.
    fn objects(&self) -> Vec<Value> {
        let both = [Policy::Cluster, Policy::Local];
        let services = Backend::ALL.into_iter().flat_map(|backend| both.map(|policy| (backend, policy)));
        services.flat_map(|(backend, policy)| self.service(backend, policy)).collect()
    }

    fn service(&self, backend: Backend, policy: Policy) -> Vec<Value> {
        let policies = ["externalTrafficPolicy", "internalTrafficPolicy"].map(|field| (field, policy));
        let more = policies.map(|(field, policy)| (field.to_owned(), json!(format!("{policy:?}"))));
        let addrs = self.backend(backend).into_iter();
        let endpoints: Vec<_> = addrs.zip(backend.node().into_iter().cycle()).collect();
        let name = format!("{backend:?}-{policy:?}").to_lowercase();
        number(backend, policy).objects(&name, &endpoints, &Value::Object(more.into_iter().collect()))
    }

    /// Where a question goes.
    fn to(&self, question: Question) -> SocketAddr {
        let Question { cell: Cell { client, frontend, backend, policy }, family, .. } = question;
        let service = number(backend, policy);
        let node = |number| match client {
            Client::Outside => self.site.seen_from_outside(number),
            _ => self.site.addresses(number),
        };
        let (ips, port) = match frontend {
            Frontend::ClusterIp => (service.cluster_ips(), PORT),
            Frontend::LoadBalancer => (service.balanced_ips(), PORT),
            Frontend::ExternalIp => (service.external_ips(), PORT),
            Frontend::NodePort => (node(1), service.node_port()),
            Frontend::OtherNodePort => (node(2), service.node_port()),
        };
        (ips[family], port).into()
    }

    fn look(&self, question: Question) -> Look {
        let to = self.to(question);
        let wanted = outcome(question.cell, self.site.shape, self.options);
        let attempt: Attempt = match (question.protocol, wanted) {
            (Protocol::Tcp, Outcome::Silent) => Tcp::to(to).timeout(SHORT).into(),
            (Protocol::Tcp, _) => Tcp::to(to).timeout(SHORT * 20).into(),
            (Protocol::Udp, Outcome::Silent | Outcome::Refused) => Udp::connected(to).timeout(SHORT).into(),
            (Protocol::Udp, Outcome::Served(_)) => Udp::to(to).timeout(SHORT * 20).into(),
        };
        let times = if wanted == Outcome::Refused { REFUSALS } else { 1 };
        Look { attempt, times, failures: times }
    }

    /// What is wrong with what was seen.
    fn complaint(&self, question: Question, seen: &Seen) -> Option<String> {
        let Question { cell, protocol, family } = question;
        let wanted = outcome(cell, self.site.shape, self.options);
        let is_right = match wanted {
            Outcome::Served(source) => {
                let server = format!("{:?}", cell.backend);
                let sources =
                    BTreeMap::from([(server.clone(), BTreeSet::from([self.source(source, family)]))]);
                seen.failed.is_empty()
                    && seen.answered == BTreeMap::from([(server, 1)])
                    && seen.sources == sources
                    && seen.peers == BTreeSet::from([self.to(question)])
            }
            Outcome::Refused => seen.answered.is_empty() && seen.failed.contains_key("ECONNREFUSED"),
            Outcome::Silent => seen.answered.is_empty() && seen.failed.keys().eq(["TIMEOUT"]),
        };
        let Seen { answered, sources, failed, peers } = seen;
        let to = self.to(question);
        (!is_right).then(|| {
            format!(
                "{cell:?} {protocol:?} {to}: {answered:?} {sources:?} {peers:?} {failed:?} instead of {wanted:?}"
            )
        })
    }

    /// Asks everything; returns how many questions that were.
    fn check(&self) -> usize {
        let asked = Client::ALL.map(questions);
        let surveys = asked.each_ref().map(|questions| Survey {
            looks: questions.iter().map(|question| self.look(*question)).collect(),
            threads: THREADS,
        });
        let seen: Vec<Vec<Seen>> = thread::scope(|scope| {
            let clients = self.clients.iter().zip(&surveys);
            let threads: Vec<_> =
                clients.map(|(client, survey)| scope.spawn(|| client.survey(survey).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let pairs = asked.iter().flatten().zip(seen.iter().flatten());
        let wrong: Vec<String> =
            pairs.filter_map(|(question, seen)| self.complaint(*question, seen)).collect();
        let count = asked.iter().map(Vec::len).sum();
        assert!(wrong.is_empty(), "{} of {count} are wrong: {wrong:#?}", wrong.len());
        count
    }
}

/// Numbers a Service.
fn number(backend: Backend, policy: Policy) -> Numbered {
    Numbered(10 + 2 * backend as u8 + policy as u8)
}

/// All that one client asks.
fn questions(client: Client) -> Vec<Question> {
    let mut questions = Vec::new();
    for frontend in Frontend::ALL {
        for backend in Backend::ALL {
            for policy in [Policy::Cluster, Policy::Local] {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let cell = Cell { client, frontend, backend, policy };
                    questions.extend([0, 1].map(|family| Question { cell, protocol, family }));
                }
            }
        }
    }
    questions
}

/// Checks the matrix on a site.
fn check(shape: Shape, options: Options) {
    let world = World::new(shape, options);
    let agents = world.start_agents();
    println!("{} cells, {shape:?}, {options:?}", world.check());
    for agent in agents {
        agent.stop().unwrap();
    }
}

const INSIDE: Options = Options { external_cluster_ip: false };
const TWO_UPLINKS: Shape = Shape { mtu: 1400, two_uplinks: true, ..Shape::ROUTED };

/// 2.8-external, MQ-3, MQ-4, MQ-5, MQ-6, MQ-10, NP-15, 2.7-external
#[test]
fn every_cell_over_routes() {
    needs_root!();
    check(Shape::ROUTED, INSIDE);
}

/// The same, where pods are ports of a bridge, and the other node's are behind an overlay; clients outside reach cluster IPs too: MQ-2
#[test]
fn every_cell_over_bridges_and_an_overlay() {
    needs_root!();
    let shape = Shape { pod_links: PodLinks::Bridged, pod_network: PodNetwork::Vxlan, ..Shape::ROUTED };
    check(shape, Options { external_cluster_ip: true });
}

/// The same, where clients outside come by another uplink than the routes to them leave by, and links are smaller than pods'.
#[test]
fn every_cell_over_two_uplinks() {
    needs_root!();
    check(TWO_UPLINKS, INSIDE);
}

/// The same, over two uplinks and an overlay between routed pods.
#[test]
fn every_cell_over_two_uplinks_and_an_overlay() {
    needs_root!();
    let shape = Shape { pod_network: PodNetwork::Vxlan, ..TWO_UPLINKS };
    check(shape, Options { external_cluster_ip: true });
}
