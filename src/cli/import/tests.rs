use std::io::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use super::report::Verdict;
use super::translate::{Translation, translate};
use crate::auth::settings::UserCredential;
use crate::config::{self, Environment, HostFacts, Settings, StateAccess};
use crate::net::dtls;
use crate::worker::settings::{Accept, ListenerKind};

fn host() -> HostFacts {
    let own = ["10.0.0.5", "10.0.0.6", "2001:db8::10", "127.0.0.1"].map(|address| address.parse().unwrap());
    HostFacts {
        own_addresses: own.to_vec(),
        default_v4: Some(own[0]),
        default_v6: Some(own[2]),
        has_ipv6: true,
        nonlocal_bind: false,
    }
}

/// What `ferryd check` makes of the translation.
fn loaded(text: &str) -> (Settings, Translation) {
    let translation = translate(text, None);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(translation.draft.text("a test").as_bytes()).unwrap();
    let loaded = config::load(Some(file.path()), &Environment::new(), &host(), StateAccess::ReadOnly);
    let loaded = loaded.unwrap_or_else(|problems| panic!("{problems:?} in\n{}", translation.draft.text("a test")));
    (loaded.settings, translation)
}

/// The verdict on an option, and the words.
fn finding<'a>(translation: &'a Translation, option: &str) -> (Verdict, &'a str) {
    let mut found = translation.report.findings.iter().filter(|finding| finding.option == option);
    let finding = found.next().unwrap_or_else(|| panic!("nothing is said about {option}: {:?}", translation.report));
    (finding.verdict, &finding.words)
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

const SECRET: &str = "mVJ0s3yTzQkU8cXeW1bNhR4p";

#[test]
fn an_empty_file_relays_for_nobody_without_a_credential() {
    let (settings, translation) = loaded("");
    assert!(settings.auth.users.is_empty() && settings.auth.shared_secrets.len() == 1, "ferryd's own secret");
    assert_eq!(settings.listeners.len(), 4, "udp and tcp of both families: {:?}", settings.listeners);
    assert!(finding(&translation, "lt-cred-mech").1.contains("nobody relays without a credential"));
    assert_eq!(finding(&translation, "peers").0, Verdict::Safer);
}

#[test]
fn an_ordinary_server_with_a_shared_secret_is_the_same() {
    let text = format!(
        "listening-port=3479\nlistening-ip=10.0.0.5\nexternal-ip=203.0.113.5\nmin-port=50000\nmax-port=51000\n\
         use-auth-secret\nstatic-auth-secret={SECRET}\nstatic-auth-secret=Zq8vN3xT0pLw6RbYc2HsKd5M\nrealm=example.org\n\
         total-quota=100\nuser-quota=12\nstale-nonce=1200\nno-cli\nno-multicast-peers\nfingerprint\nmobility\n\
         max-allocate-lifetime=1800\nrelay-threads=3\nVerbose\nprometheus\nprometheus-address=10.0.0.6\nprometheus-port=9999\n"
    );
    let (settings, translation) = loaded(&text);
    let listeners: Vec<String> = settings.listeners.iter().map(|l| format!("{} {:?}", l.address, l.kind)).collect();
    assert_eq!(listeners, ["10.0.0.5:3479 Udp(Plain)", "10.0.0.5:3479 Stream(Plain)"]);
    let relays: Vec<_> = settings.turn.relay_addresses.iter().map(|relay| (relay.bind, relay.public())).collect();
    assert_eq!(relays, [("10.0.0.5".parse().unwrap(), "203.0.113.5".parse().unwrap())]);
    assert_eq!((settings.turn.port_min, settings.turn.port_max), (50000, 51000));
    let secrets: Vec<&[u8]> = settings.auth.shared_secrets.iter().map(|shared| shared.secret.expose()).collect();
    assert_eq!(secrets, [SECRET.as_bytes(), b"Zq8vN3xT0pLw6RbYc2HsKd5M"]);
    assert_eq!(settings.auth.realm, "example.org");
    assert_eq!((settings.turn.limits.allocations_total, settings.turn.limits.allocations_per_user), (100, 12));
    assert_eq!(settings.auth.nonce_lifetime, Duration::from_secs(1200));
    assert_eq!(settings.turn.lifetime_max, Duration::from_secs(1800));
    assert_eq!(settings.turn.lifetime_default, Duration::from_secs(600));
    assert!(settings.turn.mobility);
    assert_eq!(settings.workers, 3);
    assert_eq!(settings.metrics, Some("10.0.0.6:9999".parse().unwrap()));
    assert_eq!(settings.log.level, crate::observe::logs::Level::Debug);
    assert!(!translation.report.findings.iter().any(|finding| finding.verdict == Verdict::Decide));
    assert_eq!(translation.translated, 21, "all but fingerprint");
}

#[test]
fn users_keep_their_passwords_and_keys() {
    let key = "bc807ee29df3c9ffa736523fb2c4e8ee";
    let text = format!(
        "lt-cred-mech\nrealm=north.gov\nuser=ninefingers:0x{key}\nuser=alice:{SECRET}\nuser=bob:hunter2\nuser=eve\n\
         user=alice:again\nuser=sha:0x{key}{key}\n"
    );
    let (settings, translation) = loaded(&text);
    let users: Vec<&str> = settings.auth.users.iter().map(|user| user.name.as_str()).collect();
    assert_eq!(users, ["ninefingers", "alice"]);
    let UserCredential::Md5Key(read) = &settings.auth.users[0].credential else { panic!("a key") };
    assert_eq!(read.expose()[..2], [0xbc, 0x80]);
    let said: Vec<String> = translation.report.findings.iter().map(ToString::to_string).collect();
    assert!(said.iter().any(|line| line.starts_with("made safer: line 5, user: \"bob\" is left out: its password")));
    assert!(!said.iter().any(|line| line.contains("hunter2")), "{said:?}");
    assert_eq!(said.iter().filter(|line| line.starts_with("to decide: ")).count(), 3, "{said:?}");
    let (settings, translation) = loaded(&format!("user=ninefingers:0x{key}"));
    assert!(settings.auth.users.is_empty());
    assert!(finding(&translation, "user").1.contains("no realm is in this file"));
}

#[test]
fn what_is_in_the_database_is_told_with_the_command_that_prints_it() {
    let (_, translation) = loaded("userdb=/srv/turndb\nrealm=example.org");
    let (verdict, words) = finding(&translation, "userdb");
    assert_eq!(verdict, Verdict::Decide);
    assert!(words.contains("`sqlite3 /srv/turndb \"select '[[auth.user]]'"), "{words}");
    assert!(words.contains("from turnusers_lt where realm = 'example.org'\"`"), "{words}");
    assert!(!finding(&translation, "lt-cred-mech").1.contains("sqlite3"), "once");
    // coturn ignores users beside shared secrets, and asks the database for those of the realm.
    let (_, translation) = loaded("use-auth-secret\nuserdb=/srv/turn db\nrealm=exa'mple");
    for option in ["use-auth-secret", "userdb"] {
        let words = finding(&translation, option).1;
        assert!(words.contains("`sqlite3 FILE \"select value from turn_secret where realm = 'REALM'\"`"), "{words}");
    }
    let (_, translation) = loaded("realm=example.org");
    let words = finding(&translation, "lt-cred-mech").1;
    assert!(words.contains("`sqlite3 /var/lib/turn/turndb \"select '[[auth.user]]'"), "{words}");
}

#[test]
fn users_that_coturn_ignored_stay_ignored() {
    let (settings, translation) = loaded(&format!("lt-cred-mech\nuser=a:{SECRET}\nstatic-auth-secret={SECRET}"));
    assert!(settings.auth.users.is_empty());
    assert_eq!(finding(&translation, "user").0, Verdict::Safer);
}

#[test]
fn what_opens_the_relay_is_refused_and_told() {
    let (settings, translation) = loaded("no-auth\nallow-loopback-peers\nserver-relay\nno-auth-pings\nno-tcp-relay=0");
    assert!(settings.auth.shared_secrets.len() == 1);
    assert!(settings.turn.peers.allow.is_empty());
    for option in ["no-auth", "allow-loopback-peers", "server-relay"] {
        let (verdict, words) = finding(&translation, option);
        assert_eq!(verdict, Verdict::Safer);
        assert!(words.starts_with("refused: "), "{option}: {words}");
    }
    // What is switched off is no news.
    let (_, translation) = loaded("no-auth=0\nallow-loopback-peers=no\nserver-relay=off\nweb-admin=false");
    assert!(translation.report.findings.iter().all(|finding| finding.line.is_none()), "{:?}", translation.report);
}

#[test]
fn ranges_of_peers_keep_their_meaning() {
    let (settings, translation) = loaded(
        "denied-peer-ip=83.166.64.0-83.166.95.255\nallowed-peer-ip=83.166.68.45\nallowed-peer-ip=10.20.0.0-10.20.255.255\n\
         denied-peer-ip=198.51.100.7\ndenied-peer-ip=203.0.113.0/24\nallowed-peer-ip=172.16.0.0/12\n\
         allowed-peer-ip=126.0.0.0-128.0.0.0\ndenied-peer-ip=nowhere\n",
    );
    let peers = &settings.turn.peers;
    let in_any = |nets: &[ipnet::IpNet], ip: &str| nets.iter().any(|net| net.contains(&ip.parse::<IpAddr>().unwrap()));
    for denied in ["83.166.64.0", "83.166.95.255", "83.166.68.44", "198.51.100.7", "203.0.113.9"] {
        assert!(in_any(&peers.deny, denied), "{denied}: {:?}", peers.deny);
    }
    for not_denied in ["83.166.68.45", "83.166.96.0", "198.51.100.8"] {
        assert!(!in_any(&peers.deny, not_denied), "{not_denied}: {:?}", peers.deny);
    }
    assert!(in_any(&peers.allow, "10.20.3.4") && in_any(&peers.allow, "83.166.68.45"));
    // Not what coturn refused to read, and never this host.
    assert!(!in_any(&peers.allow, "172.16.0.1") && !in_any(&peers.allow, "127.0.0.1"), "{:?}", peers.allow);
    assert!(in_any(&peers.allow, "126.255.255.255") && in_any(&peers.allow, "128.0.0.0"));
    let verdicts = |line: usize| -> Vec<Verdict> {
        let of_line = translation.report.findings.iter().filter(|finding| finding.line == Some(line));
        of_line.map(|finding| finding.verdict).collect()
    };
    assert_eq!(verdicts(3), [Verdict::Decide], "private addresses are opened");
    assert_eq!(verdicts(5), [Verdict::Safer]);
    assert_eq!(verdicts(6), [Verdict::Decide]);
    assert_eq!(verdicts(7), [Verdict::Safer]);
    assert_eq!(verdicts(8), [Verdict::Decide]);
}

#[test]
fn public_addresses_go_with_the_private_ones_they_are_mapped_to() {
    let told = |text: &str| -> Vec<(IpAddr, IpAddr)> {
        loaded(text).0.turn.relay_addresses.iter().map(|relay| (relay.bind, relay.public())).collect()
    };
    let pair = |bind: &str, public: &str| (bind.parse().unwrap(), public.parse().unwrap());
    assert_eq!(
        told(
            "relay-ip=10.0.0.5\nrelay-ip=10.0.0.6\nexternal-ip=203.0.113.6/10.0.0.6\nexternal-ip=203.0.113.5/10.0.0.5"
        ),
        [pair("10.0.0.5", "203.0.113.5"), pair("10.0.0.6", "203.0.113.6")]
    );
    assert_eq!(
        told("relay-ip=10.0.0.5\nrelay-ip=10.0.0.6\nexternal-ip=203.0.113.6/10.0.0.6"),
        [pair("10.0.0.5", "10.0.0.5"), pair("10.0.0.6", "203.0.113.6")]
    );
    assert_eq!(
        told("external-ip=203.0.113.5"),
        [pair("10.0.0.5", "203.0.113.5"), pair("2001:db8::10", "2001:db8::10")]
    );
    assert_eq!(told("external-ip=203.0.113.6/10.0.0.6"), [pair("10.0.0.6", "203.0.113.6")]);
    // One public address stands for one private one.
    assert_eq!(
        told("relay-ip=10.0.0.5\nrelay-ip=10.0.0.6\nexternal-ip=203.0.113.5"),
        [pair("10.0.0.5", "203.0.113.5")]
    );
    let (_, translation) = loaded("relay-ip=10.0.0.5\nexternal-ip=203.0.113.6/10.0.0.6\nexternal-ip=turn.example.org");
    assert_eq!(translation.report.findings.iter().filter(|finding| finding.option == "external-ip").count(), 2);
}

#[test]
fn listeners_are_those_that_coturn_opens() {
    let directory = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["turn.example.org".to_owned()]).unwrap();
    let (certificate, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let pair = format!("cert={}\npkey={}\n", certificate.display(), key.display());
    let listeners = |text: &str| -> Vec<String> {
        let kind = |kind| match kind {
            ListenerKind::Udp(Accept::Both) => "datagrams",
            ListenerKind::Udp(Accept::Plain) => "udp",
            ListenerKind::Udp(Accept::Tls) => "dtls",
            ListenerKind::Stream(Accept::Both) => "both",
            ListenerKind::Stream(Accept::Plain) => "plain",
            ListenerKind::Stream(Accept::Tls) => "tls",
        };
        let (settings, _) = loaded(&format!("listening-ip=10.0.0.5\n{text}"));
        settings.listeners.iter().map(|l| format!("{} {}", l.address.port(), kind(l.kind))).collect()
    };
    let both = if dtls::IS_BUILT_IN { "datagrams" } else { "udp" };
    let on = |port: u16| format!("{port} {both}");
    assert_eq!(listeners(&pair), [&on(3478), "3478 both", &on(5349), "5349 both"]);
    if dtls::IS_BUILT_IN {
        assert_eq!(listeners(&format!("{pair}no-udp")), ["3478 both", "5349 dtls", "5349 both"]);
    }
    assert_eq!(listeners(&format!("{pair}no-dtls\ntls-listening-port=443")), ["3478 udp", "3478 both", "443 both"]);
    assert_eq!(listeners(&format!("{pair}no-tcp\nno-dtls")), ["3478 udp", "3478 tls", "5349 tls"]);
    assert_eq!(listeners(&format!("{pair}no-udp\nno-tls")), ["3478 plain"]);
    assert_eq!(listeners(&format!("{pair}tls-listening-port=3478")), [&on(3478), "3478 both"]);
    assert_eq!(listeners("aux-server=10.0.0.6:80\nno-tcp"), ["3478 udp", "80 udp"]);
    // Nothing listens without a certificate and without both others: ferryd's own then.
    assert_eq!(listeners("no-udp\nno-tcp").len(), 4);
    let (settings, translation) = loaded(&format!("{pair}pkey-pwd=hush"));
    assert!(settings.tls.is_empty());
    assert_eq!(finding(&translation, "pkey-pwd").0, Verdict::Decide);
    let text = translation.draft.text("a test");
    assert!(text.contains("#certificate = ") && !text.contains("hush"), "{text}");
}

#[test]
fn files_are_looked_for_beside_the_configuration() {
    let translation = translate("cert=cert.pem\npkey=/k/key.pem", Some(std::path::Path::new("/etc/coturn")));
    let certificate = translation.draft.certificate.unwrap();
    assert_eq!((certificate.certificate.as_str(), certificate.key.as_str()), ("/etc/coturn/cert.pem", "/k/key.pem"));
    assert_eq!(finding(&translate("cert=a", None), "cert").0, Verdict::Decide);
}

#[test]
fn redirection_keeps_to_its_transports_and_to_one_server() {
    let (settings, translation) = loaded(
        "alternate-server=198.51.100.7\nalternate-server=198.51.100.8:3479\nalternate-server=[2001:db8::7]:80\n\
         tls-alternate-server=198.51.100.9\n",
    );
    let redirect = settings.turn.redirect.unwrap();
    assert_eq!(redirect.udp.v4.unwrap().to_string(), "198.51.100.7:3478");
    assert_eq!(redirect.tcp.v6.unwrap().to_string(), "[2001:db8::7]:80");
    assert_eq!(redirect.tls.v4.unwrap().to_string(), "198.51.100.9:5349");
    assert_eq!(redirect.tls.v6, None);
    assert_eq!(finding(&translation, "alternate-server").0, Verdict::Decide);
}

#[test]
fn nat_behavior_discovery_is_on_where_it_was_asked_for() {
    let addresses = "listening-ip=10.0.0.5\nlistening-ip=10.0.0.6\n";
    let (settings, translation) = loaded(addresses);
    assert!(settings.turn.nat_behavior.is_none());
    assert_eq!(finding(&translation, "no-rfc5780").0, Verdict::Safer);
    let (settings, _) = loaded(&format!("{addresses}rfc5780\nalt-listening-port=3500"));
    assert!(settings.turn.nat_behavior.is_some());
    let translation = translate(&format!("{addresses}rfc5780"), None);
    let behavior = translation.draft.nat_behavior.unwrap();
    assert_eq!((behavior.addresses, behavior.alternate_port), (ips(&["10.0.0.5", "10.0.0.6"]), 3479));
    let (settings, translation) = loaded(&format!("{addresses}rfc5780\nexternal-ip=203.0.113.5/10.0.0.5"));
    assert!(settings.turn.nat_behavior.is_none());
    assert_eq!(finding(&translation, "rfc5780").0, Verdict::Decide);
}

#[test]
fn nonsense_is_reported_and_the_rest_is_translated() {
    let (settings, translation) = loaded(
        "listening-port=many\nmin-port=60000\nmax-port=50000\nstale-nonce=5\nno-udp=perhaps\nlistening-ip=localhost\n\
         relm=example.org\nrealm=exa\u{fffd}mple\ntotal-quota=-1\n--no-tcp\nuser-quota=7\nstatic-auth-secret=\n",
    );
    assert_eq!(settings.turn.limits.allocations_per_user, 7);
    assert_eq!(settings.auth.nonce_lifetime, Duration::from_secs(60));
    assert_eq!(finding(&translation, "relm").1, "is no option of coturn, which went on without it; realm was meant?");
    assert_eq!(finding(&translation, "--no-tcp").0, Verdict::Unknown);
    for option in
        ["listening-port", "stale-nonce", "no-udp", "listening-ip", "realm", "total-quota", "static-auth-secret"]
    {
        assert_eq!(finding(&translation, option).0, Verdict::Decide, "{option}");
    }
    assert_eq!(translation.report.findings.iter().filter(|found| found.option == "listening-port").count(), 1);
}

#[test]
fn what_is_no_name_at_all_is_not_taken_for_a_short_one() {
    let (_, translation) = loaded("is\nrealms=a\n");
    assert_eq!(finding(&translation, "is").1, "is no option of coturn, which went on without it");
    assert!(finding(&translation, "realms").1.ends_with("realm was meant?"));
}

#[test]
fn quotas_and_rates_are_those_of_coturn() {
    let (settings, translation) = loaded(&format!("static-auth-secret={SECRET}\nmax-bps=250000\n"));
    assert_eq!(settings.turn.limits.allocation_rate.bytes_per_second, 250_000);
    let (verdict, words) = finding(&translation, "user-quota");
    assert!(verdict == Verdict::Safer && words.contains("100 allocations at a time"), "{words}");
    let (settings, translation) =
        loaded(&format!("static-auth-secret={SECRET}\nuser-quota=0\ntotal-quota=0\nmax-bps=0\n"));
    let limits = &settings.turn.limits;
    assert_eq!((limits.allocations_per_user, limits.allocations_total), (0, 0), "no limit");
    assert_eq!(limits.allocation_rate.bytes_per_second, 0);
    assert!(translation.report.findings.iter().all(|finding| finding.option != "user-quota"));
}

#[test]
fn ports_below_1024_and_half_ranges_are_mended() {
    let ports = |text: &str| {
        let (settings, _) = loaded(text);
        (settings.turn.port_min, settings.turn.port_max)
    };
    assert_eq!(ports("min-port=80"), (1024, 65535));
    assert_eq!(ports("max-port=40000"), (1024, 40000));
    assert_eq!(ports("min-port=60000"), (60000, 65535));
    assert_eq!(ports("min-port=60000\nmax-port=100"), (49152, 65535));
}
