//! Tells a web service of sessions: POST requests with some events each, by a thread of its own.
//!
//! A service that hangs or fails costs memory for `QUEUE_MAX` events and nothing else; what is older is lost, and
//! counted.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Map, Value, json};
use tracing::{info, warn};

use super::records;

/// Events that wait for the service.
const QUEUE_MAX: usize = 4096;
/// Events of one request.
const BATCH_MAX: usize = 100;
/// For a connection, and for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Attempts for one batch; between them 1, 2, 4 and 8 seconds.
const ATTEMPTS: u32 = 5;
/// What a stop waits for the service.
const FAREWELL: Duration = Duration::from_secs(5);
/// A status line.
const ANSWER_LEN_MAX: usize = 1024;

/// The service as configured.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    pub url: Url,
    /// Sent as `Authorization: Bearer`.
    pub token: Option<String>,
    /// Trusted in place of the system's authorities.
    pub authorities: Option<PathBuf>,
}

impl std::fmt::Debug for Settings {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("url", &self.url).field("authorities", &self.authorities).finish()
    }
}

/// `http://host[:port]/path` or `https://...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    is_tls: bool,
    host: String,
    port: u16,
    path: String,
}

impl Url {
    /// `None` for what is no such URL; credentials in it are not taken.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let (is_tls, default_port) = match scheme {
            "http" => (false, 80),
            "https" => (true, 443),
            _ => return None,
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = if path.is_empty() { "/" } else { path };
        let is_fit = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if authority.contains('@') || !is_fit(authority) || !is_fit(path) || path.contains('#') {
            return None;
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok().filter(|port| *port != 0)?),
            Some(_) | None => (authority, default_port),
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        (!host.is_empty()).then(|| Self { is_tls, host: host.to_owned(), port, path: path.to_owned() })
    }
}

/// What became of events, since the start.
#[derive(Debug, Default)]
pub struct Counters {
    pub delivered: AtomicU64,
    /// The queue was full, or the service failed or refused them to the end.
    pub lost: AtomicU64,
}

/// The way to the service.
#[derive(Debug)]
pub struct Webhook {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    counters: Arc<records::Counters>,
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Map<String, Value>>,
    /// No more is to come; nothing is tried after this.
    until: Option<Instant>,
}

impl Webhook {
    /// Starts the thread.
    pub fn start(settings: Settings, counters: Arc<records::Counters>) -> io::Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new(), counters });
        let tls = settings.url.is_tls.then(|| tls_config(&settings)).transpose()?;
        let service = Service { settings, tls };
        let of_thread = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name("webhook".to_owned()).spawn(move || of_thread.deliver(&service))?;
        Ok(Self { shared, thread })
    }

    /// Queues an event; the oldest one makes room.
    pub fn put(&self, event: Map<String, Value>) {
        let mut queue = self.shared.lock();
        if queue.events.len() == QUEUE_MAX {
            queue.events.pop_front();
            self.shared.counters.webhook.lost.fetch_add(1, Ordering::Relaxed);
        }
        queue.events.push_back(event);
        drop(queue);
        self.shared.changed.notify_one();
    }

    /// Waits a moment for what is queued.
    pub fn finish(self) {
        self.shared.lock().until = Some(Instant::now() + FAREWELL);
        self.shared.changed.notify_one();
        // A thread that has panicked has said so.
        let _ = self.thread.join();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deliver(&self, service: &Service) {
        let mut fails = false;
        while let Some(batch) = self.next_batch() {
            let count = batch.len() as u64;
            let body = json!({ "events": batch }).to_string();
            match self.try_often(service, &body) {
                Ok(()) => {
                    self.counters.webhook.delivered.fetch_add(count, Ordering::Relaxed);
                    if fails {
                        info!("the webhook takes session records again");
                    }
                    fails = false;
                }
                Err(words) => {
                    self.counters.webhook.lost.fetch_add(count, Ordering::Relaxed);
                    if !fails {
                        warn!(reason = words, "the webhook does not take session records");
                    }
                    fails = true;
                }
            }
        }
    }

    /// The next events; `None` at the end.
    fn next_batch(&self) -> Option<Vec<Map<String, Value>>> {
        let mut queue = self.lock();
        loop {
            let is_over = queue.until.is_some_and(|until| until <= Instant::now());
            if queue.events.is_empty() && queue.until.is_some() || is_over {
                self.counters.webhook.lost.fetch_add(queue.events.len() as u64, Ordering::Relaxed);
                return None;
            }
            if !queue.events.is_empty() {
                let count = queue.events.len().min(BATCH_MAX);
                return Some(queue.events.drain(..count).collect());
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Delivers, or says why that is given up.
    fn try_often(&self, service: &Service, body: &str) -> Result<(), String> {
        let mut pause = Duration::from_secs(1);
        for attempt in 1..=ATTEMPTS {
            let words = match service.post(body) {
                Ok(200..300) => return Ok(()),
                // Another attempt would be refused as well.
                Ok(status @ 400..500) if status != 408 && status != 429 => return Err(format!("status {status}")),
                Ok(status) => format!("status {status}"),
                Err(error) => error.to_string(),
            };
            if attempt == ATTEMPTS || !self.rest(pause) {
                return Err(words);
            }
            pause *= 2;
        }
        Err("no attempt".to_owned())
    }

    /// Waits between two attempts; false when the daemon's stop leaves no time for another.
    fn rest(&self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        let mut queue = self.lock();
        loop {
            let now = Instant::now();
            if queue.until.is_some_and(|until| until <= end) {
                return false;
            }
            if now >= end {
                return true;
            }
            queue = self.changed.wait_timeout(queue, end - now).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Where requests go.
struct Service {
    settings: Settings,
    tls: Option<Arc<ClientConfig>>,
}

impl Service {
    /// Sends one request and returns the status of the answer.
    fn post(&self, body: &str) -> io::Result<u16> {
        let Url { host, port, path, .. } = &self.settings.url;
        let deadline = Instant::now() + PATIENCE;
        let mut tcp = connect(host, *port)?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        let authorization =
            self.settings.token.as_ref().map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let host_header = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {host_header}:{port}\r\nUser-Agent: ferryd\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n{authorization}\r\n{body}",
            body.len()
        );
        match &self.tls {
            None => {
                tcp.write_all(request.as_bytes())?;
                status(&mut tcp, deadline, |tcp, left| tcp.set_read_timeout(Some(left)))
            }
            Some(config) => {
                let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
                let connection = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
                tcp.set_read_timeout(Some(PATIENCE))?;
                let mut tls = StreamOwned::new(connection, tcp);
                tls.write_all(request.as_bytes())?;
                status(&mut tls, deadline, |tls, left| tls.sock.set_read_timeout(Some(left)))
            }
        }
    }
}

fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Reads the status line; a service that drips is cut off at the deadline.
fn status<S: Read>(
    stream: &mut S,
    deadline: Instant,
    set_timeout: impl Fn(&mut S, Duration) -> io::Result<()>,
) -> io::Result<u16> {
    let mut answer = Vec::new();
    let no_http = || io::Error::new(io::ErrorKind::InvalidData, "no HTTP answer");
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        set_timeout(stream, left)?;
        let mut bytes = [0; 256];
        let count = stream.read(&mut bytes)?;
        answer.extend_from_slice(&bytes[..count]);
        if let Some(line) = answer.split(|byte| *byte == b'\n').next().filter(|line| line.len() < answer.len()) {
            let line = std::str::from_utf8(line).map_err(|_| no_http())?;
            let code = line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5));
            return code.and_then(|code| code.parse().ok()).ok_or_else(no_http);
        }
        if count == 0 || answer.len() > ANSWER_LEN_MAX {
            return Err(no_http());
        }
    }
}

fn tls_config(settings: &Settings) -> io::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    match &settings.authorities {
        Some(file) => {
            for certificate in CertificateDer::pem_file_iter(file).map_err(io::Error::other)? {
                let certificate = certificate.map_err(io::Error::other)?;
                roots.add(certificate).map_err(io::Error::other)?;
            }
        }
        None => {
            // Some of the system's may be unfit; without any, nothing would be trusted.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(io::Error::other("no certificate authority is known, name one by sessions.webhook-ca"));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_told_apart() {
        let url = |text: &str| Url::parse(text).map(|url| (url.is_tls, url.host, url.port, url.path));
        assert_eq!(url("http://a"), Some((false, "a".into(), 80, "/".into())));
        assert_eq!(url("https://a.b/c?d=e"), Some((true, "a.b".into(), 443, "/c?d=e".into())));
        assert_eq!(url("http://[2001:db8::1]:8080/x"), Some((false, "2001:db8::1".into(), 8080, "/x".into())));
        assert_eq!(url("http://[2001:db8::1]/"), Some((false, "2001:db8::1".into(), 80, "/".into())));
        for wrong in [
            "",
            "a",
            "ftp://a",
            "http://",
            "http://:80",
            "http://a:0",
            "http://a:b",
            "http://u:p@a",
            "http://a/ b",
            "http://a/\r\nX: y",
        ] {
            assert_eq!(url(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_a_whole_status_line_is_an_answer() {
        let read = |text: &str| {
            let deadline = Instant::now() + PATIENCE;
            status(&mut text.as_bytes(), deadline, |_, _| Ok(())).map_err(|error| error.kind())
        };
        assert_eq!(read("HTTP/1.1 204 No Content\r\n"), Ok(204));
        assert_eq!(read("HTTP/1.0 500 x\n"), Ok(500));
        for wrong in ["", "HTTP/1.1 204 No Content", "SSH-2.0\r\n", "HTTP/1.1 2\r\n", &"x".repeat(5000)] {
            assert_eq!(read(wrong), Err(io::ErrorKind::InvalidData), "{wrong:.20}");
        }
    }
}
