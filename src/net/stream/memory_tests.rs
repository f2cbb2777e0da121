use rustls::StreamOwned;

use super::tests::tls_pair;
use super::*;
use crate::net::test_tls::{client, established, handshake, wait_until};

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

const MEASURED_CONNECTIONS: usize = 400;

/// Runs alone in a process of its own, see below.
#[test]
#[ignore = "run by an_idle_tls_client_costs_little in a process of its own"]
fn measure_idle_tls_clients() {
    let (server_config, tls13, tls12) = tls_pair();
    let mut measured = Vec::new();
    for config in [tls13, tls12] {
        let mut buffers = Buffers::default();
        let mut connect = || {
            let mut tls_client = client(&config, "turn.example");
            let (established, stream) = established(Some(handshake(&server_config, &mut tls_client)));
            let mut connection = Connection::new(established, QueueLimits::default());
            let mut client = StreamOwned::new(tls_client, stream);
            client.write_all(&[1; 20_000]).unwrap();
            wait_until("bytes", || {
                connection.fill(&mut buffers, usize::MAX, false).unwrap();
                connection.received().len() == 20_000
            });
            connection.consume(20_000);
            connection.settle(&mut buffers);
            let now = Instant::now();
            connection.send(now, Class::Data, &[2; 20_000], &[], 0, &mut buffers).unwrap();
            while connection.flush(now, &mut buffers).unwrap() == Flush::Blocked {
                let _ = client.sock.peek(&mut [0; 1]);
            }
            client.read_exact(&mut [0; 20_000]).unwrap();
            (connection, client.sock)
        };
        measured.extend((0..50).map(|_| connect()));
        let before = resident();
        measured.extend((0..MEASURED_CONNECTIONS).map(|_| connect()));
        println!("bytes per client: {}", (resident() - before) / MEASURED_CONNECTIONS);
    }
}

#[test]
fn an_idle_tls_client_costs_little() {
    let test = format!("{}::measure_idle_tls_clients", module_path!().split_once("::").unwrap().1);
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([&test, "--exact", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let bytes: Vec<usize> = text.lines().filter_map(|l| l.strip_prefix("bytes per client: ")?.parse().ok()).collect();
    assert_eq!(bytes.len(), 2, "{text}");
    // The target is 12 KiB for all of an idle TLS client; an allocation has to fit in beside this.
    assert!(bytes.iter().all(|&bytes| bytes < 9 * 1024), "{bytes:?}");
}
