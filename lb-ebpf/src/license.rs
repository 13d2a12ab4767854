//! The licence that the object declares to the kernel, which lends some helpers only to GPL-compatible programs.
#![expect(unsafe_code, reason = "the loader finds the licence by its section and its unmangled name")]

/// include/linux/license.h knows this text.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
