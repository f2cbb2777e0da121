//! The routes that change something of the daemon: drain, reload, log level; and the limits.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use tokio::sync::oneshot;

use super::api::{Api, Refusal, Shared};
use super::orders::{DrainOrder, Order};
use super::wire;
use super::workers::Silent;
use crate::net::interfaces::{descriptor_limits, open_descriptors};
use crate::observe::logs::Level;

/// Has the daemon's main loop do something.
pub(super) async fn order<T>(api: &Api, make: impl FnOnce(oneshot::Sender<T>) -> Order) -> Result<T, Refusal> {
    let gone = || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "ferryd is stopping");
    let (to, from) = oneshot::channel();
    api.orders.send(make(to)).await.map_err(|_| gone())?;
    from.await.map_err(|_| gone())
}

pub(super) async fn reload(State(api): Shared) -> Result<Json<wire::Reloaded>, Refusal> {
    match order(&api, Order::Reload).await? {
        Ok(reloaded) => Ok(Json(reloaded)),
        Err(problems) => Err(Refusal::of_problems(StatusCode::CONFLICT, problems)),
    }
}

pub(super) async fn drain(
    State(api): Shared,
    request: Result<Json<wire::DrainRequest>, JsonRejection>,
) -> Result<Json<wire::Drain>, Refusal> {
    let Json(request) = request?;
    for (name, addresses) in [("redirect", &request.redirect), ("redirect_tls", &request.redirect_tls)] {
        if let Some(words) = mistake(addresses) {
            return Err(Refusal::bad(format!("{name}: {words}")));
        }
    }
    if request.domain.as_ref().is_some_and(|domain| rustls_pki_types::DnsName::try_from(domain.as_str()).is_err()) {
        return Err(Refusal::bad("domain: expected a DNS name of at most 255 ASCII characters"));
    }
    let drain = DrainOrder {
        deadline: request.deadline.map(Duration::from_secs),
        redirect: request.redirect,
        redirect_tls: request.redirect_tls,
        domain: request.domain,
    };
    let result = order(&api, |to| Order::Drain(drain, to)).await?;
    result.map(Json).map_err(|words| Refusal::new(StatusCode::CONFLICT, words))
}

/// What a client cannot be told.
fn mistake(addresses: &[SocketAddr]) -> Option<String> {
    let of_family = |v4: bool| addresses.iter().filter(|address| address.is_ipv4() == v4).count();
    if of_family(true) > 1 || of_family(false) > 1 {
        return Some("expected at most one address of each family".to_owned());
    }
    let is_useless =
        |address: &&SocketAddr| address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast();
    addresses.iter().find(is_useless).map(|address| format!("{address} is no address of a server"))
}

pub(super) async fn cancel_drain(State(api): Shared) -> Result<Json<wire::Done>, Refusal> {
    let result = order(&api, Order::CancelDrain).await?;
    result.map(|()| Json(wire::Done { done: true })).map_err(|words| Refusal::new(StatusCode::CONFLICT, words))
}

pub(super) async fn log_level(State(api): Shared) -> Json<wire::LogLevel> {
    Json(api.standing.lock().log_level.clone())
}

pub(super) async fn set_log_level(
    State(api): Shared,
    request: Result<Json<wire::SetLogLevel>, JsonRejection>,
) -> Result<Json<wire::LogLevel>, Refusal> {
    let Json(wire::SetLogLevel { level }) = request?;
    let known = Level::NAMES.iter().find(|(name, _)| *name == level);
    let (_, level) = known.ok_or_else(|| Refusal::bad("level: expected error, warn, info, debug or trace"))?;
    order(&api, |to| Order::LogLevel(Some(*level), to)).await?;
    Ok(log_level(State(api)).await)
}

pub(super) async fn follow_log_level(State(api): Shared) -> Result<Json<wire::LogLevel>, Refusal> {
    order(&api, |to| Order::LogLevel(None, to)).await?;
    Ok(log_level(State(api)).await)
}

pub(super) async fn limits(State(api): Shared) -> Result<Json<wire::Limits>, Refusal> {
    let snapshot = api.snapshot().await?;
    let known = |error: std::io::Error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    let descriptors = descriptor_limits().map_err(known)?.soft;
    Ok(Json(wire::Limits {
        allocations: u64::from(snapshot.shared.quotas.total()),
        connections: snapshot.workers.iter().map(|worker| worker.connections as u64).sum(),
        descriptors: open_descriptors().map_err(known)?,
        descriptors_total: descriptors,
        ..api.standing.lock().limits
    }))
}

impl Api {
    /// The daemon at this moment.
    pub(super) async fn snapshot(&self) -> Result<crate::observe::metrics::Snapshot, Silent> {
        let take = Arc::clone(&self.take);
        tokio::task::spawn_blocking(move || take()).await.map_err(|_| Silent)?.ok_or(Silent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sibling_is_one_address_of_each_family() {
        let mistake = |addresses: &[&str]| {
            let addresses: Vec<SocketAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
            mistake(&addresses)
        };
        assert_eq!(mistake(&["203.0.113.7:3478", "[2001:db8::7]:3478"]), None);
        assert_eq!(mistake(&[]), None);
        for wrong in
            [&["203.0.113.7:3478", "203.0.113.8:3478"][..], &["203.0.113.7:0"], &["0.0.0.0:1"], &["[ff02::1]:1"]]
        {
            assert!(mistake(wrong).is_some(), "{wrong:?}");
        }
    }
}
