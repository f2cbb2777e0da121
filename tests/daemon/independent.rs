//! webrtc-rs as the client: neither its codec nor its state machine is ours.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;
use turn::client::{Client, ClientConfig};
use webrtc_util::Conn;

use crate::PATIENCE;
use crate::certificate::Certificate;
use crate::client::User;
use crate::ferryd::{Ferryd, alice};

/// How a client reaches the server.
pub(crate) enum Way<'a> {
    Udp,
    Tcp,
    Tls(&'a Certificate),
}

/// Allocates as the user, sends to an echoing peer and hears it, by indications and then by a channel.
pub(crate) fn relays(server: SocketAddr, way: &Way<'_>, user: &User) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let flow = async {
        let client = connect(server, way, user).await;
        let seen = client.send_binding_request().await.unwrap();
        assert_eq!(seen.ip(), SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).ip());
        let relay = client.allocate().await.unwrap();
        assert_eq!(relay.local_addr().unwrap().ip(), server.ip());
        let peer = echoing_peer().await;
        // The client binds a channel beside the first packets.
        for number in 0..50_u8 {
            let packet = [number; 1000];
            relay.send_to(&packet, peer).await.unwrap();
            let mut buffer = [0; 2000];
            let (length, from) = relay.recv_from(&mut buffer).await.unwrap();
            assert_eq!((&buffer[..length], from), (&packet[..], peer));
        }
        relay.close().await.unwrap();
        client.close().await.unwrap();
    };
    runtime.block_on(async { tokio::time::timeout(PATIENCE, flow).await }).expect("the client is done in time");
}

/// Why webrtc-rs does not get an allocation.
pub(crate) fn allocation_error(server: SocketAddr, user: &User) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let flow = async {
        let client = connect(server, &Way::Udp, user).await;
        let result = client.allocate().await;
        result.err().expect("no allocation").to_string()
    };
    runtime.block_on(async { tokio::time::timeout(PATIENCE, flow).await }).expect("the client is done in time")
}

async fn connect(server: SocketAddr, way: &Way<'_>, user: &User) -> Client {
    let conn: Arc<dyn Conn + Send + Sync> = match way {
        Way::Udp => Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap()),
        Way::Tcp => Arc::new(Framed::new(TcpStream::connect(server).await.unwrap(), server)),
        Way::Tls(certificate) => {
            let connector = TlsConnector::from(Arc::new(certificate.client_config()));
            let stream = TcpStream::connect(server).await.unwrap();
            let stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
            Arc::new(Framed::new(stream, server))
        }
    };
    let client = Client::new(ClientConfig {
        stun_serv_addr: server.to_string(),
        turn_serv_addr: server.to_string(),
        username: user.name.clone(),
        password: user.password.clone(),
        realm: String::new(),
        software: String::new(),
        rto_in_ms: 0,
        conn,
        vnet: None,
    });
    let client = client.await.unwrap();
    client.listen().await.unwrap();
    client
}

async fn echoing_peer() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2000];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            socket.send_to(&buffer[..length], from).await.unwrap();
        }
    });
    address
}

/// Messages on a byte stream, as the `Conn` that webrtc-rs runs over.
struct Framed<S> {
    reader: Mutex<ReadHalf<S>>,
    writer: Mutex<WriteHalf<S>>,
    server: SocketAddr,
}

impl<S: AsyncRead + AsyncWrite> Framed<S> {
    fn new(stream: S, server: SocketAddr) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self { reader: Mutex::new(reader), writer: Mutex::new(writer), server }
    }
}

#[async_trait]
impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static> Conn for Framed<S> {
    async fn connect(&self, _: SocketAddr) -> Result<(), webrtc_util::Error> {
        Ok(())
    }

    async fn recv(&self, buffer: &mut [u8]) -> Result<usize, webrtc_util::Error> {
        let mut reader = self.reader.lock().await;
        reader.read_exact(&mut buffer[..4]).await?;
        let claimed = usize::from(u16::from_be_bytes([buffer[2], buffer[3]]));
        let is_channel_data = buffer[0] >= 0x40;
        let length = if is_channel_data { 4 + claimed } else { 20 + claimed };
        reader.read_exact(&mut buffer[4..length.next_multiple_of(4)]).await?;
        Ok(length)
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> Result<(usize, SocketAddr), webrtc_util::Error> {
        Ok((self.recv(buffer).await?, self.server))
    }

    async fn send(&self, message: &[u8]) -> Result<usize, webrtc_util::Error> {
        let mut writer = self.writer.lock().await;
        writer.write_all(message).await?;
        let padding = message.len().next_multiple_of(4) - message.len();
        writer.write_all(&[0; 3][..padding]).await?;
        writer.flush().await?;
        Ok(message.len())
    }

    async fn send_to(&self, message: &[u8], _: SocketAddr) -> Result<usize, webrtc_util::Error> {
        self.send(message).await
    }

    fn local_addr(&self) -> Result<SocketAddr, webrtc_util::Error> {
        Ok((Ipv4Addr::LOCALHOST, 0).into())
    }

    fn remote_addr(&self) -> Option<SocketAddr> {
        Some(self.server)
    }

    async fn close(&self) -> Result<(), webrtc_util::Error> {
        Ok(())
    }

    fn as_any(&self) -> &(dyn std::any::Any + Send + Sync) {
        self
    }
}

#[test]
fn webrtc_rs_relays_over_udp_tcp_and_tls_on_one_port() {
    let ferryd = Ferryd::start(|config| _ = Certificate::configured(config));
    let certificate = Certificate::of(&ferryd.config);
    for way in [Way::Udp, Way::Tcp, Way::Tls(&certificate)] {
        relays(ferryd.address(), &way, &alice());
    }
    ferryd.stop().expect_success();
}
