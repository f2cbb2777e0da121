//! A configuration goes in; settings or every problem comes out.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::*;
use crate::auth::settings::UserCredential;
use crate::net::dtls;
use crate::worker::settings::{Accept, ListenerKind};

pub(super) fn host() -> HostFacts {
    let own = ["127.0.0.1", "::1", "192.0.2.10", "10.0.0.5", "2001:db8::10"];
    HostFacts {
        own_addresses: own.iter().map(|address| address.parse().unwrap()).collect(),
        default_v4: Some("10.0.0.5".parse().unwrap()),
        default_v6: Some("2001:db8::10".parse().unwrap()),
        has_ipv6: true,
        nonlocal_bind: false,
    }
}

pub(super) fn variables(pairs: &[(&str, &str)]) -> Environment {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

pub(super) fn load_text(text: &str) -> Result<Loaded, Problems> {
    load_with(text, &[], &host())
}

pub(super) fn load_with(text: &str, environment: &[(&str, &str)], host: &HostFacts) -> Result<Loaded, Problems> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ferryd.toml");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    load(Some(&path), &variables(environment), host, StateAccess::Create)
}

/// The problems without the name of the file.
pub(super) fn problems(text: &str) -> Vec<String> {
    problems_with(text, &[])
}

fn problems_with(text: &str, environment: &[(&str, &str)]) -> Vec<String> {
    let Problems(problems) = load_with(text, environment, &host()).expect_err("the configuration is wrong");
    let shorten = |source: &str| match source.ends_with("/ferryd.toml") {
        true => "f".to_owned(),
        false => source.to_owned(),
    };
    problems.into_iter().map(|problem| Problem { source: shorten(&problem.source), ..problem }.to_string()).collect()
}

pub(super) const STRONG: &str = "mVJ0s3yTzQkU8cXeW1bNhR4p";

#[test]
fn nothing_configured_is_safe_and_complete() {
    let loaded = load(None, &Environment::new(), &host(), StateAccess::Create).unwrap();
    assert!(loaded.sources.are_defaults());
    assert_eq!(loaded.secret_origin, SecretOrigin::Forgotten);
    let settings = loaded.settings;
    assert_eq!(settings.auth.realm, "ferryd");
    assert_eq!(settings.auth.shared_secrets.len(), 1);
    assert_eq!(settings.auth.nonce_key.expose().len(), 32);
    assert!(settings.auth.users.is_empty() && !settings.serves_tls());
    let addresses: Vec<String> = settings.turn.relay_addresses.iter().map(|relay| relay.bind.to_string()).collect();
    assert_eq!(addresses, ["10.0.0.5", "2001:db8::10"]);
    // TLS listeners are left out without a certificate, and what would answer both answers plain.
    let listeners: Vec<String> =
        settings.listeners.iter().map(|listener| format!("{} {:?}", listener.address, listener.kind)).collect();
    assert_eq!(
        listeners,
        ["0.0.0.0:3478 Udp(Plain)", "[::]:3478 Udp(Plain)", "0.0.0.0:3478 Stream(Plain)", "[::]:3478 Stream(Plain)"]
    );
}

#[test]
fn two_starts_without_a_state_directory_share_nothing() {
    let secret = || {
        let loaded = load(None, &Environment::new(), &host(), StateAccess::Create).unwrap();
        loaded.settings.auth.shared_secrets[0].secret.expose().to_owned()
    };
    assert_ne!(secret(), secret());
}

#[test]
fn a_reload_keeps_what_the_process_made_for_itself() {
    let read = |text: &str| load_text(text).unwrap();
    let earlier = read("realm = \"a\"");
    let mut reloaded = read("realm = \"b\"");
    reloaded.carry_over(&earlier);
    let secret = |loaded: &Loaded| loaded.settings.auth.shared_secrets[0].secret.clone();
    assert_eq!(secret(&reloaded), secret(&earlier));
    assert_eq!(reloaded.settings.auth.nonce_key, earlier.settings.auth.nonce_key);
    let mut configured = read(&format!("[auth]\nshared-secrets = [\"{STRONG}\"]"));
    configured.carry_over(&earlier);
    assert_eq!(secret(&configured).expose(), STRONG.as_bytes());
}

#[test]
fn the_state_directory_of_systemd_keeps_secret_and_nonce_key() {
    let directory = tempfile::tempdir().unwrap();
    let environment = variables(&[("STATE_DIRECTORY", directory.path().to_str().unwrap())]);
    let read = || load(None, &environment, &host(), StateAccess::Create).unwrap();
    let (first, second) = (read(), read());
    assert_eq!(first.secret_origin, SecretOrigin::Kept(directory.path().join("shared-secret")));
    let secret = |loaded: &Loaded| loaded.settings.auth.shared_secrets[0].secret.expose().to_owned();
    assert_eq!(secret(&first), secret(&second));
    assert_eq!(first.settings.auth.nonce_key, second.settings.auth.nonce_key);
}

#[test]
fn garbage_in_the_state_directory_is_reported_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("nonce.key"), "garbage").unwrap();
    fs::write(directory.path().join("shared-secret"), "").unwrap();
    let environment = variables(&[("STATE_DIRECTORY", directory.path().to_str().unwrap())]);
    let words = load(None, &environment, &host(), StateAccess::Create).unwrap_err().to_string();
    assert!(words.contains("nonce.key: is not such a key, expected 64 hexadecimal digits"), "{words}");
    assert!(words.contains("shared-secret: holds 0 characters"), "{words}");
    assert_eq!(fs::read(directory.path().join("nonce.key")).unwrap(), b"garbage");
    assert_eq!(fs::read(directory.path().join("shared-secret")).unwrap(), b"");
}

#[test]
fn a_wrong_configuration_leaves_no_state_behind() {
    let directory = tempfile::tempdir().unwrap();
    let environment = [("STATE_DIRECTORY", directory.path().to_str().unwrap()), ("FERRYD_RELAY__PORT_MIN", "banana")];
    load(None, &variables(&environment), &host(), StateAccess::Create).unwrap_err();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_host_without_routes_relays_on_loopback() {
    let bare = |own: &[&str], has_ipv6| {
        let own_addresses = own.iter().map(|address| address.parse().unwrap()).collect();
        let host = HostFacts { own_addresses, has_ipv6, ..HostFacts::default() };
        let settings = load(None, &Environment::new(), &host, StateAccess::Create).unwrap().settings;
        let relays: Vec<String> = settings.turn.relay_addresses.iter().map(|relay| relay.bind.to_string()).collect();
        (relays.join(" "), settings.listeners.len())
    };
    assert_eq!(bare(&["127.0.0.1"], false), ("127.0.0.1".to_owned(), 2), "no IPv6 wildcards");
    assert_eq!(bare(&["127.0.0.1", "::1"], true), ("127.0.0.1 ::1".to_owned(), 4));
    assert_eq!(bare(&["127.0.0.1"], true), ("127.0.0.1".to_owned(), 4), "IPv6 is disabled by sysctl");
}

#[test]
fn every_problem_is_listed_not_only_the_first() {
    let mut found = problems(
        "realm = 5\nworkers = \"many\"\nlisten = 1\n\
         [relay]\nport-mni = 1\nport-max = 99999\nlifetime-max = \"2 weeks\"\n\
         [peers]\nallow = [\"10.0.0.5/8\", \"intranet\"]\n[log]\nlevel = \"inof\"\n",
    );
    // The keys of the whole file, which grow.
    let unknown = found.pop().unwrap();
    assert!(unknown.starts_with("f: listen: unknown key, expected one of state-directory, "), "{unknown}");
    assert!(unknown.ends_with("; did you mean listener?"), "{unknown}");
    assert_eq!(
        found,
        [
            "f: workers: found \"many\", expected a whole number from 0 to 1024; write such a number, without quotes",
            "f: relay.port-max: found 99999, expected a whole number from 1024 to 65535; write such a number, without \
             quotes",
            "f: relay.lifetime-max: found \"2 weeks\", expected a duration from 1s to 1h; write \"90s\", \"10m\", \
             \"1h\" or a number of seconds",
            "f: relay.port-mni: unknown key, expected one of addresses, advertised-addresses, port-min, port-max, \
             lifetime-default, lifetime-max; did you mean port-min?",
            "f: peers.allow #1: found \"10.0.0.5/8\", expected a range of addresses (CIDR); write \"10.0.0.0/8\" for \
             the range or \"10.0.0.5\" for the one address",
            "f: peers.allow #2: found \"intranet\", expected a range of addresses (CIDR); write \"10.0.0.0/8\", \
             \"2001:db8::/32\" or one address",
            "f: log.level: found \"inof\", expected one of \"error\", \"warn\", \"info\", \"debug\", \"trace\"; did \
             you mean \"info\"?",
            "f: realm: found 5, expected a text; put it in quotes",
        ]
    );
}

#[test]
fn a_section_that_is_no_table_is_a_problem_of_its_own() {
    assert_eq!(
        problems("relay = 5"),
        ["f: relay: found a number, expected a table of keys; write the keys below its name in [ ], or inside { }"]
    );
}

#[test]
fn a_missing_file_is_named() {
    let error = load(Some(Path::new("/nonexistent/f.toml")), &Environment::new(), &host(), StateAccess::Create);
    assert_eq!(
        error.unwrap_err().to_string(),
        "/nonexistent/f.toml: cannot be read (No such file or directory (os error 2)), expected a TOML file; check the \
         path and that the user ferryd runs as may read it"
    );
}

#[test]
fn the_environment_sets_every_kind_of_value() {
    let loaded = load_with(
        "",
        &[
            ("FERRYD_REALM", "example.org"),
            ("FERRYD_RELAY__PORT_MIN", "50000"),
            ("FERRYD_RELAY__LIFETIME_MAX", "30m"),
            ("FERRYD_RELAY__ADDRESSES", "10.0.0.5, 2001:db8::10"),
            ("FERRYD_PEERS__ALLOW", "10.0.0.0/8,192.168.0.1"),
            ("FERRYD_AUTH__SHARED_SECRETS", STRONG),
            ("FERRYD_COMPATIBILITY__CHANNELS_ABOVE_4FFF", "true"),
            ("FERRYD_LISTENER", "[{ address = \"127.0.0.1:3478\", transport = \"udp\" }]"),
        ],
        &host(),
    );
    let settings = loaded.unwrap().settings;
    assert_eq!(settings.auth.realm, "example.org");
    assert_eq!(settings.turn.port_min, 50000);
    assert_eq!(settings.turn.lifetime_max, Duration::from_secs(1800));
    assert_eq!(settings.turn.relay_addresses.len(), 2);
    assert_eq!(settings.turn.peers.allow.len(), 2);
    assert_eq!(settings.auth.shared_secrets[0].secret.expose(), STRONG.as_bytes());
    assert!(settings.turn.channels_above_4fff);
    assert_eq!(settings.listeners.len(), 1);
}

#[test]
fn unknown_variables_are_fatal_and_named() {
    let found = problems_with("", &[("FERRYD_RELAY__PORT_MNI", "1"), ("FERRYD_REALMS", "x"), ("FERRYD_RELY__X", "1")]);
    assert_eq!(found.len(), 3);
    assert!(found[0].starts_with("environment variable FERRYD_RELAY__PORT_MNI: relay.port-mni: unknown key"));
    assert!(found[0].ends_with("did you mean FERRYD_RELAY__PORT_MIN?"), "{}", found[0]);
    assert!(found[1].ends_with("did you mean FERRYD_REALM?"), "{}", found[1]);
    assert!(found[2].starts_with("environment variable FERRYD_RELY__X: rely: unknown key"), "{}", found[2]);
}

#[test]
fn listeners_spread_the_star_and_keep_exact_addresses() {
    let text = "listener = [ { address = \"*:443\", transport = \"tcp\", accept = \"plain\" },\n\
                { address = \"[2001:db8::10]:80\", transport = \"udp\" } ]";
    let listeners = load_text(text).unwrap().settings.listeners;
    let addresses: Vec<String> = listeners.iter().map(|listener| listener.address.to_string()).collect();
    assert_eq!(addresses, ["0.0.0.0:443", "[::]:443", "[2001:db8::10]:80"]);
    assert_eq!(listeners[0].kind, ListenerKind::Stream(Accept::Plain));
    assert_eq!(listeners[2].kind, ListenerKind::Udp(Accept::Plain), "both, without a certificate");
}

#[test]
fn proxies_are_named_by_ranges() {
    let text = "listener = [ { address = \"10.0.0.5:443\", transport = \"tcp\", proxy-protocol = [\"10.0.0.0/24\", \"::1\"] },\n\
                { address = \"10.0.0.5:3478\", transport = \"tcp\" },\n\
                { address = \"10.0.0.5:3478\", transport = \"udp\", proxy-protocol = [\"10.0.0.9\"] } ]";
    let listeners = load_text(text).unwrap().settings.listeners;
    let proxies: Vec<String> = listeners[0].proxies.iter().map(ToString::to_string).collect();
    assert_eq!(proxies, ["10.0.0.0/24", "::1/128"]);
    assert!(listeners[1].proxies.is_empty());
    assert_eq!(listeners[2].proxies, ["10.0.0.9/32".parse().unwrap()]);
    let one = |listener: &str| problems(&format!("listener = [ {listener} ]")).join("\n");
    let found = one("{ address = \"*:1\", transport = \"tcp\", proxy-protocol = [\"10.0.0.1/8\", \"lb.internal\"] }");
    assert!(found.contains("10.0.0.0/8") && found.contains("lb.internal"), "{found}");
    let everybody = "listener = [ { address = \"*:1\", transport = \"tcp\", proxy-protocol = [\"0.0.0.0/0\"] } ]";
    assert!(load_text(everybody).unwrap().warnings[0].contains("name the proxies alone"));
}

#[test]
fn listeners_may_be_tables_of_their_own() {
    let text =
        "[[listener]]\naddress = \"*:1\"\ntransport = \"udp\"\n[[listener]]\naddress = \"*:2\"\ntransport = \"udp\"\n";
    assert_eq!(load_text(text).unwrap().settings.listeners.len(), 4);
}

#[test]
fn wrong_listeners_are_told_apart() {
    let one = |listener: &str| problems(&format!("listener = [ {listener} ]")).join("\n");
    let starts = |listener: &str, words: &str| {
        let found = one(listener);
        assert!(found.contains(words), "{found}");
    };
    starts("{ address = \"192.0.2.10\", transport = \"udp\" }", "add the port: \"192.0.2.10:3478\"");
    starts("{ address = \"::1\", transport = \"udp\" }", "add brackets and the port: \"[::1]:3478\"");
    starts("{ address = \"*\", transport = \"udp\" }", "add the port: \"*:3478\"");
    starts("{ address = \"turn.example.org:3478\", transport = \"udp\" }", "names are not looked up");
    starts(
        "{ address = \"203.0.113.9:1\", transport = \"udp\" }",
        "found 203.0.113.9, which is no address of this host",
    );
    for address in ["*:70000", "*:0", "127.0.0.1:0"] {
        starts(&format!("{{ address = \"{address}\", transport = \"udp\" }}"), "a port from 1 to 65535");
    }
    starts("{ transport = \"udp\" }", "listener #1 address: is missing");
    starts("{ address = \"*:1\" }", "listener #1 transport: is missing");
    starts("{ address = \"*:1\", transport = \"tls\" }", "expected one of \"udp\", \"tcp\"");
    starts(
        "{ address = \"*:1\", transport = \"udp\", accept = \"tls\" }",
        "expected one of \"both\", \"dtls\", \"plain\"",
    );
    starts(
        "{ address = \"*:1\", transport = \"tcp\", accept = \"dtls\" }",
        "expected one of \"both\", \"tls\", \"plain\"",
    );
    starts("{ address = \"*:1\", transport = \"udp\", accept = \"dtls\" }", "DTLS alone, and there is no certificate");
    starts("{ address = \"*:1\", transport = \"tcp\", acept = \"tls\" }", "did you mean accept?");
    starts("{ address = \"*:1\", transport = \"tcp\", accept = \"tls\" }", "there is no certificate");
    starts(
        "{ address = \"*:1\", transport = \"udp\" }, { address = \"0.0.0.0:1\", transport = \"udp\" }",
        "listener #2 address: 0.0.0.0:1 is listened on already",
    );
    starts("", "found no listener");
}

#[test]
fn a_certificate_turns_tls_on() {
    let directory = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["turn.example.org".to_owned()]).unwrap();
    let (certificate, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    fs::write(&certificate, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let text = format!("[tls]\ncertificate = {certificate:?}\nkey = {key:?}\n");
    let loaded = load_text(&text).unwrap();
    assert!(loaded.settings.serves_tls());
    let kinds: Vec<_> = loaded.settings.listeners.iter().map(|listener| listener.kind).collect();
    let (udp, tls) = (ListenerKind::Udp(Accept::Both), ListenerKind::Stream(Accept::Both));
    if dtls::IS_BUILT_IN {
        assert_eq!((kinds.len(), kinds[0], kinds[4], kinds[6]), (8, udp, tls, ListenerKind::Udp(Accept::Tls)));
    } else {
        assert_eq!((kinds.len(), kinds[0], kinds[4]), (6, ListenerKind::Udp(Accept::Plain), tls));
    }
    assert_eq!(loaded.settings.listeners[4].address.port(), 5349);
    assert_eq!(loaded.certificates[0].content.names, ["turn.example.org"]);
    assert!(loaded.warnings.iter().any(|words| words.contains("everybody may read the private key")));
}

#[test]
fn half_a_certificate_is_a_problem() {
    assert_eq!(
        problems("[tls]\nkey = \"/x\""),
        ["f: tls.certificate: is missing, and key is set, expected both certificate and key; name both files"]
    );
    let found = problems("[tls]\ncertificate = \"/nonexistent/c\"\nkey = \"/nonexistent/k\"");
    assert_eq!(found.len(), 2);
    assert!(found[0].starts_with("f: tls.certificate: /nonexistent/c cannot be read"), "{found:?}");
}

#[test]
fn advertised_addresses_pair_within_their_family() {
    let text = "[relay]\naddresses = [\"10.0.0.5\", \"2001:db8::10\"]\nadvertised-addresses = [\"203.0.113.5\"]";
    let turn = load_text(text).unwrap().settings.turn;
    assert_eq!(turn.relay_addresses[0].advertised, Some("203.0.113.5".parse().unwrap()));
    assert_eq!(turn.relay_addresses[1].advertised, None);
    assert!(turn.peers.own_addresses.contains(&"203.0.113.5".parse().unwrap()));
    let unconfigured = load_text("[relay]\nadvertised-addresses = [\"203.0.113.5\"]").unwrap().settings.turn;
    assert_eq!(unconfigured.relay_addresses[0].public(), "203.0.113.5".parse::<IpAddr>().unwrap());
}

#[test]
fn wrong_relay_addresses_are_told_apart() {
    let one = |text: &str, words: &str| {
        let found = problems(&format!("[relay]\n{text}")).join("\n");
        assert!(found.contains(words), "{found}");
    };
    one("addresses = [\"203.0.113.5\"]", "relay.addresses #1: found 203.0.113.5, which is no address of this host");
    one("addresses = [\"0.0.0.0\"]", "relay.addresses #1: found \"0.0.0.0\", expected a unicast address");
    one("addresses = [\"fe80::1\"]", "expected a unicast address");
    one("addresses = [\"10.0.0.5:1\"]", "without port and brackets");
    one("addresses = [\"10.0.0.5\", \"10.0.0.5\"]", "relay.addresses #2: 10.0.0.5 stands there already");
    one("addresses = \"10.0.0.5\"", "relay.addresses: found a text, expected a list");
    one(
        "addresses = [\"10.0.0.5\"]\nadvertised-addresses = [\"2001:db8::99\"]",
        "relay.advertised-addresses: found 1 of IPv6 for 0, expected as many IPv6 addresses",
    );
    one("advertised-addresses = [\"203.0.113.5\", \"203.0.113.6\"]", "found 2 of IPv4 for 1");
    one("port-min = 60000\nport-max = 50000", "relay.port-min: the range 60000 to 50000 is empty");
    one("port-min = 80", "a whole number from 1024 to 65535");
    one("lifetime-default = \"30m\"\nlifetime-max = \"20m\"", "the default 30m is over the longest 20m");
}

#[test]
fn addresses_that_come_later_are_accepted_where_the_host_allows_them() {
    let pair = HostFacts { nonlocal_bind: true, ..host() };
    assert!(load_with("[relay]\naddresses = [\"203.0.113.5\"]", &[], &pair).is_ok());
}

#[test]
fn users_have_a_password_a_file_or_a_key() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    fs::write(&file, format!("{STRONG}\n")).unwrap();
    let text = format!(
        "[[auth.user]]\nname = \"cafe\u{301}\"\npassword = \"{STRONG}\"\n\
         [[auth.user]]\nname = \"bob\"\npassword-file = {file:?}\n\
         [[auth.user]]\nname = \"carol\"\nkey = \"0x{}\"\n",
        "ab".repeat(16)
    );
    let loaded = load_text(&text).unwrap();
    let auth = loaded.settings.auth;
    assert_eq!(auth.users[0].name, "caf\u{e9}");
    assert!(auth.shared_secrets.is_empty(), "no secret is made beside users");
    let UserCredential::Password(password) = &auth.users[1].credential else { panic!("not a password") };
    assert_eq!(password.expose(), STRONG.as_bytes());
    let UserCredential::Md5Key(key) = &auth.users[2].credential else { panic!("not a key") };
    assert_eq!(key.expose(), [0xab; 16]);
    assert!(loaded.warnings[0].contains("everybody may read this secret"), "{:?}", loaded.warnings);
}

#[test]
fn wrong_users_are_told_apart() {
    let one = |user: &str, words: &str| {
        let found = problems(&format!("[[auth.user]]\n{user}")).join("\n");
        assert!(found.contains(words), "{found}");
        assert!(!found.contains("hush"), "a password is shown: {found}");
    };
    one("name = \"a\"\npassword = \"hush-north\"", "auth.user #1 password: an estimated strength of");
    one("name = \"a\"\npassword = \"hush-north\"", "openssl rand -base64 18");
    one("name = \"a\"\npassword = 77", "found a number, expected a secret text");
    one("name = \"a\"\npassword = [\"hush\"]", "found a list, expected a secret text");
    one("name = \"a\"\npassword = \"\"", "found an empty text");
    one("name = \"a\"\npassword = \"hush\\u0007\"", "has the disallowed character U+0007");
    one("name = \"\"\npassword = \"x\"", "auth.user #1 name: is empty");
    one("name = \"a\"", "no password is set, expected one of password, password-file, key");
    one("name = \"a\"\npassword = \"hush\"\nkey = \"00\"", "there is more than one password");
    one("name = \"a\"\nkey = \"hush\"", "expected 32 hexadecimal digits");
    one(&format!("password = \"{STRONG}\""), "auth.user #1 name: is missing");
    one("name = \"a\"\npassword-file = \"/nonexistent\"", "/nonexistent cannot be read");
    one("name = \"a\"\npasword = \"hush\"", "did you mean password?");
    let key = "00".repeat(16);
    one(
        &format!("name = \"e\u{301}\"\nkey = \"{key}\"\n[[auth.user]]\nname = \"\u{e9}\"\nkey = \"{key}\""),
        "auth.user #2 name: the user \"\u{e9}\" stands there already",
    );
}

#[test]
fn weak_passwords_can_be_allowed() {
    let text = "[auth]\nallow-weak-passwords = true\nshared-secrets = [\"north\"]\nuser = [{ name = \"a\", password = \"b\" }]";
    assert!(load_text(text).is_ok());
}

#[test]
fn allow_only_without_ranges_is_refused() {
    assert!(problems("[peers]\nallow-only = true")[0].contains("refuses every peer, as allow is empty"));
}

#[test]
fn groups_of_users_have_peers_of_their_own() {
    let text = "[[peers.group]]\nmembers = [\"guest-*\", \"secret:0f3a9c11\"]\nallow = [\"10.7.0.1\"]\nallow-only = true\n\
                [[peers.group]]\nmembers = [\"staff\"]\ndeny = [\"9.0.0.0/8\"]\n";
    let groups = load_text(text).unwrap().settings.turn.peers.groups;
    let members: Vec<Vec<String>> =
        groups.iter().map(|group| group.members.iter().map(ToString::to_string).collect()).collect();
    assert_eq!(members, [&["user:guest-*", "secret:0f3a9c11"][..], &["user:staff"]]);
    assert_eq!((groups[0].allow_only, groups[1].allow_only), (true, false));
    assert_eq!(
        (&groups[0].allow[..], &groups[1].deny[..]),
        (&["10.7.0.1/32".parse().unwrap()][..], &["9.0.0.0/8".parse().unwrap()][..])
    );
    let found = problems(
        "[[peers.group]]\nallow = [\"10.0.0.0/8\"]\n[[peers.group]]\nmembers = [\"secret:x\"]\nalow = []\nallow-only = true\n",
    );
    for (found, words) in found.iter().zip([
        "members: the group has no members",
        "members #1: found \"secret:x\", expected a user, the beginning",
        "refuses every peer, as allow is empty",
        "alow: unknown key, expected one of members, allow, deny, allow-only; did you mean allow?",
    ]) {
        assert!(found.contains(words), "{found}");
    }
    assert_eq!(found.len(), 4, "{found:?}");
}

#[test]
fn limits_are_read_and_bounded() {
    let text = "[limits]\nallocations-per-user = 0\nchannels-per-allocation = 7\nhandshakes = 9\n";
    let settings = load_text(text).unwrap().settings;
    assert_eq!(settings.turn.limits.allocations_per_user, 0);
    assert_eq!(settings.turn.limits.channels_per_allocation, 7);
    assert_eq!(settings.accept.handshakes_max, 9);
    let found = problems("[limits]\nchannels-per-allocation = 0\nconnections-total = -1\n");
    assert_eq!(found.len(), 2, "{found:?}");
}
