//! On which interfaces the programs are, and as which of the two.

use std::collections::BTreeMap;
use std::net::IpAddr;

use aya::programs::tc::{NlOptions, TcAttachOptions, qdisc_add_clsact};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode};
use tracing::{info, warn};

use super::netlink::Link;
use super::programs::{Programs, in_one_line};
use super::settings::{Mode, Settings};

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

/// The interfaces that the programs are on.
pub(super) struct Attachments {
    settings: Settings,
    /// Addresses of listeners and relays; an unspecified one stands for every address of its family.
    addresses: Vec<IpAddr>,
    by_ifindex: BTreeMap<u32, Attached>,
}

/// An interface, or why there is no program on it.
struct Attached {
    name: String,
    method: Option<Method>,
}

impl Attachments {
    pub(super) fn new(settings: &Settings, addresses: &[IpAddr]) -> Self {
        Self { settings: settings.clone(), addresses: addresses.to_vec(), by_ifindex: BTreeMap::new() }
    }

    /// The interfaces with the programs on them, by name.
    pub(super) fn list(&self) -> Vec<(String, Method)> {
        let attached = self.by_ifindex.values();
        attached.filter_map(|attached| Some((attached.name.clone(), attached.method?))).collect()
    }

    pub(super) fn uses_xdp(&self) -> bool {
        self.by_ifindex.values().any(|attached| attached.method == Some(Method::Xdp))
    }

    /// Puts the programs on interfaces that are new, and forgets those that are gone.
    pub(super) fn follow<'a>(
        &mut self,
        programs: &mut Programs,
        links: impl Iterator<Item = &'a Link>,
        own: &[(u32, IpAddr)],
    ) {
        let wanted: BTreeMap<u32, &Link> =
            links.filter(|link| self.wants(link, own)).map(|link| (link.ifindex, link)).collect();
        // The link of a program ends with its interface.
        self.by_ifindex.retain(|ifindex, _| wanted.contains_key(ifindex));
        for (ifindex, link) in wanted {
            if self.by_ifindex.contains_key(&ifindex) {
                continue;
            }
            let method = match attach(programs, self.settings.mode, link) {
                Ok(method) => {
                    info!(interface = link.name, method = method.name(), "the kernel carries open channels");
                    Some(method)
                }
                Err(error) => {
                    let why = in_one_line(&error);
                    warn!(interface = link.name, why, "no program on this interface: sockets alone serve it");
                    None
                }
            };
            self.by_ifindex.insert(ifindex, Attached { name: link.name.clone(), method });
        }
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
        let used = |ip: &IpAddr| {
            self.addresses.iter().any(|used| used == ip || used.is_unspecified() && used.is_ipv4() == ip.is_ipv4())
        };
        own.iter().any(|(ifindex, ip)| *ifindex == link.ifindex && used(ip))
    }
}

fn attach(programs: &mut Programs, mode: Mode, link: &Link) -> Result<Method, ProgramError> {
    if mode == Mode::Xdp
        && link.is_for_xdp()
        && let Some(xdp) = programs.xdp()
    {
        match attach_xdp(xdp, link) {
            Ok(()) => return Ok(Method::Xdp),
            Err(error) => {
                let why = in_one_line(&error);
                warn!(interface = link.name, why, "the driver takes no XDP program; tc is tried");
            }
        }
    }
    let tc = programs.tc().ok_or(ProgramError::NotLoaded)?;
    if mode == Mode::Clsact {
        return attach_clsact(tc, link).map(|()| Method::Clsact);
    }
    attach_tcx(tc, link).map(|()| Method::Tcx).or_else(|_| attach_clsact(tc, link).map(|()| Method::Clsact))
}

fn attach_xdp(program: &mut Xdp, link: &Link) -> Result<(), ProgramError> {
    program.attach_to_if_index(link.ifindex, XdpMode::Driver).map(drop)
}

fn attach_tcx(program: &mut SchedClassifier, link: &Link) -> Result<(), ProgramError> {
    let order = TcAttachOptions::TcxOrder(LinkOrder::default());
    program.attach_with_options(&link.name, TcAttachType::Ingress, order).map(drop)
}

fn attach_clsact(program: &mut SchedClassifier, link: &Link) -> Result<(), ProgramError> {
    // It is there already where others use it.
    let _ = qdisc_add_clsact(&link.name);
    let options = TcAttachOptions::Netlink(NlOptions { priority: CLSACT_PRIORITY, ..NlOptions::default() });
    program.attach_with_options(&link.name, TcAttachType::Ingress, options).map(drop)
}
