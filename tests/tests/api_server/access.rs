//! Addresses, credentials, certificates, rights and the own Node: what is wrong is named with its remedy, and what is put
//! right is noticed.

use std::fs;
use std::path::PathBuf;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, PostParams};
use lb_tests::control_plane::{API_ADDRESSES, ControlPlane, Fault, FaultProxy, Verb};
use lb_tests::{needs_cluster, wait_until};
use serde_json::{Value, json};

use crate::world::{SOON, World};

/// More attempts than an agent makes.
const FAULTS: usize = 1000;

/// One where nobody listens, one that swallows packets, one of the other family that works.
#[test]
fn addresses_that_do_not_answer_are_passed_over() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "addresses");
    world.write(1, &[1]);
    let [_, _, good] = ControlPlane::shared().node_urls();
    let addresses = format!("https://172.31.255.1:1,https://172.31.254.1:6443,{good}");
    world.spawn(&world.kubeconfig(|_| {}), &["--api-server", &addresses]);
    world.wait_ready();
    world.expect(1, &[1]);
}

#[test]
fn the_next_address_takes_over_from_one_that_fails() {
    needs_cluster!();
    let control_plane = ControlPlane::shared();
    let proxy = FaultProxy::start(control_plane).unwrap();
    let mut world = World::new(control_plane, "failover");
    world.write(1, &[1]);
    let addresses = format!("{},{}", proxy.node_url(), control_plane.node_urls()[0]);
    world.spawn(&world.kubeconfig(|_| {}), &["--api-server", &addresses]);
    world.wait_ready();
    let traffic = world.begin(1);
    assert!(!proxy.seen().is_empty(), "the first address is used");
    drop(proxy);
    world.write_slices(1, &[1, 2]);
    world.expect(1, &[1, 2]);
    world.write(2, &[2]);
    world.expect(2, &[2]);
    traffic.end();
}

/// Its answers are answers, but the other one may be in better health.
#[test]
fn an_address_that_answers_with_errors_is_given_up_for_the_next() {
    needs_cluster!();
    let control_plane = ControlPlane::shared();
    let proxy = FaultProxy::start(control_plane).unwrap();
    let kinds = ["services", "endpointslices", "nodes"];
    for kind in kinds {
        proxy.plan(Verb::List, kind, Fault::Status(503), FAULTS);
    }
    let mut world = World::new(control_plane, "errors");
    world.write(1, &[1]);
    let addresses = format!("{},{}", proxy.node_url(), control_plane.node_urls()[0]);
    world.spawn(&world.kubeconfig(|_| {}), &["--api-server", &addresses]);
    world.wait_ready();
    world.expect(1, &[1]);
    assert!(proxy.planned() < kinds.len() * FAULTS, "the first address has not been asked");
    assert!(proxy.planned() > 0, "and it has not become well");
}

#[test]
fn refused_credentials_are_named_with_their_remedy() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "token");
    let kubeconfig = world.kubeconfig(|config| config["users"][0]["user"]["token"] = json!("wrong"));
    world.spawn(&kubeconfig, &[]);
    let line = world.wait_for_line(&["WARN", "cannot be watched"]);
    for part in ["HTTP 401", "token", "retrying"] {
        assert!(line.contains(part), "no {part:?} in {line}");
    }
    says_so_once(&world);
}

#[test]
fn an_untrusted_certificate_is_named_with_its_remedy() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "certificate");
    let kubeconfig = world.kubeconfig(|config| {
        config["clusters"][0]["cluster"].as_object_mut().unwrap().remove("certificate-authority");
    });
    world.spawn(&kubeconfig, &[]);
    let line = world.wait_for_line(&["WARN", "cannot be watched"]);
    for part in ["UnknownIssuer", "certificate-authority", "retrying"] {
        assert!(line.contains(part), "no {part:?} in {line}");
    }
    says_so_once(&world);
}

/// With a service account, as in a pod. The rights are all that the agent needs.
#[test]
fn missing_rights_are_named_and_work_once_they_are_given() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "rights");
    world.write(1, &[1]);
    let kubeconfig = service_account(&world, "agent");
    world.spawn(&kubeconfig, &[]);
    let line = world.wait_for_line(&["WARN", "cannot be watched"]);
    for part in ["HTTP 403", "ClusterRole", "retrying"] {
        assert!(line.contains(part), "no {part:?} in {line}");
    }
    let role = rights("lb-agent-rights");
    world.control_plane.apply(&role).unwrap();
    world.control_plane.apply(&binding(&role, world.namespace.name(), "agent")).unwrap();
    world.wait_ready();
    world.expect(1, &[1]);
    world.write_slices(1, &[2]);
    world.expect(1, &[2]);
}

/// An empty list of Nodes is complete. Only the name can be wrong, or the kubelet has not registered yet.
#[test]
fn an_own_node_that_is_missing_is_named_and_services_work_without_it() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "no-node");
    let node = world.node();
    world.control_plane.delete(&node).unwrap();
    world.write(1, &[1]);
    world.start();
    world.expect(1, &[1]);
    world.wait_for_line(&["WARN", "no-node", "--node-name"]);
    world.control_plane.apply(&node).unwrap();
    world.wait_for_line(&["INFO", "no-node", "Node is there"]);
}

/// BS-1. As a `DaemonSet`'s pod: token, certificate and address are where a kubelet puts them.
#[test]
fn a_pod_needs_nothing_but_its_service_account() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "in-pod");
    world.write(1, &[1]);
    let kubeconfig: Value =
        serde_json::from_slice(&fs::read(service_account(&world, "agent")).unwrap()).unwrap();
    let role = rights("lb-agent-in-pod");
    world.control_plane.apply(&role).unwrap();
    world.control_plane.apply(&binding(&role, world.namespace.name(), "agent")).unwrap();
    let folder = world.home.manifests();
    let authority = kubeconfig["clusters"][0]["cluster"]["certificate-authority"].as_str().unwrap();
    fs::copy(authority, folder.join("ca.crt")).unwrap();
    fs::write(folder.join("namespace"), world.namespace.name()).unwrap();
    // Never to be used: the service account comes first.
    let elsewhere = world.kubeconfig(|config| {
        config["clusters"][0]["cluster"]["server"] = json!("https://172.31.254.1:6443");
    });
    for (step, ip) in (1..).zip([API_ADDRESSES[0], API_ADDRESSES[2]]) {
        let token = kubeconfig["users"][0]["user"]["token"].as_str().unwrap();
        fs::write(folder.join("token"), token).unwrap();
        world.spawn_in_pod(ip, Some(&folder), &elsewhere);
        world.wait_ready();
        world.expect(1, &[step]);
        world.write_slices(1, &[step + 1]);
        world.expect(1, &[step + 1]);
        world.stop();
    }
    // It is the service account that speaks.
    fs::write(folder.join("token"), "wrong").unwrap();
    world.spawn_in_pod(API_ADDRESSES[0], Some(&folder), &elsewhere);
    world.wait_for_line(&["WARN", "cannot be watched", "HTTP 401"]);
}

/// `automountServiceAccountToken: false`
#[test]
fn a_pod_without_a_service_account_uses_its_kubeconfig() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "no-account");
    world.write(1, &[1]);
    let kubeconfig = world.kubeconfig(|_| {});
    world.spawn_in_pod(API_ADDRESSES[0], None, &kubeconfig);
    world.wait_ready();
    world.expect(1, &[1]);
}

#[test]
fn a_kubeconfig_that_cannot_be_read_ends_the_start_and_is_named() {
    needs_cluster!();
    let mut world = World::new(ControlPlane::shared(), "no-kubeconfig");
    let missing = world.home.pin_dir().with_file_name("missing-kubeconfig");
    world.spawn(&missing, &[]);
    assert!(!world.agent.as_mut().unwrap().wait().unwrap(), "it ended as if all was well");
    let log = world.home.log();
    assert!(log.contains("missing-kubeconfig") && log.contains("No such file"), "{log}");
}

/// Of all kinds of objects and attempts, only the first to fail is heard.
fn says_so_once(world: &World<'_>) {
    wait_until("more attempts", SOON, || world.home.log().matches("watch failed, retrying").count() > 4)
        .unwrap();
    let log = world.home.log();
    let loud = log.lines().filter(|line| ["WARN", "ERROR"].iter().any(|level| line.contains(level)));
    assert_eq!(loud.count(), 1, "{log}");
}

/// A kubeconfig for a new service account without any rights.
pub(crate) fn service_account(world: &World<'_>, name: &str) -> PathBuf {
    world
        .namespace
        .apply(&json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}))
        .unwrap();
    let control_plane = world.control_plane;
    let accounts: Api<ServiceAccount> = Api::namespaced(control_plane.client(), world.namespace.name());
    let request = TokenRequest { spec: TokenRequestSpec::default(), ..TokenRequest::default() };
    let account = name.to_owned();
    let answer = control_plane
        .run(async move { accounts.create_token_request(&account, &PostParams::default(), &request).await })
        .unwrap();
    let token = answer.status.unwrap().token;
    world.kubeconfig(|config| config["users"][0]["user"]["token"] = json!(token))
}

/// The rights that the agent needs, and no others.
pub(crate) fn rights(name: &str) -> Value {
    let verbs = json!(["list", "watch"]);
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name},
        "rules": [
            {"apiGroups": [""], "resources": ["services", "nodes"], "verbs": verbs},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": verbs},
            {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]},
        ],
    })
}

/// Gives the rights of `role` to a service account.
pub(crate) fn binding(role: &Value, namespace: &str, account: &str) -> Value {
    let name = &role["metadata"]["name"];
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "namespace": namespace, "name": account}],
    })
}
