//! Stands between a connection and hyper: of an HTTP/1 stream it lets through only heads that [`wire`](super::wire) has
//! judged and bodies that [`framing`](super::framing) has followed, so that hyper reads what we read. In place of a
//! refused head hyper gets a harmless one and then the stream's end: the refusal is then answered like any other
//! request, in its turn and as the connection's last.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::activity::Activity;
use super::answer::Rejection;
use super::framing::Framing;
use super::wire::Head;
use crate::patience::sleep_until;

/// What hyper gets in place of a refused head.
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nHost: refused\r\nConnection: close\r\n\r\n";
/// How much is read at once while a head comes; most webhooks fit in with their body.
const READ_BYTES: usize = 8 << 10;
/// How much is read at once of a body: not quite 16 KiB. hyper doubles its buffer whenever a read fills it, and keeps it for
/// as long as the connection lasts, which would be 48 KiB for each of thousands of slow senders.
const BODY_READ_BYTES: usize = (16 << 10) - 1;

/// Why the connection's current, and last, request is refused; unset on a connection that keeps to the rules.
pub(super) type Verdict = Arc<OnceLock<Rejection>>;

/// A connection's stream as hyper gets it.
pub struct Guarded<S> {
    stream: S,
    /// Read, and not given to hyper yet.
    held: BytesMut,
    /// How much of it, at the front, may be given.
    cleared: usize,
    expected: Expected,
    /// Runs while a head comes.
    late: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    verdict: Verdict,
    activity: Arc<Activity>,
    header_bytes_max: usize,
    head_read: Duration,
}

enum Expected {
    Head(Head),
    Body(Framing),
    /// A body broke its framing: hyper gets an error, and the request behind it its answer.
    Broken,
    /// Nothing: the stream ends here for hyper.
    End,
}

impl<S> Guarded<S> {
    /// Heads may have so many bytes of header lines, and so much time from their first byte on.
    pub fn new(stream: S, header_bytes_max: usize, head_read: Duration) -> Self {
        Self {
            stream,
            held: BytesMut::new(),
            cleared: 0,
            expected: Expected::Head(Head::default()),
            late: None,
            verdict: Verdict::default(),
            activity: Arc::new(Activity::new(head_read)),
            header_bytes_max,
            head_read,
        }
    }

    pub(super) fn verdict(&self) -> Verdict {
        Arc::clone(&self.verdict)
    }

    pub(super) fn activity(&self) -> Arc<Activity> {
        Arc::clone(&self.activity)
    }

    fn refuse(&mut self, rejection: Rejection) {
        // Once only: nothing is judged after it.
        let _ = self.verdict.set(rejection);
        self.held = BytesMut::from(STAND_IN);
        self.cleared = STAND_IN.len();
        self.expected = Expected::End;
    }

    /// Clears as much as belongs to the body of what is held from `at` on.
    fn follow_held(&mut self, at: usize, mut framing: Framing) {
        let followed = framing.follow(&self.held[at..]);
        self.cleared = at + followed.unwrap_or(0);
        self.expected = match followed {
            Err(_) => Expected::Broken,
            Ok(_) if framing.is_done() => Expected::Head(Head::default()),
            Ok(_) => Expected::Body(framing),
        };
    }
}

impl<S: AsyncRead + Unpin> Guarded<S> {
    /// Reads more of a head. Ready when something came, or when nothing will and the head is refused.
    fn poll_more(&mut self, cx: &mut Context<'_>, has_begun: bool) -> Poll<io::Result<()>> {
        let mut room = [const { MaybeUninit::uninit() }; READ_BYTES];
        let mut room = ReadBuf::uninit(&mut room);
        match Pin::new(&mut self.stream).poll_read(cx, &mut room)? {
            Poll::Ready(()) if !room.filled().is_empty() => {
                if !has_begun {
                    // From here on it is the head's time that counts, not the idle connection's.
                    self.activity.extend();
                }
                self.held.extend_from_slice(room.filled());
            }
            Poll::Ready(()) if has_begun => self.refuse(Rejection::MalformedHead),
            Poll::Ready(()) => self.expected = Expected::End,
            Poll::Pending => {
                if !has_begun {
                    return Poll::Pending;
                }
                let until = self.head_read;
                let late = self.late.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + until)));
                ready!(late.as_mut().poll(cx));
                self.refuse(Rejection::HeadTooSlow);
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads a body straight into hyper's buffer; what is behind the body's end is held back.
    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
        mut framing: Framing,
    ) -> Poll<io::Result<()>> {
        let room = buffer.remaining().min(BODY_READ_BYTES);
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(room));
        let read = Pin::new(&mut self.stream).poll_read(cx, &mut part);
        if !matches!(read, Poll::Ready(Ok(()))) {
            self.expected = Expected::Body(framing);
            return read;
        }
        let Ok(length) = framing.follow(part.filled()) else {
            self.expected = Expected::Broken;
            return Poll::Ready(broken());
        };
        self.held.extend_from_slice(&part.filled()[length..]);
        buffer.advance(length);
        self.expected =
            if framing.is_done() { Expected::Head(Head::default()) } else { Expected::Body(framing) };
        Poll::Ready(Ok(()))
    }
}

fn broken() -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::InvalidData, super::framing::Broken))
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.cleared > 0 {
                let given = this.cleared.min(buffer.remaining());
                buffer.put_slice(&this.held[..given]);
                this.held.advance(given);
                this.cleared -= given;
                return Poll::Ready(Ok(()));
            }
            match std::mem::replace(&mut this.expected, Expected::End) {
                Expected::Head(mut head) => match head.judge(&this.held, this.header_bytes_max) {
                    Ok(Some((end, framing))) => {
                        this.late = None;
                        this.follow_held(end, framing);
                    }
                    Ok(None) => {
                        let has_begun = head.has_begun(&this.held);
                        this.expected = Expected::Head(head);
                        ready!(this.poll_more(cx, has_begun))?;
                    }
                    Err(rejection) => this.refuse(rejection),
                },
                // Nothing is held: what was belonged to the body, and has been given.
                Expected::Body(framing) => return this.poll_body(cx, buffer, framing),
                Expected::Broken => {
                    this.expected = Expected::Broken;
                    return Poll::Ready(broken());
                }
                Expected::End => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::ingest::activity;

    fn guarded<S>(stream: S) -> Guarded<S> {
        Guarded::new(stream, 1_000, Duration::from_secs(5))
    }

    /// What hyper would get, in reads of up to `size` bytes, and why the last request is refused.
    async fn check(sent: &[u8], size: usize, given: &[u8], refused: Option<Rejection>) {
        let mut guarded = guarded(sent);
        let (mut got, mut buffer) = (Vec::new(), vec![0; size]);
        loop {
            let read = guarded.read(&mut buffer).await.unwrap();
            if read == 0 {
                break;
            }
            got.extend_from_slice(&buffer[..read]);
        }
        assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(given), "reads of {size}");
        assert_eq!(guarded.verdict().get(), refused.as_ref(), "{}", String::from_utf8_lossy(sent));
    }

    #[tokio::test]
    async fn what_is_good_comes_through_and_after_a_bad_head_nothing() {
        let good = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc\
            POST /b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
            GET /c HTTP/1.1\r\nHost: x\r\n\r\n";
        let bad = b"GET /c HTTP/1.1\r\nHost: x\n\n";
        for size in [1, 7, 50, 4_096] {
            check(good, size, good, None).await;
            let then_bad = [&good[..], bad, good].concat();
            let given = [good, STAND_IN].concat();
            check(&then_bad, size, &given, Some(Rejection::MalformedHead)).await;
            // Half a head.
            check(&then_bad[..good.len() + 5], size, &given, Some(Rejection::MalformedHead)).await;
            // The line that some senders put behind a body.
            check(&[&good[..], b"\r\n"].concat(), size, good, None).await;
        }
    }

    /// A read into hyper's own buffer, which is the way of long bodies, must not give away what is behind the end.
    #[tokio::test]
    async fn what_is_behind_a_long_body_is_judged_too() {
        let mut sent = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n".to_vec();
        sent.resize(sent.len() + 100_000, b'x');
        let given = [&sent[..], STAND_IN].concat();
        sent.extend_from_slice(b"\0");
        check(&sent, 64 << 10, &given, Some(Rejection::MalformedHead)).await;
    }

    #[tokio::test]
    async fn a_broken_body_is_an_error_and_nothing_behind_it_comes_through() {
        let head = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
        let sent = [&head[..], b"3\nabc\r\n0\r\n\r\nGET /c HTTP/1.1\r\nHost: x\r\n\r\n"].concat();
        let mut guarded = guarded(&sent[..]);
        let mut got = vec![0; 4_096];
        assert_eq!(guarded.read(&mut got).await.unwrap(), head.len());
        for _ in 0..2 {
            assert_eq!(guarded.read(&mut got).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_its_time_from_its_first_byte() {
        let (mut sender, gateway) = tokio::io::duplex(1_000);
        let mut guarded = guarded(gateway);
        let activity = Arc::clone(&guarded.activity);
        let mut buffer = vec![0; 1_000];
        // An idle connection is not the guard's to close, nor is a line behind a body a head.
        sender.write_all(b"\r\n").await.unwrap();
        let idle = tokio::time::timeout(Duration::from_secs(60), guarded.read(&mut buffer)).await;
        assert!(idle.is_err());
        sender.write_all(b"POST").await.unwrap();
        let began = Instant::now();
        let trickle = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                sender.write_all(b"T").await.unwrap();
            }
        };
        tokio::select! {
            read = guarded.read(&mut buffer) => assert_eq!(&buffer[..read.unwrap()], STAND_IN),
            () = trickle => {}
        }
        assert_eq!(guarded.verdict().get(), Some(&Rejection::HeadTooSlow));
        assert!((5..7).contains(&began.elapsed().as_secs()));
        assert_eq!(activity.idle_until(), began + activity::IDLE);
    }
}
