//! What can be told about kernel 5.10 by looking at the object: helpers, instructions and relocations that it lacks.
//!
//! It does not replace loading on 5.10: the control-flow rules of old verifiers are invisible here.

use std::fmt;

use super::object::{Code, Function, Instruction, Object, Place, Reference};

/// The newest helper of kernel 5.10, `bpf_redirect_peer`: include/uapi/linux/bpf.h of v5.10.
const LAST_HELPER_OF_5_10: i32 = 155;

/// A newer helper that may be called where the function also reads a switch: the agent sets that read-only global after
/// probing, and the verifier removes the branch elsewhere.
struct Guarded {
    helper: i32,
    name: &'static str,
    global: &'static str,
}

const GUARDED: &[Guarded] = &[
    Guarded { helper: 160, name: "bpf_ktime_get_coarse_ns", global: "LB_HAS_COARSE_CLOCK" },
    Guarded { helper: 187, name: "bpf_set_retval", global: "LB_HAS_SET_RETVAL" },
    Guarded { helper: 196, name: "bpf_skc_to_mptcp_sock", global: "LB_HAS_MPTCP" },
];

/// Parts of symbols that only a path to a panic brings in. The verifier refuses such programs on every kernel; here the
/// reader learns which function it was.
const PANICS: &[&str] = &["panicking", "rust_begin_unwind", "unwrap_failed", "expect_failed", "slice_index"];

/// Opcodes, from include/uapi/linux/bpf.h and bpf_common.h.
mod op {
    pub(super) const CALL: u8 = 0x85;
    pub(super) const LOAD_IMM64: u8 = 0x18;
    pub(super) const ATOMIC_W: u8 = 0xc3;
    pub(super) const ATOMIC_DW: u8 = 0xdb;
    pub(super) const MOV64_REG: u8 = 0xbf;
    pub(super) const MOV32_REG: u8 = 0xbc;
    pub(super) const BSWAP: u8 = 0xd7;
    pub(super) const GOTOL: u8 = 0x06;
    pub(super) const MAY_GOTO: u8 = 0xe5;
    /// BPF_LDX | BPF_MEMSX with the sizes W, H and B.
    pub(super) const LOAD_SIGNED: [u8; 3] = [0x81, 0x89, 0x91];
    /// BPF_DIV and BPF_MOD of both widths, with an immediate or a register.
    pub(super) const DIVISIONS: [u8; 8] = [0x34, 0x37, 0x3c, 0x3f, 0x94, 0x97, 0x9c, 0x9f];
}

/// `src_reg` of a call: a helper by number, and a kernel function.
const HELPER: u8 = 0;
const KFUNC: u8 = 2;
/// `src_reg` of a 64-bit load: the address of a function.
const FUNCTION_ADDRESS: u8 = 4;

/// Something that 5.10 does not have, and where it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finding {
    place: String,
    problem: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.problem)
    }
}

/// Everything in the object that kernel 5.10 lacks.
pub(super) fn check(object: &Object) -> Vec<Finding> {
    let mut findings = Vec::new();
    for code in &object.code {
        for (index, instruction) in code.instructions() {
            let reference = code.references.get(&index);
            let function = code.function_at(index);
            let problem = match newer_helper(instruction, reference) {
                Some(helper) => helper_problem(code, function.map(Function::range), helper),
                None => instruction_problem(instruction, reference).map(str::to_owned),
            };
            if let Some(problem) = problem {
                let (name, start) = function
                    .map_or((code.section.as_str(), 0), |function| (function.name.as_str(), function.start));
                findings.push(Finding { place: format!("{name}+{}", index - start), problem });
            }
        }
    }
    for symbol in object.symbols.iter().filter(|symbol| PANICS.iter().any(|part| symbol.contains(part))) {
        findings.push(Finding { place: symbol.clone(), problem: "a panic can be reached".to_owned() });
    }
    findings
}

/// The number of a called helper that 5.10 does not have.
fn newer_helper(instruction: Instruction, reference: Option<&Reference>) -> Option<i32> {
    let is_helper = instruction.opcode == op::CALL && instruction.src == HELPER && reference.is_none();
    (is_helper && instruction.imm > LAST_HELPER_OF_5_10).then_some(instruction.imm)
}

fn helper_problem(code: &Code, function: Option<std::ops::Range<usize>>, helper: i32) -> Option<String> {
    let Some(guarded) = GUARDED.iter().find(|guarded| guarded.helper == helper) else {
        return Some(format!("helper {helper} is newer than 5.10 and no switch guards it"));
    };
    let reads_switch = function.is_some_and(|range| {
        code.references.range(range).any(|(_index, reference)| reference.name == guarded.global)
    });
    (!reads_switch)
        .then(|| format!("{} ({helper}) in a function that does not read {}", guarded.name, guarded.global))
}

/// Why an instruction, by itself, does not load on 5.10.
fn instruction_problem(instruction: Instruction, reference: Option<&Reference>) -> Option<&'static str> {
    let Instruction { opcode, src, offset, imm, .. } = instruction;
    let target = reference.map(|reference| reference.place);
    match opcode {
        op::CALL if src == KFUNC || target == Some(Place::Outside) => Some("calls a kernel function (5.13)"),
        op::LOAD_IMM64 if src == FUNCTION_ADDRESS || target == Some(Place::Code) => {
            Some("takes a function's address for a callback (5.13)")
        }
        // 0 is BPF_ADD without BPF_FETCH, the XADD of old.
        op::ATOMIC_W | op::ATOMIC_DW if imm != 0 => {
            Some("atomic operation other than add, or one that fetches (5.12)")
        }
        op::MOV64_REG | op::MOV32_REG if offset != 0 => Some("sign-extending move (cpu v4, 6.6)"),
        op::BSWAP => Some("unconditional byte swap (cpu v4, 6.6)"),
        op::GOTOL => Some("32-bit jump (cpu v4, 6.6)"),
        op::MAY_GOTO => Some("may_goto (6.9)"),
        _ if op::DIVISIONS.contains(&opcode) && offset == 1 => Some("signed division (cpu v4, 6.6)"),
        _ if op::LOAD_SIGNED.contains(&opcode) => Some("sign-extending load (cpu v4, 6.6)"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];

    fn call(src: u8, imm: i32) -> [u8; 8] {
        let [a, b, c, d] = imm.to_le_bytes();
        [op::CALL, src << 4, 0, 0, a, b, c, d]
    }

    fn load(src: u8) -> [u8; 16] {
        [op::LOAD_IMM64, src << 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    }

    /// An object with one function of these bytes and an exit, and with these references.
    fn object(bytes: &[u8], references: &[(usize, &str, Place)]) -> Object {
        let bytes = [bytes, &EXIT].concat();
        let function = Function { name: "lb_test".into(), start: 0, len: bytes.len() / 8 };
        let references: BTreeMap<_, _> = references
            .iter()
            .map(|&(index, name, place)| (index, Reference { name: name.into(), place }))
            .collect();
        let code = Code { section: "cgroup/connect4".into(), bytes, functions: vec![function], references };
        Object { code: vec![code], symbols: BTreeSet::new() }
    }

    fn problems(object: &Object) -> Vec<String> {
        check(object).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn helpers_of_5_10_and_calls_between_functions_pass() {
        assert!(problems(&object(&call(HELPER, LAST_HELPER_OF_5_10), &[])).is_empty());
        assert!(problems(&object(&call(1, 500), &[(0, "lb_other", Place::Code)])).is_empty());
    }

    #[test]
    fn a_newer_helper_is_named_with_its_function_and_place() {
        let problems = problems(&object(&[call(HELPER, 1), call(HELPER, 156)].concat(), &[]));
        assert_eq!(problems, ["lb_test+1: helper 156 is newer than 5.10 and no switch guards it"]);
    }

    #[test]
    fn a_guarded_helper_passes_only_where_its_switch_is_read() {
        let code = [load(0).as_slice(), &call(HELPER, 187)].concat();
        assert!(problems(&object(&code, &[(0, "LB_HAS_SET_RETVAL", Place::Data)])).is_empty());
        assert_eq!(problems(&object(&code, &[(0, "LB_HOST_NETNS", Place::Data)])).len(), 1);
        assert_eq!(problems(&object(&code, &[])).len(), 1);
    }

    #[test]
    fn kernel_functions_and_callbacks_are_found_before_and_after_relocation() {
        assert_eq!(problems(&object(&call(KFUNC, 7), &[])).len(), 1);
        assert_eq!(problems(&object(&call(1, -1), &[(0, "bpf_rdonly_cast", Place::Outside)])).len(), 1);
        assert_eq!(problems(&object(&load(FUNCTION_ADDRESS), &[])).len(), 1);
        assert_eq!(problems(&object(&load(0), &[(0, "callback", Place::Code)])).len(), 1);
        assert!(problems(&object(&load(0), &[(0, "lb_frontends", Place::Data)])).is_empty());
    }

    #[test]
    fn instructions_of_newer_cpus_are_found() {
        for bytes in [
            [op::ATOMIC_DW, 0x10, 0, 0, 1, 0, 0, 0],   // fetch_add
            [op::ATOMIC_W, 0x10, 0, 0, 0xf1, 0, 0, 0], // cmpxchg
            [op::MOV64_REG, 0x10, 8, 0, 0, 0, 0, 0],
            [op::BSWAP, 0, 0, 0, 16, 0, 0, 0],
            [op::GOTOL, 0, 0, 0, 1, 0, 0, 0],
            [op::MAY_GOTO, 0, 0, 0, 0, 0, 0, 0],
            [0x3f, 0x10, 1, 0, 0, 0, 0, 0], // sdiv
            [0x91, 0x10, 0, 0, 0, 0, 0, 0], // load of a signed byte
        ] {
            assert_eq!(problems(&object(&bytes, &[])).len(), 1, "{bytes:?}");
        }
        for bytes in [
            [op::ATOMIC_DW, 0x10, 0, 0, 0, 0, 0, 0], // XADD
            [op::MOV64_REG, 0x10, 0, 0, 0, 0, 0, 0],
            [0xdc, 0, 0, 0, 16, 0, 0, 0],   // to big endian
            [0x3f, 0x10, 0, 0, 0, 0, 0, 0], // unsigned division
        ] {
            assert!(problems(&object(&bytes, &[])).is_empty(), "{bytes:?}");
        }
    }

    #[test]
    fn the_second_half_of_a_wide_load_is_not_an_instruction() {
        let mut wide = load(0);
        wide[8] = op::BSWAP;
        assert!(problems(&object(&wide, &[])).is_empty());
    }

    #[test]
    fn a_panicking_symbol_is_found() {
        let mut object = object(&[], &[]);
        object.symbols.insert("_RNvNtCs1_4core9panicking18panic_bounds_check".into());
        assert_eq!(problems(&object).len(), 1);
    }
}
