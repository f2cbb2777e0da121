//! Attributes of extensions that a server may offer.

use super::attribute::AttributeType;

impl AttributeType {
    /// A transport address of another server (RFC 8489 section 14.15).
    pub const ALTERNATE_SERVER: Self = Self(0x8023);
    /// The name in that server's certificate (RFC 8489 section 14.16).
    pub const ALTERNATE_DOMAIN: Self = Self(0x8003);
    /// Leads a client to its allocation from another 5-tuple (RFC 8016 section 3.3).
    pub const MOBILITY_TICKET: Self = Self(0x8030);
    /// The name that a token is to be made for (RFC 7635 section 6.1).
    pub const THIRD_PARTY_AUTHORIZATION: Self = Self(0x802E);
    /// A token (RFC 7635 section 6.2). Known only where third parties authorize.
    pub const ACCESS_TOKEN: Self = Self(0x001B);
    /// Names a connection to a peer (RFC 6062 section 6.2.1). Known only where TCP allocations are offered.
    pub const CONNECTION_ID: Self = Self(0x002A);
}
