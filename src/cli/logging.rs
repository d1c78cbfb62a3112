//! Logs on standard error, as text for people or JSON for machines, filtered by `RUST_LOG`. Panics are among them.

use std::panic::{self, PanicHookInfo};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    Text,
    Json,
}

/// `default` holds where `RUST_LOG` says nothing.
pub(super) fn start(format: LogFormat, default: &str) {
    use std::io::IsTerminal as _;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let filter = match "audit=info".parse() {
        // Who changes what is told, however the rest is filtered, unless this is what is filtered.
        Ok(audit) if !filter.to_string().contains("audit") => filter.add_directive(audit),
        Ok(_) | Err(_) => filter,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    panic::set_hook(Box::new(tell));
}

/// One line like any other, which Rust's own text is not. A text that was put together stays out of it: it may repeat
/// what was being looked at, as a slice of a body that ends inside a character does. The place says enough.
fn tell(panic: &PanicHookInfo<'_>) {
    let reason = panic.payload().downcast_ref::<&str>().copied().unwrap_or("not shown, it may hold data");
    let location = panic.location().map(ToString::to_string);
    tracing::error!(reason, location, "panicked: please report it");
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn told(code: impl FnOnce() + panic::UnwindSafe) -> serde_json::Value {
        let lines = Lines::default();
        let writer = lines.clone();
        let logger =
            tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(logger, || panic::catch_unwind(code).unwrap_err());
        serde_json::from_slice(&lines.0.lock().unwrap()).unwrap()
    }

    #[test]
    fn a_panic_is_a_line_that_tells_where_and_no_data() {
        let before = panic::take_hook();
        panic::set_hook(Box::new(tell));
        let lines = [
            told(|| panic!("a bug")),
            told(|| panic!("a bug with {}", std::hint::black_box("hunter2"))),
            told(|| drop("hünter2"[2..].to_owned())),
            told(|| assert_eq!("hunter2".parse::<u8>().expect("digits"), 0)),
        ];
        panic::set_hook(before);
        assert_eq!(lines[0]["reason"], "a bug");
        for line in &lines {
            assert!(line["location"].as_str().unwrap().contains("logging.rs:"), "{line}");
            assert!(!line.to_string().contains("nter2"), "{line}");
        }
    }
}
