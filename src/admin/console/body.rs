//! Bodies that strangers have written, as text: pretty, raw, or in hex.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::admin::DeliveryDetail;
use crate::json;

/// Bytes that are shown of what is not text.
const HEX_MAX: usize = 4 << 10;

/// A body as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shown {
    /// JSON, indented.
    Pretty(String),
    /// As it came.
    Text(String),
    /// Bytes with their places.
    Hex(String),
}

/// As it is shown best, or as it came.
pub(super) fn shown(delivery: &DeliveryDetail, raw: bool) -> Shown {
    if delivery.body_encoding == "base64" {
        // Our own encoding.
        return Shown::Hex(hex(&STANDARD.decode(&delivery.body).unwrap_or_default()));
    }
    match (!raw).then(|| json::indented(&delivery.body)).flatten() {
        Some(text) => Shown::Pretty(text),
        None => Shown::Text(delivery.body.clone()),
    }
}

/// The beginning, in rows of sixteen.
fn hex(bytes: &[u8]) -> String {
    let mut shown = String::new();
    for (row, chunk) in bytes[..bytes.len().min(HEX_MAX)].chunks(16).enumerate() {
        let _ = write!(shown, "{:06x} ", row * 16);
        for at in 0..16 {
            let _ = match chunk.get(at) {
                Some(byte) => write!(shown, " {byte:02x}"),
                None => write!(shown, "   "),
            };
        }
        let text = chunk
            .iter()
            .map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' });
        let _ = writeln!(shown, "  {}", text.collect::<String>());
    }
    if bytes.len() > HEX_MAX {
        let _ = writeln!(shown, "… the first {HEX_MAX} bytes");
    }
    shown
}

/// Names of headers whose values are not shown.
pub(super) fn masked(delivery: &DeliveryDetail) -> impl Iterator<Item = &str> {
    delivery.headers.iter().filter(|(_, value)| is_masked(value)).map(|(name, _)| &**name)
}

fn is_masked(value: &str) -> bool {
    value.starts_with('…')
}

/// A command that sends the same body and headers to `url`, and in which nothing that strangers wrote stands outside of
/// quotes: not even in a comment, which some shells have none of. What is masked is left out, and a body that is no plain
/// text is taken from the file that the page lets one download.
pub(super) fn curl(delivery: &DeliveryDetail, url: &str) -> String {
    /// Of the connection that it came by.
    const OF_THE_CONNECTION: [&str; 6] =
        ["host", "content-length", "connection", "transfer-encoding", "accept-encoding", "expect"];
    let method = delivery.delivery.method.as_deref().unwrap_or("POST");
    // In the URL of a destination braces may stand for values of the delivery.
    let mut command = format!("curl --globoff --request {} {}", quoted(method), quoted(url));
    for (name, value) in &delivery.headers {
        if OF_THE_CONNECTION.contains(&&**name) || is_masked(value) {
            continue;
        }
        let _ = write!(command, " \\\n  --header {}", quoted(&format!("{name}: {value}")));
    }
    let is_plain = delivery.body_encoding == "utf-8"
        && !delivery.body_truncated
        && !delivery.body.contains(|c: char| c.is_control() && c != '\n' && c != '\t');
    if delivery.delivery.body_bytes > 0 {
        let data =
            if is_plain { quoted(&delivery.body) } else { quoted(&format!("@{}.bin", delivery.delivery.id)) };
        // `--data-raw` takes no `@` for a file.
        let option = if is_plain { "--data-raw" } else { "--data-binary" };
        let _ = write!(command, " \\\n  {option} {data}");
    }
    command
}

/// For a shell, as one word.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::DeliverySummary;

    #[test]
    fn bytes_are_shown_with_their_places() {
        assert_eq!(hex(b"\x00<a>\xff"), format!("000000  00 3c 61 3e ff{}  .<a>.\n", "   ".repeat(11)));
        assert!(hex(&[0; 5_000]).ends_with("… the first 4096 bytes\n"));
    }

    fn delivery(headers: &[(&str, &str)], body: &str) -> DeliveryDetail {
        let summary = DeliverySummary {
            id: "id".to_owned(),
            source: None,
            delivery_id: None,
            event: None,
            received_at: None,
            sender: None,
            method: Some("POST".to_owned()),
            verified: true,
            scheme: None,
            secret: None,
            skew_seconds: None,
            body_bytes: body.len() as u64,
            forwards: Vec::new(),
        };
        DeliveryDetail {
            delivery: summary,
            target: "/".to_owned(),
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            body: body.to_owned(),
            body_encoding: "utf-8".to_owned(),
            body_truncated: false,
            attempts: Vec::new(),
        }
    }

    #[test]
    fn a_command_for_a_shell_says_nothing_to_the_shell() {
        let headers = [("host", "x"), ("x-a", "'; rm -rf ~; '$(id)`id`"), ("x-token|reboot", "…(9 bytes)")];
        let hostile = delivery(&headers, "@/etc/passwd'");
        assert_eq!(
            curl(&hostile, "http://b/{json:/a}"),
            "curl --globoff --request 'POST' 'http://b/{json:/a}' \\\n  --header 'x-a: '\\''; rm -rf ~; '\\''$(id)`id`' \\\n  \
             --data-raw '@/etc/passwd'\\'''"
        );
        assert_eq!(masked(&hostile).collect::<Vec<_>>(), ["x-token|reboot"]);
        assert!(curl(&delivery(&[], "a\u{1b}[2J"), "u").ends_with("--data-binary '@id.bin'"));
    }
}
