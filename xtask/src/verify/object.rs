//! The parts of a BPF object file that the checks look at.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use anyhow::{Context as _, Result, ensure};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionFlags, SectionIndex,
    SymbolKind, elf::SHF_EXECINSTR, read::elf::ElfFile64,
};

/// Bytes of one instruction. `LOAD_IMM64` takes two.
const SIZE: usize = 8;
const LOAD_IMM64: u8 = 0x18;
const CALL: u8 = 0x85;

type Elf<'a> = ElfFile64<'a, object::LittleEndian>;

/// All code of an object, and all names in it.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) code: Vec<Code>,
    pub(super) symbols: BTreeSet<String>,
}

/// One section of code.
#[derive(Debug)]
pub(super) struct Code {
    pub(super) section: String,
    pub(super) bytes: Vec<u8>,
    pub(super) functions: Vec<Function>,
    /// What instructions refer to, by the index of the instruction.
    pub(super) references: BTreeMap<usize, Reference>,
}

/// A function; place and length are in instructions.
#[derive(Debug, Clone)]
pub(super) struct Function {
    pub(super) name: String,
    pub(super) start: usize,
    pub(super) len: usize,
}

impl Function {
    /// The indexes of its instructions.
    pub(super) fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

/// The symbol behind a relocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) name: String,
    pub(super) place: Place,
}

/// Where a symbol is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In a section of code of this object.
    Code,
    /// In any other section of this object.
    Data,
    /// Not in this object: the kernel has to bring it.
    Outside,
}

/// `struct bpf_insn`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Instruction {
    pub(super) opcode: u8,
    pub(super) src: u8,
    pub(super) offset: i16,
    pub(super) imm: i32,
}

impl Instruction {
    fn read([opcode, registers, o0, o1, i0, i1, i2, i3]: [u8; SIZE]) -> Self {
        Self {
            opcode,
            src: registers >> 4,
            offset: i16::from_le_bytes([o0, o1]),
            imm: i32::from_le_bytes([i0, i1, i2, i3]),
        }
    }
}

impl Code {
    /// Every instruction with its index; the second half of a wide load is skipped.
    pub(super) fn instructions(&self) -> impl Iterator<Item = (usize, Instruction)> {
        let mut is_second_half = false;
        let (chunks, _rest) = self.bytes.as_chunks::<SIZE>();
        chunks.iter().enumerate().filter_map(move |(index, &bytes)| {
            if std::mem::take(&mut is_second_half) {
                return None;
            }
            let instruction = Instruction::read(bytes);
            is_second_half = instruction.opcode == LOAD_IMM64;
            Some((index, instruction))
        })
    }

    /// The function that an instruction belongs to.
    pub(super) fn function_at(&self, index: usize) -> Option<&Function> {
        self.functions.iter().find(|function| function.range().contains(&index))
    }
}

impl Object {
    /// Reads an ELF file.
    ///
    /// # Errors
    /// When it is not a little-endian 64-bit ELF file or contradicts itself.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let elf = Elf::parse(bytes).context("not an ELF file for BPF")?;
        let mut code = Vec::new();
        for section in elf.sections() {
            if is_code(section.flags()) && section.size() > 0 {
                code.push(read_code(&elf, &section)?);
            }
        }
        ensure!(!code.is_empty(), "the object has no code");
        let symbols = elf.symbols().filter_map(|symbol| symbol.name().ok()).map(str::to_owned).collect();
        Ok(Self { code, symbols })
    }

    /// Instructions of each program, its subprograms included. A program is a function outside `.text`.
    pub(super) fn program_sizes(&self) -> BTreeMap<String, usize> {
        let programs =
            self.code.iter().filter(|code| code.section != ".text").flat_map(|code| &code.functions);
        programs
            .map(|program| {
                let mut reached = BTreeMap::new();
                self.reach(&program.name, &mut reached);
                (program.name.clone(), reached.values().sum())
            })
            .collect()
    }

    /// Collects a function and all that it refers to, with their lengths.
    fn reach<'a>(&'a self, name: &str, reached: &mut BTreeMap<&'a str, usize>) {
        let found = self.code.iter().find_map(|code| {
            code.functions.iter().find(|function| function.name == name).map(|function| (code, function))
        });
        if let Some((code, function)) = found
            && reached.insert(&function.name, function.len).is_none()
        {
            for reference in code.references.range(function.range()).map(|(_index, reference)| reference) {
                self.reach(&reference.name, reached);
            }
        }
    }
}

fn is_code(flags: SectionFlags) -> bool {
    matches!(flags, SectionFlags::Elf { sh_flags } if sh_flags & u64::from(SHF_EXECINSTR) != 0)
}

fn read_code<'a>(elf: &Elf<'a>, section: &impl object::ObjectSection<'a>) -> Result<Code> {
    let name = section.name().context("a section has no name")?.to_owned();
    let bytes = section.data().with_context(|| format!("cannot read section {name}"))?.to_vec();
    ensure!(bytes.len() % SIZE == 0, "section {name} ends within an instruction");
    let mut functions = Vec::new();
    for symbol in elf.symbols().filter(|symbol| symbol.section_index() == Some(section.index())) {
        if symbol.kind() == SymbolKind::Text && symbol.size() > 0 {
            let name = symbol.name().context("a function has no name")?.to_owned();
            functions.push(Function { name, start: index(symbol.address())?, len: index(symbol.size())? });
        }
    }
    let mut references = BTreeMap::new();
    for (offset, relocation) in section.relocations() {
        let RelocationTarget::Symbol(symbol) = relocation.target() else {
            continue;
        };
        let at = index(offset)?;
        let (chunks, _rest) = bytes.as_chunks::<SIZE>();
        let instruction = chunks.get(at).copied().map(Instruction::read);
        let instruction =
            instruction.with_context(|| format!("section {name}: a relocation beyond its end"))?;
        references.insert(at, resolve(elf, symbol, instruction)?);
    }
    Ok(Code { section: name, bytes, functions, references })
}

/// The symbol that an instruction refers to. Compilers name a section instead of a local symbol in it: then the instruction
/// holds the distance from the section's start, in bytes for data and in instructions, less one, for calls.
fn resolve(elf: &Elf<'_>, symbol: object::SymbolIndex, instruction: Instruction) -> Result<Reference> {
    let symbol = elf.symbol_by_index(symbol).context("a relocation names no symbol")?;
    let Some(section) = symbol.section_index() else {
        return Ok(Reference { name: symbol.name().unwrap_or_default().to_owned(), place: Place::Outside });
    };
    let place = if is_code(elf.section_by_index(section).context("a symbol names no section")?.flags()) {
        Place::Code
    } else {
        Place::Data
    };
    if symbol.kind() != SymbolKind::Section {
        return Ok(Reference { name: symbol.name().context("a symbol has no name")?.to_owned(), place });
    }
    let imm = i64::from(instruction.imm);
    let address = if instruction.opcode == CALL { (imm + 1) * 8 } else { imm };
    let name =
        u64::try_from(address).ok().and_then(|address| symbol_at(elf, section, address)).unwrap_or_default();
    Ok(Reference { name, place })
}

fn symbol_at(elf: &Elf<'_>, section: SectionIndex, address: u64) -> Option<String> {
    elf.symbols()
        .filter(|symbol| symbol.section_index() == Some(section) && symbol.kind() != SymbolKind::Section)
        .find(|symbol| (symbol.address()..symbol.address() + symbol.size().max(1)).contains(&address))
        .and_then(|symbol| symbol.name().ok().map(str::to_owned))
}

/// Bytes to instructions.
fn index(bytes: u64) -> Result<usize> {
    Ok(usize::try_from(bytes)? / SIZE)
}
