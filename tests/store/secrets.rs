//! What a store keeps of senders' secrets: those that they hand over, and how those of the configuration are used.

use std::sync::Arc;

use countersign::secret::Secret;
use countersign::store::{HandedOver, UseOfSecret};

use crate::support::{Bench, at};

pub(crate) fn used(secret: &str, uses: u64, last_used: Option<i64>) -> UseOfSecret {
    UseOfSecret {
        source: "s".into(),
        secret: secret.into(),
        since: at(5),
        uses,
        last_used: last_used.map(at),
    }
}

pub(crate) fn given(secret: &str) -> HandedOver {
    HandedOver { received_at: at(7), sender: "192.0.2.1".to_owned(), secret: Secret::new(secret).unwrap() }
}

pub(crate) async fn the_use_of_secrets_is_known_after_a_restart(mut bench: Bench) {
    assert_eq!(bench.store.uses().await.unwrap(), []);
    bench.store.note_uses(vec![used("new", 3, Some(9)), used("old", 0, None)]).await.unwrap();
    bench.store.note_uses(vec![used("old", 1, Some(11))]).await.unwrap();
    bench.restart().await;
    assert_eq!(bench.store.uses().await.unwrap(), [used("new", 3, Some(9)), used("old", 1, Some(11))]);
}

pub(crate) async fn a_secret_that_was_handed_over_is_shown_once(mut bench: Bench) {
    let source: Arc<str> = "s".into();
    assert!(bench.store.hand_over(Arc::clone(&source), given("b537207f20cb")).await.unwrap());
    bench.restart().await;
    let shown = bench.store.show_handed_over(Arc::clone(&source)).await.unwrap();
    let [one] = &shown[..] else { panic!("{}", shown.len()) };
    assert_eq!(
        (one.received_at, &*one.sender, one.secret.expose()),
        (at(7), "192.0.2.1", &b"b537207f20cb"[..])
    );
    bench.restart().await;
    assert!(bench.store.show_handed_over(source).await.unwrap().is_empty());
}
