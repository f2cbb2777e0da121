//! From coturn's options to a draft of ferryd's configuration.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;

use super::database::Database;
use super::draft::{Alternates, Draft, Password, User};
use super::fixed::{self, Fixed};
use super::lines::{self, Line};
use super::listen;
use super::ranges::{self, Span, Written};
use super::report::{Report, Verdict};
use crate::auth::opaque_string;
use crate::config::{STRENGTH_BITS_MIN, strength_bits};
use crate::turn::settings::Limits;

/// What came of a file.
pub(super) struct Translation {
    pub(super) draft: Draft,
    pub(super) report: Report,
    /// Options that nothing had to be said about.
    pub(super) translated: usize,
}

/// The options of a file; what nobody has asked for in the end has no counterpart.
pub(super) struct Options {
    lines: Vec<Line>,
    asked: Vec<&'static str>,
}

impl Options {
    /// Every line of an option.
    pub(super) fn all(&mut self, name: &'static str) -> Vec<Line> {
        self.asked.push(name);
        self.lines.iter().filter(|line| line.name == name).cloned().collect()
    }

    /// The line that counts where only one does: the last.
    pub(super) fn last(&mut self, name: &'static str) -> Option<Line> {
        self.all(name).pop()
    }

    /// Whether a switch is on.
    pub(super) fn truth(&mut self, name: &'static str, report: &mut Report) -> bool {
        let Some(line) = self.last(name) else { return false };
        line.truth().unwrap_or_else(|| {
            report.add_once(
                Verdict::Decide,
                &line,
                "is neither on nor off: coturn does not start with it; it counts as off",
            );
            false
        })
    }

    /// A number; one out of the range is reported and not used.
    pub(super) fn number(
        &mut self,
        name: &'static str,
        range: RangeInclusive<u64>,
        report: &mut Report,
    ) -> Option<u64> {
        let line = self.last(name)?;
        let number = line.number_value().filter(|number| range.contains(number));
        if number.is_none() {
            let words = format!("expected a number from {} to {}; the default stands in", range.start(), range.end());
            report.add_once(Verdict::Decide, &line, words);
        }
        number
    }
}

/// Translates the text of a turnserver.conf that lies in `directory`.
pub(super) fn translate(text: &str, directory: Option<&Path>) -> Translation {
    let (mut draft, mut report) = (Draft::default(), Report::default());
    let (lines, foreign): (Vec<_>, Vec<_>) = lines::read(text).into_iter().partition(is_readable);
    for line in &foreign {
        report.add(Verdict::Decide, line, "is not UTF-8, and left out");
    }
    let count = lines.len() + foreign.len();
    let mut options = Options { lines, asked: Vec::new() };
    translate_realm(&mut options, &mut draft, &mut report);
    listen::translate(&mut options, directory, &mut draft, &mut report);
    translate_relay(&mut options, &mut draft, &mut report);
    translate_credentials(&mut options, &mut draft, &mut report);
    translate_third_party(&mut options, &mut report);
    translate_peers(&mut options, &mut draft, &mut report);
    translate_redirect(&mut options, &mut draft, &mut report);
    translate_rest(&mut options, &mut draft, &mut report);
    report_the_others(&options, &mut report);
    let mut told: Vec<usize> = report.findings.iter().filter_map(|finding| finding.line).collect();
    told.sort_unstable();
    told.dedup();
    Translation { draft, report, translated: count - told.len() }
}

fn is_readable(line: &Line) -> bool {
    !line.name.contains(char::REPLACEMENT_CHARACTER) && !line.value.contains(char::REPLACEMENT_CHARACTER)
}

/// What is left: switched off, kept anyway, left out with a reason, or no option of coturn.
fn report_the_others(options: &Options, report: &mut Report) {
    for line in options.lines.iter().filter(|line| !options.asked.contains(&line.name.as_str())) {
        let is_off = ["0", "off", "no", "false"].iter().any(|word| line.value.eq_ignore_ascii_case(word));
        match fixed::find(&line.name) {
            Some(Fixed::Anyway) => {}
            Some(Fixed::LeftOut(..)) if is_off => {}
            Some(Fixed::LeftOut(verdict, words)) => report.add(verdict, line, words),
            None => {
                let known = options.asked.iter().copied().chain(fixed::names());
                let near = known.map(|name| (strsim::damerau_levenshtein(name, &line.name), name)).min();
                // Two letters of a short name are all of it.
                let near = near.filter(|(distance, name)| *distance <= 2 && distance * 3 <= name.len());
                let meant = near.map_or_else(String::new, |(_, name)| format!("; {name} was meant?"));
                report.add(Verdict::Unknown, line, format!("is no option of coturn, which went on without it{meant}"));
            }
        }
    }
}

/// RFC 8489 section 14.9: "fewer than 128 characters".
const REALM_CHARACTERS_MAX: usize = 127;

fn translate_realm(options: &mut Options, draft: &mut Draft, report: &mut Report) {
    let Some(line) = options.last("realm").filter(|line| !line.value.is_empty()) else { return };
    let is_short = line.value.chars().count() <= REALM_CHARACTERS_MAX;
    match opaque_string(&line.value) {
        Ok(realm) if is_short => draft.realm = Some(realm),
        Ok(_) => report.add(Verdict::Decide, &line, "has more than 127 characters (RFC 8489); ferryd's own stands in"),
        Err(error) => report.add(Verdict::Decide, &line, format!("{error}; ferryd's own stands in")),
    }
}

/// RFC 8656 section 7.2: an hour at most is what ferryd grants; its default is 10 minutes.
const LIFETIME_MAX: u64 = 3600;
const LIFETIME_DEFAULT: u64 = 600;
/// Of both, where no port is named.
const PORT_MIN: u64 = 49152;

fn translate_relay(options: &mut Options, draft: &mut Draft, report: &mut Report) {
    let min = options.number("min-port", 1..=65535, report);
    let max = options.number("max-port", 1..=65535, report);
    if let Some(line) = options.last("min-port").filter(|_| min.is_some_and(|port| port < 1024)) {
        report.add(Verdict::Safer, &line, "relayed addresses have no port below 1024, which peers take for a service");
    }
    let min = min.map(|port| port.max(1024));
    let max = max.map(|port| port.max(1024));
    // A range that ends below ferryd's own begin has nothing but its end.
    let min = min.or_else(|| max.filter(|max| *max < PORT_MIN).map(|_| 1024));
    if min.unwrap_or(PORT_MIN) > max.unwrap_or(65535) {
        report.add_absent(Verdict::Decide, "min-port, max-port", "the range is empty; the default stands in");
    } else {
        (draft.port_min, draft.port_max) = (min, max);
    }
    if let Some(lifetime) = options.number("max-allocate-lifetime", 1..=u32::MAX.into(), report) {
        draft.lifetime_max = Some(lifetime.min(LIFETIME_MAX));
        draft.lifetime_default = Some(lifetime.min(LIFETIME_DEFAULT));
        if let Some(line) = options.last("max-allocate-lifetime").filter(|_| lifetime > LIFETIME_MAX) {
            report.add(Verdict::Safer, &line, "an hour is the most that is granted; clients refresh");
        }
    }
    if let Some(threads) = options.number("relay-threads", 0..=1024, report) {
        draft.workers = Some(threads.clamp(1, 256));
    }
    draft.mobility = options.truth("mobility", report);
}

fn translate_credentials(options: &mut Options, draft: &mut Draft, report: &mut Report) {
    let files = [options.last("db"), options.last("userdb")].into_iter().flatten().max_by_key(|line| line.number);
    let database = Database::new(files.as_ref().map(|line| line.value.as_str()), draft.realm.as_deref());
    let secrets = options.all("static-auth-secret");
    let uses_secrets = options.last("use-auth-secret").is_some() || !secrets.is_empty();
    for line in &secrets {
        if line.value.is_empty() {
            report.add(Verdict::Decide, line, "is empty, and left out");
            continue;
        }
        if strength_bits(&line.value) < STRENGTH_BITS_MIN {
            let words =
                "may be guessed by whoever holds a credential made from it: roll over to `openssl rand -base64 18`";
            report.add(Verdict::Decide, line, words);
        }
        if !draft.shared_secrets.contains(&line.value) {
            draft.shared_secrets.push(line.value.clone());
        }
    }
    if let Some(line) = options.last("use-auth-secret").filter(|_| draft.shared_secrets.is_empty()) {
        let words = format!("{}; until then ferryd makes a secret of its own", database.secrets());
        report.add(Verdict::Decide, &line, format!("the secrets are in the database: {words}"));
    }
    if let Some(line) = options.last("rest-api-separator").filter(|line| !line.value.starts_with(':')) {
        let words = "usernames are `expiry:name`: let the application that mints them write a colon";
        report.add(Verdict::Decide, &line, words);
    }
    let mut users = options.all("user");
    if uses_secrets {
        for line in users.drain(..) {
            report.add(Verdict::Safer, &line, "coturn ignores users beside a shared secret, and so they are left out");
        }
    }
    for line in &users {
        translate_user(line, draft, report);
    }
    if let Some(line) = options.last("no-auth").filter(|line| line.truth() == Some(true)) {
        let has_credentials = !draft.users.is_empty() || !draft.shared_secrets.is_empty();
        let words = if has_credentials { "nobody relays without a credential" } else { NOBODY };
        report.add(Verdict::Safer, &line, format!("refused: {words}"));
    } else if !uses_secrets && users.is_empty() {
        let words = format!("no user and no secret is in this file: {NOBODY}");
        let in_database = files.is_none().then(|| format!(". Users in coturn's database: {}", database.users()));
        report.add_absent(Verdict::Safer, "lt-cred-mech", words + &in_database.unwrap_or_default());
    }
    if let Some(line) = files {
        let words = if uses_secrets { database.secrets() } else { database.users() };
        let whose = if uses_secrets { "secrets" } else { "users" };
        report.add(Verdict::Decide, &line, format!("ferryd reads no database. If it has {whose}, {words}"));
    }
    translate_nonces(options, draft, report);
}

const NOBODY: &str = "nobody relays without a credential. ferryd makes a secret at its first start, \
                      and `ferryd credential` mints users from it";

fn translate_user(line: &Line, draft: &mut Draft, report: &mut Report) {
    let Some((name, password)) = line.value.split_once(':') else {
        report.add(Verdict::Decide, line, "has no colon between name and password, and is left out");
        return;
    };
    let Ok(name) = opaque_string(name.trim()) else {
        report.add(Verdict::Decide, line, "the name is no OpaqueString (RFC 8265), and the user is left out");
        return;
    };
    if draft.users.iter().any(|user| user.name == name) {
        report.add(Verdict::Decide, line, format!("\"{name}\" stands there already, and is left out"));
        return;
    }
    let digits = password.strip_prefix("0x");
    if let Some(digits) = digits {
        let is_md5 = digits.len() == 32 && digits.chars().all(|digit| digit.is_ascii_hexdigit());
        if !is_md5 {
            report.add(Verdict::Decide, line, format!("\"{name}\" has a key that is no MD5, and is left out"));
        } else if draft.realm.is_none() {
            let words = "has a key, which is of one realm, and no realm is in this file: name it, or set a password";
            report.add(Verdict::Decide, line, format!("\"{name}\" {words}"));
        } else {
            draft.users.push(User { name, password: Password::Key(digits.to_ascii_lowercase()) });
        }
        return;
    }
    match opaque_string(password) {
        Ok(password) if strength_bits(&password) >= STRENGTH_BITS_MIN => {
            draft.users.push(User { name, password: Password::Plain(password) });
        }
        Ok(password) => {
            let bits = strength_bits(&password);
            let words = format!(
                "\"{name}\" is left out: its password has an estimated {bits} bits, and anyone may guess. Give it one of \
                 `openssl rand -base64 18`, or use time-limited users"
            );
            report.add(Verdict::Safer, line, words);
        }
        Err(_) => report.add(Verdict::Decide, line, format!("\"{name}\" has no OpaqueString (RFC 8265) as password")),
    }
}

fn translate_nonces(options: &mut Options, draft: &mut Draft, report: &mut Report) {
    let Some(line) = options.last("stale-nonce") else { return };
    match line.number_value() {
        // coturn's own when the option stands alone.
        None if line.value.is_empty() => draft.nonce_lifetime = Some(600),
        Some(seconds @ 60..=3600) => draft.nonce_lifetime = Some(seconds),
        Some(0) => report.add(Verdict::Safer, &line, "nonces end after an hour at the latest (RFC 8656)"),
        Some(1..60) => {
            draft.nonce_lifetime = Some(60);
            report.add(Verdict::Decide, &line, "nonces live for a minute at least: 438 ends a call of Chrome");
        }
        Some(_) => report.add(Verdict::Safer, &line, "nonces end after an hour at the latest (RFC 8656)"),
        None => report.add(Verdict::Decide, &line, "is no number of seconds; an hour stands in"),
    }
}

fn translate_third_party(options: &mut Options, report: &mut Report) {
    let name = options.last("server-name");
    match options.last("oauth").filter(|line| line.truth() == Some(true)) {
        Some(line) => report.add(
            Verdict::Decide,
            &line,
            "the keys are in the database (table oauth_key): auth.third-party takes server-name and the keys by kid; until \
             then no token is accepted",
        ),
        None => {
            if let Some(name) = name {
                report.add(Verdict::Dropped, &name, "is the name that tokens are made for, and oauth is off");
            }
        }
    }
}

fn translate_peers(options: &mut Options, draft: &mut Draft, report: &mut Report) {
    let mut spans = |name: &'static str, report: &mut Report| -> Vec<Span> {
        let mut spans = Vec::new();
        for line in options.all(name) {
            match ranges::parse(&line.value) {
                Some(Written::ForCoturn(span)) => spans.push(span),
                Some(Written::AsCidr(span)) if name == "denied-peer-ip" => {
                    report.add(
                        Verdict::Safer,
                        &line,
                        "coturn knows no CIDR and did not refuse these peers; now they are",
                    );
                    spans.push(span);
                }
                Some(Written::AsCidr(_)) => {
                    let words = "coturn knows no CIDR and went on without it: if it is meant, add it to peers.allow";
                    report.add(Verdict::Decide, &line, words);
                }
                None => report.add(Verdict::Decide, &line, "is no address and no range a-b, and is left out"),
            }
            if let Some(Written::ForCoturn(span)) = ranges::parse(&line.value).filter(|_| name == "allowed-peer-ip") {
                if Span::never_opened().iter().any(|closed| closed.overlaps(span)) {
                    report.add(
                        Verdict::Safer,
                        &line,
                        "loopback and group addresses in it stay closed, as coturn had them",
                    );
                }
                if Span::private().iter().any(|private| private.overlaps(span)) {
                    let words =
                        "clients reach private addresses in it, as they did before: leave no more open than is meant";
                    report.add(Verdict::Decide, &line, words);
                }
            }
        }
        spans
    };
    let allowed = spans("allowed-peer-ip", report);
    let denied = spans("denied-peer-ip", report);
    // coturn lets an address pass that is in both; ferryd refuses it.
    draft.deny = ranges::nets(&ranges::subtract(denied, &allowed));
    draft.allow = ranges::nets(&ranges::subtract(allowed, &Span::never_opened()));
    let words = "private and other special-purpose addresses that peers.allow does not name, and this host itself, are \
                 refused as peers; coturn relays to all of them but loopback";
    report.add_absent(Verdict::Safer, "peers", words);
}

fn translate_redirect(options: &mut Options, draft: &mut Draft, report: &mut Report) {
    let groups: [(&'static str, u16, &[&'static str]); 2] =
        [("alternate-server", 3478, &["udp", "tcp"]), ("tls-alternate-server", 5349, &["tls"])];
    for (name, default_port, transports) in groups {
        let mut first = Alternates::default();
        for line in options.all(name) {
            let Some(address) = parse_server(&line.value, default_port) else {
                report.add(Verdict::Decide, &line, "is no IP address with a port; names are not looked up");
                continue;
            };
            let place = if address.is_ipv4() { &mut first.v4 } else { &mut first.v6 };
            if place.is_some() {
                let words = "one server of each family is redirected to; give clients several servers to share a load";
                report.add(Verdict::Decide, &line, words);
            } else {
                *place = Some(address);
            }
        }
        if first != Alternates::default() {
            let of = |transport: &&'static str| (*transport, Alternates { v4: first.v4, v6: first.v6 });
            draft.redirect.extend(transports.iter().map(of));
        }
    }
}

fn parse_server(text: &str, default_port: u16) -> Option<SocketAddr> {
    let alone = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let alone = alone.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, default_port));
    alone.or_else(|| text.parse().ok())
}

fn translate_rest(options: &mut Options, draft: &mut Draft, report: &mut Report) {
    let counts = 0..=u64::from(u32::MAX);
    // 0 is no limit, to both.
    draft.allocations_total = options.number("total-quota", counts.clone(), report);
    draft.allocations_per_user = options.number("user-quota", counts.clone(), report);
    if draft.allocations_per_user.is_none() && !draft.shared_secrets.is_empty() {
        let words = format!(
            "a name that a shared secret made a credential for has {} allocations at a time; where one name stands for \
             many clients raise limits.allocations-per-user, 0 being no limit",
            Limits::default().allocations_per_user
        );
        report.add_absent(Verdict::Safer, "user-quota", words);
    }
    draft.allocation_bytes_per_second = options.number("max-bps", counts, report).filter(|bytes| *bytes > 0);
    let address = options.last("prometheus-address");
    let port = options.number("prometheus-port", 1..=65535, report).unwrap_or(9641);
    if let Some(line) = options.last("prometheus") {
        let named = address.as_ref().and_then(|line| line.value.parse::<IpAddr>().ok());
        if named.is_none() {
            report.add(Verdict::Safer, &line, "the page is served on 127.0.0.1 alone; metrics.address opens it");
        }
        if let Some(line) = address.filter(|_| named.is_none()) {
            report.add(Verdict::Decide, &line, "is no IP address");
        }
        // The range of the number is that of a port.
        draft.metrics =
            u16::try_from(port).ok().map(|port| SocketAddr::new(named.unwrap_or([127, 0, 0, 1].into()), port));
    }
    if let Some(line) = options.last("prometheus-path").filter(|line| line.value != "/metrics") {
        report.add(Verdict::Decide, &line, "the page is at /metrics");
    }
    if options.truth("Verbose", report) {
        draft.log_level = Some("debug");
    }
    draft.rfc3489 = options.truth("stun-backward-compatibility", report);
}
