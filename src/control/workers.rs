//! Asks the workers, page by page, so that no question keeps a packet waiting.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

use crate::auth::credentials::TimeLimited;
use crate::observe::metrics::UserUsage;
use crate::turn::effect::EndReason;
use crate::turn::{Session, SessionDetail, SessionFilter, SessionId};
use crate::worker::{Command, END_MAX, Question, WorkerHandle};

/// A worker that says nothing for this long is not alive.
const PATIENCE: Duration = Duration::from_secs(5);

/// The workers' mailboxes.
#[derive(Debug)]
pub(super) struct Workers {
    handles: Vec<WorkerHandle>,
    /// One listing at a time: a worker has one page to tell in a turn.
    listing: Semaphore,
}

/// A worker does not answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Silent;

/// What a sorted listing begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    /// The most bytes, both ways.
    Bytes,
    /// The most packets, both ways.
    Packets,
    /// The oldest.
    Started,
}

impl Sort {
    pub(super) const NAMES: [(&'static str, Self); 3] =
        [("bytes", Self::Bytes), ("packets", Self::Packets), ("started", Self::Started)];

    fn key(self, session: &Session) -> u64 {
        let traffic = &session.traffic;
        match self {
            Self::Bytes => traffic.bytes_to_client + traffic.bytes_to_peers,
            Self::Packets => traffic.packets_to_client + traffic.packets_to_peers,
            Self::Started => u64::MAX - session.started,
        }
    }
}

/// Sessions, how many matched if all were looked at, and where to go on if not.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) sessions: Vec<Session>,
    pub(super) matched: Option<u64>,
    pub(super) next: Option<SessionId>,
}

/// Whether there is a session that is meant; `None` when a worker does not answer.
pub async fn any_session(handles: Vec<WorkerHandle>, filter: SessionFilter) -> Option<bool> {
    Workers::new(handles).any(filter).await.ok()
}

/// The users whose live allocations have carried the most, by their names without an expiry; `None` when a worker does not
/// answer.
pub async fn busiest_users(handles: Vec<WorkerHandle>, count: usize) -> Option<Vec<UserUsage>> {
    let (workers, filter) = (Workers::new(handles), Arc::new(SessionFilter::default()));
    let mut users: HashMap<String, UserUsage> = HashMap::new();
    for worker in 0..workers.len() {
        let mut from = Some(0);
        while let Some(slot) = from {
            let page = workers.page(worker, slot, &filter).await.ok()?;
            for session in &page.sessions {
                let name =
                    TimeLimited::parse(&session.username).and_then(|user| user.name).unwrap_or(&session.username);
                let usage = || UserUsage { user: name.to_owned(), bytes: 0, allocations: 0 };
                let usage = users.entry(name.to_owned()).or_insert_with(usage);
                usage.bytes += Sort::Bytes.key(session);
                usage.allocations += 1;
            }
            from = page.next;
        }
    }
    let mut users: Vec<_> = users.into_values().collect();
    users.sort_unstable_by(|one, other| (other.bytes, &one.user).cmp(&(one.bytes, &other.user)));
    users.truncate(count);
    Some(users)
}

impl Workers {
    pub(super) fn new(handles: Vec<WorkerHandle>) -> Self {
        Self { handles, listing: Semaphore::new(1) }
    }

    pub(super) fn len(&self) -> usize {
        self.handles.len()
    }

    async fn ask<T>(&self, worker: usize, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Result<T, Silent> {
        let (to, from) = oneshot::channel();
        let handle = self.handles.get(worker).ok_or(Silent)?;
        handle.tell(Command::Ask(question(to)));
        tokio::time::timeout(PATIENCE, from).await.map_err(|_| Silent)?.map_err(|_| Silent)
    }

    /// The first `limit` sessions in the order asked for.
    pub(super) async fn sorted(&self, filter: SessionFilter, sort: Sort, limit: usize) -> Result<Listing, Silent> {
        let _turn = self.listing.acquire().await.map_err(|_| Silent)?;
        let (filter, mut sessions, mut matched) = (Arc::new(filter), Vec::new(), 0);
        let order = |session: &Session| (std::cmp::Reverse(sort.key(session)), session.id);
        for worker in 0..self.len() {
            let mut from = Some(0);
            while let Some(slot) = from {
                let page = self.page(worker, slot, &filter).await?;
                matched += page.sessions.len() as u64;
                sessions.extend(page.sessions);
                from = page.next;
                // What cannot be among the first is not kept.
                if sessions.len() > 2 * limit.max(1024) {
                    sessions.sort_unstable_by_key(order);
                    sessions.truncate(limit);
                }
            }
        }
        sessions.sort_unstable_by_key(order);
        sessions.truncate(limit);
        Ok(Listing { sessions, matched: Some(matched), next: None })
    }

    /// Up to `limit` sessions in the order of the workers' tables, behind `after`.
    pub(super) async fn unsorted(
        &self,
        filter: SessionFilter,
        after: Option<SessionId>,
        limit: usize,
    ) -> Result<Listing, Silent> {
        let _turn = self.listing.acquire().await.map_err(|_| Silent)?;
        let (filter, mut sessions) = (Arc::new(filter), Vec::new());
        let begin = after.map_or((0, 0), |id| (usize::from(id.worker().0), id.slot() + 1));
        for worker in begin.0..self.len() {
            let mut from = Some(if worker == begin.0 { begin.1 } else { 0 });
            while let Some(slot) = from {
                let page = self.page(worker, slot, &filter).await?;
                sessions.extend(page.sessions);
                if sessions.len() > limit {
                    sessions.truncate(limit);
                    let next = sessions.last().map(|session: &Session| session.id);
                    return Ok(Listing { sessions, matched: None, next });
                }
                from = page.next;
            }
        }
        let matched = after.is_none().then_some(sessions.len() as u64);
        Ok(Listing { sessions, matched, next: None })
    }

    async fn any(&self, filter: SessionFilter) -> Result<bool, Silent> {
        let filter = Arc::new(filter);
        for worker in 0..self.len() {
            let mut from = Some(0);
            while let Some(slot) = from {
                let page = self.page(worker, slot, &filter).await?;
                if !page.sessions.is_empty() {
                    return Ok(true);
                }
                from = page.next;
            }
        }
        Ok(false)
    }

    async fn page(
        &self,
        worker: usize,
        from: u32,
        filter: &Arc<SessionFilter>,
    ) -> Result<crate::turn::SessionPage, Silent> {
        let filter = Arc::clone(filter);
        self.ask(worker, |to| Question::Sessions { from, filter, to }).await
    }

    pub(super) async fn session(&self, id: SessionId) -> Result<Option<SessionDetail>, Silent> {
        let worker = usize::from(id.worker().0);
        if worker >= self.len() {
            return Ok(None);
        }
        self.ask(worker, |to| Question::Session { id, to }).await
    }

    /// Ends sessions; returns those that were there.
    pub(super) async fn end(&self, ids: &[SessionId], reason: EndReason) -> Result<Vec<SessionId>, Silent> {
        let mut ended = Vec::new();
        for worker in 0..self.len() {
            let of_worker: Vec<_> = ids.iter().copied().filter(|id| usize::from(id.worker().0) == worker).collect();
            for ids in of_worker.chunks(END_MAX) {
                let ids = ids.to_vec();
                ended.extend(self.ask(worker, |to| Question::End { ids, reason, to }).await?);
            }
        }
        Ok(ended)
    }
}
