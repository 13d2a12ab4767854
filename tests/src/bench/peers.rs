//! Services for every peer: the same names, addresses and endpoints, through the path that each peer has.
//!
//! Sizes that real kube-proxy cannot reach in useful time get rule sets of its own shape: what it has programmed for a
//! smaller cluster, with further elements or rules of the same form in front, which lead to a chain that exists.

use std::{
    fmt::Write as _,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::lane::PORT;
use crate::{
    Netns, Node, Place as _,
    control_plane::{ControlPlane, KubeProxy, Link, ProxyMode, objects},
};

/// Names of the peers, in tables and as Nodes.
pub const NFTABLES: &str = "nftables";
/// See [`NFTABLES`].
pub const IPTABLES: &str = "iptables";

/// Port of every Service.
pub const SERVICE_PORT: u16 = 80;
/// Rules or elements per call of nft.
const CHUNK: u32 = 5000;

/// The two cluster addresses of Service `number`.
pub fn cluster_ips(number: u32) -> [IpAddr; 2] {
    let low = u16::try_from(number + 256).unwrap_or(u16::MAX);
    let [high, last] = low.to_be_bytes();
    [Ipv4Addr::new(10, 0, high, last).into(), Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, low).into()]
}

/// The Services that clients connect to, spread over a cluster of `size`.
pub fn probed(size: u32) -> Vec<u32> {
    let mut numbers: Vec<u32> =
        (1..=8_u64).map(|part| u32::try_from(u64::from(size) * part / 8).unwrap_or(size)).collect();
    for number in &mut numbers {
        *number = number.saturating_sub(1);
    }
    numbers.dedup();
    numbers
}

/// The addresses that a client of one family connects to.
pub fn targets(size: u32, v6: bool) -> Vec<SocketAddr> {
    probed(size)
        .into_iter()
        .map(|number| (cluster_ips(number)[usize::from(v6)], SERVICE_PORT).into())
        .collect()
}

/// The objects of Service `number`: a dual-stack Service and a slice of each family, with two endpoints each. Probed ones
/// lead to the lane's server, twice, as every lane has the same addresses.
pub fn objects_of(number: u32, size: u32, backends: [SocketAddr; 2]) -> Vec<Value> {
    let name = format!("s{number}");
    let ips = cluster_ips(number);
    // Service 0 is what padded rules lead to.
    let served = number == 0 || probed(size).contains(&number);
    let mut objects = vec![json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "clusterIP": ips[0], "clusterIPs": ips, "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
            "ports": [{"protocol": "TCP", "port": SERVICE_PORT, "targetPort": PORT}],
        },
    })];
    for (family, backend) in ["v4", "v6"].into_iter().zip(backends) {
        let elsewhere = if backend.is_ipv4() { "10.1.250." } else { "fd00:10:1:250::" };
        let backend = backend.ip().to_string();
        let others = [format!("{elsewhere}1"), format!("{elsewhere}2")];
        let ips: Vec<&str> =
            if served { vec![&backend] } else { others.iter().map(String::as_str).collect() };
        let mut slice = objects::slice(&format!("{name}-{family}"), &name, &ips, PORT);
        slice["metadata"]["namespace"] = json!("default");
        objects.push(slice);
    }
    objects
}

/// Adds the Services `from..to` of a cluster to a real control plane.
pub fn create(
    control_plane: &ControlPlane,
    numbers: std::ops::Range<u32>,
    size: u32,
    backends: [SocketAddr; 2],
) -> Result<()> {
    let objects = numbers.flat_map(|number| objects_of(number, size, backends)).collect();
    control_plane.create_all(objects)
}

/// Appends elements of the shape that kube-proxy has programmed, for the Services `numbers`, which lead to the chain of
/// Service 0.
pub fn pad_nftables(netns: &Netns, numbers: std::ops::Range<u32>) -> Result<()> {
    for (at, family) in ["ip", "ip6"].into_iter().enumerate() {
        let first = cluster_ips(0)[at];
        let found = output(
            netns,
            "nft",
            &[
                "get",
                "element",
                family,
                "kube-proxy",
                "service-ips",
                &format!("{{ {first} . tcp . {SERVICE_PORT} }}"),
            ],
        )?;
        let verdict = found
            .split("goto ")
            .nth(1)
            .and_then(|rest| rest.split_whitespace().next())
            .context("Service 0 has a chain")?;
        let mut from = numbers.start;
        while from < numbers.end {
            let to = numbers.end.min(from + CHUNK);
            let mut elements = String::new();
            let mut ips = String::new();
            for number in from..to {
                let ip = cluster_ips(number)[at];
                write!(elements, "{ip} . tcp . {SERVICE_PORT} : goto {verdict}, ")?;
                write!(ips, "{ip}, ")?;
            }
            let script = format!(
                "add element {family} kube-proxy service-ips {{ {elements} }}\nadd element {family} kube-proxy cluster-ips {{ {ips} }}\n"
            );
            feed(netns, "nft", &["-f", "-"], &script)?;
            from = to;
        }
    }
    Ok(())
}

/// Puts rules of the shape that kube-proxy has programmed in front, for the Services `numbers`.
pub fn pad_iptables(netns: &Netns, numbers: std::ops::Range<u32>) -> Result<()> {
    for (at, tool) in ["iptables", "ip6tables"].into_iter().enumerate() {
        let rules = output(netns, tool, &["--wait", "-t", "nat", "-S", "KUBE-SERVICES"])?;
        let length = if at == 0 { 32 } else { 128 };
        let first = format!("-d {}/{length} ", cluster_ips(0)[at]);
        let rule = rules.lines().find(|rule| rule.contains(&first)).context("Service 0 has a rule")?;
        let chain = rule.split("-j ").nth(1).context("a rule leads to a chain")?.trim().to_owned();
        let mut script = String::from("*nat\n");
        for number in numbers.clone() {
            let ip = cluster_ips(number)[at];
            writeln!(
                script,
                "-I KUBE-SERVICES -d {ip}/{length} -p tcp -m comment --comment \"default/s{number} cluster IP\" -m tcp \
                 --dport {SERVICE_PORT} -j {chain}"
            )?;
        }
        script.push_str("COMMIT\n");
        feed(netns, &format!("{tool}-restore"), &["--wait", "--noflush"], &script)?;
    }
    Ok(())
}

/// Shortens what connection tracking keeps of closed connections, or its table fills in seconds at this rate.
pub fn shorten_conntrack(netns: &Netns) -> Result<()> {
    netns.sysctl("net.netfilter.nf_conntrack_tcp_timeout_close", "1")
}

/// Forgets what connection tracking knows in a namespace.
///
/// # Errors
/// conntrack(8) is not installed, or fails.
pub fn forget(netns: &Netns) -> Result<()> {
    let output = Command::new("conntrack").arg("-F").in_netns(netns).output();
    let output = output.context("cannot run conntrack(8): install the package conntrack")?;
    ensure!(output.status.success(), "conntrack -F: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn output(netns: &Netns, program: &str, words: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(words)
        .in_netns(netns)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn feed(netns: &Netns, program: &str, words: &[&str], input: &str) -> Result<()> {
    let mut command = Command::new(program);
    command.args(words).in_netns(netns).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {program}"))?;
    child.stdin.take().context("the child has an input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Long enough for kube-proxy at 10,000 Services on a small machine.
pub const PROGRAMMING: Duration = Duration::from_mins(10);

/// Real kube-proxies and what they have programmed so far. Dropping this ends them; their rules stay.
#[derive(Debug)]
pub struct Peers<'a> {
    control_plane: &'a ControlPlane,
    nodes: [&'a Netns; 2],
    proxies: Option<[KubeProxy<'a>; 2]>,
    _links: Vec<Link<'a>>,
    created: u32,
    padded: u32,
}

impl<'a> Peers<'a> {
    /// Starts one in nftables mode on the first node and one in iptables mode on the second.
    ///
    /// # Errors
    /// Those of [`KubeProxy::start`] and of the control plane.
    pub fn start(control_plane: &'a ControlPlane, nodes: [&'a Node; 2]) -> Result<Self> {
        let mut links = Vec::new();
        for (name, node) in [NFTABLES, IPTABLES].into_iter().zip(nodes) {
            let addresses = [node.ipv4.to_string(), node.ipv6.to_string()];
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            control_plane.apply(&objects::node(name, &addresses))?;
            links.push(control_plane.link(&node.netns)?);
        }
        let [nftables, iptables] = nodes.map(|node| &*node.netns);
        let proxies = [
            KubeProxy::start(control_plane, nftables, NFTABLES, ProxyMode::Nftables)?,
            KubeProxy::start(control_plane, iptables, IPTABLES, ProxyMode::Iptables)?,
        ];
        let nodes = [nftables, iptables];
        Ok(Self { control_plane, nodes, proxies: Some(proxies), _links: links, created: 0, padded: 0 })
    }

    /// Waits until both, if they still run, serve a TCP port.
    ///
    /// # Errors
    /// One of them does not.
    pub fn wait_programmed(&self, ip: IpAddr, port: u16) -> Result<()> {
        self.proxies.iter().flatten().try_for_each(|proxy| proxy.wait_programmed(ip, port, PROGRAMMING))
    }

    /// Brings the real rule sets to `size` Services, and says what is not real about them: beyond `real` they are padded.
    ///
    /// # Errors
    /// Those of kube-proxy and of its tools.
    pub fn load(&mut self, size: u32, real: u32, backends: [SocketAddr; 2]) -> Result<Option<String>> {
        let wanted = size.min(real.max(1));
        if wanted > self.created {
            // Which Services are probed depends on the size: those of a smaller cluster stay served.
            create(self.control_plane, self.created..wanted, size.min(wanted), backends)?;
            self.created = wanted;
        }
        for number in [0, wanted - 1] {
            for ip in cluster_ips(number) {
                self.wait_programmed(ip, SERVICE_PORT)?;
            }
        }
        for proxy in self.proxies.iter().flatten() {
            proxy.wait_idle(Duration::from_secs(2), PROGRAMMING)?;
        }
        let [nftables, iptables] = self.nodes;
        for netns in self.nodes {
            shorten_conntrack(netns)?;
        }
        if size <= self.created {
            return Ok(None);
        }
        // A running kube-proxy would undo what it did not write.
        self.proxies = None;
        let from = self.padded.max(self.created);
        pad_nftables(nftables, from..size)?;
        pad_iptables(iptables, from..size)?;
        self.padded = size;
        Ok(Some(format!(
            "rules of {} Services by kube-proxy, {} more of their shape",
            self.created,
            size - self.created
        )))
    }
}
