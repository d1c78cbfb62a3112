//! Text that must not be seen: signing secrets, tokens, header values that carry either. It cannot be printed or
//! serialised by accident, and is wiped when dropped.

use std::fmt;

use zeroize::Zeroizing;

/// A secret with at least one byte that is not white space.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

/// The text offered as a secret was empty or blank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a secret must not be empty or blank")]
pub struct BlankSecret;

impl Secret {
    /// # Errors
    /// When `bytes` are empty or all white space: such a "secret" would let anyone sign.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, BlankSecret> {
        let bytes = Zeroizing::new(bytes.into());
        if bytes.trim_ascii().is_empty() { Err(BlankSecret) } else { Ok(Self(bytes)) }
    }

    /// The bytes themselves; what is done with them is the caller's to answer for.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_is_refused_and_debug_shows_nothing() {
        for blank in ["", " ", "\n", "\t \r\n"] {
            assert_eq!(Secret::new(blank).unwrap_err(), BlankSecret);
        }
        assert_eq!(format!("{:?}", Secret::new("hunter2").unwrap()), "Secret(…)");
    }
}
