//! The control plane of the tests does what its users rely on.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::{Api, ListParams, VersionMatch, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use lb_tests::control_plane::objects::{node, pod, service, slice, tcp_service};
use lb_tests::control_plane::{
    ControlPlane, Fault, FaultProxy, KubeProxy, Namespace, ProxyMode, Trust, Verb,
};
use lb_tests::{Netns, needs_cluster};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_service_with_ready_pods_gets_endpoint_slices_from_the_real_controller() -> Result<()> {
    needs_cluster!(Ok(()));
    let namespace = ControlPlane::shared().namespace("slices")?;
    let ready = pod("web-1", "web", "slices-node", &["10.1.1.10"], true);
    namespace.control_plane().apply(&node("slices-node", &["192.168.50.1"]))?;
    namespace.apply(&tcp_service("web", "10.0.0.100", 80, "web", 8080))?;
    namespace.apply(&ready)?;
    namespace.apply(&pod("web-2", "web", "slices-node", &["10.1.1.11"], false))?;
    namespace.apply(&pod("other", "other", "slices-node", &["10.1.1.12"], true))?;
    namespace.wait_for_endpoints("web", &["10.1.1.10"], PATIENCE)?;

    namespace.apply(&pod("web-2", "web", "slices-node", &["10.1.1.11"], true))?;
    namespace.wait_for_endpoints("web", &["10.1.1.10", "10.1.1.11"], PATIENCE)?;
    namespace.label(&ready, &json!({"app": "gone"}))?;
    namespace.wait_for_endpoints("web", &["10.1.1.11"], PATIENCE)?;
    let slices = namespace.slices("web")?;
    assert_eq!(slices[0].ports.as_ref().unwrap()[0].port, Some(8080));
    Ok(())
}

#[test]
fn a_terminating_pod_stays_in_its_slice_until_it_is_deleted() -> Result<()> {
    needs_cluster!(Ok(()));
    let namespace = ControlPlane::shared().namespace("terminating")?;
    let web = pod("web", "web", "terminating-node", &["10.1.2.10"], true);
    namespace.control_plane().apply(&node("terminating-node", &["192.168.50.1"]))?;
    namespace.apply(&tcp_service("web", "10.0.0.110", 80, "web", 8080))?;
    namespace.apply(&web)?;
    namespace.wait_for_endpoints("web", &["10.1.2.10"], PATIENCE)?;

    namespace.terminate(&web)?;
    namespace.wait_for_endpoints("web", &[], PATIENCE)?;
    let slices = namespace.slices("web")?;
    let conditions = slices[0].endpoints[0].conditions.clone().context("no conditions")?;
    assert_eq!((conditions.serving, conditions.terminating), (Some(true), Some(true)));
    namespace.delete(&web)?;
    lb_tests::wait_until("the endpoint to go", PATIENCE, || {
        namespace.slices("web").is_ok_and(|slices| slices.iter().all(|slice| slice.endpoints.is_empty()))
    })
}

#[test]
fn a_restart_of_the_api_server_keeps_the_data_and_forgets_old_resource_versions() -> Result<()> {
    needs_cluster!(Ok(()));
    let control_plane = ControlPlane::start()?;
    let namespace = control_plane.namespace("restart")?;
    namespace.apply(&tcp_service("kept", "10.0.0.120", 80, "web", 8080))?;
    let old = resource_version(&namespace)?;
    for number in 0..10 {
        namespace.apply(&service_without_address(&format!("more-{number}")))?;
    }

    assert!(control_plane.compact()? > 0);
    control_plane.stop_api_server();
    assert!(resource_version(&namespace).is_err(), "it still answers");
    control_plane.start_api_server()?;
    control_plane.kill_api_server();
    control_plane.start_api_server()?;

    let api: Api<Service> = Api::namespaced(control_plane.client(), namespace.name());
    let kept = api.clone();
    let kept = control_plane.run(async move { kept.get("kept").await })?;
    assert_eq!(kept.spec.unwrap().cluster_ip.as_deref(), Some("10.0.0.120"));
    // Only compaction makes the store forget, only a restart makes the API server's cache forget.
    let at_old = ListParams::default().at(&old).matching(VersionMatch::Exact);
    let listed = api.clone();
    let listed = control_plane.run(async move { listed.list(&at_old).await });
    assert!(matches!(&listed, Err(kube::Error::Api(status)) if status.code == 410), "{listed:?}");
    let answer = control_plane.run(async move { first_event(&api, &old).await })?;
    let WatchEvent::Error(status) = answer else { panic!("the watch began with {answer:?}") };
    assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));

    control_plane.apply(&node("restart-node", &["192.168.50.1"]))?;
    namespace.apply(&pod("web", "web", "restart-node", &["10.1.4.10"], true))?;
    namespace.wait_for_endpoints("kept", &["10.1.4.10"], PATIENCE)
}

#[test]
fn a_linked_node_reaches_every_address_and_checks_the_certificate() -> Result<()> {
    needs_cluster!(Ok(()));
    let control_plane = ControlPlane::shared();
    let node = Netns::new("linked")?;
    let link = control_plane.link(&node)?;
    for url in control_plane.node_urls() {
        assert_eq!(ready_from(&node, control_plane, &url, Trust::Authority)?, "ok", "{url}");
    }

    // The other end of the veth answers too, but the certificate does not name it.
    let unnamed = format!("https://{}:6443", link.ipv4.replace(".2", ".1"));
    assert_eq!(ready_from(&node, control_plane, &unnamed, Trust::Nobody)?, "ok");
    assert!(ready_from(&node, control_plane, &unnamed, Trust::Authority).is_err());
    drop(link);
    assert!(ready_from(&node, control_plane, &control_plane.node_urls()[0], Trust::Nobody).is_err());
    Ok(())
}

#[test]
fn the_test_process_itself_reaches_api_server_and_fault_proxy() -> Result<()> {
    needs_cluster!(Ok(()));
    let control_plane = ControlPlane::shared();
    let host = |url: &str| ready(control_plane.kubeconfig(url, Trust::Authority)?);
    assert_eq!(host(&control_plane.host_url())?, "ok");
    let proxy = FaultProxy::start(control_plane)?;
    assert_eq!(host(&proxy.host_url())?, "ok");
    proxy.plan(Verb::List, "readyz", Fault::Status(500), 1);
    assert!(host(&proxy.host_url()).is_err());
    Ok(())
}

#[test]
fn the_fault_proxy_passes_on_what_is_not_planned_and_does_what_is() -> Result<()> {
    needs_cluster!(Ok(()));
    let control_plane = ControlPlane::shared();
    let namespace = control_plane.namespace("faults")?;
    let services = [1, 2, 3, 4, 5].map(|number| service_without_address(&format!("web-{number}")));
    namespace.create_all(&services)?;
    let proxy = FaultProxy::start(control_plane)?;
    let client = client_of(control_plane, &proxy.node_url())?;
    let list = |limit| {
        let api: Api<Service> = Api::namespaced(client.clone(), "faults");
        control_plane.run(async move { api.list(&ListParams::default().limit(limit)).await })
    };
    assert_eq!(list(500)?.items.len(), 5);

    proxy.plan(Verb::List, "services", Fault::Status(500), 1);
    proxy.plan(Verb::List, "services", Fault::Garbage, 1);
    proxy.plan(Verb::List, "services", Fault::CutAfter(100), 1);
    proxy.plan(Verb::List, "services", Fault::Expired, 1);
    for fault in ["500", "garbage", "cut"] {
        assert!(list(500).is_err(), "{fault}");
    }
    match list(500) {
        Err(kube::Error::Api(status)) => assert_eq!((status.code, status.reason.as_str()), (410, "Expired")),
        other => panic!("{other:?}"),
    }
    assert_eq!(proxy.planned(), 0);

    proxy.set_page_size(2);
    let page = list(500)?;
    assert_eq!(page.items.len(), 2);
    let token = page.metadata.continue_.context("a first page has a continue token")?;
    proxy.plan(Verb::NextPage, "services", Fault::Expired, 1);
    let api: Api<Service> = Api::namespaced(client.clone(), "faults");
    let next =
        control_plane.run(async move { api.list(&ListParams::default().continue_token(&token)).await });
    assert!(matches!(&next, Err(kube::Error::Api(status)) if status.code == 410), "{next:?}");
    assert_eq!(proxy.seen().len(), 7);
    Ok(())
}

#[test]
fn the_fault_proxy_ends_watches() -> Result<()> {
    needs_cluster!(Ok(()));
    let control_plane = ControlPlane::shared();
    let namespace = control_plane.namespace("watches")?;
    let proxy = FaultProxy::start(control_plane)?;
    let client = client_of(control_plane, &proxy.node_url())?;
    let api: Api<ConfigMap> = Api::namespaced(client, namespace.name());

    // Closed by the real server after a second: an orderly end.
    proxy.set_watch_seconds(1);
    let closed = api.clone();
    assert!(control_plane.run(async move { drain(&closed).await }).is_ok());

    // Cut by the proxy, long before the server would close it.
    proxy.set_watch_seconds(60);
    let start = Instant::now();
    std::thread::scope(|scope| -> Result<()> {
        let watch = scope.spawn(|| {
            let api = api.clone();
            control_plane.run(async move { drain(&api).await })
        });
        lb_tests::wait_until("two watches", PATIENCE, || proxy.seen().len() == 2)?;
        std::thread::sleep(Duration::from_millis(200));
        proxy.cut();
        // The client library takes the missing end for an end, so only the time tells.
        drop(watch.join().expect("the watch does not panic"));
        Ok(())
    })?;
    assert!(start.elapsed() < PATIENCE, "the watch went on for {:?}", start.elapsed());
    Ok(())
}

#[test]
fn kube_proxy_programs_a_service_with_nftables() -> Result<()> {
    needs_cluster!(Ok(()));
    kube_proxy_programs_a_service("proxy-nftables", "10.0.0.130", ProxyMode::Nftables)
}

#[test]
fn kube_proxy_programs_a_service_with_iptables() -> Result<()> {
    needs_cluster!(Ok(()));
    kube_proxy_programs_a_service("proxy-iptables", "10.0.0.131", ProxyMode::Iptables)
}

/// The Service's one endpoint is an address of the node itself, so that a connection shows the rules at work.
fn kube_proxy_programs_a_service(name: &str, address: &str, mode: ProxyMode) -> Result<()> {
    let control_plane = ControlPlane::shared();
    let namespace = control_plane.namespace(name)?;
    let netns = Netns::new(name)?;
    let link = control_plane.link(&netns)?;
    netns.ip("address add 10.1.3.10/32 dev lo\nroute add 10.0.0.0/16 dev control src 10.1.3.10")?;
    control_plane.apply(&node(name, &[&link.ipv4, &link.ipv6]))?;
    namespace.apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"clusterIP": address, "ports": [{"port": 80, "targetPort": 8080}]},
    }))?;
    namespace.apply(&slice("web-1", "web", &["10.1.3.10"], 8080))?;

    let proxy = KubeProxy::start(control_plane, &netns, name, mode)?;
    proxy.wait_programmed(address.parse()?, 80, PATIENCE)?;
    proxy.wait_idle(Duration::from_millis(500), PATIENCE)?;
    assert!(proxy.cpu_time()? > Duration::ZERO);
    let peer = netns.run(|| -> Result<_> {
        let server = std::net::TcpListener::bind("10.1.3.10:8080")?;
        let target = format!("{address}:80").parse()?;
        let _client = std::net::TcpStream::connect_timeout(&target, Duration::from_secs(5))?;
        Ok(server.accept()?.1)
    })?;
    assert!(!peer.ip().is_loopback());
    Ok(())
}

fn service_without_address(name: &str) -> Value {
    service(name, &json!({"clusterIP": "None", "ports": [{"port": 80}]}))
}

fn resource_version(namespace: &Namespace<'_>) -> Result<String> {
    let api: Api<Service> = Api::namespaced(namespace.control_plane().client(), namespace.name());
    let list = namespace.control_plane().run(async move { api.list(&ListParams::default()).await })?;
    list.metadata.resource_version.context("a list has a resource version")
}

async fn first_event(api: &Api<Service>, version: &str) -> Result<WatchEvent<Service>> {
    let mut events = std::pin::pin!(api.watch(&WatchParams::default(), version).await?);
    futures::TryStreamExt::try_next(&mut events).await?.context("the watch ended without an event")
}

/// Watches until the watch ends, in whatever way.
async fn drain(api: &Api<ConfigMap>) -> kube::Result<()> {
    let events = api.watch(&WatchParams::default().timeout(200), "0").await?;
    futures::TryStreamExt::try_for_each(events, |_event| std::future::ready(Ok(()))).await
}

/// A client for the control plane's runtime.
fn client_of(control_plane: &ControlPlane, url: &str) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(control_plane.kubeconfig(url, Trust::Authority)?)?;
    control_plane.run(async move {
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    })
}

/// What `/readyz` at `url` says to a client in `netns`.
fn ready_from(netns: &Netns, control_plane: &ControlPlane, url: &str, trust: Trust) -> Result<String> {
    let kubeconfig = control_plane.kubeconfig(url, trust)?;
    netns.run(|| ready(kubeconfig))
}

/// What `/readyz` says to a client with this kubeconfig in the present namespace.
fn ready(kubeconfig: PathBuf) -> Result<String> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let request = axum::http::Request::get("/readyz").body(Vec::new())?;
        Ok(Client::try_from(config)?.request_text(request).await?)
    })
}
