//! OpaqueString preparation of realms, usernames and passwords (RFC 8265 section 4.2, as RFC 8489 section 9.2 asks).

use std::fmt;

use precis_profiles::OpaqueString;
use precis_profiles::precis_core::Error;
use precis_profiles::precis_core::profile::Profile;

/// Brings a realm, username or password into the form that is compared and hashed.
///
/// Spaces become U+0020 and characters are composed (NFC); case is kept. Fails on what the profile disallows: nothing at
/// all, control characters, unassigned code points.
pub fn opaque_string(text: &str) -> Result<String, PrepareError> {
    if text.is_empty() {
        return Err(PrepareError::Empty);
    }
    match OpaqueString::new().enforce(text) {
        Ok(prepared) => Ok(prepared.into_owned()),
        Err(Error::BadCodepoint(info)) => Err(PrepareError::Disallowed { codepoint: info.cp, position: info.position }),
        Err(Error::Invalid | Error::Unexpected(_)) => Err(PrepareError::Invalid),
    }
}

/// Why a text cannot be a realm, username or password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrepareError {
    Empty,
    /// The code point is disallowed by the profile; `position` counts characters from 0.
    Disallowed {
        codepoint: u32,
        position: usize,
    },
    /// The text as a whole breaks a rule of its script.
    Invalid,
}

impl fmt::Display for PrepareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("is empty"),
            Self::Disallowed { codepoint, position } => {
                write!(f, "has the disallowed character U+{codepoint:04X} as character {}", position + 1)
            }
            Self::Invalid => f.write_str("is not a valid OpaqueString (RFC 8265)"),
        }
    }
}

impl std::error::Error for PrepareError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ascii_stays_as_it_is() {
        assert_eq!(opaque_string("Pa ss:wörd!").unwrap(), "Pa ss:wörd!");
    }

    #[test]
    fn decomposed_and_composed_are_the_same() {
        assert_eq!(opaque_string("cafe\u{301}").unwrap(), opaque_string("caf\u{e9}").unwrap());
    }

    #[test]
    fn the_rfc_5769_username_and_password_are_prepared() {
        let username = "\u{30DE}\u{30C8}\u{30EA}\u{30C3}\u{30AF}\u{30B9}";
        assert_eq!(opaque_string(username).unwrap(), username);
        // RFC 5769 section 2.4 uses SASLprep, which drops U+00AD; OpaqueString refuses it.
        assert_eq!(
            opaque_string("The\u{AD}M\u{AA}tr\u{2168}"),
            Err(PrepareError::Disallowed { codepoint: 0xad, position: 3 })
        );
        assert_eq!(opaque_string("TheM\u{AA}tr\u{2168}").unwrap(), "TheM\u{AA}tr\u{2168}");
    }

    #[test]
    fn unusual_spaces_become_plain_spaces() {
        assert_eq!(opaque_string("a\u{a0}b\u{3000}c").unwrap(), "a b c");
    }

    #[test]
    fn case_is_kept() {
        assert_ne!(opaque_string("Alice").unwrap(), opaque_string("alice").unwrap());
    }

    #[test]
    fn empty_is_refused() {
        assert_eq!(opaque_string(""), Err(PrepareError::Empty));
    }

    #[test]
    fn control_characters_are_refused_by_position() {
        let error = opaque_string("ab\u{7}").unwrap_err();
        assert_eq!(error, PrepareError::Disallowed { codepoint: 7, position: 2 });
        assert_eq!(error.to_string(), "has the disallowed character U+0007 as character 3");
    }
}
