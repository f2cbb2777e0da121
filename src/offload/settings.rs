//! What an operator decides about the kernel path.

/// Whether the kernel carries clients' data, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub mode: Mode,
    /// The interfaces whose packets it takes; with none named, those that have a listener's or a relay's address, but for
    /// loopback.
    pub interfaces: Vec<String>,
}

impl Settings {
    /// Whether it takes packets within this host too.
    pub(super) fn with_loopback(&self) -> bool {
        self.interfaces.iter().any(|name| name == LOOPBACK)
    }
}

/// The kernel calls it so in every namespace.
const LOOPBACK: &str = "lo";

impl Default for Settings {
    fn default() -> Self {
        Self { mode: Mode::Off, interfaces: Vec::new() }
    }
}

/// What carries clients' data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The sockets alone.
    Off,
    /// The kernel where it can and may, without a word of complaint.
    Auto,
    /// tc programs.
    Tc,
    /// tc programs as filters, which is all that kernels before 6.6 have.
    Clsact,
    /// XDP programs, run by the driver; tc where the driver has none.
    Xdp,
}

impl Mode {
    /// The names in the configuration.
    pub const NAMES: [(&'static str, Self); 5] =
        [("off", Self::Off), ("auto", Self::Auto), ("tc", Self::Tc), ("clsact", Self::Clsact), ("xdp", Self::Xdp)];
}
