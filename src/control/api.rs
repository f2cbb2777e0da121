//! The routes of the admin API.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};
use axum::{Json, Router, middleware};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::metrics::TakeSnapshot;
use super::orders::{Order, Standing};
use super::remote::{self, RemoteDoor};
use super::workers::{Listing, Silent, Sort, Workers};
use super::{operate, revoke, wire};
use crate::address::Family;
use crate::auth::Subject;
use crate::auth::subject::parse_range;
use crate::turn::effect::EndReason;
use crate::turn::{SessionFilter, SessionId};
use crate::worker::WorkerHandle;

/// Sessions of one answer at most: some megabytes.
const LIMIT_MAX: usize = 10_000;
/// Sessions of one answer unless asked otherwise.
const LIMIT_DEFAULT: usize = 100;
/// Sessions that one request may end.
const EVICT_MAX: usize = 10_000;

/// The description of the API, as published.
pub const OPENAPI: &str = include_str!("../../docs/openapi.json");

/// What does not change while the daemon runs.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Seconds since the Unix epoch.
    pub started_at: u64,
    pub configuration: Option<String>,
}

/// What the routes work with.
pub struct Api {
    facts: Facts,
    pub(super) workers: Workers,
    pub(super) take: TakeSnapshot,
    pub(super) standing: Arc<Standing>,
    pub(super) orders: mpsc::Sender<Order>,
}

impl Api {
    pub fn new(
        facts: Facts,
        handles: Vec<WorkerHandle>,
        take: TakeSnapshot,
        standing: Arc<Standing>,
        orders: mpsc::Sender<Order>,
    ) -> Self {
        Self { facts, workers: Workers::new(handles), take, standing, orders }
    }
}

pub(super) type Shared = State<Arc<Api>>;

/// Every route, as docs/openapi.json has them.
fn routes() -> Vec<(&'static str, MethodRouter<Arc<Api>>)> {
    vec![
        ("/v1/openapi.json", get(async || ([(header::CONTENT_TYPE, "application/json")], OPENAPI))),
        ("/v1/status", get(status)),
        ("/v1/sessions", get(sessions)),
        ("/v1/sessions/evict", post(evict)),
        ("/v1/sessions/{id}", get(session)),
        ("/v1/drain", post(operate::drain).delete(operate::cancel_drain)),
        ("/v1/reload", post(operate::reload)),
        ("/v1/log-level", get(operate::log_level).put(operate::set_log_level).delete(operate::follow_log_level)),
        ("/v1/limits", get(operate::limits)),
        ("/v1/revocations", get(revoke::list).post(revoke::revoke)),
        ("/v1/revocations/{subject}", delete(revoke::restore)),
    ]
}

/// Serves the API on a socket of this host until dropped.
pub async fn serve(listener: tokio::net::UnixListener, api: Arc<Api>) -> std::io::Result<()> {
    axum::serve(listener, router(api)).await
}

/// Serves the API to other hosts until dropped: to those alone who have shown what the door asks for.
pub async fn serve_remote(
    listener: tokio::net::TcpListener,
    door: Arc<RemoteDoor>,
    api: Arc<Api>,
) -> std::io::Result<()> {
    let checked = middleware::from_fn_with_state(Arc::clone(&door), remote::check);
    axum::serve(remote::Arrivals::of(listener, door), router(api).layer(checked)).await
}

fn router(api: Arc<Api>) -> Router {
    let router = routes().into_iter().fold(Router::new(), |router, (path, route)| router.route(path, route));
    let router = router.fallback(async || Refusal::new(StatusCode::NOT_FOUND, "there is nothing here"));
    router.with_state(api)
}

/// An answer that something was not done.
pub(super) struct Refusal(StatusCode, wire::Failure);

impl Refusal {
    pub(super) fn new(status: StatusCode, words: impl Into<String>) -> Self {
        Self(status, wire::Failure { error: words.into(), problems: Vec::new() })
    }

    pub(super) fn of_problems(status: StatusCode, problems: Vec<String>) -> Self {
        Self(status, wire::Failure { error: problems.join("\n"), problems })
    }

    pub(super) fn bad(words: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, words)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

impl From<Silent> for Refusal {
    fn from(_: Silent) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "a worker does not answer")
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Refusal {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

async fn status(State(api): Shared) -> Result<Json<wire::Status>, Refusal> {
    let snapshot = api.snapshot().await?;
    let usage = |family| {
        let (used, all) = snapshot.shared.ports.usage(family);
        wire::Usage { used: used as u64, all: all as u64 }
    };
    let now = SystemTime::now();
    let certificates = snapshot.certificates.iter().map(|(file, content)| wire::Certificate {
        file: file.display().to_string(),
        names: content.names.clone(),
        not_after: crate::observe::metrics::unix_seconds(content.not_after),
        expired: content.is_expired(now),
    });
    let words = api.standing.lock().clone();
    Ok(Json(wire::Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        process: std::process::id(),
        state: if words.drain.is_some() { "draining" } else { "serving" }.to_owned(),
        started_at: api.facts.started_at,
        configuration: api.facts.configuration.clone(),
        workers: api.workers.len(),
        allocations: snapshot.workers.iter().map(|worker| worker.allocations as u64).sum(),
        connections: snapshot.workers.iter().map(|worker| worker.connections as u64).sum(),
        relay_ports: wire::RelayPorts { ipv4: usage(Family::V4), ipv6: usage(Family::V6) },
        listeners: words.listeners,
        certificates: certificates.collect(),
        drain: words.drain,
        last_reload: words.last_reload,
        log_level: words.log_level,
    }))
}

/// The query of a listing.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SessionsQuery {
    user: Option<String>,
    client: Option<String>,
    peer: Option<String>,
    sort: Option<String>,
    limit: Option<usize>,
    after: Option<String>,
}

async fn sessions(
    State(api): Shared,
    query: Result<Query<SessionsQuery>, QueryRejection>,
) -> Result<Json<wire::Sessions>, Refusal> {
    let Query(query) = query?;
    let filter = filter(&query)?;
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Refusal::bad(format!("limit: expected a number from 1 to {LIMIT_MAX}")));
    }
    let Listing { sessions, matched, next } = match (query.sort.as_deref(), query.after.as_deref()) {
        (Some(_), Some(_)) => return Err(Refusal::bad("after: goes with an unsorted listing alone")),
        (Some(sort), None) => {
            let found = Sort::NAMES.iter().find(|(name, _)| *name == sort);
            let (_, sort) = found.ok_or_else(|| Refusal::bad("sort: expected bytes, packets or started"))?;
            api.workers.sorted(filter, *sort, limit).await?
        }
        (None, after) => {
            let after = after.map(parse_id).transpose()?;
            api.workers.unsorted(filter, after, limit).await?
        }
    };
    let sessions = sessions.into_iter().map(Into::into).collect();
    Ok(Json(wire::Sessions { sessions, matched, next: next.map(|id| id.to_string()) }))
}

fn filter(query: &SessionsQuery) -> Result<SessionFilter, Refusal> {
    let mut filter = SessionFilter::default();
    filter.subjects.extend(query.user.as_deref().map(Subject::user));
    if let Some(client) = &query.client {
        filter.subjects.push(Subject::client(client).map_err(|_| no_range("client"))?);
    }
    if let Some(peer) = &query.peer {
        filter.peer = Some(parse_range(peer).ok_or_else(|| no_range("peer"))?);
    }
    Ok(filter)
}

fn no_range(key: &str) -> Refusal {
    Refusal::bad(format!("{key}: expected an address or a range such as 192.0.2.0/24"))
}

fn parse_id(text: &str) -> Result<SessionId, Refusal> {
    text.parse().map_err(|_| Refusal::bad(format!("\"{text}\" is no session id, which has 26 hexadecimal digits")))
}

async fn session(State(api): Shared, Path(id): Path<String>) -> Result<Json<wire::SessionDetail>, Refusal> {
    let found = api.workers.session(parse_id(&id)?).await?;
    let detail = found.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, format!("no session {id} is live")))?;
    Ok(Json(detail.into()))
}

async fn evict(
    State(api): Shared,
    request: Result<Json<wire::Evict>, JsonRejection>,
) -> Result<Json<wire::Evicted>, Refusal> {
    let Json(wire::Evict { ids }) = request?;
    if ids.is_empty() || ids.len() > EVICT_MAX {
        return Err(Refusal::bad(format!("ids: expected 1 to {EVICT_MAX} session ids")));
    }
    let ids = ids.iter().map(|id| parse_id(id)).collect::<Result<Vec<_>, _>>()?;
    let ended = api.workers.end(&ids, EndReason::Evicted).await?;
    tracing::info!(sessions = ended.len(), "sessions evicted by an operator");
    let unknown = ids.iter().filter(|id| !ended.contains(id)).map(ToString::to_string).collect();
    Ok(Json(wire::Evicted { evicted: ended.iter().map(ToString::to_string).collect(), unknown }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_document_and_the_routes_agree() {
        let document: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
        let mut described = BTreeSet::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            described
                .extend(operations.as_object().unwrap().keys().map(|method| (path.clone(), method.to_uppercase())));
        }
        let mut routed = BTreeSet::new();
        for (path, route) in routes() {
            // The only place where axum tells the methods of a route.
            let words = format!("{route:?}");
            for method in ["GET", "POST", "PUT", "DELETE"] {
                let is_there = !words.contains(&format!("{}: None", method.to_lowercase()));
                routed.extend(is_there.then(|| (path.to_owned(), method.to_owned())));
            }
        }
        assert_eq!(described, routed);
    }
}
