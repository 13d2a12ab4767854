//! Debian's kernels, fetched once and kept unpacked below the target folder.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use super::apt::Release;

/// A kernel of a Debian release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kernel {
    /// Major and minor version.
    pub(super) version: &'static str,
    /// Debian's name for the release that has it.
    suite: &'static str,
}

/// The long-term lines that Debian maintains, oldest first: the oldest that the programs support, the first with
/// `bpf_set_retval` and fentry everywhere, the first with tcx.
pub(super) const KERNELS: [Kernel; 3] = [
    Kernel { version: "5.10", suite: "bullseye" },
    Kernel { version: "6.1", suite: "bookworm" },
    Kernel { version: "6.12", suite: "trixie" },
];

/// The kernel for virtual machines: less than half the size of the general one, with all of networking and BTF.
const PACKAGE: &str = "linux-image-cloud-amd64";

/// An unpacked kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Files {
    /// What `uname -r` says, for example `6.1.0-50-cloud-amd64`.
    pub(super) release: String,
    /// The compressed image that qemu starts.
    pub(super) image: PathBuf,
    /// The folder `lib/modules/<release>`.
    pub(super) modules: PathBuf,
}

impl Kernel {
    /// The kernel called by its version, such as `6.1`.
    ///
    /// # Errors
    /// When it is none of [`KERNELS`], which the message lists.
    pub(super) fn named(version: &str) -> Result<Self> {
        let known = KERNELS.map(|kernel| kernel.version).join(", ");
        KERNELS
            .into_iter()
            .find(|kernel| kernel.version == version)
            .with_context(|| format!("no kernel {version}: choose one of {known}"))
    }

    /// Its files, fetched into `folder` unless they are there. They are not renewed: remove the folder for a newer one.
    ///
    /// # Errors
    /// When the package cannot be had, or is not what this code knows.
    pub(super) fn files(self, folder: &Path) -> Result<Files> {
        let tree = folder.join("tree");
        if !tree.is_dir() {
            self.fetch(folder, &tree)
                .with_context(|| format!("cannot get Debian's kernel {}", self.version))?;
        }
        find(&tree).with_context(|| format!("remove {} and try again", folder.display()))
    }

    fn fetch(self, folder: &Path, tree: &Path) -> Result<()> {
        eprintln!("vm: fetching kernel {} of Debian {}, once", self.version, self.suite);
        let work = folder.join("work");
        if work.exists() {
            // An interrupted attempt.
            fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
        }
        let release = Release::open(self.suite, &work.join("apt"))?;
        let package = release.dependency(PACKAGE, "linux-image-")?;
        let unpacked = work.join("tree");
        release.unpack(&package, &unpacked)?;
        // Whoever finds the tree finds all of it.
        fs::rename(&unpacked, tree).with_context(|| format!("cannot make {}", tree.display()))?;
        fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))
    }
}

/// Looks into an unpacked package: the image in `boot`, the modules in `lib` or, since Debian 13, in `usr/lib`.
fn find(tree: &Path) -> Result<Files> {
    let boot = tree.join("boot");
    let mut releases = Vec::new();
    for entry in fs::read_dir(&boot).with_context(|| format!("cannot read {}", boot.display()))? {
        let name = entry?.file_name();
        releases.extend(name.to_string_lossy().strip_prefix("vmlinuz-").map(str::to_owned));
    }
    ensure!(releases.len() == 1, "{} holds {} kernel images instead of one", boot.display(), releases.len());
    let release = releases.remove(0);
    let places = ["lib", "usr/lib"].map(|lib| tree.join(lib).join("modules").join(&release));
    let modules = places.into_iter().find(|place| place.is_dir());
    let modules = modules.with_context(|| format!("no modules of {release} in {}", tree.display()))?;
    Ok(Files { image: boot.join(format!("vmlinuz-{release}")), release, modules })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_kernel_is_answered_with_the_known_ones() {
        assert_eq!(Kernel::named("6.12").unwrap().suite, "trixie");
        let error = Kernel::named("6").unwrap_err().to_string();
        assert_eq!(error, "no kernel 6: choose one of 5.10, 6.1, 6.12");
    }

    #[test]
    fn both_layouts_of_the_package_are_understood() {
        for lib in ["lib", "usr/lib"] {
            let tree = tempfile::tempdir().unwrap();
            let modules = tree.path().join(lib).join("modules/6.1.0-50-cloud-amd64");
            fs::create_dir_all(&modules).unwrap();
            fs::create_dir(tree.path().join("boot")).unwrap();
            fs::write(tree.path().join("boot/config-6.1.0-50-cloud-amd64"), "").unwrap();
            let image = tree.path().join("boot/vmlinuz-6.1.0-50-cloud-amd64");
            fs::write(&image, "").unwrap();
            let want = Files { release: "6.1.0-50-cloud-amd64".into(), image, modules };
            assert_eq!(find(tree.path()).unwrap(), want);
        }
    }

    #[test]
    fn a_package_without_an_image_is_refused() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir(tree.path().join("boot")).unwrap();
        let error = find(tree.path()).unwrap_err().to_string();
        assert!(error.ends_with("holds 0 kernel images instead of one"), "{error}");
    }
}
