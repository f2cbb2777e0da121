//! Writes STUN messages.

use std::net::{IpAddr, SocketAddr};

use super::attribute::{AttributeType, XorAddress};
use super::error_code::ErrorCode;
use super::header::{Class, HEADER_LEN, MAGIC_COOKIE, Method, TransactionId, join_type};
use super::integrity::IntegrityKey;
use super::message::{ATTRIBUTE_HEADER_LEN, fingerprint};

/// Appends one message to a buffer, attribute by attribute; the header's length is right after every step.
///
/// Integrity attributes and FINGERPRINT are to be written last, in the RFC's order.
#[derive(Debug)]
pub struct Builder<'b> {
    buffer: &'b mut Vec<u8>,
    start: usize,
    id: TransactionId,
}

impl<'b> Builder<'b> {
    /// Begins a message at the end of `buffer`.
    pub fn new(buffer: &'b mut Vec<u8>, method: Method, class: Class, id: TransactionId) -> Self {
        let start = buffer.len();
        buffer.extend_from_slice(&join_type(method, class).to_be_bytes());
        buffer.extend_from_slice(&[0, 0]);
        buffer.extend_from_slice(&MAGIC_COOKIE.to_be_bytes());
        buffer.extend_from_slice(&id.0);
        Self { buffer, start, id }
    }

    /// Appends an attribute and its padding, which is zero.
    ///
    /// # Panics
    ///
    /// When the message would outgrow its 16-bit length: the caller bounds what it writes.
    pub fn attribute(&mut self, kind: AttributeType, value: &[u8]) -> &mut Self {
        self.write_header(kind, value.len());
        self.buffer.extend_from_slice(value);
        self.pad(value.len());
        self
    }

    /// Appends an attribute whose value is in two parts.
    pub fn attribute_in_parts(&mut self, kind: AttributeType, first: &[u8], second: &[u8]) -> &mut Self {
        let len = first.len() + second.len();
        self.write_header(kind, len);
        self.buffer.extend_from_slice(first);
        self.buffer.extend_from_slice(second);
        self.pad(len);
        self
    }

    /// Appends a 32-bit attribute.
    pub fn u32(&mut self, kind: AttributeType, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_be_bytes())
    }

    /// Appends an XOR-ed transport address.
    pub fn xor_address(&mut self, kind: AttributeType, address: SocketAddr) -> &mut Self {
        let value = XorAddress::new(address, self.id);
        self.attribute(kind, value.as_bytes())
    }

    /// Appends a transport address as it is (RFC 8489 section 14.1).
    pub fn address(&mut self, kind: AttributeType, address: SocketAddr) -> &mut Self {
        let [high, low] = address.port().to_be_bytes();
        match address.ip() {
            IpAddr::V4(ip) => self.attribute_in_parts(kind, &[0, 0x01, high, low], &ip.octets()),
            IpAddr::V6(ip) => self.attribute_in_parts(kind, &[0, 0x02, high, low], &ip.octets()),
        }
    }

    /// Appends ERROR-CODE (RFC 8489 section 14.8).
    pub fn error_code(&mut self, code: ErrorCode, reason: &str) -> &mut Self {
        let [class, number] = code.class_and_number();
        self.attribute_in_parts(AttributeType::ERROR_CODE, &[0, 0, class, number], reason.as_bytes())
    }

    /// Appends ADDRESS-ERROR-CODE (RFC 8656 section 18.12); `family` is 0x01 or 0x02.
    pub fn address_error_code(&mut self, family: u8, code: ErrorCode) -> &mut Self {
        let [class, number] = code.class_and_number();
        let kind = AttributeType::ADDRESS_ERROR_CODE;
        self.attribute_in_parts(kind, &[family, 0, class, number], code.reason().as_bytes())
    }

    /// Appends UNKNOWN-ATTRIBUTES (RFC 8489 section 14.13).
    pub fn unknown_attributes(&mut self, kinds: &[AttributeType]) -> &mut Self {
        self.write_header(AttributeType::UNKNOWN_ATTRIBUTES, 2 * kinds.len());
        for kind in kinds {
            self.buffer.extend_from_slice(&kind.0.to_be_bytes());
        }
        self.pad(2 * kinds.len());
        self
    }

    /// Appends MESSAGE-INTEGRITY.
    pub fn integrity(&mut self, key: &IntegrityKey) -> &mut Self {
        let covered_end = self.buffer.len();
        self.attribute(AttributeType::MESSAGE_INTEGRITY, &[0; 20]);
        let mac = key.sha1([&self.buffer[self.start..covered_end]]);
        self.buffer[covered_end + ATTRIBUTE_HEADER_LEN..].copy_from_slice(&mac);
        self
    }

    /// Appends MESSAGE-INTEGRITY-SHA256.
    pub fn integrity_sha256(&mut self, key: &IntegrityKey) -> &mut Self {
        let covered_end = self.buffer.len();
        self.attribute(AttributeType::MESSAGE_INTEGRITY_SHA256, &[0; 32]);
        let mac = key.sha256([&self.buffer[self.start..covered_end]]);
        self.buffer[covered_end + ATTRIBUTE_HEADER_LEN..].copy_from_slice(&mac);
        self
    }

    /// Appends FINGERPRINT.
    pub fn fingerprint(&mut self) -> &mut Self {
        let covered_end = self.buffer.len();
        self.attribute(AttributeType::FINGERPRINT, &[0; 4]);
        let value = fingerprint(&self.buffer[self.start..covered_end]);
        self.buffer[covered_end + ATTRIBUTE_HEADER_LEN..].copy_from_slice(&value);
        self
    }

    /// The length of the message so far in bytes, header included.
    #[expect(clippy::len_without_is_empty, reason = "a message has at least a header")]
    pub fn len(&self) -> usize {
        self.buffer.len() - self.start
    }

    fn write_header(&mut self, kind: AttributeType, value_len: usize) {
        let message_len = self.len() + ATTRIBUTE_HEADER_LEN + value_len.next_multiple_of(4) - HEADER_LEN;
        let message_len = u16::try_from(message_len).expect("the caller bounds what it writes");
        self.buffer[self.start + 2..self.start + 4].copy_from_slice(&message_len.to_be_bytes());
        self.buffer.extend_from_slice(&kind.0.to_be_bytes());
        self.buffer.extend_from_slice(&(value_len as u16).to_be_bytes());
    }

    fn pad(&mut self, value_len: usize) {
        let padding = value_len.next_multiple_of(4) - value_len;
        self.buffer.resize(self.buffer.len() + padding, 0);
    }
}
