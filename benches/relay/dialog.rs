//! What a TURN client asks, one request after the other, whatever carries it.

use std::net::{SocketAddr, SocketAddrV4};

use ferryd::auth::long_term::PasswordAlgorithm;
use ferryd::stun::integrity::IntegrityKey;
use ferryd::stun::{AttributeType, Builder, Class, Message, Method, TransactionId};

use crate::failure::{Doing, Failure, Result};
use crate::server::{PASSWORD, USER};

/// One request of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Allocate,
    /// With a relayed address of IPv6.
    AllocateV6,
    BindChannel {
        channel: u16,
        peer: SocketAddr,
    },
    Permit {
        peer: SocketAddr,
    },
    /// Refresh with a lifetime of zero.
    Release,
}

/// A client's requests and how far it has come with them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dialog {
    asks: Vec<Ask>,
    step: usize,
    requests: u32,
    /// What makes this dialog's transactions its own.
    seed: u64,
    challenge: Option<Challenge>,
    challenges: u32,
    relayed: Option<SocketAddr>,
}

#[derive(Clone, Debug)]
struct Challenge {
    realm: Vec<u8>,
    nonce: Vec<u8>,
    key: IntegrityKey,
}

impl Dialog {
    pub(crate) fn new(seed: u64, asks: &[Ask]) -> Self {
        Self { asks: asks.to_vec(), seed, ..Self::default() }
    }

    /// Goes on with other requests on the same 5-tuple.
    pub(crate) fn go_on(&mut self, asks: &[Ask]) {
        (self.asks, self.step) = (asks.to_vec(), 0);
    }

    pub(crate) fn is_done(&self) -> bool {
        self.step >= self.asks.len()
    }

    /// What it was made with.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// The relayed transport address, once allocated.
    pub(crate) fn relayed(&self) -> Result<SocketAddr> {
        self.relayed.doing("find a relayed address in the Allocate success response")
    }

    /// The relayed transport address, where that is one of IPv4.
    pub(crate) fn relayed_v4(&self) -> Result<SocketAddrV4> {
        match self.relayed()? {
            SocketAddr::V4(relayed) => Ok(relayed),
            SocketAddr::V6(relayed) => Err(Failure::new(format!("{relayed} was not asked for"))),
        }
    }

    /// Writes the request that is due; the same bytes until it is answered.
    pub(crate) fn write_request(&self, out: &mut Vec<u8>) {
        let Some(ask) = self.asks.get(self.step) else { return };
        let method = match ask {
            Ask::Allocate | Ask::AllocateV6 => Method::Allocate,
            Ask::BindChannel { .. } => Method::ChannelBind,
            Ask::Permit { .. } => Method::CreatePermission,
            Ask::Release => Method::Refresh,
        };
        let mut builder = Builder::new(out, method, Class::Request, self.transaction_id());
        match *ask {
            Ask::Allocate => builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]),
            Ask::AllocateV6 => builder
                .attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
                .attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]),
            Ask::BindChannel { channel, peer } => builder
                .u32(AttributeType::CHANNEL_NUMBER, u32::from(channel) << 16)
                .xor_address(AttributeType::XOR_PEER_ADDRESS, peer),
            Ask::Permit { peer } => builder.xor_address(AttributeType::XOR_PEER_ADDRESS, peer),
            Ask::Release => builder.u32(AttributeType::LIFETIME, 0),
        };
        if let Some(Challenge { realm, nonce, key }) = &self.challenge {
            builder
                .attribute(AttributeType::USERNAME, USER.as_bytes())
                .attribute(AttributeType::REALM, realm)
                .attribute(AttributeType::NONCE, nonce)
                .integrity(key);
        }
    }

    fn transaction_id(&self) -> TransactionId {
        let mut id = [0; 12];
        id[..8].copy_from_slice(&self.seed.to_be_bytes());
        id[8..].copy_from_slice(&self.requests.to_be_bytes());
        TransactionId(id)
    }

    /// Takes a message; true when it answers the request that is due, so that the next one can go.
    pub(crate) fn handle(&mut self, message: &Message<'_>) -> Result<bool> {
        if message.transaction_id() != self.transaction_id() || self.is_done() {
            return Ok(false);
        }
        self.requests += 1;
        match message.class() {
            Class::Success => {
                if matches!(self.asks[self.step], Ask::Allocate | Ask::AllocateV6) {
                    let relayed = message.attribute(AttributeType::XOR_RELAYED_ADDRESS);
                    self.relayed = relayed.and_then(|attribute| attribute.as_xor_address(message.transaction_id()));
                    self.relayed()?;
                }
                self.step += 1;
                Ok(true)
            }
            Class::Error => {
                self.take_challenge(message)?;
                Ok(true)
            }
            Class::Request | Class::Indication => Err(Failure::new("the server answered with no response")),
        }
    }

    fn take_challenge(&mut self, message: &Message<'_>) -> Result<()> {
        let value = |kind| message.attribute(kind).map(|attribute| attribute.value);
        let code = match value(AttributeType::ERROR_CODE) {
            Some([_, _, class, number, ..]) => u32::from(*class) * 100 + u32::from(*number),
            Some(_) | None => 0,
        };
        let (Some(realm), Some(nonce), 401 | 438, 0..3) =
            (value(AttributeType::REALM), value(AttributeType::NONCE), code, self.challenges)
        else {
            let ask = self.asks[self.step];
            return Err(Failure::new(format!("the server answered {code} to {ask:?}")));
        };
        let realm_name = std::str::from_utf8(realm).doing("read the server's realm")?;
        let key = PasswordAlgorithm::Md5.key(USER.as_bytes(), realm_name, PASSWORD.as_bytes());
        self.challenges += 1;
        self.challenge = Some(Challenge { realm: realm.to_vec(), nonce: nonce.to_vec(), key });
        Ok(())
    }
}

/// Writes a Binding request.
pub(crate) fn write_binding(out: &mut Vec<u8>, id: [u8; 12]) {
    Builder::new(out, Method::Binding, Class::Request, TransactionId(id));
}

/// Writes an Allocate with a password that nobody has.
pub(crate) fn write_guess(out: &mut Vec<u8>, id: [u8; 12], realm: &[u8], nonce: &[u8]) {
    let realm_text = String::from_utf8_lossy(realm);
    let key = PasswordAlgorithm::Md5.key(USER.as_bytes(), &realm_text, b"not the password");
    Builder::new(out, Method::Allocate, Class::Request, TransactionId(id))
        .attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
        .attribute(AttributeType::USERNAME, USER.as_bytes())
        .attribute(AttributeType::REALM, realm)
        .attribute(AttributeType::NONCE, nonce)
        .integrity(&key);
}

/// Writes an Allocate without credentials.
pub(crate) fn write_unauthenticated_allocate(out: &mut Vec<u8>, id: [u8; 12]) {
    Builder::new(out, Method::Allocate, Class::Request, TransactionId(id))
        .attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
}
