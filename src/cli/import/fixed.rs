//! Options of coturn that need no reading: what ferryd does anyway, and what it has no counterpart for, with the reason.

use super::report::Verdict;

/// What ferryd does without being told.
const ANYWAY: [&str; 18] = [
    "lt-cred-mech",
    "no-auth-pings",
    "no-cli",
    "no-dynamic-ip-list",
    "no-dynamic-realms",
    "no-http",
    "no-loopback-peers",
    "no-multicast-peers",
    "no-rfc5780",
    "no-software-attribute",
    "no-stdout-log",
    "no-stun-backward-compatibility",
    "no-tcp-relay",
    "no-tlsv1",
    "no-tlsv1_1",
    "response-origin-only-with-rfc5780",
    "new-log-timestamp",
    "verbose",
];

const DATABASE: &str = "ferryd reads no database: name and hmackey of turnusers_lt go into [[auth.user]] as name and \
    key, where the realm is the one of this file; the secrets of turn_secret into auth.shared-secrets";
const CLI: &str = "there is no telnet interface; `ferryd --help` lists the verbs";
const WEB: &str = "there are no web pages to administer it";
const LOGS: &str =
    "the log goes to standard error, which systemd keeps in the journal; log.level and log.format change it";
const SERVICE: &str = "systemd does this: systemd/ferryd.service has the user, and starts, watches and stops it";
const CIPHERS: &str = "TLS 1.2 and 1.3 with rustls's ciphers alone, all of them with forward secrecy";
const DEVICE: &str = "sockets are bound to addresses: listener and relay.addresses name them";
const FIXED_TIME: &str = "RFC 8656 fixes it, and clients count on that";
const BALANCE: &str = "one packet loop for each core shares every listener already";

/// What is left out of the result, how it is told, and why.
const LEFT_OUT: [(&str, Verdict, &str); 56] = [
    ("CA-file", Verdict::Decide, "clients are not asked for certificates; their credentials are what admits them"),
    ("acme-redirect", Verdict::Dropped, "HTTP is not answered; let the ACME client answer on port 80"),
    (
        "allow-loopback-peers",
        Verdict::Safer,
        "refused: every service of this host that listens on loopback would be open to every client. Two clients of this \
         server reach each other without it; if it is meant, peers.allow names the address",
    ),
    ("allocation-default-address-family", Verdict::Dropped, "IPv4 unless the client asks for another (RFC 8656)"),
    (
        "bps-capacity",
        Verdict::Decide,
        "nothing limits what all carry together: limits.allocation-bytes-per-second bounds one allocation, and \
         limits.allocations-total how many there are",
    ),
    ("channel-lifetime", Verdict::Dropped, FIXED_TIME),
    (
        "check-origin-consistency",
        Verdict::Dropped,
        "ORIGIN was never standardised, and no browser sends it to TURN servers",
    ),
    ("cipher-list", Verdict::Dropped, CIPHERS),
    ("cli", Verdict::Dropped, CLI),
    ("cli-ip", Verdict::Dropped, CLI),
    ("cli-max-output-sessions", Verdict::Dropped, CLI),
    ("cli-password", Verdict::Dropped, CLI),
    ("cli-port", Verdict::Dropped, CLI),
    ("daemon", Verdict::Dropped, SERVICE),
    ("dh-file", Verdict::Dropped, CIPHERS),
    ("dh1066", Verdict::Safer, "1066 bits can be broken; elliptic curves alone are used"),
    ("dh566", Verdict::Safer, "566 bits can be broken; elliptic curves alone are used"),
    ("ec-curve-name", Verdict::Dropped, CIPHERS),
    (
        "fingerprint",
        Verdict::Dropped,
        "FINGERPRINT is in the answer to a request that has it: less to reflect at a forged source",
    ),
    ("keep-address-family", Verdict::Dropped, "IPv4 unless the client asks for another (RFC 8656)"),
    ("listening-device", Verdict::Decide, DEVICE),
    ("log-binding", Verdict::Dropped, "nothing that a stranger can cause is logged; the metrics count it"),
    ("log-file", Verdict::Dropped, LOGS),
    ("max-allocate-timeout", Verdict::Dropped, "streams that own nothing are ended after 15 seconds of silence"),
    ("mongo-userdb", Verdict::Decide, DATABASE),
    ("mysql-userdb", Verdict::Decide, DATABASE),
    ("ne", Verdict::Dropped, BALANCE),
    ("new-log-timestamp-format", Verdict::Dropped, LOGS),
    ("no-stun", Verdict::Dropped, "Binding requests are answered: ICE needs them on the same port"),
    ("no-tlsv1_2", Verdict::Decide, "TLS 1.2 is served beside 1.3, with forward secrecy alone"),
    ("no-udp-relay", Verdict::Decide, "relaying by UDP is what the server is for, and it is on"),
    ("permission-lifetime", Verdict::Dropped, FIXED_TIME),
    ("pidfile", Verdict::Dropped, SERVICE),
    ("proc-group", Verdict::Dropped, SERVICE),
    ("proc-user", Verdict::Dropped, SERVICE),
    (
        "prometheus-username-labels",
        Verdict::Safer,
        "a label for each user fills a Prometheus; the session records name users",
    ),
    ("psql-userdb", Verdict::Decide, DATABASE),
    ("raw-public-keys", Verdict::Dropped, "browsers know certificates alone"),
    ("redis-statsdb", Verdict::Dropped, "the metrics page and the session records in the log have what it had"),
    ("redis-userdb", Verdict::Decide, DATABASE),
    ("relay-device", Verdict::Decide, DEVICE),
    ("respond-http-unsupported", Verdict::Dropped, "HTTP is not answered"),
    ("secret-key-file", Verdict::Dropped, DATABASE),
    (
        "secure-stun",
        Verdict::Decide,
        "Binding requests are answered without a credential, by as little as the protocol allows (1.25 times the request)",
    ),
    (
        "server-relay",
        Verdict::Safer,
        "refused: it takes the permission check off, so that any host on the Internet reaches the clients",
    ),
    ("simple-log", Verdict::Dropped, LOGS),
    ("software-attribute", Verdict::Dropped, "strangers are not told what runs here"),
    (
        "stun-only",
        Verdict::Decide,
        "who has a credential may relay: give none out, or close the relay ports in the firewall",
    ),
    ("syslog", Verdict::Dropped, LOGS),
    ("sql-userdb", Verdict::Decide, DATABASE),
    ("syslog-facility", Verdict::Dropped, LOGS),
    ("udp-self-balance", Verdict::Dropped, BALANCE),
    ("web-admin", Verdict::Dropped, WEB),
    ("web-admin-ip", Verdict::Dropped, WEB),
    ("web-admin-listen-on-workers", Verdict::Dropped, WEB),
    ("web-admin-port", Verdict::Dropped, WEB),
];

/// What becomes of an option that is not translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fixed {
    Anyway,
    LeftOut(Verdict, &'static str),
}

/// Looks an option up by its name in coturn.
pub(super) fn find(name: &str) -> Option<Fixed> {
    if ANYWAY.contains(&name) {
        return Some(Fixed::Anyway);
    }
    LEFT_OUT.iter().find(|(known, ..)| *known == name).map(|(_, verdict, words)| Fixed::LeftOut(*verdict, words))
}

/// Every name that [`find`] knows.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    ANYWAY.into_iter().chain(LEFT_OUT.iter().map(|(name, ..)| *name))
}
