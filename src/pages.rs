//! Memory for large bodies: pages that belong to nothing else and go back to the system with the body. An allocator keeps
//! what a large body has taken for the next one, which another thread may not find, and copies one that grows.

use std::io;

use bytes::Bytes;
use memmap2::{Advice, MmapMut};

/// Bodies of more bytes than this are large: they are worth the system calls, and the zeroing of the pages.
pub(crate) const LARGE_BYTES: usize = 256 << 10;

/// Room of a fixed size, all zeros. What nothing has been written to costs no memory.
pub(crate) struct Pages(MmapMut);

impl Pages {
    /// # Errors
    /// When the system has no room left to give.
    pub(crate) fn new(bytes: usize) -> io::Result<Self> {
        let pages = MmapMut::map_anon(bytes)?;
        // A huge page would be taken whole for its first byte. Where there are none, there is nothing to be refused.
        let _ = pages.advise(Advice::NoHugePage);
        Ok(Self(pages))
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// The first `length` bytes, to be shared.
    pub(crate) fn freeze(self, length: usize) -> Bytes {
        Bytes::from_owner(self.0).slice(..length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_shared_and_the_rest_is_not() {
        let mut pages = Pages::new(10_000).unwrap();
        assert_eq!(pages.bytes_mut(), [0; 10_000]);
        pages.bytes_mut()[..3].copy_from_slice(b"abc");
        let bytes = pages.freeze(3);
        assert_eq!(bytes.clone(), "abc");
        assert_eq!(bytes.slice(1..), "bc");
        assert!(Pages::new(usize::MAX).is_err());
    }
}
