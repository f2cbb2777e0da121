//! What tests of a worker's turns share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::neighbours::Neighbours;
use super::packet_loop::{Legacy, Past, Worker};
use super::settings::Settings;
use super::{Berth, HeldSockets, ProxyHosts, Records, WorkerHandle};
use crate::auth::settings::{Secret, User};
use crate::auth::{self, Authenticator};
use crate::net::datagrams::EpollDatagrams;
use crate::turn::{self, PeerPolicy, Policy, Shared, WorkerId};

/// What these users are judged by.
pub(super) fn policy(settings: &turn::Settings, users: Vec<User>) -> Policy {
    let auth = auth::Settings {
        realm: "ferryd".to_owned(),
        users,
        shared_secrets: Vec::new(),
        nonce_lifetime: auth::Settings::NONCE_LIFETIME,
        nonce_key: Secret::new([9; 32]),
        third_party: None,
    };
    Policy {
        drain: None,
        revocations: Arc::default(),
        peers: Arc::new(PeerPolicy::new(settings)),
        authenticator: Arc::new(Authenticator::new(&auth)),
        settings: Arc::new(settings.clone()),
    }
}

/// A worker without listeners, whose turns a test takes.
pub(super) fn worker() -> Worker<EpollDatagrams> {
    let settings = turn::Settings::relaying_on(Vec::new());
    let policy = policy(&settings, Vec::new());
    let (handle, commands, wake) = WorkerHandle::new().unwrap();
    let neighbours = Neighbours::mesh(&[handle]).remove(0);
    let legacy = Legacy { policy, commands, wake, neighbours, listeners: Vec::new(), past: Past::default() };
    let berth = Berth {
        id: WorkerId(0),
        settings: Settings::default(),
        shared: Arc::new(Shared::new(&settings)),
        held: HeldSockets::default(),
        proxies: ProxyHosts::default(),
        offload: None,
        records: Records::new(Default::default()).0,
        authorizer: None,
        dtls: None,
    };
    berth.start(legacy, EpollDatagrams::new().unwrap()).unwrap()
}

pub(super) fn wait_until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "nothing happened");
        std::thread::sleep(Duration::from_millis(1));
    }
}
