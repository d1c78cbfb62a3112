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
    /// The last moment of its validity.
    pub not_after: Timestamp,
}

/// A type and its value, such as `CN=client.example`. Values that are not text are left out: no rule can name them.
type Attribute = (ObjectIdentifier, String);

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
        let not_after = certificate.validity().not_after.to_unix_duration().as_millis();
        Ok(Self {
            attributes: certificate.subject().iter().filter_map(attribute).collect(),
            dns_names: dns_names.collect(),
            not_after: from_milliseconds(i64::try_from(not_after).unwrap_or(i64::MAX)),
        })
    }
}

fn attribute(attribute: &AttributeTypeAndValue) -> Option<Attribute> {
    match attribute.value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String => {
            let text = std::str::from_utf8(attribute.value.value()).ok()?;
            Some((attribute.oid, text.to_owned()))
        }
        _ => None,
    }
}

/// An element of `source.allow_subjects`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubjectRule {
    /// Each of these attributes is in the subject exactly once, letter for letter; there may be others.
    Attributes(Vec<Attribute>),
    /// This is one of the DNS names among the subject's alternative names, letter for letter but for case: a wildcard is
    /// matched by itself only.
    DnsName(String),
}

impl SubjectRule {
    /// Whether the holder is one of those that are meant.
    pub fn matches(&self, identity: &Identity) -> bool {
        match self {
            Self::Attributes(wanted) => wanted
                .iter()
                .all(|wanted| identity.attributes.iter().filter(|found| *found == wanted).count() == 1),
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
        let names: RdnSequence = text.parse().map_err(|_| NoRule)?;
        let attributes = names.iter().flat_map(RelativeDistinguishedName::iter);
        let read = |pair| attribute(pair).filter(|(_, value)| !value.is_empty());
        attributes.map(read).collect::<Option<_>>().map(Self::Attributes).ok_or(NoRule)
    }
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
            not_after: Timestamp::MAX,
        }
    }

    #[test]
    fn a_rule_matches_when_all_of_it_is_there_exactly_once() {
        let subject = identity(
            &["C=US", "O=Example\\, Inc.", "OU=Hooks", "OU=Mail", "OU=Mail", "CN=client.example"],
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
            "OU=Hooks",
            "OU=Hooks+CN=client.example",
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
            "DNS:example",
            "DNS:a.wild.example",
            "DNS:other.example",
        ] {
            check(rule, false);
        }
        let nobody = identity(&[], &[]);
        assert!(!"CN=client.example".parse::<SubjectRule>().unwrap().matches(&nobody));
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
            "DNS:",
            "DNS:a b",
            "DNS:ä.example",
        ] {
            assert_eq!(text.parse::<SubjectRule>(), Err(NoRule), "{text}");
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
        let expected = identity(&["CN=client", "O=Müller\\, Söhne", "DC=x"], &["client.example"]);
        let not_after = "2027-02-28T00:00:00Z".parse().unwrap();
        assert_eq!(read, Identity { not_after, ..expected });

        // RFC 5280 §4.1.2.5: no well-defined expiration; just beyond what a timestamp holds.
        params.not_after = rcgen::date_time_ymd(9999, 12, 31);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert_eq!(Identity::of(certificate.der()).unwrap().not_after, Timestamp::MAX);
        assert!(Identity::of(&certificate.der()[1..]).is_err());
    }
}
