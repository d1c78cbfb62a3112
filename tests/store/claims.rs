//! Stored once, exactly, and told apart from everything else.

use std::collections::BTreeSet;

use bytes::Bytes;
use countersign::store::Accepted;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::support::{Bench, CLAIM, Draft, at, draft};

pub(crate) async fn a_delivery_is_stored_once(bench: Bench) {
    let id = bench.stored(draft("1")).await;
    let again = bench.store.accept(draft("1").arrival()).await.unwrap();
    assert_eq!(again, Accepted::Duplicate { first: id, conflict: false });
    assert_eq!(bench.depth("a").pending, 1);
    assert!(bench.store.delivery(id).await.unwrap().is_some());
}

pub(crate) async fn bytes_come_back_exactly(bench: Bench) {
    let every_byte: Vec<u8> = (0..=255).collect();
    // Around where large bodies begin, and beyond what SQLite keeps in memory.
    let large = every_byte.repeat(1_024);
    let larger = [&large[..], b"x"].concat();
    let bodies = [Vec::new(), every_byte.clone(), large, larger, every_byte.repeat(80_000)];
    for body in bodies {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("x-z", &b"\xff\xfe: \x80"[..]), ("x-a", b""), ("x-z", b"second"), ("x-m", b" a  b ")]
        {
            let value = HeaderValue::from_bytes(value.trim_ascii()).unwrap();
            headers.append(HeaderName::from_static(name), value);
        }
        let arrival = Draft { id: None, body: Bytes::from(body), headers, ..draft("") }.arrival();
        let sent = arrival.verified.delivery().clone();
        assert_eq!(bench.store.accept(arrival).await.unwrap(), Accepted::Stored);

        let read = bench.store.delivery(sent.id).await.unwrap().unwrap();
        let leased = bench.leased_one("a", at(0)).await.delivery;
        for found in [&read, &*leased] {
            assert_eq!(found.id, sent.id);
            assert_eq!(found.source, sent.source);
            assert_eq!(found.delivery_id, sent.delivery_id);
            assert_eq!(found.event, sent.event);
            assert_eq!(found.received_at, sent.received_at);
            assert_eq!(found.sender, sent.sender);
            assert_eq!(found.method, sent.method);
            assert_eq!(found.target, sent.target);
            assert!(found.headers.iter().eq(sent.headers.iter()), "{:?}", found.headers);
            assert_eq!(found.body, sent.body);
            assert_eq!(found.verification, sent.verification);
        }
    }
}

pub(crate) async fn a_repetition_by_id_is_a_duplicate(bench: Bench) {
    let first = bench.stored(draft("1")).await;
    bench.stored(draft("2")).await;
    let later = Draft { received_at: at(500), ..draft("1") };
    let again = bench.store.accept(later.arrival()).await.unwrap();
    assert_eq!(again, Accepted::Duplicate { first, conflict: false });
}

pub(crate) async fn the_same_signed_bytes_under_another_id_are_a_replay(bench: Bench) {
    let guarded = |id| Draft { guarded: true, ..draft(id) };
    let first = bench.stored(guarded("1")).await;
    let replay = bench.store.accept(guarded("2").arrival()).await.unwrap();
    assert_eq!(replay, Accepted::Replay { first });
    let nameless = Draft { id: None, ..guarded("") };
    assert_eq!(bench.store.accept(nameless.arrival()).await.unwrap(), Accepted::Replay { first });
    // A replay claims nothing: its id is still free for a delivery that is one.
    bench.stored(Draft { body: Bytes::from_static(b"other"), ..guarded("2") }).await;
    assert_eq!(bench.depth("a").pending, 2);
}

pub(crate) async fn the_id_decides_before_the_guard(bench: Bench) {
    let guarded = |id, body| Draft { guarded: true, body: Bytes::from_static(body), ..draft(id) };
    let first = bench.stored(guarded("1", b"one")).await;
    let second = bench.stored(guarded("2", b"two")).await;
    let again = bench.store.accept(guarded("1", b"one").arrival()).await.unwrap();
    assert_eq!(again, Accepted::Duplicate { first, conflict: false });
    let crossed = bench.store.accept(guarded("2", b"one").arrival()).await.unwrap();
    assert_eq!(crossed, Accepted::Duplicate { first: second, conflict: true });
}

pub(crate) async fn a_delivery_without_keys_is_never_a_duplicate(bench: Bench) {
    for _ in 0..3 {
        bench.stored(Draft { id: None, ..draft("") }).await;
    }
    assert_eq!(bench.depth("a").pending, 3);
}

pub(crate) async fn ids_are_scoped_to_their_source(bench: Bench) {
    bench.stored(draft("1")).await;
    bench.stored(Draft { source: "other", ..draft("1") }).await;
    assert_eq!(bench.depth("a").pending, 2);
}

pub(crate) async fn an_expired_claim_gives_way(bench: Bench) {
    let end = i64::try_from(CLAIM.as_secs()).unwrap();
    let copy = |seconds| Draft { received_at: at(seconds), guarded: true, ..draft("1") };
    let first = bench.stored(copy(0)).await;
    let last = bench.store.accept(copy(end - 1).arrival()).await.unwrap();
    assert_eq!(last, Accepted::Duplicate { first, conflict: false });
    let second = bench.stored(copy(end)).await;
    let again = bench.store.accept(copy(end + 1).arrival()).await.unwrap();
    assert_eq!(again, Accepted::Duplicate { first: second, conflict: false });
}

pub(crate) async fn another_body_under_the_same_id_is_a_conflict(bench: Bench) {
    let first = bench.stored(draft("1")).await;
    let other = Draft { body: Bytes::from_static(b"other"), ..draft("1") };
    let again = bench.store.accept(other.arrival()).await.unwrap();
    assert_eq!(again, Accepted::Duplicate { first, conflict: true });
    assert_eq!(bench.store.delivery(first).await.unwrap().unwrap().body, "body");
}

pub(crate) async fn of_a_hundred_concurrent_copies_one_is_stored(bench: Bench) {
    let copies = (0..100).map(|_| {
        let store = bench.store.clone();
        let arrival = draft("1").arrival();
        let id = arrival.verified.delivery().id;
        tokio::spawn(async move { (id, store.accept(arrival).await.unwrap()) })
    });
    let (mut stored, mut firsts) = (Vec::new(), BTreeSet::new());
    for copy in copies.collect::<Vec<_>>() {
        match copy.await.unwrap() {
            (id, Accepted::Stored) => stored.push(id),
            (_, Accepted::Duplicate { first, conflict: false }) => {
                firsts.insert(first);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(stored.len(), 1);
    assert!(firsts.into_iter().eq(stored));
    assert_eq!(bench.depth("a").pending, 1);
}

pub(crate) async fn duplicates_stay_duplicates_after_a_restart(mut bench: Bench) {
    let first = bench.stored(draft("1")).await;
    bench.restart().await;
    let again = bench.store.accept(draft("1").arrival()).await.unwrap();
    assert_eq!(again, Accepted::Duplicate { first, conflict: false });
}
