//! RFC 8489 on the wire.
