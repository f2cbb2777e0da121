//! Connections of operators: some at a time, each for a while, so that none of them takes what calls need.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tracing::debug;

/// After an `accept` that failed for want of descriptors.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// A connection that ends by itself, and then gives its place to another.
pub(super) struct Bounded<S> {
    stream: S,
    end: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl<S> Bounded<S> {
    pub(super) fn new(stream: S, lifetime: Duration, place: OwnedSemaphorePermit) -> Self {
        Self { stream, end: Box::pin(sleep(lifetime)), _place: place }
    }

    /// Fails once its time is over.
    fn is_alive(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.end.as_mut().poll(context).is_ready() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.is_alive(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.is_alive(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_alive(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_alive(context)?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Accepts so many connections at a time; further ones wait in the kernel.
pub(super) struct Few {
    listener: TcpListener,
    places: Arc<Semaphore>,
    lifetime: Duration,
}

impl Few {
    pub(super) fn of(listener: TcpListener, connections_max: usize, lifetime: Duration) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(connections_max)), lifetime }
    }
}

impl axum::serve::Listener for Few {
    type Io = Bounded<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        // Nobody closes the semaphore.
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { return std::future::pending().await };
        loop {
            match self.listener.accept().await {
                Ok((stream, from)) => return (Bounded::new(stream, self.lifetime, place), from),
                Err(error) => {
                    debug!(%error, "cannot accept for operators, trying again");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use axum::serve::Listener;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn who_holds_a_connection_loses_it_to_whoever_waits() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let mut few = Few::of(listener, 1, Duration::from_millis(50));
            let (_idle, mut waiting) = (TcpStream::connect(address).await, TcpStream::connect(address).await.unwrap());
            let (mut held, _) = few.accept().await;
            assert!(few.places.try_acquire().is_err(), "the place is taken");
            assert_eq!(held.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
            for ended in [held.write_all(b"x").await, held.flush().await, held.shutdown().await] {
                assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
            }
            drop(held);
            let (mut next, _) = few.accept().await;
            next.write_all(b"x").await.unwrap();
            assert_eq!(waiting.read_u8().await.unwrap(), b'x');
        });
    }
}
