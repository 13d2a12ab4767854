//! Which objects concern us at all (SEL-1, SEL-3), for the API server to apply and for manifests to apply here.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as api;

use crate::model::{Algorithm, Fault, Few, Reason, Service};

/// The Service or slice belongs to another service proxy; the value does not matter (SEL-1).
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// The Service is headless; mirrored to its slices (SEL-1).
const HEADLESS: &str = "service.kubernetes.io/headless";

/// Which objects are asked for, and what of them is left out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interest {
    /// `metadata.name` of the own Node: no other is looked at.
    pub own_node: Arc<str>,
    /// `--service-proxy-name`: objects whose label says this instead of those without the label; empty for the latter.
    pub proxy_name: Box<str>,
    /// `--external-ips`: whether external IPs are served.
    pub external_ips: bool,
    /// `--algorithm`: that of Services that name none.
    pub algorithm: Algorithm,
}

impl Interest {
    /// Everything that a cluster's usual service proxy serves, on the node of that name.
    pub fn new(own_node: Arc<str>) -> Self {
        Self { own_node, proxy_name: Box::default(), external_ips: true, algorithm: Algorithm::Random }
    }

    /// Label selector for Services and `EndpointSlice`s. Because the server applies it, adding one of the labels looks
    /// like a delete and removing it like an add (SEL-2).
    pub(super) fn label_selector(&self) -> String {
        match &*self.proxy_name {
            "" => format!("!{PROXY_NAME},!{HEADLESS}"),
            name => format!("{PROXY_NAME}={name},!{HEADLESS}"),
        }
    }

    /// Whether an object with these labels passes [`Interest::label_selector`].
    pub(super) fn concerns_us(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        let value = |key| labels.and_then(|labels| labels.get(key)).map(String::as_str);
        let wanted = Some(&*self.proxy_name).filter(|name| !name.is_empty());
        value(PROXY_NAME) == wanted && value(HEADLESS).is_none()
    }

    /// Leaves out what is not served, and says so (LB-6); puts in what the Service leaves to its node.
    ///
    /// A Service whose external IPs are not served has none: SP-2 and SP-3 see it as it is then.
    pub(super) fn restrict(&self, mut service: Service) -> Service {
        if !self.external_ips && !service.external_ips.is_empty() {
            service.external_ips = Few::default();
            let fault = Fault::new("spec.externalIPs", Reason::ExternalIpsOff);
            service.faults = service.faults.iter().cloned().chain([fault]).collect();
        }
        service.algorithm.get_or_insert(self.algorithm);
        service
    }
}

/// Field selector that leaves headless Services out (SEL-3). API servers before 1.31 refuse it.
pub(super) const NOT_HEADLESS: &str = "spec.clusterIP!=None";

/// Whether [`NOT_HEADLESS`] leaves the Service out.
pub(super) fn is_headless(service: &api::Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::model::ServiceName;

    /// SEL-1.
    #[rstest]
    #[case::no_labels(&[], true)]
    #[case::other_labels(&[("app", "web")], true)]
    #[case::foreign_proxy(&[("service.kubernetes.io/service-proxy-name", "other")], false)]
    #[case::empty_value_excludes_too(&[("service.kubernetes.io/service-proxy-name", "")], false)]
    #[case::headless(&[("service.kubernetes.io/headless", "")], false)]
    fn either_label_excludes_whatever_its_value(#[case] labels: &[(&str, &str)], #[case] want: bool) {
        let labels = labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        assert_eq!(Interest::new("n1".into()).concerns_us(Some(&labels)), want);
    }

    #[test]
    fn an_object_without_a_label_map_concerns_us() {
        assert!(Interest::new("n1".into()).concerns_us(None));
        assert!(!named("mine").concerns_us(None));
    }

    fn named(name: &str) -> Interest {
        Interest { proxy_name: name.into(), ..Interest::new("n1".into()) }
    }

    /// SEL-1, SEL-2: with a name of its own the proxy serves what has that name, and headless Services still not.
    #[rstest]
    #[case::no_labels(&[], false)]
    #[case::own_name(&[("service.kubernetes.io/service-proxy-name", "mine")], true)]
    #[case::other_name(&[("service.kubernetes.io/service-proxy-name", "other")], false)]
    #[case::empty_name(&[("service.kubernetes.io/service-proxy-name", "")], false)]
    #[case::headless(
        &[("service.kubernetes.io/service-proxy-name", "mine"), ("service.kubernetes.io/headless", "")],
        false
    )]
    fn a_proxy_with_a_name_serves_what_has_the_name(#[case] labels: &[(&str, &str)], #[case] want: bool) {
        let labels = labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        assert_eq!(named("mine").concerns_us(Some(&labels)), want);
        assert_eq!(
            named("mine").label_selector(),
            "service.kubernetes.io/service-proxy-name=mine,!service.kubernetes.io/headless"
        );
    }

    /// 1.1-external-ips, LB-6, SP-2, SP-3.
    #[test]
    fn external_ips_that_are_switched_off_are_left_out_and_named() {
        let service = Service {
            external_ips: vec!["192.0.2.1".parse().unwrap()].into(),
            ..Service::new(ServiceName::new("ns", "web"))
        };
        let on = Interest::new("n1".into());
        let random = |service: &Service| Service { algorithm: Some(Algorithm::Random), ..service.clone() };
        assert_eq!(on.restrict(service.clone()), random(&service));
        let off = Interest { external_ips: false, ..on };
        let restricted = off.restrict(service);
        assert!(restricted.external_ips.is_empty());
        let faults: Vec<String> =
            restricted.faults.iter().map(|fault| format!("{}: {}", fault.field, fault.reason)).collect();
        assert_eq!(faults.len(), 1);
        assert!(faults[0].starts_with("spec.externalIPs: external IPs are switched off"), "{faults:?}");
        let without = Service::new(ServiceName::new("ns", "web"));
        assert_eq!(off.restrict(without.clone()), random(&without));
    }

    /// 5.9-annotation.
    #[test]
    fn a_service_that_names_no_algorithm_has_that_of_its_node() {
        let interest = Interest { algorithm: Algorithm::Maglev, ..Interest::new("n1".into()) };
        let chosen = |algorithm| {
            let service = Service { algorithm, ..Service::new(ServiceName::new("ns", "web")) };
            interest.restrict(service).algorithm
        };
        assert_eq!(chosen(None), Some(Algorithm::Maglev));
        assert_eq!(chosen(Some(Algorithm::Random)), Some(Algorithm::Random));
    }
}
