//! `lb-agent`: parse, log, run, exit code.

use std::{
    env,
    ffi::OsStr,
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use lb_agent::{
    app, cli,
    config::{self, Command, LogFormat, ParseError, Parsed},
};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let result = match config::parse(env::args_os()) {
        Ok(parsed) => run(parsed),
        Err(ParseError::Flags(error)) => error.exit(),
        Err(ParseError::Config(error)) => Err(error),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lb-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(parsed: Parsed) -> anyhow::Result<()> {
    let args = match &parsed.cli.command {
        Command::Tool(tool) => return cli::run(tool),
        Command::Run(args) => args,
    };
    if args.print_config {
        return io::stdout().write_all(parsed.effective().as_bytes()).context("cannot write to stdout");
    }
    log(args.log_format);
    for ignored in &parsed.ignored {
        let config::file::Ignored { path, value, why } = ignored;
        warn!(field = path, value, reason = why, "a field of --config is not used");
    }
    if let Some(assumption) = parsed.assumption() {
        info!("{assumption}");
    }
    app::run(args, parsed.file)
}

/// What is logged without RUST_LOG. The client's own lines repeat what the agent says once per outage, for every request and
/// with whole response bodies.
const DEFAULT_FILTER: &str = "info,kube_client=off,kube_runtime=off";

/// Log lines go to stderr; RUST_LOG says which.
fn log(format: LogFormat) {
    let (filter, problem) = filter(env::var_os(EnvFilter::DEFAULT_ENV).as_deref());
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
    if let Some(problem) = problem {
        warn!("{problem}");
    }
}

/// The filter that RUST_LOG asks for, and what is wrong with it.
fn filter(wanted: Option<&OsStr>) -> (EnvFilter, Option<String>) {
    let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) else {
        return (EnvFilter::new(DEFAULT_FILTER), None);
    };
    let parsed = match wanted.to_str() {
        Some(text) => EnvFilter::try_new(text).map_err(|error| error.to_string()),
        None => Err("it is not UTF-8".to_owned()),
    };
    match parsed {
        Ok(filter) => (filter, None),
        Err(reason) => {
            let wanted = wanted.display();
            let problem = format!("RUST_LOG={wanted} is not used: {reason}; logging as {DEFAULT_FILTER}");
            (EnvFilter::new(DEFAULT_FILTER), Some(problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    #[test]
    fn a_filter_that_cannot_be_used_is_named_and_the_default_is_used() {
        for wanted in [OsStr::new("lb_agent=loud"), OsStr::from_bytes(b"debug\xff")] {
            let (filter, problem) = filter(Some(wanted));
            assert_eq!(filter.to_string(), EnvFilter::new(DEFAULT_FILTER).to_string());
            let problem = problem.unwrap();
            let named = format!("RUST_LOG={} is not used: ", wanted.display());
            assert!(problem.starts_with(&named) && problem.ends_with(DEFAULT_FILTER), "{problem}");
        }
        for wanted in [None, Some(OsStr::new(""))] {
            let (filter, problem) = filter(wanted);
            assert_eq!(filter.to_string(), EnvFilter::new(DEFAULT_FILTER).to_string());
            assert_eq!(problem, None);
        }
        let (filter, problem) = filter(Some(OsStr::new("lb_agent=debug")));
        assert_eq!((filter.to_string(), problem), ("lb_agent=debug".to_owned(), None));
    }
}
