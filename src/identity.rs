//! Whom a certificate names, and until when it is valid; and the rules by which a source chooses among such names. Whether
//! a certificate is to be believed at all is judged by the TLS library, before anybody reads here.

use std::fmt;
use std::str::FromStr;

use x509_cert::Certificate;
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{self, Decode as _, Tag, Tagged as _};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::name::{RdnSequence, RelativeDistinguishedName};

use crate::clock::{Timestamp, from_milliseconds};

/// What a certificate says of its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    attributes: Vec<Attribute>,
    dns_names: Vec<String>,
}

/// A type and its value, such as `CN=client.example`; `None` is a value that is not text, which no rule can name.
type Attribute = (ObjectIdentifier, Option<String>);

impl Identity {
    /// Reads a certificate (RFC 5280) in DER form.
    ///
    /// # Errors
    /// When it is none.
    pub fn of(certificate: &[u8]) -> Result<Self, der::Error> {
        let certificate = Certificate::from_der(certificate)?;
        let certificate = certificate.tbs_certificate();
        let alternatives = certificate.get_extension::<SubjectAltName>()?;
        let alternatives = alternatives.map(|(_, names)| names.0).unwrap_or_default();
        let dns_names = alternatives.iter().filter_map(|name| match name {
            GeneralName::DnsName(name) => Some(name.to_string()),
            _ => None,
        });
        Ok(Self {
            attributes: certificate.subject().iter().map(attribute).collect(),
            dns_names: dns_names.collect(),
        })
    }
}

/// The last moment of the validity of a certificate in DER form, whatever its extensions.
///
/// # Errors
/// When it is none.
pub fn not_after(certificate: &[u8]) -> Result<Timestamp, der::Error> {
    let certificate = Certificate::from_der(certificate)?;
    let not_after = certificate.tbs_certificate().validity().not_after.to_unix_duration().as_millis();
    Ok(from_milliseconds(i64::try_from(not_after).unwrap_or(i64::MAX)))
}

fn attribute(attribute: &AttributeTypeAndValue) -> Attribute {
    let text = match attribute.value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String => {
            std::str::from_utf8(attribute.value.value()).ok()
        }
        _ => None,
    };
    (attribute.oid, text.map(str::to_owned))
}

/// An element of `source.allow_subjects`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubjectRule {
    /// Each of these attributes is in the subject exactly once, letter for letter, and nothing else of the same types:
    /// whose common name is `a` is not who has another one besides. There may be attributes of other types.
    Attributes(Vec<Attribute>),
    /// This is one of the DNS names among the subject's alternative names, letter for letter but for case: a wildcard is
    /// matched by itself only.
    DnsName(String),
}

impl SubjectRule {
    /// Whether the holder is one of those that are meant.
    pub fn matches(&self, identity: &Identity) -> bool {
        match self {
            Self::Attributes(wanted) => {
                let found = &identity.attributes;
                let is_named = |(kind, _): &Attribute| wanted.iter().any(|(named, _)| named == kind);
                wanted.iter().all(|wanted| found.iter().filter(|found| *found == wanted).count() == 1)
                    && found.iter().all(|found| !is_named(found) || wanted.contains(found))
            }
            Self::DnsName(wanted) => {
                identity.dns_names.iter().any(|found| found.eq_ignore_ascii_case(wanted))
            }
        }
    }
}

/// Why a text is no rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRule;

impl fmt::Display for NoRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it is neither attributes of a subject nor `DNS:` and a name")
    }
}

/// `DNS:client.example`, or attributes in the text form of RFC 4514: `CN=client,O=Example\, Inc.`.
impl FromStr for SubjectRule {
    type Err = NoRule;

    fn from_str(text: &str) -> Result<Self, NoRule> {
        if let Some(name) = text.strip_prefix("DNS:") {
            let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
            return if is_name { Ok(Self::DnsName(name.to_owned())) } else { Err(NoRule) };
        }
        if !is_read_as_written(text) {
            return Err(NoRule);
        }
        let names: RdnSequence = text.parse().map_err(|_| NoRule)?;
        let attributes: Vec<_> =
            names.iter().flat_map(RelativeDistinguishedName::iter).map(attribute).collect();
        let is_text = |(_, value): &Attribute| value.as_ref().is_some_and(|value| !value.is_empty());
        if attributes.iter().all(is_text) { Ok(Self::Attributes(attributes)) } else { Err(NoRule) }
    }
}

/// Whether x509-cert reads a text as RFC 4514 does: it drops an escape that is not finished, takes a bare `;` for text, and
/// a separator after three `\` for one that is not escaped.
fn is_read_as_written(text: &str) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let is_whole = match byte {
            b'\\' => match bytes.next() {
                Some(high) if high.is_ascii_hexdigit() => {
                    bytes.next().is_some_and(|low| low.is_ascii_hexdigit())
                }
                escaped => escaped.is_some(),
            },
            byte => byte != b';',
        };
        if !is_whole {
            return false;
        }
    }
    !text.contains(r"\\\")
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair, SanType};

    use super::*;

    /// With these attributes, in the text form, and DNS names.
    fn identity(attributes: &[&str], dns_names: &[&str]) -> Identity {
        let one = |text: &&str| match text.parse() {
            Ok(SubjectRule::Attributes(attributes)) => attributes,
            other => panic!("{other:?}"),
        };
        Identity {
            attributes: attributes.iter().flat_map(one).collect(),
            dns_names: dns_names.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    #[test]
    fn a_rule_matches_when_all_of_it_is_there_exactly_once() {
        let subject = identity(
            &["DC=com,DC=example", "C=US", "O=Example\\, Inc.", "OU=Mail", "OU=Mail", "CN=client.example"],
            &["client.example", "*.wild.example"],
        );
        let check = |rule: &str, expected| {
            assert_eq!(rule.parse::<SubjectRule>().unwrap().matches(&subject), expected, "{rule}");
        };
        for rule in [
            "CN=client.example",
            "cn=client.example",
            "2.5.4.3=client.example",
            "CN=client.example,O=Example\\, Inc.",
            "O=Example\\2c Inc.,CN=client.example,C=US",
            "C=US+CN=client.example",
            "DC=example,DC=com",
            "DC=com,DC=example,CN=client.example",
            "DNS:client.example",
            "DNS:CLIENT.example",
            "DNS:*.wild.example",
        ] {
            check(rule, true);
        }
        for rule in [
            "CN=client.exampl",
            "CN=client.example.org",
            "CN=Client.example",
            "CN= client.example",
            "CN=*",
            "CN=client.example,O=Another",
            "CN=client.example,L=Berlin",
            "O=client.example",
            "OU=Mail",
            "OU=Mail,OU=Mail",
            "DC=com",
            "DC=com,CN=client.example",
            "DC=com,DC=example,DC=org",
            "DNS:example",
            "DNS:a.wild.example",
            "DNS:other.example",
        ] {
            check(rule, false);
        }
        let nobody = identity(&[], &[]);
        let rule: SubjectRule = "CN=client.example".parse().unwrap();
        assert!(!rule.matches(&nobody));
        let mut two = identity(&["CN=evil", "CN=client.example"], &[]);
        assert!(!rule.matches(&two));
        // Also when the other one is not text.
        two.attributes[0].1 = None;
        assert!(!rule.matches(&two));
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for text in [
            "",
            " ",
            "client.example",
            "CN",
            "CN=",
            "CN=a,",
            "CN=a,O=",
            "=a",
            "Nobody=a",
            "CN=#0500",
            "CN=a\\",
            "CN=a\\\\\\",
            "CN=a\\4",
            "CN=a\\4,O=b",
            "CN=a\\4\\",
            "CN=a\\\\\\,O=b",
            "CN=a;O=b",
            "CN=a\\\\;O=b",
            "DNS:",
            "DNS:a b",
            "DNS:ä.example",
        ] {
            assert_eq!(text.parse::<SubjectRule>(), Err(NoRule), "{text}");
        }
        for (text, value) in
            [(r"CN=a\;b", "a;b"), (r"CN=a\\", r"a\"), (r"CN=a\4a", "aJ"), (r"CN=\\4,O=b", r"\4")]
        {
            let Ok(SubjectRule::Attributes(read)) = text.parse() else { panic!("{text}") };
            assert!(read.iter().any(|(_, read)| read.as_deref() == Some(value)), "{text}: {read:?}");
        }
    }

    #[test]
    fn a_certificate_is_read_in_every_kind_of_text() {
        let mut params = CertificateParams::new(["client.example".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::IpAddress([192, 0, 2, 7].into()));
        let name = &mut params.distinguished_name;
        name.push(DnType::CommonName, DnValue::PrintableString("client".try_into().unwrap()));
        name.push(DnType::OrganizationName, "Müller, Söhne");
        name.push(
            DnType::from_oid(&[0, 9, 2342, 19_200_300, 100, 1, 25]),
            DnValue::Ia5String("x".try_into().unwrap()),
        );
        name.push(DnType::LocalityName, DnValue::BmpString("Ulm".try_into().unwrap()));
        params.not_after = rcgen::date_time_ymd(2027, 2, 28);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let read = Identity::of(certificate.der()).unwrap();
        let mut expected = identity(&["CN=client", "O=Müller\\, Söhne", "DC=x"], &["client.example"]);
        expected.attributes.push((ObjectIdentifier::new_unwrap("2.5.4.7"), None));
        assert_eq!(read, expected);
        assert_eq!(not_after(certificate.der()).unwrap(), "2027-02-28T00:00:00Z".parse().unwrap());

        // RFC 5280 §4.1.2.5: no well-defined expiration; just beyond what a timestamp holds.
        params.not_after = rcgen::date_time_ymd(9999, 12, 31);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert_eq!(not_after(certificate.der()).unwrap(), Timestamp::MAX);
        assert!(Identity::of(&certificate.der()[1..]).is_err());
        assert!(not_after(&certificate.der()[1..]).is_err());
    }
}
