//! The store, and whoever listens told of what is stored and of attempts that end: after the commit, and only while
//! somebody does.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::admin::{Event, Events};
use crate::clock::Timestamp;
use crate::delivery::Delivery;
use crate::forward::{Order, State};
use crate::id::Id;
use crate::store::{
    Accepted, Arrival, Depth, HandedOver, Lease, Settlement, Store, StoreError, Swept, UseOfSecret,
};

pub(super) struct Observed {
    pub(super) store: Arc<dyn Store>,
    pub(super) events: Arc<Events>,
}

#[async_trait]
impl Store for Observed {
    async fn accept(&self, arrival: Arrival) -> Result<Accepted, StoreError> {
        let event = self.events.are_watched().then(|| stored(&arrival));
        let accepted = self.store.accept(arrival).await?;
        if let (Some(event), Accepted::Stored) = (event, accepted) {
            self.events.tell(event);
        }
        Ok(accepted)
    }

    async fn settle(&self, settlement: Settlement) -> Result<(), StoreError> {
        let event = if self.events.are_watched() { ended(&settlement) } else { None };
        self.store.settle(settlement).await?;
        if let Some(event) = event {
            self.events.tell(event);
        }
        Ok(())
    }

    async fn revive(&self, id: Id, now: Timestamp) -> Result<u64, StoreError> {
        self.store.revive(id, now).await
    }

    async fn hand_over(&self, source: Arc<str>, given: HandedOver) -> Result<bool, StoreError> {
        self.store.hand_over(source, given).await
    }

    async fn show_handed_over(&self, source: Arc<str>) -> Result<Vec<HandedOver>, StoreError> {
        self.store.show_handed_over(source).await
    }

    async fn lease(&self, destination: &str, limit: usize, now: Timestamp) -> Result<Vec<Lease>, StoreError> {
        self.store.lease(destination, limit, now).await
    }

    async fn next_due(&self, destination: &str) -> Result<Option<Timestamp>, StoreError> {
        self.store.next_due(destination).await
    }

    async fn rein_in(&self, destination: &str, now: Timestamp, latest: Timestamp) -> Result<u64, StoreError> {
        self.store.rein_in(destination, now, latest).await
    }

    async fn arrange(&self, destination: &str, order: Option<Arc<Order>>) -> Result<(), StoreError> {
        self.store.arrange(destination, order).await
    }

    async fn set_paused(&self, destination: &str, paused: bool) -> Result<(), StoreError> {
        self.store.set_paused(destination, paused).await
    }

    async fn note_uses(&self, uses: Vec<UseOfSecret>) -> Result<(), StoreError> {
        self.store.note_uses(uses).await
    }

    async fn uses(&self) -> Result<Vec<UseOfSecret>, StoreError> {
        self.store.uses().await
    }

    async fn delivery(&self, id: Id) -> Result<Option<Delivery>, StoreError> {
        self.store.delivery(id).await
    }

    fn depths(&self) -> Vec<(Arc<str>, Depth)> {
        self.store.depths()
    }

    async fn sweep(&self, now: Timestamp, keep_delivered: Duration) -> Result<Swept, StoreError> {
        self.store.sweep(now, keep_delivered).await
    }

    fn bytes(&self) -> u64 {
        self.store.bytes()
    }

    fn fault(&self) -> Option<StoreError> {
        self.store.fault()
    }

    async fn close(&self) {
        self.store.close().await;
    }
}

fn stored(arrival: &Arrival) -> Event {
    let delivery = arrival.verified.delivery();
    Event::Delivery {
        id: delivery.id.to_string(),
        source: delivery.source.to_string(),
        event: delivery.event.clone(),
        delivery_id: delivery.delivery_id.clone(),
        received_at: delivery.received_at.to_string(),
        destinations: arrival.destinations.iter().map(ToString::to_string).collect(),
    }
}

/// `None` when it never began.
fn ended(settlement: &Settlement) -> Option<Event> {
    let record = settlement.record.as_ref()?;
    Some(Event::Attempt {
        id: settlement.id.to_string(),
        destination: settlement.destination.to_string(),
        number: settlement.attempt,
        outcome: record.outcome.to_owned(),
        status: record.status,
        duration_ms: u64::try_from(record.duration.as_millis()).unwrap_or(u64::MAX),
        state: State::from(settlement.next).label().to_owned(),
    })
}
