//! What verifiers that are code put forward: bytes, the signatures over them, and by which algorithm; and the keys that
//! are tried on them.

use super::KeyError;
use super::algorithm::Algorithm;
use super::jwt::JwtRule;
use super::key::{Jwk, Key, KeyRule, long_enough};
use super::template::Pieces;
use crate::secret::Secret;

/// Bytes and the signatures that could be theirs.
#[derive(Debug)]
pub(super) struct Signed<'a> {
    pub(super) algorithm: Algorithm,
    /// Which key the sender says that it used.
    pub(super) key_id: Option<String>,
    pub(super) pieces: Pieces<'a>,
    pub(super) signatures: Vec<Vec<u8>>,
}

/// The keys that one secret holds: one, or a whole set of public keys.
#[derive(Debug)]
pub(super) struct Keys(Vec<OneKey>);

#[derive(Debug)]
struct OneKey {
    id: Option<String>,
    algorithm: Algorithm,
    key: Key,
}

/// A set of public keys (RFC 7517).
#[derive(serde::Deserialize)]
struct Jwks {
    keys: Vec<serde_json::Value>,
}

impl Keys {
    /// The secret as a key for each of `algorithms`.
    pub(super) fn new(algorithms: &[Algorithm], rule: &KeyRule, secret: &Secret) -> Result<Self, KeyError> {
        let mut keys = Vec::new();
        let mut unusable = KeyError("there is no algorithm".to_owned());
        for algorithm in algorithms {
            match Key::new(*algorithm, rule, secret) {
                Ok(key) => keys.push(OneKey { id: None, algorithm: *algorithm, key }),
                Err(error) => unusable = error,
            }
        }
        if keys.is_empty() { Err(unusable) } else { Ok(Self(keys)) }
    }

    /// The keys of a token's sender: a shared secret, a public key as PEM or JWK, or a set of them. What is public is never
    /// taken for a secret, nor the other way round.
    pub(super) fn of_tokens(rule: &JwtRule, secret: &Secret) -> Result<Self, KeyError> {
        let text = secret.expose().trim_ascii();
        let is_public = text.starts_with(b"{") || text.starts_with(b"-----BEGIN ");
        let of_kind = |algorithm: &&Algorithm| algorithm.public_key().is_some() == is_public;
        let algorithms: Vec<_> = rule.algorithms.iter().filter(of_kind).copied().collect();
        if algorithms.is_empty() {
            let wanted = if is_public { "a shared secret" } else { "a public key, as PEM, JWK or JWKS" };
            return Err(KeyError(format!("the sender's tokens take {wanted}")));
        }
        if !is_public {
            long_enough(text)?;
        }
        if !text.starts_with(b"{") {
            return Self::new(&algorithms, &KeyRule::default(), secret);
        }
        Self::from_json(&algorithms, text).ok_or_else(|| {
            let names: Vec<_> = algorithms.iter().map(|algorithm| algorithm.name()).collect();
            KeyError(format!("the JSON has no public key for {}", names.join(" or ")))
        })
    }

    /// A JWK, or those of a set that are for one of `algorithms`.
    pub(super) fn from_json(algorithms: &[Algorithm], text: &[u8]) -> Option<Self> {
        let found = match serde_json::from_slice::<Jwks>(text) {
            Ok(set) => set.keys,
            Err(_) => vec![serde_json::from_slice(text).ok()?],
        };
        let jwks = found.into_iter().filter_map(|jwk| serde_json::from_value::<Jwk>(jwk).ok());
        let keys: Vec<_> = jwks
            .flat_map(|jwk| {
                let parsed = algorithms.iter().filter_map(|algorithm| {
                    let key = Key::of_jwk(&jwk, *algorithm)?;
                    Some(OneKey { id: jwk.kid.clone(), algorithm: *algorithm, key })
                });
                parsed.collect::<Vec<_>>()
            })
            .collect();
        (!keys.is_empty()).then_some(Self(keys))
    }

    /// Whether one of the keys made all of `signed`.
    pub(super) fn verify(&self, signed: &[Signed<'_>]) -> bool {
        let made = |signed: &Signed<'_>| {
            let is_meant = |key: &&OneKey| {
                key.algorithm == signed.algorithm
                    && (key.id.is_none() || signed.key_id.is_none() || key.id == signed.key_id)
            };
            let mut meant = self.0.iter().filter(is_meant);
            meant.any(|key| key.algorithm.verify(&key.key, &signed.pieces, &signed.signatures))
        };
        !signed.is_empty() && signed.iter().all(made)
    }
}
