//! Tells a web service of sessions: POST requests with some events each, by a thread of its own.
//!
//! A service that hangs or fails costs memory for `QUEUE_MAX` events and nothing else; what is older is lost, and
//! counted.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use tracing::{info, warn};

use super::records;
use crate::web::{Endpoint, Token, Url};

/// Events that wait for the service.
const QUEUE_MAX: usize = 4096;
/// Events of one request.
const BATCH_MAX: usize = 100;
/// For one attempt, from the connection to the answer.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Attempts for one batch; between them 1, 2, 4 and 8 seconds.
const ATTEMPTS: u32 = 5;
/// What a stop waits for the service.
const FAREWELL: Duration = Duration::from_secs(5);

/// The service as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub url: Url,
    pub token: Option<Token>,
    /// Trusted in place of the system's authorities.
    pub authorities: Option<PathBuf>,
}

impl Settings {
    /// Fails where authorities cannot be read.
    pub fn endpoint(self) -> io::Result<Endpoint> {
        Endpoint::trusting(self.url, self.token, self.authorities.as_deref())
    }
}

/// What became of events, since the start.
#[derive(Debug, Default)]
pub struct Counters {
    pub delivered: AtomicU64,
    /// The queue was full, or the service failed or refused them to the end.
    pub lost: AtomicU64,
}

/// The way to the service.
#[derive(Debug)]
pub struct Webhook {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    counters: Arc<records::Counters>,
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Map<String, Value>>,
    /// No more is to come; nothing is tried after this.
    until: Option<Instant>,
}

impl Webhook {
    /// Starts the thread.
    pub fn start(settings: Settings, counters: Arc<records::Counters>) -> io::Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new(), counters });
        let service = settings.endpoint()?;
        let of_thread = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name("webhook".to_owned()).spawn(move || of_thread.deliver(&service))?;
        Ok(Self { shared, thread })
    }

    /// Queues an event; the oldest one makes room.
    pub fn put(&self, event: Map<String, Value>) {
        let mut queue = self.shared.lock();
        if queue.events.len() == QUEUE_MAX {
            queue.events.pop_front();
            self.shared.counters.webhook.lost.fetch_add(1, Ordering::Relaxed);
        }
        queue.events.push_back(event);
        drop(queue);
        self.shared.changed.notify_one();
    }

    /// Waits a moment for what is queued.
    pub fn finish(self) {
        self.shared.lock().until = Some(Instant::now() + FAREWELL);
        self.shared.changed.notify_one();
        // A thread that has panicked has said so.
        let _ = self.thread.join();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deliver(&self, service: &Endpoint) {
        let mut fails = false;
        while let Some(batch) = self.next_batch() {
            let count = batch.len() as u64;
            let body = json!({ "events": batch }).to_string();
            match self.try_often(service, &body) {
                Ok(()) => {
                    self.counters.webhook.delivered.fetch_add(count, Ordering::Relaxed);
                    if fails {
                        info!("the webhook takes session records again");
                    }
                    fails = false;
                }
                Err(words) => {
                    self.counters.webhook.lost.fetch_add(count, Ordering::Relaxed);
                    if !fails {
                        warn!(reason = words, "the webhook does not take session records");
                    }
                    fails = true;
                }
            }
        }
    }

    /// The next events; `None` at the end.
    fn next_batch(&self) -> Option<Vec<Map<String, Value>>> {
        let mut queue = self.lock();
        loop {
            let is_over = queue.until.is_some_and(|until| until <= Instant::now());
            if queue.events.is_empty() && queue.until.is_some() || is_over {
                self.counters.webhook.lost.fetch_add(queue.events.len() as u64, Ordering::Relaxed);
                return None;
            }
            if !queue.events.is_empty() {
                let count = queue.events.len().min(BATCH_MAX);
                return Some(queue.events.drain(..count).collect());
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Delivers, or says why that is given up.
    fn try_often(&self, service: &Endpoint, body: &str) -> Result<(), String> {
        let mut pause = Duration::from_secs(1);
        for attempt in 1..=ATTEMPTS {
            let words = match service.post(body, PATIENCE) {
                Ok(200..300) => return Ok(()),
                // Another attempt would be refused as well.
                Ok(status @ 400..500) if status != 408 && status != 429 => return Err(format!("status {status}")),
                Ok(status) => format!("status {status}"),
                Err(error) => error.to_string(),
            };
            if attempt == ATTEMPTS || !self.rest(pause) {
                return Err(words);
            }
            pause *= 2;
        }
        Err("no attempt".to_owned())
    }

    /// Waits between two attempts; false when the daemon's stop leaves no time for another.
    fn rest(&self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        let mut queue = self.lock();
        loop {
            let now = Instant::now();
            if queue.until.is_some_and(|until| until <= end) {
                return false;
            }
            if now >= end {
                return true;
            }
            queue = self.changed.wait_timeout(queue, end - now).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
