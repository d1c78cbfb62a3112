//! Saves what can be saved of a damaged database: reads every page by itself, believes deliveries only with their
//! checksum, and puts what it found into a new database that takes the damaged one's place. Everything that is lost
//! and can be named is named. The damaged files are kept in a directory beside it; nothing is deleted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use self::files::{CREATED, aside, begin, complete, discard, write_report};
use self::log::{Log, word};
use self::merge::Staging;
use self::page::{MAGIC, Pages};
use super::directory::beside;
use super::{DATABASE, schema, space};
use crate::id::Id;

mod files;
mod log;
mod merge;
mod page;
mod record;

pub(super) use self::files::{mark, marked, note_created, settle, told, unmark, untold};

/// What salvaging a store came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Salvaged {
    /// Deliveries that are intact.
    pub deliveries: u64,
    /// Forwards that are waiting.
    pub pending: u64,
    /// Claims.
    pub claims: u64,
    /// Secrets that came with a handshake, and that nobody has been shown.
    #[serde(default)]
    pub handed_over: u64,
    /// What was damaged, and what became of it.
    pub findings: Vec<Finding>,
    /// Where the damaged files are now.
    pub damaged: PathBuf,
}

/// Something in a store that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The delivery that it concerns, where that is known.
    #[serde(serialize_with = "write_id", deserialize_with = "read_id")]
    pub delivery: Option<Id>,
    /// What it is.
    pub what: String,
    /// Whether something is lost by it.
    pub lost: bool,
}

fn write_id<S: Serializer>(id: &Option<Id>, serializer: S) -> Result<S::Ok, S::Error> {
    id.map(|id| id.to_string()).serialize(serializer)
}

fn read_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Id>, D::Error> {
    let text: Option<String> = Option::deserialize(deserializer)?;
    text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
}

/// Why a damaged store could not be salvaged. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum SalvageError {
    /// There is nothing of ours in it.
    #[error(
        "nothing of the gateway's can be found in {}: restore it from a backup, or move it aside with \
         `countersign store salvage --config FILE` and start with nothing", file.display()
    )]
    Nothing {
        /// The database.
        file: PathBuf,
    },
    /// The file is another program's database.
    #[error("{} is a database of another program: choose another data directory", file.display())]
    Foreign {
        /// The database.
        file: PathBuf,
    },
    /// What is saved is written beside the damaged file, which stays.
    #[error(
        "salvaging needs {needed} bytes of free disk space and there are {free}: make room and start again"
    )]
    Space {
        /// Bytes that it may take.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// A file could not be read, written or moved.
    #[error("a file cannot be read, written or moved")]
    Io(#[from] io::Error),
    /// The new database could not be written.
    #[error("the new database cannot be written")]
    Sqlite(#[from] rusqlite::Error),
}

/// What the files of a database say of it without its being opened.
pub(super) struct Damage {
    pub(super) what: String,
    /// Whether a database that is sound shows that it is none.
    pub(super) suspected: bool,
}

/// Why the database in `directory` must not be opened as it is, where that can be told without opening it: SQLite
/// itself would say nothing of a log that is damaged, or of a file that has been emptied.
///
/// # Errors
/// When its files cannot be read.
pub(super) fn needed(directory: &Path) -> io::Result<Option<String>> {
    Ok(damage(directory)?.map(|damage| damage.what))
}

/// The same, and how sure that is.
pub(super) fn damage(directory: &Path) -> io::Result<Option<Damage>> {
    let certain = |what| Damage { what, suspected: false };
    let file = directory.join(DATABASE);
    let length = match fs::metadata(&file) {
        Ok(found) => Some(found.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if length.unwrap_or(0) == 0 {
        // A log without a database may hold all there is: SQLite would throw it away.
        let has_log = fs::metadata(beside(&file, "-wal")).is_ok_and(|log| log.len() > 0);
        let known = has_log || directory.join(CREATED).try_exists()?;
        let what = if length.is_some() { "it is empty" } else { "it is missing" };
        return Ok(known.then(|| certain(what.to_owned())));
    }
    let log = Log::read(&file)?;
    if let Some(what) = log.damage().filter(|_| !log.empty) {
        return Ok(Some(certain(what)));
    }
    if let Some(what) = header_damage(&file)? {
        return Ok(Some(certain(what)));
    }
    Ok(log.damage().map(|what| Damage { what, suspected: true }))
}

/// What is wrong with the first bytes of a database of ours, which SQLite takes for another way of writing.
fn header_damage(file: &Path) -> io::Result<Option<String>> {
    let pages = Pages::open(file)?;
    let (first, _) = pages.read(1)?;
    let ours = word(&first, 68) == schema::APPLICATION_ID.cast_unsigned();
    let plain = first[..16] == MAGIC
        // With a rollback journal it is what a first start that failed leaves, or a copy of an operator's.
        && [[2, 2], [1, 1]].iter().any(|mode| first[18..20] == *mode)
        && first[20..24] == [0, 64, 32, 32]
        && (1..=4).contains(&word(&first, 44))
        && word(&first, 56) == 1
        && match (word(&first, 52), word(&first, 64)) {
            (0, 0) => true,
            (root, 0 | 1) => root > 0 && has_map(&pages)?,
            _ => false,
        };
    Ok((ours && !plain).then(|| "its header is damaged".to_owned()))
}

/// Whether the second page says of each page behind it what it belongs to, as an operator's `PRAGMA auto_vacuum` has it.
fn has_map(pages: &Pages) -> io::Result<bool> {
    let (map, _) = pages.read(2)?;
    let entries = map.chunks_exact(5).take(pages.count.saturating_sub(2) as usize);
    Ok(entries.into_iter().all(|entry| (1..=5).contains(&entry[0]) && word(entry, 1) <= pages.count))
}

/// Salvages the database in `directory`, which the caller holds. Where nothing at all can be saved, only when `forced`.
///
/// # Errors
/// See [`SalvageError`]; the database is as it was.
pub(super) fn salvage(directory: &Path, forced: bool) -> Result<Salvaged, SalvageError> {
    let salvaged = build(directory, forced);
    if salvaged.is_err() {
        // It would take the room that the next try needs.
        discard(directory)?;
    }
    salvaged
}

fn build(directory: &Path, forced: bool) -> Result<Salvaged, SalvageError> {
    let file = directory.join(DATABASE);
    discard(directory)?;
    let pages = Pages::open(&file)?;
    // What is found is stored twice while it is compared, with indexes of its own: for small deliveries four times.
    let needed = pages.count as u64 * pages.size as u64 * 4 + (1 << 20);
    let free = space::room(directory)?.free;
    if free < needed {
        return Err(SalvageError::Space { needed, free });
    }

    let (path, mut connection) = begin(directory)?;
    let transaction = connection.transaction()?;
    let staging = Staging::new(&transaction)?;
    read(&pages, &staging)?;
    let mut salvaged = staging.merge()?;
    transaction.commit()?;
    let (gone, is_empty) = (lost_pages(&pages)?, pages.is_empty()?);
    if salvaged.deliveries + salvaged.pending + salvaged.claims + salvaged.handed_over == 0 {
        let (first, _) = pages.read(1)?;
        let a_database = first[..16] == MAGIC;
        let application = word(&first, 68);
        if a_database && application != schema::APPLICATION_ID.cast_unsigned() && word(&first, 28) > 1 {
            return Err(SalvageError::Foreign { file });
        }
        // One that is whole but for the head of its log, and has had nothing in it yet, is what it was.
        if !forced && (gone.is_some() || !is_empty) {
            return Err(SalvageError::Nothing { file });
        }
    }
    let gone = match gone {
        None if salvaged.deliveries == 0 && !is_empty => {
            Some("nothing of what it held can be read".to_owned())
        }
        gone => gone,
    };
    salvaged.findings.extend(gone.map(|what| Finding { delivery: None, what, lost: true }));
    salvaged.damaged = aside(directory)?;
    // One that is missing is set aside as one that is empty.
    fs::File::options().append(true).create(true).open(&file)?;
    write_report(directory, &salvaged)?;
    complete(directory, &path, connection)?;
    settle(directory)?;
    Ok(salvaged)
}

/// What cannot be named, since all that named it is gone with it.
fn lost_pages(pages: &Pages) -> io::Result<Option<String>> {
    let (first, _) = pages.read(1)?;
    let sound = first[..16] == MAGIC;
    let promised =
        if sound && word(&first, 28) < pages.count.saturating_mul(4) { word(&first, 28) } else { 0 };
    let cut_off = promised.saturating_sub(pages.count);
    let damage = pages.log.damage().filter(|_| !pages.log.is_whole());
    let what = match (cut_off, damage) {
        (0, None) => return Ok(None),
        (0, Some(damage)) => damage,
        (pages, None) => format!("{pages} pages are cut off the file"),
        (pages, Some(damage)) => format!("{pages} pages are cut off the file, and {damage}"),
    };
    Ok(Some(format!("{what}: deliveries that stood nowhere else cannot be named")))
}

/// Puts every row that can be found where it can be compared with others.
fn read(pages: &Pages, staging: &Staging<'_>) -> Result<(), SalvageError> {
    let free = pages.free()?;
    for number in (1..=pages.count).filter(|number| !free.contains(number)) {
        let (page, rank) = pages.read(number)?;
        for row in pages.rows(number, &page) {
            staging.take(&row, rank)?;
        }
    }
    for ((index, frame), rank) in
        pages.log.frames.iter().enumerate().zip(0..).filter(|((_, frame), _)| !frame.good)
    {
        for row in pages.rows(frame.page, &pages.log.page(index)?) {
            staging.take(&row, rank)?;
        }
    }
    // What no page knows of any more may have been removed: taken only where something asks for it.
    if staging.wants()? {
        let images = (1..=pages.count).map(|number| pages.read(number).map(|(page, _)| page));
        let older = (0..pages.log.frames.len()).map(|index| pages.log.page(index));
        for page in images.chain(older) {
            for row in pages.search(&page?, DELIVERY.0, DELIVERY.1) {
                staging.take_wanted(&row)?;
            }
        }
    }
    Ok(())
}

/// A delivery has so many columns, and its id, of this type, is the first: a blob of 16 bytes.
const DELIVERY: (usize, u8) = (16, 12 + 2 * 16);

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::store::sqlite::salvage::log::PAGE_SIZE;

    /// A data directory with a database of ours that nothing is in, and its bytes.
    fn empty_store() -> (tempfile::TempDir, Vec<u8>) {
        let root = tempfile::tempdir().unwrap();
        drop(schema::create(&root.path().join(DATABASE)).unwrap());
        let bytes = fs::read(root.path().join(DATABASE)).unwrap();
        (root, bytes)
    }

    fn store_of(bytes: &[u8]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(DATABASE), bytes).unwrap();
        root
    }

    fn with(bytes: &[u8], at: usize, change: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes[at..at + change.len()].copy_from_slice(change);
        bytes
    }

    /// Taken for a new one, a store that somebody emptied would begin again with nothing, and nobody would be told.
    #[test]
    fn a_database_that_is_gone_is_known_by_what_it_left() {
        for (database, log, was_created, expected) in [
            (None, None, false, None),
            (Some(""), None, false, None),
            (None, Some(""), false, None),
            (None, None, true, Some("it is missing")),
            (None, Some("x"), false, Some("it is missing")),
            (Some(""), Some("x"), false, Some("it is empty")),
            (Some(""), None, true, Some("it is empty")),
        ] {
            let root = tempfile::tempdir().unwrap();
            let file = root.path().join(DATABASE);
            for (path, text) in [
                (file.clone(), database),
                (beside(&file, "-wal"), log),
                (root.path().join(CREATED), was_created.then_some("")),
            ] {
                if let Some(text) = text {
                    fs::write(path, text).unwrap();
                }
            }
            let found = needed(root.path()).unwrap();
            assert_eq!(found.as_deref(), expected, "{database:?} {log:?} {was_created}");
        }
        // What cannot be looked at is not missing.
        let root = tempfile::tempdir().unwrap();
        let itself = root.path().join(DATABASE);
        std::os::unix::fs::symlink(&itself, &itself).unwrap();
        assert!(needed(root.path()).is_err());
    }

    #[test]
    fn a_log_that_is_damaged_is_certain_and_one_that_is_gone_a_suspicion() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join(DATABASE);
        let connection = schema::open_writer(&file).unwrap();
        connection.execute_batch("CREATE TABLE x (n); INSERT INTO x VALUES (1)").unwrap();
        let judged = |change: &dyn Fn(&mut Vec<u8>)| {
            let copy = tempfile::tempdir().unwrap();
            let to = copy.path().join(DATABASE);
            let mut log = fs::read(beside(&file, "-wal")).unwrap();
            change(&mut log);
            fs::write(beside(&to, "-wal"), log).unwrap();
            for suffix in ["", "-shm"] {
                fs::copy(beside(&file, suffix), beside(&to, suffix)).unwrap();
            }
            damage(copy.path()).unwrap().map(|damage| damage.suspected)
        };
        assert_eq!(judged(&|_| {}), None);
        assert_eq!(judged(&|log| log[100] ^= 1), Some(false));
        assert_eq!(judged(&|log| log.truncate(log.len() - 1)), Some(false));
        assert_eq!(judged(&Vec::clear), Some(true));
    }

    /// By each of these bytes SQLite would write the database in another way, or call it another program's.
    #[test]
    fn a_header_is_damaged_if_one_field_of_it_is() {
        let (root, sound) = empty_store();
        let judged = |bytes: &[u8]| header_damage(&store_of(bytes).path().join(DATABASE)).unwrap().is_some();
        assert!(!judged(&sound));
        for (at, change) in [
            (0, &b"s"[..]),
            (18, &[2, 1]),
            (18, &[3, 3]),
            (20, &[1]),
            (21, &[65]),
            (47, &[5]),
            (47, &[0]),
            (59, &[2]),
            (55, &[9]),
            (67, &[1]),
            (67, &[2]),
        ] {
            assert!(judged(&with(&sound, at, change)), "byte {at}");
        }
        for (at, change) in [(18, &[2, 2][..]), (47, &[1]), (47, &[4])] {
            assert!(!judged(&with(&sound, at, change)), "byte {at}");
        }
        // Another program's may be as it likes.
        assert!(!judged(&with(&with(&sound, 59, &[2]), 68, b"else")));

        // An operator may have it give back what is free; then the second page says what is on each of the others.
        let connection = Connection::open(root.path().join(DATABASE)).unwrap();
        connection.execute_batch("PRAGMA auto_vacuum = INCREMENTAL; VACUUM").unwrap();
        drop(connection);
        let mapped = fs::read(root.path().join(DATABASE)).unwrap();
        assert_eq!((word(&mapped, 52) > 0, word(&mapped, 64)), (true, 1));
        assert!(!judged(&mapped));
        assert!(!judged(&with(&mapped, 67, &[0])));
        let last = PAGE_SIZE + 5 * (mapped.len() / PAGE_SIZE - 3);
        for (at, change) in [
            (52, &[0; 4][..]),
            (67, &[2]),
            (PAGE_SIZE, &[6]),
            (PAGE_SIZE, &[0]),
            (PAGE_SIZE + 1, &[1]),
            (last, &[6]),
            (last + 1, &[1]),
        ] {
            assert!(judged(&with(&mapped, at, change)), "byte {at}");
        }
        assert!(!judged(&with(&mapped, last + 5, &[6])), "there is no page that it could speak of");
    }

    #[test]
    fn what_is_no_store_is_left_as_it_was() {
        let two_pages = "PRAGMA page_size = 512; CREATE TABLE theirs (x)";
        for (sql, foreign) in [(two_pages, true), ("PRAGMA user_version = 1", false)] {
            let root = tempfile::tempdir().unwrap();
            let file = root.path().join(DATABASE);
            Connection::open(&file).unwrap().execute_batch(sql).unwrap();
            let before = fs::read(&file).unwrap();
            let refused = salvage(root.path(), false).unwrap_err();
            assert_eq!(matches!(refused, SalvageError::Foreign { .. }), foreign, "{refused:?}");
            assert_eq!(matches!(refused, SalvageError::Nothing { .. }), !foreign, "{refused:?}");
            assert_eq!(fs::read(&file).unwrap(), before);
            assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "nothing is left of the try");
        }
        // One of ours that has lost all it held, unless an operator says so.
        let (_, mut wiped) = empty_store();
        wiped[PAGE_SIZE..].fill(0);
        let root = store_of(&wiped);
        assert!(matches!(salvage(root.path(), false), Err(SalvageError::Nothing { .. })));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    /// A power cut that tore the head of the log of a new store kept the gateway from starting, though nothing was lost.
    #[test]
    fn a_store_with_nothing_in_it_needs_nobody_when_the_head_of_its_log_is_torn() {
        let (root, _) = empty_store();
        let file = root.path().join(DATABASE);
        let connection = schema::open_writer(&file).unwrap();
        connection.execute_batch("CREATE TABLE passing (x); DROP TABLE passing").unwrap();
        let torn = |at: usize| {
            let copy = store_of(&fs::read(&file).unwrap());
            let log = fs::read(beside(&file, "-wal")).unwrap();
            fs::write(beside(&copy.path().join(DATABASE), "-wal"), with(&log, at, &[!log[at]])).unwrap();
            assert!(needed(copy.path()).unwrap().is_some(), "byte {at}");
            let salvaged = salvage(copy.path(), false);
            salvaged.map(|salvaged| salvaged.findings.len())
        };
        assert!(matches!(torn(15), Ok(0)), "{:?}", torn(15));
        // What a page held that is damaged, nobody knows.
        assert!(matches!(torn(100), Err(SalvageError::Nothing { .. })), "{:?}", torn(100));
    }

    /// It would have filled the disk first, and then have failed.
    #[test]
    fn a_salvage_that_needs_more_room_than_there_is_does_not_begin() {
        let (root, _) = empty_store();
        let file = fs::File::options().append(true).open(root.path().join(DATABASE)).unwrap();
        // Nothing of it takes room.
        file.set_len(1 << 40).unwrap();
        let refused = salvage(root.path(), true).unwrap_err();
        let SalvageError::Space { needed, free } = refused else { panic!("{refused:?}") };
        assert_eq!(needed, (4 << 40) + (1 << 20));
        assert!(free < needed);
    }

    #[test]
    fn an_operator_is_told_of_what_cannot_be_named() {
        let (_, sound) = empty_store();
        let told = |bytes: &[u8]| {
            let salvaged = salvage(store_of(bytes).path(), true).unwrap();
            assert!(salvaged.findings.iter().all(|finding| finding.lost && finding.delivery.is_none()));
            salvaged.findings.into_iter().map(|finding| finding.what).collect::<Vec<_>>().join(", ")
        };
        assert_eq!(told(&sound), "");
        let mut wiped = sound.clone();
        wiped[PAGE_SIZE..].fill(0);
        assert_eq!(told(&wiped), "nothing of what it held can be read");
        let cut = &sound[..sound.len() - 2 * PAGE_SIZE];
        assert!(told(cut).starts_with("2 pages are cut off the file: "), "{}", told(cut));
        // What a damaged header promises is not believed.
        assert_eq!(told(&with(cut, 0, b"s")), "");
        let count = u32::try_from(sound.len() / PAGE_SIZE).unwrap();
        assert_eq!(told(&with(&sound, 28, &(4 * count).to_be_bytes())), "");
        let most = with(&sound, 28, &(4 * count - 1).to_be_bytes());
        assert!(told(&most).starts_with(&format!("{} pages are cut off", 3 * count - 1)));
    }
}
