//! A row's bytes, taken apart: numbers of varying length, the types of the columns, and their values. What contradicts
//! itself is no row. The format is described at <https://www.sqlite.org/fileformat2.html#record_format>.

/// A value of a row.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Integer(i64),
    Text(String),
    Blob(Vec<u8>),
}

/// A number, and how many bytes it takes.
pub(super) fn varint(bytes: &[u8], at: usize) -> Option<(u64, usize)> {
    let mut number = 0_u64;
    for index in 0..9 {
        let byte = *bytes.get(at + index)?;
        if index == 8 {
            return Some(((number << 8) + u64::from(byte), 9));
        }
        number = (number << 7) + u64::from(byte & 0x7f);
        if byte < 0x80 {
            return Some((number, index + 1));
        }
    }
    None
}

/// The types of a record's columns, and where the first begins.
pub(super) fn types(payload: &[u8]) -> Option<(Vec<u64>, usize)> {
    let (end, mut at) = varint(payload, 0)?;
    let end = usize::try_from(end).ok().filter(|end| *end < 100)?;
    let mut types = Vec::new();
    while at < end {
        let (kind, size) = varint(payload, at)?;
        types.push(kind);
        at += size;
    }
    (at == end).then_some((types, end))
}

pub(super) fn record(payload: &[u8]) -> Option<Vec<Value>> {
    let (types, mut at) = types(payload)?;
    let mut values = Vec::with_capacity(types.len());
    for kind in types {
        let length = match kind {
            0 | 8 | 9 => 0,
            1..=4 => usize::try_from(kind).ok()?,
            5 => 6,
            6 | 7 => 8,
            10 | 11 => return None,
            _ => usize::try_from((kind - 12) / 2).ok()?,
        };
        let bytes = payload.get(at..at.checked_add(length)?)?;
        at += length;
        values.push(match kind {
            0 => Value::Null,
            1..=6 => Value::Integer(signed(bytes)),
            8 => Value::Integer(0),
            9 => Value::Integer(1),
            // No column of ours holds a fraction.
            7 => return None,
            _ if kind % 2 == 0 => Value::Blob(bytes.to_vec()),
            _ => Value::Text(String::from_utf8(bytes.to_vec()).ok()?),
        });
    }
    (at == payload.len()).then_some(values)
}

fn signed(bytes: &[u8]) -> i64 {
    let negative = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
    bytes.iter().fold(if negative { -1 } else { 0 }, |number, byte| (number << 8) + i64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_length_are_read() {
        for (bytes, expected) in [
            (&[0x7f][..], (0x7f, 1)),
            (&[0x81, 0x00], (128, 2)),
            (&[0xff, 0x7f], (0x3fff, 2)),
            (&[0x81, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01], (1 << 57 | 1, 9)),
            (&[0xff; 9], (u64::MAX, 9)),
        ] {
            assert_eq!(varint(bytes, 0), Some(expected), "{bytes:x?}");
            assert_eq!(varint(&bytes[..bytes.len() - 1], 0), None, "{bytes:x?}");
        }
    }

    /// What is taken for a row by mistake would be stored in the place of one, or cost the memory for it.
    #[test]
    fn a_head_that_contradicts_itself_is_no_row() {
        assert_eq!(record(&[3, 9, 15, b'x']), Some(vec![Value::Integer(1), Value::Text("x".to_owned())]));
        // Longer than the row, shorter than its own length, ending within a number, with a row that is cut off or goes on.
        for head in [&[9, 9][..], &[0, 9], &[2, 0x81, 0x00], &[3, 9, 15], &[3, 9, 15, b'x', b'y'], &[]] {
            assert_eq!(record(head), None, "{head:?}");
        }
        // No column of ours has a fraction, or a type that SQLite keeps for itself.
        for kind in [7, 10, 11] {
            assert_eq!(record(&[&[2, kind][..], b"abcdefgh"].concat()), None);
            assert_eq!(record(&[2, kind]), None);
        }
        let columns = |count: u8| [vec![count + 1], vec![8; count.into()]].concat();
        assert_eq!(record(&columns(98)).map(|row| row.len()), Some(98));
        assert_eq!(record(&columns(99)), None, "no row of ours has so many");
    }
}
