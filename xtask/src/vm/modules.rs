//! The kernel modules that tests need, unpacked and in an order in which they can be loaded.
//!
//! A kernel package brings no `modules.dep`: that is made when it is installed. Each module itself names what it
//! depends on, in its section `.modinfo`, and that is read here.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use object::{Object as _, ObjectSection as _};

use super::apt;

const XZ: &str = "/usr/bin/xz";

/// What the tests use, loaded before they start because the guest has no `modprobe` for the kernel to call.
///
/// Devices of the topologies, hooks of tc where tcx is missing (before 6.6), the socket diagnosis by which sockets
/// are destroyed, connection tracking for what must get along with it.
pub(super) const WANTED: &[&str] = &[
    "veth",
    "bridge",
    "dummy",
    "vxlan",
    "8021q",
    "tun",
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "nf_conntrack",
];

/// A module as the kernel takes it.
#[derive(Debug)]
pub(super) struct Module {
    /// As the kernel calls it, with underscores.
    pub(super) name: String,
    /// The ELF file, not compressed.
    pub(super) content: Vec<u8>,
}

/// The modules of [`WANTED`] and what they need, each after everything it needs; those that are part of the kernel
/// image are left out. `tree` is a folder `lib/modules/<release>`.
///
/// # Errors
/// When a module is neither in the tree nor in the image, or cannot be read.
pub(super) fn load(tree: &Path) -> Result<Vec<Module>> {
    let files = files(tree)?;
    let builtin = fs::read_to_string(tree.join("modules.builtin"))
        .with_context(|| format!("cannot read {}/modules.builtin", tree.display()))?;
    let mut contents = BTreeMap::new();
    let mut order = Order::default();
    for name in WANTED {
        order.visit(name, &mut |name| {
            let Some(path) = files.get(name) else {
                if is_builtin(&builtin, name) {
                    return Ok(None);
                }
                bail!("this kernel has no module {name}");
            };
            let content = read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let depends = depends(&content).with_context(|| path.display().to_string())?;
            contents.insert(name.to_owned(), content);
            Ok(Some(depends))
        })?;
    }
    let module = |name: String| contents.remove(&name).map(|content| Module { name, content });
    Ok(order.done.into_iter().filter_map(module).collect())
}

/// A depth-first walk along dependencies.
#[derive(Debug, Default)]
struct Order {
    done: Vec<String>,
    /// From the wanted module down to the one being looked at.
    open: Vec<String>,
}

impl Order {
    /// Puts `name` behind everything it needs. `depends` is asked once per module; `None` means that it is part of
    /// the kernel image.
    fn visit(
        &mut self,
        name: &str,
        depends: &mut impl FnMut(&str) -> Result<Option<Vec<String>>>,
    ) -> Result<()> {
        if self.done.iter().any(|done| done == name) {
            return Ok(());
        }
        self.open.push(name.to_owned());
        if self.open[..self.open.len() - 1].iter().any(|open| open == name) {
            bail!("kernel modules need each other: {}", self.open.join(" -> "));
        }
        for needed in depends(name)?.unwrap_or_default() {
            self.visit(&needed, depends)?;
        }
        self.open.pop();
        self.done.push(name.to_owned());
        Ok(())
    }
}

/// Path of every module below `folder`, by the kernel's name for it.
fn files(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if let Some(name) = name(&entry.file_name().to_string_lossy()) {
                found.insert(name, entry.path());
            }
        }
    }
    Ok(found)
}

/// `nf-log.ko.xz` is `nf_log`: files may have dashes where the kernel has underscores.
fn name(file: &str) -> Option<String> {
    let (stem, rest) = file.split_once(".ko")?;
    (rest.is_empty() || rest.starts_with('.')).then(|| stem.replace('-', "_"))
}

/// Lines of `modules.builtin` are paths such as `kernel/net/core/sock_diag.ko`.
fn is_builtin(list: &str, wanted: &str) -> bool {
    let mut files = list.lines().filter_map(|line| line.rsplit('/').next());
    files.any(|file| name(file).as_deref() == Some(wanted))
}

/// The file's content; Debian compresses modules since its release 13.
fn read(path: &Path) -> Result<Vec<u8>> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => Ok(fs::read(path)?),
        Some("xz") => {
            apt::install("xz-utils", Path::new(XZ), "which unpacks kernel modules")?;
            let output = Command::new(XZ).args(["--decompress", "--stdout"]).arg(path).output()?;
            ensure!(output.status.success(), "xz: {}", String::from_utf8_lossy(&output.stderr).trim());
            Ok(output.stdout)
        }
        _ => bail!("neither plain nor compressed by xz"),
    }
}

/// The modules named by `depends=` in `.modinfo`, a list of NUL-terminated `key=value`.
fn depends(content: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(content)?;
    let section = file.section_by_name(".modinfo").context("not a kernel module: no .modinfo")?;
    let entries = section.data()?.split(|byte| *byte == 0);
    let list = entries.filter_map(|entry| entry.strip_prefix(b"depends=")).collect::<Vec<_>>().concat();
    let list = String::from_utf8(list)?;
    Ok(list.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One line per module: `name: what it needs`.
    fn order(wanted: &[&str], known: &str) -> Result<String> {
        let mut order = Order::default();
        for name in wanted {
            order.visit(name, &mut |name| {
                let line = known.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'));
                let Some(line) = line else { bail!("no {name}") };
                Ok(Some(line.split_whitespace().map(str::to_owned).collect()))
            })?;
        }
        Ok(order.done.join(" "))
    }

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let known = "bridge: stp llc
                     stp: llc
                     llc:
                     veth:";
        assert_eq!(order(&["veth", "bridge", "llc"], known).unwrap(), "veth llc stp bridge");
    }

    #[test]
    fn a_circle_is_an_error_that_shows_it() {
        let error = order(&["a"], "a: b\nb: c\nc: b").unwrap_err();
        assert_eq!(error.to_string(), "kernel modules need each other: a -> b -> c -> b");
    }

    #[test]
    fn a_missing_module_is_an_error() {
        assert_eq!(order(&["a"], "a: b").unwrap_err().to_string(), "no b");
    }

    #[test]
    fn names_have_underscores_whatever_the_file_has() {
        assert_eq!(name("crc32c-intel.ko"), Some("crc32c_intel".into()));
        assert_eq!(name("veth.ko.xz"), Some("veth".into()));
        assert_eq!(name("modules.builtin"), None);
        assert_eq!(name("README.kosmos"), None);
    }

    #[test]
    fn modules_of_the_image_are_known_by_their_list() {
        let list = "kernel/crypto/crc32c_generic.ko\nkernel/net/ipv4/tcp-cubic.ko\n";
        assert!(is_builtin(list, "crc32c_generic"));
        assert!(is_builtin(list, "tcp_cubic"));
        assert!(!is_builtin(list, "veth"));
    }

    #[test]
    fn a_file_that_is_no_module_is_refused() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(depends(&own).unwrap_err().to_string(), "not a kernel module: no .modinfo");
    }
}
