//! REALM, NONCE and PASSWORD-ALGORITHMS of 401 and 438 answers.

use super::nonce::{Features, NONCE_LEN};
use crate::address::Family;
use crate::stun::{AttributeType, Builder, Message, header, message};

/// What a client needs to authenticate its next request.
#[derive(Clone, Copy, Debug)]
pub struct Challenge<'a> {
    pub(super) realm: &'a str,
    pub(super) nonce: [u8; NONCE_LEN],
    pub(super) features: Features,
    pub(super) offer: &'static [u8],
    /// The name that tokens are to be made for, where third parties authorize.
    pub(super) third_party: Option<&'a str>,
}

impl Challenge<'_> {
    /// Appends the attributes.
    pub fn write(&self, builder: &mut Builder<'_>) {
        builder.attribute(AttributeType::REALM, self.realm.as_bytes()).attribute(AttributeType::NONCE, &self.nonce);
        if self.features.password_algorithms {
            builder.attribute(AttributeType::PASSWORD_ALGORITHMS, self.offer);
        }
        if let Some(name) = self.third_party {
            builder.attribute(AttributeType::THIRD_PARTY_AUTHORIZATION, name.as_bytes());
        }
    }

    /// Whether a 401 with PASSWORD-ALGORITHMS is at most twice as long as the request, IP and UDP headers counted.
    ///
    /// Chrome's first Allocate has 28 bytes: 56 with its IPv4 headers, so the answer may have 84. The challenge of a
    /// realm of up to 12 bytes does.
    pub(super) fn fits_with_algorithms(
        realm: &str,
        third_party: Option<&str>,
        offer: &[u8],
        request: &Message<'_>,
        family: Family,
    ) -> bool {
        let attribute = |len: usize| message::ATTRIBUTE_HEADER_LEN + len.next_multiple_of(4);
        let error_code = attribute(4);
        let fingerprint = if request.has_fingerprint() { attribute(4) } else { 0 };
        let answer = header::HEADER_LEN
            + error_code
            + attribute(realm.len())
            + attribute(NONCE_LEN)
            + attribute(offer.len())
            + third_party.map_or(0, |name| attribute(name.len()))
            + fingerprint;
        answer <= unproved_answer_len_max(request.len(), family)
    }
}

/// How long the answer to a request over UDP may be whose source has proved nothing: at most twice the request, IP and
/// UDP headers counted, so that a forged source gains little.
pub fn unproved_answer_len_max(request_len: usize, family: Family) -> usize {
    2 * request_len + family.udp_headers_len()
}
