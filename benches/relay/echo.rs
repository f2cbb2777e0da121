//! The floor: a bare echo that receives and sends in batches and looks at nothing.

use std::io;
use std::mem;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::ptr;

use crate::failure::{Doing, Result};

const BATCH: usize = 64;
const DATAGRAM_MAX: usize = 2048;

/// Echoes on two ports, one for what clients send and one for what peers send, until killed.
pub(crate) fn run(ports: &[u16]) -> Result<()> {
    let sockets = ports.iter().map(|port| {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, *port)).doing("open the echo's port")?;
        // Like a relay's: a burst must not overflow it.
        let socket_options = socket2::SockRef::from(&socket);
        socket_options.set_recv_buffer_size(2 << 20).doing("size the echo's buffer")?;
        Ok(socket)
    });
    let sockets: Vec<UdpSocket> = sockets.collect::<Result<_>>()?;
    std::thread::scope(|scope| {
        for socket in &sockets {
            scope.spawn(|| echo(socket));
        }
    });
    Ok(())
}

fn echo(socket: &UdpSocket) {
    let mut bytes = vec![[0_u8; DATAGRAM_MAX]; BATCH];
    // SAFETY: all zero is an empty address.
    let mut names: Vec<libc::sockaddr_in> = (0..BATCH).map(|_| unsafe { mem::zeroed() }).collect();
    let iovec =
        |bytes: &mut [u8; DATAGRAM_MAX]| libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: DATAGRAM_MAX };
    let mut iovecs: Vec<libc::iovec> = bytes.iter_mut().map(iovec).collect();
    let header = |(name, iovec): (&mut libc::sockaddr_in, &mut libc::iovec)| {
        // SAFETY: all zero is an empty message header.
        let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
        header.msg_hdr.msg_name = ptr::from_mut(name).cast();
        header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        header.msg_hdr.msg_iov = iovec;
        header.msg_hdr.msg_iovlen = 1;
        header
    };
    let mut headers: Vec<libc::mmsghdr> = names.iter_mut().zip(&mut iovecs).map(header).collect();
    loop {
        let (first, socket) = (headers.as_mut_ptr(), socket.as_raw_fd());
        // SAFETY: the headers point to names and bytes that live as long as this loop.
        let received =
            unsafe { libc::recvmmsg(socket, first, BATCH as u32, libc::MSG_WAITFORONE as _, ptr::null_mut()) };
        let Ok(received) = usize::try_from(received) else {
            eprintln!("echo: {}", io::Error::last_os_error());
            continue;
        };
        for (index, header) in headers[..received].iter().enumerate() {
            // SAFETY: the pointer leads to `iovecs`, which nobody borrows.
            unsafe { (*header.msg_hdr.msg_iov).iov_len = headers[index].msg_len as usize };
        }
        // SAFETY: as above.
        unsafe { libc::sendmmsg(socket, first, received as u32, 0) };
        for header in &headers[..received] {
            // SAFETY: as above.
            unsafe { (*header.msg_hdr.msg_iov).iov_len = DATAGRAM_MAX };
        }
    }
}
