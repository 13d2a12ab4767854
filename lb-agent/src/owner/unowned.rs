//! What cannot be used of objects that belong to no Service, named once for each object and cause.

use tracing::{error, warn};

use super::Owner;
use crate::model::Unowned;

impl Owner {
    /// Names what is new of it.
    pub(super) fn tell_of_unowned(&mut self) {
        let Some(news) = self.state.take_unowned_news() else { return };
        for (object, fault) in news {
            let (field, reason) = (&fault.field, &fault.reason);
            if matches!(object, Unowned::Slice(_)) {
                // ES-2: kube-proxy logs it as an error too.
                error!(%object, field, %reason, "an object is not used");
            } else {
                warn!(%object, field, %reason, "cannot use a field");
            }
            self.outputs.unowned(&object, &fault);
        }
        self.outputs.has_news();
    }

    /// The same for `status`.
    pub(super) fn unowned(&self) -> impl Iterator<Item = String> {
        let faults = self.state.unowned_faults();
        faults.map(|(object, fault)| format!("{object}: {}: {}", fault.field, fault.reason))
    }
}
