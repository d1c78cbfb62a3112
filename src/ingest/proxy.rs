//! The PROXY protocol, versions 1 and 2: the header with which a proxy that relays bytes says whose connection it
//! relays. Who may send one is not decided here.
//!
//! After HAProxy's `doc/proxy-protocol.txt` (2020-03-05). Where it leaves a choice: what is not exactly a header is refused,
//! and so are datagrams, which no TCP connection carries; a connection that is the proxy's own, or whose origin has no IP
//! address (a Unix socket's, or one unknown to the proxy), is taken for the proxy's; what else a header tells (TLVs, with
//! their checksum) is skipped. Against it, a connection need not begin with a header: a trusted proxy is believed in HTTP
//! headers as well, so that nobody gains by leaving it out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

const V1: &[u8] = b"PROXY ";
/// With its line's end.
const V1_BYTES_MAX: usize = 107;
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Of addresses and TLVs. Those of clouds take a few dozen bytes, but HAProxy can send a client's certificate; nginx has
/// the same limit.
const V2_BLOCK_BYTES_MAX: usize = 4 << 10;
/// The addresses of two Unix sockets.
const UNIX_BYTES: usize = 216;
/// What an HTTP request begins with whose method is called like the protocol: a header's next word is no path.
const HTTP: &[u8] = b"PROXY /";

/// Why a header is refused: it is not one, or it ends early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// Reads the header that `stream` begins with. Tells whose connection it is, where a header says so, and gives back
/// what was read and belongs to no header.
///
/// # Errors
/// When what begins like a header is none.
pub(super) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<(Option<IpAddr>, Bytes), Malformed> {
    let mut read = BytesMut::new();
    loop {
        match judge(&read)? {
            Beginning::Unfinished => {
                if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                    // Nothing at all is no header that ends early.
                    return if read.is_empty() { Ok((None, Bytes::new())) } else { Err(Malformed) };
                }
            }
            Beginning::Header { length, source } => {
                read.advance(length);
                return Ok((source, read.freeze()));
            }
            Beginning::Other => return Ok((None, read.freeze())),
        }
    }
}

/// What a connection begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beginning {
    /// Perhaps a header; more has to come.
    Unfinished,
    /// A header of this many bytes; `source` is unset where the connection is to be taken for the proxy's own.
    Header { length: usize, source: Option<IpAddr> },
    /// Something else.
    Other,
}

fn judge(bytes: &[u8]) -> Result<Beginning, Malformed> {
    if bytes.starts_with(V2) {
        v2(bytes)
    } else if bytes.starts_with(V1) && !bytes.starts_with(HTTP) {
        v1(bytes)
    } else if V1.starts_with(bytes) || V2.starts_with(bytes) {
        Ok(Beginning::Unfinished)
    } else {
        Ok(Beginning::Other)
    }
}

/// One line of text, such as `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443`.
fn v1(bytes: &[u8]) -> Result<Beginning, Malformed> {
    let line = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(end) = line.windows(2).position(|end| end == b"\r\n") else {
        return if line.len() < V1_BYTES_MAX { Ok(Beginning::Unfinished) } else { Err(Malformed) };
    };
    let mut words = line[V1.len()..end].split(|byte| *byte == b' ');
    let source = match words.next() {
        Some(b"TCP4") => Some(v1_source::<Ipv4Addr>(words)?),
        Some(b"TCP6") => Some(v1_source::<Ipv6Addr>(words)?),
        // Whatever follows the word is to be ignored.
        Some(b"UNKNOWN") => None,
        _ => return Err(Malformed),
    };
    Ok(Beginning::Header { length: end + 2, source })
}

fn v1_source<'h, A>(words: impl Iterator<Item = &'h [u8]>) -> Result<IpAddr, Malformed>
where
    A: FromStr + Into<IpAddr>,
{
    let words: Vec<&str> = words.map(std::str::from_utf8).collect::<Result<_, _>>().map_err(|_| Malformed)?;
    let &[source, destination, source_port, destination_port] = &words[..] else { return Err(Malformed) };
    // Written in one way only: `+80` and `080` are numbers, too.
    let is_port = |word: &str| word.parse::<u16>().is_ok_and(|port| port.to_string() == word);
    if destination.parse::<A>().is_err() || !is_port(source_port) || !is_port(destination_port) {
        return Err(Malformed);
    }
    let source: A = source.parse().map_err(|_| Malformed)?;
    Ok(source.into().to_canonical())
}

/// Version and command, family and protocol, a length, and so many bytes of addresses and TLVs.
fn v2(bytes: &[u8]) -> Result<Beginning, Malformed> {
    const LOCAL: u8 = 0x20;
    const PROXY: u8 = 0x21;
    const UNSPECIFIED: u8 = 0x00;
    const TCP_OVER_IPV4: u8 = 0x11;
    const TCP_OVER_IPV6: u8 = 0x21;
    const UNIX_STREAM: u8 = 0x31;

    let Some((&[command, family, high, low], rest)) = bytes[V2.len()..].split_first_chunk() else {
        return Ok(Beginning::Unfinished);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > V2_BLOCK_BYTES_MAX || !matches!(command, LOCAL | PROXY) {
        return Err(Malformed);
    }
    let Some(block) = rest.get(..length) else { return Ok(Beginning::Unfinished) };
    let (source, tlvs): (Option<IpAddr>, &[u8]) = match (command, family) {
        // What is in the block has no meaning here, nor has the family of the proxy's own connection.
        (LOCAL, _) | (_, UNSPECIFIED) => (None, &[]),
        (_, TCP_OVER_IPV4) => {
            let (addresses, tlvs) = block.split_first_chunk::<12>().ok_or(Malformed)?;
            let &[a, b, c, d, ..] = addresses;
            (Some([a, b, c, d].into()), tlvs)
        }
        (_, TCP_OVER_IPV6) => {
            let (addresses, tlvs) = block.split_first_chunk::<36>().ok_or(Malformed)?;
            let source: &[u8; 16] = addresses.first_chunk().ok_or(Malformed)?;
            (Some(IpAddr::from(*source).to_canonical()), tlvs)
        }
        (_, UNIX_STREAM) => (None, block.get(UNIX_BYTES..).ok_or(Malformed)?),
        _ => return Err(Malformed),
    };
    skip(tlvs)?;
    Ok(Beginning::Header { length: V2.len() + 4 + length, source })
}

/// Types, lengths and values have to fill their place exactly.
fn skip(mut tlvs: &[u8]) -> Result<(), Malformed> {
    while !tlvs.is_empty() {
        let (&[_, high, low], rest) = tlvs.split_first_chunk().ok_or(Malformed)?;
        tlvs = rest.get(usize::from(u16::from_be_bytes([high, low]))..).ok_or(Malformed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    const FIRST_BYTES: &[u8] = b"POST / HTTP/1.1\r\n";

    /// A version 2 header.
    fn binary(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [V2, &[command, family], &length, block].concat()
    }

    fn ipv4(tlvs: &[u8]) -> Vec<u8> {
        let addresses = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 0x04, 1, 187];
        binary(0x21, 0x11, &[&addresses, tlvs].concat())
    }

    fn ipv6(source: &str) -> Vec<u8> {
        let source: Ipv6Addr = source.parse().unwrap();
        binary(0x21, 0x21, &[&source.octets()[..], &[0; 15], &[1, 0xdc, 0x04, 1, 187]].concat())
    }

    /// Whole headers, and whose connections they announce.
    fn good() -> Vec<(Vec<u8>, Option<&'static str>)> {
        let longest = format!("PROXY UNKNOWN {0} {0} 65535 65535\r\n", ["ffff"; 8].join(":"));
        assert_eq!(longest.len(), V1_BYTES_MAX);
        let noop = |length: usize| {
            [&[4], &u16::try_from(length).unwrap().to_be_bytes()[..], &vec![0; length]].concat()
        };
        vec![
            (b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n".into(), Some("192.0.2.1")),
            (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n".into(), Some("255.255.255.255")),
            (b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n".into(), Some("0.0.0.0")),
            (b"PROXY TCP6 2001:db8::1 ::1 56324 443\r\n".into(), Some("2001:db8::1")),
            (b"PROXY TCP6 2001:DB8:0:0:0:0:0:1 ::1 1 1\r\n".into(), Some("2001:db8::1")),
            // As everywhere: who has an IPv4 address is on the lists by that.
            (b"PROXY TCP6 ::ffff:c000:201 ::1 1 1\r\n".into(), Some("192.0.2.1")),
            (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 1\r\n".into(), Some("192.0.2.1")),
            (b"PROXY UNKNOWN\r\n".into(), None),
            (b"PROXY UNKNOWN TCP4 192.0.2.1 \xff \n \r \0\r\n".into(), None),
            (longest.into(), None),
            (ipv4(&[]), Some("192.0.2.1")),
            (ipv4(&[3, 0, 4, 1, 2, 3, 4]), Some("192.0.2.1")),
            (ipv4(&[&noop(0)[..], &noop(7), &noop(300)].concat()), Some("192.0.2.1")),
            (ipv4(&noop(V2_BLOCK_BYTES_MAX - 12 - 3)), Some("192.0.2.1")),
            (ipv6("2001:db8::1"), Some("2001:db8::1")),
            (ipv6("::ffff:192.0.2.1"), Some("192.0.2.1")),
            // The proxy's own, whatever the rest looks like.
            (binary(0x20, 0x00, &[]), None),
            (binary(0x20, 0xff, &[1, 2, 3]), None),
            (binary(0x20, 0x11, &[192, 0, 2, 1, 198, 51, 100, 1, 0, 1, 0, 1]), None),
            (binary(0x21, 0x00, &[]), None),
            (binary(0x21, 0x00, &[1, 2, 3]), None),
            (binary(0x21, 0x31, &[b'x'; UNIX_BYTES]), None),
            (binary(0x21, 0x31, &[&[b'x'; UNIX_BYTES][..], &noop(1)].concat()), None),
        ]
    }

    /// Headers that are spoilt, and complete enough to be known for it.
    fn bad() -> Vec<Vec<u8>> {
        let lines = [
            "TCP4 192.0.2.1 198.51.100.1 56324 443 ",
            "TCP4 192.0.2.1 198.51.100.1 56324 443 1",
            "TCP4 192.0.2.1 198.51.100.1 56324",
            "TCP4  192.0.2.1 198.51.100.1 56324 443",
            " TCP4 192.0.2.1 198.51.100.1 56324 443",
            "TCP4\t192.0.2.1 198.51.100.1 56324 443",
            "TCP4 192.0.2.1 198.51.100.1 +56324 443",
            "TCP4 192.0.2.1 198.51.100.1 56324 -443",
            "TCP4 192.0.2.1 198.51.100.1 056324 443",
            "TCP4 192.0.2.1 198.51.100.1 56324 00",
            "TCP4 192.0.2.1 198.51.100.1 65536 443",
            "TCP4 192.0.2.1 198.51.100.1 56324 ",
            "TCP4 192.0.2.1 198.51.100.1 0x1 443",
            "TCP4 192.0.2.1 198.51.100.1 56324 443\n",
            "TCP4 192.0.2.1 198.51.100.1 56324 443\r",
            "TCP4 192.0.2.1 198.51.100.1 56324 443\0",
            "TCP4 192.0.2.01 198.51.100.1 56324 443",
            "TCP4 192.0.2.256 198.51.100.1 56324 443",
            "TCP4 192.0.2 198.51.100.1 56324 443",
            "TCP4 0xc0.0.2.1 198.51.100.1 56324 443",
            "TCP4 192.0.2.1:80 198.51.100.1 56324 443",
            "TCP4 192.0.2.1 localhost 56324 443",
            "TCP4 2001:db8::1 ::1 56324 443",
            "TCP4 192.0.2.1 ::1 56324 443",
            "TCP4 192.0.2.\u{661} 198.51.100.1 56324 443",
            "TCP6 192.0.2.1 198.51.100.1 56324 443",
            "TCP6 2001:db8::1 198.51.100.1 56324 443",
            "TCP6 [2001:db8::1] ::1 56324 443",
            "TCP6 fe80::1%eth0 ::1 56324 443",
            "TCP6 2001::db8::1 ::1 56324 443",
            "TCP6 0:0:0:0:0:0:0:0:1 ::1 56324 443",
            "TCP6 00001::1 ::1 56324 443",
            "tcp4 192.0.2.1 198.51.100.1 56324 443",
            "UDP4 192.0.2.1 198.51.100.1 56324 443",
            "TCP5 192.0.2.1 198.51.100.1 56324 443",
            "TCP 192.0.2.1 198.51.100.1 56324 443",
            "UNKNOWNS",
            "Unknown",
            "UNKNOWN\t",
            "TCP4",
            "",
            " ",
        ];
        let addresses = [192, 0, 2, 1, 198, 51, 100, 1, 0, 1, 0, 1];
        let giant = |length: u16| [V2, &[0x21, 0x11], &length.to_be_bytes()].concat();
        let mut bad: Vec<_> = lines.iter().map(|line| format!("PROXY {line}\r\n").into_bytes()).collect();
        bad.extend([
            // A bare line feed ends nothing, so that the next line's end is too late.
            b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\nPOST / HTTP/1.1\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\rPOST / HTTP/1.1\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.\xff 198.51.100.1 56324 443\r\n".to_vec(),
            [&b"PROXY UNKNOWN "[..], &[b'x'; V1_BYTES_MAX - 15], b"\r\n"].concat(),
            [&b"PROXY UNKNOWN "[..], &[b'x'; 10_000]].concat(),
            [&b"PROXY TCP4 "[..], &[b' '; V1_BYTES_MAX]].concat(),
            binary(0x11, 0x11, &addresses),
            binary(0x31, 0x11, &addresses),
            binary(0x01, 0x11, &addresses),
            binary(0x22, 0x11, &addresses),
            binary(0x2f, 0x11, &addresses),
            binary(0x21, 0x12, &addresses),
            binary(0x21, 0x10, &addresses),
            binary(0x21, 0x13, &addresses),
            binary(0x21, 0x01, &addresses),
            binary(0x21, 0x41, &addresses),
            binary(0x21, 0x22, &[0; 36]),
            binary(0x21, 0x20, &[0; 36]),
            binary(0x21, 0x32, &[0; UNIX_BYTES]),
            binary(0x21, 0x11, &addresses[..11]),
            binary(0x21, 0x11, &[]),
            binary(0x21, 0x21, &[0; 35]),
            binary(0x21, 0x21, &addresses),
            binary(0x21, 0x31, &[0; UNIX_BYTES - 1]),
            ipv4(&[4]),
            ipv4(&[4, 0]),
            ipv4(&[4, 0, 1]),
            ipv4(&[4, 0, 0, 4]),
            ipv4(&[4, 0xff, 0xff, 0]),
            ipv4(&[4, 0, 2, 0]),
            giant(0xffff),
            giant(u16::try_from(V2_BLOCK_BYTES_MAX).unwrap() + 1),
            [V2, &[0x20, 0, 0xff, 0xff]].concat(),
        ]);
        bad
    }

    #[test]
    fn a_header_is_known_by_its_last_byte_and_no_earlier() {
        for (header, source) in good() {
            let expected = Beginning::Header {
                length: header.len(),
                source: source.map(|source| source.parse().unwrap()),
            };
            let text = String::from_utf8_lossy(&header);
            for end in 0..header.len() {
                assert_eq!(judge(&header[..end]), Ok(Beginning::Unfinished), "{end} bytes of {text}");
            }
            assert_eq!(judge(&header), Ok(expected), "{text}");
            let longer = [&header[..], FIRST_BYTES, &header].concat();
            assert_eq!(judge(&longer), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_exactly_a_header_is_refused_at_no_length_taken_for_one() {
        for bad in bad() {
            let text = String::from_utf8_lossy(&bad);
            for end in 0..bad.len() {
                let judged = judge(&bad[..end]);
                assert!(
                    matches!(judged, Ok(Beginning::Unfinished) | Err(Malformed)),
                    "{end} bytes of {text}: {judged:?}"
                );
            }
            assert_eq!(judge(&bad), Err(Malformed), "{text}");
        }
    }

    #[test]
    fn what_does_not_begin_like_a_header_goes_on_at_its_first_other_byte() {
        for (other, at) in [
            ("POST / HTTP/1.1\r\n", 2),
            ("PRI * HTTP/2.0\r\n", 3),
            ("PROXYS / HTTP/1.1\r\n", 6),
            ("PROXY / HTTP/1.1\r\n", 7),
            ("PROXY /TCP4 192.0.2.1 198.51.100.1 56324 443\r\n", 7),
            ("PROXY\tTCP4 192.0.2.1 198.51.100.1 56324 443\r\n", 6),
            ("proxy TCP4 192.0.2.1 198.51.100.1 56324 443\r\n", 1),
            (" PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n", 1),
            ("\r\nPROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n", 3),
            ("\r\nPOST / HTTP/1.1\r\n", 3),
            ("\r\n\r\n\r\n", 5),
            ("\r\n\r\n\0\r\nQUIT\r\n", 12),
            ("\x16\x03\x01\x02\0", 1),
        ] {
            let other = other.as_bytes();
            assert_eq!(judge(&other[..at - 1]), Ok(Beginning::Unfinished), "{}", other.escape_ascii());
            for end in at..=other.len() {
                assert_eq!(judge(&other[..end]), Ok(Beginning::Other), "{}", other[..end].escape_ascii());
            }
        }
    }

    /// What `read` makes of `sent` when it comes in two pieces, and then the end; all that it did not take.
    async fn read_of(sent: &[u8], split: usize) -> Result<(Option<IpAddr>, Vec<u8>), Malformed> {
        let (mut sender, mut stream) = tokio::io::duplex(64 << 10);
        let send = async {
            sender.write_all(&sent[..split]).await.unwrap();
            tokio::task::yield_now().await;
            sender.write_all(&sent[split..]).await.unwrap();
            drop(sender);
        };
        let (taken, ()) = tokio::join!(read(&mut stream), send);
        let (source, first) = taken?;
        let mut rest = first.to_vec();
        stream.read_to_end(&mut rest).await.unwrap();
        Ok((source, rest))
    }

    #[tokio::test]
    async fn every_byte_behind_a_header_is_left_for_who_reads_on() {
        for (header, source) in good() {
            let source = source.map(|source| source.parse().unwrap());
            let sent = [&header[..], FIRST_BYTES].concat();
            for split in 0..sent.len() {
                assert_eq!(read_of(&sent, split).await, Ok((source, FIRST_BYTES.to_vec())));
            }
            for end in 1..header.len() {
                assert_eq!(read_of(&header[..end], end / 2).await, Err(Malformed), "{end}");
            }
        }
        for split in 0..FIRST_BYTES.len() {
            assert_eq!(read_of(FIRST_BYTES, split).await, Ok((None, FIRST_BYTES.to_vec())));
        }
        assert_eq!(read_of(b"", 0).await, Ok((None, Vec::new())));
    }
}
