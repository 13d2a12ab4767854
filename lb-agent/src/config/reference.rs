//! `docs/configuration.md`: the reference of flags, variables and fields, made from their definitions.

use core::fmt::Write as _;
use std::{env, fs, path::Path};

use clap::{Arg, Command, CommandFactory as _};

use super::{
    Cli,
    file::fields::{FIELDS, Kind, Meaning, Mode, VERBOSITY},
};

const INTRODUCTION: &str = "\
# Configuration of `lb-agent run`

Made from the definitions of the flags by the test `the_reference_page_is_up_to_date`; `LB_BLESS=1` rewrites it.

A value comes from the flag, else from the environment variable, else from the file that `--config` names, else it is the
default. An empty variable is as good as none, but for `LB_HEALTHZ_ADDRESS` and `LB_METRICS_ADDRESS`, where it means nowhere.
`lb-agent run --print-config` shows what is in force and where each value comes from, and ends. Durations are written as Go writes
them: `30s`, `1m30s`, `100ms`, `0`.

## Flags

";

const FILE: &str = "
## The file

`--config` reads kube-proxy's own `KubeProxyConfiguration` of `kubeproxy.config.k8s.io/v1alpha1`; other versions and kinds
are refused. A value of a wrong type or one that its flag refuses is one error with line and column, and nothing starts. A field
that v1alpha1 does not have is one warning, and so is one that means nothing here, unless it is empty, zero or false. The file is
read once: kube-proxy ends when it changes, this agent goes on and says once that a restart is needed.

| field | holds | here |
|---|---|---|
";

/// `log_level::of_verbosity` for people.
const BY_VERBOSITY: &str = "0 to 3 are `info`, 4 is `debug`, 5 and more are `trace`";

const FLAGS_OF_KUBE_PROXY: &str = "
## Flags of kube-proxy

Its other flags are fields of the file above, under the names of the API.

| kube-proxy | here |
|---|---|
| `--config` | `--config` |
| `--write-config-to` | `--print-config` |
| `--cleanup` | `lb-agent cleanup` removes what lb-agent made; `lb-agent cleanup --kube-proxy` what a kube-proxy left in iptables, nftables, ip sets and of its interface, and nothing of others. Virtual servers of IPVS are named and stay |
| `--init-only` | not yet in this version: `lb-agent init`, which loads and attaches with all rights so that the agent itself runs with fewer; it comes with the installation in a cluster |
| `--proxy-mode` | nothing: there is one mode, of which `--socket-lb` switches off parts. Not yet in this version: `--nodeport-path`, by which hook packets of clients outside the node are translated; it comes with the packet path |
| `--master` | `--api-server` |
| `-v`, `--vmodule` | `--log-level` |
| `--logging-format` | `--log-format` |
";

fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    let mut command = Cli::command();
    command.build();
    let run = command.find_subcommand("run").unwrap();
    page.push_str("| flag | variable | default | |\n|---|---|---|---|\n");
    for arg in run.get_arguments().filter(|arg| !["help", "version"].contains(&arg.get_id().as_str())) {
        writeln!(page, "{}", flag_row(arg)).unwrap();
    }
    page.push_str(FILE);
    for field in FIELDS {
        let meaning = match field.meaning {
            Meaning::Flag(flag) if field.path == VERBOSITY => format!("`--{flag}`: {BY_VERBOSITY}"),
            Meaning::Flag(flag) => format!("`--{flag}`"),
            Meaning::FlagIn(flag, modes) => format!("`--{flag}`, in mode {}", names(modes)),
            Meaning::Mode => {
                "`iptables`, `ipvs` and none make `all` the default of `--nodeport-addresses`; none, which a kube-proxy on \
                 Linux takes for `iptables`, is said in one line of the log (NP-3)"
                    .to_owned()
            }
            Meaning::Nothing(why) => format!("not used: {why}"),
        };
        writeln!(page, "| `{}` | {} | {meaning} |", field.path, holds(field.kind)).unwrap();
    }
    page.push_str(FLAGS_OF_KUBE_PROXY);
    page
}

fn flag_row(arg: &Arg) -> String {
    let flag = arg.get_long().unwrap();
    let variable = arg.get_env().map_or_else(String::new, |name| format!("`{}`", name.display()));
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let default = defaults.join(",");
    let default = if default.is_empty() { String::new() } else { format!("`{default}`") };
    let help = arg.get_long_help().or(arg.get_help()).unwrap().to_string();
    let mut help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let choices: Vec<String> =
        arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
    if !help.ends_with('.') {
        help.push('.');
    }
    if !choices.is_empty() && !arg.is_hide_possible_values_set() && choices != ["`true`", "`false`"] {
        write!(help, " One of {}.", choices.join(", ")).unwrap();
    }
    format!("| `--{flag}` | {variable} | {default} | {} |", help.replace('|', "\\|"))
}

const fn holds(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "text",
        Kind::Bool => "true, false",
        Kind::Number => "number",
        Kind::Duration | Kind::DurationOrZero => "duration",
        Kind::Texts => "list",
        Kind::Map => "map",
    }
}

fn names(modes: &[Mode]) -> String {
    let name = |mode: &Mode| match mode {
        Mode::Unset => "none",
        Mode::Iptables => "`iptables`",
        Mode::Ipvs => "`ipvs`",
        Mode::Nftables => "`nftables`",
    };
    modes.iter().map(name).collect::<Vec<_>>().join(", ")
}

#[test]
fn the_reference_page_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let page = page();
    if env::var_os("LB_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &page).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == page, "docs/configuration.md is stale: run this test with LB_BLESS=1");
}

/// What comes later is written down where an operator of kube-proxy looks for it.
#[test]
fn what_kube_proxy_has_and_this_agent_does_not_yet_have_is_named() {
    let page = page();
    for flag in ["`--init-only`", "`lb-agent init`", "`--nodeport-path`"] {
        let row = page.lines().find(|line| line.starts_with('|') && line.contains(flag));
        assert!(
            row.is_some_and(|row| row.to_lowercase().contains("not yet in this version")),
            "{flag}: {row:?}"
        );
    }
    for may_be_empty in super::parse::MAY_BE_EMPTY {
        assert!(page.contains(&format!("`LB_{}`", may_be_empty.to_uppercase())), "{may_be_empty}");
    }
}

/// Every flag and variable is named once, and every field leads to a flag that there is.
#[test]
fn flags_variables_and_fields_fit_together() {
    let command: Command = Cli::command();
    let run = command.find_subcommand("run").unwrap();
    let flags: Vec<&str> = run.get_arguments().filter_map(Arg::get_long).collect();
    for field in FIELDS {
        assert!(field.flag().is_none_or(|flag| flags.contains(&flag)), "{}", field.path);
    }
    for arg in
        run.get_arguments().filter(|arg| !["print_config", "node_name"].contains(&arg.get_id().as_str()))
    {
        let flag = arg.get_long().unwrap();
        let variable = format!("LB_{}", flag.replace('-', "_").to_uppercase());
        assert_eq!(arg.get_env().map(|name| name.to_string_lossy().into_owned()), Some(variable), "{flag}");
    }
}
