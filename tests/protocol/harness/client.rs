//! A client that authenticates, and checks every answer.

use std::sync::atomic::{AtomicU64, Ordering};

use ferryd::address::{ClientAddr, FiveTuple, ServerAddr, Transport};
use ferryd::auth::credentials::time_limited_password;
use ferryd::auth::long_term::{PasswordAlgorithm, user_hash};
use ferryd::auth::settings::{Secret, SecretAlgorithm, SharedSecret};
use ferryd::stun::channel_data::{ChannelData, ChannelNumber};
use ferryd::stun::integrity::IntegrityKey;
use ferryd::stun::{AttributeType, Builder, Class, Method, TransactionId};

use super::{ALICE, REALM, Received, Reply, SECRET, Signed, World, addr};

/// Which integrity attributes requests carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Integrity {
    Sha1,
    Sha256,
    Both,
}

/// One client on one 5-tuple.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) at: FiveTuple,
    pub(crate) worker: usize,
    pub(crate) username: String,
    pub(crate) password: String,
    pub(crate) realm: String,
    pub(crate) nonce: Option<Vec<u8>>,
    /// PASSWORD-ALGORITHMS of the last challenge.
    pub(crate) offered: Option<Vec<u8>>,
    /// PASSWORD-ALGORITHM; `None` leaves it out, which means MD5.
    pub(crate) algorithm: Option<PasswordAlgorithm>,
    pub(crate) integrity: Integrity,
    pub(crate) anonymous: bool,
    pub(crate) fingerprint: bool,
}

/// Transactions of all clients, so that no two requests are taken for retransmissions.
static TRANSACTIONS: AtomicU64 = AtomicU64::new(0);

impl Client {
    /// Alice over UDP.
    pub(crate) fn new(address: &str) -> Self {
        Self::over(address, Transport::Udp)
    }

    pub(crate) fn over(address: &str, transport: Transport) -> Self {
        let client = ClientAddr::new(addr(address));
        let server = if addr(address).is_ipv4() { "192.0.2.10:3478" } else { "[2001:db8::10]:3478" };
        Self {
            at: FiveTuple { transport, client, server: ServerAddr::new(addr(server)) },
            worker: 0,
            username: "alice".to_owned(),
            password: ALICE.to_owned(),
            realm: REALM.to_owned(),
            nonce: None,
            offered: None,
            algorithm: None,
            integrity: Integrity::Sha1,
            anonymous: false,
            fingerprint: false,
        }
    }

    pub(crate) fn user(mut self, username: &str, password: &str) -> Self {
        (self.username, self.password) = (username.to_owned(), password.to_owned());
        self
    }

    /// A time-limited user of the first shared secret.
    pub(crate) fn time_limited(self, username: &str) -> Self {
        let secret = SharedSecret { secret: Secret::new(SECRET), algorithm: SecretAlgorithm::Sha1 };
        let password = time_limited_password(&secret, username);
        self.user(username, &password)
    }

    pub(crate) fn on_worker(mut self, worker: usize) -> Self {
        self.worker = worker;
        self
    }

    /// Names SHA-256 as its password algorithm and signs with MESSAGE-INTEGRITY-SHA256.
    pub(crate) fn sha256(mut self) -> Self {
        (self.algorithm, self.integrity) = (Some(PasswordAlgorithm::Sha256), Integrity::Sha256);
        self
    }

    pub(crate) fn key(&self) -> IntegrityKey {
        let algorithm = self.algorithm.unwrap_or(PasswordAlgorithm::Md5);
        algorithm.key(self.username.as_bytes(), &self.realm, self.password.as_bytes())
    }

    /// A transaction id that was not used before.
    pub(crate) fn transaction(&mut self) -> TransactionId {
        let mut id = [0xA5; 12];
        id[..8].copy_from_slice(&TRANSACTIONS.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        TransactionId(id)
    }

    /// A request without credentials.
    pub(crate) fn unsigned(&mut self, method: Method, write: impl FnOnce(&mut Builder<'_>)) -> Vec<u8> {
        let id = self.transaction();
        let mut bytes = Vec::new();
        let mut builder = Builder::new(&mut bytes, method, Class::Request, id);
        write(&mut builder);
        if self.fingerprint {
            builder.fingerprint();
        }
        bytes
    }

    /// A request with the credentials that the client has.
    pub(crate) fn signed(&mut self, method: Method, write: impl FnOnce(&mut Builder<'_>)) -> Vec<u8> {
        let id = self.transaction();
        let mut bytes = Vec::new();
        let mut builder = Builder::new(&mut bytes, method, Class::Request, id);
        write(&mut builder);
        self.write_credentials(&mut builder);
        self.write_integrity(&mut builder);
        bytes
    }

    pub(crate) fn write_credentials(&self, builder: &mut Builder<'_>) {
        if self.anonymous {
            builder.attribute(AttributeType::USERHASH, &user_hash(&self.username, &self.realm));
        } else {
            builder.attribute(AttributeType::USERNAME, self.username.as_bytes());
        }
        builder.attribute(AttributeType::REALM, self.realm.as_bytes());
        builder.attribute(AttributeType::NONCE, self.nonce.as_deref().unwrap_or_default());
        if let Some(algorithm) = self.algorithm {
            let number = match algorithm {
                PasswordAlgorithm::Md5 => [0, 1, 0, 0],
                PasswordAlgorithm::Sha256 => [0, 2, 0, 0],
            };
            builder.attribute(AttributeType::PASSWORD_ALGORITHMS, self.offered.as_deref().unwrap_or_default());
            builder.attribute(AttributeType::PASSWORD_ALGORITHM, &number);
        }
    }

    pub(crate) fn write_integrity(&self, builder: &mut Builder<'_>) {
        let key = self.key();
        match self.integrity {
            Integrity::Sha1 => _ = builder.integrity(&key),
            Integrity::Sha256 => _ = builder.integrity_sha256(&key),
            Integrity::Both => _ = builder.integrity(&key).integrity_sha256(&key),
        }
        if self.fingerprint {
            builder.fingerprint();
        }
    }

    /// Sends bytes, whatever they are.
    pub(crate) fn send(&self, world: &mut World, bytes: &[u8]) {
        world.client_sends(self.worker, &self.at, bytes);
    }

    /// Sends a request and reads its answer, checking what every answer has to keep.
    pub(crate) fn exchange(&self, world: &mut World, bytes: &[u8]) -> Option<Reply> {
        self.send(world, bytes);
        self.reply_to(world, bytes)
    }

    /// The answer to a request that has been sent.
    pub(crate) fn reply_to(&self, world: &mut World, bytes: &[u8]) -> Option<Reply> {
        let mut arrived = world.inbox(&self.at);
        assert!(arrived.len() <= 1, "one request, one answer");
        let reply = Reply { bytes: arrived.pop()? };
        let request = ferryd::stun::Message::parse(bytes).expect("a well-formed request");
        assert_eq!((reply.method(), reply.id()), (request.method(), request.transaction_id()));
        assert_eq!(reply.message().has_fingerprint(), request.has_fingerprint(), "FINGERPRINT is mirrored");
        let key = self.key();
        match reply.signed() {
            Signed::No => {}
            Signed::Sha1 => assert!(key.verifies_sha1(&reply.message().integrity().expect("signed"))),
            Signed::Sha256 => assert!(key.verifies_sha256(&reply.message().integrity_sha256().expect("signed"))),
        }
        Some(reply)
    }

    /// Learns realm and nonce from an Allocate without credentials.
    pub(crate) fn challenge(&mut self, world: &mut World) -> Reply {
        let bytes = self.unsigned(Method::Allocate, write_udp);
        let reply = self.exchange(world, &bytes).expect("a challenge");
        assert_eq!(reply.result(), Err(401));
        self.learn(&reply);
        reply
    }

    /// Takes REALM, NONCE and PASSWORD-ALGORITHMS over.
    pub(crate) fn learn(&mut self, reply: &Reply) {
        self.realm = String::from_utf8(reply.value(AttributeType::REALM).expect("REALM")).expect("UTF-8");
        self.nonce = Some(reply.value(AttributeType::NONCE).expect("NONCE"));
        self.offered = reply.value(AttributeType::PASSWORD_ALGORITHMS);
    }

    /// A signed request and its answer; the challenge comes first where there was none.
    pub(crate) fn request(&mut self, world: &mut World, method: Method, write: impl FnOnce(&mut Builder<'_>)) -> Reply {
        if self.nonce.is_none() {
            self.challenge(world);
        }
        let bytes = self.signed(method, write);
        let reply = self.exchange(world, &bytes).expect("an answer");
        if ![400, 401, 438].contains(&reply.result().err().unwrap_or_default()) {
            let expected = if self.algorithm.is_some() { Signed::Sha256 } else { Signed::Sha1 };
            assert_eq!(reply.signed(), expected, "answers to authenticated requests are signed");
        }
        reply
    }

    pub(crate) fn allocate(&mut self, world: &mut World) -> Reply {
        self.allocate_with(world, |_| {})
    }

    /// An Allocate for UDP with more attributes.
    pub(crate) fn allocate_with(&mut self, world: &mut World, write: impl FnOnce(&mut Builder<'_>)) -> Reply {
        self.request(world, Method::Allocate, |builder| {
            write_udp(builder);
            write(builder);
        })
    }

    pub(crate) fn refresh(&mut self, world: &mut World, lifetime: Option<u32>) -> Reply {
        self.request(world, Method::Refresh, |builder| {
            if let Some(lifetime) = lifetime {
                builder.u32(AttributeType::LIFETIME, lifetime);
            }
        })
    }

    pub(crate) fn permit(&mut self, world: &mut World, peers: &[&str]) -> Reply {
        self.request(world, Method::CreatePermission, |builder| {
            for peer in peers {
                builder.xor_address(AttributeType::XOR_PEER_ADDRESS, addr(peer));
            }
        })
    }

    pub(crate) fn bind(&mut self, world: &mut World, number: u16, peer: &str) -> Reply {
        self.request(world, Method::ChannelBind, |builder| {
            builder.u32(AttributeType::CHANNEL_NUMBER, u32::from(number) << 16);
            builder.xor_address(AttributeType::XOR_PEER_ADDRESS, addr(peer));
        })
    }

    /// A Send indication.
    pub(crate) fn indicate(&mut self, world: &mut World, peer: &str, data: &[u8]) {
        self.indicate_with(world, |builder| {
            builder.xor_address(AttributeType::XOR_PEER_ADDRESS, addr(peer)).attribute(AttributeType::DATA, data);
        });
    }

    pub(crate) fn indicate_with(&mut self, world: &mut World, write: impl FnOnce(&mut Builder<'_>)) {
        let id = self.transaction();
        let mut bytes = Vec::new();
        write(&mut Builder::new(&mut bytes, Method::Send, Class::Indication, id));
        self.send(world, &bytes);
    }

    /// A ChannelData message, padded on streams.
    pub(crate) fn channel_data(&self, world: &mut World, number: u16, data: &[u8]) {
        let number = ChannelNumber::new(number).expect("a channel number");
        let mut bytes = ChannelData::header(number, data.len() as u16).to_vec();
        bytes.extend_from_slice(data);
        if self.at.transport.is_stream() {
            bytes.resize(bytes.len().next_multiple_of(4), 0xEE);
        }
        self.send(world, &bytes);
    }

    /// What has arrived that is no response.
    pub(crate) fn received(&self, world: &mut World) -> Vec<Received> {
        let padded = self.at.transport.is_stream();
        world.inbox(&self.at).iter().map(|bytes| Received::parse(bytes, padded)).collect()
    }
}

/// REQUESTED-TRANSPORT of UDP.
fn write_udp(builder: &mut Builder<'_>) {
    builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
}
