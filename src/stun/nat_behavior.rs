//! The attributes of NAT Behavior Discovery (RFC 5780 section 7).

use super::attribute::{Attribute, AttributeType};

impl AttributeType {
    pub const CHANGE_REQUEST: Self = Self(0x0003);
    pub const PADDING: Self = Self(0x0026);
    pub const RESPONSE_PORT: Self = Self(0x0027);
    pub const RESPONSE_ORIGIN: Self = Self(0x802B);
    pub const OTHER_ADDRESS: Self = Self(0x802C);

    /// Whether the type is one that Binding requests have where NAT Behavior Discovery is offered.
    pub fn is_nat_behavior(self) -> bool {
        matches!(self, Self::CHANGE_REQUEST | Self::PADDING | Self::RESPONSE_PORT)
    }
}

/// The flags of CHANGE-REQUEST (RFC 5780 section 7.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Answer from the other address.
    pub ip: bool,
    /// Answer from the other port.
    pub port: bool,
}

impl Change {
    /// Answer from where the request arrived.
    pub const NONE: Self = Self { ip: false, port: false };
}

impl Attribute<'_> {
    /// CHANGE-REQUEST; `None` for another length.
    pub fn as_change_request(&self) -> Option<Change> {
        let flags = self.as_u32()?;
        Some(Change { ip: flags & 0b100 != 0, port: flags & 0b010 != 0 })
    }

    /// RESPONSE-PORT (RFC 5780 section 7.5): "a 16-bit unsigned integer in network byte order followed by 2 bytes of
    /// padding", which some count to the value and others not.
    pub fn as_response_port(&self) -> Option<u16> {
        let ([high, low] | [high, low, _, _]) = *self.value else { return None };
        Some(u16::from_be_bytes([high, low]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_of_change_request_are_its_second_and_third_bit() {
        let change = |value| Attribute { kind: AttributeType::CHANGE_REQUEST, value }.as_change_request();
        assert_eq!(change(&[0, 0, 0, 0]), Some(Change::NONE));
        assert_eq!(change(&[0, 0, 0, 4]), Some(Change { ip: true, port: false }));
        assert_eq!(change(&[0, 0, 0, 2]), Some(Change { ip: false, port: true }));
        assert_eq!(change(&[0xFF, 0xFF, 0xFF, 0xFF]), Some(Change { ip: true, port: true }));
        assert_eq!((change(&[]), change(&[6]), change(&[0, 0, 0, 6, 0])), (None, None, None));
    }

    #[test]
    fn response_port_may_count_its_padding() {
        let port = |value| Attribute { kind: AttributeType::RESPONSE_PORT, value }.as_response_port();
        assert_eq!((port(&[0x1F, 0x90]), port(&[0x1F, 0x90, 7, 7])), (Some(8080), Some(8080)));
        assert_eq!((port(&[]), port(&[1]), port(&[1, 2, 3])), (None, None, None));
    }
}
