//! Libraries that stand between a process and its C library, so that disks fail and clocks jump on demand. Each is one
//! C file in `tests/preload`, compiled when it is first needed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

static COMPILING: Mutex<()> = Mutex::new(());

/// The library made of `tests/preload/{name}.c`, for LD_PRELOAD.
pub(crate) fn library(name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/preload").join(name).with_extension("c");
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name).with_extension("so");
    let _one_at_a_time = COMPILING.lock().unwrap_or_else(PoisonError::into_inner);
    let modified = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    if modified(&library) <= modified(&source) {
        // Under another name first: a second run of the tests must not load half a library.
        let new = library.with_extension(format!("{}.so", std::process::id()));
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .args([&new, &source])
            .args(["-ldl", "-lpthread"])
            .status()
            .unwrap();
        assert!(status.success(), "{} does not compile", source.display());
        std::fs::rename(new, &library).unwrap();
    }
    library
}
