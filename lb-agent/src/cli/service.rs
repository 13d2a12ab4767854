//! `lb-agent service list` and `lb-agent service show`.

use core::net::{IpAddr, SocketAddr};
use std::collections::BTreeSet;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use lb_common::abi::{Addr, Address, FrontendKind, maps};
use serde::Serialize;

use super::{
    LookArgs, ShowArgs, agent, backend,
    pinned::Pinned,
    print,
    served::{BackendRow, FrontendRow, Names, PortRow, Served, address},
    table::Table,
};
use crate::{maps::Table as _, owner::Receipt};

/// One line per frontend.
pub(super) fn list(look: &LookArgs) -> anyhow::Result<()> {
    let ports = Served::read(&Pinned::open(&look.pins.pin_dir)?)?.ports(&agent::names(look));
    print(&look.output, &ports, |ports| {
        let mut table = Table::new(["SERVICE", "PORT", "ID", "KIND", "FRONTEND", "BACKENDS"]);
        for port in ports {
            for frontend in &port.frontends {
                table.row([
                    port.service(),
                    port.port_name(),
                    port.id.to_string(),
                    frontend.kind.clone(),
                    address(frontend.address, frontend.port, &frontend.protocol),
                    serving(frontend),
                ]);
            }
        }
        table.render()
    })
}

/// A service port with its backends.
#[derive(Debug, Serialize)]
struct Detail {
    #[serde(flatten)]
    port: PortRow,
    backends: Vec<BackendRow>,
    /// What became of the latest change of the Service; absent if no agent tells it.
    receipt: Option<Receipt>,
}

/// Everything about one Service.
pub(super) fn show(args: &ShowArgs) -> anyhow::Result<()> {
    let look = &args.look;
    let pinned = Pinned::open(&look.pins.pin_dir)?;
    let served = Served::read(&pinned)?;
    let names = agent::names(look);
    let addresses = pinned.table::<Addr, Address>(maps::ADDRESSES)?.dump();
    let own =
        addresses.context("cannot read lb_addresses")?.into_iter().map(|(addr, _)| addr.into()).collect();
    let found = find(served.ports(&names), &args.service, &names, &own)?;
    let receipts = if names.is_empty() { Vec::new() } else { agent::receipts(look) };
    let receipt = |port: &PortRow| {
        let label = port.label.as_ref()?;
        let is_its = |receipt: &&Receipt| receipt.namespace == label.namespace && receipt.name == label.name;
        receipts.iter().find(is_its).cloned()
    };
    let details: Vec<Detail> = found
        .into_iter()
        .map(|port| Detail { backends: served.backends(port.id), receipt: receipt(&port), port })
        .collect();
    print(&look.output, &details, |details| {
        let parts: Vec<String> = details.iter().map(render).collect();
        parts.join("\n\n")
    })
}

fn render(Detail { port, backends: rows, receipt }: &Detail) -> String {
    let mut facts = Table::facts();
    facts.fact("service", port.service());
    facts.fact("port", port.port_name());
    facts.fact("id", port.id);
    facts.fact("internal policy", port.internal.name());
    let affinity = if port.affinity_s == 0 { "none".to_owned() } else { format!("{} s", port.affinity_s) };
    facts.fact("affinity", affinity);
    facts.fact("algorithm", port.algorithm);
    if let Some(receipt) = receipt {
        facts.fact("programmed", programmed(receipt));
    }
    let mut frontends = Table::new(["FRONTEND", "KIND", "BACKENDS"]);
    for row in &port.frontends {
        frontends.row([address(row.address, row.port, &row.protocol), row.kind.clone(), serving(row)]);
    }
    let mut backends = Table::new(backend::HEADINGS);
    for row in rows {
        backends.row(backend::cells(row, port.protocol()));
    }
    let backends = (!rows.is_empty()).then_some(backends);
    [Some(facts), Some(frontends), backends]
        .into_iter()
        .flatten()
        .map(Table::render)
        .collect::<Vec<_>>()
        .join("\n\n")
}

/// When the maps followed the latest change, and how long after what.
fn programmed(receipt: &Receipt) -> String {
    let after = |from: &str| {
        let (from, to) = (from.parse::<Timestamp>().ok()?, receipt.committed.parse::<Timestamp>().ok()?);
        Some(to.duration_since(from).as_millis())
    };
    let received = after(&receipt.received).map(|ms| format!("{ms} ms after it was received"));
    let changed = receipt.changed.as_deref().and_then(after).map(|ms| format!("{ms} ms after the change"));
    let parts = [Some(receipt.committed.clone()), received, changed];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// How many serve, or that nobody does.
fn serving(frontend: &FrontendRow) -> String {
    let mut text = match frontend {
        FrontendRow { backends: 0, elsewhere: true, .. } => "none on this node, no answer".to_owned(),
        FrontendRow { backends: 0, .. } => "none, refused".to_owned(),
        FrontendRow { backends, run, .. } => format!("{backends} {}", run.name()),
    };
    if frontend.restricted {
        text.push_str(", source ranges");
    }
    text
}

/// The ports of the Service that `wanted` names or has as an address. `own` are this node's addresses.
fn find(
    ports: Vec<PortRow>,
    wanted: &str,
    names: &Names,
    own: &BTreeSet<IpAddr>,
) -> anyhow::Result<Vec<PortRow>> {
    if let Some((ip, port)) = parse_address(wanted) {
        let found = accepting(ports, ip, port, own);
        return if found.is_empty() {
            bail!("no service port accepts traffic at {wanted}")
        } else {
            Ok(found)
        };
    }
    // An agent that has programmed nothing tells no names either.
    if names.is_empty() && !ports.is_empty() {
        bail!(
            "no running agent tells which Service is called {wanted}: give one of its addresses, as `service list` shows them"
        );
    }
    let (namespace, name) = match wanted.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, wanted),
    };
    let found: Vec<PortRow> = ports
        .into_iter()
        .filter(|row| {
            row.label.as_ref().is_some_and(|label| {
                label.name == name && namespace.is_none_or(|namespace| label.namespace == namespace)
            })
        })
        .collect();
    let mut services: Vec<String> = found.iter().map(PortRow::service).collect();
    services.dedup();
    match services.as_slice() {
        [] => bail!(
            "no Service {wanted} is programmed: see `lb-agent service list`, and `lb-agent status` for what was left out"
        ),
        [_] => Ok(found),
        several => bail!("several Services are called {wanted}, choose one: {}", several.join(", ")),
    }
}

/// An address, with or without a port.
fn parse_address(text: &str) -> Option<(IpAddr, Option<u16>)> {
    let with_port = text.parse::<SocketAddr>().map(|at| (at.ip(), Some(at.port())));
    let (ip, port) = with_port.or_else(|_| text.parse().map(|ip| (ip, None))).ok()?;
    Some((ip.to_canonical(), port))
}

/// The ports that get what is sent to an address; without a port, to any port of it.
///
/// A NodePort is there at every address of this node, and is the last match (NP-9): `datapath::sock` decides in this way.
fn accepting(ports: Vec<PortRow>, ip: IpAddr, port: Option<u16>, own: &BTreeSet<IpAddr>) -> Vec<PortRow> {
    let exact: BTreeSet<(u16, String)> = ports
        .iter()
        .flat_map(|row| &row.frontends)
        .filter(|frontend| frontend.address == ip)
        .map(|frontend| (frontend.port, frontend.protocol.clone()))
        .collect();
    let is_own = own.contains(&ip);
    let accepts = |frontend: &FrontendRow| {
        let is_node_port = is_own
            && frontend.kind == FrontendKind::NodePort.name()
            && frontend.address.is_ipv4() == ip.is_ipv4()
            && !exact.contains(&(frontend.port, frontend.protocol.clone()));
        (frontend.address == ip || is_node_port) && port.is_none_or(|port| frontend.port == port)
    };
    ports.into_iter().filter(|row| row.frontends.iter().any(accepts)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::served::{PortLabel, Which};

    fn label(service: &str) -> PortLabel {
        let (namespace, name) = service.split_once('/').unwrap();
        PortLabel { namespace: namespace.into(), name: name.into(), port: "http".into() }
    }

    fn row(id: u32, service: &str, at: &str) -> PortRow {
        let at: SocketAddr = at.parse().unwrap();
        let frontend = FrontendRow {
            address: at.ip(),
            port: at.port(),
            protocol: "TCP".into(),
            kind: "ClusterIP".into(),
            run: Which::Cluster,
            backends: 2,
            elsewhere: false,
            restricted: false,
        };
        PortRow {
            id,
            label: Some(label(service)),
            frontends: vec![frontend],
            cluster: 2,
            local: 2,
            internal: Which::Cluster,
            affinity_s: 0,
            algorithm: "random",
        }
    }

    fn ids(wanted: &str) -> Result<Vec<u32>, String> {
        let rows = vec![
            row(1, "a/web", "10.0.0.1:80"),
            row(2, "a/web", "[fd00::1]:80"),
            row(3, "b/web", "10.0.0.1:443"),
            row(4, "b/api", "10.0.0.4:80"),
        ];
        let names: Names = rows.iter().filter_map(|row| Some((row.id, row.label.clone()?))).collect();
        match find(rows, wanted, &names, &BTreeSet::new()) {
            Ok(found) => Ok(found.iter().map(|row| row.id).collect()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn a_service_is_found_by_name_and_by_address() {
        assert_eq!(ids("a/web"), Ok(vec![1, 2]));
        assert_eq!(ids("api"), Ok(vec![4]));
        assert_eq!(ids("10.0.0.1"), Ok(vec![1, 3]));
        assert_eq!(ids("10.0.0.1:443"), Ok(vec![3]));
        assert_eq!(ids("[fd00::1]:80"), Ok(vec![2]));
        assert_eq!(ids("fd00::1"), Ok(vec![2]));
    }

    #[test]
    fn a_node_port_is_found_at_every_address_of_this_node() {
        let at = |id, service, at: &str, kind: FrontendKind| {
            let mut row = row(id, service, at);
            row.frontends[0].kind = kind.name().into();
            row
        };
        let rows = || {
            vec![
                at(1, "a/web", "0.0.0.0:30080", FrontendKind::NodePort),
                at(2, "a/web", "[::]:30080", FrontendKind::NodePort),
                at(3, "b/api", "192.168.50.1:30081", FrontendKind::ExternalIp),
                at(4, "b/db", "0.0.0.0:30081", FrontendKind::NodePort),
                // A ClusterIP of this form would be a mistake, and no NodePort.
                at(5, "b/odd", "0.0.0.0:80", FrontendKind::ClusterIp),
            ]
        };
        let own = ["192.168.50.1", "192.168.50.2", "127.0.0.1", "fd00::1"].map(|ip| ip.parse().unwrap());
        let own = BTreeSet::from(own);
        let ids = |wanted| {
            let found = find(rows(), wanted, &Names::new(), &own);
            found.map(|rows| rows.iter().map(|row| row.id).collect::<Vec<_>>()).unwrap_or_default()
        };
        assert_eq!(ids("192.168.50.1:30080"), [1]);
        assert_eq!(ids("127.0.0.1:30080"), [1]);
        assert_eq!(ids("[::ffff:192.168.50.1]:30080"), [1]);
        assert_eq!(ids("[fd00::1]:30080"), [2]);
        assert_eq!(ids("0.0.0.0:30080"), [1], "as `service list` shows it");
        assert_eq!(ids("192.168.50.1:30081"), [3], "a NodePort is the last match");
        assert_eq!(ids("192.168.50.2:30081"), [4]);
        assert_eq!(ids("192.168.50.1"), [1, 3], "all that is accepted there");
        assert_eq!(ids("192.168.50.1:80"), [0; 0]);
        assert_eq!(ids("192.168.50.9:30080"), [0; 0], "another node's");
    }

    #[test]
    fn a_name_in_two_namespaces_is_refused_with_both() {
        assert_eq!(ids("web"), Err("several Services are called web, choose one: a/web, b/web".into()));
        assert!(ids("c/web").unwrap_err().contains("no Service c/web is programmed"));
        assert!(ids("10.0.0.9").unwrap_err().contains("no service port accepts traffic at 10.0.0.9"));
    }

    #[test]
    fn without_names_an_address_still_finds_a_service() {
        let find =
            |wanted| find(vec![row(1, "a/web", "10.0.0.1:80")], wanted, &Names::new(), &BTreeSet::new());
        assert_eq!(find("10.0.0.1").unwrap().len(), 1);
        assert!(find("web").unwrap_err().to_string().contains("give one of its addresses"));
    }

    #[test]
    fn where_nothing_is_programmed_there_is_no_service_of_any_name() {
        let error = find(Vec::new(), "web", &Names::new(), &BTreeSet::new()).unwrap_err().to_string();
        assert!(error.starts_with("no Service web is programmed"), "{error}");
    }

    #[test]
    fn a_service_is_shown_with_frontends_and_backends() {
        let backend = BackendRow {
            address: [10, 1, 1, 10].into(),
            port: 8080,
            id: 4,
            generation: 9,
            state: "active",
            runs: vec![Which::Cluster, Which::Local],
        };
        let receipt = Receipt {
            namespace: "a".into(),
            name: "web".into(),
            changed: Some("2026-01-02T03:04:05Z".into()),
            received: "2026-01-02T03:04:05.25Z".into(),
            committed: "2026-01-02T03:04:05.254Z".into(),
        };
        let port = row(1, "a/web", "10.0.0.1:80");
        let shown = render(&Detail { port, backends: vec![backend], receipt: Some(receipt) });
        let expected = "\
service          a/web
port             http
id               1
internal policy  cluster
affinity         none
algorithm        random
programmed       2026-01-02T03:04:05.254Z, 4 ms after it was received, 254 ms after the change

FRONTEND         KIND       BACKENDS
10.0.0.1:80/TCP  ClusterIP  2 cluster

BACKEND             ID  GENERATION  STATE   RUNS
10.1.1.10:8080/TCP  4   9           active  cluster,local";
        assert_eq!(shown, expected);
    }
}
