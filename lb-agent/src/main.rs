//! `lb-agent`: parse, log, run, exit code.

use std::{
    env,
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
    let (filter, problem) = parsed.log_filter(args);
    log(args.log_format, filter.filter());
    if let Some(problem) = problem {
        warn!("{problem}");
    }
    for ignored in &parsed.ignored {
        let config::file::Ignored { path, value, why } = ignored;
        warn!(field = path, value, reason = why, "a field of --config is not used");
    }
    if let Some(assumption) = parsed.assumption() {
        info!("{assumption}");
    }
    let configz = parsed.configz();
    app::run(args, app::Configured { file: parsed.file, configz })
}

/// Log lines go to stderr.
fn log(format: LogFormat, filter: EnvFilter) {
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
}
