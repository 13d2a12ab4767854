//! The table of what each program costs, as text that reads well in a diff.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use anyhow::{Context as _, Result, bail, ensure};

/// Above this a program is on its way to the verifier's limit of a million, whatever the table says. Those of devices are some twenty
/// functions, each of which is walked through by itself.
const VERIFIED_LIMIT: u64 = 150_000;

/// One program in one variant of the read-only switches, for example `lb_connect4 switches=1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cost {
    /// Instructions of the program and its subprograms in the object.
    instructions: u64,
    /// Instructions that the verifier walked through; a kernel's own number.
    verified: u64,
}

/// Costs of all programs, measured on one kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// The whole release, as `uname -r` prints it: a distribution changes its verifier within one `major.minor`.
    kernel: String,
    costs: BTreeMap<String, Cost>,
}

impl Table {
    /// Reads what [`fmt::Display`] writes.
    ///
    /// # Errors
    /// Naming the line that is not one of a table.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut table = Self { kernel: String::new(), costs: BTreeMap::new() };
        for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            match words[..] {
                ["kernel", kernel] => kernel.clone_into(&mut table.kernel),
                [ref name @ .., instructions, verified] if !name.is_empty() => {
                    let number =
                        |word: &str| word.parse().with_context(|| format!("`{line}`: `{word}` is no number"));
                    let cost = Cost { instructions: number(instructions)?, verified: number(verified)? };
                    ensure!(table.costs.insert(name.join(" "), cost).is_none(), "`{line}`: listed twice");
                }
                _ => bail!("`{line}`: expected a program and two numbers"),
            }
        }
        ensure!(!table.kernel.is_empty(), "no line says which kernel this was measured on");
        Ok(table)
    }

    /// What the loader prints, with the size of each program added.
    ///
    /// # Errors
    /// When it names a program that has no size, or a line is not one of the loader's.
    pub(super) fn measured(loaded: &str, sizes: &BTreeMap<String, usize>) -> Result<Self> {
        let mut rows = String::new();
        for line in loaded.lines() {
            let row = match line.rsplit_once(' ') {
                Some(("kernel", _)) => line.to_owned(),
                Some((name, verified)) => {
                    let program = name.split(' ').next().unwrap_or(name);
                    let size =
                        sizes.get(program).with_context(|| format!("the object has no program {program}"))?;
                    format!("{name} {size} {verified}")
                }
                None => bail!("`{line}`: expected a program and a number"),
            };
            rows.push_str(&row);
            rows.push('\n');
        }
        Self::parse(&rows)
    }

    /// Whether verified counts of the two tables are of one verifier; if not, why they are not compared.
    pub(super) fn other_kernel(&self, measured: &Self) -> Option<String> {
        (self.kernel != measured.kernel).then(|| {
            format!(
                "verified counts are compared with the limit of {VERIFIED_LIMIT} only: this is kernel {}, the table's are of {}",
                measured.kernel, self.kernel
            )
        })
    }

    /// What a reviewer should hear when `measured` is compared with this table.
    ///
    /// Instruction counts belong to the object. Verified counts belong to the kernel as well and are compared only when
    /// both were measured on the very same release; the limit holds everywhere.
    pub(super) fn differences(&self, measured: &Self) -> Vec<String> {
        let same_kernel = self.kernel == measured.kernel;
        let mut found = Vec::new();
        for (name, cost) in &measured.costs {
            match self.costs.get(name) {
                None => found.push(format!("{name}: not in the table")),
                Some(expected) if expected.instructions != cost.instructions => {
                    found.push(format!(
                        "{name}: {} instructions, the table has {}",
                        cost.instructions, expected.instructions
                    ));
                }
                Some(expected) if same_kernel && expected.verified != cost.verified => {
                    found.push(format!(
                        "{name}: {} verified, the table has {}",
                        cost.verified, expected.verified
                    ));
                }
                Some(_) => {}
            }
            if cost.verified > VERIFIED_LIMIT {
                found.push(format!("{name}: {} verified, the limit is {VERIFIED_LIMIT}", cost.verified));
            }
        }
        // An old kernel lacks what some switches turn on; the programs themselves are the same everywhere.
        let programs: BTreeSet<&str> = measured.costs.keys().map(|name| program(name)).collect();
        let gone = self.costs.keys().filter(|name| {
            if same_kernel { !measured.costs.contains_key(*name) } else { !programs.contains(program(name)) }
        });
        found.extend(gone.map(|name| format!("{name}: in the table, but not in the object")));
        found
    }
}

/// The program's name without the variant.
fn program(name: &str) -> &str {
    name.split(' ').next().unwrap_or(name)
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.costs.keys().map(String::len).max().unwrap_or(0).max("# program".len());
        writeln!(f, "# Written by `cargo xtask verify --bless`.")?;
        writeln!(f, "kernel {}", self.kernel)?;
        writeln!(f, "{:width$}  {:>12}  {:>8}", "# program", "instructions", "verified")?;
        for (name, cost) in &self.costs {
            writeln!(f, "{name:width$}  {:>12}  {:>8}", cost.instructions, cost.verified)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "kernel 6.18.44-a\nlb_connect4  318  606\nlb_connect4 switches=1  318  700\n";

    fn table(text: &str) -> Table {
        Table::parse(text).unwrap()
    }

    #[test]
    fn what_is_written_is_read_again() {
        assert_eq!(table(&table(TEXT).to_string()), table(TEXT));
        assert!(table(TEXT).differences(&table(TEXT)).is_empty());
    }

    #[test]
    fn every_kind_of_change_is_named() {
        for (measured, told) in [
            ("kernel 6.18.44-a\nlb_connect4 319 606\nlb_connect4 switches=1 318 700\n", "319 instructions"),
            ("kernel 6.18.44-a\nlb_connect4 318 607\nlb_connect4 switches=1 318 700\n", "607 verified"),
            ("kernel 6.18.44-a\nlb_connect4 318 606\n", "not in the object"),
            (
                "kernel 6.18.44-a\nlb_connect4 318 606\nlb_connect4 switches=1 318 700\nlb_x 1 1\n",
                "not in the table",
            ),
            ("kernel 6.18.44-a\nlb_connect4 318 199999\nlb_connect4 switches=1 318 700\n", "limit"),
        ] {
            let differences = table(TEXT).differences(&table(measured));
            assert!(differences.iter().any(|line| line.contains(told)), "{told}: {differences:?}");
        }
    }

    #[test]
    fn verified_counts_of_another_kernel_are_not_compared_but_limited() {
        let other = table("kernel 5.10.0-32-amd64\nlb_connect4 318 99\nlb_connect4 switches=1 318 99\n");
        assert!(table(TEXT).differences(&other).is_empty());
        let huge = table("kernel 5.10.0-32-amd64\nlb_connect4 318 150001\nlb_connect4 switches=1 318 99\n");
        assert_eq!(table(TEXT).differences(&huge).len(), 1);
    }

    #[test]
    fn a_kernel_with_other_patches_is_another_kernel() {
        let measured = "lb_connect4  318  607\nlb_connect4 switches=1  318  700\n";
        for release in ["6.18.44-b", "6.18.45-a", "6.18.44"] {
            let other = table(&format!("kernel {release}\n{measured}"));
            assert!(table(TEXT).differences(&other).is_empty(), "{release}");
            let said = table(TEXT).other_kernel(&other).unwrap();
            assert!(
                said.contains(release) && said.contains("6.18.44-a") && said.contains("150000"),
                "{said}"
            );
        }
        let same = table(&format!("kernel 6.18.44-a\n{measured}"));
        assert_eq!(table(TEXT).differences(&same).len(), 1);
        assert_eq!(table(TEXT).other_kernel(&same), None);
    }

    #[test]
    fn an_old_kernel_may_lack_a_variant_but_not_a_program() {
        assert!(table(TEXT).differences(&table("kernel 5.10.0-32-amd64\nlb_connect4 318 0\n")).is_empty());
        assert_eq!(table(TEXT).differences(&table("kernel 6.18.44-a\nlb_connect4 318 606\n")).len(), 1);
        let two = table(&format!("{TEXT}lb_guard 2 2\n"));
        assert_eq!(two.differences(&table("kernel 5.10.0-32-amd64\nlb_connect4 318 0\n")).len(), 1);
    }

    #[test]
    fn sizes_are_joined_to_what_the_loader_prints() {
        let sizes = BTreeMap::from([("lb_connect4".to_owned(), 318)]);
        let loaded = "kernel 6.18.44-a\nlb_connect4 606\nlb_connect4 switches=1 700\n";
        assert_eq!(Table::measured(loaded, &sizes).unwrap(), table(TEXT));
        assert!(Table::measured("kernel 6.18.44-a\nlb_other 606\n", &sizes).is_err());
    }

    #[test]
    fn a_line_that_is_no_row_is_named() {
        for text in [
            "kernel 6.18.44-a\nlb_connect4 318\n",
            "kernel 6.18.44-a\nlb_connect4 many 606\n",
            "lb_connect4 318 606\n",
        ] {
            assert!(Table::parse(text).is_err(), "{text}");
        }
    }
}
