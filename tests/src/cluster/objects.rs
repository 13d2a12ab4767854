//! What a cluster begins with: its DNS, which gets ready only through the service proxy.

use serde_json::{Value, json};

use super::network::NAME_SERVER;

/// The namespace of the cluster's own objects; the API server makes it.
pub(super) const NAMESPACE: &str = "kube-system";

/// The Deployment of the name servers.
pub(super) const NAME_SERVERS: &str = "coredns";

/// How many there are: one more than one, so that a node that fails shows.
pub(super) const NAME_SERVER_COUNT: u64 = 2;

/// The image that [`super::image`] makes of the name server.
pub(super) const IMAGE: &str = "localhost/coredns:1";

/// Names of Services and pods, and of nobody else.
const COREFILE: &str = "\
.:53 {
    errors
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        ttl 5
    }
}
";

/// The objects of the name server, to be applied in this order.
pub(super) fn dns() -> Vec<Value> {
    let named = |name: &str| json!({"name": name, "namespace": NAMESPACE});
    let labels = json!({"k8s-app": "kube-dns"});
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named(NAME_SERVERS)}),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": NAME_SERVERS},
            "rules": [
                {"apiGroups": [""], "resources": ["namespaces", "pods", "services"], "verbs": ["list", "watch"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": NAME_SERVERS},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": NAME_SERVERS},
            "subjects": [{"kind": "ServiceAccount", "name": NAME_SERVERS, "namespace": NAMESPACE}],
        }),
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": named(NAME_SERVERS),
            "data": {"Corefile": COREFILE},
        }),
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            // Upstream's tests look for this name.
            "metadata": {"name": "kube-dns", "namespace": NAMESPACE, "labels": labels},
            "spec": {
                "clusterIP": NAME_SERVER,
                "selector": labels,
                "ports": [
                    {"name": "dns", "port": 53, "protocol": "UDP"},
                    {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
                ],
            },
        }),
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": named(NAME_SERVERS),
            "spec": {
                "replicas": NAME_SERVER_COUNT,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": name_server()},
            },
        }),
    ]
}

fn name_server() -> Value {
    json!({
        "serviceAccountName": NAME_SERVERS,
        // Its own server would be itself.
        "dnsPolicy": "Default",
        "containers": [{
            "name": "coredns",
            "image": IMAGE,
            "args": ["-conf", "/etc/coredns/Corefile"],
            // Ready means that it has read the API, through the cluster IP of the API server.
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
            "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
        }],
        "volumes": [{"name": "config", "configMap": {"name": NAME_SERVERS}}],
    })
}

/// The Node `name`, for patches.
pub(super) fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
}

/// The zone of node `number`: three of them, in turn.
pub(super) fn zone(number: u8) -> Value {
    json!({"metadata": {"labels": {"topology.kubernetes.io/zone": format!("zone-{}", (number - 1) % 3 + 1)}}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_finds_the_pods_of_the_deployment() {
        let objects = dns();
        let of = |kind: &str| objects.iter().find(|object| object["kind"] == kind).unwrap();
        let labels = &of("Deployment")["spec"]["template"]["metadata"]["labels"];
        assert_eq!(&of("Service")["spec"]["selector"], labels);
        assert_eq!(&of("Deployment")["spec"]["selector"]["matchLabels"], labels);
    }

    #[test]
    fn nodes_are_in_three_zones_in_turn() {
        let zone = |number| zone(number)["metadata"]["labels"]["topology.kubernetes.io/zone"].clone();
        assert_eq!([1, 2, 3, 4].map(zone), ["zone-1", "zone-2", "zone-3", "zone-1"]);
    }
}
