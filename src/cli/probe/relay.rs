//! Two allocations that send to each other: every server that calls work through allows it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use stun::message::{METHOD_ALLOCATE, METHOD_CHANNEL_BIND};
use webrtc_util::Conn;

use super::connection::Connection;
use super::words::Failure;
use super::{Line, time_words};

/// The size of a voice packet.
const PACKET_BYTES: usize = 160;
const PACKETS: u8 = 10;
/// A packet that takes longer is lost to a call.
const PACKET_TIMEOUT: Duration = Duration::from_secs(1);

/// Allocates twice, opens the way between both, and measures it by indications and by channels.
pub(super) async fn there_and_back(
    first: &Connection,
    second: &Connection,
    print: &mut dyn FnMut(&Line),
) -> Result<(), Failure> {
    let (relay, relayed) = allocate(first, "allocation", print).await?;
    let outcome = match allocate(second, "second allocation", &mut |_| {}).await {
        Ok((other_relay, other_relayed)) => {
            let one = End { connection: first, relay: &relay, peer: other_relayed };
            let other = End { connection: second, relay: &other_relay, peer: relayed };
            let outcome = measure(&one, &other, print).await;
            let _ = other_relay.close().await;
            outcome
        }
        Err(failure) => Err(failure),
    };
    // Released at once rather than after the lifetime, also when a step failed.
    let _ = relay.close().await;
    outcome
}

async fn allocate(
    connection: &Connection,
    step: &'static str,
    print: &mut dyn FnMut(&Line),
) -> Result<(impl Conn + use<>, SocketAddr), Failure> {
    let started = Instant::now();
    match connection.within(step, connection.client.allocate()).await? {
        Ok(relay) => {
            let relayed = relay.local_addr().map_err(|error| Failure::new(step, error.to_string()))?;
            print(&Line { step, found: format!("relayed at {relayed}"), took: Some(started.elapsed()) });
            Ok((relay, relayed))
        }
        Err(_) if connection.seen().succeeded(METHOD_ALLOCATE) && connection.seen().error.is_none() => {
            let words = "the server allocates without asking for a password: it is an open relay, close it";
            Err(Failure::new(step, words))
        }
        Err(error) => Err(connection.failure(step, &error)),
    }
}

/// One of the two clients.
struct End<'a, R> {
    connection: &'a Connection,
    relay: &'a R,
    /// The relayed transport address of the other.
    peer: SocketAddr,
}

impl<R: Conn> End<'_, R> {
    /// The first packet to the peer: the client asks for the permission before it.
    async fn open(&self, step: &'static str) -> Result<(), Failure> {
        let sent = self.connection.within(step, self.relay.send_to(b"open", self.peer)).await?;
        sent.map(drop).map_err(|error| self.connection.failure(step, &error))
    }

    async fn send(&self, packet: &[u8]) -> Result<(), Failure> {
        let sent = self.connection.within("relay", self.relay.send_to(packet, self.peer)).await?;
        sent.map(drop).map_err(|error| self.connection.failure("relay", &error))
    }

    /// Whether the packet arrives in time, from the other's relayed transport address.
    async fn receive(&self, packet: &[u8]) -> bool {
        let arrives = async {
            let mut buffer = [0; 2 * PACKET_BYTES];
            loop {
                match self.relay.recv_from(&mut buffer).await {
                    Ok((length, from)) if buffer[..length] == *packet && from == self.peer => return true,
                    // A packet of an earlier round.
                    Ok(_) => {}
                    Err(_) => return false,
                }
            }
        };
        tokio::time::timeout(PACKET_TIMEOUT, arrives).await.unwrap_or(false)
    }
}

async fn measure<A: Conn, B: Conn>(
    one: &End<'_, A>,
    other: &End<'_, B>,
    print: &mut dyn FnMut(&Line),
) -> Result<(), Failure> {
    let started = Instant::now();
    one.open("permission").await?;
    other.open("permission").await?;
    let found = "each may send to the other".to_owned();
    print(&Line { step: "permission", found, took: Some(started.elapsed()) });

    // The client binds a channel beside the first packet and sends indications until it is bound.
    let started = Instant::now();
    for connection in [one.connection, other.connection] {
        connection.wait("channel", |seen| seen.succeeded(METHOD_CHANNEL_BIND) || seen.error.is_some()).await?;
        if !connection.seen().succeeded(METHOD_CHANNEL_BIND) {
            return Err(connection.failure("channel", &"no success"));
        }
    }
    print(&Line { step: "channel", found: "bound in both directions".to_owned(), took: Some(started.elapsed()) });

    let before = other.connection.seen().channel_data;
    let mut times = Vec::new();
    for number in 0..PACKETS {
        times.extend(round(one, other, number).await?);
    }
    let by_channel = other.connection.seen().channel_data > before;
    summarize(times, by_channel, print)
}

/// One packet to the other and back. `None` when it was lost.
async fn round<A: Conn, B: Conn>(
    one: &End<'_, A>,
    other: &End<'_, B>,
    number: u8,
) -> Result<Option<Duration>, Failure> {
    let packet = [number; PACKET_BYTES];
    let started = Instant::now();
    one.send(&packet).await?;
    if !other.receive(&packet).await {
        return Ok(None);
    }
    other.send(&packet).await?;
    Ok(one.receive(&packet).await.then(|| started.elapsed()))
}

fn summarize(mut times: Vec<Duration>, by_channel: bool, print: &mut dyn FnMut(&Line)) -> Result<(), Failure> {
    times.sort_unstable();
    let Some(median) = times.get(times.len() / 2).copied() else {
        let words = format!(
            "none of {PACKETS} packets comes back though everything is granted; check that the server's host lets UDP \
             in and out on the relay ports, and that the advertised address is its own"
        );
        return Err(Failure::new("relay", words));
    };
    let way = if by_channel { "by channels" } else { "by indications" };
    let slowest = time_words(times[times.len() - 1]);
    let found = format!("{} of {PACKETS} packets there and back {way}, slowest {slowest}", times.len());
    print(&Line { step: "relay", found, took: Some(median) });
    if times.len() < usize::from(PACKETS) {
        let lost = usize::from(PACKETS) - times.len();
        let words = format!("{lost} of {PACKETS} packets are lost; the path or the server is overloaded");
        return Err(Failure::new("relay", words));
    }
    Ok(())
}
