//! Looks up the addresses of one host name: on a thread of its own, and never twice at once. The system's resolver
//! cannot be called off and may hang for a minute; on the runtime's threads for blocking calls a dead name server would
//! soon leave none for the store. Nothing is remembered: whoever comes after an answer asks anew.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tokio::sync::watch;

use super::failure::shortage_of_files;

/// What a lookup found. Shared, since any number of attempts may wait for one lookup.
pub(super) type Found = Result<Arc<[SocketAddr]>, Arc<io::Error>>;

type Lookup = dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// The addresses of one host.
pub(super) struct Resolver {
    host: String,
    port: u16,
    lookup: Arc<Lookup>,
    /// The latest lookup, which may be under way.
    latest: Mutex<Option<watch::Receiver<Option<Found>>>>,
}

impl Resolver {
    pub(super) fn new(host: String, port: u16) -> Self {
        Self::with_lookup(host, port, Arc::new(system_lookup))
    }

    fn with_lookup(host: String, port: u16, lookup: Arc<Lookup>) -> Self {
        Self { host, port, lookup, latest: Mutex::default() }
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Waits for the addresses; who stops waiting does not stop the lookup.
    pub(super) async fn addresses(&self) -> Found {
        if let Ok(address) = self.host.parse::<IpAddr>() {
            return Ok(Arc::from([SocketAddr::new(address, self.port)]));
        }
        let mut found = self.join().map_err(Arc::new)?;
        match found.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(found)) => found.clone(),
            Ok(None) | Err(_) => Err(Arc::new(io::Error::other("the lookup was broken off"))),
        }
    }

    /// The lookup that is under way, or a new one.
    fn join(&self) -> io::Result<watch::Receiver<Option<Found>>> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let under_way =
            latest.as_ref().filter(|found| found.has_changed().is_ok() && found.borrow().is_none());
        if let Some(found) = under_way {
            return Ok(found.clone());
        }
        let (sender, receiver) = watch::channel(None);
        let (lookup, host, port) = (Arc::clone(&self.lookup), self.host.clone(), self.port);
        thread::Builder::new().name("resolve".to_owned()).spawn(move || {
            sender.send_replace(Some(lookup(&host, port).map(Arc::from).map_err(Arc::new)));
        })?;
        *latest = Some(receiver.clone());
        Ok(receiver)
    }
}

fn system_lookup(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let found = (host, port).to_socket_addrs().map(Iterator::collect);
    found.map_err(|error| shortage_of_files().unwrap_or(error))
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use futures_util::future::join_all;
    use tokio::time::timeout;

    use super::*;

    /// A resolver of `backend.test` that answers what it is sent, in that order, and how often it was asked.
    pub(in crate::dispatch) fn scripted()
    -> (Resolver, mpsc::Sender<io::Result<Vec<SocketAddr>>>, Arc<AtomicUsize>) {
        let (answers, script) = mpsc::channel();
        let (script, asked) = (Mutex::new(script), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&asked);
        let lookup = move |_: &str, _| {
            count.fetch_add(1, Ordering::SeqCst);
            script.lock().unwrap().recv().unwrap()
        };
        (Resolver::with_lookup("backend.test".to_owned(), 80, Arc::new(lookup)), answers, asked)
    }

    fn address(text: &str) -> Vec<SocketAddr> {
        vec![text.parse().unwrap()]
    }

    #[tokio::test]
    async fn who_asks_during_a_lookup_shares_it_and_who_asks_later_asks_anew() {
        let (resolver, answers, asked) = scripted();
        for _ in 0..3 {
            let limited = (0..50).map(|_| timeout(Duration::from_millis(5), resolver.addresses()));
            assert!(
                join_all(limited).await.iter().all(Result::is_err),
                "nobody waits longer than it wants to"
            );
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1, "one thread hangs, not 150");

        let waiting = join_all((0..50).map(|_| resolver.addresses()));
        // Polled in this order: all of them wait before there is an answer.
        let (waited, ()) =
            tokio::join!(biased; waiting, async { answers.send(Ok(address("192.0.2.1:80"))).unwrap() });
        assert!(waited.iter().all(|found| found.as_ref().unwrap()[..] == address("192.0.2.1:80")));
        answers.send(Ok(address("192.0.2.2:80"))).unwrap();
        assert_eq!(resolver.addresses().await.unwrap()[..], address("192.0.2.2:80"));
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_lookup_that_fails_or_panics_is_followed_by_another() {
        let (resolver, answers, _) = scripted();
        answers.send(Err(io::Error::other("no such host"))).unwrap();
        assert_eq!(resolver.addresses().await.unwrap_err().to_string(), "no such host");
        answers.send(Ok(Vec::new())).unwrap();
        assert!(resolver.addresses().await.unwrap().is_empty());
        drop(answers);
        for _ in 0..2 {
            assert_eq!(resolver.addresses().await.unwrap_err().to_string(), "the lookup was broken off");
        }
    }
}
