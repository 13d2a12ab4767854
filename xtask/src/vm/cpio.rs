//! Writes a cpio archive of the "newc" kind: what the kernel unpacks into its first file system.
//!
//! Every entry belongs to root and carries time 0, so equal content gives equal bytes. Parent folders are written
//! by themselves, because the kernel makes none.
//!
//! Source: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// Bytes before a name: six of magic and thirteen numbers of eight digits.
const HEADER: usize = 6 + 13 * 8;

/// An archive being written. Without [`Archive::finish`] the kernel takes it for a broken one.
#[derive(Debug)]
pub(super) struct Archive<W> {
    out: W,
    entries: u32,
    directories: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// An archive without entries.
    pub(super) fn new(out: W) -> Self {
        Self { out, entries: 0, directories: BTreeSet::new() }
    }

    /// Adds a folder and the folders above it; one that is there already is not added again.
    ///
    /// `path` is absolute or relative to the root, which is the same here.
    pub(super) fn directory(&mut self, path: &str) -> io::Result<()> {
        let path = path.trim_matches('/');
        let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
        for end in ends {
            let folder = &path[..end];
            if !folder.is_empty() && self.directories.insert(folder.to_owned()) {
                self.entry(folder, DIRECTORY | 0o755, (0, 0), &[])?;
            }
        }
        Ok(())
    }

    /// Adds a file with the given permission bits.
    ///
    /// Fails with `InvalidInput` from 4 GiB on: the format has 32 bits for a size.
    pub(super) fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, REGULAR | permissions, (0, 0), content)
    }

    /// Adds a symbolic link.
    pub(super) fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds the node of a character device, with its major and minor number.
    pub(super) fn character_device(&mut self, path: &str, device: (u32, u32)) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, CHARACTER_DEVICE | 0o600, device, &[])
    }

    /// Writes the end mark and gives the writer back.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parents(&mut self, path: &str) -> io::Result<()> {
        match path.trim_end_matches('/').rsplit_once('/') {
            Some((folder, _)) => self.directory(folder),
            None => Ok(()),
        }
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        let path = path.trim_start_matches('/');
        let too_large =
            |_| io::Error::new(io::ErrorKind::InvalidInput, format!("{path} is too large for cpio"));
        let size = u32::try_from(content.len()).map_err(too_large)?;
        let name_size = u32::try_from(path.len() + 1).map_err(too_large)?;
        self.entries += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let fields = [
            self.entries, // inode
            mode,
            0, // owner
            0, // group
            links,
            0, // time of change
            size,
            0, // major and
            0, // minor number of the device that holds the entry
            device.0,
            device.1,
            name_size,
            0, // checksum, used by another kind of cpio only
        ];
        self.out.write_all(b"070701")?;
        for field in fields {
            write!(self.out, "{field:08x}")?;
        }
        self.out.write_all(path.as_bytes())?;
        self.out.write_all(b"\0")?;
        self.pad(HEADER + path.len() + 1)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    /// Name and content each end at a multiple of four bytes.
    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..written.next_multiple_of(4) - written])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode, device and content of an entry.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    /// Reads an archive as the kernel's document describes the format.
    fn entries(mut bytes: &[u8]) -> Vec<Entry> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                let digits = std::str::from_utf8(&bytes[6 + index * 8..14 + index * 8]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            let (mode, size, device) = (field(1), field(6) as usize, (field(9), field(10)));
            let name_end = 110 + field(11) as usize;
            let content = name_end.next_multiple_of(4);
            assert_eq!(bytes[name_end - 1], 0, "a name ends with NUL");
            let name = String::from_utf8(bytes[110..name_end - 1].to_vec()).unwrap();
            found.push((name, mode, device, bytes[content..content + size].to_vec()));
            bytes = &bytes[(content + size).next_multiple_of(4)..];
        }
        found
    }

    fn archive(fill: impl FnOnce(&mut Archive<Vec<u8>>) -> io::Result<()>) -> Vec<u8> {
        let mut archive = Archive::new(Vec::new());
        fill(&mut archive).unwrap();
        archive.finish().unwrap()
    }

    #[test]
    fn a_file_comes_after_the_folders_above_it() {
        let bytes = archive(|archive| {
            archive.file("/lib/modules/veth.ko", 0o644, b"12345")?;
            archive.file("lib/modules/dummy.ko", 0o644, b"")?;
            archive.file("init", 0o755, b"abcd")
        });
        let names: Vec<(String, u32)> = entries(&bytes).into_iter().map(|entry| (entry.0, entry.1)).collect();
        let want = [
            ("lib", 0o040_755),
            ("lib/modules", 0o040_755),
            ("lib/modules/veth.ko", 0o100_644),
            ("lib/modules/dummy.ko", 0o100_644),
            ("init", 0o100_755),
            ("TRAILER!!!", 0),
        ];
        assert_eq!(names, want.map(|(name, mode)| (name.to_owned(), mode)));
    }

    #[test]
    fn content_of_every_length_survives_the_padding() {
        let contents: Vec<Vec<u8>> = (0..9).map(|length| vec![7; length]).collect();
        let bytes = archive(|archive| {
            for content in &contents {
                // Names of every length as well.
                archive.file(&"n".repeat(content.len() + 1), 0o600, content)?;
            }
            Ok(())
        });
        let read: Vec<Vec<u8>> = entries(&bytes).into_iter().map(|entry| entry.3).collect();
        assert_eq!(read[..contents.len()], contents);
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn links_and_devices_carry_target_and_number() {
        let bytes = archive(|archive| {
            archive.symlink("/var/run", "/run")?;
            archive.character_device("/dev/console", (5, 1))
        });
        let found = entries(&bytes);
        assert_eq!(found[1], ("var/run".into(), 0o120_777, (0, 0), b"/run".to_vec()));
        assert_eq!(found[3], ("dev/console".into(), 0o020_600, (5, 1), Vec::new()));
    }

    #[test]
    fn the_header_is_what_the_kernel_documents() {
        let bytes = archive(|_| Ok(()));
        let fields = "00000001 00000000 00000000 00000000 00000001 00000000 00000000 00000000 00000000 00000000 \
                      00000000 0000000b 00000000";
        let want = format!("070701{}TRAILER!!!\0\0\0\0", fields.replace(' ', ""));
        assert_eq!(String::from_utf8(bytes).unwrap(), want);
    }
}
