//! The images of a cluster, without a registry: one root file system, made of programs of this machine and of what Go built, in an
//! archive under every name that upstream's tests ask for. Only what is started differs.
//!
//! ```text
//! rootfs/ ── tar ──> layout/blobs/sha256/<layer> <── manifest, configuration of each name <── layout/index.json ── tar ──> images.tar
//! ```
//!
//! The form is OCI's image layout (opencontainers/image-spec v1.1, image-layout.md), which containerd imports.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use xtask::libraries;

use super::layout::Layout;
use super::objects;
use super::programs::{Programs, find_in_path};

/// The image of the container that holds a pod's namespaces.
pub(super) const SANDBOX: &str = "localhost/pause:1";

/// Programs of this machine that the tests start in containers: name inside, name here, and the package that has it.
const TOOLS: [(&str, &str, &str); 7] = [
    ("bash", "bash", "bash"),
    ("conntrack", "conntrack", "conntrack"),
    ("curl", "curl", "curl"),
    ("dig", "dig", "bind9-dnsutils"),
    // Busybox has one that knows fewer options.
    ("nc", "nc.openbsd", "netcat-openbsd"),
    ("ss", "ss", "iproute2"),
    ("wget", "wget", "wget"),
];

/// Small files of the root file system.
const FILES: [(&str, &str); 5] = [
    ("etc/passwd", "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"),
    ("etc/group", "root:x:0:\nnobody:x:65534:\n"),
    ("etc/nsswitch.conf", "hosts: files dns\n"),
    // Tests are written for busybox's, which tries once.
    ("etc/wgetrc", "tries = 1\n"),
    ("www/index.html", "a page\n"),
];

const MEDIA: &str = "application/vnd.oci.image";

/// What an image starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Starts {
    entry: &'static [&'static str],
    arguments: &'static [&'static str],
}

/// Makes the archive [`Layout::images`].
///
/// # Errors
/// A program is missing: its package is named; or a file cannot be written.
pub(super) fn build(layout: &Layout, programs: &Programs) -> Result<()> {
    let work = layout.run().join("images");
    let (root, oci) = (work.join("rootfs"), work.join("layout"));
    fs::create_dir_all(&root)?;
    fs::create_dir_all(oci.join("blobs/sha256"))?;
    fill(&root, programs).context("the root file system of images")?;
    let layer = work.join("layer.tar");
    pack(&root, &layer)?;
    let layer = Blobs(&oci).take(&layer, "layer.v1.tar")?;
    let mut manifests = Vec::new();
    for (name, starts) in names(&asked_for(programs)?) {
        manifests.push(Blobs(&oci).image(&name, starts, &layer)?);
    }
    fs::write(oci.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    fs::write(oci.join("index.json"), json!({"schemaVersion": 2, "manifests": manifests}).to_string())?;
    pack(&oci, &layout.images())?;
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))
}

/// Names of images that upstream's tests may use.
fn asked_for(programs: &Programs) -> Result<String> {
    let output = Command::new(&programs.e2e).arg("--list-images").output().context("cannot run e2e.test")?;
    ensure!(output.status.success(), "e2e.test --list-images: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).context("e2e.test --list-images is not UTF-8")
}

/// Those of `list` that the root file system can stand for, and our own.
fn names(list: &str) -> Vec<(String, Starts)> {
    let own = [
        (SANDBOX, Starts { entry: &["/bin/busybox", "sleep", "infinity"], arguments: &[] }),
        (objects::IMAGE, Starts { entry: &["/coredns"], arguments: &[] }),
    ];
    let mut names: Vec<(String, Starts)> = own.map(|(name, starts)| (name.to_owned(), starts)).into();
    let mut asked: Vec<&str> = list.split_whitespace().collect();
    asked.sort_unstable();
    asked.dedup();
    names.extend(asked.iter().filter_map(|name| Some(((*name).to_owned(), starts(name)?))));
    names
}

/// What the image of that name starts; `None` for one that would need other programs.
fn starts(name: &str) -> Option<Starts> {
    let (path, _tag) = name.rsplit_once(':')?;
    let shell = Starts { entry: &[], arguments: &["sh"] };
    Some(match path.rsplit('/').next()? {
        "agnhost" => Starts { entry: &["/agnhost"], arguments: &["pause"] },
        "busybox" | "distroless-iptables" | "glibc-dns-testing" => shell,
        "nginx" => {
            Starts { entry: &["/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/www"], arguments: &[] }
        }
        "pause" => Starts { entry: &["/bin/busybox", "sleep", "infinity"], arguments: &[] },
        "regression-issue-74839" => Starts { entry: &["/regression-issue-74839"], arguments: &[] },
        _ => return None,
    })
}

/// Fills the root file system.
fn fill(root: &Path, programs: &Programs) -> Result<()> {
    for folder in
        ["usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "tmp", "run", "var", "root", "uploads", "www"]
    {
        fs::create_dir_all(root.join(folder))?;
    }
    for mount_point in ["proc", "sys", "dev"] {
        fs::create_dir(root.join(mount_point))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    for folder in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{folder}"), root.join(folder))?;
    }
    for (name, text) in FILES {
        fs::write(root.join(name), text)?;
    }
    busybox(root)?;
    for (name, here, package) in TOOLS {
        let path = find_in_path(here).with_context(|| {
            format!("{here} is not installed: `cargo xtask cluster up` does it, by the package {package}")
        })?;
        tool(root, name, &path)?;
    }
    // Busybox's shell would start its own applets in place of the tools above.
    replace(&root.join("bin/sh"), Path::new("bash"))?;
    for (name, program) in [
        ("agnhost", &programs.agnhost),
        ("coredns", &programs.coredns),
        ("regression-issue-74839", &programs.regression),
    ] {
        copy(program, &root.join(name))?;
    }
    // Upstream's image has two, for tests that must tell one process from the other.
    symlink("agnhost", root.join("agnhost-2"))?;
    certificate(root)
}

/// Busybox under all of its names.
fn busybox(root: &Path) -> Result<()> {
    let path = find_in_path("busybox").context("busybox is not installed: its package is busybox-static")?;
    ensure!(
        libraries::of(&path)?.is_empty(),
        "{} needs libraries: install the package busybox-static instead of busybox",
        path.display()
    );
    copy(&path, &root.join("bin/busybox"))?;
    let list = Command::new(&path).arg("--list").output().context("cannot run busybox")?;
    for applet in String::from_utf8_lossy(&list.stdout).split_whitespace().filter(|name| *name != "busybox") {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    Ok(())
}

/// A program of this machine, with its libraries where it looks for them.
fn tool(root: &Path, name: &str, path: &Path) -> Result<()> {
    let inside = root.join("bin").join(name);
    drop(fs::remove_file(&inside));
    copy(path, &inside)?;
    for library in libraries::of(path)? {
        let inside = root.join(library.strip_prefix("/").unwrap_or(&library));
        if !inside.exists() {
            fs::create_dir_all(inside.parent().context("a library lies in a folder")?)?;
            copy(&library, &inside)?;
        }
    }
    Ok(())
}

/// The key and certificate that agnhost's server takes from its folder; clients do not check whose it is.
fn certificate(root: &Path) -> Result<()> {
    let server = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    fs::write(root.join("localhost.crt"), server.cert.pem())?;
    fs::write(root.join("localhost.key"), server.signing_key.serialize_pem())?;
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn replace(link: &Path, target: &Path) -> Result<()> {
    drop(fs::remove_file(link));
    symlink(target, link).with_context(|| format!("cannot make {}", link.display()))
}

/// Packs what is in `folder`, with nothing in it that depends on when and by whom.
fn pack(folder: &Path, archive: &Path) -> Result<()> {
    let output = Command::new("tar")
        .args([
            "--sort=name",
            "--owner=0",
            "--group=0",
            "--numeric-owner",
            "--mtime=@0",
            "--create",
            "--file",
        ])
        .arg(archive)
        .arg("--directory")
        .arg(folder)
        .arg(".")
        .output()
        .context("cannot run tar")?;
    ensure!(output.status.success(), "tar: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// The folder of an OCI image layout.
struct Blobs<'a>(&'a Path);

impl Blobs<'_> {
    /// Moves `file` in and describes it.
    fn take(&self, file: &Path, kind: &str) -> Result<Value> {
        let size = fs::metadata(file)?.len();
        let digest = sha256(file)?;
        fs::rename(file, self.path(&digest))?;
        Ok(
            json!({"mediaType": format!("{MEDIA}.{kind}"), "digest": format!("sha256:{digest}"), "size": size}),
        )
    }

    fn put(&self, value: &Value, kind: &str) -> Result<Value> {
        let file = self.0.join("blob");
        fs::write(&file, value.to_string())?;
        self.take(&file, kind)
    }

    /// An image of one layer, as an entry of the index.
    fn image(&self, name: &str, starts: Starts, layer: &Value) -> Result<Value> {
        let config = self.put(&config(name, starts, &layer["digest"]), "config.v1+json")?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": format!("{MEDIA}.manifest.v1+json"),
            "config": config,
            "layers": [layer],
        });
        let mut entry = self.put(&manifest, "manifest.v1+json")?;
        entry["annotations"] = json!({"io.containerd.image.name": name});
        Ok(entry)
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.0.join("blobs/sha256").join(digest)
    }
}

/// The configuration of an image; the label makes it another one for each name, as containerd tells images apart by it.
fn config(name: &str, starts: Starts, layer: &Value) -> Value {
    json!({
        "architecture": architecture(),
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [layer]},
        "config": {
            "Entrypoint": starts.entry,
            "Cmd": starts.arguments,
            "WorkingDir": "/",
            "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "Labels": {"name": name},
        },
    })
}

/// This machine's architecture in Go's words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn sha256(file: &Path) -> Result<String> {
    let output =
        Command::new("sha256sum").arg("--binary").arg(file).output().context("cannot run sha256sum")?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.split_whitespace().next() {
        Some(digest) if output.status.success() => Ok(digest.to_owned()),
        _ => bail!("sha256sum: {}", String::from_utf8_lossy(&output.stderr).trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_images_that_the_programs_can_stand_for_are_made_and_each_once() {
        let list = "registry.k8s.io/e2e-test-images/agnhost:2.63.0\nregistry.k8s.io/etcd:3.6\n\
                    registry.k8s.io/e2e-test-images/agnhost:2.63.0\ngcr.io/x/agnhost:2.6\n";
        let names: Vec<String> = names(list).into_iter().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            [
                SANDBOX,
                objects::IMAGE,
                "gcr.io/x/agnhost:2.6",
                "registry.k8s.io/e2e-test-images/agnhost:2.63.0"
            ]
        );
    }

    #[test]
    fn a_container_of_agnhost_pauses_unless_told_otherwise() {
        let starts = starts("registry.k8s.io/e2e-test-images/agnhost:2.63.0").unwrap();
        let config = config("a", starts, &json!("sha256:0"));
        assert_eq!(config["config"]["Entrypoint"], json!(["/agnhost"]));
        assert_eq!(config["config"]["Cmd"], json!(["pause"]));
    }

    #[test]
    fn images_of_one_layer_differ_in_their_configuration() {
        let starts = starts("x/busybox:1").unwrap();
        assert_ne!(config("x/busybox:1", starts, &json!("l")), config("x/busybox:2", starts, &json!("l")));
    }
}
