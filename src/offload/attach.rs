//! On which interfaces the programs are, and as which of the two.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use aya::programs::tc::{NlOptions, SchedClassifierLinkId, TcAttachOptions, qdisc_add_clsact};
use aya::programs::xdp::XdpLinkId;
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, XdpMode};
use tracing::{debug, info, warn};

use super::ethtool::Ethtool;
use super::netlink::{Link, Netlink};
use super::programs::{Programs, in_one_line};
use super::settings::{Mode, Settings};
use super::watch::Watch;

/// A filter's place where there is no tcx: before others, and always the same.
const CLSACT_PRIORITY: u16 = 1;

/// How an interface's packets are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// A tc program, whose link ends with the process (Linux 6.6).
    Tcx,
    /// A tc program as a filter, which stays when the process is killed.
    Clsact,
    /// An XDP program that the driver runs.
    Xdp,
}

impl Method {
    /// The name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::Xdp => "xdp",
        }
    }
}

/// Physical network cards whose drivers run XDP programs, send by XDP_TX and take what is redirected to them, and have
/// carried production traffic so for years.
const DRIVERS: [&str; 8] = ["bnxt_en", "ena", "i40e", "ice", "igb", "igc", "ixgbe", "mlx5_core"];

/// The interfaces that the programs are on.
pub(super) struct Attachments {
    settings: Settings,
    /// Addresses of listeners and relays; an unspecified one stands for every address of its family.
    addresses: Vec<IpAddr>,
    ethtool: Option<Ethtool>,
    by_ifindex: BTreeMap<u32, Attached>,
}

/// An interface, and what is on it; nothing where the kernel refused or where it failed.
struct Attached {
    name: String,
    held: Option<Held>,
    watch: Watch,
}

/// A program on an interface.
enum Held {
    Xdp(XdpLinkId),
    Tc(Method, SchedClassifierLinkId),
}

impl Held {
    fn method(&self) -> Method {
        match self {
            Self::Xdp(_) => Method::Xdp,
            Self::Tc(method, _) => *method,
        }
    }

    /// Takes the program away; the interface may be gone already.
    fn detach(self, programs: &mut Programs) {
        let detached = match self {
            Self::Xdp(link) => programs.xdp().map(|program| program.detach(link)),
            Self::Tc(_, link) => programs.tc().map(|program| program.detach(link)),
        };
        if let Some(Err(error)) = detached {
            debug!(why = in_one_line(&error), "a program was gone before it was taken away");
        }
    }
}

impl Attachments {
    pub(super) fn new(settings: &Settings, addresses: &[IpAddr]) -> Self {
        Self {
            settings: settings.clone(),
            addresses: addresses.to_vec(),
            ethtool: Ethtool::open().ok(),
            by_ifindex: BTreeMap::new(),
        }
    }

    /// Has these addresses served too; returns those that are new.
    pub(super) fn add(&mut self, addresses: &[IpAddr]) -> Vec<IpAddr> {
        let new: Vec<_> = addresses.iter().filter(|ip| !self.addresses.contains(ip)).copied().collect();
        self.addresses.extend(&new);
        new
    }

    /// The interfaces with one of these addresses that have no program, by name; none is missed on loopback.
    pub(super) fn without<'a>(
        &self,
        links: impl Iterator<Item = &'a Link>,
        own: &[(u32, IpAddr)],
        addresses: &[IpAddr],
    ) -> Vec<String> {
        let has = |link: &Link| self.by_ifindex.get(&link.ifindex).is_some_and(|attached| attached.held.is_some());
        let missed = links.filter(|link| !link.is_loopback && !has(link) && is_on(link, own, addresses));
        missed.map(|link| link.name.clone()).collect()
    }

    /// The interfaces that are named and not there: missing, down, or such as carry no Ethernet.
    pub(super) fn absent(&self) -> impl Iterator<Item = &String> {
        let is_there = |name: &String| self.by_ifindex.values().any(|attached| attached.name == *name);
        self.settings.interfaces.iter().filter(move |name| !is_there(name))
    }

    /// The interfaces with the programs on them, by name.
    pub(super) fn list(&self) -> Vec<(String, Method)> {
        let attached = self.by_ifindex.values();
        attached.filter_map(|attached| Some((attached.name.clone(), attached.held.as_ref()?.method()))).collect()
    }

    /// The interfaces that XDP takes from, and can send by.
    pub(super) fn with_xdp(&self) -> BTreeSet<u32> {
        let with_xdp = |attached: &Attached| matches!(attached.held, Some(Held::Xdp(_)));
        self.by_ifindex.iter().filter(|(_, attached)| with_xdp(attached)).map(|(ifindex, _)| *ifindex).collect()
    }

    /// Puts the programs on interfaces that are new, and takes them from those that are not wanted any more.
    pub(super) fn follow<'a>(
        &mut self,
        programs: &mut Programs,
        links: impl Iterator<Item = &'a Link>,
        own: &[(u32, IpAddr)],
    ) {
        let wanted: BTreeMap<u32, &Link> =
            links.filter(|link| self.wants(link, own)).map(|link| (link.ifindex, link)).collect();
        let unwanted: Vec<u32> =
            self.by_ifindex.keys().filter(|ifindex| !wanted.contains_key(ifindex)).copied().collect();
        for ifindex in unwanted {
            if let Some(Attached { held: Some(held), .. }) = self.by_ifindex.remove(&ifindex) {
                held.detach(programs);
            }
        }
        for (ifindex, link) in wanted {
            if self.by_ifindex.contains_key(&ifindex) {
                continue;
            }
            let held = match self.attach(programs, link) {
                Ok(held) => {
                    info!(interface = link.name, method = held.method().name(), "the kernel carries open channels");
                    Some(held)
                }
                Err(error) => {
                    let why = in_one_line(&error);
                    warn!(interface = link.name, why, "no program on this interface: sockets alone serve it");
                    None
                }
            };
            let watch = Watch::begin(Instant::now());
            self.by_ifindex.insert(ifindex, Attached { name: link.name.clone(), held, watch });
        }
    }

    /// Looks at what interfaces count of their failures while calls run, and has the next best carry them where too much
    /// fails: tc instead of XDP, the sockets instead of tc. True when something has changed.
    pub(super) fn watch(&mut self, programs: &mut Programs, netlink: &mut Netlink, now: Instant, carried: u64) -> bool {
        let mut any = false;
        for (ifindex, attached) in &mut self.by_ifindex {
            let Some(held) = &attached.held else { continue };
            let method = held.method();
            let of_driver = self.ethtool.as_ref().filter(|_| method == Method::Xdp);
            let failures = of_driver.and_then(|ethtool| ethtool.xdp_failures(&attached.name).ok()).unwrap_or(0);
            let failures = failures.wrapping_add(netlink.failures(*ifindex).unwrap_or(0));
            if !attached.watch.has_failed(now, failures, carried) {
                continue;
            }
            let next =
                if method == Method::Xdp { attach_tc(programs, self.settings.mode, &attached.name).ok() } else { None };
            let instead = next.as_ref().map_or("sockets", |held| held.method().name());
            warn!(
                interface = attached.name,
                method = method.name(),
                instead,
                "the interface loses what the kernel path sends or receives (ethtool -S, ip -s link)"
            );
            if let Some(held) = std::mem::replace(&mut attached.held, next) {
                held.detach(programs);
            }
            attached.watch = Watch::begin(now);
            any = true;
        }
        any
    }

    fn wants(&self, link: &Link, own: &[(u32, IpAddr)]) -> bool {
        if !link.is_up || !link.is_ethernet && !link.is_loopback {
            return false;
        }
        if !self.settings.interfaces.is_empty() {
            return self.settings.interfaces.contains(&link.name);
        }
        if link.is_loopback {
            return false;
        }
        is_on(link, own, &self.addresses)
    }

    fn attach(&self, programs: &mut Programs, link: &Link) -> Result<Held, ProgramError> {
        if self.is_for_xdp(link)
            && let Some(xdp) = programs.xdp()
        {
            match xdp.attach_to_if_index(link.ifindex, XdpMode::Driver) {
                Ok(link) => return Ok(Held::Xdp(link)),
                Err(error) => {
                    let why = in_one_line(&error);
                    warn!(interface = link.name, why, "the driver takes no XDP program; tc is tried");
                }
            }
        }
        attach_tc(programs, self.settings.mode, &link.name)
    }

    /// XDP runs on an interface of its own, not upon another one, and sends what is complete.
    fn is_for_xdp(&self, link: &Link) -> bool {
        match self.settings.mode {
            Mode::Off | Mode::Tc | Mode::Clsact => false,
            Mode::Xdp => !link.is_loopback,
            Mode::Auto => {
                let driver = self.ethtool.as_ref().and_then(|ethtool| ethtool.driver(&link.name).ok());
                link.kind.is_none() && driver.is_some_and(|driver| DRIVERS.contains(&driver.as_str()))
            }
        }
    }
}

/// Whether an interface has one of these addresses.
fn is_on(link: &Link, own: &[(u32, IpAddr)], addresses: &[IpAddr]) -> bool {
    let is_among =
        |ip: &IpAddr| addresses.iter().any(|one| one == ip || one.is_unspecified() && one.is_ipv4() == ip.is_ipv4());
    own.iter().any(|(ifindex, ip)| *ifindex == link.ifindex && is_among(ip))
}

fn attach_tc(programs: &mut Programs, mode: Mode, interface: &str) -> Result<Held, ProgramError> {
    let tc = programs.tc().ok_or(ProgramError::NotLoaded)?;
    if mode == Mode::Clsact {
        return attach_clsact(tc, interface).map(|link| Held::Tc(Method::Clsact, link));
    }
    let tcx = attach_tcx(tc, interface).map(|link| Held::Tc(Method::Tcx, link));
    tcx.or_else(|_| attach_clsact(tc, interface).map(|link| Held::Tc(Method::Clsact, link)))
}

fn attach_tcx(program: &mut SchedClassifier, interface: &str) -> Result<SchedClassifierLinkId, ProgramError> {
    let order = TcAttachOptions::TcxOrder(LinkOrder::default());
    program.attach_with_options(interface, TcAttachType::Ingress, order)
}

fn attach_clsact(program: &mut SchedClassifier, interface: &str) -> Result<SchedClassifierLinkId, ProgramError> {
    // It is there already where others use it.
    let _ = qdisc_add_clsact(interface);
    let options = TcAttachOptions::Netlink(NlOptions { priority: CLSACT_PRIORITY, ..NlOptions::default() });
    program.attach_with_options(interface, TcAttachType::Ingress, options)
}
