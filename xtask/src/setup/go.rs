//! Downloads Go from a Go module proxy, for the tests' control plane, where the machine has none.
//!
//! Every release is a module there, `golang.org/toolchain`. The go command gets its own newer releases in the same way and
//! does to the unpacked files what [`finish`] does (its package `cmd/go/internal/toolchain`).

use std::{
    env, fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use xtask::{
    go::{Go, VERSION, downloaded},
    paths,
};

use super::packages::{self, Need};
use crate::command;

/// One architecture's file on the proxy.
struct Archive {
    /// As Rust names the architecture.
    arch: &'static str,
    /// As Go names it.
    platform: &'static str,
    /// Of the zip file. Both were seen to agree with sum.golang.org's entry for the module.
    sha256: &'static str,
}

const ARCHIVES: [Archive; 2] = [
    Archive {
        arch: "x86_64",
        platform: "linux-amd64",
        sha256: "30c2b1bf7dcc88d3eb0a1364e47ddd9128edb3110a30e8a0ef61cd5856b31de7",
    },
    Archive {
        arch: "aarch64",
        platform: "linux-arm64",
        sha256: "02b36b6787b3ac767668f630e2998df45a3b1f9ffee08d1bf3ef6487cd658d99",
    },
];

const NEEDS: &[Need] = &[
    Need {
        probe: &["curl", "--version"],
        packages: &["curl"],
        with: &["ca-certificates"],
        why: "downloads Go for the tests' control plane",
    },
    Need {
        probe: &["unzip", "-v"],
        packages: &["unzip"],
        with: &[],
        why: "unpacks the Go that is downloaded",
    },
];

/// The proxy of the Go project, which the go command asks too unless `GOPROXY` says otherwise.
const PROXY: &str = "https://proxy.golang.org";

/// Downloads Go into the tools folder. `missing` says why it is needed.
///
/// # Errors
/// One line: what could not be had.
pub(crate) fn install(missing: &str) -> Result<()> {
    let arch = env::consts::ARCH;
    let archive = ARCHIVES.iter().find(|archive| archive.arch == arch);
    let archive = archive.with_context(|| format!("no Go for {arch} is pinned here"))?;
    let setting = env::var("GOPROXY").unwrap_or_default();
    let proxies = proxies(&setting);
    ensure!(!proxies.is_empty(), "GOPROXY={setting} allows no download");
    packages::install(NEEDS)?;
    let tools = paths::tools_dir();
    fs::create_dir_all(&tools).with_context(|| format!("cannot create {}", tools.display()))?;
    eprintln!("setup: {missing}; downloading Go {VERSION} into {} (70 MB, once)", downloaded().display());
    let zip = tools.join("go.zip");
    let fetched = download(&proxies, archive.platform, |url| fetch(url, &zip, archive.sha256));
    if fetched.is_ok() {
        unpack(&zip, archive.platform)?;
    }
    remove(&zip)?;
    fetched?;
    Go::find().context("Go was downloaded but cannot be used").map(drop)
}

/// The addresses in a `GOPROXY`, or the Go project's own. `off` and `direct` are no addresses.
fn proxies(setting: &str) -> Vec<&str> {
    let list = if setting.is_empty() { PROXY } else { setting };
    list.split([',', '|']).map(str::trim).filter(|proxy| proxy.contains("://")).collect()
}

/// Asks one proxy after the other, until one gives the file.
fn download(proxies: &[&str], platform: &str, fetch: impl Fn(&str) -> Result<(), String>) -> Result<()> {
    let mut failures = Vec::new();
    for proxy in proxies {
        let proxy = proxy.trim_end_matches('/');
        match fetch(&format!("{proxy}/golang.org/toolchain/@v/v0.0.1-go{VERSION}.{platform}.zip")) {
            Ok(()) => return Ok(()),
            Err(why) => failures.push(format!("{proxy}: {why}")),
        }
    }
    bail!("Go cannot be downloaded ({})", failures.join("; "))
}

/// Gets what is behind `url` into `file`, if it is what it should be.
fn fetch(url: &str, file: &Path, sha256: &str) -> Result<(), String> {
    curl(url, file)?;
    let found = checksum(file).map_err(|error| format!("{error:#}"))?;
    if found == sha256 { Ok(()) } else { Err(format!("its file has SHA-256 {found}, not {sha256}")) }
}

fn curl(url: &str, file: &Path) -> Result<(), String> {
    let mut curl = command::program("curl");
    curl.args(["--silent", "--show-error", "--fail", "--location", "--retry", "2"])
        // A network that drops packets says nothing by itself.
        .args(["--connect-timeout", "20", "--speed-limit", "1000", "--speed-time", "60", "--output"])
        .arg(file)
        .arg(url);
    let output = curl.output().map_err(|error| format!("cannot run curl: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(said.trim().lines().last().unwrap_or("curl failed").to_owned())
}

fn checksum(file: &Path) -> Result<String> {
    let said = command::output(command::program("sha256sum").arg(file))?;
    said.split_ascii_whitespace().next().map(str::to_owned).context("sha256sum prints nothing")
}

/// Leaves the release in its folder, which appears only when everything is done.
fn unpack(zip: &Path, platform: &str) -> Result<()> {
    let unfinished = paths::tools_dir().join("go.unfinished");
    remove(&unfinished)?;
    remove(&downloaded())?;
    command::output(command::program("unzip").arg("-q").arg(zip).arg("-d").arg(&unfinished))?;
    let release = unfinished.join(format!("golang.org/toolchain@v0.0.1-go{VERSION}.{platform}"));
    finish(&release).with_context(|| format!("cannot prepare {}", release.display()))?;
    fs::rename(&release, downloaded()).context("cannot move Go to its place")?;
    remove(&unfinished)
}

/// Removes a file, or a folder with all that is in it, if it is there.
fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// What a module's zip cannot hold: programs that may be run, and a `go.mod` below its root.
fn finish(release: &Path) -> io::Result<()> {
    for program in ["bin", "pkg/tool"].into_iter().map(|folder| files(&release.join(folder))) {
        for program in program? {
            fs::set_permissions(program, fs::Permissions::from_mode(0o755))?;
        }
    }
    for file in files(&release.join("src"))? {
        if file.file_name().is_some_and(|name| name == "_go.mod") {
            fs::rename(&file, file.with_file_name("go.mod"))?;
        }
    }
    Ok(())
}

/// All files below `folder`.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_proxy_of_the_setting_is_asked_and_off_means_none() {
        assert_eq!(proxies(""), [PROXY]);
        assert_eq!(proxies("https://a.example,direct"), ["https://a.example"]);
        assert_eq!(
            proxies("http://a.example|https://b.example/go"),
            ["http://a.example", "https://b.example/go"]
        );
        assert!(proxies("off").is_empty() && proxies("direct").is_empty());
    }

    #[test]
    fn proxies_are_asked_in_turn_and_their_failures_are_one_line() {
        let fetch = |url: &str| {
            assert!(url.ends_with("/golang.org/toolchain/@v/v0.0.1-go1.26.8.linux-arm64.zip"), "{url}");
            if url.starts_with("https://good/golang.org") { Ok(()) } else { Err("no".to_owned()) }
        };
        download(&["https://bad", "https://good/"], "linux-arm64", fetch).unwrap();
        let error = download(&["https://bad", "https://worse"], "linux-arm64", fetch).unwrap_err();
        assert_eq!(error.to_string(), "Go cannot be downloaded (https://bad: no; https://worse: no)");
    }

    #[test]
    fn unpacked_programs_may_be_run_and_modules_have_their_names() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["bin/go", "pkg/tool/linux_amd64/link", "src/_go.mod", "src/cmd/_go.mod", "src/a.go"] {
            let file = folder.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        }
        finish(folder.path()).unwrap();
        let mode = |file: &str| folder.path().join(file).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode("bin/go"), mode("pkg/tool/linux_amd64/link"), mode("src/a.go")),
            (0o755, 0o755, 0o644)
        );
        for (file, exists) in [("src/go.mod", true), ("src/cmd/go.mod", true), ("src/cmd/_go.mod", false)] {
            assert_eq!(folder.path().join(file).exists(), exists, "{file}");
        }
    }

    #[test]
    fn a_checksum_is_that_of_the_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("empty");
        fs::write(&file, "").unwrap();
        // FIPS 180-4, of no bytes at all.
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(checksum(&file).unwrap(), empty);
    }
}
