//! Closes a connection without losing its last answer. A sender whose body was refused goes on sending; if the socket
//! were closed over unread bytes, the operating system would reset the connection, and the sender might never read
//! why. So our side is closed first, and what still comes is thrown away for a moment.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// How long what still comes is thrown away.
const MOMENT: Duration = Duration::from_secs(1);
/// And how much of it.
const BYTES_MAX: usize = 32 << 20;

pub(super) struct Lingering {
    stream: TcpStream,
    /// Read from it already, and still to be given.
    read: Bytes,
    closing: Option<Closing>,
}

struct Closing {
    until: Pin<Box<Sleep>>,
    thrown_away: usize,
}

impl Lingering {
    /// Gives what was `read` from `stream` first.
    pub(super) fn new(stream: TcpStream, read: Bytes) -> Self {
        Self { stream, read, closing: None }
    }
}

impl AsyncRead for Lingering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.read.is_empty() {
            let given = self.read.len().min(buffer.remaining());
            buffer.put_slice(&self.read.split_to(given));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Lingering {
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

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, closing, .. } = self.get_mut();
        let closing = match closing {
            Some(closing) => closing,
            None => {
                ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
                closing.insert(Closing { until: Box::pin(sleep(MOMENT)), thrown_away: 0 })
            }
        };
        let mut buffer = [0; 16 << 10];
        while closing.thrown_away < BYTES_MAX && closing.until.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut buffer);
            match ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => closing.thrown_away += buffer.filled().len(),
                // The sender has closed, too.
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_last_answer_is_read_by_a_sender_that_is_still_sending() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sender = TcpStream::connect(listener.local_addr().unwrap());
        let (sender, accepted) = tokio::join!(sender, listener.accept());
        let gateway = tokio::spawn(async move {
            let mut stream = Lingering::new(accepted.unwrap().0, Bytes::new());
            stream.write_all(b"refused").await.unwrap();
            stream.shutdown().await.unwrap();
        });
        let mut sender = sender.unwrap();
        // More than both sockets' buffers hold: without reading on, the gateway's close would reset the connection.
        sender.write_all(&vec![b'x'; 16 << 20]).await.unwrap();
        sender.shutdown().await.unwrap();
        let mut answer = String::new();
        sender.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "refused");
        gateway.await.unwrap();
    }
}
