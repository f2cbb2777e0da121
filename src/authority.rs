//! Asks a web service whether a client may allocate: by threads of its own, with a deadline, and with a verdict that is
//! settled beforehand for when the service hangs, fails or answers something else.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;
use tracing::{info, warn};

use crate::turn::authorization::{Applicant, Application, Verdict};
use crate::web::{Ask, Endpoint, Token, Url};
use crate::worker::{Asked, Authorizer, Command, WorkerHandle};

/// Questions at a time.
const THREADS: usize = 8;
/// Verdicts that are remembered.
const CACHE_MAX: usize = 65_536;
/// The longest that the service may have its verdict remembered for.
const HOLDS_MAX: Duration = Duration::from_secs(86400);
/// A verdict is some words.
const ANSWER_LEN_MAX: usize = 16 << 10;
/// After so many failures in a row the service is left alone for a moment, and nobody waits for it meanwhile.
const FAILURES_MAX: u32 = 3;
const MOMENT: Duration = Duration::from_secs(1);

/// The service as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub url: Url,
    pub token: Option<Token>,
    /// Trusted in place of the system's authorities.
    pub authorities: Option<PathBuf>,
    /// How long a client waits for the service.
    pub timeout: Duration,
    /// How long a verdict holds that does not say so itself; zero asks about each Allocate.
    pub cache: Duration,
    pub on_failure: OnFailure,
}

impl Settings {
    pub const TIMEOUT: Duration = Duration::from_secs(2);
    pub const CACHE: Duration = Duration::from_secs(60);
}

/// What holds while the service cannot be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// Nobody allocates: the answer is 500 (Server Error).
    Deny,
    /// Whoever has credentials allocates, under the limits of the configuration.
    Allow,
}

impl OnFailure {
    /// The names in the configuration.
    pub const NAMES: [(&'static str, Self); 2] = [("deny", Self::Deny), ("allow", Self::Allow)];

    fn verdict(self) -> Verdict {
        match self {
            Self::Deny => Verdict::Unknown,
            Self::Allow => Verdict::Allowed { allocations_max: None },
        }
    }
}

/// What became of questions, since the start.
#[derive(Debug, Default)]
pub struct Counters {
    pub allowed: AtomicU64,
    pub denied: AtomicU64,
    /// The service hung, failed or answered something else.
    pub failed: AtomicU64,
    /// Not asked, as the service has just failed again and again.
    pub spared: AtomicU64,
    /// Answered by an earlier verdict.
    pub cached: AtomicU64,
}

/// The service, before anybody is asked.
#[derive(Debug)]
pub struct Authority {
    settings: Settings,
    endpoint: Endpoint,
    counters: Arc<Counters>,
}

impl Authority {
    /// Fails where authorities cannot be read.
    pub fn new(settings: Settings) -> io::Result<Self> {
        let endpoint =
            Endpoint::trusting(settings.url.clone(), settings.token.clone(), settings.authorities.as_deref())?;
        Ok(Self { settings, endpoint, counters: Arc::default() })
    }

    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Starts its threads, which tell `workers` and end with the last of the [`Authorizer`]s.
    pub fn start(self, workers: &[WorkerHandle]) -> io::Result<Authorizer> {
        let (authorizer, questions) = Authorizer::new(self.settings.on_failure.verdict());
        let desk = Arc::new(Desk {
            authority: self,
            questions: Mutex::new(questions),
            workers: workers.to_vec(),
            cache: Mutex::default(),
            failing: Mutex::default(),
        });
        for number in 0..THREADS {
            let desk = Arc::clone(&desk);
            std::thread::Builder::new().name(format!("authority-{number}")).spawn(move || desk.serve())?;
        }
        Ok(authorizer)
    }
}

/// What the threads share.
struct Desk {
    authority: Authority,
    questions: Mutex<Receiver<Asked>>,
    workers: Vec<WorkerHandle>,
    cache: Mutex<HashMap<Applicant, (Verdict, Instant)>>,
    failing: Mutex<Failing>,
}

/// How the service has failed lately.
#[derive(Debug, Default)]
struct Failing {
    in_a_row: u32,
    /// It is left alone until then.
    until: Option<Instant>,
}

/// What the service answers.
#[derive(Debug, Deserialize)]
struct Answer {
    allow: bool,
    allocations: Option<u32>,
    cache_seconds: Option<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Desk {
    fn serve(&self) {
        loop {
            let asked = lock(&self.questions).recv();
            let Ok(Asked { application, worker, at }) = asked else { return };
            let (verdict, until) = self.decide(&application, at);
            if let Some(handle) = self.workers.get(usize::from(worker.0)) {
                handle.tell(Command::Decided { applicant: application.applicant, verdict, until });
            }
        }
    }

    /// The verdict, and how long it holds.
    fn decide(&self, application: &Application, asked_at: Instant) -> (Verdict, Instant) {
        let Authority { settings, counters, .. } = &self.authority;
        let now = Instant::now();
        let remembered = lock(&self.cache).get(&application.applicant).copied();
        if let Some((verdict, until)) = remembered.filter(|(_, until)| now < *until) {
            count(&counters.cached);
            return (verdict, until);
        }
        let otherwise = (settings.on_failure.verdict(), now);
        let left = (asked_at + settings.timeout).saturating_duration_since(now);
        if left.is_zero() || lock(&self.failing).until.is_some_and(|until| now < until) {
            count(&counters.spared);
            return otherwise;
        }
        match self.ask(application, left) {
            Ok((verdict, holds)) => {
                count(if verdict == Verdict::Denied { &counters.denied } else { &counters.allowed });
                self.succeeded();
                let now = Instant::now();
                let until = now + holds;
                if !holds.is_zero() {
                    self.remember(&application.applicant, verdict, now, until);
                }
                (verdict, until)
            }
            Err(error) => {
                count(&counters.failed);
                self.failed(&error);
                otherwise
            }
        }
    }

    fn ask(&self, application: &Application, patience: Duration) -> io::Result<(Verdict, Duration)> {
        let Authority { settings, endpoint, .. } = &self.authority;
        let Application { applicant, client, secret } = application;
        let question = json!({
            "username": &*applicant.username,
            "client": client.client.socket_addr(),
            "transport": client.transport.name(),
            "server": client.server.socket_addr(),
            "secret": secret.map(|id| id.to_string()),
        });
        let no_verdict = |words: &str| io::Error::new(io::ErrorKind::InvalidData, words.to_owned());
        let ask = Ask { method: "POST", path: &endpoint.url.path, body: &question.to_string() };
        match endpoint.request(ask, ANSWER_LEN_MAX, patience)? {
            (200, body) => {
                let answer: Answer = serde_json::from_slice(&body).map_err(|error| no_verdict(&error.to_string()))?;
                let holds = answer.cache_seconds.map_or(settings.cache, Duration::from_secs).min(HOLDS_MAX);
                let verdict = match answer.allow {
                    true if answer.allocations == Some(0) => Verdict::Denied,
                    true => Verdict::Allowed { allocations_max: answer.allocations },
                    false => Verdict::Denied,
                };
                Ok((verdict, holds))
            }
            (403, _) => Ok((Verdict::Denied, settings.cache)),
            (status, _) => Err(no_verdict(&format!("status {status}"))),
        }
    }

    fn remember(&self, applicant: &Applicant, verdict: Verdict, now: Instant, until: Instant) {
        let mut cache = lock(&self.cache);
        if cache.len() >= CACHE_MAX {
            cache.retain(|_, (_, until)| now < *until);
        }
        if cache.len() >= CACHE_MAX {
            // They can be asked for again.
            cache.clear();
        }
        cache.insert(applicant.clone(), (verdict, until));
    }

    fn succeeded(&self) {
        let mut failing = lock(&self.failing);
        if failing.in_a_row > 0 {
            info!("the authorization service decides again");
        }
        *failing = Failing::default();
    }

    fn failed(&self, error: &io::Error) {
        let mut failing = lock(&self.failing);
        if failing.in_a_row == 0 {
            let verdict = self.authority.settings.on_failure;
            warn!(%error, ?verdict, "the authorization service does not decide, and what on-failure says holds");
        }
        failing.in_a_row += 1;
        if failing.in_a_row >= FAILURES_MAX {
            failing.until = Some(Instant::now() + MOMENT);
        }
    }
}
