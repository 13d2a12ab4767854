//! `lb-agent netns`: leaving single network namespaces alone.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use nix::errno::Errno;
use serde::Serialize;

use super::{
    ExemptArgs, IncludeArgs, NetnsListArgs,
    exemptions::{self, Exemptions},
    namespaces,
    pinned::Pinned,
    print,
    table::Table,
};
use crate::datapath::{
    cookie::{self, CookieError},
    host::{self, HostError},
};

/// From now on leaves a namespace alone.
pub(super) fn exempt(args: &ExemptArgs) -> anyhow::Result<()> {
    let pinned = Pinned::open(&args.pins.pin_dir)?;
    let cookie = cookie_of(&args.namespace)?;
    let _lock = exemptions::lock(&pinned)?;
    let mut exemptions = Exemptions::open(&pinned)?;
    let said = if exemptions.add(cookie)? { "left alone from now on" } else { "left alone already" };
    println!("{} (cookie {cookie}) is {said}", args.namespace.display());
    Ok(())
}

/// Load-balances a namespace again.
pub(super) fn include(args: &IncludeArgs) -> anyhow::Result<()> {
    let pinned = Pinned::open(&args.pins.pin_dir)?;
    let cookie = match args.namespace.to_str().and_then(|text| text.parse().ok()) {
        Some(cookie) => cookie,
        None => cookie_of(&args.namespace)?,
    };
    let _lock = exemptions::lock(&pinned)?;
    let mut exemptions = Exemptions::open(&pinned)?;
    let said = if exemptions.remove(cookie)? { "load-balanced again" } else { "not one that was left alone" };
    println!("{} (cookie {cookie}) is {said}", args.namespace.display());
    Ok(())
}

/// An exempt namespace.
#[derive(Debug, Serialize)]
struct Row {
    cookie: u64,
    /// Files that stand for it; none if no name and no process that can be seen here has it.
    namespaces: Vec<String>,
}

/// Shows the namespaces that are left alone.
pub(super) fn list(args: &NetnsListArgs) -> anyhow::Result<()> {
    let cookies = exemptions::cookies(&Pinned::open(&args.pins.pin_dir)?)?;
    let names = names(&cookies);
    let rows: Vec<Row> = cookies
        .into_iter()
        .map(|cookie| Row { cookie, namespaces: names.get(&cookie).cloned().unwrap_or_default() })
        .collect();
    print(&args.output, &rows, |rows| {
        let mut table = Table::new(["COOKIE", "NAMESPACE"]);
        for row in rows {
            table.row([row.cookie.to_string(), row.namespaces.join(" ")]);
        }
        table.render()
    })
}

/// Cookie of the namespace behind a file.
fn cookie_of(path: &Path) -> anyhow::Result<u64> {
    let file = File::open(path).with_context(|| {
        format!("cannot open the namespace {} (such as /run/netns/NAME or /proc/PID/ns/net)", path.display())
    })?;
    match inside(&file, &cgroups()) {
        Ok(cookie) => {
            cookie.with_context(|| format!("cannot learn the cookie of the namespace {}", path.display()))
        }
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EINVAL) => bail!("{} is not a network namespace", path.display()),
            Some(Errno::EPERM) => {
                bail!("entering {} needs CAP_SYS_ADMIN: run lb-agent as root, or grant it", path.display())
            }
            _ => Err(error).with_context(|| format!("cannot enter the namespace {}", path.display())),
        },
    }
}

/// Cookie of a namespace, asked from inside; the outer error is that it cannot be entered.
fn inside(namespace: &File, cgroups: &[PathBuf]) -> io::Result<Result<u64, CookieError>> {
    namespaces::inside(namespace, || Ok(cookie::of_this_thread(cgroups)))
}

/// Cgroups that hold this process, its own first: where a program may see it ask, for kernels that do not tell cookies.
fn cgroups() -> Vec<PathBuf> {
    // A container's own mount begins at the container's cgroup.
    let (Ok(root) | Err(HostError::NotRoot { path: root })) = host::cgroup(None) else { return Vec::new() };
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own_cgroup(&membership).map(|own| root.join(own)).filter(|own| own.is_dir());
    own.into_iter().chain([root]).collect()
}

/// The path, below the root of cgroup2, in a /proc/PID/cgroup (cgroups(7)). Nothing where it is the root itself, or outside
/// of what this process can see.
fn own_cgroup(membership: &str) -> Option<&Path> {
    let own = membership.lines().find_map(|line| line.strip_prefix("0::/"))?;
    (!own.is_empty() && !own.starts_with("..")).then(|| Path::new(own))
}

/// Files of the namespaces that have a name or a process, of these cookies: every name, else the process with the lowest id.
fn names(cookies: &[u64]) -> BTreeMap<u64, Vec<String>> {
    let cgroups = cgroups();
    let mut found = BTreeMap::new();
    for namespace in namespaces::all() {
        // To ask is slow where a program has to be loaded for it.
        if found.len() == cookies.len() {
            break;
        }
        if let Ok(Ok(cookie)) = inside(&namespace.file, &cgroups)
            && cookies.contains(&cookie)
        {
            found.insert(cookie, namespace.paths.iter().map(|path| path.display().to_string()).collect());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_cgroup_is_the_one_of_the_second_version() {
        let both = "5:cpu:/a\n1:name=systemd:/b\n0::/user.slice/session.scope\n";
        assert_eq!(own_cgroup(both), Some(Path::new("user.slice/session.scope")));
        for none in ["0::/\n", "0::/../other\n", "5:cpu:/a\n", ""] {
            assert_eq!(own_cgroup(none), None, "{none:?}");
        }
    }

    #[test]
    fn a_file_that_is_no_network_namespace_is_refused_by_name() {
        let error = cookie_of(Path::new("/proc/self/ns/uts")).unwrap_err().to_string();
        assert!(
            error.contains("/proc/self/ns/uts is not a network namespace") || error.contains("CAP_SYS_ADMIN"),
            "{error}"
        );
        let error = cookie_of(Path::new("/run/netns/nobody")).unwrap_err().to_string();
        assert!(error.contains("such as /run/netns/NAME"), "{error}");
    }
}
