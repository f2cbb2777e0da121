//! The metrics page and the readiness over HTTP.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::bounded::Few;
use super::workers::busiest_users;
use crate::observe::metrics::{MEDIA_TYPE, PLAIN_MEDIA_TYPE, Snapshot, plain};
use crate::worker::WorkerHandle;

/// Connections at a time: a scraper has one, and so has each probe of the readiness. They are half of the descriptors that
/// are kept back for operators.
const CONNECTIONS_MAX: usize = 32;
/// For everything that a connection is for. Workers are waited for as long, with the users that are named.
const LIFETIME: Duration = Duration::from_secs(15);

/// Takes a snapshot; may block, and fails when a worker does not answer.
pub type TakeSnapshot = Arc<dyn Fn() -> Option<Snapshot> + Send + Sync>;

/// What the page is made of.
#[derive(Clone)]
pub struct Source {
    pub take: TakeSnapshot,
    /// How many users are named, and whom to ask for them; 0 is none.
    pub top_users: usize,
    pub workers: Vec<WorkerHandle>,
}

/// Answers `/metrics` and `/ready` until dropped.
pub async fn serve(listener: TcpListener, source: Source) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let router = Router::new().route("/metrics", get(metrics)).route("/ready", get(ready)).with_state(source);
    let listener = tokio::net::TcpListener::from_std(listener)?;
    axum::serve(Few::of(listener, CONNECTIONS_MAX, LIFETIME), router).await
}

async fn metrics(State(source): State<Source>, headers: HeaderMap) -> Response {
    match page(source).await {
        Some(page) if wants_plain(&headers) => {
            ([(header::CONTENT_TYPE, PLAIN_MEDIA_TYPE)], plain(&page)).into_response()
        }
        Some(page) => ([(header::CONTENT_TYPE, MEDIA_TYPE)], page).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "a worker does not answer\n").into_response(),
    }
}

/// Whether text is asked for and OpenMetrics is not, as scrapers do that do not know it, and browsers.
fn wants_plain(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let accepted: Vec<&str> = accepted.flat_map(|value| value.split(',')).map(str::trim_start).collect();
    let has = |kind: &str| accepted.iter().any(|one| one.starts_with(kind));
    has("text/") && !has("application/openmetrics-text")
}

async fn page(source: Source) -> Option<String> {
    let Source { take, top_users, workers } = source;
    let mut snapshot = tokio::task::spawn_blocking(move || take()).await.ok()??;
    if top_users > 0 {
        snapshot.top_users = busiest_users(workers, top_users).await?;
    }
    snapshot.page().ok()
}

/// Ready is every worker answering and new allocations being made.
async fn ready(State(Source { take, .. }): State<Source>) -> Response {
    match tokio::task::spawn_blocking(move || Some(take()?.drain.is_some())).await {
        Ok(Some(false)) => "ready\n".into_response(),
        Ok(Some(true)) => (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response(),
        Ok(None) | Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "a worker does not answer\n").into_response(),
    }
}
