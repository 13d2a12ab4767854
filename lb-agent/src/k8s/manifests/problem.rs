//! What is wrong with a folder of manifests.

use core::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// A file, or a part of one, that cannot be used.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Problem {
    /// The file, or the folder itself.
    #[serde(serialize_with = "as_text")]
    pub path: Arc<Path>,
    /// Line, from 1, where the reason is about a place in the file.
    pub line: Option<u64>,
    /// Column, from 1.
    pub column: Option<u64>,
    /// Why, and what is used in its place.
    pub reason: String,
}

/// A path that is not UTF-8 is shown as well as it can be.
fn as_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

impl Problem {
    /// A problem of the file as a whole.
    pub(super) fn of_file(path: &Arc<Path>, reason: String) -> Self {
        Self { path: Arc::clone(path), line: None, column: None, reason }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
            if let Some(column) = self.column {
                write!(f, ":{column}")?;
            }
        }
        write!(f, ": {}", self.reason)
    }
}
