//! Puts together what operators see.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Uri};

use super::Parts;
use crate::admin::{
    self, Audit, AuditEntry, CertificateStatus, Dead, Deliveries, DeliveryDetail, DeliveryQuery, Denied,
    DestinationStatus, Events, Explained, ForwardsChanged, Gateway, HandedOverSecret, Job, JobKind, JobOrder,
    Jobs, Operator, Refused, RejectionQuery, Rejections, Reloaded, Reverification, Reverifications,
    SecretStatus, SourceStatus, Status, StoreStatus,
};
use crate::clock::{Timestamp, elapsed, from_milliseconds};
use crate::config::{Destination, Source};
use crate::ingest::Expiry;
use crate::metrics::Metrics;
use crate::store::operators::Change;
use crate::store::{Depth, HandedOver};
use crate::verify::{Advice, Enforcement, SecretUse, advise};

#[async_trait]
impl Gateway for Parts {
    fn admit(&self, headers: &HeaderMap) -> Result<Operator, Denied> {
        admin::admit(&self.config.load().admin, headers)
    }

    fn ready(&self) -> Result<(), String> {
        if self.stages.draining.is_cancelled() {
            return Err("draining".to_owned());
        }
        self.store.fault().map_or(Ok(()), |fault| Err(fault.to_string()))
    }

    fn metrics(&self) -> &Metrics {
        self.refresh_gauges();
        &self.metrics
    }

    async fn take_handed_over(&self, source: &str) -> Result<Option<Vec<HandedOverSecret>>, String> {
        let config = self.config.load_full();
        let Some(source) = config.sources.iter().find(|known| &*known.name == source) else {
            return Ok(None);
        };
        let given = self.store.show_handed_over(Arc::clone(&source.name)).await;
        let shown = |given: HandedOver| HandedOverSecret {
            received_at: given.received_at.to_string(),
            sender: given.sender,
            secret: String::from_utf8_lossy(given.secret.expose()).into_owned(),
        };
        Ok(Some(given.map_err(|error| error.to_string())?.into_iter().map(shown).collect()))
    }

    async fn reload(self: Arc<Self>) -> Result<Reloaded, String> {
        self.load_again().await
    }

    async fn rejections(&self, query: RejectionQuery) -> Result<Rejections, Refused> {
        self.list_rejections(query).await
    }

    async fn rejection(&self, id: &str) -> Result<Explained, Refused> {
        self.explain_rejection(id).await
    }

    async fn reverify(&self, id: &str) -> Result<Reverification, Refused> {
        self.reverify_rejection(id).await
    }

    async fn reverify_all(&self, query: RejectionQuery) -> Result<Reverifications, Refused> {
        self.reverify_rejections(query).await
    }

    async fn deliveries(&self, query: DeliveryQuery) -> Result<Deliveries, Refused> {
        self.list_deliveries(query).await
    }

    async fn delivery(&self, id: &str) -> Result<DeliveryDetail, Refused> {
        self.show_delivery(id).await
    }

    async fn delivery_body(&self, id: &str) -> Result<Bytes, Refused> {
        self.show_body(id).await
    }

    async fn replay_delivery(&self, id: &str, to: Option<String>) -> Result<ForwardsChanged, Refused> {
        self.change_delivery(Change::Requeue, id, to).await
    }

    async fn cancel_delivery(&self, id: &str, to: Option<String>) -> Result<ForwardsChanged, Refused> {
        self.change_delivery(Change::Cancel, id, to).await
    }

    async fn dead(&self, query: DeliveryQuery) -> Result<Dead, Refused> {
        self.show_dead(query).await
    }

    async fn begin_job(self: Arc<Self>, kind: JobKind, order: JobOrder, by: String) -> Result<Job, Refused> {
        self.order_job(kind, order, by).await
    }

    fn jobs(&self) -> Jobs {
        Jobs { jobs: self.list_jobs() }
    }

    fn job(&self, id: &str) -> Result<Job, Refused> {
        self.show_job(id)
    }

    fn cancel_job(&self, id: &str) -> Result<Job, Refused> {
        self.end_job(id)
    }

    async fn set_paused(&self, destination: &str, paused: bool) -> Result<DestinationStatus, Refused> {
        let is_known = |known: &Arc<Destination>| &*known.name == destination;
        if !self.config.load().destinations.iter().any(is_known) {
            return Err(Refused::NotFound("there is no such destination".to_owned()));
        }
        self.store.set_paused(destination, paused).await.map_err(|error| {
            Refused::Unavailable(format!("it cannot be written down, and has not been done: {error}"))
        })?;
        let status = self.status().destinations.into_iter().find(|status| status.name == destination);
        status.ok_or_else(|| Refused::NotFound("the destination has just gone".to_owned()))
    }

    async fn send_test(&self, source: &str) -> Result<Reverification, Refused> {
        self.try_source(source).await
    }

    fn probe(&self, destination: &str) -> Result<DestinationStatus, Refused> {
        let probes = self.lanes.probe(destination);
        let status = self.status().destinations.into_iter().find(|status| status.name == destination);
        let status = status.ok_or_else(|| Refused::NotFound("there is no such destination".to_owned()))?;
        let state = &status.state;
        let why = || format!("its breaker is not open, so that there is nothing to probe: it is {state}");
        if probes { Ok(status) } else { Err(Refused::Conflict(why())) }
    }

    fn events(&self) -> &Events {
        &self.events
    }

    fn record(&self, entry: AuditEntry) {
        self.note_change(entry);
    }

    fn audit(&self) -> Audit {
        self.show_changes()
    }

    fn status(&self) -> Status {
        let config = self.config.load();
        let ready = self.ready();
        let engine = if self.started_with.store.database.is_some() { "postgres" } else { "sqlite" };
        let requests = |source: &str, outcome: &str| {
            self.metrics.ingest_requests.with_label_values(&[source, outcome]).get()
        };
        let sources = config.sources.iter().map(|source| SourceStatus {
            name: source.name.to_string(),
            path: source.path.clone(),
            url: source
                .public_url
                .as_ref()
                .map(|url| format!("{}{}", url.trim_end_matches('/'), source.path)),
            has_handshake: !source.verifier.handshakes().is_empty(),
            handshake_at: self.handshake_at(source),
            provider: source.provider.to_string(),
            enforcement: match source.verifier.enforcement() {
                Some(Enforcement::Enforce) => "enforce",
                Some(Enforcement::Observe) => "observe",
                None => "none",
            }
            .to_owned(),
            stored: requests(&source.name, "stored"),
            duplicate: requests(&source.name, "duplicate"),
            rejected: requests(&source.name, "rejected"),
            unrouted: self.metrics.ingest_unrouted.with_label_values(&[&*source.name]).get(),
            secrets: self.secrets(source),
        });
        let (depths, lanes) = (self.store.depths(), self.lanes.states());
        let now = self.clock.steady().time;
        let destinations = config.destinations.iter().map(|destination| {
            let depth = depths.iter().find(|(name, _)| *name == destination.name);
            let depth = depth.map_or(Depth::default(), |(_, depth)| *depth);
            let lane = lanes.iter().find(|lane| lane.destination == destination.name);
            DestinationStatus {
                name: destination.name.to_string(),
                url: shown(&destination.url),
                state: lane.map_or("none", |lane| lane.state.label()).to_owned(),
                concurrency: lane.map_or(0, |lane| lane.concurrency),
                running: lane.map_or(0, |lane| lane.running),
                pending: depth.pending,
                oldest_age_seconds: depth.oldest.map_or(0, |oldest| elapsed(oldest, now).as_secs()),
                dead: depth.dead,
            }
        });
        let gone = depths.iter().filter(|(name, depth)| {
            depth.pending + depth.dead > 0 && !config.destinations.iter().any(|known| known.name == *name)
        });
        // They wait until a reload brings it back.
        let gone = gone.map(|(name, depth)| DestinationStatus {
            name: name.to_string(),
            url: String::new(),
            state: "waiting (no destination)".to_owned(),
            concurrency: 0,
            running: 0,
            pending: depth.pending,
            oldest_age_seconds: depth.oldest.map_or(0, |oldest| elapsed(oldest, now).as_secs()),
            dead: depth.dead,
        });
        let certificates = self.certificate.expiries().into_iter().map(|expiry| CertificateStatus {
            key: expiry.key(),
            file: expiry.path.display().to_string(),
            not_after: expiry.not_after.to_string(),
        });
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at.to_string(),
            ready: ready.is_ok(),
            not_ready_because: ready.err(),
            config_loaded: self.metrics.config_last_reload_success.get() == 1,
            store: StoreStatus { engine: engine.to_owned(), bytes: self.store.bytes() },
            certificates: certificates.collect(),
            sources: sources.collect(),
            destinations: destinations.chain(gone).collect(),
        }
    }
}

impl Parts {
    /// How the secrets of a source have been used, and what follows from that.
    fn advised(&self, source: &Source) -> Vec<(SecretUse, Option<Advice>)> {
        let secrets = source.verifier.secrets().map(|secret| self.uses.tell(&source.name, secret));
        let secrets: Vec<_> = secrets.collect();
        let advice = advise(&secrets, self.started_at, self.clock.now());
        secrets.into_iter().zip(advice).collect()
    }

    fn secrets(&self, source: &Source) -> Vec<SecretStatus> {
        let text = |at: Option<Timestamp>| at.map(|at| at.to_string());
        let status = |(secret, advice): (SecretUse, Option<Advice>)| SecretStatus {
            name: secret.name.to_string(),
            not_before: text(secret.not_before),
            not_after: text(secret.not_after),
            last_used_at: text(secret.last_used),
            uses: secret.uses,
            warning: advice.as_ref().is_some_and(Advice::is_warning),
            advice: advice.map(|advice| advice.to_string()),
        };
        self.advised(source).into_iter().map(status).collect()
    }

    fn handshake_at(&self, source: &Source) -> Option<String> {
        let at = self.metrics.ingest_handshake_last.with_label_values(&[&*source.name]).get();
        (at > 0.0).then(|| from_milliseconds((at * 1e3) as i64).to_string())
    }

    fn refresh_gauges(&self) {
        let now = self.clock.steady().time;
        self.ingest.refresh_gauges();
        self.metrics.ready.set(i64::from(self.ready().is_ok()));
        let ends = &self.metrics.tls_certificate_not_after;
        let expiries = self.certificate.expiries();
        for file in [Expiry::CERT, Expiry::CLIENT_CA] {
            match expiries.iter().find(|expiry| expiry.file == file) {
                Some(expiry) => ends.with_label_values(&[file]).set(expiry.not_after.as_second() as f64),
                // Not there, or a reload has dropped it.
                None => drop(ends.remove_label_values(&[file])),
            }
        }
        self.metrics.store_bytes.set(i64::try_from(self.store.bytes()).unwrap_or(i64::MAX));
        let gauge = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let depths = self.store.depths();
        let config = self.config.load();
        for source in &config.sources {
            for (secret, advice) in self.advised(source) {
                for label in Advice::LABELS {
                    let holds = advice.as_ref().is_some_and(|advice| advice.label() == label);
                    let labels = [&*source.name, &*secret.name, label];
                    self.metrics.verify_secret_advice.with_label_values(&labels).set(i64::from(holds));
                }
            }
        }
        // A destination of the configuration that has had no forward yet stands at 0.
        let idle = config.destinations.iter().map(|destination| &destination.name);
        let idle = idle.filter(|name| !depths.iter().any(|(known, _)| known == *name));
        let idle = idle.map(|name| (name, Depth::default()));
        for (name, depth) in depths.iter().map(|(name, depth)| (name, *depth)).chain(idle) {
            let age = depth.oldest.map_or(0.0, |oldest| elapsed(oldest, now).as_secs_f64());
            self.metrics.forward_pending.with_label_values(&[name]).set(gauge(depth.pending));
            self.metrics.forward_dead.with_label_values(&[name]).set(gauge(depth.dead));
            self.metrics.forward_oldest_age.with_label_values(&[name]).set(age);
        }
    }
}

/// A destination's URL without its query, where some backends want their token.
fn shown(url: &Uri) -> String {
    let url = url.to_string();
    url.split_once('?').map_or(url.clone(), |(before, _)| format!("{before}?…"))
}
