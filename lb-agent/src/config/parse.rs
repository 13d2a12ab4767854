//! Flag over environment over file over default, with one definition of each flag.
//!
//! The file is turned into values of flags, which take the place of the defaults before the command line is read a
//! second time.

use std::ffi::{OsStr, OsString};

use anyhow::Context as _;
use clap::{
    ArgMatches, Command as Clap, CommandFactory as _, FromArgMatches as _, builder::Resettable,
    parser::ValueSource,
};

use super::{
    Cli, Command, LogFilter, RunArgs,
    file::{self, FileConfig, Given, Ignored},
    log_level,
};

/// The subcommand that takes a file.
const RUN: &str = "run";

/// Flags of which an empty variable says something: nowhere.
pub(super) const MAY_BE_EMPTY: [&str; 2] = ["healthz_address", "metrics_address"];

/// A command line that was read.
#[derive(Debug)]
pub struct Parsed {
    /// What to do.
    pub cli: Cli,
    /// What of the file is not used.
    pub ignored: Vec<Ignored>,
    /// The text of the file, to tell later whether it has changed.
    pub file: Option<String>,
    matches: ArgMatches,
    given: Vec<Given>,
    assumes_mode: bool,
}

/// Why a command line cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// Flags or variables; it knows itself how to be shown. Also asking for help.
    #[error(transparent)]
    Flags(#[from] clap::Error),
    /// The file, or flags that contradict each other.
    #[error(transparent)]
    Config(#[from] anyhow::Error),
}

/// Where a value comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    /// The command line.
    Flag,
    /// The environment.
    Environment,
    /// `--config`
    File,
    /// Nobody said anything.
    Default,
}

impl Origin {
    /// The word for it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Flag => "flag",
            Self::Environment => "environment",
            Self::File => "file",
            Self::Default => "default",
        }
    }
}

/// Reads a command line, the environment and the file that they name.
///
/// # Errors
/// [`ParseError`], with the place in the file where it is the file's fault.
pub fn parse<A: Into<OsString> + Clone>(args: impl IntoIterator<Item = A>) -> Result<Parsed, ParseError> {
    let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    let first = read(command(), &args)?;
    let Command::Run(run) = &first.0.command else { return Ok(parsed(first, None, FileConfig::default())) };
    let Some(path) = run.config.as_ref() else {
        run.check()?;
        return Ok(parsed(first, None, FileConfig::default()));
    };
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read --config {}", path.display()))?;
    let config = file::read(&text).map_err(|fault| anyhow::anyhow!("{}:{fault}", path.display()))?;
    let mut command = command();
    for given in &config.given {
        check(given).map_err(|fault| anyhow::anyhow!("{}:{fault}", path.display()))?;
        let (id, text) = (given.flag.replace('-', "_"), given.text.clone());
        command = command.mut_subcommand(RUN, |run| run.mut_arg(id, |arg| arg.default_value(text)));
    }
    let second = read(command, &args)?;
    if let Command::Run(run) = &second.0.command {
        run.check().with_context(|| format!("with {}", path.display()))?;
    }
    Ok(parsed(second, Some(text), config))
}

fn parsed((cli, matches): (Cli, ArgMatches), file: Option<String>, config: FileConfig) -> Parsed {
    let FileConfig { given, ignored, assumes_mode } = config;
    Parsed { cli, ignored, file, matches, given, assumes_mode }
}

/// The definition, without variables that are empty: a template leaves them so where nothing is given.
fn command() -> Clap {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    without(Cli::command(), &is_empty)
}

/// The same without the variables that `is_empty` names.
fn without(command: Clap, is_empty: &dyn Fn(&OsStr) -> bool) -> Clap {
    let command = command.mut_args(|arg| {
        let counts = MAY_BE_EMPTY.contains(&arg.get_id().as_str());
        if !counts && arg.get_env().is_some_and(is_empty) { arg.env(Resettable::Reset) } else { arg }
    });
    command.mut_subcommands(|below| without(below, is_empty))
}

fn read(mut command: Clap, args: &[OsString]) -> Result<(Cli, ArgMatches), clap::Error> {
    let matches = command.try_get_matches_from_mut(args)?;
    let cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
    Ok((cli, matches))
}

/// Whether the flag takes the value, for an error that names the place in the file.
fn check(given: &Given) -> Result<(), file::Fault> {
    let args = ["lb-agent".to_owned(), RUN.to_owned(), format!("--{}={}", given.flag, given.text)];
    command().try_get_matches_from(args).map(drop).map_err(|error| {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        given.place.fault(&given.path, first)
    })
}

impl Parsed {
    /// What a person should know of a default that the file has chosen by saying nothing; nothing where a flag says it.
    pub fn assumption(&self) -> Option<&'static str> {
        let is_in_force = || {
            let mut values = self.values().into_iter();
            values.any(|(flag, _, origin)| flag == "nodeport-addresses" && origin == Origin::File)
        };
        (self.assumes_mode && is_in_force()).then_some(
            "--config says neither mode nor nodePortAddresses: NodePorts are served on all addresses, as by \
             kube-proxy's iptables mode; `nodePortAddresses: [primary]` serves the primary ones only",
        )
    }

    /// What is logged by this `run`, and what is wrong with a RUST_LOG that would have said it.
    pub fn log_filter(&self, run: &RunArgs) -> (LogFilter, Option<String>) {
        match self.rust_log() {
            Some(Ok(filter)) => (filter, None),
            Some(Err(problem)) => {
                (run.log_level.clone(), Some(format!("{problem}; logging as {}", run.log_level)))
            }
            None => (run.log_level.clone(), None),
        }
    }

    /// RUST_LOG, unless the flag or its variable says it.
    fn rust_log(&self) -> Option<Result<LogFilter, String>> {
        let source = self.matches.subcommand().and_then(|(_, run)| run.value_source("log_level"));
        let is_said = matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable));
        (!is_said).then(log_level::rust_log).flatten()
    }

    /// The flags of `run`, each with its texts and where they come from, as far as they have any.
    pub(super) fn values(&self) -> Vec<(String, String, Origin)> {
        let Some((RUN, matches)) = self.matches.subcommand() else { return Vec::new() };
        let command = Cli::command();
        let run = command.find_subcommand(RUN);
        let flags = run.into_iter().flat_map(Clap::get_arguments);
        let named = flags.filter_map(|arg| arg.get_long().map(|long| (arg.get_id().as_str(), long)));
        named
            .filter(|(_, long)| !["config", "print-config", "help", "version"].contains(long))
            .filter_map(|(id, long)| {
                if id == "log_level"
                    && let Some(Ok(filter)) = self.rust_log()
                {
                    return Some((long.to_owned(), filter.to_string(), Origin::Environment));
                }
                let source = matches.value_source(id)?;
                let texts = matches.get_raw(id)?.map(|text| text.to_string_lossy().into_owned());
                let origin = match source {
                    ValueSource::CommandLine => Origin::Flag,
                    ValueSource::EnvVariable => Origin::Environment,
                    _ if self.given.iter().any(|given| given.flag == long) => Origin::File,
                    _ => Origin::Default,
                };
                Some((long.to_owned(), texts.collect::<Vec<_>>().join(","), origin))
            })
            .collect()
    }
}
