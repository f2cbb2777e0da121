//! The long-term credential mechanism (RFC 8489 section 9.2), check by check in its order.

use ferryd::address::Transport;
use ferryd::auth::long_term::PasswordAlgorithm;
use ferryd::stun::integrity::IntegrityKey;
use ferryd::stun::{AttributeType, Builder, Class, Method};

use crate::harness::{ALICE, BOB, Client, Integrity, Signed, World, secs};

/// PASSWORD-ALGORITHMS with SHA-256 preferred to MD5.
const BOTH: [u8; 8] = [0, 2, 0, 0, 0, 1, 0, 0];

fn cookie_bits(nonce: &[u8]) -> u8 {
    assert_eq!(&nonce[..9], b"obMatJos2");
    let sextet = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        _ => panic!("only the first two bits are in use"),
    };
    assert_eq!(&nonce[10..13], b"AAA", "the other 22 bits are zero");
    sextet(nonce[9]) << 2
}

fn udp(builder: &mut Builder<'_>) {
    builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
}

#[test]
fn a_request_without_integrity_is_challenged_with_401() {
    // RFC 8489 section 9.2.4: "If the message does not contain a MESSAGE-INTEGRITY or MESSAGE-INTEGRITY-SHA256
    // attribute, the server MUST generate an error response with an error code of 401 (Unauthenticated). This response
    // MUST include a REALM value. The response MUST include a NONCE, selected by the server. [..] The response SHOULD
    // NOT contain a USERNAME, USERHASH, MESSAGE-INTEGRITY, or MESSAGE-INTEGRITY-SHA256 attribute."
    let mut world = World::new();
    for method in [Method::Allocate, Method::Refresh, Method::CreatePermission, Method::ChannelBind] {
        let mut client = Client::new("198.51.100.1:1000");
        let request = client.unsigned(method, |builder| _ = builder.attribute(AttributeType::USERNAME, b"alice"));
        let reply = client.exchange(&mut world, &request).unwrap();
        assert_eq!((reply.result(), reply.signed()), (Err(401), Signed::No), "{method:?}");
        let kinds =
            [AttributeType::ERROR_CODE, AttributeType::REALM, AttributeType::NONCE, AttributeType::PASSWORD_ALGORITHMS];
        assert_eq!(reply.kinds()[..4], kinds);
        assert_eq!(reply.value(AttributeType::REALM).unwrap(), b"ferryd");
        assert_eq!(reply.value(AttributeType::PASSWORD_ALGORITHMS).unwrap(), BOTH);
    }
    assert_eq!(world.workers[0].allocations(), 0, "no state before a valid nonce comes back");
}

#[test]
fn nonces_begin_with_the_cookie_and_its_feature_bits() {
    // RFC 8489 section 9.2: "a server MUST prepend the NONCE attribute value with the character string composed of
    // "obMatJos2" concatenated with the (4-character) base64 encoding of the 24-bit STUN Security Features". Section
    // 9.2.4: "If the server adds a PASSWORD-ALGORITHMS attribute, it MUST set the STUN Security Feature "Password
    // algorithms" bit to 1."
    let mut with_secrets = World::new();
    let mut client = Client::over("198.51.100.1:1000", Transport::Tcp);
    client.challenge(&mut with_secrets);
    assert_eq!(cookie_bits(client.nonce.as_deref().unwrap()), 0x80);
    // "The server MAY support anonymous username, in which case it MUST set the STUN Security Feature "Username
    // anonymity" bit set to 1": only where a hash finds every user.
    let mut enumerable = World::with(|setup| setup.without_shared_secrets());
    client.challenge(&mut enumerable);
    assert_eq!(cookie_bits(client.nonce.as_deref().unwrap()), 0xC0);
}

#[test]
fn nonces_are_short_printable_and_differ_between_clients() {
    // RFC 8489 section 14.10: "The NONCE attribute MUST be fewer than 128 characters". Section 9.2.4: "The server MUST
    // NOT choose the same NONCE for two requests unless they have the same source IP address and port."
    let mut world = World::new();
    let mut nonces = Vec::new();
    for (address, transport) in [
        ("198.51.100.1:1000", Transport::Udp),
        ("198.51.100.1:1001", Transport::Udp),
        ("198.51.100.2:1000", Transport::Udp),
        ("198.51.100.1:1000", Transport::Tcp),
        ("198.51.100.1:1000", Transport::Tls),
    ] {
        let mut client = Client::over(address, transport);
        client.challenge(&mut world);
        let nonce = client.nonce.unwrap();
        assert!(nonce.len() < 128 && nonce.iter().all(|byte| byte.is_ascii_graphic() && !b"\"\\".contains(byte)));
        nonces.push(nonce);
    }
    nonces.sort();
    nonces.dedup();
    assert_eq!(nonces.len(), 5);
}

#[test]
fn challenges_are_at_most_twice_as_long_as_their_requests() {
    // Field notes, section 4: lean 401; IP and UDP headers counted.
    let mut world = World::new();
    for (address, headers) in [("198.51.100.1:1000", 28), ("[2001:db8:7::1]:1000", 48)] {
        for fingerprint in [false, true] {
            let mut client = Client::new(address);
            client.fingerprint = fingerprint;
            let mut smallest = client.unsigned(Method::Allocate, |_| {});
            let chrome = client.unsigned(Method::Allocate, udp);
            assert_eq!((smallest.len(), chrome.len()), if fingerprint { (28, 36) } else { (20, 28) });
            for request in [&mut smallest, &mut chrome.clone()] {
                let reply = client.exchange(&mut world, request).unwrap();
                assert_eq!(reply.result(), Err(401));
                assert!(
                    headers + reply.bytes.len() <= 2 * (headers + request.len()),
                    "{} {}",
                    reply.bytes.len(),
                    request.len()
                );
            }
            // Chrome's first Allocate learns the algorithms at once.
            let reply = client.exchange(&mut world, &chrome).unwrap();
            assert!(reply.has(AttributeType::PASSWORD_ALGORITHMS));
            // An exception, as there is no room for more.
            let told = (reply.reason(), reply.has(AttributeType::SOFTWARE));
            assert!(headers == 48 || fingerprint || told == (String::new(), false), "{told:?}");
        }
    }
}

#[test]
fn the_nonce_bit_goes_with_the_password_algorithms() {
    let mut world = World::with(|setup| setup.auth.realm = "turn.eu-west.example.org".to_owned());
    for (transport, offered) in [(Transport::Udp, false), (Transport::Tcp, true)] {
        let mut client = Client::over("198.51.100.1:1000", transport);
        let reply = client.challenge(&mut world);
        assert_eq!(reply.has(AttributeType::PASSWORD_ALGORITHMS), offered, "{transport:?}");
        assert_eq!(cookie_bits(client.nonce.as_deref().unwrap()) & 0x80 != 0, offered);
        assert_eq!(client.allocate(&mut world).result(), Ok(()));
    }
}

#[test]
fn errors_on_streams_have_a_reason_phrase() {
    let mut world = World::new();
    let mut client = Client::over("198.51.100.1:1000", Transport::Tls);
    assert_eq!(client.challenge(&mut world).reason(), "Unauthenticated");
}

#[test]
fn strangers_are_told_reason_and_software_without_version_where_the_answer_stays_short() {
    // RFC 8489 section 6.3.1.1: "The reason phrase is not fixed but SHOULD be something suitable for the error code. [..]
    // In addition, the server SHOULD add a SOFTWARE attribute to the message."
    let mut world = World::with(|setup| setup.turn.software = Some("ferryd 1.2.3".to_owned()));
    for (address, headers) in [("198.51.100.1:1000", 28), ("[2001:db8:7::1]:1000", 48)] {
        let mut client = Client::new(address);
        client.challenge(&mut world);
        let full = client.signed(Method::Allocate, udp);
        client.password = "wrong".to_owned();
        let wrong = client.signed(Method::Allocate, udp);
        client.password = ALICE.to_owned();
        client.nonce = Some(b"stale".to_vec());
        let stale = client.signed(Method::Refresh, |_| {});
        for (request, code, reason) in [(wrong, 401, "Unauthenticated"), (stale, 438, "Stale Nonce")] {
            let reply = client.exchange(&mut world, &request).unwrap();
            assert_eq!((reply.result(), reply.reason().as_str()), (Err(code), reason));
            assert_eq!(reply.value(AttributeType::SOFTWARE).unwrap(), b"ferryd");
            assert!(headers + reply.bytes.len() <= 2 * (headers + request.len()));
        }
        assert_eq!(
            client.exchange(&mut world, &full).unwrap().value(AttributeType::SOFTWARE).unwrap(),
            b"ferryd 1.2.3"
        );
        // Whatever the length of a request is, its answer is at most twice as long, and tells what has room.
        let mut told = [0; 3];
        for padding in 0..60 {
            let request = client.unsigned(Method::Allocate, |builder| {
                builder.attribute(AttributeType(0x8FFF), &[0; 60][..padding]);
            });
            let reply = client.exchange(&mut world, &request).unwrap();
            assert!(headers + reply.bytes.len() <= 2 * (headers + request.len()), "{padding}");
            let has = [
                reply.has(AttributeType::PASSWORD_ALGORITHMS),
                !reply.reason().is_empty(),
                reply.has(AttributeType::SOFTWARE),
            ];
            for (told, has) in told.iter_mut().zip(has) {
                *told += usize::from(has);
            }
        }
        assert!(told.iter().all(|answers| (20..=60).contains(answers)), "{told:?}");
    }
}

#[test]
fn credentials_are_those_of_the_realm() {
    // RFC 8489 section 14.9: "Presence in certain error responses indicates that the server wishes the client to use a
    // long-term credential in that realm for authentication."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.challenge(&mut world);
    let naming = |client: &mut Client, method, realm: &[u8]| {
        let id = client.transaction();
        let mut bytes = Vec::new();
        let mut builder = Builder::new(&mut bytes, method, Class::Request, id);
        udp(&mut builder);
        builder.attribute(AttributeType::USERNAME, b"alice").attribute(AttributeType::REALM, realm);
        builder.attribute(AttributeType::NONCE, client.nonce.as_deref().unwrap()).integrity(&client.key());
        bytes
    };
    for realm in [&b""[..], b"other", b"ferry", b"ferryd.org", b"\"ferryd", b"\0ferryd", b"Ferryd", b"\"", b"\xFF"] {
        let request = naming(&mut client, Method::Allocate, realm);
        let reply = client.exchange(&mut world, &request).unwrap();
        assert_eq!((reply.result(), reply.signed()), (Err(401), Signed::No), "{realm:?}");
        assert_eq!(reply.value(AttributeType::REALM).unwrap(), b"ferryd");
    }
    // Section 9.2.2: "with any quotes and trailing nulls removed".
    for realm in [&b"\"ferryd\""[..], b"ferryd\0\0", b"\"ferryd\"\0"] {
        let request = naming(&mut client, Method::Allocate, realm);
        assert_eq!(client.exchange(&mut world, &request).unwrap().result(), Ok(()), "{realm:?}");
        assert_eq!(client.refresh(&mut world, Some(0)).result(), Ok(()));
    }
    // What was allocated in another realm goes on.
    client.allocate(&mut world).relay();
    world.reload(|setup| setup.auth.realm = "other".to_owned());
    assert_eq!(client.refresh(&mut world, None).result(), Ok(()));
    let request = naming(&mut client.clone(), Method::CreatePermission, b"ferryd");
    assert_eq!(client.exchange(&mut world, &request).unwrap().result(), Err(400), "no peer, and authenticated");
}

#[test]
fn integrity_without_the_attributes_that_it_needs_is_rejected_with_400() {
    // RFC 8489 section 9.2.4: "If the message contains a MESSAGE-INTEGRITY or a MESSAGE-INTEGRITY-SHA256 attribute, but
    // is missing either the USERNAME or USERHASH, REALM, or NONCE attribute, the server MUST generate an error response
    // with an error code of 400 (Bad Request). This response SHOULD NOT include a USERNAME, USERHASH, NONCE, or REALM
    // attribute. The response cannot contain a MESSAGE-INTEGRITY or MESSAGE-INTEGRITY-SHA256 attribute".
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.challenge(&mut world);
    for missing in [AttributeType::USERNAME, AttributeType::REALM, AttributeType::NONCE] {
        for integrity in [Integrity::Sha1, Integrity::Sha256, Integrity::Both] {
            client.integrity = integrity;
            let id = client.transaction();
            let mut bytes = Vec::new();
            let mut builder = Builder::new(&mut bytes, Method::Allocate, Class::Request, id);
            udp(&mut builder);
            let nonce = client.nonce.clone().unwrap();
            let all = [
                (AttributeType::USERNAME, &b"alice"[..]),
                (AttributeType::REALM, b"ferryd"),
                (AttributeType::NONCE, &nonce),
            ];
            for (kind, value) in all.into_iter().filter(|(kind, _)| *kind != missing) {
                builder.attribute(kind, value);
            }
            client.write_integrity(&mut builder);
            let reply = client.exchange(&mut world, &bytes).unwrap();
            assert_eq!((reply.result(), reply.signed()), (Err(400), Signed::No), "{missing:?}");
            assert_eq!(reply.kinds(), [AttributeType::ERROR_CODE, AttributeType::SOFTWARE]);
        }
    }
}

#[test]
fn md5_with_message_integrity_is_accepted_and_answered_with_message_integrity() {
    // RFC 8489 section 9.2.4: "If the request contains neither the PASSWORD-ALGORITHMS nor the PASSWORD-ALGORITHM
    // algorithm, then the request is processed as though PASSWORD-ALGORITHM were MD5." Section 9.2.4: "In that case,
    // the MESSAGE-INTEGRITY attribute MUST be used instead of the MESSAGE-INTEGRITY-SHA256 attribute, and the REALM,
    // NONCE, USERNAME, and USERHASH attributes SHOULD NOT be included."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    for integrity in [Integrity::Sha1, Integrity::Sha256, Integrity::Both] {
        client.integrity = integrity;
        let reply = client.refresh(&mut world, None);
        assert_eq!((reply.result(), reply.signed()), (Err(437), Signed::Sha1), "{integrity:?}");
        for kind in [AttributeType::REALM, AttributeType::NONCE, AttributeType::USERNAME, AttributeType::USERHASH] {
            assert!(!reply.has(kind));
        }
    }
}

#[test]
fn a_named_algorithm_is_answered_with_message_integrity_sha256() {
    // RFC 8489 section 9.2.4: "Any response generated by the server MUST include the MESSAGE-INTEGRITY-SHA256
    // attribute, computed using the username and password utilized to authenticate the request, unless the request was
    // processed as though PASSWORD-ALGORITHM was MD5 (because the request contained neither PASSWORD-ALGORITHMS nor
    // PASSWORD-ALGORITHM)."
    let mut world = World::new();
    for algorithm in [PasswordAlgorithm::Md5, PasswordAlgorithm::Sha256] {
        for integrity in [Integrity::Sha1, Integrity::Sha256, Integrity::Both] {
            let mut client = Client::new("198.51.100.1:1000");
            (client.algorithm, client.integrity) = (Some(algorithm), integrity);
            let reply = client.refresh(&mut world, None);
            assert_eq!((reply.result(), reply.signed()), (Err(437), Signed::Sha256), "{algorithm:?} {integrity:?}");
        }
    }
}

#[test]
fn contradictory_password_algorithms_are_rejected_with_400() {
    // RFC 8489 section 9.2.4: "Otherwise, unless (1) PASSWORD-ALGORITHM and PASSWORD-ALGORITHMS are both present, (2)
    // PASSWORD-ALGORITHMS matches the value sent in the response that sent this NONCE, and (3) PASSWORD-ALGORITHM
    // matches one of the entries in PASSWORD-ALGORITHMS, the server MUST generate an error response with an error code
    // of 400".
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000").sha256();
    client.challenge(&mut world);
    type Value = Option<&'static [u8]>;
    let cases: [(Value, Value); 10] = [
        (Some(&BOTH), None),
        (None, Some(&[0, 2, 0, 0])),
        (None, Some(&[0, 1, 0, 0])),
        (Some(&[0, 1, 0, 0]), Some(&[0, 1, 0, 0])),
        (Some(&[0, 1, 0, 0, 0, 2, 0, 0]), Some(&[0, 2, 0, 0])),
        (Some(&BOTH), Some(&[0, 3, 0, 0])),
        (Some(&BOTH), Some(&[0, 0, 0, 0])),
        (Some(&BOTH), Some(&[0, 2, 0, 4, 1, 2, 3, 4])),
        (Some(&BOTH), Some(&[])),
        (Some(&[]), Some(&[0, 2, 0, 0])),
    ];
    for (offered, chosen) in cases {
        let id = client.transaction();
        let mut bytes = Vec::new();
        let mut builder = Builder::new(&mut bytes, Method::Allocate, Class::Request, id);
        udp(&mut builder);
        builder.attribute(AttributeType::USERNAME, b"alice").attribute(AttributeType::REALM, b"ferryd");
        builder.attribute(AttributeType::NONCE, client.nonce.as_deref().unwrap());
        if let Some(offered) = offered {
            builder.attribute(AttributeType::PASSWORD_ALGORITHMS, offered);
        }
        if let Some(chosen) = chosen {
            builder.attribute(AttributeType::PASSWORD_ALGORITHM, chosen);
        }
        client.write_integrity(&mut builder);
        let reply = client.exchange(&mut world, &bytes).unwrap();
        assert_eq!((reply.result(), reply.signed()), (Err(400), Signed::No), "{offered:?} {chosen:?}");
    }
}

#[test]
fn a_nonce_whose_feature_bits_were_taken_away_is_stale() {
    // RFC 8489 section 9.2.1: "To prevent these kinds of attacks from going undetected, the nonce is enhanced".
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.challenge(&mut world);
    client.nonce.as_mut().unwrap()[9] = b'A';
    assert_eq!(client.allocate(&mut world).result(), Err(438));
}

#[test]
fn unknown_users_and_wrong_passwords_get_the_same_401() {
    // RFC 8489 section 9.2.4: "If the value of the USERNAME or USERHASH attribute is not valid, the server MUST
    // generate an error response with an error code of 401 (Unauthenticated). This response MUST include a REALM value.
    // The response MUST include a NONCE, selected by the server. The response MUST include a PASSWORD-ALGORITHMS
    // attribute. The response SHOULD NOT contain a USERNAME or USERHASH attribute."
    let mut world = World::new();
    let kinds = [
        AttributeType::ERROR_CODE,
        AttributeType::REALM,
        AttributeType::NONCE,
        AttributeType::PASSWORD_ALGORITHMS,
        AttributeType::SOFTWARE,
    ];
    let mut answers = Vec::new();
    for (username, password) in [("nobody", ALICE), ("alice", "wrong"), ("", ""), ("alice", BOB)] {
        let mut client = Client::new("198.51.100.1:1000").user(username, password);
        let reply = client.allocate(&mut world);
        assert_eq!((reply.result(), reply.signed()), (Err(401), Signed::No), "{username}");
        assert_eq!(reply.kinds(), kinds);
        answers.push(reply.bytes[20..].to_vec());
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "nothing tells an unknown user from a wrong password");
}

#[test]
fn usernames_that_are_no_utf8_or_too_long_are_unknown() {
    // RFC 8489 section 14.3: a username of "763 or fewer octets" must be parsed; the longest possible one costs no
    // more.
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.challenge(&mut world);
    for username in [&[0xFF, 0xFE][..], &[b'a'; 763], &"\u{e9}".repeat(400).into_bytes(), &[b'1'; 60_000]] {
        let id = client.transaction();
        let mut bytes = Vec::new();
        let mut builder = Builder::new(&mut bytes, Method::Allocate, Class::Request, id);
        builder.attribute(AttributeType::USERNAME, username).attribute(AttributeType::REALM, b"ferryd");
        builder.attribute(AttributeType::NONCE, client.nonce.as_deref().unwrap());
        client.write_integrity(&mut builder);
        assert_eq!(client.exchange(&mut world, &bytes).unwrap().result(), Err(401));
    }
}

#[test]
fn integrity_of_a_wrong_length_is_wrong() {
    // RFC 8489 section 14.6: "The value must be the full 32 bytes unless the STUN Usage explicitly specifies that
    // truncation is allowed."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000").sha256();
    client.challenge(&mut world);
    for (kind, lengths) in [
        (AttributeType::MESSAGE_INTEGRITY_SHA256, &[0, 4, 12, 16, 20, 28][..]),
        (AttributeType::MESSAGE_INTEGRITY, &[0, 4, 16, 24]),
    ] {
        for &length in lengths {
            let id = client.transaction();
            let mut bytes = Vec::new();
            let mut builder = Builder::new(&mut bytes, Method::Allocate, Class::Request, id);
            udp(&mut builder);
            client.write_credentials(&mut builder);
            builder.attribute(kind, &vec![0; length]);
            let (key, covered) = (client.key(), bytes.len() - 4 - length);
            let mac: Vec<u8> = match kind {
                AttributeType::MESSAGE_INTEGRITY => key.sha1([&bytes[..covered]]).to_vec(),
                _ => key.sha256([&bytes[..covered]]).to_vec(),
            };
            let len = length.min(mac.len());
            bytes[covered + 4..covered + 4 + len].copy_from_slice(&mac[..len]);
            assert_eq!(client.exchange(&mut world, &bytes).unwrap().result(), Err(401), "{kind:?} of {length}");
        }
    }
}

#[test]
fn a_tampered_request_is_rejected_with_401() {
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.challenge(&mut world);
    let good = client.signed(Method::Allocate, |builder| {
        udp(builder);
        builder.u32(AttributeType::LIFETIME, 600);
    });
    let mut tampered = good.clone();
    tampered[20 + 8 + 7] ^= 1;
    assert_eq!(client.exchange(&mut world, &tampered).unwrap().result(), Err(401));
    assert_eq!(client.exchange(&mut world, &good).unwrap().result(), Ok(()));
}

#[test]
fn where_both_integrity_attributes_are_sha256_decides() {
    // RFC 8489 section 9.2.4: "If the MESSAGE-INTEGRITY-SHA256 attribute is present, compute the value for the message
    // integrity as described in Section 14.6 [..]. Otherwise, using the same password, compute the value for the
    // MESSAGE-INTEGRITY attribute".
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.challenge(&mut world);
    let wrong = IntegrityKey::new(b"wrong").unwrap();
    for (first, second, expected) in [(client.key(), wrong.clone(), Err(401)), (wrong, client.key(), Ok(()))] {
        let id = client.transaction();
        let mut bytes = Vec::new();
        let mut builder = Builder::new(&mut bytes, Method::Allocate, Class::Request, id);
        udp(&mut builder);
        client.write_credentials(&mut builder);
        builder.integrity(&first).integrity_sha256(&second);
        assert_eq!(client.exchange(&mut world, &bytes).unwrap().result(), expected);
    }
}

#[test]
fn a_stale_nonce_is_rejected_with_438_and_a_fresh_one() {
    // RFC 8489 section 9.2.4: "If the NONCE is no longer valid, the server MUST generate an error response with an
    // error code of 438 (Stale Nonce). This response MUST include NONCE, REALM, and PASSWORD-ALGORITHMS attributes and
    // SHOULD NOT include the USERNAME and USERHASH attributes. The NONCE attribute value MUST be valid."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate_with(&mut world, |builder| _ = builder.u32(AttributeType::LIFETIME, 3600)).relay();
    world.advance(secs(1800));
    client.refresh(&mut world, Some(3600));
    world.advance(secs(1800));
    let reply = client.refresh(&mut world, None);
    assert_eq!(reply.result(), Err(438));
    let kinds = [
        AttributeType::ERROR_CODE,
        AttributeType::REALM,
        AttributeType::NONCE,
        AttributeType::PASSWORD_ALGORITHMS,
        AttributeType::SOFTWARE,
    ];
    assert_eq!(reply.kinds(), kinds);
    client.learn(&reply);
    assert_eq!(client.refresh(&mut world, None).result(), Ok(()));
}

#[test]
fn a_nonce_expires_within_the_hour() {
    // RFC 8656 section 5: the server "SHOULD expire the nonce at least once every hour during the lifetime of the
    // allocation", wherever between two units of its resolution it was issued.
    for offset in [0, 1, 8, 15] {
        let mut world = World::new();
        world.advance(secs(offset));
        let mut client = Client::new("198.51.100.1:1000");
        client.challenge(&mut world);
        world.advance(secs(3570));
        assert_eq!(client.refresh(&mut world, None).result(), Err(437), "still fresh");
        world.advance(secs(30));
        assert_eq!(client.refresh(&mut world, None).result(), Err(438), "issued {offset} s into a unit");
    }
}

#[test]
fn integrity_is_judged_before_the_nonce() {
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000").user("alice", "wrong");
    client.challenge(&mut world);
    client.nonce = Some(b"stale".to_vec());
    assert_eq!(client.allocate(&mut world).result(), Err(401));
    client.password = ALICE.to_owned();
    assert_eq!(client.allocate(&mut world).result(), Err(438));
}

#[test]
fn a_nonce_of_another_client_is_stale() {
    let mut world = World::new();
    let mut first = Client::new("198.51.100.1:1000");
    first.challenge(&mut world);
    for (address, transport) in [
        ("198.51.100.1:1001", Transport::Udp),
        ("198.51.100.2:1000", Transport::Udp),
        ("198.51.100.1:1000", Transport::Tcp),
    ] {
        let mut other = Client::over(address, transport);
        other.nonce.clone_from(&first.nonce);
        let reply = other.allocate(&mut world);
        assert_eq!(reply.result(), Err(438));
        other.learn(&reply);
        assert_eq!(other.allocate(&mut world).result(), Ok(()), "{address}");
    }
}

#[test]
fn any_worker_accepts_the_nonce_of_another() {
    // Field notes, section 1: "438 on Allocate is fatal": the nonce of a 401 is accepted by whichever worker comes
    // next.
    let mut world = World::with(|setup| setup.workers = 2);
    let mut client = Client::new("198.51.100.1:1000");
    client.challenge(&mut world);
    assert_eq!(client.on_worker(1).allocate(&mut world).result(), Ok(()));
}

#[test]
fn a_restarted_server_with_the_same_key_accepts_old_nonces() {
    let mut client = Client::new("198.51.100.1:1000");
    client.challenge(&mut World::new());
    assert_eq!(client.allocate(&mut World::new()).result(), Ok(()));
}
