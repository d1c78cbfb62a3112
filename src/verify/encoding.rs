//! How bytes are written as text in signatures and keys. Decoding is strict: of the same bytes there is one text only,
//! apart from the case of hex digits and the padding of base64.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};

/// How bytes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Hex,
    Base64,
    Base64Url,
}

impl Encoding {
    pub(super) fn encode(self, bytes: &[u8]) -> String {
        match self {
            Self::Hex => hex::encode(bytes),
            Self::Base64 => STANDARD.encode(bytes),
            Self::Base64Url => URL_SAFE_NO_PAD.encode(bytes),
        }
    }

    pub(super) fn decode(self, text: &[u8]) -> Option<Vec<u8>> {
        match (self, text.ends_with(b"=")) {
            (Self::Hex, _) => hex::decode(text).ok(),
            (Self::Base64, true) => STANDARD.decode(text).ok(),
            (Self::Base64, false) => STANDARD_NO_PAD.decode(text).ok(),
            (Self::Base64Url, true) => URL_SAFE.decode(text).ok(),
            (Self::Base64Url, false) => URL_SAFE_NO_PAD.decode(text).ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding_is_strict() {
        let check = |encoding: Encoding, text: &str, expected: Option<&[u8]>| {
            assert_eq!(encoding.decode(text.as_bytes()).as_deref(), expected, "{encoding:?} {text:?}");
        };
        check(Encoding::Hex, "00fF", Some(&[0, 255]));
        check(Encoding::Base64, "+/8=", Some(&[251, 255]));
        check(Encoding::Base64, "+/8", Some(&[251, 255]));
        check(Encoding::Base64, "/w==", Some(&[255]));
        check(Encoding::Base64Url, "-_8=", Some(&[251, 255]));
        check(Encoding::Base64Url, "-_8", Some(&[251, 255]));
        for junk in ["0", "0g", " 00", "00 ", "0x00", "０0", "+00"] {
            check(Encoding::Hex, junk, None);
        }
        // The last character's unused bits must be zero, and padding whole: `/x==` and `+/9=` would be second texts.
        for junk in
            ["/w=", "/x==", "+/9=", "+/9", "-_8=", "+/8=\t", "+/8= ", "\"+/8=\"", "+/8==", "+\n/8=", "A"]
        {
            check(Encoding::Base64, junk, None);
        }
        for junk in ["+/8=", "-_9", "-_8= "] {
            check(Encoding::Base64Url, junk, None);
        }
    }
}
