//! Programs around the one that is measured: one makes each packet another flow's, one counts what arrives.

use std::{
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::bpf::{Code, Kind, Map, Program, Reg, Size};
use super::frames::frame_len;

/// What [`Source`] answers where it could not make a packet or not go on.
const FAILED: u32 = 77;
/// Where it begins again is a power of two; the kernel makes one piece of memory of an array, and the largest is far above.
const MOST_FRAMES: usize = 1 << 20;

/// A program that makes each packet it sees the next one of a list, in turn, and goes on as another program.
///
/// A list is read from its beginning to its end, which a CPU guesses, in contrast to what the packets ask for: put flows in any order
/// into it and none is where the last one was. What the copy costs is part of every figure, so let all that are compared have the same list.
#[derive(Debug)]
pub struct Source {
    program: Program,
    next: Map,
    at: Map,
    first: Vec<u8>,
    _frames: Map,
}

impl Source {
    /// For `frames` of one length, a power of two of them. It leads to no program yet.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn new(kind: Kind, frames: &[Vec<u8>]) -> Result<Self> {
        ensure!(frames.len().is_power_of_two() && frames.len() <= MOST_FRAMES, "no power of two");
        let len = frames.first().map_or(0, Vec::len);
        ensure!(len == frame_len(false) || len == frame_len(true), "frames of {len} bytes");
        ensure!(frames.iter().all(|frame| frame.len() == len), "frames of different lengths");
        let list = Map::array(len, u32::try_from(frames.len())?)?;
        list.fill(&frames.concat())?;
        let at = Map::array(8, 1)?;
        let mut code = Code::default();
        let mask = i32::try_from(frames.len() - 1)?;
        code.copy(Reg::R6, Reg::R1).set(Reg::R7, 0).lookup(&at, Reg::R7, "fail");
        code.load(Size::Eight, Reg::R8, Reg::R0, 0).copy(Reg::R1, Reg::R8).add(Reg::R1, 1);
        code.store(Size::Eight, Reg::R0, 0, Reg::R1).and(Reg::R8, mask);
        code.lookup(&list, Reg::R8, "fail").copy(Reg::R8, Reg::R0);
        code.packet(kind, i32::try_from(len)?, "fail");
        for word in (0..i16::try_from(len)?).step_by(8) {
            code.load(Size::Eight, Reg::R5, Reg::R8, word).store(Size::Eight, Reg::R2, word, Reg::R5);
        }
        let next = Map::programs()?;
        code.become_program(&next).land("fail").exit(i32::try_from(FAILED)?);
        let program = code.program(kind, "bench_source")?;
        Ok(Self { program, next, at, first: frames[0].clone(), _frames: list })
    }

    /// From now on, goes on as this one, of the same kind.
    ///
    /// # Errors
    /// It cannot be called.
    pub fn lead_to(&self, program: BorrowedFd<'_>) -> Result<()> {
        self.next.put(program)
    }

    /// Runs it for `repeat` packets from a device, beginning with number `from`; nanoseconds each.
    ///
    /// # Errors
    /// Those of the kernel; the program that decides was not reached.
    pub fn time(&self, ifindex: u32, from: u64, repeat: u32) -> Result<f64> {
        self.at.set(from)?;
        let ran = self.program.run(&self.first, ifindex, repeat)?;
        ensure!(ran.answer != FAILED, "the measured program was not reached");
        Ok(f64::from(ran.ns))
    }

    /// What the program that decides says of packet number `at` of the list.
    ///
    /// # Errors
    /// As [`Source::time`].
    pub fn answer(&self, ifindex: u32, at: u64) -> Result<u32> {
        self.at.set(at)?;
        let ran = self.program.run(&self.first, ifindex, 1)?;
        ensure!(ran.answer != FAILED, "the measured program was not reached");
        Ok(ran.answer)
    }

    /// Sends `count` packets from a device of the caller's namespace, beginning with number `from`.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn send(&self, ifindex: u32, from: u64, count: u32) -> Result<()> {
        self.at.set(from)?;
        self.program.send(&self.first, ifindex, count)
    }
}

/// What sending took.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// When it began.
    pub begin: Instant,
    /// What one frame takes that is sent alone: to make and to give back the memory for frames.
    pub alone: Duration,
    /// What all took, without that.
    pub took: Duration,
}

impl Sent {
    /// What it takes to send `count` frames, and one frame more, first and alone.
    ///
    /// # Errors
    /// Those of `send`.
    pub fn time(count: u32, send: impl Fn(u32) -> Result<()>) -> Result<Self> {
        let first = Instant::now();
        send(1)?;
        let (alone, begin) = (first.elapsed(), Instant::now());
        send(count)?;
        Ok(Self { begin, alone, took: begin.elapsed().saturating_sub(alone) })
    }
}

impl Source {
    /// As [`Source::send`], timed.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn send_timed(&self, ifindex: u32, from: u64, count: u32) -> Result<Sent> {
        Sent::time(count, |count| self.send(ifindex, from, count))
    }
}

/// Which end of a datagram has the port that is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The source: answers.
    Source = 0,
    /// The destination.
    Destination = 2,
}

/// A program at tc that counts datagrams, and ends them: they are dropped, or sent back to where they came from as if
/// somebody had answered. Everything else passes.
#[derive(Debug)]
pub struct Sink {
    program: Program,
    seen: Map,
    answers: Map,
}

impl Sink {
    /// For datagrams with a port at an end, or for all.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn new(port: Option<(End, u16)>) -> Result<Self> {
        let (seen, answers) = (Map::array(8, 1)?, Map::array(8, 1)?);
        let half = |number: u16| i32::from(number.to_be());
        let mut code = Code::default();
        code.copy(Reg::R6, Reg::R1).packet(Kind::Tc, 60, "other").load(Size::Two, Reg::R3, Reg::R2, 12);
        code.if_is(Reg::R3, half(0x0800), "v4").if_not(Reg::R3, half(0x86dd), "other");
        for v6 in [true, false] {
            let (proto, l4) = if v6 { (20, 54) } else { (23, 34) };
            if !v6 {
                code.land("v4");
            }
            code.load(Size::One, Reg::R3, Reg::R2, proto).if_not(Reg::R3, 17, "other");
            if let Some((end, port)) = port {
                code.load(Size::Two, Reg::R3, Reg::R2, l4 + end as i16).if_not(Reg::R3, half(port), "other");
            }
            code.count(&seen, 0).set(Reg::R7, 0).lookup(&answers, Reg::R7, "drop");
            code.load(Size::Eight, Reg::R1, Reg::R0, 0).if_is(Reg::R1, 0, "drop");
            code.packet(Kind::Tc, 60, "drop").swap(Size::Four, 0, 6).swap(Size::Two, 4, 10);
            if v6 {
                code.swap(Size::Eight, 22, 38).swap(Size::Eight, 30, 46);
            } else {
                code.swap(Size::Four, 26, 30);
            }
            code.swap(Size::Two, l4, l4 + 2).send_back();
        }
        code.land("drop").exit(2).land("other").exit(0);
        Ok(Self { program: code.program(Kind::Tc, "bench_sink")?, seen, answers })
    }

    /// The program.
    pub const fn program(&self) -> &Program {
        &self.program
    }

    /// Datagrams that were counted.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn seen(&self) -> Result<u64> {
        self.seen.get(0)
    }

    /// From now on, answers or does not.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn answer(&self, answers: bool) -> Result<()> {
        self.answers.set(answers.into())
    }
}
