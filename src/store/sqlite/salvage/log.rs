//! Which frames of a write-ahead log hold what was committed. SQLite stops at the first frame that fails its checksum
//! and forgets all that was committed behind it; here each frame is judged by itself, so that a bad one costs only
//! itself. A transaction that a power cut tore is told from damage by this: the next one begins after its fsync.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::io::Errno;

use super::super::directory::beside;

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
/// How a log begins: whether its checksums are of little-endian numbers or of big-endian ones.
const MAGIC_LITTLE: u32 = 0x377f_0682;
const MAGIC_BIG: u32 = 0x377f_0683;
/// What the database is created with.
pub(super) const PAGE_SIZE: usize = 4_096;

/// The committed part of a log.
#[derive(Debug)]
pub(super) struct Log {
    file: Option<File>,
    pub(super) page_size: usize,
    /// In the order in which they were written.
    pub(super) frames: Vec<Frame>,
    /// How many of them, from the first on, had been copied into the database.
    pub(super) copied: usize,
    /// Committed frames that are cut off.
    pub(super) missing: usize,
    /// Whether there is nothing in it, so that only the index speaks of what is cut off, and it may be an older one.
    pub(super) empty: bool,
    /// Whether SQLite would stop before the end, at a frame that is what was written.
    misled: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    pub(super) page: u32,
    /// Whether it is what was written.
    pub(super) good: bool,
    /// Whether a transaction ends with it.
    commit: bool,
}

type Sum = (u32, u32);

impl Log {
    /// Judges the log of the database `file`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn read(file: &Path) -> io::Result<Self> {
        let shared = Shared::read(&beside(file, "-shm"));
        let none = Self {
            file: None,
            page_size: PAGE_SIZE,
            frames: Vec::new(),
            copied: 0,
            missing: shared.as_ref().map_or(0, Shared::uncopied),
            empty: true,
            misled: false,
        };
        let log = match File::open(beside(file, "-wal")) {
            Ok(log) => log,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(none),
            Err(error) => return Err(error),
        };
        let length = usize::try_from(log.metadata()?.len()).unwrap_or(usize::MAX);
        if length < HEADER {
            return Ok(none);
        }
        let header = read_padded(&log, 0, HEADER)?;
        Self::judge(log, length, &header, shared.as_ref())
    }

    fn judge(file: File, length: usize, header: &[u8], shared: Option<&Shared>) -> io::Result<Self> {
        let magic = word(header, 0);
        let big_endian = match magic {
            MAGIC_LITTLE => false,
            MAGIC_BIG => true,
            _ => cfg!(target_endian = "big"),
        };
        let page_size = match word(header, 8) as usize {
            size @ 512..=65_536 if size.is_power_of_two() => size,
            _ => PAGE_SIZE,
        };
        let mut computed = checksum(big_endian, (0, 0), &header[..24]);
        let mut stored = (word(header, 24), word(header, 28));
        let header_bad = computed != stored || !matches!(magic, MAGIC_LITTLE | MAGIC_BIG);
        let mut salt: Option<[u8; 8]> = if header_bad { None } else { header[16..24].try_into().ok() };

        let mut frames: Vec<Frame> = Vec::new();
        let frame_size = FRAME_HEADER + page_size;
        // Whether the frame before is of this generation: behind the end lie those of an older one.
        let mut follows = true;
        let mut misled_at = header_bad.then_some(0);
        for index in 0..(length - HEADER) / frame_size {
            let at = HEADER + index * frame_size;
            let bytes = read_padded(&file, at as u64, frame_size)?;
            let sum =
                |seed| checksum(big_endian, checksum(big_endian, seed, &bytes[..8]), &bytes[FRAME_HEADER..]);
            let claimed = (word(&bytes, 16), word(&bytes, 20));
            let by_stored = sum(stored);
            // Where only the checksum of the frame before is damaged, what was computed of it is right.
            let by_computed = by_stored != claimed && sum(computed) == claimed;
            let verified = by_stored == claimed || by_computed;
            let of_this = salt.is_some_and(|salt| bytes[8..16] == salt);
            let good = verified && (of_this || follows || salt.is_none());
            if good && salt.is_none() {
                salt = bytes[8..16].try_into().ok();
            }
            if good && (by_computed || salt.is_some_and(|salt| bytes[8..16] != salt)) {
                misled_at = misled_at.or(Some(index));
            }
            if good
                && by_computed
                && let Some(before) = frames.last_mut()
            {
                before.good = true;
            }
            frames.push(Frame { page: word(&bytes, 0), good, commit: word(&bytes, 4) != 0 });
            follows = good;
            (stored, computed) = (claimed, if verified { claimed } else { by_stored });
        }

        // Of one that is cut off, the first half may still tell something.
        let whole = HEADER + frames.len() * frame_size;
        if length >= whole + FRAME_HEADER {
            let bytes = read_padded(&file, whole as u64, FRAME_HEADER)?;
            frames.push(Frame { page: word(&bytes, 0), good: false, commit: false });
        }

        let shared = shared.filter(|shared| salt.is_none_or(|salt| salt == shared.salt));
        let promised = shared.map_or(0, |shared| shared.frames);
        let end = committed(&frames, promised, header_bad);
        frames.truncate(end);
        let copied = shared.map_or(0, |shared| shared.copied).min(end);
        let missing = promised.saturating_sub(end);
        let misled = misled_at.is_some_and(|at| at < end);
        Ok(Self { file: Some(file), page_size, frames, copied, missing, empty: false, misled })
    }

    /// Whether each frame that was committed is there, and what was written.
    pub(super) fn is_whole(&self) -> bool {
        self.missing == 0 && self.frames.iter().all(|frame| frame.good)
    }

    /// What is wrong with it, when SQLite would not read all that was committed.
    pub(super) fn damage(&self) -> Option<String> {
        let bad = self.frames.iter().filter(|frame| !frame.good).count();
        (!self.is_whole() || self.misled).then(|| {
            format!(
                "of the log's {} committed frames {bad} are damaged and {} cut off",
                self.frames.len() + self.missing,
                self.missing
            )
        })
    }

    /// The page that a frame holds; zeros where it is cut off.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn page(&self, frame: usize) -> io::Result<Vec<u8>> {
        let at = HEADER + frame * (FRAME_HEADER + self.page_size) + FRAME_HEADER;
        match &self.file {
            Some(file) => read_padded(file, at as u64, self.page_size),
            None => Ok(vec![0; self.page_size]),
        }
    }
}

/// How many frames are committed: all that the other processes were promised, and all up to the last commit. A last
/// transaction with holes was promised to nobody: it is what a power cut leaves of one that was not fsynced.
fn committed(frames: &[Frame], promised: usize, header_bad: bool) -> usize {
    let commit =
        |frames: &[Frame]| frames.iter().rposition(|frame| frame.good && frame.commit).map(|at| at + 1);
    let Some(end) = commit(frames) else { return promised.min(frames.len()) };
    let before = commit(&frames[..end - 1]).unwrap_or(0);
    let torn = frames[before..end].iter().any(|frame| !frame.good) || (before == 0 && header_bad);
    let end = if torn { before } else { end };
    end.max(promised.min(frames.len()))
}

/// What the processes that use a log tell each other about it. It is written after the fsync of what it promises.
#[derive(Debug)]
struct Shared {
    frames: usize,
    copied: usize,
    salt: [u8; 8],
}

impl Shared {
    /// `None` when there is none that can be believed.
    fn read(file: &Path) -> Option<Self> {
        let mut bytes = [0; 100];
        File::open(file).ok()?.read_exact_at(&mut bytes, 0).ok()?;
        let native = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let sum = checksum(cfg!(target_endian = "big"), (0, 0), &bytes[..40]);
        let sound = bytes[..48] == bytes[48..96] && bytes[12] == 1 && sum == (native(40), native(44));
        let mut salt = [0; 8];
        salt.copy_from_slice(&bytes[32..40]);
        sound.then(|| Self { frames: native(16) as usize, copied: native(96) as usize, salt })
    }

    fn uncopied(&self) -> usize {
        self.frames.saturating_sub(self.copied)
    }
}

/// So many bytes from `at` on; zeros where the file has ended, and where the disk does not give them away: what stood
/// there is damaged like any other.
pub(super) fn read_padded(file: &File, at: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut bytes[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
                tracing::error!(%error, at, length, "the disk does not give away a part of the store");
                bytes.fill(0);
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

/// The number of four bytes that stands at `at`.
pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn checksum(big_endian: bool, (mut first, mut second): Sum, bytes: &[u8]) -> Sum {
    let word = |bytes: &[u8]| {
        let word = [bytes[0], bytes[1], bytes[2], bytes[3]];
        if big_endian { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) }
    };
    for pair in bytes.chunks_exact(8) {
        first = first.wrapping_add(word(&pair[..4])).wrapping_add(second);
        second = second.wrapping_add(word(&pair[4..])).wrapping_add(first);
    }
    (first, second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::schema;

    const FRAME: usize = FRAME_HEADER + PAGE_SIZE;
    /// What four transactions write, of two, four, three and one.
    const FRAMES: usize = 10;

    /// The log of a database that was copied while it was open, after `change` has been made to the log; with the index
    /// that tells what is in it, or without.
    fn judged(with_index: bool, last: &str, change: impl FnOnce(&mut Vec<u8>)) -> Log {
        let root = tempfile::tempdir().unwrap();
        let (file, copy) = (root.path().join("countersign.db"), root.path().join("copy.db"));
        let connection = schema::open_writer(&file).unwrap();
        // The table's own creation may write any number of pages, as the schema grows.
        let sql = "CREATE TABLE x (b); PRAGMA wal_checkpoint(TRUNCATE);
            BEGIN; INSERT INTO x VALUES (NULL); PRAGMA user_version = 99; COMMIT;
            INSERT INTO x VALUES (zeroblob(10000)); UPDATE x SET b = NULL; UPDATE x SET b = 'a';";
        connection.execute_batch(sql).unwrap();
        connection.execute_batch(last).unwrap();
        let mut log = std::fs::read(beside(&file, "-wal")).unwrap();
        change(&mut log);
        std::fs::write(beside(&copy, "-wal"), log).unwrap();
        if with_index {
            std::fs::copy(beside(&file, "-shm"), beside(&copy, "-shm")).unwrap();
        }
        Log::read(&copy).unwrap()
    }

    fn bad(log: &Log) -> Vec<usize> {
        (0..log.frames.len()).filter(|frame| !log.frames[*frame].good).collect()
    }

    #[test]
    fn a_sound_log_is_read_frame_by_frame() {
        for with_index in [true, false] {
            let mut last = Vec::new();
            let log = judged(with_index, "", |bytes| last = bytes[bytes.len() - PAGE_SIZE..].to_vec());
            let pages: Vec<_> = log.frames.iter().map(|frame| frame.page).collect();
            let x = pages[1];
            assert_eq!(pages, [1, x, 1, x, x + 1, x + 2, 1, x, x + 1, x]);
            assert_eq!(pages.len(), FRAMES);
            assert_eq!((log.damage(), log.copied, log.missing), (None, 0, 0));
            assert_eq!(log.page(9).unwrap(), last);
        }
        assert_eq!(judged(true, "PRAGMA wal_checkpoint", |_| {}).copied, FRAMES);
    }

    #[test]
    fn a_flipped_bit_costs_no_frame_but_its_own() {
        let frame = HEADER + 3 * FRAME;
        for (at, expected) in [
            // The log's magic number, page size, number, salt and checksum.
            (0, vec![]),
            (11, vec![]),
            (12, vec![]),
            (17, vec![]),
            (25, vec![]),
            // A frame's page number, its size of the database, its salt, its checksum, its page.
            (frame + 3, vec![3]),
            (frame + 7, vec![3]),
            (frame + 9, vec![]),
            (frame + 17, vec![]),
            (frame + FRAME_HEADER, vec![3]),
            (frame + FRAME - 1, vec![3]),
        ] {
            for with_index in [true, false] {
                let log = judged(with_index, "", |bytes| bytes[at] ^= 2);
                assert_eq!((log.frames.len(), bad(&log)), (FRAMES, expected.clone()), "byte {at}");
                let told = format!("10 committed frames {} are damaged and 0 cut off", expected.len());
                assert!(log.damage().unwrap().contains(&told), "byte {at}: {:?}", log.damage());
            }
        }
    }

    #[test]
    fn a_last_transaction_with_holes_is_damage_only_if_it_was_promised() {
        let end = |frames: usize| HEADER + frames * FRAME;
        // What is left of the log, what is damaged of that, what there is without an index, and the same with one.
        for (length, damaged, torn, promised, missing) in [
            (end(10), Some(end(9) + 99), 9, 10, 0),
            (end(9) + FRAME - 1, None, 9, 10, 0),
            (end(9) + FRAME_HEADER, None, 9, 10, 0),
            (end(9) + FRAME_HEADER - 1, None, 9, 9, 1),
            (end(9), Some(end(6) + 99), 6, 9, 1),
            (end(8), None, 6, 8, 2),
            (end(2), Some(end(0) + 99), 0, 2, 8),
            (end(2), Some(25), 0, 2, 8),
            (end(0), None, 0, 0, 10),
            (end(0) - 1, None, 0, 0, 10),
        ] {
            let cut = |bytes: &mut Vec<u8>| {
                bytes.truncate(length);
                if let Some(at) = damaged {
                    bytes[at] ^= 2;
                }
            };
            let log = judged(false, "", cut);
            assert_eq!(
                (log.frames.len(), log.missing, log.damage()),
                (torn, 0, None),
                "{length} {damaged:?}"
            );
            let log = judged(true, "", cut);
            assert_eq!((log.frames.len(), log.missing), (promised, missing), "{length} {damaged:?}");
            assert_eq!(log.empty, length < HEADER, "{length}");
            assert!(log.damage().is_some(), "{length} {damaged:?}");
        }
    }

    /// A data directory may have come from a machine whose numbers begin at the other end.
    #[test]
    fn a_log_of_another_byte_order_is_read() {
        let turn = |bytes: &mut Vec<u8>| {
            let store = |bytes: &mut [u8], sum: Sum| {
                bytes[..4].copy_from_slice(&sum.0.to_be_bytes());
                bytes[4..8].copy_from_slice(&sum.1.to_be_bytes());
            };
            let magic = word(bytes, 0);
            assert_eq!(magic, if cfg!(target_endian = "big") { MAGIC_BIG } else { MAGIC_LITTLE });
            bytes[3] ^= 1;
            let big_endian = !cfg!(target_endian = "big");
            let mut sum = checksum(big_endian, (0, 0), &bytes[..24]);
            store(&mut bytes[24..32], sum);
            for frame in bytes[HEADER..].chunks_exact_mut(FRAME) {
                sum = checksum(big_endian, checksum(big_endian, sum, &frame[..8]), &frame[FRAME_HEADER..]);
                store(&mut frame[16..24], sum);
            }
        };
        let log = judged(false, "", turn);
        assert_eq!((log.frames.len(), bad(&log), log.damage()), (FRAMES, vec![], None));
    }

    /// An index that is believed though a bit of it has flipped would promise frames that there never were.
    #[test]
    fn an_index_is_believed_only_if_it_is_whole() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("countersign.db");
        let connection = schema::open_writer(&file).unwrap();
        connection.execute_batch("CREATE TABLE x (b)").unwrap();
        let path = root.path().join("copy");
        let read = |changes: &[usize]| {
            let mut bytes = std::fs::read(beside(&file, "-shm")).unwrap();
            for at in changes {
                bytes[*at] ^= 2;
            }
            std::fs::write(&path, bytes).unwrap();
            Shared::read(&path).map(|shared| shared.frames)
        };
        let frames = read(&[]).unwrap();
        assert!(frames > 0);
        // It stands there twice, with a checksum; byte 12 says whether it has been made at all.
        for changes in [&[16][..], &[64], &[16, 64], &[12, 60]] {
            assert_eq!(read(changes), None, "{changes:?}");
        }
        assert_eq!(read(&[200]), Some(frames), "what stands behind is no part of it");
        let mut bytes = std::fs::read(beside(&file, "-shm")).unwrap();
        bytes[12] = 0;
        let sum = checksum(cfg!(target_endian = "big"), (0, 0), &bytes[..40]);
        bytes[40..44].copy_from_slice(&sum.0.to_ne_bytes());
        bytes[44..48].copy_from_slice(&sum.1.to_ne_bytes());
        bytes.copy_within(..48, 48);
        std::fs::write(&path, bytes).unwrap();
        assert!(Shared::read(&path).is_none(), "it has not been made yet");
    }

    /// What cannot be read for another reason than a bad sector must not be taken for lost.
    #[test]
    fn a_log_that_cannot_be_read_is_no_empty_one() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("countersign.db");
        std::fs::create_dir(beside(&file, "-wal")).unwrap();
        assert!(read_padded(&File::open(beside(&file, "-wal")).unwrap(), 0, 100).is_err());
        std::fs::remove_dir(beside(&file, "-wal")).unwrap();
        std::os::unix::fs::symlink(beside(&file, "-wal"), beside(&file, "-wal")).unwrap();
        assert!(Log::read(&file).is_err());
    }

    /// A single bad sector had kept a store from being salvaged, for good.
    #[test]
    fn what_the_disk_does_not_give_away_reads_as_zeros() {
        // The one file that fails with EIO everywhere: nothing is mapped at 0.
        let memory = File::open("/proc/self/mem").unwrap();
        assert_eq!(memory.read_at(&mut [0], 0).unwrap_err().raw_os_error(), Some(Errno::IO.raw_os_error()));
        assert_eq!(read_padded(&memory, 0, 100).unwrap(), [0; 100]);
    }
}
