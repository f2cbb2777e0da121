//! What systemd is told (sd_notify(3)); without `$NOTIFY_SOCKET` nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;

/// Serving, or serving again after a reload.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Reading the configuration again; [`ready`] must follow.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        // The clock is only asked for by Type=notify-reload.
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// On the way out.
pub fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// Still on the way out, for so long at least: `TimeoutStopSec=` begins again with it.
pub fn stopping_for(longer: Duration) {
    tell(&[NotifyState::ExtendTimeoutUsec(u32::try_from(longer.as_micros()).unwrap_or(u32::MAX))]);
}

/// One line for `systemctl status`.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// Still at work; due more often than [`watchdog_interval`].
pub fn watchdog() {
    tell(&[NotifyState::Watchdog]);
}

/// How often [`watchdog`] is to be called: half of the time after which systemd kills. `None` without a watchdog.
///
/// sd_watchdog_enabled(3): the watchdog is meant for this process if `$WATCHDOG_PID` names it or is not set. sd-notify
/// takes a variable that is not set for another process.
pub fn watchdog_interval() -> Option<Duration> {
    let variable = |name| std::env::var(name).ok();
    let microseconds = variable("WATCHDOG_USEC")?.parse().ok().filter(|microseconds| *microseconds > 0)?;
    let is_meant = variable("WATCHDOG_PID").is_none_or(|id| id == std::process::id().to_string());
    is_meant.then(|| Duration::from_micros(microseconds) / 2)
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}
