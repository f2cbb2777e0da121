//! Allocations that somebody else decides about: a request waits until the verdict is known, which then holds for a while.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::effect::Effect;
use super::ids::Route;
use super::outcome::{DropReason, Outcome};
use super::request::{Rejection, Request};
use super::server::{Now, Server};
use crate::address::FiveTuple;
use crate::auth::settings::SecretId;
use crate::stun::ErrorCode;

/// Requests of a worker that wait for a verdict: 1024 of at most some hundred bytes.
const WAITING_MAX: usize = 1024;
/// Longer requests are none of a client's that allocates: 3 KiB are a token with everything else.
const REQUEST_LEN_MAX: usize = 4096;
/// Verdicts that a worker remembers.
const VERDICTS_MAX: usize = 8192;
/// A verdict that has not come by then was lost, and is asked for again.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who asks, and whom a verdict is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Applicant {
    pub username: Arc<str>,
    pub client: IpAddr,
}

/// What is to be decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Application {
    pub applicant: Applicant,
    /// Of the first request that waits.
    pub client: FiveTuple,
    /// The shared secret that minted the credential, if one did.
    pub secret: Option<SecretId>,
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// At most so many allocations of this user at a time, where that is set.
    Allowed { allocations_max: Option<u32> },
    /// 403 (Forbidden).
    Denied,
    /// Nobody could decide: 500 (Server Error), "The client should try again".
    Unknown,
}

/// What a worker knows of verdicts.
#[derive(Debug)]
pub(super) struct Authorization {
    verdicts: HashMap<Applicant, (Verdict, Instant), FixedState>,
    waiting: HashMap<FiveTuple, Waiting, FixedState>,
}

/// A request that goes on when the verdict is known.
#[derive(Debug)]
struct Waiting {
    applicant: Applicant,
    route: Route,
    message: Box<[u8]>,
    since: Instant,
}

impl Authorization {
    pub(super) fn new(hasher: FixedState) -> Self {
        Self { verdicts: HashMap::with_hasher(hasher.clone()), waiting: HashMap::with_hasher(hasher) }
    }

    /// A client is gone, and with it what it asked for; true if it waited.
    pub(super) fn forget(&mut self, client: &FiveTuple) -> bool {
        self.waiting.remove(client).is_some()
    }

    fn verdict(&self, applicant: &Applicant, now: Instant) -> Option<Verdict> {
        self.verdicts.get(applicant).filter(|(_, until)| now < *until).map(|(verdict, _)| *verdict)
    }

    fn remember(&mut self, applicant: &Applicant, verdict: Verdict, now: Instant, until: Instant) {
        if self.verdicts.len() >= VERDICTS_MAX {
            self.verdicts.retain(|_, (_, until)| now < *until);
        }
        if self.verdicts.len() >= VERDICTS_MAX {
            // They can be asked for again.
            self.verdicts.clear();
        }
        self.verdicts.insert(applicant.clone(), (verdict, until));
    }
}

impl Server {
    /// How many allocations the user may have, where a verdict says so; without a verdict the request waits for one.
    pub(super) fn authorized(&mut self, request: &Request<'_>) -> Result<Option<u32>, Rejection> {
        if !self.settings.authorize {
            return Ok(None);
        }
        let (now, client) = (request.now.instant, request.envelope.client);
        let applicant = Applicant { username: Arc::clone(&request.credentials.username), client: client.client.ip() };
        match self.authorization.verdict(&applicant, now) {
            Some(Verdict::Allowed { allocations_max }) => return Ok(allocations_max),
            Some(Verdict::Denied) => return Err(ErrorCode::Forbidden.into()),
            Some(Verdict::Unknown) => return Err(ErrorCode::ServerError.into()),
            None => {}
        }
        let (bytes, waiting) = (request.message.as_bytes(), &mut self.authorization.waiting);
        if let Some(earlier) = waiting.get_mut(&client).filter(|earlier| now < earlier.since + PATIENCE) {
            // One of the two is answered: a client that has begun anew does not know the earlier one any more.
            (earlier.message, earlier.route) = (bytes.into(), request.envelope.route);
            if earlier.applicant == applicant {
                return Err(Rejection::InProgress);
            }
            earlier.applicant = applicant.clone();
            self.ask(applicant, request);
            return Err(Rejection::InProgress);
        }
        if waiting.len() >= WAITING_MAX || waiting.contains_key(&client) {
            let before = waiting.len();
            waiting.retain(|_, waiting| now < waiting.since + PATIENCE);
            for _ in waiting.len()..before {
                self.counters.record(Outcome::Dropped(DropReason::InProgress));
            }
        }
        if waiting.len() >= WAITING_MAX || bytes.len() > REQUEST_LEN_MAX {
            return Err(ErrorCode::ServerError.into());
        }
        let is_asked = waiting.values().any(|it| it.applicant == applicant && now < it.since + PATIENCE);
        let route = request.envelope.route;
        waiting.insert(client, Waiting { applicant: applicant.clone(), route, message: bytes.into(), since: now });
        if !is_asked {
            self.ask(applicant, request);
        }
        Err(Rejection::Waiting)
    }

    fn ask(&mut self, applicant: Applicant, request: &Request<'_>) {
        let (client, secret) = (request.envelope.client, request.credentials.secret);
        self.effects.push_back(Effect::Authorize(Box::new(Application { applicant, client, secret })));
    }

    /// How many requests wait for a verdict; each is counted when it is answered.
    pub fn waiting(&self) -> usize {
        self.authorization.waiting.len()
    }

    /// What an [`Effect::Authorize`] has asked for is decided, until then: every request that waits for it is answered.
    pub fn handle_verdict(&mut self, now: Now, applicant: &Applicant, verdict: Verdict, until: Instant) {
        // At least for those that wait.
        let at_least = now.instant + Duration::from_nanos(1);
        self.authorization.remember(applicant, verdict, now.instant, until.max(at_least));
        let is_its = |_: &FiveTuple, waiting: &mut Waiting| waiting.applicant == *applicant;
        let waiting: Vec<_> = self.authorization.waiting.extract_if(is_its).collect();
        for (client, Waiting { route, message, .. }) in waiting {
            let result = self.message(now, &client, route, &message);
            // It is an Allocate, which carries no data.
            let _ = self.conclude(result);
        }
        if until <= now.instant {
            self.authorization.verdicts.remove(applicant);
        }
    }
}
