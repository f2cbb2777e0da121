//! What an operator decides about the kernel path.

/// Whether the kernel carries the data of open channels, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub mode: Mode,
    /// The interfaces whose packets it takes; with none named, those that have a listener's or a relay's address.
    pub interfaces: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { mode: Mode::Off, interfaces: Vec::new() }
    }
}

/// What carries the data of open channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The sockets alone.
    Off,
    /// The kernel where it can and may, without a word of complaint.
    Auto,
    /// tc programs.
    Tc,
    /// XDP programs, run by the driver; tc where the driver has none.
    Xdp,
}

impl Mode {
    /// The names in the configuration.
    pub const NAMES: [(&'static str, Self); 4] =
        [("off", Self::Off), ("auto", Self::Auto), ("tc", Self::Tc), ("xdp", Self::Xdp)];
}
