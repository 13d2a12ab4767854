//! Upstream's tests against the cluster that is up.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use xtask::paths::workspace_root;

use super::foreign;
use super::layout::{Layout, State};
use super::programs::Programs;
use super::proxy::Proxy;
use super::results::{Difference, Results};

/// What kube-proxy's tests came to.
const BASELINE: &str = "tests/cluster/baseline.tsv";

/// The tests of Services.
const FOCUS: &str = r"\[sig-network\]";

/// Those that need what a machine alone does not have (a cloud's load balancer, another network plugin, an Ingress controller, the
/// Internet, SCTP, more name servers), that break nodes, or that take long.
const SKIP: &str = r"LoadBalancers|NetworkPolicy|Netpol|Ingress|\[Slow\]|\[Disruptive\]|Internet connection|SCTP|DNS|IPerf2|KubeProxyNFAcct";

/// How often a run says how far it is.
const PROGRESS: Duration = Duration::from_secs(30);

/// Which tests run, and how.
#[derive(Args, Clone, Debug)]
pub struct Selection {
    /// Regular expression for names of tests; without it, and without --skip, all of the baseline must run
    #[arg(long, value_name = "REGEX")]
    focus: Option<String>,
    /// Regular expression for names that are left out
    #[arg(long, value_name = "REGEX")]
    skip: Option<String>,
    /// Tests at once
    #[arg(long, default_value_t = 4, value_name = "N")]
    procs: u8,
}

/// Runs the tests, writes `results/list.tsv` and prints what differs from the baseline.
///
/// # Errors
/// No cluster is up; with lb-agent, a node has a rule of a service proxy before or after; a test that passes with
/// kube-proxy does not.
pub fn run(layout: &Layout, selection: &Selection) -> Result<()> {
    let state = layout.state()?.context("no cluster is up: `cargo xtask cluster up` starts one")?;
    let programs = Programs::ensure(layout)?;
    if state.proxy == Proxy::LbAgent {
        foreign::expect_none(&state)?;
    }
    let folder = layout.results();
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let begin = Instant::now();
    let report = folder.join("report.json");
    // One of an earlier run must not be taken for this one's.
    drop(fs::remove_file(&report));
    ginkgo(layout, &state, selection, &programs, &report)?;
    let text = fs::read_to_string(&report).with_context(|| {
        format!("ginkgo ended without a report; what it said is in {}", folder.join("output.log").display())
    })?;
    let results = Results::from_report(&text)?;
    let list = folder.join("list.tsv");
    fs::write(&list, results.to_string()).with_context(|| format!("cannot write {}", list.display()))?;
    println!("{} in {} s with {}", results.summary(), begin.elapsed().as_secs(), state.proxy);
    if state.proxy == Proxy::LbAgent {
        foreign::expect_none(&state)?;
    }
    judge(&results, selection, &folder)
}

fn ginkgo(
    layout: &Layout,
    state: &State,
    selection: &Selection,
    programs: &Programs,
    report: &Path,
) -> Result<()> {
    let folder = layout.results();
    let log = folder.join("output.log");
    let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    println!("running tests; what they say is in {}", log.display());
    let mut child = Command::new("ip")
        .args(["netns", "exec", &state.control_plane])
        .arg(&programs.ginkgo)
        .args(["--no-color", "--silence-skips", "--timeout=4h"])
        .arg(format!("--procs={}", selection.procs))
        .arg(format!("--focus={}", selection.focus.as_deref().unwrap_or(FOCUS)))
        .arg(format!("--skip={}", selection.skip.as_deref().unwrap_or(SKIP)))
        .arg(format!("--json-report={}", report.display()))
        .arg(&programs.e2e)
        .args(["--", "--provider=skeleton", "--disable-log-dump"])
        .arg(format!("--kubeconfig={}", layout.kubeconfig().display()))
        .arg(format!("--kubectl-path={}", programs.kubectl.display()))
        .arg(format!("--num-nodes={}", state.nodes.len()))
        .arg(format!("--report-dir={}", folder.display()))
        .current_dir(&folder)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .context("cannot run ip(8)")?;
    let begin = Instant::now();
    let mut said = Duration::ZERO;
    // How it ended is in the report: a test that fails is a failure of ginkgo, too.
    while child.try_wait().context("cannot wait for ginkgo")?.is_none() {
        if begin.elapsed() >= said + PROGRESS {
            said = begin.elapsed();
            ensure!(layout.state()?.is_some(), "the cluster has ended; see {}", layout.log().display());
            let (passed, failed) = progress(&fs::read_to_string(&log).unwrap_or_default());
            println!("{:>5} s: {passed} passed, {failed} failed", said.as_secs());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// How many tests have passed and failed, as ginkgo writes while they run: a dot for each that passed, a line for each that failed.
fn progress(log: &str) -> (usize, usize) {
    (log.matches('•').count() - log.matches("• [").count(), log.matches("• [FAILED]").count())
}

fn judge(results: &Results, selection: &Selection, folder: &Path) -> Result<()> {
    let path = workspace_root().join(BASELINE);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let baseline = Results::from_list(&text).with_context(|| path.display().to_string())?;
    let all = selection.focus.is_none() && selection.skip.is_none();
    let differences = results.differences(&baseline, all);
    for difference in &differences {
        println!("{difference}");
    }
    let worse = differences.iter().filter(|difference| Difference::is_worse(difference)).count();
    if worse > 0 {
        bail!(
            "{worse} tests do not pass that pass with kube-proxy; see {}",
            folder.join("output.log").display()
        );
    }
    println!("every {}test that passes with kube-proxy passes", if all { "" } else { "chosen " });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_from_what_ginkgo_writes() {
        let log = "Running in parallel\n••••\n------\n• [FAILED] [12.3 seconds]\n[sig-network] x\n------\n••";
        assert_eq!(progress(log), (6, 1));
        assert_eq!(progress(""), (0, 0));
    }
}
