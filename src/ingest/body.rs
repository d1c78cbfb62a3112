//! Reads a request's body within its bounds: the source's cap (also for chunked bodies: refused, never cut), a
//! deadline with a minimum rate, and the budget of bytes that all requests together may hold.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Body;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::answer::Rejection;
use crate::pages::{LARGE_BYTES, Pages};
use crate::patience::timeout_at;

/// A sender may be slow for so long before [`RATE_MIN`] holds.
const RATE_GRACE: Duration = Duration::from_secs(5);
/// Bytes per second; slower senders hold memory for nothing.
const RATE_MIN: f64 = 1024.0;
/// A request takes the budget in steps of this many bytes, each before it is read. Not all of a declared length at
/// once: who declares much and sends little would keep everybody else out.
const STEP: u64 = 64 << 10;
/// How much of a refused body is thrown away, and for how long.
const DISCARD_BYTES_MAX: usize = 32 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(2);

/// Bytes that all requests in progress may hold together.
pub(super) struct Budget {
    free: Arc<Semaphore>,
    total: usize,
}

/// A request's share of the [`Budget`]; given back when dropped.
pub(super) struct Reservation {
    budget: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
    declared: Option<u64>,
}

impl Budget {
    pub(super) fn new(bytes: u64) -> Self {
        let total = usize::try_from(bytes).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(total)), total }
    }

    /// Takes the first step before a byte is read.
    pub(super) fn reserve(&self, declared: Option<u64>, body_max: u64) -> Result<Reservation, Rejection> {
        if declared.is_some_and(|declared| declared > body_max) {
            return Err(Rejection::BodyTooLarge);
        }
        let mut reservation = Reservation { budget: Arc::clone(&self.free), permit: None, declared };
        reservation.grow()?;
        Ok(reservation)
    }

    pub(super) fn used(&self) -> i64 {
        i64::try_from(self.total - self.free.available_permits().min(self.total)).unwrap_or(i64::MAX)
    }
}

impl Reservation {
    fn bytes(&self) -> usize {
        self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    /// Takes the next step, at most up to the declared length.
    fn grow(&mut self) -> Result<(), Rejection> {
        let rest = self.declared.and_then(|declared| declared.checked_sub(self.bytes() as u64));
        let step = rest.unwrap_or(STEP).min(STEP);
        let step = u32::try_from(step).expect("a step has 32 bits");
        let more =
            Arc::clone(&self.budget).try_acquire_many_owned(step).map_err(|_| Rejection::Overloaded)?;
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
        Ok(())
    }
}

/// Reads the whole body.
pub(super) async fn read<B>(
    body: &mut B,
    body_max: u64,
    body_read: Duration,
    mut reservation: Reservation,
) -> Result<(Bytes, Reservation), Rejection>
where
    B: Body<Data = Bytes> + Unpin,
{
    let began = Instant::now();
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let (declared, most) = (reservation.declared.map_or(0, size), size(body_max));
    let mut came = Came::Small(Vec::new());
    let mut length = 0;
    loop {
        let slowest = RATE_GRACE + Duration::from_secs_f64(length as f64 / RATE_MIN);
        let until = began + slowest.min(body_read);
        let frame = timeout_at(until, body.frame()).await.map_err(|_| Rejection::BodyTooSlow)?;
        let Some(frame) = frame else { break };
        // Trailers are dropped: they never become headers.
        let Ok(data) = frame.map_err(|_| Rejection::BodyBroken)?.into_data() else { continue };
        length += data.len();
        if length as u64 > body_max {
            return Err(Rejection::BodyTooLarge);
        }
        if reservation.declared.is_some_and(|declared| length as u64 > declared) {
            return Err(Rejection::BodyBroken);
        }
        while reservation.bytes() < length {
            reservation.grow()?;
        }
        if reservation.declared == Some(data.len() as u64) {
            return Ok((data, reservation));
        }
        came.add(&data, declared, most);
    }
    Ok((came.freeze(), reservation))
}

/// What has come of a body.
enum Came {
    Small(Vec<u8>),
    /// In room for all of it: growing with it would copy it again and again. And how much has come.
    Large(Pages, usize),
}

impl Came {
    /// Adds what has come next of a body of so many bytes (0: undeclared), and never more than `most`.
    fn add(&mut self, data: &[u8], declared: usize, most: usize) {
        match self {
            Self::Small(bytes) if declared.max(bytes.len() + data.len()) <= LARGE_BYTES => {
                bytes.reserve_exact(declared.saturating_sub(bytes.len()));
                bytes.extend_from_slice(data);
            }
            Self::Small(bytes) => {
                let length = bytes.len() + data.len();
                // A system that promises no more than it has may not promise so much for what may come.
                let Ok(mut pages) = Pages::new(if declared > 0 { declared } else { most }) else {
                    bytes.extend_from_slice(data);
                    return;
                };
                pages.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
                pages.bytes_mut()[bytes.len()..length].copy_from_slice(data);
                *self = Self::Large(pages, length);
            }
            Self::Large(pages, length) => {
                pages.bytes_mut()[*length..*length + data.len()].copy_from_slice(data);
                *length += data.len();
            }
        }
    }

    fn freeze(self) -> Bytes {
        match self {
            Self::Small(bytes) => Bytes::from(bytes),
            Self::Large(pages, length) => pages.freeze(length),
        }
    }
}

/// Throws away what a sender still sends of a body that was refused. On HTTP/2 the alternative is to reset the stream,
/// after which common clients do not show the answer.
pub(super) async fn discard<B>(mut body: B)
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut left = DISCARD_BYTES_MAX;
    let all = async {
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, Bytes::len);
            if length > left {
                break;
            }
            left -= length;
        }
    };
    // Whoever needs longer is reset after all.
    let _ = tokio::time::timeout(DISCARD_TIME, all).await;
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;

    use super::*;

    fn chunks(sizes: &[usize]) -> impl Body<Data = Bytes> + Unpin {
        let frames: Vec<Result<_, std::convert::Infallible>> =
            sizes.iter().map(|size| Ok(Frame::data(Bytes::from(vec![b'x'; *size])))).collect();
        StreamBody::new(futures_util::stream::iter(frames))
    }

    async fn check(sizes: &[usize], body_max: u64, budget: u64) -> Result<usize, Rejection> {
        let budget = Budget::new(budget);
        let reservation = budget.reserve(None, body_max)?;
        let (body, reservation) =
            read(&mut chunks(sizes), body_max, Duration::from_secs(30), reservation).await?;
        assert!(budget.used() >= i64::try_from(body.len()).unwrap());
        drop(reservation);
        assert_eq!(budget.used(), 0);
        Ok(body.len())
    }

    #[tokio::test]
    async fn the_cap_holds_for_bodies_of_undeclared_length() {
        assert_eq!(check(&[500, 500], 1_000, 1 << 20).await, Ok(1_000));
        assert_eq!(check(&[500, 501], 1_000, 1 << 20).await, Err(Rejection::BodyTooLarge));
        assert_eq!(check(&[], 1_000, 1 << 20).await, Ok(0));
    }

    #[tokio::test]
    async fn the_budget_is_taken_before_reading_and_given_back() {
        let budget = Budget::new(1_000);
        let first = budget.reserve(Some(600), 5_000).unwrap();
        assert!(matches!(budget.reserve(Some(600), 5_000), Err(Rejection::Overloaded)));
        assert!(matches!(budget.reserve(Some(5_001), 5_000), Err(Rejection::BodyTooLarge)));
        assert_eq!(budget.used(), 600);
        drop(first);
        assert!(budget.reserve(Some(600), 5_000).is_ok());
        assert_eq!(check(&[100], 1_000, 50).await, Err(Rejection::Overloaded));
    }

    /// 256 senders that declared 1 MiB each and dripped used to keep everybody else out.
    #[tokio::test]
    async fn who_declares_much_holds_only_what_was_sent() {
        let budget = Budget::new(4 << 20);
        let held: Vec<_> = (0..60).map(|_| budget.reserve(Some(1 << 20), 1 << 20).unwrap()).collect();
        assert!(budget.reserve(Some(2), 1 << 20).is_ok());
        drop(held);
        let (length, body_max) = (200_000, 1 << 20);
        let reservation = budget.reserve(Some(length as u64), body_max).unwrap();
        let mut pieces = chunks(&[90_000, 90_000, 20_000]);
        let (body, reservation) =
            read(&mut pieces, body_max, Duration::from_secs(30), reservation).await.unwrap();
        assert_eq!((body.len(), reservation.bytes()), (length, length));
        // Nor is more memory taken for it than it has bytes.
        assert_eq!(body.try_into_mut().unwrap().capacity(), length);
    }

    #[tokio::test]
    async fn a_body_in_one_piece_is_not_copied() {
        let sent = Bytes::from(vec![7; 300]);
        let reservation = Budget::new(1_000).reserve(Some(300), 1_000).unwrap();
        let (body, _) =
            read(&mut Full::new(sent.clone()), 1_000, Duration::from_secs(30), reservation).await.unwrap();
        assert_eq!(body.as_ptr(), sent.as_ptr());
    }

    #[test]
    fn where_there_is_no_room_for_all_that_may_come_there_is_for_what_has_come() {
        let mut came = Came::Small(Vec::new());
        for _ in 0..3 {
            came.add(&[7; 200_000], 0, usize::MAX);
        }
        assert_eq!(came.freeze(), vec![7; 600_000]);
    }

    /// Reads a body of which a piece of this size comes each second for 20 s; its length, and how long it took.
    async fn drip(piece: &'static [u8]) -> (Result<usize, Rejection>, Duration) {
        let pieces = futures_util::stream::unfold(0, move |sent| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let frame = Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(piece)));
            (sent < 20).then_some((frame, sent + 1))
        });
        let began = Instant::now();
        let reservation = Budget::new(1 << 20).reserve(None, 1 << 20).unwrap();
        let mut body = StreamBody::new(Box::pin(pieces));
        let read = read(&mut body, 1 << 20, Duration::from_secs(30), reservation).await;
        (read.map(|(body, _)| body.len()), began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_below_the_minimum_rate_is_cut_off() {
        let (read, took) = drip(b"x").await;
        assert_eq!(read, Err(Rejection::BodyTooSlow));
        assert!(took < Duration::from_secs(7));
        let (read, took) = drip(&[0; 512]).await;
        assert_eq!(read, Err(Rejection::BodyTooSlow));
        assert!(took > Duration::from_secs(7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_above_the_minimum_rate_has_its_time() {
        assert_eq!(drip(&[0; 1_100]).await.0, Ok(22_000));
    }

    #[tokio::test]
    async fn of_a_refused_body_so_much_is_thrown_away() {
        for (sent, expected) in [(5, 5), (100, 33)] {
            let mut pieces = 0;
            let stream = futures_util::stream::iter(0..sent).map(|_| {
                pieces += 1;
                Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(&[0; 1 << 20])))
            });
            discard(StreamBody::new(stream)).await;
            assert_eq!(pieces, expected);
        }
    }
}
