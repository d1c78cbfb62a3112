//! How signatures stand in the text of a header: alone, after a prefix, in a list of `name=value`, or by position.
//! Only takes the text apart; nothing here is a secret or compared.

/// The shape of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Grammar {
    /// The text is the signature.
    Whole,
    /// The signature follows this text.
    Prefix(String),
    /// A list of `name assign value`. Names other than these are skipped: other versions of the signature.
    Pairs { separators: String, assign: char, take: Names, timestamp: Option<String>, groups: Option<char> },
    /// A list of signatures, with the timestamp at this place, if any.
    Positional { separators: String, timestamp_index: Option<usize> },
}

/// The names whose values are signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Names {
    Any,
    These(Vec<String>),
}

impl Names {
    fn has(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::These(names) => names.iter().any(|taken| taken == name),
        }
    }
}

/// What a text held.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Parsed<'a> {
    pub(super) signatures: Vec<&'a str>,
    pub(super) timestamp: Option<&'a str>,
}

/// Two timestamps in one text: which one is signed is anyone's guess.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TwoTimestamps;

impl Grammar {
    /// Whether the text holds the timestamp, too.
    pub(super) fn has_timestamp(&self) -> bool {
        match self {
            Self::Whole | Self::Prefix(_) => false,
            Self::Pairs { timestamp, .. } => timestamp.is_some(),
            Self::Positional { timestamp_index, .. } => timestamp_index.is_some(),
        }
    }

    /// What stands between whole lists, each with a timestamp of its own.
    pub(super) fn groups(&self) -> Option<char> {
        match self {
            Self::Whole | Self::Prefix(_) | Self::Positional { .. } => None,
            Self::Pairs { groups, .. } => *groups,
        }
    }

    /// The list of this number; `None` when there are fewer.
    pub(super) fn group<'a>(&self, text: &'a str, number: usize) -> Option<&'a str> {
        match self.groups() {
            Some(between) => text.split(between).filter(|group| !group.is_empty()).nth(number),
            None => (number == 0).then_some(text),
        }
    }

    /// Takes `text` apart; what does not belong to the grammar is left out.
    pub(super) fn parse<'a>(&self, text: &'a str) -> Result<Parsed<'a>, TwoTimestamps> {
        let mut parsed = Parsed::default();
        match self {
            Self::Whole => parsed.signatures.push(text),
            Self::Prefix(prefix) => parsed.signatures.extend(text.strip_prefix(prefix.as_str())),
            Self::Pairs { separators, assign, take, timestamp, groups: _ } => {
                for item in items(text, separators) {
                    // At the first sign only: base64 ends in more of them.
                    let Some((name, value)) = item.split_once(*assign) else { continue };
                    if take.has(name) {
                        parsed.signatures.push(value);
                    } else if timestamp.as_deref() == Some(name) && parsed.timestamp.replace(value).is_some()
                    {
                        return Err(TwoTimestamps);
                    }
                }
            }
            Self::Positional { separators, timestamp_index } => {
                for (index, item) in items(text, separators).enumerate() {
                    if *timestamp_index == Some(index) {
                        parsed.timestamp = Some(item);
                    } else {
                        parsed.signatures.push(item);
                    }
                }
            }
        }
        Ok(parsed)
    }

    /// The text that [`parse`](Self::parse) takes apart again.
    pub(super) fn format(&self, signature: &str, timestamp: Option<&str>) -> String {
        match self {
            Self::Whole => signature.to_owned(),
            Self::Prefix(prefix) => format!("{prefix}{signature}"),
            Self::Pairs { separators, assign, take, timestamp: name, groups: _ } => {
                let version = match take {
                    Names::Any => "key",
                    Names::These(names) => names.first().map_or("", String::as_str),
                };
                match (name, timestamp) {
                    (Some(name), Some(time)) => {
                        format!("{name}{assign}{time}{}{version}{assign}{signature}", separator(separators))
                    }
                    _ => format!("{version}{assign}{signature}"),
                }
            }
            Self::Positional { separators, timestamp_index } => match (timestamp_index, timestamp) {
                (Some(0), Some(time)) => format!("{time}{}{signature}", separator(separators)),
                (Some(_), Some(time)) => format!("{signature}{}{time}", separator(separators)),
                _ => signature.to_owned(),
            },
        }
    }
}

fn items<'a>(text: &'a str, separators: &str) -> impl Iterator<Item = &'a str> {
    text.split(move |c| separators.contains(c)).map(str::trim_ascii).filter(|item| !item.is_empty())
}

fn separator(separators: &str) -> &str {
    separators.chars().next().map_or("", |first| &separators[..first.len_utf8()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(separators: &str, assign: char, take: &[&str], timestamp: Option<&str>) -> Grammar {
        Grammar::Pairs {
            separators: separators.to_owned(),
            assign,
            take: Names::These(take.iter().map(|&name| name.to_owned()).collect()),
            timestamp: timestamp.map(str::to_owned),
            groups: None,
        }
    }

    #[test]
    fn signatures_are_taken_out_of_their_text() {
        let check = |grammar: &Grammar, text: &str, signatures: &[&str], timestamp: Option<&str>| {
            let expected = Parsed { signatures: signatures.to_vec(), timestamp };
            assert_eq!(grammar.parse(text), Ok(expected), "{text:?}");
        };
        check(&Grammar::Whole, "abc", &["abc"], None);

        let prefix = Grammar::Prefix("sha256=".to_owned());
        check(&prefix, "sha256=abc", &["abc"], None);
        check(&prefix, "SHA256=abc", &[], None);
        check(&prefix, "sha1=abc", &[], None);
        check(&prefix, "abc", &[], None);

        let list = pairs(",", '=', &["v1"], Some("t"));
        check(&list, "t=1,v1=a", &["a"], Some("1"));
        check(&list, "v1=a,t=1", &["a"], Some("1"));
        check(&list, "t=1, v1=a,\tv1=b ", &["a", "b"], Some("1"));
        check(&list, "t=1,v2=x,v1=a,v0=y,V1=z", &["a"], Some("1"));
        check(&list, "v1=a==", &["a=="], None);
        check(&list, "v1 =a,=,v1,,", &[], None);
        check(&list, "v1=", &[""], None);
        check(&list, "", &[], None);
        assert_eq!(list.parse("t=1,t=1,v1=a"), Err(TwoTimestamps));

        let versions = pairs(" ", ',', &["v1"], None);
        check(&versions, "v1,a= v1a,x  v1,b=", &["a=", "b="], None);

        let any = Grammar::Pairs {
            separators: "&".to_owned(),
            assign: '|',
            take: Names::Any,
            timestamp: None,
            groups: None,
        };
        check(&any, "key|a&other|b&c", &["a", "b"], None);

        let positional = Grammar::Positional { separators: ",".to_owned(), timestamp_index: Some(0) };
        check(&positional, "1,a,b", &["a", "b"], Some("1"));
        check(&positional, "", &[], None);
    }

    #[test]
    fn groups_are_lists_of_their_own() {
        let Grammar::Pairs { separators, assign, take, timestamp, .. } = pairs(",", '=', &["v1"], Some("t"))
        else {
            unreachable!()
        };
        let grouped = Grammar::Pairs { separators, assign, take, timestamp, groups: Some(' ') };
        let text = "t=1,v1=a  t=2,v1=b ";
        assert_eq!(grouped.group(text, 0), Some("t=1,v1=a"));
        assert_eq!(grouped.group(text, 1), Some("t=2,v1=b"));
        assert_eq!(grouped.group(text, 2), None);
        assert_eq!(Grammar::Whole.group(text, 0), Some(text));
        assert_eq!(Grammar::Whole.group(text, 1), None);
    }

    #[test]
    fn what_is_written_can_be_taken_apart() {
        let at = |index| Grammar::Positional { separators: ";,".to_owned(), timestamp_index: index };
        for (grammar, timestamp) in [
            (Grammar::Whole, None),
            (Grammar::Prefix("sha256=".to_owned()), None),
            (pairs(",", '=', &["v1", "v2"], Some("t")), Some("1")),
            (pairs(" ", ',', &["v1"], None), None),
            (at(Some(0)), Some("1")),
            (at(Some(1)), Some("1")),
            (at(None), None),
        ] {
            let text = grammar.format("c2ln==", timestamp);
            let expected = Parsed { signatures: vec!["c2ln=="], timestamp };
            assert_eq!(grammar.parse(&text), Ok(expected), "{text}");
        }
    }
}
