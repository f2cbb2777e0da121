//! The log: what is written, how, and where to.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::linux::fs::MetadataExt;
use std::panic::PanicHookInfo;
use std::sync::OnceLock;

use tracing::{Event, Subscriber, error};
use tracing_subscriber::fmt::format::{self, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer, Registry, layer::SubscriberExt, reload};

/// The log as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub level: Level,
    pub format: Format,
}

impl Default for Settings {
    fn default() -> Self {
        Self { level: Level::Info, format: Format::Text }
    }
}

/// The least severe events that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Level {
    /// The names in the configuration, most severe first.
    pub const NAMES: [(&'static str, Self); 5] = [
        ("error", Self::Error),
        ("warn", Self::Warn),
        ("info", Self::Info),
        ("debug", Self::Debug),
        ("trace", Self::Trace),
    ];

    /// The name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// How an event is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One line for people.
    Text,
    /// One JSON object on a line.
    Json,
}

impl Format {
    /// The names in the configuration.
    pub const NAMES: [(&'static str, Self); 2] = [("text", Self::Text), ("json", Self::Json)];
}

/// Where standard error leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sink {
    /// journald keeps the time itself and takes the priority from `<3>` at the start of a line.
    Journal,
    Terminal,
    Other,
}

/// The filter in use, for a level that changes while the daemon runs.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Begins to write events to standard error, panics among them. Later calls change nothing.
pub fn start(settings: Settings) {
    let (subscriber, filter) = subscriber(settings, sink(), std::io::stderr);
    if tracing::subscriber::set_global_default(subscriber).is_ok() {
        let _ = FILTER.set(filter);
        std::panic::set_hook(Box::new(write_panic));
    }
}

/// Writes a panic as one event, with a backtrace where `RUST_BACKTRACE` asks for one.
fn write_panic(panic: &PanicHookInfo<'_>) {
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    let place = panic.location().map(ToString::to_string);
    let thread = std::thread::current();
    let words = panic.payload_as_str().unwrap_or_default();
    error!(thread = thread.name(), place, words, backtrace, "panic");
}

/// Writes events of this level and above from now on, once the log has started.
pub fn set_level(level: Level) {
    if let Some(handle) = FILTER.get() {
        // Fails only when the subscriber is gone, which a global one never is.
        let _ = handle.reload(filter(level));
    }
}

/// Libraries speak up from warnings on, ferryd from the level that is set.
fn filter(level: Level) -> EnvFilter {
    let others = if level == Level::Error { "error" } else { "warn" };
    EnvFilter::new(format!("{others},ferryd={}", level.name()))
}

fn subscriber<W>(
    settings: Settings,
    sink: Sink,
    writer: W,
) -> (impl Subscriber + Send + Sync, reload::Handle<EnvFilter, Registry>)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter(settings.level));
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let layer = match (settings.format, sink) {
        (Format::Json, Sink::Journal | Sink::Terminal | Sink::Other) => {
            layer.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
        }
        (Format::Text, Sink::Journal) => {
            layer.with_ansi(false).event_format(Priority(format::format().without_time().with_level(false))).boxed()
        }
        (Format::Text, Sink::Terminal) => layer.with_ansi(true).boxed(),
        (Format::Text, Sink::Other) => layer.with_ansi(false).boxed(),
    };
    (tracing_subscriber::registry().with(filter).with(layer), handle)
}

fn sink() -> Sink {
    let stderr = std::io::stderr();
    if stderr.is_terminal() {
        return Sink::Terminal;
    }
    // systemd.exec(5): compare with what the descriptor is now, as it may have been redirected since.
    let journal = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let metadata = stderr.as_fd().try_clone_to_owned().and_then(|fd| std::fs::File::from(fd).metadata());
    match metadata {
        Ok(metadata) if journal == format!("{}:{}", metadata.st_dev(), metadata.st_ino()) => Sink::Journal,
        Ok(_) | Err(_) => Sink::Other,
    }
}

/// Writes the priority of sd-daemon(3) before each event.
struct Priority<F>(F);

impl<S, N, F> FormatEvent<S, N> for Priority<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let priority = match *event.metadata().level() {
            tracing::Level::ERROR => 3,
            tracing::Level::WARN => 4,
            tracing::Level::INFO => 6,
            tracing::Level::DEBUG | tracing::Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn written(format: Format, level: Level, sink: Sink) -> String {
        let buffer = Buffer::default();
        let settings = Settings { level, format };
        let make = buffer.clone();
        tracing::subscriber::with_default(subscriber(settings, sink, move || make.clone()).0, || {
            tracing::error!(port = 3478, "stopped");
            tracing::info!("started");
            tracing::info!(target: "rustls", "chatter");
        });
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn the_journal_gets_priorities_and_no_time() {
        assert_eq!(
            written(Format::Text, Level::Info, Sink::Journal),
            "<3>ferryd::observe::logs::tests: stopped port=3478\n<6>ferryd::observe::logs::tests: started\n"
        );
    }

    #[test]
    fn json_has_fields_on_one_line() {
        let text = written(Format::Json, Level::Info, Sink::Journal);
        let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(
            (&line["message"], &line["port"], &line["level"]),
            (&"stopped".into(), &3478.into(), &"ERROR".into())
        );
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn a_panic_is_one_event_with_its_place() {
        let buffer = Buffer::default();
        let make = buffer.clone();
        let settings = Settings { level: Level::Error, format: Format::Json };
        tracing::subscriber::with_default(subscriber(settings, Sink::Other, move || make.clone()).0, || {
            let before = std::panic::take_hook();
            let this = std::thread::current().id();
            std::panic::set_hook(Box::new(move |panic| {
                // Other tests may panic meanwhile.
                if std::thread::current().id() == this {
                    write_panic(panic);
                }
            }));
            std::panic::catch_unwind(|| panic!("a fault for the test")).unwrap_err();
            std::panic::set_hook(before);
        });
        let bytes = buffer.0.lock().unwrap().clone();
        let line: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!((&line["message"], &line["words"]), (&"panic".into(), &"a fault for the test".into()));
        assert!(line["place"].as_str().unwrap().contains("src/observe/logs.rs:"), "{line}");
    }

    #[test]
    fn the_level_is_a_floor() {
        assert_eq!(written(Format::Text, Level::Error, Sink::Other).lines().count(), 1);
    }
}
