//! What the kernel counts and holds, read at a scrape: the programs' counters and the links that keep them attached.

use core::fmt::Error;
use std::{
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use tracing::debug;

use super::labels;
use crate::{
    datapath::PROGRAMS,
    maps::{counters, pin, sys},
};

/// Help of the only metric that is there with the programs alone.
pub(super) const ACTIONS_HELP: &str =
    "What the programs did, by reason: lb-agent status has a sentence on each.";

/// The pins of this agent.
#[derive(Debug)]
pub(super) struct Counters {
    pin_dir: PathBuf,
}

impl Counters {
    pub(super) fn new(pin_dir: &Path) -> Self {
        Self { pin_dir: pin_dir.to_owned() }
    }

    fn is_attached(&self, program: &str) -> bool {
        let link = sys::obj_get(&pin::links_dir(&self.pin_dir).join(program));
        link.and_then(|link| sys::link_info(link.as_fd()))
            .is_ok_and(|link| link.kind == sys::LINK_TYPE_CGROUP && link.cgroup != 0)
    }
}

impl Collector for Counters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let counts = counters::reasons(&self.pin_dir).unwrap_or_else(|error| {
            debug!(error = %format!("{error:#}"), "the counters of the programs are not shown");
            None
        });
        if let Some(counts) = counts {
            let kind = MetricType::Counter;
            let mut family = encoder.encode_descriptor("datapath_actions", ACTIONS_HELP, None, kind)?;
            for (reason, count) in counts {
                let labels = labels("reason", reason.name());
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Whether a program is attached to a cgroup by a pinned link: 1 or 0";
        let mut family = encoder.encode_descriptor("programs_attached", help, None, MetricType::Gauge)?;
        for program in PROGRAMS {
            let labels = labels("hook", program.name);
            let is_attached = u32::from(self.is_attached(program.name));
            ConstGauge::new(is_attached).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
