//! Networks: who is a trusted proxy, and from where a source's sender may come.

use std::net::IpAddr;

use ipnet::IpNet;

use super::values::{Context, list, read_file, unreadable};
use crate::reader::{Table, Value};

const HELP: &str = "addresses and networks such as \"192.0.2.7\", \"10.0.0.0/8\" or \"2001:db8::/32\"";
/// Tens of thousands of networks; the longest that clouds publish have some thousand, and each request is compared with
/// all of them.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Of a file that is something else altogether, so many lines tell enough.
const LINES_REPORTED: usize = 5;

pub(super) fn networks(table: &Table<'_>, key: &'static str) -> Vec<IpNet> {
    list(table, key, &format!("a list of {HELP}"), |value| value.parse(parse, HELP)).unwrap_or_default()
}

/// The same, or a table that names a file of them.
pub(super) fn networks_or_file(table: &Table<'_>, key: &'static str, context: &Context<'_>) -> Vec<IpNet> {
    const FILE: &str = "a file with a network or an address in each line; `#` begins a comment";
    match table.get(key) {
        Some(value) if value.is_table() => {
            let file = value.table(FILE).and_then(|table| table.require("file", FILE));
            file.and_then(|file| read(&file, FILE, context)).unwrap_or_default()
        }
        _ => networks(table, key),
    }
}

/// An empty list allows everybody, and an empty file must not.
fn read(value: &Value<'_>, help: &str, context: &Context<'_>) -> Option<Vec<IpNet>> {
    let path = context.directory.join(value.text()?);
    let text = match read_file(&path, FILE_BYTES_MAX) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => {
            value.wrong(unreadable(&path, &error), help);
            return None;
        }
    };
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let entries = lines.zip(1..).filter(|(entry, _)| !entry.is_empty());
    let (networks, wrong): (Vec<_>, Vec<_>) =
        entries.map(|(entry, line)| parse(entry).map_err(|error| (line, error))).partition(Result::is_ok);
    for (line, error) in wrong.iter().filter_map(|wrong| wrong.as_ref().err()).take(LINES_REPORTED) {
        // Not what stands there: it may be the wrong file, and a secret one.
        value.wrong(format!("{}:{line}: {error}", path.display()), help);
    }
    if networks.is_empty() && wrong.is_empty() {
        value.wrong(format!("{} has no address, so nobody could send", path.display()), help);
    }
    Some(networks.into_iter().flatten().collect())
}

/// Senders are compared as IPv4 where they are written as IPv4-mapped, so networks are, too.
fn parse(text: &str) -> Result<IpNet, &'static str> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.to_canonical().into());
    }
    let network: IpNet = text.parse().map_err(|_| "it is neither an address nor a network")?;
    if network.trunc() != network {
        return Err("bits are set beyond its prefix length");
    }
    match network.addr().to_canonical() {
        IpAddr::V4(address) if network.addr().is_ipv6() => {
            let prefix = network.prefix_len().checked_sub(96);
            let mapped = prefix.and_then(|prefix| IpNet::new(address.into(), prefix).ok());
            mapped.ok_or("it holds IPv4-mapped addresses and others")
        }
        _ => Ok(network),
    }
}
