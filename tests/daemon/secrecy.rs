//! What is never logged: secrets at any level, and strangers above debug.

use std::io::{Read, Seek, SeekFrom};

use ferryd::auth::settings::{Secret, SecretAlgorithm, SharedSecret};

use crate::certificate::Certificate;
use crate::client::{Client, User};
use crate::ferryd::{Ferryd, PASSWORD, alice};
use crate::wire::Stream;

const SECRET: &str = "Zq8vN3xT0pLw6RbYc2HsKd5M";
const PAGE: usize = 4096;
const NONCE_KEY: &str = "00112233445566778899aabbccddeeff102132435465768798a9bacbdcedfe0f";

#[test]
fn no_secret_password_key_or_nonce_is_logged_at_trace_level() {
    for format in ["text", "json"] {
        let ferryd = Ferryd::start_with(
            |config| {
                Certificate::configured(config);
                let key = config.directory.join("nonce.key");
                std::fs::write(&key, NONCE_KEY).unwrap();
                config.text("auth.nonce-key-file", key.display()).text("log.format", format);
                config.set("auth.shared-secrets", format!("[\"{SECRET}\"]"));
            },
            |command| _ = command.args(["--log-level", "trace"]),
        );
        let mut hidden = vec![PASSWORD.to_owned(), SECRET.to_owned(), NONCE_KEY.to_owned()];
        let secret = SharedSecret { secret: Secret::new(SECRET), algorithm: SecretAlgorithm::Sha1 };
        let certificate = Certificate::of(&ferryd.config);
        for user in [alice(), User::minted(&secret, 60, Some("dora")), User::new("mallory", "T8hPfQ2nVx7Kd")] {
            for client in [
                Client::udp(ferryd.address()),
                Client::tcp(ferryd.address()),
                Client::tls(ferryd.address(), &certificate),
            ] {
                hidden.extend(everything(client.with(user.clone())));
            }
        }
        let log = ferryd.stop().expect_success().stderr.clone();
        assert!(log.contains("allocation ended"), "{log}");
        for secret in hidden {
            // As a text, as Debug writes bytes, and as hexadecimal digits.
            let bytes = format!("{:?}", secret.as_bytes());
            let digits: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
            for form in [secret.as_str(), bytes.trim_matches(['[', ']']), &digits] {
                assert!(!log.contains(form), "{form} is in the log:\n{log}");
            }
        }
    }
}

#[test]
fn a_crash_writes_no_memory_to_a_file() {
    let ferryd = Ferryd::start(|_| {});
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", ferryd.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(line.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{line}");
}

#[test]
fn other_processes_read_no_memory_of_it_and_no_key_file_is_left_lying_in_it() {
    let ferryd = Ferryd::start(|config| {
        Certificate::configured(config);
        config.set("auth.shared-secrets", format!("[\"{SECRET}\"]"));
    });
    let Some(memory) = Memory::of(&ferryd) else {
        // Not by its own user; what follows needs root.
        return;
    };
    assert!(
        memory.holds(PASSWORD.as_bytes()),
        "what it has to know is seen where it is: this test looks in the right place"
    );
    assert!(memory.holds(SECRET.as_bytes()));
    let pem = std::fs::read_to_string(Certificate::of(&ferryd.config).key).unwrap();
    // A part of it, as freed memory is soon written to here and there.
    assert!(!memory.holds(&pem.lines().nth(1).unwrap().as_bytes()[32..]), "the private key's file");
    // What rustls and OpenSSL work with is in other forms.
    assert!(!memory.holds(&private_value(&pem)), "what the file says");
    let configuration = std::fs::read_to_string(ferryd.file()).unwrap();
    let lines: Vec<&str> =
        configuration.lines().filter(|line| line.contains(PASSWORD) || line.contains(SECRET)).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    for line in lines {
        assert!(!memory.holds(line.as_bytes()), "the configuration's text");
    }
}

/// What a process has written to, and no file: runs of pages that are not all zero.
struct Memory(Vec<Vec<u8>>);

impl Memory {
    /// `None` where this user may not read it.
    fn of(ferryd: &Ferryd) -> Option<Self> {
        let mut memory = std::fs::File::open(format!("/proc/{}/mem", ferryd.id())).ok()?;
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", ferryd.id())).unwrap();
        let mut runs = Vec::new();
        for line in maps.lines() {
            let mut words = line.split_whitespace();
            let (range, rights) = (words.next().unwrap(), words.next().unwrap());
            if !rights.starts_with("rw") || words.nth(2) != Some("0") {
                continue;
            }
            let (from, to) = range.split_once('-').unwrap();
            let (from, to) = (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap());
            let mut bytes = vec![0; (to - from) as usize];
            memory.seek(SeekFrom::Start(from)).unwrap();
            if memory.read_exact(&mut bytes).is_ok() {
                runs.extend(
                    bytes.chunks(PAGE).collect::<Vec<_>>().split(|page| **page == [0; PAGE]).map(<[_]>::concat),
                );
            }
        }
        Some(Self(runs))
    }

    fn holds(&self, wanted: &[u8]) -> bool {
        self.0.iter().any(|bytes| bytes.windows(wanted.len()).any(|window| window == wanted))
    }
}

/// The number that is a P-256 key, as PKCS #8 writes it: 32 octets (RFC 5915 section 3).
fn private_value(pem: &str) -> Vec<u8> {
    use base64::Engine;
    let text: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let der = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    let at = der.windows(5).position(|window| window == [0x02, 0x01, 0x01, 0x04, 0x20]).unwrap() + 5;
    der[at..at + 32].to_vec()
}

/// Every request, right and wrong; what must not be logged of it.
fn everything(mut client: Client) -> Vec<String> {
    let peer = "127.0.0.4:9".parse().unwrap();
    if client.try_allocate().is_ok() {
        client.permit(peer).unwrap();
        client.bind_channel(0x4000, peer).unwrap();
        client.send_by_channel(0x4000, b"payload");
        assert_eq!(client.permit("10.0.0.1:1".parse().unwrap()), Err(403));
        client.refresh(600).unwrap();
    }
    let nonce = String::from_utf8(client.challenge.clone().unwrap().nonce).unwrap();
    let key = Client::key_of(&client.user.name, "ferryd", &client.user.password);
    let key: String = key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    vec![client.user.password, nonce, key]
}

#[test]
fn nothing_that_a_stranger_sends_is_logged_above_debug() {
    let ferryd = Ferryd::start(|config| _ = Certificate::configured(config));
    let before = ferryd.log();
    let mut client = Client::udp(ferryd.address()).with(User::new("mallory", "T8hPfQ2nVx7Kd"));
    client.wire.send(b"garbage");
    assert_eq!(client.try_allocate(), Err(401));
    for garbage in [&b"garbage\r\n"[..], b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x04abcd", b"\x00\x01\x00\x03"] {
        let mut stream = Stream::plain(ferryd.address());
        stream.write(garbage);
        stream.rest();
    }
    let mut stream = Client::tcp(ferryd.address()).with(User::new("mallory", "T8hPfQ2nVx7Kd"));
    assert_eq!(stream.try_allocate(), Err(401));
    client.bind();
    assert_eq!(ferryd.stop().stderr[before.len()..].trim().lines().count(), 1, "the stop alone is told");
}
