//! A checked view on a STUN message (RFC 8489 sections 5 and 14).

use super::attribute::{Attribute, AttributeType};
use super::header::{Class, HEADER_LEN, MAGIC_COOKIE, Method, TransactionId, split_type};

/// Length of an attribute's header: type and length of the value, two bytes each.
pub const ATTRIBUTE_HEADER_LEN: usize = 4;

/// A whole, well-formed STUN message.
///
/// RFC 8489 section 14.5: "with the exception of the MESSAGE-INTEGRITY-SHA256 and FINGERPRINT attributes, which appear
/// after MESSAGE-INTEGRITY, agents MUST ignore all other attributes that follow MESSAGE-INTEGRITY"; the accessors show
/// only what counts.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    bytes: &'a [u8],
    method: Method,
    class: Class,
    /// Where the attributes that count end: at the first integrity attribute or FINGERPRINT, else at the end.
    attributes_end: usize,
    integrity: Option<usize>,
    integrity_sha256: Option<usize>,
    has_fingerprint: bool,
}

/// Why bytes are no message; they are dropped without an answer (RFC 8489 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParseError {
    /// Shorter than a header, the first two bits are not zero, or the magic cookie is not there.
    NotStun,
    /// The length field does not match the number of bytes, or is not a multiple of four.
    Length,
    /// A method that is not known here.
    UnknownMethod,
    /// An attribute reaches beyond the end of the message.
    Attribute,
    /// FINGERPRINT is wrong, or is not the last attribute.
    Fingerprint,
}

impl<'a> Message<'a> {
    /// Checks header, attribute lengths and FINGERPRINT.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else { return Err(ParseError::NotStun) };
        let [type_high, type_low, len_high, len_low, c0, c1, c2, c3, ..] = *header;
        if type_high & 0xC0 != 0 || [c0, c1, c2, c3] != MAGIC_COOKIE.to_be_bytes() {
            return Err(ParseError::NotStun);
        }
        let len = usize::from(u16::from_be_bytes([len_high, len_low]));
        if len != rest.len() || len % 4 != 0 {
            return Err(ParseError::Length);
        }
        let message_type = u16::from_be_bytes([type_high, type_low]);
        let (method, class) = split_type(message_type).ok_or(ParseError::UnknownMethod)?;
        let mut message = Self {
            bytes,
            method,
            class,
            attributes_end: bytes.len(),
            integrity: None,
            integrity_sha256: None,
            has_fingerprint: false,
        };
        message.scan()?;
        Ok(message)
    }

    /// Walks all attributes once: lengths, where the integrity attributes are, and FINGERPRINT.
    fn scan(&mut self) -> Result<(), ParseError> {
        let mut offset = HEADER_LEN;
        while offset < self.bytes.len() {
            let (attribute, next) = attribute_at(self.bytes, offset).ok_or(ParseError::Attribute)?;
            let ends_attributes = match attribute.kind {
                AttributeType::MESSAGE_INTEGRITY if self.integrity_sha256.is_none() => {
                    self.integrity.get_or_insert(offset);
                    true
                }
                AttributeType::MESSAGE_INTEGRITY_SHA256 => {
                    self.integrity_sha256.get_or_insert(offset);
                    true
                }
                AttributeType::FINGERPRINT => {
                    if next != self.bytes.len() || !fingerprint_matches(self.bytes, offset, attribute.value) {
                        return Err(ParseError::Fingerprint);
                    }
                    self.has_fingerprint = true;
                    true
                }
                _ => false,
            };
            if ends_attributes {
                self.attributes_end = self.attributes_end.min(offset);
            }
            offset = next;
        }
        Ok(())
    }

    pub fn method(&self) -> Method {
        self.method
    }

    pub fn class(&self) -> Class {
        self.class
    }

    pub fn transaction_id(&self) -> TransactionId {
        let mut id = [0; 12];
        id.copy_from_slice(&self.bytes[8..HEADER_LEN]);
        TransactionId(id)
    }

    /// The length of the message in bytes, header included.
    #[expect(clippy::len_without_is_empty, reason = "a message has at least a header")]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The message as it came.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether the message carries a FINGERPRINT, which is then valid.
    pub fn has_fingerprint(&self) -> bool {
        self.has_fingerprint
    }

    /// The attributes that count, in their order, duplicates included.
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes { bytes: &self.bytes[..self.attributes_end], offset: HEADER_LEN }
    }

    /// The first attribute of a type. RFC 8489 section 14: later duplicates may be ignored.
    pub fn attribute(&self, kind: AttributeType) -> Option<Attribute<'a>> {
        self.attributes().find(|attribute| attribute.kind == kind)
    }

    /// Whether an attribute of a type is there.
    pub fn has(&self, kind: AttributeType) -> bool {
        self.attribute(kind).is_some()
    }

    /// Where an attribute's value begins, counted from the first byte of the message.
    pub fn offset_of(&self, attribute: &Attribute<'a>) -> usize {
        attribute.value.as_ptr().addr() - self.bytes.as_ptr().addr()
    }

    /// MESSAGE-INTEGRITY: the value, and the bytes that it covers.
    pub fn integrity(&self) -> Option<Covered<'a>> {
        self.covered(self.integrity?)
    }

    /// MESSAGE-INTEGRITY-SHA256: the value, and the bytes that it covers.
    pub fn integrity_sha256(&self) -> Option<Covered<'a>> {
        self.covered(self.integrity_sha256?)
    }

    fn covered(&self, offset: usize) -> Option<Covered<'a>> {
        let (attribute, next) = attribute_at(self.bytes, offset)?;
        let mut header = [0; HEADER_LEN];
        header.copy_from_slice(&self.bytes[..HEADER_LEN]);
        let len = (next - HEADER_LEN) as u16;
        header[2..4].copy_from_slice(&len.to_be_bytes());
        Some(Covered { header, attributes: &self.bytes[HEADER_LEN..offset], value: attribute.value })
    }

    /// The comprehension-required attributes that are not known here (RFC 8489 section 6.3.1).
    pub fn unknown_attributes(&self) -> impl Iterator<Item = AttributeType> + use<'a> {
        self.attributes()
            .map(|attribute| attribute.kind)
            .filter(|kind| kind.is_comprehension_required() && !kind.is_known())
    }
}

/// What an integrity attribute covers: the header with its length adjusted to end at that attribute, and the attributes
/// before it (RFC 8489 section 14.5).
#[derive(Clone, Copy, Debug)]
pub struct Covered<'a> {
    pub header: [u8; HEADER_LEN],
    pub attributes: &'a [u8],
    pub value: &'a [u8],
}

/// Iterates over the attributes of a checked message.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Attributes<'a> {
    /// Those of a message whose length has been checked.
    pub(super) fn new(message: &'a [u8]) -> Self {
        Self { bytes: message, offset: HEADER_LEN }
    }

    /// Whether the last attribute ends at `end`.
    pub(super) fn reach(mut self, end: usize) -> bool {
        self.by_ref().for_each(drop);
        self.offset == end
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let (attribute, next) = attribute_at(self.bytes, self.offset)?;
        self.offset = next;
        Some(attribute)
    }
}

/// The attribute at `offset` and the offset of the next one; `None` at the end and when it reaches beyond the end.
fn attribute_at(bytes: &[u8], offset: usize) -> Option<(Attribute<'_>, usize)> {
    let (&[type_high, type_low, len_high, len_low], rest) = bytes.get(offset..)?.split_first_chunk()?;
    let len = usize::from(u16::from_be_bytes([len_high, len_low]));
    let value = rest.get(..len)?;
    let next = offset + ATTRIBUTE_HEADER_LEN + len.next_multiple_of(4);
    if next > bytes.len() {
        return None;
    }
    Some((Attribute { kind: AttributeType(u16::from_be_bytes([type_high, type_low])), value }, next))
}

/// RFC 8489 section 14.7: CRC-32 of the message up to the attribute, XOR-ed with 0x5354554e.
fn fingerprint_matches(bytes: &[u8], offset: usize, value: &[u8]) -> bool {
    value == fingerprint(&bytes[..offset])
}

/// The value of FINGERPRINT behind these bytes, whose header already counts it.
pub(super) fn fingerprint(covered: &[u8]) -> [u8; 4] {
    (crc32fast::hash(covered) ^ 0x5354_554E).to_be_bytes()
}
