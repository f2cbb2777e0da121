//! Attributes of extensions that a server may offer.

use super::attribute::AttributeType;

impl AttributeType {
    /// A transport address of another server (RFC 8489 section 14.15).
    pub const ALTERNATE_SERVER: Self = Self(0x8023);
    /// The name in that server's certificate (RFC 8489 section 14.16).
    pub const ALTERNATE_DOMAIN: Self = Self(0x8003);
}
