//! Which objects concern us at all (SEL-1, SEL-3), for the API server to apply and for manifests to apply here.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Service;

/// The Service or slice belongs to another service proxy; the value does not matter (SEL-1).
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// The Service is headless; mirrored to its slices (SEL-1).
const HEADLESS: &str = "service.kubernetes.io/headless";

/// Label selector for Services and `EndpointSlice`s. Because the server applies it, adding one of the labels looks like a
/// delete and removing it like an add (SEL-2).
pub(super) fn label_selector() -> String {
    format!("!{PROXY_NAME},!{HEADLESS}")
}

/// Field selector that leaves headless Services out (SEL-3). API servers before 1.31 refuse it.
pub(super) const NOT_HEADLESS: &str = "spec.clusterIP!=None";

/// Whether an object with these labels passes [`label_selector`].
pub(super) fn concerns_us(labels: Option<&BTreeMap<String, String>>) -> bool {
    labels.is_none_or(|labels| !labels.contains_key(PROXY_NAME) && !labels.contains_key(HEADLESS))
}

/// Whether [`NOT_HEADLESS`] leaves the Service out.
pub(super) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// SEL-1.
    #[rstest]
    #[case::no_labels(&[], true)]
    #[case::other_labels(&[("app", "web")], true)]
    #[case::foreign_proxy(&[("service.kubernetes.io/service-proxy-name", "other")], false)]
    #[case::empty_value_excludes_too(&[("service.kubernetes.io/service-proxy-name", "")], false)]
    #[case::headless(&[("service.kubernetes.io/headless", "")], false)]
    fn either_label_excludes_whatever_its_value(#[case] labels: &[(&str, &str)], #[case] want: bool) {
        let labels = labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        assert_eq!(concerns_us(Some(&labels)), want);
    }

    #[test]
    fn an_object_without_a_label_map_concerns_us() {
        assert!(concerns_us(None));
    }
}
