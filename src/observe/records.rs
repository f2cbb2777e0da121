//! Session records: to the log, to a file and to a webhook, by a thread of their own.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use tracing::{error, info};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use super::logs::Format;
use super::webhook::{self, Webhook};
use crate::turn::effect::Traffic;
use crate::worker::{RECORDS_TARGET as TARGET, Record, WantedRecords};

/// How long the recorder lets records gather: a wake-up for each would cost the workers more than all else about it.
const GATHERING: Duration = Duration::from_millis(10);
/// At most one line about a file that cannot be written in this time.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// Where records go beside the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// One JSON object on each line; opened again at a reload.
    pub file: Option<PathBuf>,
    pub webhook: Option<webhook::Settings>,
    /// The file and the webhook are told of allocations that begin, too.
    pub starts: bool,
}

impl Settings {
    /// Which records are to come from the workers, whatever the log takes.
    pub fn wanted(&self) -> WantedRecords {
        let ends = self.file.is_some() || self.webhook.is_some();
        WantedRecords { starts: self.starts && ends, ends }
    }
}

/// What became of records, since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// The queue between workers and recorder was full.
    pub lost: Arc<AtomicU64>,
    pub file_written: AtomicU64,
    pub file_failed: AtomicU64,
    pub webhook: webhook::Counters,
}

/// Writes records until the last worker is gone.
#[derive(Debug)]
pub struct Recorder {
    records: Receiver<Record>,
    format: Format,
    file: Option<RecordFile>,
    webhook: Option<Webhook>,
    counters: Arc<Counters>,
}

/// Which of the places that records go to cannot be had.
#[derive(Debug)]
pub enum StartError {
    File(io::Error),
    Webhook(io::Error),
}

/// A request to open the file again: whoever rotates files has moved it away.
#[derive(Clone, Debug, Default)]
pub struct Reopen(Arc<AtomicBool>);

impl Reopen {
    pub fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Recorder {
    /// Opens the file. `lost` counts what workers could not hand over.
    pub fn new(
        settings: &Settings,
        format: Format,
        records: Receiver<Record>,
        lost: Arc<AtomicU64>,
        reopen: &Reopen,
    ) -> Result<Self, StartError> {
        let counters = Arc::new(Counters { lost, ..Counters::default() });
        let file = settings.file.as_deref().map(|path| RecordFile::open(path, reopen.clone()));
        let file = file.transpose().map_err(StartError::File)?;
        let webhook = settings.webhook.as_ref().map(|settings| Webhook::start(settings.clone(), Arc::clone(&counters)));
        let webhook = webhook.transpose().map_err(StartError::Webhook)?;
        Ok(Self { records, format, file, webhook, counters })
    }

    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Runs until there is nobody left to hear of; then gives the webhook a moment for what it still has.
    pub fn run(mut self) {
        while let Ok(record) = self.records.recv() {
            self.record(&record);
            std::thread::sleep(GATHERING);
            while let Ok(record) = self.records.try_recv() {
                self.record(&record);
            }
        }
        if let Some(webhook) = self.webhook {
            webhook.finish();
        }
    }

    fn record(&mut self, record: &Record) {
        let fields = fields(record);
        if let Some(file) = &mut self.file {
            let written = file.write(&fields);
            let counter = if written { &self.counters.file_written } else { &self.counters.file_failed };
            counter.fetch_add(1, Ordering::Relaxed);
        }
        self.log(record, &fields);
        if let Some(webhook) = &self.webhook {
            webhook.put(fields);
        }
    }

    /// Ends alone: what begins is of no use in a log that people read.
    fn log(&self, record: &Record, fields: &Map<String, Value>) {
        let Record::Ended { ended, at } = record else { return };
        if !tracing::enabled!(target: TARGET, tracing::Level::INFO) {
            return;
        }
        match self.format {
            // tracing writes lists as texts.
            Format::Json => write_line(fields),
            Format::Text => {
                let Traffic { packets_to_peers, bytes_to_peers, packets_to_client, bytes_to_client } = ended.traffic;
                info!(
                    target: TARGET,
                    id = %ended.id,
                    user = %ended.username,
                    client = %ended.client.client,
                    transport = ended.client.transport.name(),
                    relayed = ?ended.relayed,
                    peers = ?ended.peers,
                    peers_more = ended.peers_more,
                    packets_to_peers,
                    bytes_to_peers,
                    packets_to_client,
                    bytes_to_client,
                    datapath = ended.offloaded.datapath(),
                    start = ended.started,
                    end = at,
                    reason = ended.reason.name(),
                    "allocation ended"
                );
            }
        }
    }
}

/// One line to standard error, in the shape of the other events there.
fn write_line(fields: &Map<String, Value>) {
    let mut timestamp = String::new();
    // Fails only when the string does.
    let _ = SystemTime.format_time(&mut Writer::new(&mut timestamp));
    let mut line = Map::new();
    line.insert("timestamp".to_owned(), timestamp.into());
    line.insert("level".to_owned(), "INFO".into());
    line.insert("message".to_owned(), "allocation ended".into());
    line.insert("target".to_owned(), TARGET.into());
    line.extend(fields.iter().map(|(name, value)| (name.clone(), value.clone())));
    // As the log itself does it: nobody can be told that standard error is gone.
    let _ = io::stderr().write_all(format!("{}\n", Value::Object(line)).as_bytes());
}

/// The stable fields of docs/operating.md.
fn fields(record: &Record) -> Map<String, Value> {
    let value = match record {
        Record::Started(session) => json!({
            "event": "started",
            "id": session.id.to_string(),
            "user": &*session.username,
            "client": session.client.client.to_string(),
            "server": session.client.server.to_string(),
            "transport": session.client.transport.name(),
            "relayed": session.relayed,
            "start": session.started,
        }),
        Record::Ended { ended, at } => json!({
            "event": "ended",
            "id": ended.id.to_string(),
            "user": &*ended.username,
            "client": ended.client.client.to_string(),
            "server": ended.client.server.to_string(),
            "transport": ended.client.transport.name(),
            "relayed": ended.relayed,
            "peers": ended.peers.iter().map(IpAddr::to_string).collect::<Vec<_>>(),
            "peers_more": ended.peers_more,
            "packets_to_peers": ended.traffic.packets_to_peers,
            "bytes_to_peers": ended.traffic.bytes_to_peers,
            "packets_to_client": ended.traffic.packets_to_client,
            "bytes_to_client": ended.traffic.bytes_to_client,
            "datapath": ended.offloaded.datapath(),
            "start": ended.started,
            "end": at,
            "reason": ended.reason.name(),
        }),
    };
    match value {
        Value::Object(fields) => fields,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Map::new(),
    }
}

/// The file of records.
#[derive(Debug)]
struct RecordFile {
    path: PathBuf,
    file: File,
    reopen: Reopen,
    complained: Option<Instant>,
    /// It ends in a part of a line, behind which the disk was full.
    is_torn: bool,
}

impl RecordFile {
    fn open(path: &Path, reopen: Reopen) -> io::Result<Self> {
        let (file, is_torn) = (append(path)?, ends_in_a_part(path));
        Ok(Self { path: path.to_owned(), file, reopen, complained: None, is_torn })
    }

    /// Writes a line; false when not all of it was written.
    fn write(&mut self, fields: &Map<String, Value>) -> bool {
        if self.reopen.0.swap(false, Ordering::Relaxed) {
            match append(&self.path) {
                Ok(file) => (self.file, self.is_torn) = (file, ends_in_a_part(&self.path)),
                Err(error) => self.complain(&error),
            }
        }
        let Ok(line) = serde_json::to_string(fields) else { return false };
        // A part of another line stays what it is: a line that is none.
        let line = if self.is_torn { format!("\n{line}\n") } else { format!("{line}\n") };
        match self.write_line(line.as_bytes()) {
            Ok(()) => true,
            Err(error) => {
                self.complain(&error);
                false
            }
        }
    }

    fn write_line(&mut self, mut line: &[u8]) -> io::Result<()> {
        while !line.is_empty() {
            match self.file.write(line) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    let (written, rest) = line.split_at(count);
                    self.is_torn = !written.ends_with(b"\n");
                    line = rest;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn complain(&mut self, error: &io::Error) {
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAINT_INTERVAL) {
            self.complained = Some(Instant::now());
            error!(file = %self.path.display(), %error, "session records cannot be written");
        }
    }
}

/// Whether a file of lines ends in a part of one, as a host that was switched off leaves it. What cannot be read does not.
fn ends_in_a_part(path: &Path) -> bool {
    let last = || -> io::Result<u8> {
        let (mut file, mut last) = (File::open(path)?, [0]);
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        Ok(last[0])
    };
    let is_file = path.metadata().is_ok_and(|metadata| metadata.is_file());
    is_file && last().is_ok_and(|last| last != b'\n')
}

/// Users are named in it.
fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn record(user: &str) -> Map<String, Value> {
        Map::from_iter([("user".to_owned(), user.into())])
    }

    #[test]
    fn what_follows_a_part_of_a_record_is_a_line_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("records");
        let mut file = RecordFile::open(&path, Reopen::default()).unwrap();
        // It takes a part of what is long, as a disk does that fills up.
        let (mut reader, writer) = UnixStream::pair().unwrap();
        writer.set_nonblocking(true).unwrap();
        file.file = File::from(OwnedFd::from(writer));
        assert!(file.write(&record("first")));
        assert!(!file.write(&record(&"x".repeat(4 << 20))));
        let drain = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        let deadline = Instant::now() + Duration::from_secs(30);
        while !file.write(&record("second")) {
            assert!(Instant::now() < deadline, "nothing is taken");
        }
        assert!(file.write(&record("third")));
        drop(file);
        let text = drain.join().unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], r#"{"user":"first"}"#);
        assert!(lines[1].starts_with(r#"{"user":"xxx"#) && !lines[1].contains("second"));
        assert_eq!(lines[lines.len() - 2..], [r#"{"user":"second"}"#, r#"{"user":"third"}"#]);
    }

    #[test]
    fn a_file_that_ends_in_a_part_of_a_record_goes_on_in_another_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("records");
        std::fs::write(&path, "{\"user\":\"fi").unwrap();
        for user in ["second", "third"] {
            assert!(RecordFile::open(&path, Reopen::default()).unwrap().write(&record(user)));
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\"user\":\"fi\n{\"user\":\"second\"}\n{\"user\":\"third\"}\n");
    }
}
