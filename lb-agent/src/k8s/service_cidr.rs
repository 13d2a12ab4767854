//! ServiceCIDR -> [`model::ServiceCidr`](crate::model::ServiceCidr). Pure; what cannot be used comes back as faults of the
//! result.

use k8s_openapi::api::networking::v1 as api;

use super::Refused;
use super::fields::{self, Faults};
use crate::model::{Names, ServiceCidr};

/// Reduces a ServiceCIDR to its ranges. Whether it is ready does not matter: one that is being deleted still has
/// addresses in use.
pub fn service_cidr(object: &api::ServiceCIDR, names: &mut Names) -> Result<ServiceCidr, Refused> {
    let name = object.metadata.name.as_deref().filter(|name| !name.is_empty()).ok_or(Refused::NoName)?;
    let given = object.spec.as_ref().and_then(|spec| spec.cidrs.as_deref()).unwrap_or_default();
    let mut faults = Faults::default();
    let ranges = fields::ranges(given, "spec.cidrs", &mut faults);
    Ok(ServiceCidr { name: names.share(name), ranges, faults: faults.finish(|| "spec.cidrs".to_owned()) })
}
