//! Access tokens (RFC 7635): bytes as a token, and as the sealed block of one whose key the fuzzer has.

use arbitrary::{Arbitrary, Unstructured};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ferryd::auth::aead::AeadAlgorithm;
use ferryd::auth::settings::{Secret, ThirdParty, TokenKey};
use ferryd::stun::integrity::IntegrityKey;
use ferryd::stun::{AttributeType, Builder, Class, Method};

use crate::harness::{Client, Reply, UNIX_START, World, assert_no_leak, secs};

const SERVER: &str = "turn.example.org";
const KEY: [u8; 32] = [5; 32];

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    how: How,
    /// Seconds before or after the clock, of a token that is made.
    timestamp: i16,
    lifetime: u32,
    mac_key: [u8; 32],
    long: bool,
    wait: u16,
    bytes: &'a [u8],
}

#[derive(Debug, Arbitrary)]
enum How {
    /// The bytes are the token.
    Token,
    /// The bytes are what is sealed.
    Block,
    /// A token as it should be.
    Made,
    /// One whose last bytes are others.
    Damaged,
}

pub fn run(bytes: &[u8]) {
    let Ok(input) = Input::arbitrary(&mut Unstructured::new(bytes)) else { return };
    let mut world = World::with(|setup| {
        (setup.turn.port_min, setup.turn.port_max) = (50_000, 50_063);
        let (id, key) = ("kid".to_owned(), Secret::new(KEY));
        let key = TokenKey { id, algorithm: AeadAlgorithm::A256Gcm, key, not_before: 0, lifetime: None };
        setup.auth.third_party = Some(ThirdParty { server_name: SERVER.to_owned(), keys: vec![key] });
    });
    let mut client = Client::new("198.51.100.1:1000");
    client.challenge(&mut world);
    let mac_key = &input.mac_key[..if input.long { 32 } else { 20 }];
    let timestamp = UNIX_START.wrapping_add_signed(input.timestamp.into());
    let made = block(mac_key, timestamp, input.lifetime);
    let token = match input.how {
        How::Token => input.bytes.to_vec(),
        How::Block => seal(input.bytes),
        How::Made => seal(&made),
        How::Damaged => {
            let mut token = seal(&made);
            let len = input.bytes.len().min(token.len());
            let at = token.len() - len;
            token[at..].copy_from_slice(&input.bytes[..len]);
            token
        }
    };
    // Within the life of the nonce.
    world.advance(secs(u64::from(input.wait) % 3000));
    let (mut request, id) = (Vec::new(), client.transaction());
    Builder::new(&mut request, Method::Allocate, Class::Request, id)
        .attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
        .attribute(AttributeType::USERNAME, b"kid")
        .attribute(AttributeType::REALM, client.realm.as_bytes())
        .attribute(AttributeType::NONCE, client.nonce.as_deref().unwrap_or_default())
        .attribute(AttributeType::ACCESS_TOKEN, &token)
        .integrity(&IntegrityKey::new(mac_key).expect("a key"));
    client.send(&mut world, &request);
    let answer = world.inbox(&client.at).pop().map(|bytes| Reply { bytes });
    let allowed = allowed(&input, mac_key, &token, &made, timestamp, world.unix());
    let allocated = answer.as_ref().is_some_and(|answer| answer.result().is_ok());
    assert_eq!(allocated, allowed.is_some(), "{answer:?}");
    if let (Some(answer), Some(seconds)) = (answer, allowed) {
        assert!(u64::from(answer.lifetime()) <= seconds, "no allocation outlives its token");
    }
    world.advance(secs(5000));
    assert_no_leak(&world);
}

fn block(mac_key: &[u8], timestamp: u64, lifetime: u32) -> Vec<u8> {
    [&(mac_key.len() as u16).to_be_bytes(), mac_key, &(timestamp << 16).to_be_bytes(), &lifetime.to_be_bytes()].concat()
}

fn seal(block: &[u8]) -> Vec<u8> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &KEY).expect("a key"));
    let (nonce, mut sealed) = (*b"h4j3k2l2n4b5", block.to_vec());
    let associated = Aad::from(SERVER.as_bytes());
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), associated, &mut sealed).expect("room");
    [&[0, 12], &nonce[..], &sealed].concat()
}

/// For how many seconds the token is good; `None` is never.
fn allowed(input: &Input<'_>, mac_key: &[u8], token: &[u8], made: &[u8], timestamp: u64, now: u64) -> Option<u64> {
    let (timestamp, lifetime) = match input.how {
        How::Made | How::Damaged if *token == seal(made) => (timestamp, u64::from(input.lifetime)),
        // The fuzzer may write the block itself, but has to sign by the key in it.
        How::Block => {
            let rest = input.bytes.strip_prefix(&(mac_key.len() as u16).to_be_bytes())?.strip_prefix(mac_key)?;
            let (timestamp, lifetime) = rest.split_first_chunk::<8>()?;
            let lifetime = <[u8; 4]>::try_from(lifetime).ok()?;
            (u64::from_be_bytes(*timestamp) >> 16, u64::from(u32::from_be_bytes(lifetime)))
        }
        How::Token | How::Made | How::Damaged => return None,
    };
    // "lifetime + Delta > abs(RDnew - TS)", with a Delta of 5 seconds.
    (lifetime > 0 && lifetime + 5 > now.abs_diff(timestamp)).then_some(lifetime)
}
