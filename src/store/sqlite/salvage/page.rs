//! Reads a database without SQLite, which gives up at the first thing that is not as it should be: its pages with
//! those of the log over them, the rows on a page, and where a row goes on elsewhere. Knows nothing of what rows mean.
//! The format is described at <https://www.sqlite.org/fileformat2.html>.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::log::{Log, read_padded, word};
pub(super) use super::record::Value;
use super::record::{record, types, varint};

/// A database file with its log.
pub(super) struct Pages {
    file: File,
    pub(super) size: usize,
    /// In the file and the log together.
    pub(super) count: u32,
    pub(super) log: Log,
    /// Where to find pages that are in the log.
    latest: HashMap<u32, Place>,
}

#[derive(Clone, Copy)]
struct Place {
    /// `None` in the database.
    frame: Option<usize>,
    rank: i64,
}

/// How a database begins.
pub(super) const MAGIC: [u8; 16] = *b"SQLite format 3\0";

/// How new a page is: what stands on a newer one has happened later.
pub(super) const NEWEST: i64 = i64::MAX;

impl Pages {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let log = Log::read(path)?;
        // One that is missing is read as one that is empty: the log may hold all there is.
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => File::open("/dev/null"),
            opened => opened,
        }?;
        let mut header = [0; 100];
        let in_database = match file.read_exact_at(&mut header, 0) {
            Ok(()) => usize::from(half(&header, 16)),
            Err(_) => 0,
        };
        let size = match in_database {
            1 => 65_536,
            size @ 512..=32_768 if size.is_power_of_two() => size,
            _ => log.page_size,
        };
        let in_file = u32::try_from(file.metadata()?.len().div_ceil(size as u64)).unwrap_or(u32::MAX);
        let mut latest = HashMap::new();
        // Another page size in the log than in the database is the header's damage, and nothing could be read.
        let frames = if size == log.page_size { log.frames.as_slice() } else { &[] };
        for (index, frame) in frames.iter().enumerate() {
            let place = match latest.get(&frame.page) {
                _ if frame.good => Place { frame: Some(index), rank: NEWEST },
                _ if index < log.copied => Place { frame: None, rank: NEWEST },
                // Also of those that count as copied: SQLite leaves out what the log has a newer one of.
                Some(Place { frame: Some(older), .. }) => {
                    Place { frame: Some(*older), rank: i64::try_from(*older).unwrap_or(0) }
                }
                _ => Place { frame: None, rank: i64::try_from(log.copied).unwrap_or(0) },
            };
            latest.insert(frame.page, place);
        }
        // A damaged page number must not make the database look endless.
        let bound =
            in_file.saturating_add(u32::try_from(frames.len()).unwrap_or(u32::MAX)).saturating_add(1_000);
        let in_log = latest.keys().copied().filter(|page| *page <= bound).max().unwrap_or(0);
        Ok(Self { file, size, count: in_file.max(in_log), log, latest })
    }

    /// The newest there is of a page, and how new it is. What is cut off is zero.
    pub(super) fn read(&self, page: u32) -> io::Result<(Vec<u8>, i64)> {
        let place = self.latest.get(&page).copied().unwrap_or(Place { frame: None, rank: NEWEST });
        if let Some(frame) = place.frame {
            return Ok((self.log.page(frame)?, place.rank));
        }
        let bytes = read_padded(&self.file, u64::from(page - 1) * self.size as u64, self.size)?;
        Ok((bytes, place.rank))
    }

    /// Whether each page that holds something is one of a small tree, and none has a row: a store with nothing in it.
    pub(super) fn is_empty(&self) -> io::Result<bool> {
        let (free, schema) = (self.free()?, self.schema()?);
        for number in (2..=self.count).filter(|number| !free.contains(number)) {
            let (page, _) = self.read(number)?;
            let is_leaf = matches!(Kind::of(page[0]), Some(Kind::TableLeaf | Kind::IndexLeaf));
            if !is_leaf || half(&page, 3) > 0 && !schema.contains(&number) {
                return Ok(false);
            }
        }
        Ok(self.count > 1)
    }

    /// The pages beneath the first one, where the text of all tables does not fit into it.
    fn schema(&self) -> io::Result<HashSet<u32>> {
        const HEADER: usize = 100;
        const TABLE_INTERIOR: u8 = 5;
        let (first, _) = self.read(1)?;
        if first[HEADER] != TABLE_INTERIOR {
            return Ok(HashSet::new());
        }
        let cells = usize::from(half(&first, HEADER + 3)).min((self.size - HEADER - 12) / 2);
        let places = (0..cells).map(|cell| usize::from(half(&first, HEADER + 12 + 2 * cell)));
        let left = places.filter(|place| place + 4 <= self.size).map(|place| word(&first, place));
        Ok(left.chain([word(&first, HEADER + 8)]).collect())
    }

    /// Pages that hold nothing any more. What the list says is not believed beyond that it is a list.
    pub(super) fn free(&self) -> io::Result<HashSet<u32>> {
        let mut free = HashSet::new();
        let (first, _) = self.read(1)?;
        let mut trunk = word(&first, 32);
        while trunk > 1 && trunk <= self.count && free.insert(trunk) {
            let (bytes, _) = self.read(trunk)?;
            let leaves = (word(&bytes, 4) as usize).min(self.size / 4 - 2);
            let leaves = (0..leaves).map(|leaf| word(&bytes, 8 + 4 * leaf));
            free.extend(leaves.filter(|page| *page > 1 && *page <= self.count));
            trunk = word(&bytes, 0);
        }
        Ok(free)
    }

    /// The rows on a page, or on what is left of one.
    pub(super) fn rows(&self, number: u32, page: &[u8]) -> Vec<Vec<Value>> {
        let start = if number == 1 { 100 } else { 0 };
        let (Some(kind), cells) = (Kind::of(page[start]), usize::from(half(page, start + 3))) else {
            return Vec::new();
        };
        let head = start + if kind == Kind::IndexInterior { 12 } else { 8 };
        if head + 2 * cells > page.len() {
            return Vec::new();
        }
        (0..cells).filter_map(|cell| self.row(page, usize::from(half(page, head + 2 * cell)), kind)).collect()
    }

    /// Every row of a table that stands anywhere on the page, whether or not the page still knows of it, and whose
    /// columns are at least so many, of which the first is `first`.
    pub(super) fn search(&self, page: &[u8], columns: usize, first: u8) -> Vec<Vec<Value>> {
        let mut rows = Vec::new();
        // A head says its own length, and then the type of each column.
        for (head, _) in page.windows(2).enumerate().filter(|(_, pair)| pair[1] == first) {
            // In front of it stand the row's length and its number.
            let starts = (2..=18.min(head)).map(|back| head - back).filter(|start| {
                let number = varint(page, *start).map(|(_, size)| start + size);
                number.and_then(|at| Some(at + varint(page, at)?.1)) == Some(head)
            });
            let found = starts.filter_map(|start| self.row(page, start, Kind::TableLeaf));
            rows.extend(found.filter(|row| row.len() >= columns));
        }
        rows
    }

    /// The row whose cell begins at `at`.
    fn row(&self, page: &[u8], at: usize, kind: Kind) -> Option<Vec<Value>> {
        let mut at = if kind == Kind::IndexInterior { at + 4 } else { at };
        let (length, size) = varint(page, at)?;
        at += size;
        if kind == Kind::TableLeaf {
            at += varint(page, at)?.1;
        }
        let length = usize::try_from(length).ok()?;
        let local = self.local(length, kind);
        let mut payload = page.get(at..at + local)?.to_vec();
        // Before what may be long is followed in vain.
        types(&payload)?;
        if local < length {
            let mut next = word(page.get(at + local..at + local + 4)?, 0);
            if length > self.count as usize * self.size {
                return None;
            }
            while payload.len() < length {
                if next < 2 || next > self.count {
                    return None;
                }
                let (bytes, _) = self.read(next).ok()?;
                let take = (length - payload.len()).min(self.size - 4);
                payload.extend_from_slice(&bytes[4..4 + take]);
                next = word(&bytes, 0);
            }
        }
        record(&payload)
    }

    /// How much of a row stands on its page.
    fn local(&self, length: usize, kind: Kind) -> usize {
        let usable = self.size;
        let most = if kind == Kind::TableLeaf { usable - 35 } else { (usable - 12) * 64 / 255 - 23 };
        if length <= most {
            return length;
        }
        let least = (usable - 12) * 32 / 255 - 23;
        let rest = least + (length - least) % (usable - 4);
        if rest <= most { rest } else { least }
    }
}

/// The kinds of pages that hold rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    TableLeaf,
    IndexLeaf,
    IndexInterior,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        match byte {
            13 => Some(Self::TableLeaf),
            10 => Some(Self::IndexLeaf),
            2 => Some(Self::IndexInterior),
            _ => None,
        }
    }
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::super::log::PAGE_SIZE;
    use super::*;
    use crate::store::sqlite::directory::beside;
    use crate::store::sqlite::schema;

    /// What SQLite writes, with every width of number, long and short texts, and rows that go on over many pages.
    #[test]
    fn rows_are_read_as_they_were_written() {
        for page_size in [512, 4_096, 32_768, 65_536] {
            check_rows(page_size);
        }
    }

    fn check_rows(page_size: u32) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("any.db");
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "page_size", page_size).unwrap();
        connection
            .execute_batch(
                "CREATE TABLE wide (n INTEGER, t TEXT, b BLOB, z);
                 CREATE TABLE keyed (k TEXT PRIMARY KEY, n INTEGER) WITHOUT ROWID;
                 WITH RECURSIVE i(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM i WHERE i < 299)
                 INSERT INTO wide SELECT (1 << (i % 63)) * iif(i % 2, -1, 1), printf('%.*c', i * 37 % 5000, 'x'),
                     zeroblob(i * i * i % 20000), NULL FROM i;
                 INSERT INTO keyed SELECT printf('%05d-%.*c', rowid, rowid * 31 % 3000, 'k'), n FROM wide",
            )
            .unwrap();
        let expected = |sql: &str| {
            let mut select = connection.prepare(sql).unwrap();
            let columns = select.column_count();
            let row = |row: &rusqlite::Row<'_>| {
                (0..columns).map(|column| Ok(format!("{:?}", row.get_ref(column)?))).collect()
            };
            select.query_map([], row).unwrap().collect::<rusqlite::Result<Vec<Vec<String>>>>().unwrap()
        };
        let mut expected = [expected("SELECT * FROM wide"), expected("SELECT * FROM keyed")].concat();

        let pages = Pages::open(&path).unwrap();
        let read = |number| pages.rows(number, &pages.read(number).unwrap().0);
        // The first page holds the schema.
        let found = (2..=pages.count).flat_map(read).map(|row| {
            let value = |value: &Value| {
                use rusqlite::types::{ToSql as _, ToSqlOutput};
                let ToSqlOutput::Borrowed(value) = value.to_sql().unwrap() else { panic!("borrowed") };
                format!("{value:?}")
            };
            row.iter().map(value).collect::<Vec<_>>()
        });
        let mut found: Vec<_> = found.collect();
        assert_eq!((found.len(), pages.size), (600, page_size as usize));
        expected.sort();
        found.sort();
        assert_eq!(found, expected);
    }

    /// What there is of a page that each of three commits in the log wrote anew, so many of which have been copied, when
    /// these frames of it are damaged: the text on it, and how new that is.
    fn newest(copied: usize, damaged: &[usize]) -> (Option<&'static str>, i64) {
        const FRAME: usize = 24 + PAGE_SIZE;
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("countersign.db");
        let connection = schema::open_writer(&path).unwrap();
        connection
            .execute_batch(
                "CREATE TABLE x (t); INSERT INTO x VALUES ('none'); PRAGMA wal_checkpoint(TRUNCATE)",
            )
            .unwrap();
        // Who still reads a commit keeps those behind it from being copied.
        let reader = schema::open_reader(&path).unwrap();
        for (done, text) in (1..).zip(["old", "mid", "new"]) {
            connection.execute("UPDATE x SET t = ?1", [text]).unwrap();
            if done == copied {
                reader.execute_batch("BEGIN; SELECT * FROM x").unwrap();
            }
        }
        if copied > 0 {
            connection.execute_batch("PRAGMA wal_checkpoint").unwrap();
        }
        let copy = root.path().join("copy.db");
        for suffix in ["", "-wal", "-shm"] {
            std::fs::copy(beside(&path, suffix), beside(&copy, suffix)).unwrap();
        }
        let root_page = "SELECT rootpage FROM sqlite_schema WHERE name = 'x'";
        let number = connection.query_row(root_page, [], |row| row.get(0)).unwrap();
        let mut log = std::fs::read(beside(&copy, "-wal")).unwrap();
        assert_eq!(log.len(), 32 + 3 * FRAME);
        for frame in damaged {
            log[32 + frame * FRAME + 24 + 100] ^= 1;
        }
        std::fs::write(beside(&copy, "-wal"), log).unwrap();
        let (page, rank) = Pages::open(&copy).unwrap().read(number).unwrap();
        let has = |text: &&str| page.windows(text.len()).any(|bytes| bytes == text.as_bytes());
        (["none", "old", "mid", "new"].into_iter().find(has), rank)
    }

    #[test]
    fn in_place_of_a_damaged_page_stands_what_was_there_before_it() {
        assert_eq!(newest(0, &[]), (Some("new"), NEWEST));
        assert_eq!(newest(0, &[0, 1]), (Some("new"), NEWEST));
        assert_eq!(newest(0, &[2]), (Some("mid"), 1));
        assert_eq!(newest(0, &[1, 2]), (Some("old"), 0));
        assert_eq!(newest(0, &[0, 1, 2]), (Some("none"), 0));
        // What had been copied is in the database.
        for damaged in [&[][..], &[2], &[1, 2], &[0, 1, 2]] {
            assert_eq!(newest(3, damaged), (Some("new"), NEWEST));
        }
    }

    /// While somebody reads, SQLite counts as copied what it left out, because the log has a newer one of the page: where
    /// that was damaged, the page had been taken for what it was before all of them.
    #[test]
    fn what_counts_as_copied_may_be_in_the_log_only() {
        assert_eq!(newest(1, &[]), (Some("new"), NEWEST));
        assert_eq!(newest(1, &[2]), (Some("mid"), 1));
        assert_eq!(newest(1, &[1, 2]), (Some("old"), 0));
    }

    #[test]
    fn a_file_that_is_missing_has_no_pages() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Pages::open(&root.path().join("none.db")).unwrap().count, 0);
        // One that cannot be opened is not missing.
        let path = root.path().join("any.db");
        std::os::unix::fs::symlink(&path, &path).unwrap();
        assert!(Pages::open(&path).is_err());
    }

    /// A store that has grown since the log was copied has pages that no file but the log has.
    #[test]
    fn pages_that_only_the_log_has_are_counted() {
        for page_size in [PAGE_SIZE, 1_024] {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join("any.db");
            let connection = Connection::open(&path).unwrap();
            connection.pragma_update(None, "page_size", page_size as u32).unwrap();
            connection.pragma_update(None, "journal_mode", "WAL").unwrap();
            connection.execute_batch("CREATE TABLE x (b); PRAGMA wal_checkpoint").unwrap();
            connection.execute_batch("INSERT INTO x VALUES (zeroblob(20000))").unwrap();
            let count: u32 = connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
            let (file, copy) = (std::fs::read(&path).unwrap(), root.path().join("copy.db"));
            let mut log = std::fs::read(beside(&path, "-wal")).unwrap();
            let opened = |file: &[u8], log: &[u8]| {
                std::fs::write(&copy, file).unwrap();
                std::fs::write(beside(&copy, "-wal"), log).unwrap();
                Pages::open(&copy).unwrap()
            };
            let pages = opened(&file, &log);
            assert_eq!((pages.count, pages.size), (count, page_size));
            let in_file = u32::try_from(file.len() / page_size).unwrap();
            assert!(in_file < count);
            let wide = |page| pages.rows(page, &pages.read(page).unwrap().0);
            let row: Vec<_> = (2..=count).flat_map(wide).collect();
            assert_eq!(row, [[Value::Blob(vec![0; 20_000])]]);

            // A page size that cannot be is not believed where the log has another.
            let mut damaged = file.clone();
            damaged[16..18].copy_from_slice(&[16, 8]);
            assert_eq!(opened(&damaged, &log).size, page_size);
            // A damaged page number must not make the store look endless.
            let last = log.len() - 24 - page_size;
            log[last] = 0x7f;
            assert!(opened(&file, &log).count <= count);
        }
    }

    /// A store that has never had a delivery is not told to have lost any.
    #[test]
    fn a_store_with_nothing_in_it_is_told_from_one_that_has_been_wiped() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("any.db");
        let connection = schema::create(&path).unwrap();
        let is_empty = || Pages::open(&path).unwrap().is_empty().unwrap();
        assert!(is_empty());
        let bytes = std::fs::read(&path).unwrap();
        connection.execute_batch("CREATE TABLE x (n)").unwrap();
        assert!(is_empty());
        // An operator's tables may be many, and their text more than the first page takes.
        for table in 0..40 {
            connection.execute_batch(&format!("CREATE TABLE x{table} (n, {})", "x".repeat(200))).unwrap();
        }
        assert!(is_empty());
        connection.execute_batch("INSERT INTO x VALUES (1)").unwrap();
        assert!(!is_empty());
        // The last page of it, or all but the first.
        for from in [bytes.len() - PAGE_SIZE, PAGE_SIZE] {
            let mut wiped = bytes.clone();
            wiped[from..].fill(0);
            std::fs::write(&path, wiped).unwrap();
            assert!(!is_empty());
        }
        std::fs::write(&path, &bytes[..PAGE_SIZE]).unwrap();
        assert!(!is_empty());
    }

    #[test]
    fn small_rows_are_found_however_many_a_page_has() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("any.db");
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch(
                "CREATE TABLE x (n);
                 WITH RECURSIVE i(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM i WHERE i < 401)
                 INSERT INTO x SELECT i FROM i",
            )
            .unwrap();
        let pages = Pages::open(&path).unwrap();
        let page = pages.read(2).unwrap().0;
        assert_eq!(pages.rows(2, &page).len(), 400);
    }

    /// Pages of 512 bytes, the first of which is a header.
    fn pages_of(root: &tempfile::TempDir, others: &[[u8; 512]]) -> Pages {
        let mut first = [0; 512];
        first[..16].copy_from_slice(&MAGIC);
        first[16..18].copy_from_slice(&[2, 0]);
        let path = root.path().join("any.db");
        std::fs::write(&path, [&[first][..], others].concat().concat()).unwrap();
        Pages::open(&path).unwrap()
    }

    #[test]
    fn a_row_that_goes_on_where_it_cannot_is_none() {
        let root = tempfile::tempdir().unwrap();
        // What a row of this length and head comes to, which goes on there, and the second and third page there.
        let follow = |length: usize, cell: &[u8], next: [u32; 3]| {
            let mut others = [[7; 512]; 2];
            others[0][..4].copy_from_slice(&next[1].to_be_bytes());
            others[1][..4].copy_from_slice(&next[2].to_be_bytes());
            let pages = pages_of(&root, &others);
            let mut leaf = [0; 512];
            leaf[..cell.len()].copy_from_slice(cell);
            let (_, size) = varint(cell, 0).unwrap();
            let end = size + 1 + pages.local(length, Kind::TableLeaf);
            leaf[end..end + 4].copy_from_slice(&next[0].to_be_bytes());
            pages.row(&leaf, 0, Kind::TableLeaf).map(|row| row.len())
        };
        // A blob of 1,000 bytes takes two pages beside its own.
        let cell = [0x87, 0x6b, 1, 3, 0x8f, 0x5c];
        assert_eq!(follow(1_003, &cell, [2, 3, 0]), Some(1));
        assert_eq!(follow(1_003, &cell, [3, 0, 2]), Some(1));
        for next in [[0, 3, 0], [1, 3, 0], [4, 3, 0], [2, 0, 0], [2, 1, 0], [2, 4, 0]] {
            assert_eq!(follow(1_003, &cell, next), None, "{next:?}");
        }
        // One of a MiB is more than there is, and only a circle would hold it.
        let cell = [0xc0, 0x80, 0x05, 1, 5, 0x81, 0x80, 0x80, 0x0c];
        assert_eq!(follow(1_048_581, &cell, [2, 2, 0]), None);
    }

    /// A delivery whose page was emptied stands there still, and no page knows of it.
    #[test]
    fn rows_are_found_wherever_they_stand_on_a_page() {
        let root = tempfile::tempdir().unwrap();
        let pages = pages_of(&root, &[[0; 512]]);
        // A blob of 16 bytes, and columns that take no room.
        let row = |columns: u8| {
            let types = vec![8; usize::from(columns) - 1];
            let row = [&[columns + 1, 44][..], &types, &[5; 16]].concat();
            (u8::try_from(row.len()).unwrap(), row)
        };
        let (length, sixteen) = row(16);
        // Its length and its number, each of one byte or more.
        for (number, at) in [(vec![9], 0), (vec![9], 300), (vec![0x81, 0x00], 1), (vec![0xff; 9], 20)] {
            for length in [vec![length], vec![0x80, length], [&[0x80; 8][..], &[length]].concat()] {
                let cell = [&length[..], &number, &sixteen].concat();
                let mut page = [0xff; 512];
                page[at..at + cell.len()].copy_from_slice(&cell);
                let found = pages.search(&page, 16, 44);
                assert!(!found.is_empty(), "{number:?} {length:?}");
                for row in found {
                    assert_eq!((row.len(), &row[0]), (16, &Value::Blob(vec![5; 16])));
                }
            }
        }
        // One that ends with its page is found, and one that would go on behind it is not.
        let cell = [&[length, 9][..], &sixteen].concat();
        for (at, expected) in [(512 - cell.len(), 1), (513 - cell.len(), 0)] {
            let mut page = [0; 512];
            page[at..].copy_from_slice(&cell[..512 - at]);
            assert_eq!(pages.search(&page, 16, 44).len(), expected);
        }
        // More columns are an operator's; with fewer, or another first one, it is no such row.
        for (columns, first, expected) in [(17, 44, 1), (15, 44, 0), (16, 43, 0)] {
            let (length, row) = row(columns);
            let mut page = [0; 512];
            page[100..102].copy_from_slice(&[length, 9]);
            page[102..102 + row.len()].copy_from_slice(&row);
            assert_eq!(pages.search(&page, 16, first).len(), expected, "{columns} {first}");
        }
    }

    #[test]
    fn pages_that_hold_nothing_are_known_from_the_list_of_them() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("any.db");
        let connection = Connection::open(&path).unwrap();
        // So many that the list goes on over two pages of its own.
        connection
            .execute_batch("CREATE TABLE x (b); INSERT INTO x VALUES (zeroblob(6000000)); DELETE FROM x")
            .unwrap();
        let listed: usize = connection
            .pragma_query_value(None, "freelist_count", |row| row.get::<_, i64>(0))
            .unwrap() as usize;
        let free = Pages::open(&path).unwrap().free().unwrap();
        assert!(listed > PAGE_SIZE / 4);
        assert_eq!(free.len(), listed);
        assert!(!free.contains(&1) && !free.contains(&2));

        // What it says is not believed beyond the file's end, nor that it ever ends.
        let mut bytes = std::fs::read(&path).unwrap();
        let trunk = word(&bytes, 32) as usize;
        let at = (trunk - 1) * PAGE_SIZE;
        bytes[at..at + 4].copy_from_slice(&u32::try_from(trunk).unwrap().to_be_bytes());
        bytes[at + 4..at + 8].copy_from_slice(&[0xff; 4]);
        bytes[at + 8..at + 12].copy_from_slice(&[0xff; 4]);
        std::fs::write(&path, &bytes).unwrap();
        let free = Pages::open(&path).unwrap().free().unwrap();
        assert!(free.contains(&u32::try_from(trunk).unwrap()));
        assert!(free.len() < listed && free.iter().all(|page| *page as usize <= listed + 2));
        // The first page is always in use.
        bytes[at + 8..at + 12].copy_from_slice(&[0, 0, 0, 1]);
        std::fs::write(&path, &bytes).unwrap();
        assert!(!Pages::open(&path).unwrap().free().unwrap().contains(&1));
        bytes[32..36].copy_from_slice(&[0, 0, 0, 1]);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(Pages::open(&path).unwrap().free().unwrap(), HashSet::new());
    }

    #[test]
    fn nonsense_is_no_row() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("any.db");
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            let mut bytes = vec![0; 3 * PAGE_SIZE];
            random.fill(&mut bytes);
            for page in bytes.chunks_mut(PAGE_SIZE) {
                page[0] = [2, 5, 10, 13][random.usize(..4)];
            }
            std::fs::write(&path, &bytes).unwrap();
            let pages = Pages::open(&path).unwrap();
            for number in 1..=pages.count {
                let (page, _) = pages.read(number).unwrap();
                pages.rows(number, &page);
                pages.search(&page, 16, 44);
            }
        }
    }
}
