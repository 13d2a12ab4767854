//! Indices and values of `lb_meta`: what a later agent must know of the maps it finds.

/// Index of [`MAGIC`].
pub const MAGIC_AT: u32 = 0;
/// Index of the layout version of all agent-written maps.
pub const LAYOUT_AT: u32 = 1;
/// Index of the number of plans that were applied completely since the maps were made.
pub const REVISION_AT: u32 = 2;
/// Index of the version of the agent that took the maps over last, as [`version`] packs it.
pub const AGENT_VERSION_AT: u32 = 3;
/// Entries of the map.
pub const ENTRIES: u32 = 16;

/// Says that the maps of this folder are ours: "lb maps" in ASCII, read as a big-endian number.
pub const MAGIC: u64 = 0x006c_6220_6d61_7073;
/// Version of the layouts in this crate. A change of any key or value raises it.
pub const LAYOUT: u64 = 4;

/// A version of three numbers as one word: 16 bits each, the patch level lowest.
pub const fn version(major: u16, minor: u16, patch: u16) -> u64 {
    (major as u64) << 32 | (minor as u64) << 16 | patch as u64
}
