//! Loads every program of a BPF object and prints what the verifier did: the loading half of `cargo xtask verify`.
//!
//! Nothing is attached or pinned; programs and maps are gone when this process ends.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel, programs::Program};
use clap::Parser;

/// Loads every program of a BPF object and prints how many instructions the verifier walked through.
#[derive(Parser)]
struct Arguments {
    /// The object file.
    object: PathBuf,
    /// Read-only 32-bit switches of the object. Everything is loaded with all of them 0, then with all of them 1.
    switches: Vec<String>,
}

/// The kernel that has all helpers behind today's switches: `bpf_set_retval` came with 5.18, `bpf_skc_to_mptcp_sock`
/// with 5.19.
const SWITCHES_SINCE: (u32, u32) = (5, 19);

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let object =
        fs::read(&arguments.object).with_context(|| format!("cannot read {}", arguments.object.display()))?;
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
    let release = release.trim_end();
    let (major, minor) = kernel_version(release)?;
    println!("kernel {release}");
    if arguments.switches.is_empty() {
        return load_all(&object, &[], "");
    }
    for value in [0, 1] {
        if value == 1 && (major, minor) < SWITCHES_SINCE {
            eprintln!(
                "NOT RUN: verify with all switches on: kernel {major}.{minor} lacks the helpers behind them"
            );
            continue;
        }
        let switches: Vec<(&str, u32)> =
            arguments.switches.iter().map(|name| (name.as_str(), value)).collect();
        load_all(&object, &switches, &format!(" switches={value}"))?;
    }
    Ok(())
}

/// Prints one line for each program: name, variant, verified instructions.
fn load_all(object: &[u8], switches: &[(&str, u32)], variant: &str) -> Result<()> {
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::STATS);
    for (name, value) in switches {
        loader.override_global(name, value, true);
    }
    let mut loaded = loader.load(object).with_context(|| format!("cannot load the object{variant}"))?;
    let mut names: Vec<String> = loaded.programs().map(|(name, _)| name.to_owned()).collect();
    names.sort();
    for name in names {
        let verified = load(&mut loaded, &name).with_context(|| format!("{name}{variant} does not load"))?;
        println!("{name}{variant} {verified}");
    }
    Ok(())
}

/// Loads one program and returns the number of instructions that the verifier walked through; 0 before kernel 5.16, which
/// does not tell.
fn load(loaded: &mut Ebpf, name: &str) -> Result<u32> {
    let program = loaded.program_mut(name).context("no such program")?;
    match program {
        Program::CgroupSockAddr(program) => program.load()?,
        Program::CgroupSkb(program) => program.load()?,
        Program::SchedClassifier(program) => program.load()?,
        Program::Xdp(program) => program.load()?,
        other => bail!("programs of type {:?} are not known here", other.prog_type()),
    }
    Ok(program.info()?.verified_instruction_count().unwrap_or(0))
}

/// Major and minor version in a kernel's release.
fn kernel_version(release: &str) -> Result<(u32, u32)> {
    let mut numbers = release.split(['.', '-']).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => bail!("`{release}` is no kernel release"),
    }
}
