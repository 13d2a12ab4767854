//! Small BPF programs made here, instruction by instruction, and the system calls that they need.
//!
//! They make and count packets around the programs that are measured. The object of lb-ebpf holds nothing that only a
//! benchmark needs, and aya loads objects only.
#![expect(unsafe_code, reason = "bpf(2) and ioctl(2) take pointers")]

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    ptr,
};

use anyhow::{Context as _, Result, ensure};

/// Commands of bpf(2) (include/uapi/linux/bpf.h).
const MAP_CREATE: i64 = 0;
const MAP_LOOKUP: i64 = 1;
const MAP_UPDATE: i64 = 2;
const PROG_LOAD: i64 = 5;
const PROG_RUN: i64 = 10;
const MAP_UPDATE_BATCH: i64 = 26;
const LINK_CREATE: i64 = 28;
/// `BPF_MAP_TYPE_HASH`, `BPF_MAP_TYPE_ARRAY`, `BPF_MAP_TYPE_PROG_ARRAY`
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PROG_ARRAY: u32 = 3;
/// `BPF_TCX_INGRESS`, `BPF_XDP`
const TCX_INGRESS: u32 = 46;
const XDP: u32 = 37;
/// `BPF_F_TEST_XDP_LIVE_FRAMES`
const LIVE_FRAMES: u32 = 2;
/// `XDP_FLAGS_DRV_MODE`
const DRIVER_MODE: u32 = 4;
/// `BPF_F_NO_PREALLOC`
const NO_PREALLOC: u32 = 1;
/// Helpers.
const LOOKUP: i32 = 1;
const TAIL_CALL: i32 = 12;
const REDIRECT: i32 = 23;
const FIB_LOOKUP: i32 = 69;

/// What a program sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `struct __sk_buff`, at tc.
    Tc = 3,
    /// `struct xdp_md`.
    Xdp = 6,
}

impl Kind {
    /// Where the context has the first byte of the packet, and the one behind the last.
    const fn bounds(self) -> [i16; 2] {
        match self {
            Self::Tc => [76, 80],
            Self::Xdp => [0, 4],
        }
    }

    /// Where it says it is for, as aya does: kernels from 6.18 on let programs call only those for the same place.
    const fn attach_type(self) -> u32 {
        match self {
            Self::Tc => 0,
            Self::Xdp => XDP,
        }
    }
}

/// A register.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "numbers")]
pub enum Reg {
    R0 = 0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    /// The frame pointer.
    R10 = 10,
}
use Reg::{R0, R1, R2, R3, R4, R5, R6, R7, R10};

/// Bytes of a load or store.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "sizes")]
pub enum Size {
    Four = 0x00,
    Two = 0x08,
    One = 0x10,
    Eight = 0x18,
}

/// `struct bpf_insn`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Insn {
    code: u8,
    regs: u8,
    off: i16,
    imm: i32,
}

/// Instructions in the making. Jumps lead forward to the next [`Code::land`] of their label.
#[derive(Debug, Default)]
pub struct Code {
    insns: Vec<Insn>,
    jumps: Vec<(usize, &'static str)>,
}

impl Code {
    fn push(&mut self, code: u8, (to, from): (Reg, Reg), off: i16, imm: i32) -> &mut Self {
        self.insns.push(Insn { code, regs: to as u8 | ((from as u8) << 4), off, imm });
        self
    }

    /// `to = from`
    pub fn copy(&mut self, to: Reg, from: Reg) -> &mut Self {
        self.push(0xbf, (to, from), 0, 0)
    }

    /// `to = number`
    pub fn set(&mut self, to: Reg, number: i32) -> &mut Self {
        self.push(0xb7, (to, R0), 0, number)
    }

    /// `to += number`
    pub fn add(&mut self, to: Reg, number: i32) -> &mut Self {
        self.push(0x07, (to, R0), 0, number)
    }

    /// `to &= number`
    pub fn and(&mut self, to: Reg, number: i32) -> &mut Self {
        self.push(0x57, (to, R0), 0, number)
    }

    /// `to = *(from + off)`
    pub fn load(&mut self, size: Size, to: Reg, from: Reg, off: i16) -> &mut Self {
        self.push(0x61 | size as u8, (to, from), off, 0)
    }

    /// `*(to + off) = from`
    pub fn store(&mut self, size: Size, to: Reg, off: i16, from: Reg) -> &mut Self {
        self.push(0x63 | size as u8, (to, from), off, 0)
    }

    /// Jumps where `reg` is `number`.
    pub fn if_is(&mut self, reg: Reg, number: i32, label: &'static str) -> &mut Self {
        self.jumps.push((self.insns.len(), label));
        self.push(0x15, (reg, R0), 0, number)
    }

    /// Jumps where `reg` is not `number`.
    pub fn if_not(&mut self, reg: Reg, number: i32, label: &'static str) -> &mut Self {
        self.jumps.push((self.insns.len(), label));
        self.push(0x55, (reg, R0), 0, number)
    }

    /// Jumps where `one` is larger than `other`.
    pub fn if_above(&mut self, one: Reg, other: Reg, label: &'static str) -> &mut Self {
        self.jumps.push((self.insns.len(), label));
        self.push(0x2d, (one, other), 0, 0)
    }

    /// Where jumps to `label` lead.
    pub fn land(&mut self, label: &'static str) -> &mut Self {
        let here = self.insns.len();
        self.jumps.retain(|&(at, wanted)| {
            if wanted == label {
                self.insns[at].off = i16::try_from(here - at - 1).unwrap_or(i16::MAX);
            }
            wanted != label
        });
        self
    }

    /// Ends with `number`.
    pub fn exit(&mut self, number: i32) -> &mut Self {
        self.set(R0, number).push(0x95, (R0, R0), 0, 0)
    }

    fn call(&mut self, helper: i32) -> &mut Self {
        self.push(0x85, (R0, R0), 0, helper)
    }

    fn map(&mut self, to: Reg, map: &Map) -> &mut Self {
        // BPF_PSEUDO_MAP_FD
        self.insns.push(Insn { code: 0x18, regs: to as u8 | 0x10, off: 0, imm: map.fd.as_raw_fd() });
        self.insns.push(Insn { code: 0, regs: 0, off: 0, imm: 0 });
        self
    }

    /// R0 = the value of `index` in `map`, or jumps.
    pub fn lookup(&mut self, map: &Map, index: Reg, none: &'static str) -> &mut Self {
        self.store(Size::Four, R10, -4, index).copy(R2, R10).add(R2, -4).map(R1, map).call(LOOKUP);
        self.if_is(R0, 0, none)
    }

    /// R2 = the first `len` bytes of the packet of the context in R6, or jumps.
    pub fn packet(&mut self, kind: Kind, len: i32, short: &'static str) -> &mut Self {
        let [first, end] = kind.bounds();
        self.load(Size::Four, R2, R6, first).load(Size::Four, R3, R6, end);
        self.copy(R4, R2).add(R4, len).if_above(R4, R3, short)
    }

    /// One more in word `index` of `map`.
    pub fn count(&mut self, map: &Map, index: i32) -> &mut Self {
        self.set(R7, index).lookup(map, R7, "uncounted");
        self.load(Size::Eight, R1, R0, 0).add(R1, 1).store(Size::Eight, R0, 0, R1).land("uncounted")
    }

    /// Goes on as the program at 0 of `programs`, with the context in R6; goes on here if there is none.
    pub fn become_program(&mut self, programs: &Map) -> &mut Self {
        self.copy(R1, R6).map(R2, programs).set(R3, 0).call(TAIL_CALL)
    }

    /// Ends by sending the packet of the context in R6 out of its device.
    pub fn send_back(&mut self) -> &mut Self {
        self.load(Size::Four, R1, R6, 40).set(R2, 0).call(REDIRECT).push(0x95, (R0, R0), 0, 0)
    }

    /// Asks for the way of a packet of the context in R6: the first value of `question`, a `struct bpf_fib_lookup`, whose device is `ifindex`.
    pub fn route(&mut self, question: &Map, ifindex: i32, none: &'static str) -> &mut Self {
        self.set(R7, 0).lookup(question, R7, none).copy(R2, R0).set(R1, ifindex).store(Size::Four, R2, 8, R1);
        self.copy(R1, R6).set(R3, 64).set(R4, 0).call(FIB_LOOKUP)
    }

    /// R0 = the value in `map`, a hash, of the `len` bytes at `at` behind R2, or jumps. Both are multiples of 2.
    pub fn find(&mut self, map: &Map, (at, len): (i16, i16), none: &'static str) -> &mut Self {
        for half in (0..len).step_by(2) {
            self.load(Size::Two, R5, R2, at + half).store(Size::Two, R10, half - 64, R5);
        }
        self.copy(R2, R10).add(R2, -64).map(R1, map).call(LOOKUP).if_is(R0, 0, none)
    }

    /// Exchanges bytes at `one` and `other` behind R2.
    pub fn swap(&mut self, size: Size, one: i16, other: i16) -> &mut Self {
        self.load(size, R4, R2, one).load(size, R5, R2, other);
        self.store(size, R2, one, R5).store(size, R2, other, R4)
    }

    /// Loads the program.
    ///
    /// # Errors
    /// What the verifier says.
    pub fn program(&self, kind: Kind, name: &str) -> Result<Program> {
        #[repr(C)]
        struct Attr {
            kind: u32,
            count: u32,
            insns: u64,
            license: u64,
            log_level: u32,
            log_size: u32,
            log: u64,
            version: u32,
            flags: u32,
            name: [u8; 16],
            ifindex: u32,
            attach_type: u32,
        }
        let mut log = vec![0_u8; 1 << 20];
        let mut short = [0; 16];
        for (to, from) in short.iter_mut().zip(name.bytes().take(15)) {
            *to = from;
        }
        let license = CString::new("Dual MIT/GPL")?;
        let attr = Attr {
            kind: kind as u32,
            count: u32::try_from(self.insns.len())?,
            insns: self.insns.as_ptr().addr() as u64,
            license: license.as_ptr().addr() as u64,
            log_level: 1,
            log_size: u32::try_from(log.len())?,
            log: log.as_mut_ptr().addr() as u64,
            version: 0,
            flags: 0,
            name: short,
            ifindex: 0,
            attach_type: kind.attach_type(),
        };
        let loaded = create(PROG_LOAD, &attr);
        let loaded = loaded.with_context(|| {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(0);
            format!("program {name} does not load: {}", String::from_utf8_lossy(&log[..end]))
        });
        Ok(Program { fd: loaded?, kind })
    }
}

/// One bpf(2).
fn bpf<T>(command: i64, attr: &mut T) -> io::Result<i64> {
    let attr: *mut T = attr;
    // SAFETY: `attr` is a structure as the command has it, its size is said, and what its pointers lead to lives in the caller.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// One that gives a descriptor.
fn create<T>(command: i64, attr: &T) -> Result<OwnedFd> {
    // The kernel writes to none of these.
    // SAFETY: plain data is copied.
    let mut attr = unsafe { ptr::read(attr) };
    let fd = i32::try_from(bpf(command, &mut attr)?)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An array.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    value: usize,
}

impl Map {
    /// `entries` values of `value` bytes, a multiple of 8.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn array(value: usize, entries: u32) -> Result<Self> {
        Self::new(ARRAY, (4, value), entries, 0)
    }

    /// A hash with values of zeros for `keys`, all of one length, and room for `entries`; whether that is set aside before.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn hash(keys: &[Vec<u8>], value: usize, entries: u32, preallocated: bool) -> Result<Self> {
        let len = keys.first().map_or(0, Vec::len);
        let flags = if preallocated { 0 } else { NO_PREALLOC };
        let map = Self::new(HASH, (len, value), entries, flags)?;
        map.fill_keys(&keys.concat(), &vec![0; keys.len() * value])?;
        Ok(map)
    }

    /// One place for a program.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn programs() -> Result<Self> {
        Self::new(PROG_ARRAY, (4, 4), 1, 0)
    }

    /// Puts a program into the place.
    ///
    /// # Errors
    /// It is of another kind than the one before, or than who calls it.
    pub fn put(&self, program: BorrowedFd<'_>) -> Result<()> {
        self.write(&program.as_raw_fd().to_ne_bytes()).context("the program cannot be called")
    }

    fn new(kind: u32, (key, value): (usize, usize), entries: u32, flags: u32) -> Result<Self> {
        let attr = [kind, u32::try_from(key)?, u32::try_from(value)?, entries, flags];
        Ok(Self { fd: create(MAP_CREATE, &attr).context("cannot make a map")?, value })
    }

    /// Writes value 0.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn write(&self, value: &[u8]) -> Result<()> {
        let index = 0_u32;
        let [key, value] = [(&raw const index).addr(), value.as_ptr().addr()].map(|at| at as u64);
        #[expect(clippy::cast_sign_loss, reason = "descriptors are positive")]
        bpf(MAP_UPDATE, &mut [self.fd.as_raw_fd() as u64, key, value, 0])?;
        Ok(())
    }

    /// Writes all values, one after the other in `values`.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn fill(&self, values: &[u8]) -> Result<()> {
        let count = u32::try_from(values.len() / self.value)?;
        let keys: Vec<u8> = (0..count).flat_map(u32::to_ne_bytes).collect();
        self.fill_keys(&keys, values)
    }

    /// Writes the values of keys, both one after the other.
    fn fill_keys(&self, keys: &[u8], values: &[u8]) -> Result<()> {
        #[repr(C)]
        struct Attr {
            batches: [u64; 2],
            keys: u64,
            values: u64,
            count: u32,
            map: i32,
            flags: [u64; 2],
        }
        let count = u32::try_from(values.len() / self.value)?;
        let mut attr = Attr {
            batches: [0; 2],
            keys: keys.as_ptr().addr() as u64,
            values: values.as_ptr().addr() as u64,
            count,
            map: self.fd.as_raw_fd(),
            flags: [0; 2],
        };
        bpf(MAP_UPDATE_BATCH, &mut attr).context("cannot fill a map")?;
        Ok(())
    }

    /// Writes word 0.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn set(&self, word: u64) -> Result<()> {
        self.write(&word.to_ne_bytes())
    }

    /// Reads word `index` of a map of words.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn get(&self, index: u32) -> Result<u64> {
        ensure!(self.value == 8, "no map of words");
        let mut word = 0_u64;
        let [key, value] = [(&raw const index).addr(), (&raw mut word).addr()].map(|at| at as u64);
        #[expect(clippy::cast_sign_loss, reason = "descriptors are positive")]
        bpf(MAP_LOOKUP, &mut [self.fd.as_raw_fd() as u64, key, value, 0])?;
        Ok(word)
    }
}

/// A loaded program.
#[derive(Debug)]
pub struct Program {
    fd: OwnedFd,
    kind: Kind,
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What BPF_PROG_TEST_RUN said.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    /// What the program returned at last.
    pub answer: u32,
    /// Nanoseconds of one run, on average, without what other processes took between runs.
    pub ns: u32,
}

/// `union bpf_attr`, BPF_PROG_TEST_RUN.
#[repr(C)]
#[derive(Default)]
struct RunAttr {
    program: i32,
    answer: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    pad: u32,
}

impl Program {
    /// Runs it `repeat` times on a frame that comes from device `ifindex` of the caller's namespace. The frame is the same memory
    /// each time: what one run has written is what the next one sees.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn run(&self, frame: &[u8], ifindex: u32, repeat: u32) -> Result<Ran> {
        // struct __sk_buff, whose field at 40 is the device; of struct xdp_md, that at 4 is the length, and that at 12 the device.
        let mut ctx = [0_u32; 48];
        let size = match self.kind {
            Kind::Tc => {
                ctx[10] = ifindex;
                size_of_val(&ctx)
            }
            Kind::Xdp => {
                ctx[1] = u32::try_from(frame.len())?;
                ctx[3] = ifindex;
                24
            }
        };
        let mut attr = RunAttr {
            program: self.fd.as_raw_fd(),
            size_in: u32::try_from(frame.len())?,
            data_in: frame.as_ptr().addr() as u64,
            repeat,
            ctx_size_in: u32::try_from(size)?,
            ctx_in: ctx.as_ptr().addr() as u64,
            ..RunAttr::default()
        };
        bpf(PROG_RUN, &mut attr).context("BPF_PROG_TEST_RUN")?;
        Ok(Ran { answer: attr.answer, ns: attr.duration })
    }

    /// Sends `repeat` frames as if they came from device `ifindex` of the caller's namespace: what the program says of them is done.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn send(&self, frame: &[u8], ifindex: u32, repeat: u32) -> Result<()> {
        let ctx = [0, u32::try_from(frame.len())?, 0, ifindex, 0, 0];
        let mut attr = RunAttr {
            program: self.fd.as_raw_fd(),
            size_in: u32::try_from(frame.len())?,
            data_in: frame.as_ptr().addr() as u64,
            repeat,
            ctx_size_in: 24,
            ctx_in: ctx.as_ptr().addr() as u64,
            flags: LIVE_FRAMES,
            batch: 64,
            ..RunAttr::default()
        };
        bpf(PROG_RUN, &mut attr).context("BPF_PROG_TEST_RUN with live frames (kernel 5.18)")?;
        Ok(())
    }

    /// Attaches it to what comes from device `ifindex` of the caller's namespace, until the link is dropped.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn attach(&self, ifindex: u32) -> Result<OwnedFd> {
        let (kind, flags) = match self.kind {
            Kind::Tc => (TCX_INGRESS, 0),
            Kind::Xdp => (XDP, DRIVER_MODE),
        };
        #[expect(clippy::cast_sign_loss, reason = "descriptors are positive")]
        let attr = [self.fd.as_raw_fd() as u32, ifindex, kind, flags, 0, 0, 0, 0];
        create(LINK_CREATE, &attr).context("cannot attach (tcx: kernel 6.6)")
    }
}

/// Lets the calling thread run before all others of its CPU (SCHED_FIFO): a thread that is preempted in the middle of a round has also its
/// softirq work taken over by the kernel's own thread.
///
/// # Errors
/// This needs CAP_SYS_NICE.
pub fn go_first() -> Result<()> {
    let first = libc::sched_param { sched_priority: 1 };
    // SAFETY: the structure lives here; 0 is the calling thread.
    let answer = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const first) };
    ensure!(answer == 0, "cannot go before others: {}", io::Error::last_os_error());
    Ok(())
}

/// Lets a veth take frames of the other end that are none of a socket yet, by switching on GRO: `ethtool -K NAME gro on`. In the caller's
/// namespace.
///
/// # Errors
/// There is no such device.
pub fn take_frames(name: &str) -> Result<()> {
    /// `ETHTOOL_SGRO` (include/uapi/linux/ethtool.h)
    const SET_GRO: u32 = 0x2c;
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    let mut value = [SET_GRO, 1];
    let mut request = [0_u8; 40];
    ensure!(name.len() < 16, "{name} is no name of a device");
    for (to, from) in request.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    let at = value.as_mut_ptr().addr().to_ne_bytes();
    for (to, from) in request.iter_mut().skip(16).zip(at) {
        *to = from;
    }
    // SAFETY: a struct ifreq, whose pointer leads to a struct ethtool_value; both live here.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, request.as_mut_ptr()) };
    ensure!(answer == 0, "cannot switch on GRO of {name}: {}", io::Error::last_os_error());
    Ok(())
}
