//! The 20-byte STUN header (RFC 8489 section 5).

use std::fmt;

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 20;

/// The magic cookie, at bytes 4..8 of every message.
pub const MAGIC_COOKIE: u32 = 0x2112_A442;

/// A method that this server knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Method {
    Binding,
    Allocate,
    Refresh,
    Send,
    Data,
    CreatePermission,
    ChannelBind,
    Connect,
    ConnectionBind,
    ConnectionAttempt,
}

impl Method {
    /// Every method, for tables of counters.
    pub const ALL: [Self; 10] = [
        Self::Binding,
        Self::Allocate,
        Self::Refresh,
        Self::Send,
        Self::Data,
        Self::CreatePermission,
        Self::ChannelBind,
        Self::Connect,
        Self::ConnectionBind,
        Self::ConnectionAttempt,
    ];

    /// The 12-bit code point (RFC 8489 section 18.2, RFC 8656 section 17, RFC 6062 section 6.1).
    pub fn code(self) -> u16 {
        match self {
            Self::Binding => 0x001,
            Self::Allocate => 0x003,
            Self::Refresh => 0x004,
            Self::Send => 0x006,
            Self::Data => 0x007,
            Self::CreatePermission => 0x008,
            Self::ChannelBind => 0x009,
            Self::Connect => 0x00A,
            Self::ConnectionBind => 0x00B,
            Self::ConnectionAttempt => 0x00C,
        }
    }

    /// The RFC's name in lower case, for metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Binding => "binding",
            Self::Allocate => "allocate",
            Self::Refresh => "refresh",
            Self::Send => "send",
            Self::Data => "data",
            Self::CreatePermission => "create_permission",
            Self::ChannelBind => "channel_bind",
            Self::Connect => "connect",
            Self::ConnectionBind => "connection_bind",
            Self::ConnectionAttempt => "connection_attempt",
        }
    }

    fn from_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.code() == code)
    }
}

/// The class of a message (RFC 8489 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    Request,
    Indication,
    Success,
    Error,
}

impl Class {
    fn bits(self) -> u16 {
        match self {
            Self::Request => 0b00,
            Self::Indication => 0b01,
            Self::Success => 0b10,
            Self::Error => 0b11,
        }
    }
}

/// Splits the 14-bit message type into method and class; `None` for a method that is not known here.
///
/// ```text
///  13 12 11 10  9  8  7  6  5  4  3  2  1  0
/// |M11..M7      |C1|M6..M4  |C0|M3..M0      |
/// ```
pub fn split_type(message_type: u16) -> Option<(Method, Class)> {
    let code = (message_type & 0x000F) | ((message_type & 0x00E0) >> 1) | ((message_type & 0x3E00) >> 2);
    let class = match ((message_type >> 8) & 1, (message_type >> 4) & 1) {
        (0, 0) => Class::Request,
        (0, _) => Class::Indication,
        (_, 0) => Class::Success,
        (_, _) => Class::Error,
    };
    Some((Method::from_code(code)?, class))
}

/// Joins method and class into the message type.
pub fn join_type(method: Method, class: Class) -> u16 {
    let (code, bits) = (method.code(), class.bits());
    (code & 0x000F) | ((code & 0x0070) << 1) | ((code & 0x0F80) << 2) | ((bits & 1) << 4) | ((bits >> 1) << 8)
}

/// The 96-bit transaction id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransactionId(pub [u8; 12]);

impl fmt::Debug for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_types_are_the_ones_of_the_rfc() {
        assert_eq!(join_type(Method::Binding, Class::Request), 0x0001);
        assert_eq!(join_type(Method::Binding, Class::Success), 0x0101);
        assert_eq!(join_type(Method::Allocate, Class::Error), 0x0113);
        assert_eq!(join_type(Method::Send, Class::Indication), 0x0016);
        assert_eq!(join_type(Method::Data, Class::Indication), 0x0017);
    }

    #[test]
    fn every_type_splits_into_what_it_was_joined_from() {
        for method in Method::ALL {
            for class in [Class::Request, Class::Indication, Class::Success, Class::Error] {
                assert_eq!(split_type(join_type(method, class)), Some((method, class)));
            }
        }
    }

    #[test]
    fn unknown_methods_are_not_split() {
        assert_eq!(split_type(0x0002), None);
        assert_eq!(split_type(0x3FEF), None);
    }
}
