//! `cargo xtask lint` beside the tests.

use std::{
    fs::File,
    io,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use xtask::paths;

use crate::command;

/// A lint that goes on: whoever waits for a processor has it first.
#[derive(Debug)]
pub(super) struct Lint {
    child: Child,
    log: PathBuf,
}

impl Lint {
    /// Begins, unless it has begun.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn start(slot: &mut Option<Self>) -> Result<&mut Self> {
        if slot.is_none() {
            let log = paths::target_dir().join("lint.log");
            let file = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
            let errors = file.try_clone().context("cannot share a file")?;
            let mut cargo = command::cargo("run");
            cargo.args(["--quiet", "--package", "xtask", "--", "lint"]);
            let mut command = gently(&cargo);
            command::say(&command);
            let child = command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn();
            *slot = Some(Self { child: child.context("cannot start lint")?, log });
        }
        slot.as_mut().context("lint has begun")
    }

    /// Waits, and shows what it has printed.
    ///
    /// # Errors
    /// When it found something.
    pub(super) fn finish(&mut self) -> Result<()> {
        let status = self.child.wait().context("cannot wait for lint")?;
        println!("\n+ cargo xtask lint");
        let mut log = File::open(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        io::copy(&mut log, &mut io::stdout()).context("cannot show what lint printed")?;
        ensure!(status.success(), "lint failed ({status})");
        Ok(())
    }
}

/// The same command at the lowest priority.
fn gently(command: &Command) -> Command {
    let mut nice = command::program("nice");
    nice.args(["-n", "19"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => nice.env(name, value),
            None => nice.env_remove(name),
        };
    }
    nice
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gentle_command_is_the_same_otherwise() {
        let mut command = Command::new("cargo");
        command.arg("run").env("A", "1").env_remove("B");
        let gentle = gently(&command);
        assert_eq!(command::describe(&gentle), "nice -n 19 cargo run");
        let set: Vec<_> = gentle.get_envs().filter(|(name, _)| *name != "PATH").collect();
        assert_eq!(set, [("A".as_ref(), Some("1".as_ref())), ("B".as_ref(), None)]);
    }
}
