//! Texts of the configuration that stand for durations, address ranges and tokens.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::problem::{At, Report};
use super::section::Entry;
use crate::web::Token;

/// Parses `90s`, `10m`, `1h`, `2d` or a number of seconds.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let seconds_per_unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return None,
    };
    let number: u64 = digits.trim_end().parse().ok()?;
    number.checked_mul(seconds_per_unit).map(Duration::from_secs)
}

/// The shortest way to write a duration of whole seconds.
pub fn duration_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    for (unit, name) in [(86400, "d"), (3600, "h"), (60, "m")] {
        if seconds >= unit && seconds.is_multiple_of(unit) {
            return format!("{}{name}", seconds / unit);
        }
    }
    format!("{seconds}s")
}

/// Reads a file that holds a token and nothing else.
pub(super) fn read_token(entry: &Entry<PathBuf>, report: &mut Report) -> Option<Token> {
    match fs::read_to_string(&entry.value).map(|text| Token::parse(&text)) {
        Ok(Some(token)) => Some(token),
        Ok(None) => {
            let remedy = "write the token alone into the file";
            report.problem(entry.at.problem("the file holds no token", "one line of visible ASCII", remedy));
            None
        }
        Err(error) => {
            let words = format!("{} cannot be read ({error})", entry.value.display());
            report.problem(entry.at.problem(words, "a file with a token", "name a file that ferryd's user may read"));
            None
        }
    }
}

/// Reports a web service that cannot be trusted: its authorities where they are named, else that the system has none.
pub(super) fn report_distrust(url: &At, authorities: Option<&Entry<PathBuf>>, error: &io::Error, report: &mut Report) {
    report.problem(match authorities {
        Some(file) => file.at.problem(
            format!("{} cannot be used ({error})", file.value.display()),
            "a PEM file with the certificate of an authority",
            "check the path and that the user ferryd runs as may read it",
        ),
        None => url.problem(
            format!("cannot be asked: {error}"),
            "a service that can be trusted",
            "install the package ca-certificates, or name the authority of the service's certificate",
        ),
    });
}

/// Why a text is not a range of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RangeError {
    NotARange,
    /// The address has bits that the mask does not cover; the range it lies in.
    HostBits(IpNet),
}

/// Parses a CIDR range; a plain address is the range of itself.
pub(super) fn parse_range(text: &str) -> Result<IpNet, RangeError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address));
    }
    let range: IpNet = text.parse().map_err(|_| RangeError::NotARange)?;
    if range.trunc() == range { Ok(range) } else { Err(RangeError::HostBits(range.trunc())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        let seconds = |text| parse_duration(text).map(|duration| duration.as_secs());
        assert_eq!(seconds("90"), Some(90));
        assert_eq!(seconds("90s"), Some(90));
        assert_eq!(seconds("10m"), Some(600));
        assert_eq!(seconds("1 h"), Some(3600));
        assert_eq!(seconds("2d"), Some(172_800));
        for bad in ["", "m", "10x", "-1s", "1.5h", "99999999999999999999s", "99999999999999999d"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn durations_are_written_as_they_are_read() {
        for text in ["1s", "90s", "10m", "1h", "36h", "2d"] {
            assert_eq!(duration_words(parse_duration(text).unwrap()), text);
        }
    }

    #[test]
    fn ranges_take_plain_addresses() {
        assert_eq!(parse_range("10.0.0.1").unwrap().to_string(), "10.0.0.1/32");
        assert_eq!(parse_range("2001:db8::1").unwrap().to_string(), "2001:db8::1/128");
        assert_eq!(parse_range("10.0.0.0/8").unwrap().to_string(), "10.0.0.0/8");
    }

    #[test]
    fn ranges_with_host_bits_are_told_apart() {
        assert_eq!(parse_range("10.0.0.5/8"), Err(RangeError::HostBits("10.0.0.0/8".parse().unwrap())));
        assert_eq!(parse_range("10.0.0.0/33"), Err(RangeError::NotARange));
        assert_eq!(parse_range("intranet"), Err(RangeError::NotARange));
    }
}
