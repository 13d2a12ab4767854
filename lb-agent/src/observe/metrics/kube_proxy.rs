//! What an operator who comes from kube-proxy looks for, and what there is in its place: every metric of semantics 3.3.

/// Where the meaning of a metric of kube-proxy is found.
pub(super) enum Here {
    /// Under these names. The text says what is different; nothing if it is the same.
    Named(&'static [&'static str], &'static str),
    /// Under its own name, as this says.
    There(&'static str),
    /// Nowhere, for this reason.
    Nowhere(&'static str),
}

use Here::{Named, Nowhere, There};

const FAMILIES: &str = "both families are written in one pass, so there is no label `ip_family`";
const LOCALHOST: &str =
    "NodePorts at loopback are translated in connect() like others, nobody listens for them";

/// Names without `kubeproxy_`, for the general ones as they are.
pub(super) const TABLE: &[(&str, Here)] = &[
    ("sync_proxy_rules_duration_seconds", Named(&["lbagent_sync_duration_seconds"], FAMILIES)),
    ("sync_full_proxy_rules_duration_seconds", Named(&["lbagent_sync_duration_seconds"], "`kind=\"full\"`")),
    (
        "sync_partial_proxy_rules_duration_seconds",
        Named(&["lbagent_sync_duration_seconds"], "`kind=\"partial\"`"),
    ),
    ("network_programming_duration_seconds", Named(&["lbagent_network_programming_duration_seconds"], "")),
    ("sync_proxy_rules_last_timestamp_seconds", Named(&["lbagent_last_sync_timestamp_seconds"], FAMILIES)),
    (
        "sync_proxy_rules_last_queued_timestamp_seconds",
        Named(&["lbagent_last_queued_timestamp_seconds"], FAMILIES),
    ),
    (
        "sync_proxy_rules_endpoint_changes_pending, _total",
        Named(&["lbagent_changes_pending", "lbagent_changes"], "`object=\"endpointslice\"`"),
    ),
    (
        "sync_proxy_rules_service_changes_pending, _total",
        Named(&["lbagent_changes_pending", "lbagent_changes"], "`object=\"service\"`"),
    ),
    ("sync_proxy_rules_no_local_endpoints_total", Named(&["lbagent_no_local_endpoints"], "")),
    (
        "sync_proxy_rules_iptables_total",
        Named(&["lbagent_map_entries"], "entries of maps instead of rules of tables"),
    ),
    (
        "sync_proxy_rules_iptables_last",
        Named(&["lbagent_last_sync_writes"], "writes to maps instead of rules"),
    ),
    (
        "sync_proxy_rules_iptables_restore_failures_total",
        Named(&["lbagent_sync_failures", "lbagent_map_update_errors"], FAMILIES),
    ),
    (
        "sync_proxy_rules_iptables_partial_restore_failures_total",
        Named(
            &["lbagent_sync_failures"],
            "one counter: a pass that fails is followed by a full one in any case",
        ),
    ),
    (
        "sync_proxy_rules_nftables_sync_failures_total",
        Named(&["lbagent_sync_failures", "lbagent_map_update_errors"], FAMILIES),
    ),
    (
        "sync_proxy_rules_nftables_cleanup_failures_total",
        Named(&["lbagent_sync_failures"], "what is not needed any more goes in the same passes"),
    ),
    (
        "iptables_ct_state_invalid_dropped_packets_total",
        Nowhere("sockets are translated, no packet is dropped"),
    ),
    ("iptables_localhost_nodeports_accepted_packets_total", Nowhere(LOCALHOST)),
    ("nftables_localhost_nodeport_listeners", Nowhere(LOCALHOST)),
    ("nftables_localhost_nodeport_listener_creation_failures_total", Nowhere(LOCALHOST)),
    ("nftables_localhost_nodeport_rejected_packets_total", Nowhere(LOCALHOST)),
    (
        "conntrack_reconciler_sync_duration_seconds",
        Named(
            &["lbagent_healing_duration_seconds"],
            "looks for connected UDP sockets instead of flows, of both families",
        ),
    ),
    (
        "conntrack_reconciler_deleted_entries_total",
        Named(&["lbagent_udp_sockets_freed", "lbagent_healing_failures"], "sockets instead of flows"),
    ),
    ("proxy_healthz_total", Named(&["lbagent_healthz"], "")),
    ("proxy_livez_total", Named(&["lbagent_livez"], "")),
    (
        "rest_client_*",
        Named(
            &[
                "lbagent_api_requests",
                "lbagent_api_watch_failures",
                "lbagent_api_last_heard_timestamp_seconds",
            ],
            "by kind of objects and class of code; no latencies: watches last for minutes",
        ),
    ),
    (
        "process_*",
        Named(
            &[
                "process_cpu_seconds",
                "process_open_fds",
                "process_resident_memory_bytes",
                "process_start_time_seconds",
                "process_virtual_memory_bytes",
            ],
            "`process_max_fds` is missing",
        ),
    ),
    ("go_*", Nowhere("this is no Go program")),
    ("kubernetes_build_info", Named(&["lbagent_build"], "")),
    (
        "kubernetes_feature_enabled",
        Nowhere("there are no feature gates; `--print-config` shows what is in force"),
    ),
    ("workqueue_*", Named(&["lbagent_changes_pending"], "one queue, to the owner of the maps")),
    ("/metrics/slis", There("`kubernetes_healthcheck` and `kubernetes_healthchecks` at the same path")),
];
