//! Which runs may hold a key: Bloom filters, one for each run, that lie beside each other bit by bit, so that one look
//! asks sixty-four of them.

/// Bits of each run's filter: 16 for each key, of which one in a thousand that it has not is taken for one that it has.
const BITS: usize = 1 << 21;
/// Bits that are set for a key.
const PROBES: u32 = 6;

/// The filters of all runs.
#[derive(Debug, Default)]
pub(super) struct Filter {
    blocks: Vec<Block>,
}

/// The filters of up to 64 runs, 16 MiB.
#[derive(Debug)]
struct Block {
    /// Of each run its number, at the position of its bit.
    runs: [Option<i64>; 64],
    bits: Box<[u64]>,
}

impl Filter {
    /// Makes room for a run.
    pub(super) fn add(&mut self, run: i64) {
        let free = |block: &Block| block.runs.contains(&None);
        let index = self.blocks.iter().position(free).unwrap_or_else(|| {
            self.blocks.push(Block { runs: [None; 64], bits: vec![0; BITS].into() });
            self.blocks.len() - 1
        });
        if let Some(slot) = self.blocks[index].runs.iter_mut().find(|slot| slot.is_none()) {
            *slot = Some(run);
        }
    }

    /// Adds keys, of which these are the first 8 bytes, to a run that has been added.
    pub(super) fn insert(&mut self, run: i64, starts: impl Iterator<Item = u64>) {
        let Some((block, mask)) = self.place(run) else { return };
        for start in starts {
            for probe in probes(start) {
                block.bits[probe] |= mask;
            }
        }
    }

    /// Forgets a run.
    pub(super) fn remove(&mut self, run: i64) {
        let Some((block, mask)) = self.place(run) else { return };
        block.bits.iter_mut().for_each(|bits| *bits &= !mask);
        block.runs[mask.trailing_zeros() as usize] = None;
    }

    /// The runs that may hold a key with these first 8 bytes.
    pub(super) fn candidates(&self, start: u64) -> impl Iterator<Item = i64> {
        self.blocks.iter().flat_map(move |block| {
            let found = probes(start).fold(u64::MAX, |found, probe| found & block.bits[probe]);
            let runs = block.runs.iter().enumerate();
            runs.filter(move |(bit, _)| found >> bit & 1 == 1).filter_map(|(_, run)| *run)
        })
    }

    fn place(&mut self, run: i64) -> Option<(&mut Block, u64)> {
        self.blocks.iter_mut().find_map(|block| {
            let bit = block.runs.iter().position(|found| *found == Some(run))?;
            Some((block, 1 << bit))
        })
    }
}

/// Keys are digests, so that two halves of one are as good as two hashes of it.
fn probes(start: u64) -> impl Iterator<Item = usize> {
    let (first, step) = (start as u32, (start >> 32) as u32 | 1);
    (0..PROBES).map(move |probe| first.wrapping_add(probe.wrapping_mul(step)) as usize % BITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::claims::RUN_KEYS;

    fn start(run: i64, number: u64) -> u64 {
        fastrand::Rng::with_seed(run.unsigned_abs() << 32 | number).u64(..)
    }

    #[test]
    fn a_run_is_named_for_each_of_its_keys_and_for_few_others() {
        let mut filter = Filter::default();
        for run in 1..=70 {
            filter.add(run);
            filter.insert(run, (0..1_000).map(|number| start(run, number)));
        }
        assert_eq!(filter.blocks.len(), 2);
        filter.remove(3);
        filter.add(71);
        assert_eq!(filter.blocks.len(), 2, "the place of one that is gone is taken");
        let mut named = 0;
        for run in 1..=70 {
            for number in [0, 999] {
                let found: Vec<_> = filter.candidates(start(run, number)).collect();
                assert_eq!(found.contains(&run), run != 3, "{run}");
                named += found.len();
            }
        }
        assert!(named < 2 * 70 + 5, "{named} runs named for 138 keys");
        assert_eq!(Filter::default().candidates(7).count(), 0);
    }

    /// Each run that is named in vain costs an arrival a read.
    #[test]
    fn a_full_run_is_named_in_vain_once_in_a_thousand_times() {
        let mut filter = Filter::default();
        filter.add(1);
        filter.insert(1, (0..RUN_KEYS as u64).map(|number| start(1, number)));
        let named = (0..20_000).filter(|number| filter.candidates(start(2, *number)).count() > 0).count();
        assert!((5..40).contains(&named), "{named} of 20,000");
    }
}
