//! Which shared libraries a program needs, as `ldd` tells.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

/// Absolute paths of the libraries that `program` loads, its dynamic loader among them; none for a static one.
///
/// `ldd` runs the program's loader, so this is for programs that we would run anyway.
///
/// # Errors
/// When `ldd` cannot be run or a library is not installed.
pub fn of(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .output()
        .context("cannot run ldd, which comes with the C library (package libc-bin)")?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() || said.contains("not a dynamic executable"),
        "ldd {}: {}",
        program.display(),
        said.trim()
    );
    parse(&said).with_context(|| program.display().to_string())
}

/// Reads lines such as `libc.so.6 => /lib/libc.so.6 (0x7f..)` and `/lib64/ld-linux-x86-64.so.2 (0x7f..)`.
fn parse(said: &str) -> Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for line in said.lines() {
        let (name, place) = line.split_once("=>").unwrap_or((line, line));
        let place = place.trim();
        ensure!(place != "not found", "the library {} is not installed", name.trim());
        // What has no path is the kernel's own (vdso) or a remark.
        if place.starts_with('/') {
            let path = place.rsplit_once(" (0x").map_or(place, |(path, _address)| path);
            libraries.push(PathBuf::from(path));
        }
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found_and_the_vdso_is_not() {
        let said = "\tlinux-vdso.so.1 (0x00007ffd0b5f2000)\n\
                    \tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x00007f3cbd000000)\n\
                    \tlibc.so.6 => /opt/with space/libc.so.6 (0x00007f3cbce00000)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f3cbd0e0000)\n";
        let want = [
            "/lib/x86_64-linux-gnu/libgcc_s.so.1",
            "/opt/with space/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(parse(said).unwrap(), want.map(PathBuf::from));
    }

    #[test]
    fn a_static_program_needs_none() {
        assert!(parse("\tstatically linked\n").unwrap().is_empty());
        assert!(parse("\tnot a dynamic executable\n").unwrap().is_empty());
    }

    #[test]
    fn a_missing_library_is_named() {
        let error = parse("\tlibelf.so.1 => not found\n").unwrap_err();
        assert_eq!(error.to_string(), "the library libelf.so.1 is not installed");
    }

    #[test]
    fn this_very_program_needs_a_loader() {
        let libraries = of(&std::env::current_exe().unwrap()).unwrap();
        let is_loader = |path: &PathBuf| path.to_string_lossy().contains("/ld-");
        assert!(libraries.iter().any(is_loader), "{libraries:?}");
        assert!(libraries.iter().all(|path| path.is_file()), "{libraries:?}");
    }
}
