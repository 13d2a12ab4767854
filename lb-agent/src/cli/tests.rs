//! The command line as people see it.

use clap::{Command, CommandFactory as _};

use crate::config::Cli;

/// Every command but `run` with its line of help and its arguments: a change of it is a change for users.
#[test]
fn the_commands_are_as_documented() {
    let mut command = Cli::command();
    command.build();
    let mut lines = Vec::new();
    for inner in command.get_subcommands().filter(|inner| !["help", "run"].contains(&inner.get_name())) {
        outline(inner, "", &mut lines);
    }
    let expected = include_str!("outline.txt");
    assert_eq!(lines.join("\n") + "\n", expected, "if this is meant, write it into src/cli/outline.txt");
}

fn outline(command: &Command, path: &str, lines: &mut Vec<String>) {
    let path = format!("{path}{}", command.get_name());
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let args: Vec<String> = command
        .get_arguments()
        .filter(|arg| !["help", "version"].contains(&arg.get_id().as_str()))
        .map(|arg| match (arg.get_long(), arg.get_env()) {
            (None, _) => format!("<{}>", arg.get_value_names().unwrap_or_default().join(" ")),
            (Some(long), None) => format!("--{long}"),
            (Some(long), Some(env)) => format!("--{long}|${}", env.display()),
        })
        .collect();
    lines.push(format!("{path}: {about}"));
    if !args.is_empty() {
        lines.push(format!("    {}", args.join(" ")));
    }
    for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
        outline(inner, &format!("{path} "), lines);
    }
}
