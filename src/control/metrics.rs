//! The metrics page and the readiness over HTTP.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::observe::metrics::{MEDIA_TYPE, Snapshot};

/// Takes a snapshot; may block, and fails when a worker does not answer.
pub type TakeSnapshot = Arc<dyn Fn() -> Option<Snapshot> + Send + Sync>;

/// Answers `/metrics` and `/ready` until dropped.
pub async fn serve(listener: TcpListener, take: TakeSnapshot) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let router = Router::new().route("/metrics", get(metrics)).route("/ready", get(ready)).with_state(take);
    axum::serve(tokio::net::TcpListener::from_std(listener)?, router).await
}

async fn metrics(State(take): State<TakeSnapshot>) -> Response {
    let page = tokio::task::spawn_blocking(move || take()?.page().ok()).await;
    match page {
        Ok(Some(page)) => ([(header::CONTENT_TYPE, MEDIA_TYPE)], page).into_response(),
        Ok(None) | Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "a worker does not answer\n").into_response(),
    }
}

/// Ready is every worker answering and new allocations being made.
async fn ready(State(take): State<TakeSnapshot>) -> Response {
    match tokio::task::spawn_blocking(move || Some(take()?.drain.is_some())).await {
        Ok(Some(false)) => "ready\n".into_response(),
        Ok(Some(true)) => (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response(),
        Ok(None) | Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "a worker does not answer\n").into_response(),
    }
}
