//! This process as the kernel sees it, under the names that every Prometheus client uses.

use core::fmt::Error;
use std::fs;

use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

/// Reads `/proc/self` at a scrape.
#[derive(Debug)]
pub(super) struct Process;

/// What `/proc/<pid>/stat` says (proc_pid_stat(5)), in its own units.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stat {
    /// User and system time, clock ticks.
    cpu_ticks: u64,
    /// Clock ticks after boot.
    start_ticks: u64,
    /// Bytes.
    virtual_bytes: u64,
    /// Pages.
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name in parentheses and may itself contain any character.
        let (_, after_name) = text.rsplit_once(')')?;
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        // Field 3 of the manual is the first one here.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

/// Seconds since 1970 at which the machine was started (proc_stat(5)).
fn boot_s(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

fn system(name: SysconfVar) -> Option<u64> {
    sysconf(name).ok().flatten().and_then(|value| u64::try_from(value).ok()).filter(|value| *value != 0)
}

/// Exact below 2^53, which nothing here reaches.
#[expect(clippy::cast_precision_loss, reason = "clock ticks of a process stay far below 2^53")]
fn seconds(ticks: u64, per_second: u64) -> f64 {
    ticks as f64 / per_second as f64
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let gauge = |encoder: &mut DescriptorEncoder<'_>, name, help, unit, value: f64| {
            let unit = Some(&unit);
            let metric = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)
        };
        let stat = fs::read_to_string("/proc/self/stat").ok().and_then(|text| Stat::parse(&text));
        let (ticks, page) = (system(SysconfVar::CLK_TCK), system(SysconfVar::PAGE_SIZE));
        if let (Some(stat), Some(ticks), Some(page)) = (stat, ticks, page) {
            let (help, unit) = ("User and system CPU time of this process", Some(&Unit::Seconds));
            let cpu = encoder.encode_descriptor("process_cpu", help, unit, MetricType::Counter)?;
            ConstCounter::new(seconds(stat.cpu_ticks, ticks)).encode(cpu)?;
            let resident = seconds(stat.resident_pages * page, 1);
            gauge(
                &mut encoder,
                "process_resident_memory",
                "Resident memory of this process",
                Unit::Bytes,
                resident,
            )?;
            let virtual_bytes = seconds(stat.virtual_bytes, 1);
            gauge(
                &mut encoder,
                "process_virtual_memory",
                "Virtual memory of this process",
                Unit::Bytes,
                virtual_bytes,
            )?;
            if let Some(boot) = fs::read_to_string("/proc/stat").ok().and_then(|text| boot_s(&text)) {
                let start = seconds(boot, 1) + seconds(stat.start_ticks, ticks);
                let help = "Unix time at which this process was started";
                gauge(&mut encoder, "process_start_time", help, Unit::Seconds, start)?;
            }
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            let help = "File descriptors of this process";
            let metric = encoder.encode_descriptor("process_open_fds", help, None, MetricType::Gauge)?;
            ConstGauge::new(u32::try_from(open.count()).unwrap_or(u32::MAX)).encode(metric)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_be_called_anything() {
        let text = "7 (a) b (c) S 1 7 7 0 -1 4194304 10 0 0 0 100 20 300 4000 20 0 1 0 55 8192 3 18446744073709551615";
        let wanted = Stat { cpu_ticks: 120, start_ticks: 55, virtual_bytes: 8192, resident_pages: 3 };
        assert_eq!(Stat::parse(text), Some(wanted));
        assert_eq!(Stat::parse("7 (a"), None);
        assert_eq!(boot_s("cpu 1 2\nbtime 1700000000\nprocesses 3\n"), Some(1_700_000_000));
    }
}
