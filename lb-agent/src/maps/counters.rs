//! The programs' counters, read from their pin.

use std::path::Path;

use anyhow::Context as _;
use aya::maps::{Map, PerCpuArray};
use lb_common::abi::{Reason, maps};

use super::pin::{SPECS, open_spec};

/// The counters of all CPUs, summed up; nothing if they are not pinned.
///
/// # Errors
/// The pin is something else, or the kernel does not let it be read.
pub fn reasons(pin_dir: &Path) -> anyhow::Result<Option<Vec<(Reason, u64)>>> {
    let spec =
        SPECS.iter().find(|spec| spec.name == maps::REASONS).context("lb_reasons has a specification")?;
    let Some(map) = open_spec(pin_dir, spec)? else { return Ok(None) };
    let counters = PerCpuArray::<_, u64>::try_from(Map::PerCpuArray(map))?;
    let count = |reason: Reason| {
        let values = counters.get(&(reason as u32), 0).context("cannot read lb_reasons")?;
        Ok((reason, values.iter().fold(0_u64, |sum, count| sum.wrapping_add(*count))))
    };
    Reason::ALL.into_iter().map(count).collect::<anyhow::Result<_>>().map(Some)
}
