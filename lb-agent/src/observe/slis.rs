//! `/metrics/slis`: the results of health checks, as components of Kubernetes show them
//! (`k8s.io/component-base/metrics/prometheus/slis`).
//!
//! | name | type | is |
//! |---|---|---|
//! | `maps` | `livez`, `healthz` | whether the maps follow (HZ-3) |
//! | `node` | `healthz` | whether load balancers should use this node (HZ-4) |
//! | `programmed` | `readyz` | whether everything that is listed was programmed once |

use core::fmt;
use std::sync::{Mutex, PoisonError};

use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, family::Family as Labelled, gauge::Gauge},
    registry::Registry,
};

use super::health::Judgement;

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// A path that probes ask; the label `type`.
type Kind = &'static str;

/// Every kind with its checks.
const CHECKS: [(Kind, &[&str]); 3] =
    [("livez", &["maps"]), ("healthz", &["maps", "node"]), ("readyz", &["programmed"])];

/// See the module.
pub(super) struct Slis {
    registry: Mutex<Registry>,
    now: Labelled<Labels<2>, Gauge>,
    total: Labelled<Labels<3>, Counter>,
}

impl Slis {
    /// Nobody has asked yet.
    pub(super) fn new() -> Self {
        let mut registry = Registry::default();
        let slis = Self { now: Labelled::default(), total: Labelled::default(), registry: Mutex::default() };
        let (now, total) = (slis.now.clone(), slis.total.clone());
        registry.register(
            "kubernetes_healthcheck",
            "Result of a health check at this moment: 1 for success",
            now,
        );
        registry.register("kubernetes_healthchecks", "Results of health checks that probes asked for", total);
        for (kind, names) in CHECKS {
            for (name, status) in names.iter().flat_map(|name| [(*name, "success"), (*name, "error")]) {
                drop(slis.total.get_or_create(&[("name", name), ("type", kind), ("status", status)]));
            }
        }
        Self { registry: Mutex::new(registry), ..slis }
    }

    /// A probe has asked for `kind`.
    pub(super) fn asked(&self, kind: Kind, judgement: &Judgement) {
        for (name, is_ok) in results(kind, judgement) {
            let status = if is_ok { "success" } else { "error" };
            self.total.get_or_create(&[("name", name), ("type", kind), ("status", status)]).inc();
        }
    }

    /// The text, where all is as in `judgement`.
    ///
    /// # Errors
    /// None in practice: a string can always be written to.
    pub(super) fn text(&self, judgement: &Judgement) -> Result<String, fmt::Error> {
        for (kind, _) in CHECKS {
            for (name, is_ok) in results(kind, judgement) {
                self.now.get_or_create(&[("name", name), ("type", kind)]).set(is_ok.into());
            }
        }
        let mut text = String::new();
        text::encode(&mut text, &self.registry.lock().unwrap_or_else(PoisonError::into_inner))?;
        Ok(text)
    }
}

/// The checks of a kind, with their results.
fn results(kind: Kind, judgement: &Judgement) -> impl Iterator<Item = (&'static str, bool)> {
    let names = CHECKS.into_iter().find(|(of, _)| *of == kind).map_or(&[][..], |(_, names)| names);
    let (is_live, is_eligible, is_ready) =
        (judgement.is_live(), judgement.is_node_eligible, judgement.is_ready);
    names.iter().map(move |name| {
        let is_ok = match *name {
            "maps" => is_live,
            "node" => is_eligible,
            _ => is_ready,
        };
        (*name, is_ok)
    })
}
