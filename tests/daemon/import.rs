//! `import`: from a turnserver.conf to a running ferryd.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::client::User;
use crate::ferryd::{PASSWORD, Process, command, run};
use crate::independent::{self, Way};
use crate::place;

#[test]
fn what_is_imported_relays_for_the_same_user() {
    let directory = tempfile::tempdir().unwrap();
    let (ip, port) = (place::own_address(), place::free_port());
    let coturn = directory.path().join("turnserver.conf");
    let lines = format!(
        "listening-ip={ip}\nlistening-port={port}\nrelay-ip={ip}\nlt-cred-mech\nrealm=example.org\nuser=carol:{PASSWORD}\n\
         allow-loopback-peers\nallowed-peer-ip=10.0.0.0-10.255.255.255\nno-cli\n"
    );
    fs::write(&coturn, lines).unwrap();
    let ended = run(&["import", coturn.to_str().unwrap()]);
    let imported = ended.expect_success().stdout.clone();
    assert!(!ended.stderr.contains(PASSWORD), "{}", ended.stderr);
    assert!(ended.stderr.contains("made safer: line 7, allow-loopback-peers: refused"), "{}", ended.stderr);
    // Peers of tests are on loopback, which an import never opens, and the state of a test is nobody's.
    assert!(imported.contains("[peers]\nallow = [\"10.0.0.0/8\"]"), "{imported}");
    let opened = imported.replace("allow = [", "allow = [\"127.0.0.0/8\", ");
    let opened = opened.replace("state-directory = \"/var/lib/ferryd\"\n", "");
    let made = directory.path().join("ferryd.toml");
    fs::write(&made, opened).unwrap();
    let mut ferryd = Process::spawn(&mut command(&["--config", made.to_str().unwrap()]));
    assert!(ferryd.serves(), "{}", ferryd.stderr.text());
    independent::relays((ip, port).into(), &Way::Udp, &User::new("carol", PASSWORD));
}

#[test]
fn an_output_is_a_new_file_that_others_cannot_read() {
    let directory = tempfile::tempdir().unwrap();
    let (coturn, made) = (directory.path().join("turnserver.conf"), directory.path().join("ferryd.toml"));
    fs::write(&coturn, format!("user=carol:{PASSWORD}\n")).unwrap();
    let arguments = ["import", coturn.to_str().unwrap(), "--output", made.to_str().unwrap()];
    let ended = run(&arguments);
    assert!(ended.expect_success().stderr.ends_with(&format!("next: ferryd check --config {}\n", made.display())));
    assert_eq!(ended.stdout, "");
    assert_eq!(fs::metadata(&made).unwrap().permissions().mode() & 0o007, 0);
    let text = fs::read_to_string(&made).unwrap();
    run(&["check", "--config", made.to_str().unwrap()]).expect_success();
    run(&arguments).expect_failure(1, &["ferryd.toml: cannot be written", "move it away"]);
    assert_eq!(fs::read_to_string(&made).unwrap(), text);
}

#[test]
fn what_cannot_be_read_is_named() {
    run(&["import", "/nonexistent/turnserver.conf"])
        .expect_failure(1, &["/nonexistent/turnserver.conf: cannot be read"]);
    run(&["import", "/dev/zero"]).expect_failure(1, &["/dev/zero: cannot be read (more than 16 MiB)"]);
    run(&["import"]).expect_failure(2, &["TURNSERVER.CONF"]);
}
