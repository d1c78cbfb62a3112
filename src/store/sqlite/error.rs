//! Why a store could not be opened.

use std::path::{Path, PathBuf};

use super::salvage::SalvageError;
use super::space;

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be created, opened or written.
    #[error("the data directory {} cannot be used", directory.display())]
    Directory {
        /// The data directory.
        directory: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// A data directory belongs to one process at a time.
    #[error(
        "the data directory {} is in use by {}: stop it, or give this one a directory of its own",
        directory.display(), holder.map_or("another process".to_owned(), |pid| format!("process {pid}"))
    )]
    InUse {
        /// The data directory.
        directory: PathBuf,
        /// The process that holds it, when it could be read.
        holder: Option<u32>,
    },
    /// The file was written by a newer version.
    #[error(
        "{} has format {found}, and this version knows formats up to {known}: run the version that wrote it, or a \
         later one; if none did, it is damaged: `countersign store salvage --config FILE`", file.display()
    )]
    Newer {
        /// The database.
        file: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format that this version reads.
        known: u32,
    },
    /// The file is another program's database.
    #[error("{} is a database of another program: choose another data directory", file.display())]
    Foreign {
        /// The database.
        file: PathBuf,
    },
    /// Its tables are not those that we made.
    #[error(
        "the tables or indexes of {} have been altered: undo it with `sqlite3` (what was added beside them may stay), or \
         take what it holds into new ones with `countersign store salvage --config FILE`", file.display()
    )]
    Altered {
        /// The database.
        file: PathBuf,
    },
    /// Another program is in the middle of reading or writing the file.
    #[error("{} is being used by another program: close every `sqlite3` and whatever else reads it", file.display())]
    Busy {
        /// The database.
        file: PathBuf,
    },
    /// The file is no database, or a damaged one.
    #[error(
        "{} is damaged or not a database: salvage what it holds with `countersign store salvage --config FILE`, or \
         restore it from a backup", file.display()
    )]
    Damaged {
        /// The database.
        file: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// What the previous process left in the log could not be written again.
    #[error("the log of {} cannot be written", file.display())]
    Log {
        /// The database.
        file: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// There is no room to begin with.
    #[error("no room on the disk for {}: free some space", file.display())]
    Full {
        /// The database.
        file: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// It is damaged, and was not salvaged.
    #[error("{} is damaged ({damage})", file.display())]
    Salvage {
        /// The database.
        file: PathBuf,
        /// What is wrong with it.
        damage: String,
        /// Why it was not salvaged, and what to do.
        source: SalvageError,
    },
    /// Anything else that SQLite says.
    #[error("{} cannot be opened", file.display())]
    Sqlite {
        /// The database.
        file: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// A thread of the store's could not be started.
    #[error("the store's threads cannot be started")]
    Thread(#[source] std::io::Error),
}

impl OpenError {
    /// Why the database `file`, damaged as `damage` says, was not salvaged.
    pub(super) fn unsalvaged(file: &Path, damage: &str, source: SalvageError) -> Self {
        match source {
            SalvageError::Foreign { file } => Self::Foreign { file },
            source @ (SalvageError::Nothing { .. }
            | SalvageError::Space { .. }
            | SalvageError::Io(_)
            | SalvageError::Sqlite(_)) => {
                Self::Salvage { file: file.to_owned(), damage: damage.to_owned(), source }
            }
        }
    }

    pub(super) fn is_want_of_room(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Log { source, .. } => space::is_want_of_room(source),
            Self::Directory { .. }
            | Self::InUse { .. }
            | Self::Newer { .. }
            | Self::Foreign { .. }
            | Self::Altered { .. }
            | Self::Busy { .. }
            | Self::Damaged { .. }
            | Self::Salvage { .. }
            | Self::Sqlite { .. }
            | Self::Thread(_) => false,
        }
    }
}
