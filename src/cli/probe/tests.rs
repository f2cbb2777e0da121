//! The probe against a server of another make, and against everything that is none.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio_rustls::TlsAcceptor;
use turn::auth::{AuthHandler, generate_auth_key};
use turn::relay::relay_static::RelayAddressGeneratorStatic;
use turn::server::Server;
use turn::server::config::{ConnConfig, ServerConfig};

use super::*;

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

struct OneUser;

impl AuthHandler for OneUser {
    fn auth_handle(&self, username: &str, realm: &str, _: SocketAddr) -> Result<Vec<u8>, turn::Error> {
        if username == "user" {
            Ok(generate_auth_key(username, realm, "pass"))
        } else {
            Err(turn::Error::ErrNoSuchUser)
        }
    }
}

/// webrtc-rs as a server on a loopback port.
async fn server() -> (Server, SocketAddr) {
    let socket = UdpSocket::bind((LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    let relay_addr_generator = Box::new(RelayAddressGeneratorStatic {
        relay_address: LOCALHOST,
        address: LOCALHOST.to_string(),
        net: Arc::new(webrtc_util::vnet::net::Net::new(None)),
    });
    let config = ServerConfig {
        conn_configs: vec![ConnConfig { conn: Arc::new(socket), relay_addr_generator }],
        realm: "test".to_owned(),
        auth_handler: Arc::new(OneUser),
        channel_bind_timeout: Duration::from_secs(600),
        alloc_close_notify: None,
    };
    (Server::new(config).await.unwrap(), address)
}

/// A stream port that hands the messages of each connection to the server from a socket of its own.
async fn stream_port(server: SocketAddr, tls: Option<TlsAcceptor>) -> u16 {
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                match tls {
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            bridge(stream, server).await;
                        }
                    }
                    None => bridge(stream, server).await,
                }
            });
        }
    });
    port
}

async fn bridge(mut stream: impl AsyncRead + AsyncWrite + Unpin, server: SocketAddr) {
    let socket = UdpSocket::bind((LOCALHOST, 0)).await.unwrap();
    socket.connect(server).await.unwrap();
    let (mut received, mut datagram) = (Vec::new(), [0; 2000]);
    loop {
        tokio::select! {
            read = stream.read_buf(&mut received) => {
                if read.is_err() || read.unwrap() == 0 {
                    return;
                }
                while let Some(message) = framing::take_message(&mut received).unwrap() {
                    socket.send(&message).await.unwrap();
                }
            }
            length = socket.recv(&mut datagram) => {
                // In pieces, as the network may cut it.
                for piece in framing::on_stream(&datagram[..length.unwrap()]).chunks(7) {
                    stream.write_all(piece).await.unwrap();
                    stream.flush().await.unwrap();
                }
            }
        }
    }
}

fn arguments(url: &str, username: &str, password: &str) -> Arguments {
    Arguments {
        url: url.to_owned(),
        username: Some(username.to_owned()).filter(|name| !name.is_empty()),
        password: Some(password.to_owned()).filter(|password| !password.is_empty()),
        ca: None,
        insecure: false,
    }
}

/// The steps that succeeded, and the failure if there was one.
async fn probed(arguments: &Arguments) -> (Vec<&'static str>, Option<String>) {
    let mut steps = Vec::new();
    let url = Url::parse(&arguments.url).unwrap();
    let outcome = probe(&url, arguments, &mut |line| steps.push(line.step)).await;
    (steps, outcome.err().map(|failure| failure.to_string()))
}

async fn fails_with(arguments: &Arguments, words: &str) {
    let failure = probed(arguments).await.1.expect("the probe fails");
    assert!(failure.contains(words), "{failure}");
}

#[tokio::test]
async fn a_good_server_passes_every_step_over_udp() {
    let (_server, address) = server().await;
    let (steps, failure) = probed(&arguments(&format!("turn:{address}"), "user", "pass")).await;
    assert_eq!(failure, None);
    assert_eq!(steps, ["binding", "allocation", "permission", "channel", "relay"]);
}

#[tokio::test]
async fn a_good_server_passes_every_step_over_tcp() {
    let (_server, address) = server().await;
    let port = stream_port(address, None).await;
    let url = format!("turn:127.0.0.1:{port}?transport=tcp");
    let (steps, failure) = probed(&arguments(&url, "user", "pass")).await;
    assert_eq!(failure, None);
    assert_eq!(steps, ["connection", "binding", "allocation", "permission", "channel", "relay"]);
}

struct Certificate {
    acceptor: TlsAcceptor,
    file: tempfile::NamedTempFile,
}

fn certificate(change: impl FnOnce(&mut rcgen::CertificateParams)) -> Certificate {
    let mut parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    change(&mut parameters);
    let key = rcgen::KeyPair::generate().unwrap();
    let made = parameters.self_signed(&key).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), made.pem()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![made.der().clone()],
            PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap(),
        )
        .unwrap();
    Certificate { acceptor: TlsAcceptor::from(Arc::new(config)), file }
}

#[tokio::test]
async fn a_good_server_passes_every_step_over_tls() {
    let (_server, address) = server().await;
    let certificate = certificate(|_| {});
    let port = stream_port(address, Some(certificate.acceptor)).await;
    let mut arguments = arguments(&format!("turns:localhost:{port}"), "user", "pass");
    fails_with(&arguments, "is not trusted").await;
    arguments.ca = Some(certificate.file.path().to_owned());
    let (steps, failure) = probed(&arguments).await;
    assert_eq!(failure, None);
    assert_eq!(steps, ["name", "connection", "tls", "binding", "allocation", "permission", "channel", "relay"]);
}

#[tokio::test]
async fn certificates_fail_in_words() {
    let (_server, address) = server().await;
    let expired = certificate(|parameters| {
        parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(2021, 1, 1);
    });
    let port = stream_port(address, Some(expired.acceptor)).await;
    let mut probing = arguments(&format!("turns:localhost:{port}"), "", "");
    probing.ca = Some(expired.file.path().to_owned());
    fails_with(&probing, "days ago; renew it").await;
    // Trusting everything, the time is still told.
    probing.ca = None;
    probing.insecure = true;
    assert_eq!(probed(&probing).await.0, ["name", "connection", "tls", "binding"]);

    let other = certificate(|parameters| {
        parameters.subject_alt_names = vec![rcgen::SanType::DnsName("turn.example.org".try_into().unwrap())];
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    });
    let port = stream_port(address, Some(other.acceptor)).await;
    let mut probing = arguments(&format!("turns:localhost:{port}"), "", "");
    fails_with(&probing, "it signs itself").await;
    probing.ca = Some(other.file.path().to_owned());
    fails_with(&probing, "the certificate is for turn.example.org, not for localhost").await;
}

#[tokio::test]
async fn a_wrong_password_is_told() {
    let (_server, address) = server().await;
    let url = format!("turn:{address}");
    let (steps, failure) = probed(&arguments(&url, "user", "")).await;
    assert_eq!(steps, ["binding"]);
    assert!(failure.unwrap().contains("no username and password are given"));
    let stun = probed(&arguments(&format!("stun:{address}"), "", "")).await;
    assert_eq!(stun, (vec!["binding"], None));
}

#[tokio::test]
async fn closed_ports_are_told() {
    let port = UdpSocket::bind((LOCALHOST, 0)).await.unwrap().local_addr().unwrap().port();
    fails_with(&arguments(&format!("turn:127.0.0.1:{port}"), "", ""), "is closed for udp").await;
    let port = TcpListener::bind((LOCALHOST, 0)).await.unwrap().local_addr().unwrap().port();
    fails_with(&arguments(&format!("turn:127.0.0.1:{port}?transport=tcp"), "", ""), "refuses tcp").await;
}

#[tokio::test]
async fn silent_and_foreign_ports_are_told() {
    let silent = UdpSocket::bind((LOCALHOST, 0)).await.unwrap();
    let url = format!("turn:{}", silent.local_addr().unwrap());
    fails_with(&arguments(&url, "", ""), "nothing answers udp on").await;

    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 512]).await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    fails_with(&arguments(&format!("turns:{address}"), "", ""), "something other than TLS").await;
    fails_with(&arguments(&format!("turn:{address}?transport=tcp"), "", ""), "closed the connection").await;
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_told() {
    // Too long a label: refused before anybody is asked.
    let name = "a".repeat(64);
    fails_with(&arguments(&format!("turn:{name}.invalid"), "", ""), ".invalid cannot be resolved").await;
}

#[test]
fn every_code_has_its_words() {
    let words = |code, step| Failure::rejected(step, code, "Reason", None).to_string();
    assert!(words(401, "allocation").contains("the clocks of both machines"));
    assert!(words(486, "allocation").contains("quota"));
    assert!(words(486, "second allocation").contains("the probe needs two"));
    assert!(words(403, "permission").contains("refuses its own relayed address"));
    assert!(words(403, "allocation").contains("forbids it"));
    assert!(words(508, "allocation").contains("no ports or sockets left"));
    assert_eq!(words(599, "allocation"), "allocation: the server answers 599 Reason: look into the log of the server");
}
