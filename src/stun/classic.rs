//! "Classic STUN": Binding requests as RFC 3489 has them, without magic cookie and with a transaction id of 128 bits.

use super::attribute::{Attribute, AttributeType};
use super::header::{Class, HEADER_LEN, MAGIC_COOKIE, Method, TransactionId, join_type, split_type};
use super::message::{Attributes, ParseError};

impl AttributeType {
    pub const RESPONSE_ADDRESS: Self = Self(0x0002);
    pub const SOURCE_ADDRESS: Self = Self(0x0004);
    pub const CHANGED_ADDRESS: Self = Self(0x0005);
    pub const PASSWORD: Self = Self(0x0007);
    pub const REFLECTED_FROM: Self = Self(0x000B);

    /// Whether RFC 3489 has the type and a Binding request with it can be answered: RESPONSE-ADDRESS is left out, since
    /// it makes a reflector of the server (RFC 5389 section 12.2), and CHANGE-REQUEST is the caller's to judge.
    pub fn is_known_to_classic(self) -> bool {
        matches!(
            self,
            Self::MAPPED_ADDRESS
                | Self::SOURCE_ADDRESS
                | Self::CHANGED_ADDRESS
                | Self::USERNAME
                | Self::PASSWORD
                | Self::MESSAGE_INTEGRITY
                | Self::ERROR_CODE
                | Self::UNKNOWN_ATTRIBUTES
                | Self::REFLECTED_FROM
        )
    }
}

/// The 128-bit transaction id, the place of the magic cookie included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassicId(pub [u8; 16]);

impl ClassicId {
    /// The first four bytes, where others have the magic cookie.
    pub(super) fn head(self) -> [u8; 4] {
        let [a, b, c, d, ..] = self.0;
        [a, b, c, d]
    }

    /// What is behind them.
    pub(super) fn tail(self) -> TransactionId {
        let mut id = [0; 12];
        id.copy_from_slice(&self.0[4..]);
        TransactionId(id)
    }
}

/// A whole, well-formed Binding request without magic cookie.
#[derive(Clone, Copy, Debug)]
pub struct ClassicRequest<'a> {
    bytes: &'a [u8],
}

impl<'a> ClassicRequest<'a> {
    /// Checks header and attribute lengths.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else { return Err(ParseError::NotStun) };
        let [type_high, type_low, len_high, len_low, c0, c1, c2, c3, ..] = *header;
        if type_high & 0xC0 != 0 || [c0, c1, c2, c3] == MAGIC_COOKIE.to_be_bytes() {
            return Err(ParseError::NotStun);
        }
        if u16::from_be_bytes([type_high, type_low]) != join_type(Method::Binding, Class::Request) {
            return Err(ParseError::UnknownMethod);
        }
        let len = usize::from(u16::from_be_bytes([len_high, len_low]));
        if len != rest.len() || len % 4 != 0 {
            return Err(ParseError::Length);
        }
        let request = Self { bytes };
        if !request.attributes().reach(bytes.len()) {
            return Err(ParseError::Attribute);
        }
        Ok(request)
    }

    pub fn id(&self) -> ClassicId {
        let mut id = [0; 16];
        id.copy_from_slice(&self.bytes[4..HEADER_LEN]);
        ClassicId(id)
    }

    /// All attributes in their order.
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes::new(self.bytes)
    }

    /// The first attribute of a type.
    pub fn attribute(&self, kind: AttributeType) -> Option<Attribute<'a>> {
        self.attributes().find(|attribute| attribute.kind == kind)
    }

    /// Whether an attribute of a type is there.
    pub fn has(&self, kind: AttributeType) -> bool {
        self.attribute(kind).is_some()
    }
}

/// The method and the transaction id of a request that is whole but for its magic cookie.
pub fn cookieless_request(bytes: &[u8]) -> Option<(Method, ClassicId)> {
    let (header, rest) = bytes.split_first_chunk::<HEADER_LEN>()?;
    let [type_high, type_low, len_high, len_low, id @ ..] = *header;
    let (method, class) = split_type(u16::from_be_bytes([type_high, type_low]))?;
    let is_whole = usize::from(u16::from_be_bytes([len_high, len_low])) == rest.len() && type_high & 0xC0 == 0;
    let has_cookie = id[..4] == MAGIC_COOKIE.to_be_bytes();
    (class == Class::Request && is_whole && !has_cookie).then_some((method, ClassicId(id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(message_type: u16, id: [u8; 16], attributes: &[u8]) -> Vec<u8> {
        let len = (attributes.len() as u16).to_be_bytes();
        [&message_type.to_be_bytes()[..], &len, &id, attributes].concat()
    }

    #[test]
    fn a_binding_request_without_cookie_is_one() {
        let id = [7; 16];
        let bytes = request(0x0001, id, &[0, 3, 0, 4, 0, 0, 0, 6]);
        let parsed = ClassicRequest::parse(&bytes).unwrap();
        assert_eq!(parsed.id(), ClassicId(id));
        assert!(parsed.attribute(AttributeType::CHANGE_REQUEST).unwrap().as_change_request().unwrap().ip);
        assert!(!parsed.has(AttributeType::USERNAME));
    }

    #[test]
    fn everything_else_is_none() {
        let mut with_cookie = [7; 16];
        with_cookie[..4].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
        let error = |bytes: &[u8]| ClassicRequest::parse(bytes).err();
        assert_eq!(error(&request(0x0001, with_cookie, &[])), Some(ParseError::NotStun));
        assert_eq!(error(&request(0x4001, [7; 16], &[])), Some(ParseError::NotStun));
        for other in [0x0002, 0x0003, 0x0011, 0x0101, 0x0111] {
            assert_eq!(error(&request(other, [7; 16], &[])), Some(ParseError::UnknownMethod), "{other:#x}");
        }
        let whole = request(0x0001, [7; 16], &[0, 3, 0, 4, 0, 0, 0, 6]);
        assert_eq!(error(&whole[..19]), Some(ParseError::NotStun));
        assert_eq!(error(&whole[..24]), Some(ParseError::Length));
        for attributes in [[0, 3, 0, 5, 0, 0, 0, 6], [0, 3, 0, 0, 0, 3, 0, 1]] {
            assert_eq!(error(&request(0x0001, [7; 16], &attributes)), Some(ParseError::Attribute));
        }
    }
}
