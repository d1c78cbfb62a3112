//! Where an IP address leads: to the world, or to machines that only a neighbour may reach. Judged on the address that
//! is dialled, since a name may resolve to anything. The blocks are those of the IANA registries of special-purpose
//! addresses; an IPv6 address that carries an IPv4 one leads where that leads.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where an address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Somewhere on the internet.
    Public,
    /// This machine.
    Loopback,
    /// A private network.
    Private,
    /// The same link only.
    LinkLocal,
    /// Behind a carrier's address translation, and what clouds keep there.
    Shared,
    /// A group of machines.
    Multicast,
    /// None, which systems take for this machine.
    Unspecified,
    /// Set aside for documentation, tests, tunnels, or the future.
    Reserved,
    /// A cloud's service that tells an instance its credentials.
    Metadata,
}

/// Services that hand credentials to whoever asks from the inside: AWS, Google Cloud, Azure and most others; AWS for
/// containers and pods; Alibaba. They are nobody's backend, and an answer of theirs would be kept for operators.
const METADATA_V4: [Ipv4Addr; 4] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(169, 254, 170, 23),
    Ipv4Addr::new(100, 100, 100, 200),
];
/// The same on IPv6: AWS, and AWS for pods.
const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)];

impl Reach {
    /// Where `address` leads.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => of_v4(address),
            IpAddr::V6(address) => of_v6(address),
        }
    }

    /// Whether a destination must not be dialled there. Metadata services never are, link-local or not; other
    /// link-local addresses may be backends (AWS has load balancers there).
    pub fn is_refused(self, allow_private: bool) -> bool {
        match self {
            Self::Public => false,
            Self::Metadata => true,
            Self::Loopback
            | Self::Private
            | Self::LinkLocal
            | Self::Shared
            | Self::Multicast
            | Self::Unspecified
            | Self::Reserved => !allow_private,
        }
    }

    /// What such an address is, with its article.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Public => "a public address",
            Self::Loopback => "a loopback address",
            Self::Private => "a private address",
            Self::LinkLocal => "a link-local address",
            Self::Shared => "an address of a carrier's network (100.64.0.0/10)",
            Self::Multicast => "a multicast address",
            Self::Unspecified => "the unspecified address",
            Self::Reserved => "a reserved address",
            Self::Metadata => "the address of a cloud's metadata service",
        }
    }
}

fn of_v4(address: Ipv4Addr) -> Reach {
    if METADATA_V4.contains(&address) {
        return Reach::Metadata;
    }
    match address.octets() {
        [0, 0, 0, 0] => Reach::Unspecified,
        [127, ..] => Reach::Loopback,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Reach::Private,
        [169, 254, ..] => Reach::LinkLocal,
        [100, 64..=127, ..] => Reach::Shared,
        [224..=239, ..] => Reach::Multicast,
        // "This network", protocol assignments, documentation, the old 6to4 relays, benchmarks, the future.
        [0, ..]
        | [192, 0, 0 | 2, _]
        | [198, 51, 100, _]
        | [203, 0, 113, _]
        | [192, 88, 99, _]
        | [198, 18..=19, ..]
        | [240..=255, ..] => Reach::Reserved,
        _ => Reach::Public,
    }
}

fn of_v6(address: Ipv6Addr) -> Reach {
    if METADATA_V6.contains(&address) {
        return Reach::Metadata;
    }
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        of_v4(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => Reach::Loopback,
        // IPv4-mapped, IPv4-compatible (as which `::` is 0.0.0.0), IPv4-translated.
        [0, 0, 0, 0, 0, 0xffff | 0, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => v4(high, low),
        // NAT64, by its well-known prefix.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        // 6to4. Teredo hides the address that it leads to behind an exclusive or.
        [0x2002, high, low, ..] => v4(high, low),
        [0x2001, 0, .., high, low] => match v4(!high, !low) {
            Reach::Public => Reach::Reserved,
            reach => reach,
        },
        [0xfe80..=0xfebf, ..] => Reach::LinkLocal,
        [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => Reach::Private,
        [0xff00..=0xffff, ..] => Reach::Multicast,
        // Protocol assignments (ORCHID, benchmarks and others) and documentation.
        [0x2001, 0x0001..=0x01ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0x0000..=0x0fff, ..] => {
            Reach::Reserved
        }
        // All that has been given out of is 2000::/3.
        [0x2000..=0x3fff, ..] => Reach::Public,
        _ => Reach::Reserved,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const TABLE: &[(Reach, &[&str])] = &[
        (
            Reach::Public,
            &[
                "1.1.1.1",
                "9.255.255.255",
                "11.0.0.0",
                "100.63.255.255",
                "100.128.0.0",
                "126.255.255.255",
                "128.0.0.0",
                "169.253.255.255",
                "169.255.0.0",
                "172.15.255.255",
                "172.32.0.0",
                "192.0.1.0",
                "192.0.3.0",
                "192.167.255.255",
                "192.169.0.0",
                "198.17.255.255",
                "198.20.0.0",
                "223.255.255.255",
                "2001:200::1",
                "2606:4700::1111",
                "3ffe:ffff::1",
                "::ffff:1.1.1.1",
                "64:ff9b::1.1.1.1",
                "2002:101:101::1",
            ],
        ),
        (
            Reach::Loopback,
            &[
                "127.0.0.1",
                "127.255.255.255",
                "::1",
                "::ffff:127.0.0.1",
                "::127.0.0.1",
                "::ffff:0:127.0.0.1",
                "64:ff9b::127.0.0.1",
                "2002:7f00:1::",
                "2001::80ff:fffe",
            ],
        ),
        (
            Reach::Private,
            &[
                "10.0.0.0",
                "10.255.255.255",
                "172.16.0.0",
                "172.31.255.255",
                "192.168.0.0",
                "192.168.255.255",
                "fc00::",
                "fdff:ffff::1",
                "fd00:ec2::253",
                "fec0::1",
                "feff::1",
                "::ffff:10.0.0.1",
                "64:ff9b::192.168.0.1",
                "2002:c0a8:1::",
            ],
        ),
        (
            Reach::LinkLocal,
            &["169.254.0.0", "169.254.255.255", "fe80::", "febf:ffff::1", "::ffff:169.254.1.1"],
        ),
        (Reach::Shared, &["100.64.0.0", "100.127.255.255", "::ffff:100.64.0.1"]),
        (Reach::Multicast, &["224.0.0.0", "239.255.255.255", "ff00::", "ff02::1", "::ffff:224.0.0.1"]),
        (Reach::Unspecified, &["0.0.0.0", "::", "::ffff:0.0.0.0", "64:ff9b::"]),
        (
            Reach::Reserved,
            &[
                "0.0.0.1",
                "0.255.255.255",
                "192.0.0.1",
                "192.0.0.192",
                "192.0.2.1",
                "192.88.99.1",
                "198.18.0.0",
                "198.19.255.255",
                "198.51.100.1",
                "203.0.113.1",
                "240.0.0.0",
                "255.255.255.255",
                "64:ff9b:1::1.1.1.1",
                "100::1",
                "2001::fefe:fefe",
                "2001:1ff::1",
                "2001:db8::1",
                "3fff::1",
                "5f00::1",
                "fbff::1",
                "4000::1",
                "1fff::1",
                "::1:0:1",
            ],
        ),
        (
            Reach::Metadata,
            &[
                "169.254.169.254",
                "169.254.170.2",
                "169.254.170.23",
                "100.100.100.200",
                "fd00:ec2::254",
                "fd00:ec2::23",
                "::ffff:169.254.169.254",
                "64:ff9b::169.254.169.254",
                "2002:a9fe:a9fe::1",
                "2001::5601:5601",
            ],
        ),
    ];

    #[test]
    fn every_block_is_known_from_its_first_address_to_its_last() {
        for (reach, addresses) in TABLE {
            for address in *addresses {
                assert_eq!(Reach::of(address.parse().unwrap()), *reach, "{address}");
            }
        }
    }

    #[test]
    fn each_is_told_in_its_own_words() {
        let words: HashSet<_> = TABLE.iter().map(|(reach, _)| reach.describe()).collect();
        assert_eq!(words.len(), TABLE.len());
        assert!(words.iter().all(|words| words.contains("address")), "{words:?}");
    }

    #[test]
    fn private_addresses_are_refused_where_told_and_metadata_always() {
        for (reach, _) in TABLE {
            let expected = match reach {
                Reach::Public => [false, false],
                Reach::Metadata => [true, true],
                _ => [false, true],
            };
            assert_eq!([true, false].map(|allow| reach.is_refused(allow)), expected, "{reach:?}");
        }
    }
}
