//! ServiceCIDR -> [`model::ServiceCidr`](crate::model::ServiceCidr). Pure; texts that are no ranges are left out.

use k8s_openapi::api::networking::v1 as api;

use super::{Refused, fields};
use crate::model::{Names, ServiceCidr};

/// Reduces a ServiceCIDR to its ranges. Whether it is ready does not matter: one that is being deleted still has
/// addresses in use.
pub fn service_cidr(object: &api::ServiceCIDR, names: &mut Names) -> Result<ServiceCidr, Refused> {
    let name = object.metadata.name.as_deref().filter(|name| !name.is_empty()).ok_or(Refused::NoName)?;
    let texts = object.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    let ranges = texts.filter_map(|text| fields::range(text).ok()).collect();
    Ok(ServiceCidr { name: names.share(name), ranges })
}
