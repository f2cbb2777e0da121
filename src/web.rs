//! HTTP as a client: one request over one connection, plain or over TLS, with a deadline for all of it.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, Uri, header};
use rustls::ClientConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::UnixStream;

pub use self::trust::{Trust, signs_itself};

mod exchange;
mod trust;

/// `http://host[:port]/path` or `https://...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    pub is_tls: bool,
    pub host: String,
    pub port: u16,
    pub path: String,
}

impl Url {
    /// `None` for what is no such URL; credentials in it are not taken.
    pub fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let (is_tls, default_port) = match uri.scheme_str()? {
            "http" => (false, 80),
            "https" => (true, 443),
            _ => return None,
        };
        let authority = uri.authority()?.as_str();
        let host = uri.host()?;
        let port = match authority.strip_prefix(host)? {
            "" => default_port,
            port => port.strip_prefix(':')?.parse().ok().filter(|port| *port != 0)?,
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        // A fragment is for people.
        let is_fit = !host.is_empty() && !text.contains('#');
        is_fit.then(|| Self { is_tls, host: host.to_owned(), port, path: path.to_owned() })
    }
}

/// A token that goes with each request, as `Authorization: Bearer`; it never prints.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// `None` unless it is one line of visible ASCII.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())).then(|| Self(text.to_owned()))
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// The certificates of a PEM file. No error quotes what is in it: somebody may have named a file of keys.
pub fn certificates(file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let pem = std::fs::read(file)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "holds no PEM certificate")),
        Err(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "holds PEM that cannot be read")),
    }
}

/// The key of a PEM file, which no error quotes either.
pub fn key(file: &Path) -> io::Result<PrivateKeyDer<'static>> {
    let no_key = || io::Error::new(io::ErrorKind::InvalidData, "holds no PEM key without a passphrase");
    PrivateKeyDer::from_pem_slice(&std::fs::read(file)?).map_err(|_| no_key())
}

/// A client's side of TLS, with a certificate of its own where the server asks for one.
pub fn client_config(
    trust: Trust,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> io::Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = trust.of_servers(&provider)?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(io::Error::other)?,
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// A request, without where it goes.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub method: &'a str,
    pub path: &'a str,
    /// JSON, or empty.
    pub body: &'a str,
}

impl Ask<'_> {
    fn of(self, host: &str, token: Option<&Token>) -> io::Result<Request<Full<Bytes>>> {
        let mut request = Request::builder().method(self.method).uri(self.path).header(header::HOST, host);
        request = request.header(header::USER_AGENT, "ferryd").header(header::CONNECTION, "close");
        if let Some(Token(token)) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if !self.body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let wrong = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
        request.body(Full::from(self.body.to_owned())).map_err(wrong)
    }
}

/// Where requests go.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub url: Url,
    pub token: Option<Token>,
    /// Set exactly where the URL is one of https.
    tls: Option<Arc<ClientConfig>>,
}

impl Endpoint {
    /// `tls` makes the configuration where the URL needs one.
    pub fn new(
        url: Url,
        token: Option<Token>,
        tls: impl FnOnce() -> io::Result<Arc<ClientConfig>>,
    ) -> io::Result<Self> {
        let tls = url.is_tls.then(tls).transpose()?;
        Ok(Self { url, token, tls })
    }

    /// Trusts the authorities of a PEM file, or those of the system, where the URL needs any; fails where there are none.
    pub fn trusting(url: Url, token: Option<Token>, authorities: Option<&Path>) -> io::Result<Self> {
        Self::new(url, token, || client_config(Trust::read(authorities)?, None))
    }

    /// Posts JSON and returns the status of the answer; the rest of it is not read.
    pub fn post(&self, body: &str, patience: Duration) -> io::Result<u16> {
        Ok(self.exchange(Ask { method: "POST", path: &self.url.path, body }, None, patience)?.0)
    }

    /// Asks for nothing but an answer: by HEAD, which changes nothing (RFC 9110 section 9.2.1). Returns its status.
    pub fn knock(&self, patience: Duration) -> io::Result<u16> {
        Ok(self.exchange(Ask { method: "HEAD", path: &self.url.path, body: "" }, None, patience)?.0)
    }

    /// Sends a request and reads the answer to its end: the status and the body of at most `len_max` bytes.
    pub fn request(&self, ask: Ask<'_>, len_max: usize, patience: Duration) -> io::Result<(u16, Vec<u8>)> {
        self.exchange(ask, Some(len_max), patience)
    }

    fn exchange(&self, ask: Ask<'_>, len_max: Option<usize>, patience: Duration) -> io::Result<(u16, Vec<u8>)> {
        let Url { host, port, .. } = &self.url;
        let name = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let request = ask.of(&name, self.token.as_ref())?;
        exchange::exchange(exchange::connect(host, *port, self.tls.clone()), request, len_max, patience)
    }
}

/// The same over a socket of this host.
pub fn request_over_socket(
    socket: &Path,
    ask: Ask<'_>,
    len_max: usize,
    patience: Duration,
) -> io::Result<(u16, Vec<u8>)> {
    let request = ask.of("ferryd", None)?;
    let connect = async { Ok(Box::new(UnixStream::connect(socket).await?) as Box<dyn exchange::Stream>) };
    exchange::exchange(connect, request, Some(len_max), patience)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

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

    /// What becomes of a request that a server answers so, and then with silence or the end.
    fn answered(
        answer: &'static [u8],
        then_ends: bool,
        len_max: Option<usize>,
    ) -> Result<(u16, Vec<u8>), io::ErrorKind> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = Url::parse(&format!("http://{}/hook", listener.local_addr().unwrap())).unwrap();
        let endpoint = Endpoint::new(url, Token::parse("token"), || unreachable!("there is no TLS")).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            while !request.ends_with("\r\n\r\nbody") {
                let mut bytes = [0; 256];
                let count = stream.read(&mut bytes).unwrap();
                request.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
            }
            assert!(request.starts_with("POST /hook HTTP/1.1\r\n") && request.contains("Bearer token"), "{request}");
            stream.write_all(answer).unwrap();
            if !then_ends {
                // Until the client gives up.
                let _ = stream.read(&mut [0]);
            }
        });
        let patience = if then_ends { Duration::from_secs(30) } else { Duration::from_millis(300) };
        let ask = Ask { method: "POST", path: "/hook", body: "body" };
        let answered = endpoint.exchange(ask, len_max, patience).map_err(|error| error.kind());
        server.join().unwrap();
        answered
    }

    #[test]
    fn only_a_whole_answer_is_one() {
        let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ntrue";
        assert_eq!(answered(whole, true, Some(4)), Ok((200, b"true".to_vec())));
        assert_eq!(answered(whole, true, Some(3)), Err(io::ErrorKind::InvalidData), "too long");
        assert_eq!(answered(b"HTTP/1.0 200 OK\r\n\r\ntrue", true, Some(9)), Ok((200, b"true".to_vec())));
        let chunked = b"HTTP/1.1 500 x\r\ntransfer-encoding: chunked\r\n\r\n2\r\ntr\r\n2\r\nue\r\n0\r\n\r\n";
        assert_eq!(answered(chunked, true, Some(9)), Ok((500, b"true".to_vec())));
        for cut in [&b""[..], &whole[..10], &whole[..30], &whole[..40], b"SSH-2.0-server\r\n", b"HTTP/1.1 2\r\n\r\n"] {
            let words = String::from_utf8_lossy(cut);
            assert_eq!(answered(cut, true, Some(9)), Err(io::ErrorKind::InvalidData), "{words}");
        }
    }

    #[test]
    fn nobody_waits_for_longer_than_the_deadline_or_for_what_is_not_wanted() {
        assert_eq!(
            answered(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ntr", false, Some(9)),
            Err(io::ErrorKind::TimedOut)
        );
        assert_eq!(answered(b"HTTP/1.1 200", false, None), Err(io::ErrorKind::TimedOut));
        assert_eq!(answered(b"HTTP/1.1 204 No Content\r\n\r\n", false, None), Ok((204, Vec::new())));
    }

    #[test]
    fn a_file_of_keys_is_not_quoted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        for text in
            ["-----BEGIN PRIVATE KEY-----\nc2VzYW1l\n", "-----BEGIN hush", "-----BEGIN CERTIFICATE-----\nhush!\n"]
        {
            std::fs::write(&path, text).unwrap();
            let words = certificates(&path).unwrap_err().to_string();
            assert!(words.contains("holds") && !words.contains("hush") && !words.contains("c2VzYW1l"), "{words}");
        }
    }
}
