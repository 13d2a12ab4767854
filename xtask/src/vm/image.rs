//! The first and only file system of the guest: `/init`, the tests, their libraries, tools and kernel modules.
//!
//! ```text
//! /init                         tests/src/bin/vm-init.rs
//! /etc/vm-tests                 what it does, see the head of that file
//! /lb/target/debug/             programs, and in deps/ the tests: the layout of cargo's target folder
//! <target folder here>          a link to /lb/target, for paths that cargo compiled into the tests
//! /bin/                         ip, a shell, and what helps to debug
//! /lib/modules/                 kernel modules
//! /lib/.., /lib64/..            shared libraries, where the programs look for them
//! ```

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs::{self, File},
    io::BufWriter,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use xtask::{libraries, paths};

use super::{cpio::Archive, kernel, modules};
use crate::{command, programs::Programs};

/// The first process of the guest.
pub(super) const INIT: &str = "vm-init";

/// The programs that tests start. Those of the demo and the benchmarks are several times the size of the rest.
pub(super) const STARTED_BY_TESTS: [&str; 2] = ["lb-agent", "lb-probe"];

/// Programs of this machine that the tests call.
const NEEDED: [&str; 3] = ["ip", "sh", "sleep"];

/// Programs of this machine that come along where they are: to look at what a test made.
const WELCOME: [&str; 3] = ["bpftool", "ss", "tc"];

/// Cargo's target folder, in the guest.
const TARGET: &str = "/lb/target";

/// The folder of programs in it.
const PROGRAMS: &str = "/lb/target/debug";

/// All that the guest's programs see.
const ENVIRONMENT: [(&str, &str); 6] = [
    ("PATH", "/bin:/lb/target/debug"),
    ("HOME", "/root"),
    ("TMPDIR", "/tmp"),
    ("RUST_BACKTRACE", "1"),
    // One for each processor of the guest.
    ("RUST_TEST_THREADS", "2"),
    // Everything takes many times longer there, and as long again while other tests run beside it.
    ("LB_TESTS_PATIENCE", "4"),
];

/// What goes into the archive.
#[derive(Debug)]
pub(super) struct Contents<'a> {
    /// Programs, `/init` among them.
    pub(super) programs: &'a Programs,
    /// Tests: name and path.
    pub(super) tests: &'a [(String, PathBuf)],
    /// Arguments for each test.
    pub(super) arguments: &'a [String],
    /// Whose modules.
    pub(super) kernel: &'a kernel::Files,
}

/// Writes the archive into `folder` and gives its path.
///
/// It is not compressed: unpacking would be the guest's work, and the guest is slow.
///
/// # Errors
/// When a program, library or module that is needed is missing.
pub(super) fn write(contents: &Contents<'_>, folder: &Path) -> Result<PathBuf> {
    let path = folder.join("initramfs.cpio");
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    let mut image = Image {
        archive: Archive::new(BufWriter::new(file)),
        libraries: BTreeSet::new(),
        scratch: folder.join("stripped"),
    };
    image.program("/init", contents.programs.binary(INIT)?)?;
    for name in STARTED_BY_TESTS {
        image.program(&format!("{PROGRAMS}/{name}"), contents.programs.binary(name)?)?;
    }
    for (name, path) in contents.tests {
        image.program(&test_path(name), path)?;
    }
    image.tools()?;
    let modules = modules::load(&contents.kernel.modules)?;
    for module in &modules {
        image.archive.file(&module_path(&module.name), 0o644, &module.content)?;
    }
    let names: Vec<&str> = modules.iter().map(|module| module.name.as_str()).collect();
    let script = script(&names, contents.tests, contents.arguments);
    image.archive.file("/etc/vm-tests", 0o644, script.as_bytes())?;
    image.surroundings()?;
    image.archive.finish().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

struct Image {
    archive: Archive<BufWriter<File>>,
    libraries: BTreeSet<PathBuf>,
    scratch: PathBuf,
}

impl Image {
    /// Adds a program, without its debug information, and the libraries it needs.
    fn program(&mut self, place: &str, path: &Path) -> Result<()> {
        self.archive.file(place, 0o755, &self.stripped(path)?)?;
        for library in libraries::of(path)? {
            if self.libraries.insert(library.clone()) {
                let content = read(&library)?;
                let place =
                    library.to_str().with_context(|| format!("{} is not UTF-8", library.display()))?;
                self.archive.file(place, 0o755, &content)?;
            }
        }
        Ok(())
    }

    /// A debug build is mostly debug information; a panic names its line without it.
    fn stripped(&self, path: &Path) -> Result<Vec<u8>> {
        let mut strip = Command::new("strip");
        strip.arg("--strip-debug").arg("-o").arg(&self.scratch).arg(path);
        let output = strip
            .output()
            .context("cannot run strip, which comes with every C compiler (package binutils)")?;
        ensure!(
            output.status.success(),
            "strip {}: {}",
            path.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let content = read(&self.scratch)?;
        fs::remove_file(&self.scratch)?;
        Ok(content)
    }

    fn tools(&mut self) -> Result<()> {
        for tool in NEEDED {
            let path = command::find(tool)
                .with_context(|| format!("cannot find the program {tool}: run `cargo xtask setup`"))?;
            self.program(&format!("/bin/{tool}"), &path)?;
        }
        for tool in WELCOME {
            // Ubuntu's bpftool is a shell script around others.
            if let Some(path) = command::find(tool).filter(|path| is_elf(path)) {
                self.program(&format!("/bin/{tool}"), &path)?;
            }
        }
        Ok(())
    }

    /// Folders to mount at, and what programs expect of any machine.
    fn surroundings(&mut self) -> Result<()> {
        for folder in ["/proc", "/sys", "/dev", "/tmp", "/run", "/root", "/var"] {
            self.archive.directory(folder)?;
        }
        // The kernel opens it for /init, before anything is mounted.
        self.archive.character_device("/dev/console", (5, 1))?;
        // `ip netns` keeps its names there.
        self.archive.symlink("/var/run", "/run")?;
        let target = paths::target_dir();
        let target = target.to_str().with_context(|| format!("{} is not UTF-8", target.display()))?;
        self.archive.symlink(target, TARGET)?;
        self.archive.file("/etc/hosts", 0o644, b"127.0.0.1 localhost\n::1 localhost\n")?;
        Ok(())
    }
}

fn is_elf(path: &Path) -> bool {
    fs::read(path).is_ok_and(|content| content.starts_with(b"\x7fELF"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn test_path(name: &str) -> String {
    format!("{PROGRAMS}/deps/{name}")
}

fn module_path(name: &str) -> String {
    format!("/lib/modules/{name}.ko")
}

/// The text of `/etc/vm-tests`: instructions for vm-init, one a line, with tabs between their words.
fn script(modules: &[&str], tests: &[(String, PathBuf)], arguments: &[String]) -> String {
    let mut text = String::new();
    let mut line =
        |words: &[&str]| writeln!(text, "{}", words.join("\t")).expect("a String takes everything");
    for module in modules {
        line(&["module", &module_path(module)]);
    }
    for (name, value) in ENVIRONMENT {
        line(&["env", name, value]);
    }
    for (name, _) in tests {
        let program = test_path(name);
        let mut words = vec!["run", name, &program];
        words.extend(arguments.iter().map(String::as_str));
        line(&words);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_loads_modules_before_it_runs_tests() {
        let tests = [("sockets".to_owned(), "/host/target/debug/deps/sockets-0a1b".into())];
        let text = script(&["llc", "stp"], &tests, &["--nocapture".into(), "cluster ip".into()]);
        let want = "module\t/lib/modules/llc.ko\n\
                    module\t/lib/modules/stp.ko\n\
                    env\tPATH\t/bin:/lb/target/debug\n\
                    env\tHOME\t/root\n\
                    env\tTMPDIR\t/tmp\n\
                    env\tRUST_BACKTRACE\t1\n\
                    env\tRUST_TEST_THREADS\t2\n\
                    env\tLB_TESTS_PATIENCE\t4\n\
                    run\tsockets\t/lb/target/debug/deps/sockets\t--nocapture\tcluster ip\n";
        assert_eq!(text, want);
    }
}
