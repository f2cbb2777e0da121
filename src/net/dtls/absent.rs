//! DTLS in a ferryd that is built without it: there are no associations.

use std::convert::Infallible;
use std::sync::Arc;

use super::{ClientHello, DtlsBuffers, Handshake, Received};
use crate::net::certificate::{CertificateFiles, TlsError};
use crate::net::sni::Certificates;

/// Whether associations can be made.
pub const IS_BUILT_IN: bool = false;

/// Nothing to prove a certificate with.
#[derive(Clone)]
pub(in crate::net) struct Identity;

pub(in crate::net) fn identity(_: &CertificateFiles) -> Result<Identity, TlsError> {
    Ok(Identity)
}

/// What cannot be made.
#[derive(Debug)]
pub struct Association(Infallible);

impl Association {
    pub(super) fn new(_: &Identity, _: &Arc<Certificates>, _: &ClientHello<'_>, _: &mut DtlsBuffers) -> Option<Self> {
        None
    }

    pub fn handshake(&mut self, _: Option<&[u8]>, _: &mut DtlsBuffers) -> Handshake {
        match self.0 {}
    }

    pub fn receive(&mut self, _: Option<&[u8]>, _: &mut DtlsBuffers) -> Received {
        match self.0 {}
    }

    pub fn send(&mut self, _: &[u8], _: &mut DtlsBuffers) -> bool {
        match self.0 {}
    }

    pub fn close(&mut self, _: &mut DtlsBuffers) {
        match self.0 {}
    }
}
