//! How often an address may be wrong about a token, and how often somebody may ask. The tables are of a fixed size: whoever
//! comes from many addresses fills no memory, and nobody can choose with whom to share a place.

use std::hash::{BuildHasher as _, Hash, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use tokio::time::Instant;

use super::Known;
use super::audit::Operator;
use super::auth::Denied;
use crate::rate::Limiter;
use crate::units::Rate;

const SECOND: Duration = Duration::from_secs(1);
/// Wrong tokens of one address. Nobody can guess one at any pace; this keeps a log readable, and a weak one from being tried.
const WRONG: (Rate, u32) = (Rate { events: 1, per: SECOND }, 20);
/// Requests of one operator: more than anybody reads, so that a program that has run wild leaves room for others.
const ASKED: (Rate, u32) = (Rate { events: 200, per: SECOND }, 1_000);
/// Places of a table.
const PLACES: usize = 1_024;

/// What API and console share.
pub(super) struct Pace {
    wrong: Table,
    asked: Table,
    origin: Instant,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { wrong: Table::new(WRONG), asked: Table::new(ASKED), origin: Instant::now() }
    }

    /// Who the sender of a request from `peer` with these headers is, and what it may do.
    ///
    /// # Errors
    /// When it may do nothing, or not now.
    pub(super) fn admit(
        &self,
        gateway: &Known,
        peer: IpAddr,
        headers: &HeaderMap,
    ) -> Result<Operator, Denied> {
        let operator = if headers.contains_key(AUTHORIZATION) {
            self.try_token(gateway, peer, headers)?
        } else {
            gateway.admit(headers)?
        };
        self.ask(&operator)?;
        Ok(operator)
    }

    /// Whose the token in these headers is.
    ///
    /// # Errors
    /// When it is nobody's, or `peer` has been wrong too often: then nothing is told of this one.
    pub(super) fn try_token(
        &self,
        gateway: &Known,
        peer: IpAddr,
        headers: &HeaderMap,
    ) -> Result<Operator, Denied> {
        let now = self.origin.elapsed();
        self.wrong.with(network(peer), |limiter| {
            limiter.claim(now, Duration::ZERO).map_err(Denied::TooOften)?;
            let found = gateway.admit(headers);
            if found.is_ok() {
                limiter.give_back(1);
            }
            found
        })
    }

    /// Counts a request of `operator`.
    ///
    /// # Errors
    /// When there have been too many.
    pub(super) fn ask(&self, operator: &Operator) -> Result<(), Denied> {
        let now = self.origin.elapsed();
        let asked = self.asked.with(&operator.name, |limiter| limiter.claim(now, Duration::ZERO));
        asked.map(drop).map_err(Denied::TooOften)
    }
}

/// What one customer of a network has: all of an IPv6 /64.
pub(super) fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

struct Table {
    hasher: RandomState,
    places: Mutex<Vec<Limiter>>,
}

impl Table {
    fn new((rate, burst): (Rate, u32)) -> Self {
        let places = Mutex::new(vec![Limiter::new(rate, burst); PLACES]);
        Self { hasher: RandomState::new(), places }
    }

    fn with<T>(&self, key: impl Hash, change: impl FnOnce(&mut Limiter) -> T) -> T {
        let place = self.hasher.hash_one(key) % PLACES as u64;
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut places[usize::try_from(place).unwrap_or_default()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Role;

    #[test]
    fn an_ipv6_network_is_one_and_so_is_an_address_written_in_both_ways() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:0:0:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }

    #[test]
    fn who_asks_without_end_is_told_when_to_come_again() {
        let pace = Pace::new();
        let operator = |name: &str| Operator { name: name.to_owned(), role: Role::Viewer };
        let refused = (0..10_000).find_map(|_| pace.ask(&operator("a")).err());
        assert!(matches!(refused, Some(Denied::TooOften(wait)) if wait <= SECOND), "{refused:?}");
    }
}
