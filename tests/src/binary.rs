//! Finding the programs that were built together with the running one.

use std::collections::{BTreeMap, btree_map::Entry};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;
use std::{env, fs, io};

use anyhow::{Context as _, Result, anyhow, bail};
use xtask::paths::workspace_root;

/// Set by `cargo xtask test`, which has just built everything: programs are then taken as they are, because a
/// source that somebody saves while the tests run says nothing about them.
const BUILT_VARIABLE: &str = "LB_TESTS_BUILT";

/// Path of a program of this workspace: beside the running executable, or one folder up when that lies in
/// cargo's `deps` or `examples`. So tests, benchmarks, the demo and a plain folder of copied programs all
/// find `lb-probe` and `lb-agent`.
///
/// # Errors
/// When there is none, and when one of its sources has changed since it was built: `cargo test -p lb-tests`
/// builds the programs of this package, but not `lb-agent`, and a test of an old agent proves nothing. Cargo's
/// list of sources lies beside the program; where there is no list, the program is taken as it is.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("cannot find the running executable")?;
    let folder = own.parent().context("an executable lies in a folder")?;
    for candidate in [folder.join(name), folder.join("..").join(name)] {
        if candidate.is_file() {
            let path = candidate
                .canonicalize()
                .with_context(|| format!("cannot resolve {}", candidate.display()))?;
            return if env::var_os(BUILT_VARIABLE).is_some() { Ok(path) } else { judged(path) };
        }
    }
    bail!("{name} is not built: no such file in {} or above (cargo build --bin {name})", folder.display())
}

/// `path`, if it is as new as its sources. Each program is looked at once in the life of this process.
fn judged(path: PathBuf) -> Result<PathBuf> {
    static JUDGED: Mutex<BTreeMap<PathBuf, Option<String>>> = Mutex::new(BTreeMap::new());
    // A panic of another thread leaves whole entries.
    let mut judged = JUDGED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let verdict = match judged.entry(path.clone()) {
        Entry::Occupied(known) => known.get().clone(),
        Entry::Vacant(unknown) => {
            let verdict = stale(&path).with_context(|| format!("cannot judge {}", path.display()))?;
            unknown.insert(verdict).clone()
        }
    };
    verdict.map_or(Ok(path), |reason| Err(anyhow!(reason)))
}

/// What is wrong with a program that is older than what it was built from.
fn stale(program: &Path) -> Result<Option<String>> {
    let list = match fs::read_to_string(program.with_extension("d")) {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context("cannot read cargo's list of its sources"),
    };
    let built = program.metadata()?.modified()?;
    let name = program.file_name().unwrap_or_default().display();
    let profile =
        if program.parent().is_some_and(|folder| folder.ends_with("release")) { " --release" } else { "" };
    let products = program.parent().unwrap_or(program);
    for source in sources(&list) {
        // Cargo can be told to write paths that count from some folder; ours would be the workspace.
        let path = workspace_root().join(&source);
        // What build scripts leave was made from the rest of the list. Cargo renews the list only when it is asked
        // for the program by name, so these may be of another build.
        if path.starts_with(products) {
            continue;
        }
        if let Some(fault) =
            fault(&path, built).with_context(|| format!("cannot look at {}", path.display()))?
        {
            return Ok(Some(format!("{} {fault}: cargo build{profile} --bin {name}", shown(program))));
        }
    }
    Ok(None)
}

/// What is wrong with a program built at that time from `source`.
fn fault(source: &Path, built: SystemTime) -> io::Result<Option<String>> {
    match newest(source) {
        Ok((file, changed)) => Ok((changed > built).then(|| format!("is older than {}", shown(&file)))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // It went when the folder changed that held it, or earlier; earlier than the build, the list is an old one.
            let folder = source.ancestors().skip(1).find(|folder| folder.exists()).unwrap_or(Path::new("/"));
            let is_news = folder.metadata()?.modified()? > built;
            Ok(is_news.then(|| format!("was built from {}, which is gone", shown(source))))
        }
        Err(error) => Err(error),
    }
}

/// A path as a person in this workspace would type it.
fn shown(path: &Path) -> String {
    path.strip_prefix(workspace_root()).unwrap_or(path).display().to_string()
}

/// The sources in a list of cargo's: `program: source source ..`, where a space in a path is written `\ `.
fn sources(list: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in list.lines() {
        let Some((_program, line)) = line.split_once(": ") else {
            continue;
        };
        let mut open = String::new();
        let mut letters = line.chars().peekable();
        while let Some(letter) = letters.next() {
            match letter {
                '\\' if letters.next_if_eq(&' ').is_some() => open.push(' '),
                ' ' => found.push(std::mem::take(&mut open)),
                other => open.push(other),
            }
        }
        found.push(open);
    }
    found.retain(|source| !source.is_empty());
    found
}

/// The file at or below `path` that changed last. A folder counts too: it changes when a file of it goes.
fn newest(path: &Path) -> io::Result<(PathBuf, SystemTime)> {
    let about = fs::metadata(path)?;
    let mut newest_one = (path.to_owned(), about.modified()?);
    if about.is_dir() {
        for entry in fs::read_dir(path)? {
            let below = newest(&entry?.path())?;
            if below.1 > newest_one.1 {
                newest_one = below;
            }
        }
    }
    Ok(newest_one)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A folder that is removed again, with a program of the year 2000 and its list of sources.
    struct Build(PathBuf);

    const BUILT: Duration = Duration::from_hours(30 * 365 * 24);
    const SECOND: Duration = Duration::from_secs(1);

    impl Build {
        fn new(name: &str, list: &[&str]) -> Self {
            let build = Self(env::temp_dir().join(format!("lb binary {name} {}", std::process::id())));
            let list: Vec<String> = list
                .iter()
                .map(|source| build.path(source).display().to_string().replace(' ', "\\ "))
                .collect();
            build.file("debug/tool", BUILT);
            fs::write(build.path("debug/tool.d"), format!("/x/debug/tool: {}\n", list.join(" "))).unwrap();
            build
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        fn file(&self, name: &str, time: Duration) {
            let path = self.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            self.touch(name, time);
            // It was made just now.
            self.touch(Path::new(name).parent().unwrap(), time);
        }

        fn touch(&self, name: impl AsRef<Path>, time: Duration) {
            let file = fs::File::open(self.0.join(name)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + time).unwrap();
        }

        fn verdict(&self) -> Option<String> {
            stale(&self.path("debug/tool")).unwrap()
        }
    }

    impl Drop for Build {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    #[test]
    fn a_program_newer_than_all_its_sources_is_taken() {
        let build = Build::new("fresh", &["src/main.rs", "other/src"]);
        build.file("src/main.rs", BUILT);
        build.file("other/src/lib.rs", BUILT.checked_sub(SECOND).unwrap());
        assert_eq!(build.verdict(), None);
    }

    #[test]
    fn a_newer_source_is_named_with_the_command_that_helps() {
        let build = Build::new("old", &["src/main.rs", "src/x.rs"]);
        build.file("src/main.rs", BUILT);
        build.file("src/x.rs", BUILT + SECOND);
        let verdict = build.verdict().unwrap();
        assert!(verdict.contains("debug/tool is older than ") && verdict.contains("src/x.rs: "), "{verdict}");
        assert!(verdict.ends_with(": cargo build --bin tool") && !verdict.contains('\n'), "{verdict}");
    }

    /// The BPF programs are listed as the folder that lb-agent's build script watches.
    #[test]
    fn a_newer_file_in_a_listed_folder_counts() {
        let build = Build::new("folder", &["lb-ebpf/src"]);
        build.file("lb-ebpf/src/deep/main.rs", BUILT + SECOND);
        build.file("lb-ebpf/src/maps.rs", BUILT);
        assert!(build.verdict().unwrap().contains("lb-ebpf/src/deep"));
    }

    #[test]
    fn a_source_that_went_after_the_build_is_named() {
        let build = Build::new("gone", &["src/main.rs", "src/x.rs"]);
        build.file("src/main.rs", BUILT);
        build.touch("src", BUILT + SECOND);
        assert!(build.verdict().unwrap().contains("src/x.rs, which is gone: cargo build --bin tool"));
        // An old list: the program was built again since.
        build.touch("src", BUILT);
        assert_eq!(build.verdict(), None);
    }

    #[test]
    fn what_build_scripts_leave_is_no_source() {
        let build = Build::new("products", &["debug/build/x/out/x.o", "debug/build/y/out/y.o"]);
        build.file("debug/build/x/out/x.o", BUILT + SECOND);
        assert_eq!(build.verdict(), None);
    }

    #[test]
    fn without_a_list_a_program_is_taken_as_it_is() {
        let build = Build::new("plain", &["src/main.rs"]);
        fs::remove_file(build.path("debug/tool.d")).unwrap();
        assert_eq!(build.verdict(), None);
    }

    #[test]
    fn a_release_program_is_built_again_as_one() {
        let build = Build::new("release", &["src/main.rs"]);
        fs::rename(build.path("debug"), build.path("release")).unwrap();
        let verdict = stale(&build.path("release/tool")).unwrap().unwrap();
        assert!(verdict.ends_with(": cargo build --release --bin tool"), "{verdict}");
    }

    #[test]
    fn spaces_in_paths_are_not_the_spaces_between_them() {
        assert_eq!(sources("/t/tool: /a\\ b/x.rs /c.rs\n"), ["/a b/x.rs", "/c.rs"]);
        assert!(sources("").is_empty());
    }
}
