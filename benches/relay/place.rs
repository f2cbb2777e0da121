//! Where everything has its address: on loopback, or in two network namespaces with a veth between them.
//!
//! The generator needs a block of addresses for any number of clients, peers and strangers. 127.0.0.0/8 is one by itself.
//! With a veth it is 10.0.0.0/8, all of which is local to the network but for the server's address.

use std::fs::File;
use std::net::Ipv4Addr;
use std::sync::OnceLock;

use crate::failure::{Failure, Result};
use crate::namespaces::{
    NETWORK, NETWORK_LINK, NETWORK_MAC, Namespaces, SERVER, SERVER_LINK, SERVER_MAC, complete_checksums, ip,
    take_in_batches, text,
};

/// The server's host, where that is a namespace of its own; chosen once, before anything is measured.
static APART: OnceLock<File> = OnceLock::new();

/// Builds the namespaces and moves the calling thread into the network.
pub(crate) fn take_apart() -> Result<Namespaces> {
    let namespaces = Namespaces::build()?;
    let (server, gateway, of_server, of_network) = (address(10, 1), "169.254.1.1", text(SERVER_MAC), text(NETWORK_MAC));
    let local = address(10, 2);
    // Everybody is behind one gateway, so that nobody asks for 65,536 hardware addresses.
    ip(&format!("-n {SERVER} addr add {server}/32 dev {SERVER_LINK}"))?;
    ip(&format!("-n {SERVER} neigh add {gateway} lladdr {of_network} dev {SERVER_LINK} nud permanent"))?;
    ip(&format!("-n {SERVER} route add 10.0.0.0/8 via {gateway} dev {SERVER_LINK} onlink"))?;
    ip(&format!("-n {NETWORK} addr add {local}/32 dev {NETWORK_LINK}"))?;
    ip(&format!("-n {NETWORK} neigh add {server} lladdr {of_server} dev {NETWORK_LINK} nud permanent"))?;
    ip(&format!("-n {NETWORK} route add local 10.0.0.0/8 dev lo"))?;
    // Looked up in the same table, so that the longer prefix is preferred.
    ip(&format!("-n {NETWORK} route add {server}/32 dev {NETWORK_LINK} scope link table local"))?;
    APART.set(namespaces.server()?).map_err(|_| Failure::new("the namespaces are there already"))?;
    namespaces.enter_network()?;
    take_in_batches(NETWORK_LINK)?;
    complete_checksums(NETWORK_LINK)?;
    Ok(namespaces)
}

/// The namespace of the server's host; none is this one.
pub(crate) fn server_host() -> Option<&'static File> {
    APART.get()
}

/// Where servers listen and relay.
pub(crate) fn server_ip() -> Ipv4Addr {
    address(first_octet(), 1)
}

/// The block that all addresses are of.
pub(crate) fn block() -> String {
    format!("{}.0.0.0/8", first_octet())
}

/// The address that lies so far within the block.
pub(crate) fn at(offset: u32) -> Ipv4Addr {
    address(first_octet(), offset)
}

fn first_octet() -> u8 {
    if APART.get().is_some() { 10 } else { 127 }
}

fn address(first_octet: u8, offset: u32) -> Ipv4Addr {
    Ipv4Addr::from((u32::from(first_octet) << 24) + offset)
}
