//! The folder of a cgroup id.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// The folder at or below `root` whose inode number is `id`: that is what a cgroup id is. Parents first, because programs
/// are attached near the root.
pub(super) fn find(root: &Path, id: u64) -> Option<PathBuf> {
    let mut level = vec![root.to_owned()];
    while !level.is_empty() {
        if let Some(found) = level.iter().find(|path| fs::metadata(path).is_ok_and(|path| path.ino() == id)) {
            return Some(found.clone());
        }
        level = level.iter().flat_map(|path| folders(path)).collect();
    }
    None
}

/// Folders directly below one that may be gone meanwhile.
fn folders(path: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_found_by_its_inode_number() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("kubepods/pod1");
        fs::create_dir_all(&inner).unwrap();
        fs::create_dir_all(root.path().join("system")).unwrap();
        let id = fs::metadata(&inner).unwrap().ino();
        assert_eq!(find(root.path(), id), Some(inner));
        let root_id = fs::metadata(root.path()).unwrap().ino();
        assert_eq!(find(root.path(), root_id).as_deref(), Some(root.path()));
        assert_eq!(find(root.path(), u64::MAX), None);
    }
}
