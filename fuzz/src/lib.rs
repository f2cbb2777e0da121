//! The bodies of the fuzz targets: each takes bytes as libFuzzer mutates them, and panics when something is wrong.
//!
//! The servers are those of the protocol tests, with their checks of every answer and effect.

pub mod client;
pub mod codec;
pub mod configuration;
pub mod framing;
pub mod message;
pub mod proxy;
pub mod stranger;
pub mod ticket;
pub mod token;

#[path = "../../tests/protocol/harness/mod.rs"]
#[allow(dead_code, unused_imports, clippy::unwrap_used, reason = "each target uses some of it")]
mod harness;

/// Corrects what no mutation gets right: the magic cookie, the length, and the value of a FINGERPRINT at the end.
fn mend(bytes: &mut [u8]) {
    if bytes.len() < 20 {
        return;
    }
    let len = (bytes.len() - 20) as u16 & !3;
    bytes[2..4].copy_from_slice(&len.to_be_bytes());
    bytes[4..8].copy_from_slice(&0x2112_A442_u32.to_be_bytes());
    let end = 20 + usize::from(len);
    if let Some(fingerprint) = end.checked_sub(8).filter(|at| bytes[*at..].starts_with(&[0x80, 0x28, 0, 4])) {
        let value = crc32fast::hash(&bytes[..fingerprint]) ^ 0x5354_554E;
        bytes[fingerprint + 4..end].copy_from_slice(&value.to_be_bytes());
    }
}
