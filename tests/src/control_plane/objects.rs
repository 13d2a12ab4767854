//! Kubernetes objects as JSON, the smallest that the API server accepts and the controllers act on.
//!
//! The same values serve [`super::Namespace::apply`] and, written to a file, an agent that reads manifests.

use serde_json::{Value, json};

/// A Node that is ready, with InternalIP `addresses`.
pub fn node(name: &str, addresses: &[&str]) -> Value {
    let addresses: Vec<Value> =
        addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"addresses": addresses, "conditions": [ready_condition(true)]},
    })
}

/// A Pod with label `app` that runs on the Node `node`, which exists, with addresses `ips` (none: it has not started).
///
/// It is Ready when `ready`, and the EndpointSlice controller puts it into the slices of every Service with
/// selector `app`.
pub fn pod(name: &str, app: &str, node: &str, ips: &[&str], ready: bool) -> Value {
    let pod_ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    let mut status = json!({
        "phase": if ips.is_empty() { "Pending" } else { "Running" },
        "conditions": [ready_condition(ready)],
    });
    if let Some(first) = ips.first() {
        status["podIP"] = json!(first);
        status["podIPs"] = json!(pod_ips);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": app}},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "none"}]},
        "status": status,
    })
}

/// A Service with `spec` as given. A `LoadBalancer` gets addresses from [`load_balancer_status`].
pub fn service(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

/// A Service of one TCP `port`, passed on to `target_port` of the Pods with label `app`, with the cluster
/// address given.
pub fn tcp_service(name: &str, cluster_ip: &str, port: u16, app: &str, target_port: u16) -> Value {
    service(
        name,
        &json!({
            "clusterIP": cluster_ip,
            "selector": {"app": app},
            "ports": [{"protocol": "TCP", "port": port, "targetPort": target_port}],
        }),
    )
}

/// The status of a Service that a load balancer serves at `ips`; put it under `status` of [`service`].
pub fn load_balancer_status(ips: &[&str]) -> Value {
    let ingress: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!({"loadBalancer": {"ingress": ingress}})
}

/// An EndpointSlice of `service` that no controller made: ready endpoints at `ips`, all of one family, TCP
/// `port`.
pub fn slice(name: &str, service: &str, ips: &[&str], port: u16) -> Value {
    let family = if ips.iter().any(|ip| ip.contains(':')) { "IPv6" } else { "IPv4" };
    let endpoints: Vec<Value> =
        ips.iter().map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": family,
        "endpoints": endpoints,
        "ports": [{"name": "", "protocol": "TCP", "port": port}],
    })
}

fn ready_condition(ready: bool) -> Value {
    json!({"type": "Ready", "status": if ready { "True" } else { "False" }})
}
