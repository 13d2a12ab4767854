//! `lb-agent backend list`

use serde::Serialize;

use super::{
    LookArgs, agent,
    pinned::Pinned,
    print,
    served::{BackendRow, PortLabel, PortRow, Served, Which, address},
    table::Table,
};

/// Columns of a backend.
pub(super) const HEADINGS: [&str; 5] = ["BACKEND", "ID", "GENERATION", "STATE", "RUNS"];

/// The cells under [`HEADINGS`].
pub(super) fn cells(row: &BackendRow, protocol: &str) -> [String; 5] {
    let runs: Vec<&str> = row.runs.iter().copied().map(Which::name).collect();
    [
        address(row.address, row.port, protocol),
        row.id.to_string(),
        row.generation.to_string(),
        row.state.to_owned(),
        runs.join(","),
    ]
}

/// A backend and whose it is.
#[derive(Debug, Serialize)]
struct Entry {
    #[serde(flatten)]
    backend: BackendRow,
    protocol: String,
    service: Owner,
}

/// The service port of a backend.
#[derive(Debug, Serialize)]
struct Owner {
    id: u32,
    #[serde(flatten)]
    label: Option<PortLabel>,
}

/// One line per backend of each service port.
pub(super) fn list(look: &LookArgs) -> anyhow::Result<()> {
    let served = Served::read(&Pinned::open(&look.pins.pin_dir)?)?;
    let ports = served.ports(&agent::names(look));
    let entries: Vec<Entry> = ports.iter().flat_map(|port| entries(&served, port)).collect();
    print(&look.output, &entries, |entries| {
        let headings = ["BACKEND", "ID", "GENERATION", "STATE", "RUNS", "SERVICE", "PORT", "SERVICE-ID"];
        let mut table = Table::new(headings);
        for Entry { backend, protocol, service: Owner { id: service_id, label } } in entries {
            let [at, id, generation, state, runs] = cells(backend, protocol);
            let (service, port) =
                label.as_ref().map(|label| (label.service(), label.port.clone())).unwrap_or_default();
            table.row([at, id, generation, state, runs, service, port, service_id.to_string()]);
        }
        table.render()
    })
}

fn entries(served: &Served, port: &PortRow) -> impl Iterator<Item = Entry> {
    served.backends(port.id).into_iter().map(|backend| Entry {
        backend,
        protocol: port.protocol().to_owned(),
        service: Owner { id: port.id, label: port.label.clone() },
    })
}
