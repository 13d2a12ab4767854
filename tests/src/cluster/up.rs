//! Starting the process that holds a cluster, and ending it.

use std::env;
use std::fs::{self, File};
use std::io::{Read as _, Write as _, stdout};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::hold::Stop;
use super::image;
use super::layout::Layout;
use super::network::MOST_NODES;
use super::programs::Programs;
use super::proxy::Proxy;
use crate::control_plane::{Program, find};
use crate::{names, wait_until};

/// How long a cluster may take to end: every process in it is killed and waited for.
const END_LIMIT: Duration = Duration::from_secs(90);

/// How often the starting cluster is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Builds what is missing, starts a cluster in the background and returns when it is up.
///
/// # Errors
/// One is up already, something cannot be built, or the cluster does not start; then it has been ended.
pub fn up(layout: &Layout, proxy: Proxy, nodes: u8) -> Result<()> {
    ensure!((1..=MOST_NODES).contains(&nodes), "--nodes is a number from 1 to {MOST_NODES}");
    let programs = Programs::ensure(layout)?;
    // Before anything runs, because they may have to be built.
    for program in Program::ALL {
        find(program)?;
    }
    proxy.command("any", &layout.kubeconfig())?;
    let stop = Stop::on_signals()?;
    let lock = layout.lock()?;
    remove_last(layout)?;
    println!("making images");
    image::build(layout, &programs)?;
    drop(lock);
    let mut holder = start_holder(layout, proxy, nodes)?;
    let started = wait_until_up(layout, &mut holder, &stop);
    if started.is_err() {
        end(&mut holder)?;
    }
    started?;
    println!("KUBECONFIG={} {} get pods -A", layout.host_kubeconfig().display(), programs.kubectl.display());
    Ok(())
}

/// Files of the cluster before; its logs were there to be read until now.
fn remove_last(layout: &Layout) -> Result<()> {
    let run = layout.run();
    if run.exists() {
        fs::remove_dir_all(&run).with_context(|| format!("cannot remove {}", run.display()))?;
    }
    fs::create_dir_all(&run).with_context(|| format!("cannot make {}", run.display()))
}

fn start_holder(layout: &Layout, proxy: Proxy, nodes: u8) -> Result<Child> {
    let output =
        File::create(layout.log()).with_context(|| format!("cannot write {}", layout.log().display()))?;
    let program = env::current_exe().context("cannot find the running executable")?;
    let mut command = Command::new(program);
    command
        .arg("--dir")
        .arg(layout.folder())
        .args(["hold", "--proxy", &proxy.to_string(), "--nodes", &nodes.to_string()])
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        // What the terminal sends on Ctrl-C is for this process, which ends the other in order.
        .process_group(0);
    command.spawn().context("cannot start the process that holds the cluster")
}

/// Shows what the holder says until the cluster is up.
fn wait_until_up(layout: &Layout, holder: &mut Child, stop: &Stop) -> Result<()> {
    let mut log = File::open(layout.log()).context("cannot read the log of the cluster")?;
    loop {
        let is_up = layout.state()?.is_some();
        let ended = holder.try_wait().context("cannot wait for the process that holds the cluster")?;
        let mut news = Vec::new();
        log.read_to_end(&mut news)?;
        stdout().write_all(&news)?;
        if let Some(status) = ended {
            bail!("the cluster did not start ({status}); logs are in {}", layout.run().display());
        }
        if stop.is_wanted() {
            bail!("interrupted");
        }
        if is_up {
            return Ok(());
        }
        sleep(LOOK);
    }
}

/// Ends a holder that is ours.
fn end(holder: &mut Child) -> Result<()> {
    if holder.try_wait()?.is_none() {
        terminate(Pid::from_raw(holder.id().cast_signed()))?;
        wait_until("the cluster to end", END_LIMIT, || !matches!(holder.try_wait(), Ok(None)))?;
    }
    // What it could not remove itself, if it was killed.
    names::sweep();
    Ok(())
}

/// Ends the cluster, if one is up. Programs and logs stay.
///
/// # Errors
/// It does not end.
pub fn down(layout: &Layout) -> Result<()> {
    if layout.try_lock()?.is_some() {
        names::sweep();
        println!("no cluster is up in {}", layout.folder().display());
        return Ok(());
    }
    let holder = layout.holder().context("a cluster is just starting; try again")?;
    terminate(Pid::from_raw(holder))?;
    wait_until("the cluster to end", END_LIMIT, || layout.try_lock().is_ok_and(|lock| lock.is_some()))
        .with_context(|| format!("process {holder} holds it; `kill -9 {holder}` ends it the hard way"))?;
    names::sweep();
    println!("ended; logs are in {}", layout.run().display());
    Ok(())
}

fn terminate(pid: Pid) -> Result<()> {
    match kill(pid, Signal::SIGTERM) {
        // It has ended by itself.
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("cannot end process {pid}")),
    }
}
