//! DTLS in a ferryd that is built without it: there is nothing to probe by.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;

use super::connection::Ends;
use super::tls::Trust;
use super::words::Failure;

/// What cannot be made.
pub(super) struct Session(Infallible);

pub(super) async fn connect(_: &str, _: SocketAddr, _: &Trust) -> Result<(Session, Ends, String), Failure> {
    let words = "this ferryd is built without DTLS: probe with ?transport=tcp, or by a ferryd with the feature dtls";
    Err(Failure::new("dtls", words))
}

impl Session {
    pub(super) async fn receive(&self, _: &mut [u8]) -> io::Result<usize> {
        match self.0 {}
    }

    pub(super) async fn send(&self, _: &[u8]) -> io::Result<()> {
        match self.0 {}
    }

    pub(super) async fn close(&self) {
        match self.0 {}
    }
}
