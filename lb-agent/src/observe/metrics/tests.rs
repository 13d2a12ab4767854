use core::fmt::Write as _;
use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
};

use super::{kube_proxy::Here, *};
use crate::{
    maps::Op,
    model::{ServiceName, SliceBuilder, SliceName},
};

fn metrics() -> Metrics {
    Metrics::new(Path::new("/nowhere"))
}

/// The value of one line of the text.
fn value(metrics: &Metrics, line: &str) -> Option<f64> {
    let text = metrics.text().unwrap();
    let found = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
    found.map(|value| value.parse().unwrap())
}

/// A row of the page: type, labels with their values where those are known, help.
#[derive(Debug, Default)]
struct Row {
    kind: String,
    labels: BTreeMap<String, BTreeSet<String>>,
    help: String,
}

/// Labels of a sample and their values; the edges of buckets are no label.
fn sample_labels(line: &str) -> Vec<(String, String)> {
    let Some((_, rest)) = line.split_once('{') else { return Vec::new() };
    let inside = rest.split_once('}').map_or("", |(inside, _)| inside);
    let pairs = inside.split(',').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()))
        .filter(|(name, _)| name != "le")
        .collect()
}

fn rows(text: &str) -> BTreeMap<String, Row> {
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    let mut name = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (found, help) = rest.split_once(' ').unwrap();
            found.clone_into(&mut name);
            rows.entry(name.clone()).or_default().help = help.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            rows.entry(name.clone()).or_default().kind = rest.split_once(' ').unwrap().1.to_owned();
        } else if !line.starts_with('#') {
            let row = rows.entry(name.clone()).or_default();
            for (label, value) in sample_labels(line) {
                row.labels.entry(label).or_default().insert(value);
            }
        }
    }
    rows
}

/// Values that depend on the machine or on the release.
fn is_open(label: &str) -> bool {
    matches!(label, "errno" | "version")
}

fn page(text: &str) -> String {
    let mut page = "\
<!-- Generated from the registry by the test `the_page_lists_every_metric`; LB_BLESS=1 writes it anew. -->

# Metrics of lb-agent

`GET /metrics` on `--metrics-address`, as OpenMetrics text. Counters have the suffix `_total` in samples, histograms `_bucket`,
`_count` and `_sum`, the info `_info`. Every value of a label is in this list, but for error numbers: what users of the cluster
call their objects is no label.

| Name | Type | Labels | Meaning |
|---|---|---|---|
"
    .to_owned();
    for (name, row) in rows(text) {
        let labels: Vec<String> = row
            .labels
            .iter()
            .map(|(label, values)| {
                let values: Vec<&str> = values.iter().map(String::as_str).collect();
                if is_open(label) {
                    format!("`{label}`")
                } else {
                    format!("`{label}`: {}", values.join(", "))
                }
            })
            .collect();
        let help = row.help.trim_end_matches('.');
        writeln!(page, "| `{name}` | {} | {} | {help} |", row.kind, labels.join("; ")).unwrap();
    }
    page.push_str(
        "
## Coming from kube-proxy

Its metrics have the prefix `kubeproxy_`, which is left out here, but for the general ones.

| kube-proxy | lb-agent | Difference |
|---|---|---|
",
    );
    for (theirs, here) in kube_proxy::TABLE {
        let (ours, text) = match here {
            Here::Named(ours, text) => (ours.iter().map(|name| format!("`{name}`")).collect(), *text),
            Here::There(reason) | Here::Nowhere(reason) => (Vec::new(), *reason),
        };
        writeln!(page, "| `{theirs}` | {} | {text} |", ours.join(", ")).unwrap();
    }
    page
}

/// Semantics 3.3.
#[test]
fn every_metric_of_kube_proxy_has_its_place_here_or_a_reason() {
    let rows = rows(&everything());
    let mut names = BTreeSet::new();
    for (theirs, here) in kube_proxy::TABLE {
        assert!(names.insert(theirs), "{theirs} is there twice");
        match here {
            Here::Named(ours, _) => {
                assert!(!ours.is_empty(), "{theirs}");
                assert!(ours.iter().all(|name| rows.contains_key(*name)), "{theirs}: {ours:?}");
            }
            Here::There(reason) | Here::Nowhere(reason) => assert!(!reason.is_empty(), "{theirs}"),
        }
    }
    // The rows of semantics 3.3, and the general families below them.
    assert_eq!(names.len(), 24 + 7);
}

/// CT-7.
#[test]
fn looks_for_sockets_are_counted_and_timed() {
    let metrics = metrics();
    metrics.healed(3, false, 0.5);
    metrics.healed(0, true, 60.0);
    for (line, wanted) in [
        ("lbagent_udp_sockets_freed_total", 3.0),
        ("lbagent_healing_failures_total", 1.0),
        ("lbagent_healing_duration_seconds_count", 2.0),
        ("lbagent_healing_duration_seconds_sum", 60.5),
        ("lbagent_healing_duration_seconds_bucket{le=\"0.64\"}", 1.0),
        ("lbagent_healing_duration_seconds_bucket{le=\"81.92\"}", 2.0),
    ] {
        assert_eq!(value(&metrics, line), Some(wanted), "{line}");
    }
}

#[test]
fn the_writes_of_the_last_pass_are_shown() {
    let metrics = metrics();
    for writes in [5, 3] {
        metrics.synced(false, 0.1, 1.0, writes);
        assert_eq!(value(&metrics, "lbagent_last_sync_writes"), u32::try_from(writes).ok().map(f64::from));
    }
}

/// Error numbers, and counters of programs that are not loaded here, have their first value made up.
fn everything() -> String {
    let metrics = metrics();
    for map in maps::ALL {
        metrics.sync_failed(&MapError::Full { map, capacity: 1 }.into());
    }
    for resource in ["services", "endpointslices", "nodes", "servicecidrs"] {
        metrics.api_followed(resource);
    }
    let text = metrics.text().unwrap();
    let mut reasons = String::from("# HELP lbagent_datapath_actions ");
    reasons.push_str(kernel::ACTIONS_HELP);
    reasons.push_str("\n# TYPE lbagent_datapath_actions counter\n");
    for reason in lb_common::abi::Reason::ALL {
        writeln!(reasons, "lbagent_datapath_actions_total{{reason=\"{}\"}} 0", reason.name()).unwrap();
    }
    text + &reasons
}

#[test]
fn the_page_lists_every_metric() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let page = page(&everything());
    if env::var_os("LB_BLESS").is_some_and(|value| value == "1") {
        fs::write(&path, &page).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(kept, page, "docs/metrics.md is not what the registry says: LB_BLESS=1 writes it anew");
}

/// A label whose values somebody outside chooses would grow without end.
#[test]
fn every_metric_has_help_and_few_label_values() {
    for (name, row) in rows(&everything()) {
        assert!(!row.help.is_empty() && !row.kind.is_empty(), "{name}: {row:?}");
        let series: usize = row.labels.values().map(BTreeSet::len).product();
        assert!(series <= 40, "{name} has {series} series: {row:?}");
        let is_standard = name.starts_with("process_");
        assert!(is_standard || name.starts_with("lbagent_"), "{name}");
    }
}

#[test]
fn the_buckets_are_those_of_kube_proxy() {
    let metrics = metrics();
    metrics.programmed(Family::V4, 0.3);
    let bucket =
        |le| format!("lbagent_network_programming_duration_seconds_bucket{{le=\"{le}\",ip_family=\"IPv4\"}}");
    let edges = ["0.25", "0.5", "1.0", "59.0", "60.0", "65.0", "115.0", "120.0", "150.0", "300.0", "+Inf"];
    for (edge, wanted) in edges.into_iter().zip([0.0].into_iter().chain([1.0; 10])) {
        assert_eq!(value(&metrics, &bucket(edge)), Some(wanted), "{edge}");
    }
    let text = metrics.text().unwrap();
    let buckets = text.lines().filter(|line| {
        line.starts_with("lbagent_network_programming_duration_seconds_bucket") && line.contains("IPv4")
    });
    assert_eq!(buckets.count(), 2 + 59 + 12 + 7 + 1);
}

/// HZ-6.
#[test]
fn every_answer_to_a_probe_is_counted_by_its_code() {
    let metrics = metrics();
    metrics.probed(Probed::Healthz, true);
    metrics.probed(Probed::Healthz, false);
    metrics.probed(Probed::Healthz, false);
    metrics.probed(Probed::Livez, true);
    for (line, wanted) in [
        ("lbagent_healthz_total{code=\"200\"}", 1.0),
        ("lbagent_healthz_total{code=\"503\"}", 2.0),
        ("lbagent_livez_total{code=\"200\"}", 1.0),
        ("lbagent_livez_total{code=\"503\"}", 0.0),
        ("lbagent_readyz_total{code=\"503\"}", 0.0),
    ] {
        assert_eq!(value(&metrics, line), Some(wanted), "{line}");
    }
}

#[test]
fn what_is_queued_is_pending_until_it_is_done() {
    let metrics = metrics();
    let (name, owner) = (SliceName::new("ns", "s-1"), ServiceName::new("ns", "s"));
    let slice = Event::Slice(Change::Apply(SliceBuilder::new(name, owner.clone(), Family::V4).build()));
    let events = [slice, Event::Service(Change::Delete(owner)), Event::Service(Change::Complete)];
    let mut pending = Pending::default();
    for event in &events {
        metrics.queued(event, 7.5);
        pending.add(event);
    }
    let changes =
        |what: &str, object| value(&metrics, &format!("lbagent_changes_{what}{{object=\"{object}\"}}"));
    assert_eq!(changes("pending", "endpointslice"), Some(1.0));
    assert_eq!(changes("pending", "service"), Some(1.0), "the end of a list is no change");
    metrics.settled(pending);
    assert_eq!(changes("pending", "endpointslice"), Some(0.0));
    assert_eq!(changes("total", "endpointslice"), Some(1.0));
    assert_eq!(value(&metrics, "lbagent_last_queued_timestamp_seconds"), Some(7.5));
}

#[test]
fn a_failed_write_is_counted_by_map_and_errno() {
    let metrics = metrics();
    let errno = std::io::Error::from_raw_os_error(libc::ENOMEM);
    let error = MapError::Kernel { map: maps::FRONTENDS, op: Op::Create, errno };
    metrics.sync_failed(&anyhow::Error::new(error).context("cannot take over the pinned maps"));
    let line = "lbagent_map_update_errors_total{map=\"lb_frontends\",errno=\"ENOMEM\"}";
    assert_eq!(value(&metrics, line), Some(1.0));
    assert_eq!(value(&metrics, "lbagent_sync_failures_total"), Some(1.0));
}
