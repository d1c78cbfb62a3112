//! The long mode of the tests: COUNTERSIGN_SOAK=1.

/// Whether tests are to do more than `./test` has time for.
pub(crate) fn is_long() -> bool {
    std::env::var_os("COUNTERSIGN_SOAK").is_some_and(|value| value == "1")
}

/// How much a bounded test does: `usual` in `./test`, `long` in the long mode.
pub(crate) fn soak(usual: usize, long: usize) -> usize {
    if is_long() { long } else { usual }
}
