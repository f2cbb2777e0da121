//! What clients reach: opened at start, and changed by a reload under running calls.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use tokio::task::AbortHandle;
use tracing::{error, info, warn};

use super::admin;
use super::crew::{Crew, REPORT_PATIENCE};
use super::failure::{Failure, host};
use crate::config::Settings;
use crate::control::workers::any_session;
use crate::net::accept::{self, Established};
use crate::net::admission::Admission;
use crate::net::inherited::Inherited;
use crate::net::socket::{OpenError, Reason, UdpOptions, open_tcp_listener};
use crate::net::steering::{Queues, open_steered};
use crate::net::tls::TlsAcceptConfig;
use crate::turn::{self, ListenerFilter, SessionFilter};
use crate::worker::settings::{Listener, ListenerKind};
use crate::worker::{Command, Listening, REST_BUFFER_BYTES, Stand, Terms, WorkerHandle, rules};

/// Connections that the kernel completes before they are accepted.
const BACKLOG: i32 = 1024;

/// Every socket that is to be open before anything else happens.
pub(super) struct Sockets {
    /// By worker, then by listener.
    pub(super) udp: Vec<Vec<Stand>>,
    pub(super) streams: Vec<(Listener, TcpListener)>,
    pub(super) metrics: Option<TcpListener>,
    pub(super) admin: Option<admin::Socket>,
    pub(super) remote_admin: Option<TcpListener>,
}

impl Sockets {
    pub(super) fn open(settings: &Settings, workers: usize) -> Result<Self, Failure> {
        let mut inherited = Inherited::of_this_process().map_err(Failure::Inherited)?;
        let mut sockets = Self {
            udp: (0..workers).map(|_| Vec::new()).collect(),
            streams: Vec::new(),
            metrics: None,
            admin: None,
            remote_admin: None,
        };
        for listener in &settings.listeners {
            match listener.kind {
                ListenerKind::Udp(_) => {
                    let passed = inherited.udp_listeners(listener.address, workers, &UdpOptions::LISTENER);
                    let group = match passed.map_err(Failure::Inherited)? {
                        // The group is older than this process, and the order of its sockets not this one's to know.
                        Some(passed) => passed.into_iter().map(Queues::one).collect(),
                        None => open_group(listener.address, workers, &settings.turn)?,
                    };
                    for (worker, queues) in sockets.udp.iter_mut().zip(group) {
                        worker.push(Stand { queues, terms: Terms::of(listener) });
                    }
                }
                ListenerKind::Stream(_) => {
                    let socket = match inherited.tcp_listener(listener.address) {
                        Some(socket) => socket,
                        None => open_tcp_listener(listener.address, BACKLOG).map_err(Failure::Listener)?,
                    };
                    sockets.streams.push((listener.clone(), socket));
                }
            }
        }
        inherited.finish().map_err(Failure::Inherited)?;
        if let Some(address) = settings.metrics {
            sockets.metrics = Some(open_tcp_listener(address, BACKLOG).map_err(Failure::Metrics)?);
        }
        sockets.admin = admin::open(&settings.admin)?;
        if let Some(remote) = &settings.admin.remote {
            sockets.remote_admin = Some(open_tcp_listener(remote.address, BACKLOG).map_err(Failure::RemoteAdmin)?);
        }
        Ok(sockets)
    }
}

/// Opens the sockets of a UDP listener, with a queue for each class of datagrams where the kernel provides that.
fn open_group(address: SocketAddr, workers: usize, settings: &turn::Settings) -> Result<Vec<Queues>, Failure> {
    let rules = rules(settings.channels_above_4fff);
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(io::Error::other).map_err(host("read random bytes"))?;
    let (seed, options) = (u64::from_ne_bytes(seed), &UdpOptions::LISTENER);
    let open = || open_steered(address, workers, &rules, seed, options, REST_BUFFER_BYTES);
    let (group, refused) = patiently(open).map_err(Failure::Listener)?;
    if let Some(error) = refused {
        warn!(%address, %error, "requests and media share a queue: a flood of requests disturbs calls");
    }
    Ok(group)
}

/// Tries again for a moment when the port is in use: after a daemon was killed, the kernel takes milliseconds to let go
/// of the sockets of its io_uring.
fn patiently<T>(open: impl Fn() -> Result<T, OpenError>) -> Result<T, OpenError> {
    const TRIES: u32 = 10;
    const PAUSE: Duration = Duration::from_millis(50);
    for _ in 1..TRIES {
        match open() {
            Err(error) if error.reason == Reason::InUse => std::thread::sleep(PAUSE),
            result => return result,
        }
    }
    open()
}

/// What streams are established with.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) tls: Option<TlsAcceptConfig>,
    pub(super) admission: Arc<Admission>,
    pub(super) sink: Arc<dyn Fn(Established) + Send + Sync>,
}

impl Door {
    /// Accepts connections from now on, until the task is aborted.
    fn serve(&self, listener: &Listener, socket: TcpListener) -> AbortHandle {
        let Self { tls, admission, sink } = self.clone();
        let proxies = listener.proxies.clone();
        let accept = listener.kind.accept();
        let task = tokio::spawn(async move {
            let Err(error) =
                accept::serve(socket, accept, proxies, tls, admission, move |established| sink(established)).await;
            error!(%error, "a stream listener ended");
        });
        task.abort_handle()
    }
}

/// The listeners there are, those included that were removed and still have calls.
pub(super) struct Listeners {
    door: Door,
    all: Vec<Standing>,
    /// No two UDP listeners of this process have one index.
    next_index: u16,
}

struct Standing {
    listener: Listener,
    place: Place,
    /// It was removed, and lives on for its calls.
    is_removed: bool,
}

impl Standing {
    /// Lets nobody new in; what has calls serves them on.
    fn remove(&mut self, crew: &Crew) {
        self.is_removed = true;
        match &self.place {
            Place::Udp(index) => {
                let terms = Terms { calls_alone: true, ..Terms::of(&self.listener) };
                crew.tell_listening(|| Listening::Change { index: *index, terms: terms.clone() });
            }
            Place::Stream(_, task) => task.abort(),
        }
    }

    /// Serves as another listener of the same socket.
    fn speak(&mut self, crew: &Crew, door: &Door, now: &Listener) {
        self.is_removed = false;
        self.listener = now.clone();
        match &mut self.place {
            Place::Udp(index) => {
                crew.tell_listening(|| Listening::Change { index: *index, terms: Terms::of(now) });
            }
            Place::Stream(socket, task) => match socket.try_clone() {
                Ok(another) => {
                    task.abort();
                    *task = door.serve(now, another);
                }
                Err(error) => warn!(%error, address = %now.address, "a listener answers what it did before"),
            },
        }
    }
}

enum Place {
    /// The index on every worker.
    Udp(u16),
    /// The socket, also while another task takes over what it answers.
    Stream(TcpListener, AbortHandle),
}

/// Sockets that are open and serve nobody yet.
pub(super) struct Prepared {
    /// With the index that the workers know it by.
    udp: Vec<(Listener, u16)>,
    streams: Vec<(Listener, TcpListener)>,
}

impl Listeners {
    /// Accepts the streams of `sockets`; the workers serve its datagrams already.
    pub(super) fn serve(
        settings: &Settings,
        streams: Vec<(Listener, TcpListener)>,
        door: Door,
    ) -> Result<Self, Failure> {
        let mut all = Self { door, all: Vec::new(), next_index: 0 };
        for listener in settings.listeners.iter().filter(|listener| listener.is_udp()) {
            all.add(listener.clone(), Place::Udp(all.next_index));
            all.next_index += 1;
        }
        for (listener, socket) in streams {
            all.accept(listener, socket).map_err(host("serve a stream listener"))?;
        }
        Ok(all)
    }

    fn add(&mut self, listener: Listener, place: Place) {
        info!(address = %listener.address, kind = listener.kind.name(), "listening");
        self.all.push(Standing { listener, place, is_removed: false });
    }

    fn accept(&mut self, listener: Listener, socket: TcpListener) -> io::Result<()> {
        let task = self.door.serve(&listener, socket.try_clone()?);
        self.add(listener, Place::Stream(socket, task));
        Ok(())
    }

    /// A listener that is wanted, and shares its port with another one that stands: only a restart can open it.
    pub(super) fn blocked(&self, wanted: &[Listener]) -> bool {
        let overlap = |one: &Listener, other: &Listener| {
            let [a, b] = [one, other].map(|listener| listener.address);
            let any = (a.ip().is_unspecified() || b.ip().is_unspecified()) && a.is_ipv4() == b.is_ipv4();
            one.is_udp() == other.is_udp() && a.port() == b.port() && any && a.ip() != b.ip()
        };
        wanted.iter().any(|listener| self.all.iter().any(|other| overlap(listener, &other.listener)))
    }

    /// Opens what is wanted and not there. On an error nothing is left open.
    pub(super) fn prepare(&mut self, crew: &Crew, settings: &Settings) -> Result<Prepared, Vec<String>> {
        let mut prepared = Prepared { udp: Vec::new(), streams: Vec::new() };
        match self.open_missing(crew, settings, &mut prepared) {
            Ok(()) => Ok(prepared),
            Err(failure) => {
                self.give_up(crew, prepared);
                Err(vec![failure.to_string()])
            }
        }
    }

    fn open_missing(&mut self, crew: &Crew, settings: &Settings, prepared: &mut Prepared) -> Result<(), Failure> {
        let missing = |listener: &&Listener| !self.all.iter().any(|other| other.listener.is_same_socket(listener));
        let missing: Vec<_> = settings.listeners.iter().filter(missing).collect();
        for listener in missing {
            match listener.kind {
                ListenerKind::Stream(_) => {
                    let socket = patiently(|| open_tcp_listener(listener.address, BACKLOG));
                    prepared.streams.push((listener.clone(), socket.map_err(Failure::Listener)?));
                }
                ListenerKind::Udp(_) => {
                    let group = open_group(listener.address, crew.handles.len(), &settings.turn)?;
                    let index = self.next_index;
                    let full = || io::Error::other("65535 listeners were opened since the start");
                    self.next_index = index.checked_add(1).ok_or_else(full).map_err(host("open another listener"))?;
                    prepared.udp.push((listener.clone(), index));
                    // Until everything else is checked nobody is served.
                    let terms = Terms { calls_alone: true, ..Terms::of(listener) };
                    begin(crew, index, group, terms).map_err(host("serve another listener"))?;
                }
            }
        }
        Ok(())
    }

    /// Closes what was opened and is not wanted after all.
    pub(super) fn give_up(&self, crew: &Crew, prepared: Prepared) {
        for (_, index) in prepared.udp {
            crew.tell_listening(|| Listening::End { index });
        }
    }

    /// Serves what is wanted and nothing else; returns what has changed, in words.
    pub(super) fn apply(&mut self, crew: &Crew, wanted: &[Listener], prepared: Prepared) -> Vec<String> {
        let mut changed = Vec::new();
        for standing in &mut self.all {
            match wanted.iter().find(|wanted| wanted.is_same_socket(&standing.listener)) {
                None if standing.is_removed => {}
                None => {
                    changed.push(format!("listener {} removed", standing.listener.name()));
                    standing.remove(crew);
                }
                Some(now) if *now == standing.listener && !standing.is_removed => {}
                Some(now) => {
                    let what = if standing.is_removed { "added" } else { "changed" };
                    changed.push(format!("listener {} {what}", now.name()));
                    standing.speak(crew, &self.door, now);
                }
            }
        }
        self.all.retain(|standing| !(standing.is_removed && matches!(standing.place, Place::Stream(..))));
        changed.extend(self.begin_prepared(crew, prepared));
        changed
    }

    /// Serves what was opened.
    fn begin_prepared(&mut self, crew: &Crew, prepared: Prepared) -> Vec<String> {
        let mut added = Vec::new();
        let Prepared { udp, streams } = prepared;
        for (listener, index) in udp {
            crew.tell_listening(|| Listening::Change { index, terms: Terms::of(&listener) });
            added.push(format!("listener {} added", listener.name()));
            self.add(listener, Place::Udp(index));
        }
        for (listener, socket) in streams {
            let name = listener.name();
            match self.accept(listener, socket) {
                Ok(()) => added.push(format!("listener {name} added")),
                Err(error) => error!(%error, listener = name, "a listener is not served"),
            }
        }
        added
    }

    /// The listeners in words; those that were removed say so.
    pub(super) fn words(&self) -> Vec<String> {
        let one = |standing: &Standing| {
            let until = if standing.is_removed { ", removed: until its calls have ended" } else { "" };
            format!("{}{until}", standing.listener.name())
        };
        self.all.iter().map(one).collect()
    }

    /// The ports of datagrams that are open.
    pub(super) fn udp_ports(&self) -> Vec<u16> {
        self.all.iter().filter(|it| it.listener.is_udp()).map(|it| it.listener.address.port()).collect()
    }

    /// The ports of streams that are open.
    pub(super) fn stream_ports(&self) -> Vec<u16> {
        self.all.iter().filter(|it| !it.listener.is_udp()).map(|it| it.listener.address.port()).collect()
    }

    /// Those that were removed and may still have calls.
    pub(super) fn removed(&self) -> Vec<Removed> {
        let one = |standing: &Standing| match standing.place {
            Place::Udp(index) if standing.is_removed => {
                Some(Removed { index, clients: clients_of(&standing.listener) })
            }
            Place::Udp(_) | Place::Stream(..) => None,
        };
        self.all.iter().filter_map(one).collect()
    }

    /// Closes a listener whose last call has ended, if nobody wants it again.
    pub(super) fn close(&mut self, crew: &Crew, removed: Removed) {
        let is_it = |standing: &mut Standing| {
            standing.is_removed && matches!(standing.place, Place::Udp(index) if index == removed.index)
        };
        for standing in self.all.extract_if(.., is_it) {
            crew.tell_listening(|| Listening::End { index: removed.index });
            info!(listener = standing.listener.name(), "the last call of a removed listener has ended, closing it");
        }
    }
}

/// A listener of datagrams that was removed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Removed {
    index: u16,
    /// What its clients send to.
    clients: ListenerFilter,
}

impl Removed {
    /// Whether no call is there any more; a worker that does not answer may have one.
    pub(super) async fn is_empty(self, handles: Vec<WorkerHandle>) -> bool {
        let filter = SessionFilter { listener: Some(self.clients), ..SessionFilter::default() };
        any_session(handles, filter).await == Some(false)
    }
}

/// Has every worker serve its part of a group.
fn begin(crew: &Crew, index: u16, group: Vec<Queues>, terms: Terms) -> io::Result<()> {
    let silent = || io::Error::other("a worker does not answer");
    let mut asked = Vec::new();
    for (handle, queues) in crew.handles.iter().zip(group) {
        let (to, from) = sync_channel(1);
        let stand = Box::new(Stand { queues, terms: terms.clone() });
        handle.tell(Command::Listen(Listening::Begin { index, stand, to }));
        asked.push(from);
    }
    asked.into_iter().try_for_each(|from| from.recv_timeout(REPORT_PATIENCE).map_err(|_| silent())?)
}

/// Whose calls keep a listener of datagrams open. Clients of proxies have sent to addresses of those, so that behind
/// proxies every call over datagrams counts as one of them.
fn clients_of(listener: &Listener) -> ListenerFilter {
    if listener.proxies.is_empty() { ListenerFilter::At(listener.address) } else { ListenerFilter::Anywhere }
}
