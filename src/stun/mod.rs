//! RFC 8489 on the wire: messages, attributes, integrity, ChannelData headers and stream framing.
//!
//! Input is looked at through checked views ([`Message`], [`ChannelData`]): after `parse` no accessor panics. Output is
//! written by [`Builder`]. Nothing here keeps state.

pub mod attribute;
pub mod builder;
pub mod channel_data;
pub mod classic;
pub mod error_code;
pub mod extensions;
pub mod framing;
pub mod header;
pub mod integrity;
pub mod message;
pub mod nat_behavior;

pub use attribute::AttributeType;
pub use builder::Builder;
pub use channel_data::ChannelData;
pub use error_code::ErrorCode;
pub use header::{Class, Method, TransactionId};
pub use message::Message;

#[cfg(test)]
mod tests;
