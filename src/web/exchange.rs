//! One request over one connection, with a deadline for all of it, the name's resolution included.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// What an exchange goes over.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Connects, and does the handshake where there is TLS.
pub(super) async fn connect(host: &str, port: u16, tls: Option<Arc<ClientConfig>>) -> io::Result<Box<dyn Stream>> {
    let tcp = TcpStream::connect((host, port)).await?;
    let Some(tls) = tls else { return Ok(Box::new(tcp)) };
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    Ok(Box::new(TlsConnector::from(tls).connect(name, tcp).await?))
}

/// Sends a request and returns the status of the answer, with its body where one of at most `len_max` bytes is wanted; else
/// the rest of the answer is not read.
///
/// # Errors
/// `TimedOut` at the end of `patience`; `InvalidData` for what is no HTTP, was cut off or is too long, and for what TLS does
/// not like, with its `rustls::Error` inside; and whatever the connection ends with.
pub(super) fn exchange(
    connect: impl Future<Output = io::Result<Box<dyn Stream>>>,
    request: Request<Full<Bytes>>,
    len_max: Option<usize>,
    patience: Duration,
) -> io::Result<(u16, Vec<u8>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let answered = runtime.block_on(async {
        let whole = async {
            let response = send(connect.await?, request).await?;
            let status = response.status().as_u16();
            match len_max {
                Some(len_max) => Ok((status, read(response, len_max).await?)),
                None => Ok((status, Vec::new())),
            }
        };
        timeout(patience, whole).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    });
    // The thread that resolves a name cannot be interrupted.
    runtime.shutdown_background();
    answered
}

async fn send(stream: Box<dyn Stream>, request: Request<Full<Bytes>>) -> io::Result<Response<Incoming>> {
    // As services that look for names by hand expect them.
    let handshake = http1::Builder::new().title_case_headers(true).handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| failure(&error))?;
    // It ends with the runtime; what it fails with the sender hears too.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(|error| failure(&error))
}

async fn read(response: Response<Incoming>, len_max: usize) -> io::Result<Vec<u8>> {
    match Limited::new(response.into_body(), len_max).collect().await {
        Ok(body) => Ok(body.to_bytes().into()),
        Err(error) if error.is::<LengthLimitError>() => Err(no_answer("the answer is too long")),
        Err(error) => Err(failure(&*error)),
    }
}

/// What TLS or the connection failed with, or else that it was no HTTP.
fn failure(error: &(dyn Error + 'static)) -> io::Error {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(tls) => io::Error::new(error.kind(), tls.clone()),
                None if error.kind() == io::ErrorKind::UnexpectedEof => no_answer("the answer was cut off"),
                None => io::Error::new(error.kind(), error.to_string()),
            };
        }
        cause = error.source();
    }
    no_answer("no HTTP answer")
}

fn no_answer(words: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, words.to_owned())
}
