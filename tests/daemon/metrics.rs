//! The metrics page against what a client has done.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::admin::call;
use crate::certificate::Certificate;
use crate::client::{Client, User};
use crate::ferryd::{Config, Ferryd, PASSWORD, refused};
use crate::place;

pub(crate) fn get(address: SocketAddr, path: &str) -> String {
    get_with(address, path, "")
}

fn get_with(address: SocketAddr, path: &str, header: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: ferryd\r\nConnection: close\r\n{header}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The value of one series of the page.
pub(crate) fn value(page: &str, series: &str) -> f64 {
    let line = page.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
    let line = line.unwrap_or_else(|| panic!("{series} is missing in:\n{page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Has a ferryd serve the page, for [`metric`].
pub(crate) fn with_metrics(config: &mut Config) {
    config.text("metrics.address", SocketAddr::from((config.ip, place::free_port())));
}

/// The value of one series now.
pub(crate) fn metric(ferryd: &Ferryd, series: &str) -> u64 {
    value(&get(address(ferryd), "/metrics"), series) as u64
}

fn address(ferryd: &Ferryd) -> SocketAddr {
    ferryd.config.get("metrics.address").parse().unwrap()
}

#[test]
fn the_page_counts_what_a_client_has_done() {
    let ferryd = Ferryd::start(|config| {
        Certificate::configured(config);
        with_metrics(config);
    });
    let mut client = Client::udp(ferryd.address());
    let peer = place::peer();
    client.allocate();
    client.permit(peer.local_addr().unwrap()).unwrap();
    for _ in 0..3 {
        client.send_by_indication(peer.local_addr().unwrap(), b"counted");
        peer.recv(&mut [0; 16]).unwrap();
    }
    let mut stranger = Client::udp(ferryd.address()).with(User::new("mallory", "x"));
    assert_eq!(stranger.try_allocate(), Err(401));
    assert_eq!(metric(&ferryd, "ferryd_allocations"), 1);
    let page = get(address(&ferryd), "/metrics");
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("openmetrics-text"), "{page}");
    assert_eq!(value(&page, "ferryd_packets_total{direction=\"to_peer\",datapath=\"sockets\"}"), 3.0);
    assert_eq!(value(&page, "ferryd_requests_total{method=\"allocate\",result=\"success\"}"), 1.0);
    assert!(value(&page, "ferryd_requests_total{method=\"allocate\",result=\"401\"}") >= 3.0);
    assert_eq!(value(&page, "ferryd_relay_ports_used{family=\"ipv4\"}"), 1.0);
    let series = page.lines().find(|line| line.starts_with("ferryd_certificate_expired{")).unwrap();
    assert!(series.ends_with(" 0"), "{series}");
    assert_eq!(page.trim_end().lines().last(), Some("# EOF"));
}

#[test]
fn an_expired_certificate_shows() {
    let metrics = SocketAddr::from((place::own_address(), place::free_port()));
    let _ferryd = Ferryd::start(|config| {
        Certificate::until(&config.directory.clone(), "ferryd", 2021).set(config);
        config.text("metrics.address", metrics);
    });
    let page = get(metrics, "/metrics");
    let series = page.lines().find(|line| line.starts_with("ferryd_certificate_expired{")).unwrap();
    assert!(series.ends_with(" 1"), "{series}");
}

#[test]
fn nothing_but_the_page_and_the_readiness_is_there() {
    let metrics = SocketAddr::from((place::own_address(), place::free_port()));
    let _ferryd = Ferryd::start(|config| _ = config.text("metrics.address", metrics));
    assert!(get(metrics, "/ready").starts_with("HTTP/1.1 200"));
    assert!(get(metrics, "/").starts_with("HTTP/1.1 404"));
}

#[test]
fn an_address_that_is_none_is_told() {
    refused(|config| _ = config.text("metrics.address", "everywhere")).expect_failure(78, &["metrics.address"]);
}

#[test]
fn what_is_relayed_is_counted_while_the_calls_are_up_byte_for_byte() {
    let metrics = SocketAddr::from((place::own_address(), place::free_port()));
    let ferryd = Ferryd::start(|config| {
        Certificate::configured(config);
        config.text("metrics.address", metrics);
    });
    let certificate = Certificate::of(&ferryd.config);
    let (_udp, _first) = call(Client::udp(ferryd.address()));
    let (_more, _second) = call(Client::udp(ferryd.address()));
    let (_tcp, _third) = call(Client::tcp(ferryd.address()));
    let (mut tls, _fourth) = call(Client::tls(ferryd.address(), &certificate));
    let page = get(metrics, "/metrics");
    for (transport, calls) in [("udp", 2.0), ("tcp", 1.0), ("tls", 1.0)] {
        // Both data paths together: the kernel may have been told to carry channels of UDP.
        let of = |name: &str, direction: &str| {
            let datapaths: &[&str] = if transport == "udp" { &["sockets", "kernel"] } else { &["sockets"] };
            let labels = format!("direction=\"{direction}\",transport=\"{transport}\"");
            let series = |datapath| format!("ferryd_relayed_{name}_total{{{labels},datapath=\"{datapath}\"}}");
            datapaths.iter().map(|datapath| value(&page, &series(datapath))).sum::<f64>()
        };
        // Each call has sent 3 packets of 100 bytes and got 2 of 10.
        assert_eq!((of("packets", "to_peers"), of("bytes", "to_peers")), (3.0 * calls, 300.0 * calls), "{transport}");
        assert_eq!(
            (of("packets", "to_clients"), of("bytes", "to_clients")),
            (2.0 * calls, 20.0 * calls),
            "{transport}"
        );
        let live = format!("ferryd_relayed_addresses{{transport=\"{transport}\",family=\"ipv4\"}}");
        assert_eq!(value(&page, &live), calls, "{transport}");
    }
    let turns = value(&page, "ferryd_loop_turn_seconds_count");
    assert!(turns > 0.0 && value(&page, "ferryd_loop_turn_seconds_bucket{le=\"+Inf\"}") == turns);
    assert!(value(&page, "ferryd_descriptors") > 4.0 && value(&page, "ferryd_descriptors_max") > 4.0);
    assert_eq!(value(&page, "ferryd_last_reload_ok"), 1.0);
    assert_eq!(value(&page, "ferryd_reloads_total{result=\"refused\"}"), 0.0);
    tls.refresh(0).unwrap();
    let page = get(metrics, "/metrics");
    assert_eq!(value(&page, "ferryd_relayed_addresses{transport=\"tls\",family=\"ipv4\"}"), 0.0);
    let total = "ferryd_relayed_bytes_total{direction=\"to_peers\",transport=\"tls\",datapath=\"sockets\"}";
    assert_eq!(value(&page, total), 300.0, "what has ended stays counted");
}

#[test]
fn users_are_named_where_that_is_asked_for_and_no_more_than_that() {
    let mut ferryd = Ferryd::start(|config| {
        with_metrics(config);
        let users = ["alice", "bob", "carol"].map(|name| format!("{{ name = \"{name}\", password = \"{PASSWORD}\" }}"));
        config.set("auth.user", format!("[{}]", users.join(", ")));
    });
    let as_user = |ferryd: &Ferryd, name: &str| Client::udp(ferryd.address()).with(User::new(name, PASSWORD));
    let mut calls = vec![call(as_user(&ferryd, "alice")), call(as_user(&ferryd, "alice"))];
    assert!(!get(address(&ferryd), "/metrics").contains("alice"), "no name without being asked for");
    calls.clear();
    ferryd.config.set("metrics.top-users", 2);
    ferryd = ferryd.restart();
    calls.extend(["alice", "alice", "bob", "carol"].map(|name| call(as_user(&ferryd, name))));
    let (bob, peer) = &mut calls[2];
    bob.send_by_channel(0x4000, &[7; 1000]);
    assert_eq!(peer.recv(&mut [0; 2000]).unwrap(), 1000);
    let page = get(address(&ferryd), "/metrics");
    // 3 packets of 100 bytes and 2 of 10 in each call.
    assert_eq!(value(&page, "ferryd_top_user_bytes{user=\"bob\"}"), 1320.0);
    assert_eq!(value(&page, "ferryd_top_user_bytes{user=\"alice\"}"), 640.0);
    assert_eq!(value(&page, "ferryd_top_user_allocations{user=\"alice\"}"), 2.0);
    assert!(!page.contains("carol"), "two were asked for");
}

#[test]
fn what_the_kernel_drops_for_a_full_buffer_is_counted() {
    let ferryd = Ferryd::start(with_metrics);
    let drops = "ferryd_receive_buffer_drops_total{socket=\"listener\"}";
    assert_eq!(metric(&ferryd, drops), 0);
    // While nobody reads, the queue of strangers holds some 450.
    ferryd.signal(libc::SIGSTOP);
    let socket = place::peer();
    let sent = 8000;
    for _ in 0..sent {
        socket.send_to(&crate::client::binding_request(), ferryd.address()).unwrap();
    }
    ferryd.signal(libc::SIGCONT);
    let dropped = metric(&ferryd, drops);
    assert!((1..sent).contains(&dropped), "{dropped}");
}

/// The metrics of the document, with their labels.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let text = include_str!("../../docs/metrics.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `ferryd_"));
    let quoted = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    rows.map(|row| {
        let mut cells = row.split(" | ");
        let name = cells.next().unwrap().trim_end_matches('`');
        (format!("ferryd_{name}"), quoted(cells.next().unwrap()))
    })
    .collect()
}

/// Those of a page, by the names of their samples; a histogram is one.
fn families(page: &str) -> BTreeMap<String, BTreeSet<String>> {
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let types =
        types.map(|(name, kind)| (name, if kind == "counter" { format!("{name}_total") } else { name.to_owned() }));
    types
        .map(|(family, name)| {
            let samples = page.lines().filter(|line| !line.starts_with('#') && line.starts_with(family));
            let labels = samples.filter_map(|line| line.split_once('{')).filter(|(sample, _)| *sample == name);
            let pairs = labels.flat_map(|(_, rest)| rest.split('}').next().unwrap().split("\","));
            (name.clone(), pairs.map(|pair| pair.split('=').next().unwrap().to_owned()).collect())
        })
        .collect()
}

#[test]
fn every_metric_is_documented_with_its_labels_and_nothing_else_is() {
    let ferryd = Ferryd::start(|config| {
        Certificate::configured(config);
        with_metrics(config);
        config.set("metrics.top-users", 1);
        let nobody = SocketAddr::from((config.ip, place::free_port()));
        config.text("authorization.url", format!("http://{nobody}/")).text("authorization.on-failure", "allow");
    });
    let _call = call(Client::udp(ferryd.address()));
    let page = get(address(&ferryd), "/metrics");
    let mut documented = documented();
    // These are there with the kernel path alone, which needs capabilities.
    documented.retain(|name, _| !name.starts_with("ferryd_offload_") || page.contains("# TYPE ferryd_offload_"));
    assert_eq!(families(&page), documented);
}

#[test]
fn who_does_not_know_openmetrics_gets_the_text_of_prometheus() {
    let ferryd = Ferryd::start(with_metrics);
    let _call = call(Client::udp(ferryd.address()));
    for accept in ["text/plain;version=0.0.4", "text/html,application/xhtml+xml,*/*;q=0.8"] {
        let page = get_with(address(&ferryd), "/metrics", &format!("Accept: {accept}\r\n"));
        assert!(page.contains("content-type: text/plain; version=0.0.4"), "{page}");
        assert!(page.contains("\n# TYPE ferryd_requests_total counter\n"), "{page}");
        assert!(page.contains("\n# HELP ferryd_requests_total ") && !page.contains("# EOF"), "{page}");
        assert!(page.contains("\n# TYPE ferryd_allocations gauge\n"), "{page}");
        assert!(page.contains("\n# TYPE ferryd_loop_turn_seconds histogram\n"), "{page}");
        assert_eq!(value(&page, "ferryd_requests_total{method=\"allocate\",result=\"success\"}"), 1.0);
    }
    // Prometheus names both.
    for accept in ["application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3", "*/*"] {
        let page = get_with(address(&ferryd), "/metrics", &format!("Accept: {accept}\r\n"));
        assert!(page.contains("content-type: application/openmetrics-text") && page.contains("# EOF"), "{page}");
    }
}
