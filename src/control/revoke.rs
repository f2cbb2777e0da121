//! The routes that take credentials back: live allocations end, and no new ones are made.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;

use super::api::{Api, Refusal, Shared};
use super::operate::order;
use super::orders::{Kept, Order};
use super::wire;
use super::workers::Silent;
use crate::auth::{Revocation, Subject};
use crate::turn::SessionFilter;
use crate::turn::effect::EndReason;

/// Sessions that are looked for before they are ended; then the next.
const BATCH: usize = 1024;

pub(super) async fn list(State(api): Shared) -> Json<wire::Revocations> {
    let now = wire::unix_now();
    let words = api.standing.lock();
    let revocations = words.revocations.iter().filter(|revocation| revocation.holds(now)).map(Into::into).collect();
    Json(wire::Revocations { revocations })
}

pub(super) async fn revoke(
    State(api): Shared,
    request: Result<Json<wire::Revoke>, JsonRejection>,
) -> Result<Json<wire::Revoked>, Refusal> {
    let Json(wire::Revoke { subject, until }) = request?;
    let subject = parse(&subject)?;
    let now = wire::unix_now();
    let revocation = Revocation::new(subject.clone(), now, until);
    if !revocation.holds(now) {
        return Err(Refusal::bad("until: has passed already"));
    }
    let until = revocation.until;
    let kept = order(&api, |to| Order::Revoke(revocation, to)).await?;
    let kept = kept.map_err(|words| Refusal::new(StatusCode::CONFLICT, words))?;
    // Every worker has the order before it is asked for sessions, so that none is made behind this.
    let ended = end_all(&api, &subject).await?;
    tracing::info!(%subject, until, ended, "credentials revoked by an operator");
    Ok(Json(wire::Revoked { subject: subject.to_string(), until, kept: kept == Kept::Yes, ended }))
}

pub(super) async fn restore(State(api): Shared, Path(subject): Path<String>) -> Result<Json<wire::Revoked>, Refusal> {
    let subject = parse(&subject)?;
    let kept = order(&api, |to| Order::Restore(subject.clone(), to)).await?;
    let kept = kept.map_err(|words| Refusal::new(StatusCode::NOT_FOUND, words))?;
    tracing::info!(%subject, "a revocation was taken back by an operator");
    Ok(Json(wire::Revoked { subject: subject.to_string(), until: None, kept: kept == Kept::Yes, ended: 0 }))
}

fn parse(subject: &str) -> Result<Subject, Refusal> {
    subject.parse().map_err(|error| Refusal::bad(format!("subject: expected {error}")))
}

async fn end_all(api: &Api, subject: &Subject) -> Result<u64, Silent> {
    let filter = || SessionFilter { subjects: vec![subject.clone()], ..SessionFilter::default() };
    let mut ended = 0;
    loop {
        let found = api.workers.unsorted(filter(), None, BATCH).await?;
        let ids: Vec<_> = found.sessions.iter().map(|session| session.id).collect();
        ended += api.workers.end(&ids, EndReason::Revoked).await?.len() as u64;
        if found.next.is_none() {
            return Ok(ended);
        }
    }
}
