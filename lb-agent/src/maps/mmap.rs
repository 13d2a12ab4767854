//! A mmapable array map in this process's memory.
#![expect(unsafe_code, reason = "mmap(2) gives a raw pointer; it is wrapped here once")]

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering},
};

/// Words of an array map, shared with the programs that read it and with everybody else who maps it.
///
/// Only atomic accesses exist: there is never a reference to plain memory that somebody else may change.
#[derive(Debug)]
pub(super) struct SharedWords {
    base: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping belongs to no thread, and every access to it is atomic.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps `words` words of an array map that was created with `BPF_F_MMAPABLE`.
    ///
    /// # Errors
    /// `EINVAL` if the map is not mmapable or smaller; `EPERM` if it is frozen.
    pub(super) fn map(fd: BorrowedFd<'_>, words: usize) -> io::Result<Self> {
        let length = words * size_of::<AtomicU64>();
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(base.cast())
            .map(|base| Self { base, words })
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
    }

    /// Number of words.
    pub(super) const fn len(&self) -> usize {
        self.words
    }

    /// The word at `index`.
    fn word(&self, index: usize) -> Option<&AtomicU64> {
        if index >= self.words {
            return None;
        }
        // SAFETY: `index` lies inside the mapping, whose length is `words` words.
        let word = unsafe { self.base.add(index) };
        // SAFETY: the mapping lives as long as `self`, is aligned to a page, and is only accessed atomically.
        Some(unsafe { word.as_ref() })
    }

    /// Loads a word.
    pub(super) fn load(&self, index: usize) -> Option<u64> {
        self.word(index).map(|word| word.load(Ordering::Acquire))
    }

    /// Stores a word after all earlier stores.
    pub(super) fn store(&self, index: usize, value: u64) -> Option<()> {
        self.word(index).map(|word| word.store(value, Ordering::Release))
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping, and no reference outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.words * size_of::<AtomicU64>()) };
    }
}
