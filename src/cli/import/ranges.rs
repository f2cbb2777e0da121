//! Address ranges of coturn (`a-b`, both included) and what is left of one after others are taken out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

/// Addresses of one family, from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Span {
    V4(u32, u32),
    V6(u128, u128),
}

/// How a range was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// `a` or `a-b`.
    ForCoturn(Span),
    /// `a/n`, which coturn 4.6 refuses and goes on without.
    AsCidr(Span),
}

impl Span {
    /// The addresses that a configuration never opens: this host, this network and groups.
    ///
    /// coturn refuses them whatever its lists say.
    pub(super) fn never_opened() -> Vec<Self> {
        ["0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3", "::/127", "ff00::/8"]
            .iter()
            .map(|range| of_constant(range))
            .collect()
    }

    /// Private, link-local and shared addresses.
    pub(super) fn private() -> Vec<Self> {
        let ranges = [
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "169.254.0.0/16",
            "100.64.0.0/10",
            "fc00::/7",
            "fe80::/10",
        ];
        ranges.iter().map(|range| of_constant(range)).collect()
    }

    fn of_net(net: IpNet) -> Self {
        match net {
            IpNet::V4(net) => Self::V4(net.network().to_bits(), net.broadcast().to_bits()),
            IpNet::V6(net) => Self::V6(net.network().to_bits(), net.broadcast().to_bits()),
        }
    }

    pub(super) fn overlaps(self, other: Self) -> bool {
        match (self, other) {
            (Self::V4(first, last), Self::V4(from, to)) => first <= to && from <= last,
            (Self::V6(first, last), Self::V6(from, to)) => first <= to && from <= last,
            (Self::V4(..), Self::V6(..)) | (Self::V6(..), Self::V4(..)) => false,
        }
    }

    /// What is before and behind the other.
    fn without(self, other: Self) -> Vec<Self> {
        if !self.overlaps(other) {
            return vec![self];
        }
        let parts = match (self, other) {
            (Self::V4(first, last), Self::V4(from, to)) => {
                [(first < from).then(|| Self::V4(first, from - 1)), (to < last).then(|| Self::V4(to + 1, last))]
            }
            (Self::V6(first, last), Self::V6(from, to)) => {
                [(first < from).then(|| Self::V6(first, from - 1)), (to < last).then(|| Self::V6(to + 1, last))]
            }
            (Self::V4(..), Self::V6(..)) | (Self::V6(..), Self::V4(..)) => [Some(self), None],
        };
        parts.into_iter().flatten().collect()
    }

    /// The fewest CIDR ranges that are the same addresses.
    fn nets(self) -> Vec<IpNet> {
        match self {
            Self::V4(first, last) => {
                Ipv4Subnets::new(Ipv4Addr::from_bits(first), Ipv4Addr::from_bits(last), 0).map(IpNet::V4).collect()
            }
            Self::V6(first, last) => {
                Ipv6Subnets::new(Ipv6Addr::from_bits(first), Ipv6Addr::from_bits(last), 0).map(IpNet::V6).collect()
            }
        }
    }
}

fn of_constant(range: &str) -> Span {
    Span::of_net(range.parse().expect("the constants of this file are ranges"))
}

/// Parses `a`, `a-b` or `a/n`.
pub(super) fn parse(text: &str) -> Option<Written> {
    if text.contains('/') {
        return text.parse::<IpNet>().ok().map(|net| Written::AsCidr(Span::of_net(net.trunc())));
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let span = match (first.trim().parse().ok()?, last.trim().parse().ok()?) {
        (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => Span::V4(first.to_bits(), last.to_bits()),
        (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => Span::V6(first.to_bits(), last.to_bits()),
        (IpAddr::V4(_) | IpAddr::V6(_), IpAddr::V4(_) | IpAddr::V6(_)) => return None,
    };
    Some(Written::ForCoturn(span))
}

/// The spans without the addresses of others.
pub(super) fn subtract(spans: Vec<Span>, others: &[Span]) -> Vec<Span> {
    others.iter().fold(spans, |left, other| left.into_iter().flat_map(|span| span.without(*other)).collect())
}

/// The spans as CIDR ranges, sorted, each once.
pub(super) fn nets(spans: &[Span]) -> Vec<IpNet> {
    IpNet::aggregate(&spans.iter().flat_map(|span| span.nets()).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn span(text: &str) -> Span {
        match parse(text).unwrap() {
            Written::ForCoturn(span) | Written::AsCidr(span) => span,
        }
    }

    fn words(spans: &[Span]) -> Vec<String> {
        nets(spans).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ranges_become_the_fewest_cidr_ranges() {
        assert_eq!(words(&[span("83.166.64.0-83.166.95.255")]), ["83.166.64.0/19"]);
        assert_eq!(words(&[span("10.0.0.1-10.0.0.6")]), ["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/31", "10.0.0.6/32"]);
        assert_eq!(words(&[span("0.0.0.0-255.255.255.255")]), ["0.0.0.0/0"]);
        assert_eq!(words(&[span("192.0.2.1")]), ["192.0.2.1/32"]);
        assert_eq!(words(&[span("::1")]), ["::1/128"]);
        assert_eq!(words(&[span("2001:db8::-2001:db8::ffff")]), ["2001:db8::/112"]);
        assert_eq!(words(&[span("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")]), ["::/0"]);
    }

    #[test]
    fn what_is_no_range_is_none() {
        for text in ["", "a", "10.0.0.2-10.0.0.1", "10.0.0.1-::1", "10.0.0.0/33", "1.2.3", "-", "1.2.3.4-"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert!(matches!(parse("10.0.0.0/8"), Some(Written::AsCidr(_))));
    }

    #[test]
    fn an_exception_is_taken_out_of_what_is_denied() {
        let left = subtract(vec![span("83.166.68.40-83.166.68.47")], &[span("83.166.68.45")]);
        assert_eq!(words(&left), ["83.166.68.40/30", "83.166.68.44/32", "83.166.68.46/31"]);
        assert_eq!(subtract(vec![span("10.0.0.0-10.0.0.9")], &[span("10.0.0.0-10.0.0.255")]), []);
    }

    proptest! {
        #[test]
        fn the_difference_holds_what_is_in_one_and_not_in_the_other(
            a in any::<[u8; 2]>(), b in prop::collection::vec(any::<[u8; 2]>(), 0..4),
        ) {
            let range = |ends: [u8; 2]| Span::V4(ends[0].min(ends[1]).into(), ends[0].max(ends[1]).into());
            let others: Vec<Span> = b.iter().map(|ends| range(*ends)).collect();
            let found = nets(&subtract(vec![range(a)], &others));
            for address in 0..=256_u32 {
                let point = Span::V4(address, address);
                let expected = range(a).overlaps(point) && !others.iter().any(|other| other.overlaps(point));
                let ip = IpAddr::V4(Ipv4Addr::from_bits(address));
                prop_assert_eq!(found.iter().any(|net| net.contains(&ip)), expected, "{}", address);
            }
        }
    }
}
