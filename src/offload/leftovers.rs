//! Filters of a ferryd that was killed, on kernels where links do not end with their process.

use std::io;

use aya::programs::TcAttachType;
use aya::programs::tc::{TcError, qdisc_detach_program};

use super::netlink::Netlink;
use super::programs::{TC, in_one_line};

/// Takes the programs' filters from every interface of this network namespace, also those of a ferryd that runs: its
/// sockets serve from then on. Returns the names of the interfaces that had one. Needs CAP_NET_ADMIN where there is one.
pub fn remove_leftovers() -> io::Result<Vec<String>> {
    let mut removed = Vec::new();
    for link in Netlink::open()?.links()? {
        match qdisc_detach_program(&link.name, TcAttachType::Ingress, TC) {
            Ok(()) => removed.push(link.name),
            Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io::Error::other(format!("{}: {}", link.name, in_one_line(&error)))),
        }
    }
    Ok(removed)
}
