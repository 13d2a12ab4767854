//! System packages: the table of what is needed and why, and apt for what is missing.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail};
use xtask::paths;

use crate::command;

/// Something that is needed, as a command that works when it is there.
pub(super) struct Need {
    /// The command that shows that it is there: it exits with 0 and changes nothing.
    pub(super) probe: &'static [&'static str],
    /// Debian packages that bring it; the first that apt knows is taken. `{kernel}` stands for `uname -r`.
    pub(super) packages: &'static [&'static str],
    /// Further packages that it needs.
    pub(super) with: &'static [&'static str],
    /// What it is needed for, to be read after a semicolon or colon.
    pub(super) why: &'static str,
}

/// Where Ubuntu has the tools of each kernel, in a folder for each.
const LINUX_TOOLS: &str = "/usr/lib/linux-tools";

/// What every build and the tests need.
pub(super) const NEEDS: &[Need] = &[
    Need {
        probe: &["cc", "--version"],
        packages: &["gcc"],
        with: &["libc6-dev"],
        why: "links host programs and compiles the C parts of the agent's TLS",
    },
    Need {
        probe: &["ip", "-V"],
        packages: &["iproute2"],
        with: &[],
        why: "the demo and the tests build network namespaces with it",
    },
    Need {
        probe: &["bpftool", "version"],
        // Debian has a package of its own. Ubuntu's is a wrapper that wants the tools of the running kernel.
        packages: &["bpftool", "linux-tools-{kernel}", "linux-tools-generic"],
        with: &[],
        why: "the demo reads the maps with it",
    },
    Need {
        probe: &["nft", "--version"],
        packages: &["nftables"],
        with: &[],
        why: "tests and benchmarks run kube-proxy in nftables mode beside ours",
    },
    Need {
        probe: &["iptables", "--version"],
        packages: &["iptables"],
        with: &[],
        why: "tests and benchmarks run kube-proxy in iptables mode beside ours",
    },
];

/// What fuzzing needs beside these.
pub(super) const CPLUSPLUS: Need = Need {
    probe: &["c++", "--version"],
    packages: &["g++"],
    with: &[],
    why: "compiles libFuzzer for `cargo xtask fuzz`",
};

/// What the nodes of a real cluster need, and the containers that upstream's tests run.
pub(super) const CLUSTER: &[Need] = &[
    Need {
        probe: &["containerd", "--version"],
        packages: &["containerd"],
        with: &[],
        why: "runs the containers of a node of `cargo xtask cluster`",
    },
    Need {
        probe: &["runc", "--version"],
        packages: &["runc"],
        with: &[],
        why: "containerd starts them by it",
    },
    Need {
        probe: &["test", "-x", "/usr/lib/cni/bridge"],
        packages: &["containernetworking-plugins"],
        with: &[],
        why: "connects the pods of a node",
    },
    Need {
        probe: &["busybox", "--list"],
        packages: &["busybox-static"],
        with: &[],
        why: "most of what is in the images of `cargo xtask cluster`",
    },
    in_images(&["conntrack"], &["conntrack", "--version"]),
    in_images(&["curl"], &["curl", "--version"]),
    in_images(&["bind9-dnsutils"], &["dig", "-v"]),
    in_images(&["netcat-openbsd"], &["nc.openbsd", "-h"]),
    in_images(&["wget"], &["wget", "--version"]),
];

/// A program that upstream's tests run in containers.
const fn in_images(packages: &'static [&'static str], probe: &'static [&'static str]) -> Need {
    Need { probe, packages, with: &[], why: "tests run it in containers" }
}

/// Installs the packages of what is missing. Returns whether anything was.
pub(super) fn install(needs: &[Need]) -> Result<bool> {
    let missing: Vec<&Need> = needs.iter().filter(|need| !works(need)).collect();
    if missing.is_empty() {
        return Ok(false);
    }
    for need in &missing {
        eprintln!("setup: `{}` does not run; {}", need.probe.join(" "), need.why);
    }
    if command::find("apt-get").is_none() {
        bail!("{}", without_apt(&missing));
    }
    apt_get(&["update", "-q"])?;
    let packages = choose(&missing)?;
    eprintln!("setup: installing {} with apt", packages.join(" "));
    let mut args = vec!["install", "-q", "-y", "--no-install-recommends"];
    args.extend(packages.iter().map(String::as_str));
    apt_get(&args)?;
    for need in missing {
        if need.probe[0] == "bpftool" && !works(need) {
            use_any_bpftool(Path::new(LINUX_TOOLS), &paths::tools_dir().join("bin"))?;
        }
        if !works(need) {
            bail!(
                "`{}` still does not run after installing {}: {}",
                need.probe.join(" "),
                need.packages[0],
                need.why
            );
        }
    }
    Ok(true)
}

fn works(need: &Need) -> bool {
    command::program(need.probe[0])
        .args(&need.probe[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn apt_get(args: &[&str]) -> Result<()> {
    let program = command::find("apt-get").context("apt-get is gone")?;
    command::step(command::as_root(&program)?.args(args).env("DEBIAN_FRONTEND", "noninteractive"))
}

/// The first package of each need that apt can install here.
fn choose(missing: &[&Need]) -> Result<Vec<String>> {
    let kernel =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
    let mut chosen = Vec::new();
    for need in missing {
        let candidates = need.packages.iter().map(|name| name.replace("{kernel}", kernel.trim_end()));
        let Some(package) = candidates.clone().find(|name| apt_has(name)) else {
            let names: Vec<String> = candidates.collect();
            bail!("apt has none of {}: {}", names.join(", "), need.why);
        };
        chosen.push(package);
        chosen.extend(need.with.iter().map(ToString::to_string));
    }
    Ok(chosen)
}

/// Whether apt knows a package of this name that can be installed; names that others merely provide do not count.
fn apt_has(package: &str) -> bool {
    command::output(command::program("apt-cache").args(["policy", package]))
        .is_ok_and(|policy| has_candidate(&policy))
}

fn has_candidate(policy: &str) -> bool {
    policy
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Candidate:"))
        .any(|version| version.trim() != "(none)")
}

/// Ubuntu's wrapper refuses when the tools are not of the running kernel's exact version; bpftool itself does not care.
fn use_any_bpftool(linux_tools: &Path, bin: &Path) -> Result<()> {
    let folders = fs::read_dir(linux_tools).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        folders.map(|folder| folder.path().join("bpftool")).filter(|path| path.is_file()).collect();
    found.sort();
    let Some(newest) = found.pop() else {
        return Ok(());
    };
    fs::create_dir_all(bin).with_context(|| format!("cannot create {}", bin.display()))?;
    eprintln!("setup: no bpftool for this very kernel; using {}", newest.display());
    // The one of an earlier time may lead to tools that an upgrade has removed.
    let link = bin.join("bpftool");
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", link.display()));
        }
        _ => {}
    }
    symlink(&newest, &link).with_context(|| format!("cannot create {}", link.display()))
}

fn without_apt(missing: &[&Need]) -> String {
    let mut lines = vec!["these are missing, and there is no apt-get here to install them:".to_owned()];
    for need in missing {
        lines.push(format!(
            "  {} (Debian's package {}): {}",
            need.probe[0],
            [&need.packages[..1], need.with].concat().join(" and "),
            need.why
        ));
    }
    lines.push("install them with this system's package manager and try again".to_owned());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_candidate_cannot_be_installed() {
        assert!(has_candidate("gcc:\n  Installed: (none)\n  Candidate: 4:12.2.0-3\n"));
        assert!(!has_candidate("bpftool:\n  Installed: (none)\n  Candidate: (none)\n"));
        assert!(!has_candidate(""));
    }

    #[test]
    fn without_apt_every_missing_thing_is_named_with_its_package() {
        let needs: Vec<&Need> = NEEDS.iter().collect();
        let text = without_apt(&needs);
        for need in NEEDS {
            assert!(
                text.contains(need.probe[0]) && text.contains(need.packages[0]) && text.contains(need.why)
            );
        }
        assert!(text.contains("gcc and libc6-dev"), "{text}");
    }

    #[test]
    fn a_link_to_tools_that_an_upgrade_removed_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        let (tools, bin) = (root.path().join("linux-tools"), root.path().join("bin"));
        let release = |name: &str| {
            let bpftool = tools.join(name).join("bpftool");
            fs::create_dir_all(bpftool.parent().unwrap()).unwrap();
            fs::write(&bpftool, "").unwrap();
            bpftool
        };
        let link = || fs::read_link(bin.join("bpftool")).unwrap();
        let old = release("6.8.0-31-generic");
        use_any_bpftool(&tools, &bin).unwrap();
        assert_eq!(link(), old);
        fs::remove_file(&old).unwrap();
        let new = release("6.8.0-45-generic");
        use_any_bpftool(&tools, &bin).unwrap();
        assert_eq!(link(), new);
        use_any_bpftool(&tools, &bin).unwrap();
        assert_eq!(link(), new);
    }

    #[test]
    fn without_any_bpftool_nothing_is_linked() {
        let root = tempfile::tempdir().unwrap();
        use_any_bpftool(&root.path().join("none"), root.path()).unwrap();
        assert!(fs::symlink_metadata(root.path().join("bpftool")).is_err());
    }
}
