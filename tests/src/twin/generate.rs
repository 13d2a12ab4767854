//! Random Services, slices and changes of them, valid for the API server.

use super::model::{
    BACKENDS, Endpoint, Ingress, Kind, NODE, OTHER_NODE, Port, Service, Slice, TARGET_PORTS, Transport,
};
use crate::random::Random;

/// Numbers that Services choose their ports from.
const NUMBERS: [u16; 5] = [80, 81, 443, 8080, 53];

/// Names of ports; the empty one only for a single port.
const NAMES: [&str; 4] = ["web", "dns", "admin", "p"];

/// A new Service with its slices.
pub(super) fn service(index: u8, random: &mut Random) -> Service {
    let mut service = Service {
        index,
        exists: random.chance(95),
        kind: kind(random),
        families: random.pick(&[vec![0], vec![1], vec![0, 1], vec![0, 1], vec![1, 0]]),
        ports: Vec::new(),
        external_local: random.chance(30),
        internal_local: random.pick(&[None, None, Some(false), Some(true)]),
        affinity: affinity(random, 25),
        external_ips: random.pick(&[vec![], vec![], vec![0], vec![0, 1]]),
        ingress: ingress(random),
        source_ranges: source_ranges(random, 25),
        node_ports: random.chance(80),
        label: random.chance(5),
        publish: random.chance(10),
        slices: Vec::new(),
        past_ports: [].into(),
        past_node_ports: [].into(),
    };
    for _ in 0..=random.below(3) {
        add_port(&mut service, random);
    }
    if service.ports.len() == 1 && random.chance(40) {
        service.ports[0].name.clear();
    }
    for number in 0..=random.below(3) {
        add_slice(&mut service, number, random);
    }
    settle(&mut service);
    service
}

fn kind(random: &mut Random) -> Kind {
    random.pick(&[
        Kind::ClusterIp,
        Kind::ClusterIp,
        Kind::ClusterIp,
        Kind::NodePort,
        Kind::NodePort,
        Kind::LoadBalancer,
        Kind::LoadBalancer,
        Kind::ExternalName,
        Kind::Headless,
    ])
}

fn affinity(random: &mut Random, percent: usize) -> Option<u32> {
    // Short ones end within a look, so that there is nothing to compare but who may answer.
    random.chance(percent).then(|| random.pick(&[10_800, 300, 86_400, 600, 1]))
}

fn ingress(random: &mut Random) -> Vec<Ingress> {
    let mode = random.pick(&[None, Some("VIP"), Some("VIP"), Some("Proxy"), Some("hostname")]);
    let families = random.pick(&[vec![], vec![0], vec![0, 1], vec![1, 0]]);
    families.into_iter().map(|family| Ingress { family, mode }).collect()
}

/// Of addresses of clients on the node (its own, its pods') and of others.
fn source_ranges(random: &mut Random, percent: usize) -> Vec<&'static str> {
    const RANGES: [&[&str]; 6] = [
        &["192.168.50.0/24"],
        &["10.1.0.0/16"],
        &["203.0.113.0/24"],
        &["10.1.0.0/16", "192.168.50.1/32", "fd00:192:168:50::/64"],
        &["fd00:10:1::/48"],
        &["0.0.0.0/0", "::/0"],
    ];
    if random.chance(percent) { random.pick(&RANGES).to_vec() } else { Vec::new() }
}

/// Adds a port with a number, a name and a NodePort that no other has.
fn add_port(service: &mut Service, random: &mut Random) {
    let transport = random.pick(&[
        Transport::Tcp,
        Transport::Tcp,
        Transport::Tcp,
        Transport::Udp,
        Transport::Udp,
        Transport::Sctp,
    ]);
    let number = random.pick(&NUMBERS);
    if service.ports.iter().any(|port| (port.number, port.transport) == (number, transport)) {
        return;
    }
    let mut name = random.pick(&NAMES).to_owned();
    while service.ports.iter().any(|port| port.name == name) {
        name.push('x');
    }
    let for_nodes = free_node_port(service, random);
    for slice in &mut service.slices {
        if random.chance(70) && slice.ports.iter().all(|(taken, ..)| *taken != name) {
            slice.ports.push((name.clone(), transport, random.pick(&TARGET_PORTS)));
        }
    }
    service.ports.push(Port { name, transport, number, for_nodes });
    name_ports(service);
}

fn free_node_port(service: &Service, random: &mut Random) -> u16 {
    let first = 30_000 + 100 * u16::from(service.index);
    loop {
        let number = first + u16::try_from(random.below(90)).unwrap_or(0);
        if service.ports.iter().all(|port| port.for_nodes != number) {
            return number;
        }
    }
}

/// Of several ports each has a name.
fn name_ports(service: &mut Service) {
    if service.ports.len() > 1
        && let Some(port) = service.ports.iter_mut().find(|port| port.name.is_empty())
    {
        "first".clone_into(&mut port.name);
    }
}

/// Adds a slice for every family, with most of the ports.
fn add_slice(service: &mut Service, number: usize, random: &mut Random) {
    for family in 0..2 {
        let ports = service.ports.iter().filter(|_| random.chance(90));
        let mut random_ports = Vec::new();
        for port in ports.cloned().collect::<Vec<_>>() {
            random_ports.push((port.name, port.transport, random.pick(&TARGET_PORTS)));
        }
        let style = Style::any(random);
        let mut endpoints: Vec<Endpoint> = Vec::new();
        for _ in 0..random.below(5) {
            let new = endpoint(random, style);
            if endpoints.iter().all(|other| other.backend != new.backend) {
                endpoints.push(new);
            }
        }
        service.slices.push(Slice { number, family, ports: random_ports, endpoints });
    }
}

/// What the endpoints of a slice have in common.
#[derive(Clone, Copy)]
enum Style {
    /// Everything is possible.
    Mixed,
    /// Ready, and with the hints that the controller gives for PreferSameZone.
    Zone,
    /// Ready, and with the hints that the controller gives for PreferSameNode (TP-7).
    Node,
    /// On their way out.
    Leaving,
}

impl Style {
    fn any(random: &mut Random) -> Self {
        random.pick(&[Self::Mixed, Self::Mixed, Self::Mixed, Self::Zone, Self::Node, Self::Leaving])
    }
}

/// Backends are in one zone each.
fn zone_of(backend: usize) -> &'static str {
    ["a", "a", "a", "a", "b", "b", "c"][backend]
}

fn endpoint(random: &mut Random, style: Style) -> Endpoint {
    let backend = random.below(BACKENDS.len());
    let mut endpoint = Endpoint {
        backend,
        ready: Some(true),
        serving: Some(true),
        terminating: Some(false),
        // kube-proxy masquerades a pod that meets itself only if it knows that the endpoint is on its node.
        has_node: random.chance(90) || backend == 0,
        zones: Vec::new(),
        nodes: Vec::new(),
    };
    match style {
        Style::Mixed => condition(&mut endpoint, random),
        Style::Leaving => {
            (endpoint.ready, endpoint.terminating) = (Some(false), Some(true));
            endpoint.serving = Some(random.chance(70));
        }
        Style::Zone | Style::Node => {}
    }
    hint(&mut endpoint, random, style);
    endpoint
}

/// Gives an endpoint conditions: absent, ready, unready, terminating, and combinations that are seldom.
fn condition(endpoint: &mut Endpoint, random: &mut Random) {
    const CONDITIONS: [[Option<bool>; 3]; 9] = [
        [Some(true), Some(true), Some(false)],
        [Some(true), Some(true), Some(false)],
        [Some(true), Some(true), Some(false)],
        [None, None, None],
        [Some(false), Some(false), Some(false)],
        [Some(false), Some(true), Some(true)],
        [Some(false), Some(false), Some(true)],
        // ES-16.
        [Some(true), Some(true), Some(true)],
        [Some(false), Some(true), Some(false)],
    ];
    let [ready, serving, terminating] = random.pick(&CONDITIONS);
    (endpoint.ready, endpoint.serving, endpoint.terminating) = (ready, serving, terminating);
}

fn hint(endpoint: &mut Endpoint, random: &mut Random, style: Style) {
    let zone = zone_of(endpoint.backend).to_owned();
    let node = if endpoint.backend < 3 { NODE } else { OTHER_NODE }.to_owned();
    (endpoint.zones, endpoint.nodes) = match style {
        Style::Zone => (vec![zone], vec![]),
        Style::Node => (vec![zone], vec![node]),
        Style::Mixed | Style::Leaving => random.pick(&[
            (vec![], vec![]),
            (vec![], vec![]),
            (vec![zone.clone()], vec![]),
            (vec!["a".to_owned(), "b".to_owned()], vec![]),
            (vec![zone], vec![node]),
        ]),
    };
}

/// Makes what two proxies may see differently the same: copies of one address in several slices agree among those that
/// terminate and among those that do not (ES-11 says which of the two counts, and leaves open which of several equals).
/// Remembers the ports.
pub(super) fn settle(service: &mut Service) {
    for family in 0..2 {
        for (backend, terminates) in
            (0..BACKENDS.len()).flat_map(|backend| [(backend, false), (backend, true)])
        {
            let slices = service.slices.iter_mut().filter(|slice| slice.family == family);
            let mut copies = slices
                .flat_map(|slice| &mut slice.endpoints)
                .filter(|endpoint| endpoint.backend == backend && endpoint.is_terminating() == terminates);
            let Some(model) = copies.next().cloned() else { continue };
            copies.for_each(|copy| *copy = model.clone());
        }
    }
    service.past_ports.extend(service.ports.iter().map(|port| port.number));
    if service.has_node_ports() {
        service.past_node_ports.extend(service.ports.iter().map(|port| port.for_nodes));
    }
}

/// Changes a Service or its slices in one way and says which. The result may be what it was before.
pub(super) fn change(service: &mut Service, random: &mut Random) -> &'static str {
    type Change = (&'static str, fn(&mut Service, &mut Random));
    const CHANGES: [Change; 22] = [
        ("an endpoint gets other conditions", other_conditions),
        ("an endpoint gets other conditions", other_conditions),
        ("an endpoint begins to terminate", begins_to_terminate),
        ("an endpoint goes", endpoint_goes),
        ("an endpoint comes", endpoint_comes),
        ("all endpoints go", all_go),
        ("all endpoints terminate", all_terminate),
        ("the slices are others", other_slices),
        ("a copy of an endpoint in another slice", copy_endpoint),
        ("other target ports", other_targets),
        ("a port is renamed", rename_port),
        ("a port is renumbered", renumber_port),
        ("a port comes", add_port),
        ("a port goes", port_goes),
        ("another type", |service, random| service.kind = kind(random)),
        ("another internal policy", |service, random| {
            service.internal_local = random.pick(&[None, Some(true), Some(false)]);
        }),
        ("another external policy", |service, _| service.external_local = !service.external_local),
        ("it is deleted or made again", |service, _| service.exists = !service.exists),
        ("affinity", |service, random| {
            service.affinity = if service.affinity.is_some() { None } else { affinity(random, 100) };
        }),
        ("the label", |service, _| service.label = !service.label),
        ("external addresses", external_addresses),
        ("a family comes or goes", other_families),
    ];
    let (what, change) = CHANGES[random.below(CHANGES.len())];
    change(service, random);
    settle(service);
    what
}

/// All copies of a random endpoint's backend in its family are changed alike.
fn on_backend(service: &mut Service, random: &mut Random, change: impl Fn(&mut Endpoint)) {
    let all =
        service.slices.iter().flat_map(|slice| slice.endpoints.iter().map(|it| (slice.family, it.backend)));
    let all: Vec<(usize, usize)> = all.collect();
    if all.is_empty() {
        return;
    }
    let (family, backend) = random.pick(&all);
    for slice in service.slices.iter_mut().filter(|slice| slice.family == family) {
        slice.endpoints.iter_mut().filter(|endpoint| endpoint.backend == backend).for_each(&change);
    }
}

fn other_conditions(service: &mut Service, random: &mut Random) {
    let mut new = endpoint(random, Style::Mixed);
    condition(&mut new, random);
    on_backend(service, random, |endpoint| {
        (endpoint.ready, endpoint.serving, endpoint.terminating) = (new.ready, new.serving, new.terminating);
    });
}

fn begins_to_terminate(service: &mut Service, random: &mut Random) {
    on_backend(service, random, |endpoint| {
        (endpoint.ready, endpoint.serving, endpoint.terminating) = (Some(false), Some(true), Some(true));
    });
}

fn endpoint_goes(service: &mut Service, random: &mut Random) {
    let filled: Vec<usize> =
        (0..service.slices.len()).filter(|at| !service.slices[*at].endpoints.is_empty()).collect();
    if !filled.is_empty() {
        let slice = &mut service.slices[random.pick(&filled)];
        let at = random.below(slice.endpoints.len());
        slice.endpoints.remove(at);
    }
}

fn endpoint_comes(service: &mut Service, random: &mut Random) {
    let style = Style::any(random);
    let new = endpoint(random, style);
    if service.slices.is_empty() {
        return;
    }
    let at = random.below(service.slices.len());
    let slice = &mut service.slices[at];
    if slice.endpoints.iter().all(|other| other.backend != new.backend) {
        slice.endpoints.push(new);
    }
}

fn all_go(service: &mut Service, _random: &mut Random) {
    for slice in &mut service.slices {
        slice.endpoints.clear();
    }
}

fn all_terminate(service: &mut Service, random: &mut Random) {
    let serving = random.chance(80);
    for endpoint in service.slices.iter_mut().flat_map(|slice| &mut slice.endpoints) {
        (endpoint.ready, endpoint.serving, endpoint.terminating) = (Some(false), Some(serving), Some(true));
    }
}

fn other_slices(service: &mut Service, random: &mut Random) {
    service.slices.clear();
    for number in 0..random.below(4) {
        add_slice(service, number, random);
    }
}

fn copy_endpoint(service: &mut Service, random: &mut Random) {
    let Some(from) = service.slices.iter().find(|slice| !slice.endpoints.is_empty()).cloned() else { return };
    let mut copy = random.pick(&from.endpoints);
    if random.chance(50) {
        (copy.ready, copy.serving, copy.terminating) = (Some(false), Some(true), Some(true));
    }
    let other = service.slices.iter_mut().find(|slice| {
        slice.family == from.family
            && slice.number != from.number
            && slice.endpoints.iter().all(|endpoint| endpoint.backend != copy.backend)
    });
    if let Some(other) = other {
        other.ports.clone_from(&from.ports);
        other.endpoints.push(copy);
    }
}

fn other_targets(service: &mut Service, random: &mut Random) {
    for (_, _, target) in service.slices.iter_mut().flat_map(|slice| &mut slice.ports) {
        *target = random.pick(&TARGET_PORTS);
    }
}

fn rename_port(service: &mut Service, random: &mut Random) {
    let at = random.below(service.ports.len());
    let old = service.ports[at].name.clone();
    let new = format!("n{}", random.below(1000));
    service.ports[at].name.clone_from(&new);
    // As the controller does, mostly: without it the port has no endpoints any more.
    if random.chance(75) {
        let names = service.slices.iter_mut().flat_map(|slice| &mut slice.ports).map(|(name, ..)| name);
        names.filter(|name| **name == old).for_each(|name| name.clone_from(&new));
    }
}

fn renumber_port(service: &mut Service, random: &mut Random) {
    let at = random.below(service.ports.len());
    let (number, transport) = (random.pick(&NUMBERS), service.ports[at].transport);
    if service.ports.iter().all(|port| (port.number, port.transport) != (number, transport)) {
        service.ports[at].number = number;
    }
    if random.chance(50) {
        service.ports[at].for_nodes = free_node_port(service, random);
    }
}

fn port_goes(service: &mut Service, random: &mut Random) {
    if service.ports.len() > 1 {
        let at = random.below(service.ports.len());
        service.ports.remove(at);
    }
}

fn external_addresses(service: &mut Service, random: &mut Random) {
    match random.below(3) {
        0 => service.external_ips = random.pick(&[vec![], vec![0], vec![1], vec![0, 1]]),
        1 => service.ingress = ingress(random),
        _ => service.source_ranges = source_ranges(random, 60),
    }
}

fn other_families(service: &mut Service, _random: &mut Random) {
    service.families = match service.families.as_slice() {
        [one] => vec![*one, 1 - *one],
        [first, ..] => vec![*first],
        [] => vec![0],
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(seed: u64) -> Vec<Service> {
        let mut random = Random::new(&[seed]);
        let mut now = service(1, &mut random);
        let mut all = vec![now.clone()];
        for _ in 0..50 {
            change(&mut now, &mut random);
            all.push(now.clone());
        }
        all
    }

    #[test]
    fn a_seed_repeats_its_objects() {
        assert_eq!(history(7), history(7));
        assert_ne!(history(7), history(8));
    }

    #[test]
    fn ports_are_what_the_api_server_takes() {
        for service in (0..200).flat_map(history) {
            assert!(!service.ports.is_empty());
            for (at, port) in service.ports.iter().enumerate() {
                let others = service.ports.iter().enumerate().filter(|(other, _)| *other != at);
                for (_, other) in others {
                    assert_ne!((port.number, port.transport), (other.number, other.transport));
                    assert_ne!(port.name, other.name);
                    assert_ne!(port.for_nodes, other.for_nodes);
                    assert!(!port.name.is_empty());
                }
            }
        }
    }

    #[test]
    fn copies_of_an_address_agree_where_nobody_says_which_counts() {
        for service in (0..200).flat_map(history) {
            for (family, backend) in (0..2).flat_map(|family| (0..BACKENDS.len()).map(move |it| (family, it)))
            {
                let slices = service.slices.iter().filter(|slice| slice.family == family);
                let copies = slices.flat_map(|slice| &slice.endpoints).filter(|it| it.backend == backend);
                let (leaving, staying): (Vec<_>, Vec<_>) = copies.partition(|it| it.is_terminating());
                assert!(staying.windows(2).all(|pair| pair[0] == pair[1]));
                assert!(leaving.windows(2).all(|pair| pair[0] == pair[1]));
            }
        }
    }
}
