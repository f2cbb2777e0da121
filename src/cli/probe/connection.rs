//! The way to the server, as the `Conn` that the client of webrtc-rs runs over, with an eye on what passes.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use stun::addr::AlternateServer;
use stun::attributes::ATTR_ALTERNATE_SERVER;
use stun::error_code::ErrorCodeAttribute;
use stun::message::{CLASS_ERROR_RESPONSE, CLASS_SUCCESS_RESPONSE, Getter, Message, Method};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::UdpSocket;
use tokio::sync::{Mutex, watch};
use turn::client::{Client, ClientConfig};
use webrtc_util::Conn;

use super::STEP_TIMEOUT;
use super::dtls::Session;
use super::framing;
use super::url::Carrier;
use super::words::Failure;

/// What has come from the server.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// The last error response: method, code, reason.
    pub(super) error: Option<(Method, u16, String)>,
    /// Where that response sends clients.
    pub(super) alternate: Option<SocketAddr>,
    /// The method of each success response, in order.
    pub(super) successes: Vec<Method>,
    /// How many ChannelData messages.
    pub(super) channel_data: u64,
    /// ICMP said that nobody listens there.
    pub(super) refused: bool,
    /// Why the stream ended.
    pub(super) closed: Option<String>,
}

impl Seen {
    pub(super) fn succeeded(&self, method: Method) -> bool {
        self.successes.contains(&method)
    }
}

/// A client and its connection.
pub(super) struct Connection {
    pub(super) client: Client,
    wire: Arc<Wire>,
    seen: watch::Receiver<Seen>,
    address: SocketAddr,
    carrier: Carrier,
}

/// The username and password of a client; both empty for one that only binds.
#[derive(Clone, Debug, Default)]
pub(super) struct Credentials {
    pub(super) username: String,
    pub(super) password: String,
}

impl Connection {
    /// Over UDP.
    pub(super) async fn udp(address: SocketAddr, credentials: &Credentials) -> Result<Self, Failure> {
        let (socket, ends) = udp_socket(address).await?;
        Self::over(Channel::Udp(socket), ends, Carrier::Udp, credentials).await
    }

    /// Over an association that is established.
    pub(super) async fn dtls(session: Session, ends: Ends, credentials: &Credentials) -> Result<Self, Failure> {
        Self::over(Channel::Dtls(session), ends, Carrier::Dtls, credentials).await
    }

    /// Over a byte stream that is ready for messages.
    pub(super) async fn stream(
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        ends: Ends,
        carrier: Carrier,
        credentials: &Credentials,
    ) -> Result<Self, Failure> {
        let (reader, writer) = tokio::io::split(Box::pin(stream) as Pin<Box<dyn Stream>>);
        let reading = Mutex::new(Reading { reader, received: Vec::new() });
        Self::over(Channel::Stream { reading, writing: Mutex::new(writer) }, ends, carrier, credentials).await
    }

    async fn over(channel: Channel, ends: Ends, carrier: Carrier, credentials: &Credentials) -> Result<Self, Failure> {
        let (tell, seen) = watch::channel(Seen::default());
        let wire = Arc::new(Wire { channel, ends, tell });
        let config = ClientConfig {
            stun_serv_addr: ends.address.to_string(),
            turn_serv_addr: ends.address.to_string(),
            username: credentials.username.clone(),
            password: credentials.password.clone(),
            realm: String::new(),
            software: String::new(),
            rto_in_ms: 0,
            conn: Arc::<Wire>::clone(&wire),
            vnet: None,
        };
        let started = async {
            let client = Client::new(config).await?;
            client.listen().await?;
            Ok(client)
        };
        let client = started.await.map_err(|error: turn::Error| Failure::new("connection", error.to_string()))?;
        Ok(Self { client, wire, seen, address: ends.address, carrier })
    }

    /// A Binding request: this client's address as the server sees it.
    pub(super) async fn bind(&self) -> Result<SocketAddr, Failure> {
        let step = "binding";
        self.within(step, self.client.send_binding_request()).await?.map_err(|error| self.failure(step, &error))
    }

    /// What has come so far.
    pub(super) fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Waits for an operation as long as the server can still answer.
    pub(super) async fn within<T>(&self, step: &'static str, operation: impl Future<Output = T>) -> Result<T, Failure> {
        let mut seen = self.seen.clone();
        let over = async {
            if seen.wait_for(|seen| seen.refused || seen.closed.is_some()).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            value = operation => Ok(value),
            () = over => match self.seen().closed {
                Some(why) => Err(Failure::closed(step, self.address, &why)),
                None => Err(Failure::udp_refused(step, self.address)),
            },
            () = tokio::time::sleep(STEP_TIMEOUT) => Err(Failure::silence(step, self.address, self.carrier)),
        }
    }

    /// Waits until something has come, for as long as a step may take.
    pub(super) async fn wait(&self, step: &'static str, there: impl FnMut(&Seen) -> bool) -> Result<(), Failure> {
        let mut seen = self.seen.clone();
        // The sender lives in the client, which this holds.
        self.within(step, seen.wait_for(there)).await.map(drop)
    }

    /// What the server answered, rather than what the client made of it.
    pub(super) fn failure(&self, step: &'static str, error: &dyn std::fmt::Display) -> Failure {
        let Seen { error: rejection, alternate, .. } = self.seen();
        match rejection {
            Some((_, code, reason)) => Failure::rejected(step, code, &reason, alternate),
            None => Failure::new(step, format!("the answer of {} is not understood ({error})", self.address)),
        }
    }

    /// Stops to listen.
    pub(super) async fn close(&self) {
        // The client has nothing left to say.
        let _ = self.client.close().await;
        if let Channel::Dtls(session) = &self.wire.channel {
            session.close().await;
        }
    }
}

/// A socket, connected so that closed ports are heard of.
pub(super) async fn udp_socket(address: SocketAddr) -> Result<(UdpSocket, Ends), Failure> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let opened = async {
        let socket = UdpSocket::bind(any).await?;
        socket.connect(address).await?;
        let local = socket.local_addr()?;
        Ok((socket, Ends { local, address }))
    };
    opened.await.map_err(|error: io::Error| Failure::connection(address, &error))
}

/// The two ends of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) local: SocketAddr,
    pub(super) address: SocketAddr,
}

trait Stream: AsyncRead + AsyncWrite + Send {}

impl<S: AsyncRead + AsyncWrite + Send> Stream for S {}

struct Reading {
    reader: ReadHalf<Pin<Box<dyn Stream>>>,
    /// What is not a whole message yet.
    received: Vec<u8>,
}

enum Channel {
    Udp(UdpSocket),
    Dtls(Session),
    Stream { reading: Mutex<Reading>, writing: Mutex<WriteHalf<Pin<Box<dyn Stream>>>> },
}

/// A channel whose messages are looked at on the way in.
struct Wire {
    channel: Channel,
    ends: Ends,
    tell: watch::Sender<Seen>,
}

impl Wire {
    async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.channel {
            Channel::Udp(socket) => loop {
                match socket.recv(buffer).await {
                    // ICMP may come late or from afar; whoever waits for an answer decides.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                        self.tell.send_modify(|seen| seen.refused = true);
                    }
                    received => return received,
                }
            },
            Channel::Dtls(session) => session.receive(buffer).await,
            Channel::Stream { reading, .. } => {
                let Reading { reader, received } = &mut *reading.lock().await;
                loop {
                    if let Some(message) = framing::take_message(received)? {
                        let length = message.len().min(buffer.len());
                        buffer[..length].copy_from_slice(&message[..length]);
                        return Ok(length);
                    }
                    if reader.read_buf(received).await? == 0 {
                        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "end of stream"));
                    }
                }
            }
        }
    }

    async fn transmit(&self, message: &[u8]) -> io::Result<usize> {
        match &self.channel {
            Channel::Udp(socket) => match socket.send(message).await {
                // The error of an earlier datagram.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    self.tell.send_modify(|seen| seen.refused = true);
                }
                sent => return sent,
            },
            Channel::Dtls(session) => session.send(message).await?,
            Channel::Stream { writing, .. } => {
                let mut writer = writing.lock().await;
                writer.write_all(&framing::on_stream(message)).await?;
                writer.flush().await?;
            }
        }
        Ok(message.len())
    }

    fn look_at(&self, message: &[u8]) {
        if matches!(message.first(), Some(0x40..=0x7f)) {
            self.tell.send_modify(|seen| seen.channel_data += 1);
            return;
        }
        let mut stun = Message::new();
        if stun.unmarshal_binary(message).is_err() {
            return;
        }
        if stun.typ.class == CLASS_SUCCESS_RESPONSE {
            self.tell.send_modify(|seen| {
                seen.successes.push(stun.typ.method);
                seen.error = None;
            });
        }
        let mut error = ErrorCodeAttribute::default();
        if stun.typ.class == CLASS_ERROR_RESPONSE && error.get_from(&stun).is_ok() {
            let reason = String::from_utf8_lossy(&error.reason).into_owned();
            // Text from afar on the way to a terminal.
            let reason = reason.chars().filter(|c| !c.is_control()).take(100).collect();
            let mut server = AlternateServer::default();
            let alternate = server.get_from_as(&stun, ATTR_ALTERNATE_SERVER).is_ok();
            let alternate = alternate.then(|| SocketAddr::new(server.ip, server.port));
            self.tell.send_modify(|seen| {
                (seen.error, seen.alternate) = (Some((stun.typ.method, error.code.0, reason)), alternate);
            });
        }
    }
}

#[async_trait]
impl Conn for Wire {
    async fn connect(&self, _: SocketAddr) -> Result<(), webrtc_util::Error> {
        Ok(())
    }

    async fn recv(&self, buffer: &mut [u8]) -> Result<usize, webrtc_util::Error> {
        let received = self.receive(buffer).await;
        match &received {
            Ok(length) => self.look_at(&buffer[..*length]),
            Err(error) => self.tell.send_modify(|seen| seen.closed = Some(error.to_string())),
        }
        Ok(received?)
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> Result<(usize, SocketAddr), webrtc_util::Error> {
        Ok((self.recv(buffer).await?, self.ends.address))
    }

    async fn send(&self, message: &[u8]) -> Result<usize, webrtc_util::Error> {
        let sent = self.transmit(message).await;
        if let Err(error) = &sent {
            self.tell.send_modify(|seen| seen.closed = Some(error.to_string()));
        }
        Ok(sent?)
    }

    async fn send_to(&self, message: &[u8], _: SocketAddr) -> Result<usize, webrtc_util::Error> {
        self.send(message).await
    }

    fn local_addr(&self) -> Result<SocketAddr, webrtc_util::Error> {
        Ok(self.ends.local)
    }

    fn remote_addr(&self) -> Option<SocketAddr> {
        Some(self.ends.address)
    }

    async fn close(&self) -> Result<(), webrtc_util::Error> {
        Ok(())
    }

    fn as_any(&self) -> &(dyn std::any::Any + Send + Sync) {
        self
    }
}
