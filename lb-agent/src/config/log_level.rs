//! `--log-level`: what is logged, as filter directives; RUST_LOG, and `logging.verbosity` of the file, say the same.

use core::{fmt, str::FromStr};
use std::{env, ffi::OsStr};

use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// What is logged where nobody says anything. The client's own lines repeat what the agent says once per outage, for every
/// request and with whole response bodies.
pub const DEFAULT_FILTER: &str = "info,kube_client=off,kube_runtime=off";
const DEBUG_FILTER: &str = "debug,kube_client=off,kube_runtime=off";
const TRACE_FILTER: &str = "trace,kube_client=off,kube_runtime=off";

/// The lowest `logging.verbosity` of each filter. In Kubernetes 0 to 3 are for operators, 4 is "debug", 5 "trace"
/// (`contributors/devel/sig-instrumentation/logging.md` of kubernetes/community).
const BY_VERBOSITY: [(u32, &str); 3] = [(5, TRACE_FILTER), (4, DEBUG_FILTER), (0, DEFAULT_FILTER)];

/// Filter directives that can be used, as they were written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogFilter(String);

/// Why a text is no filter.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotAFilter {
    /// The library says so.
    #[error(
        "not a filter: {0}; write a level (error, warn, info, debug, trace, off), or target=level, separated by commas"
    )]
    Directive(String),
    /// It would be taken for the name of a target, and nothing else be logged.
    #[error(
        "{0:?} is no level: expected error, warn, info, debug, trace or off; for a target, write {0}=debug"
    )]
    NoLevel(String),
}

impl LogFilter {
    /// What the library makes of it.
    pub fn filter(&self) -> EnvFilter {
        EnvFilter::new(&self.0)
    }
}

impl FromStr for LogFilter {
    type Err = NotAFilter;

    fn from_str(text: &str) -> Result<Self, NotAFilter> {
        let text = if text.trim().is_empty() { DEFAULT_FILTER } else { text };
        EnvFilter::try_new(text).map_err(|error| NotAFilter::Directive(error.to_string()))?;
        // A span, in brackets, may stand alone.
        if !text.contains('[') {
            let words = text.split(',').map(str::trim).filter(|word| !word.is_empty() && !word.contains('='));
            let mut targets = words.filter(|word| word.parse::<LevelFilter>().is_err());
            if let Some(word) = targets.next() {
                return Err(NotAFilter::NoLevel(word.to_owned()));
            }
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The filter that RUST_LOG asks for, if it asks for any.
///
/// # Errors
/// What is wrong with it, for people. Whatever RUST_LOG takes by itself is taken.
pub fn rust_log() -> Option<Result<LogFilter, String>> {
    read(env::var_os(EnvFilter::DEFAULT_ENV).as_deref())
}

fn read(wanted: Option<&OsStr>) -> Option<Result<LogFilter, String>> {
    let wanted = wanted.filter(|wanted| !wanted.is_empty())?;
    let parsed = match wanted.to_str() {
        Some(text) => {
            EnvFilter::try_new(text).map(|_| LogFilter(text.to_owned())).map_err(|error| error.to_string())
        }
        None => Err("it is not UTF-8".to_owned()),
    };
    Some(parsed.map_err(|reason| format!("RUST_LOG={} is not used: {reason}", wanted.display())))
}

/// The filter for a `logging.verbosity`.
pub(super) fn of_verbosity(verbosity: u32) -> &'static str {
    BY_VERBOSITY
        .into_iter()
        .find(|(lowest, _)| verbosity >= *lowest)
        .map_or(DEFAULT_FILTER, |(_, filter)| filter)
}

/// The lowest `logging.verbosity` for a filter, if there is one.
pub(super) fn verbosity_of(filter: &str) -> Option<u32> {
    BY_VERBOSITY.into_iter().find(|(_, of)| *of == filter).map(|(lowest, _)| lowest)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("info")]
    #[case("DEBUG")]
    #[case("off")]
    #[case("warn,lb_agent::k8s=debug")]
    #[case("info,lb_agent[span{field=1}]=trace")]
    #[case(DEFAULT_FILTER)]
    fn what_rust_log_takes_is_taken(#[case] text: &str) {
        let filter: LogFilter = text.parse().unwrap();
        assert_eq!(filter.to_string(), text);
        assert_eq!(" ".parse::<LogFilter>().unwrap().to_string(), DEFAULT_FILTER, "nothing is the default");
        assert_eq!(filter.filter().to_string(), EnvFilter::new(text).to_string());
    }

    /// A word that is no level would switch everything off.
    #[rstest]
    #[case("loud", "\"loud\" is no level: expected error, warn, info, ")]
    #[case("info,hyper", "\"hyper\" is no level: ")]
    #[case("lb_agent=loud", "not a filter: error parsing level filter: ")]
    fn what_is_no_filter_is_one_clear_error(#[case] text: &str, #[case] wanted: &str) {
        let error = text.parse::<LogFilter>().unwrap_err().to_string();
        assert!(error.starts_with(wanted), "{error}");
    }

    #[test]
    fn a_rust_log_that_cannot_be_used_is_named() {
        for wanted in [OsStr::new("lb_agent=loud"), OsStr::from_bytes(b"debug\xff")] {
            let problem = read(Some(wanted)).unwrap().unwrap_err();
            assert!(
                problem.starts_with(&format!("RUST_LOG={} is not used: ", wanted.display())),
                "{problem}"
            );
        }
        assert_eq!(read(None), None);
        assert_eq!(read(Some(OsStr::new(""))), None);
        assert_eq!(read(Some(OsStr::new("hyper"))), Some(Ok(LogFilter("hyper".to_owned()))), "as ever");
    }

    #[test]
    fn every_verbosity_has_a_filter_and_every_such_filter_a_verbosity() {
        let filters: Vec<&str> = [0, 1, 2, 3, 4, 5, 10, u32::MAX].map(of_verbosity).into();
        let (info, debug, trace) = (DEFAULT_FILTER, DEBUG_FILTER, TRACE_FILTER);
        assert_eq!(filters, [info, info, info, info, debug, trace, trace, trace]);
        for filter in [info, debug, trace] {
            assert_eq!(verbosity_of(filter).map(of_verbosity), Some(filter));
            assert!(filter.parse::<LogFilter>().is_ok());
        }
        assert_eq!(verbosity_of("warn"), None);
    }
}
