//! What the kernel has dropped as a socket's receive buffer was full.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The place of the drops in what SO_MEMINFO tells.
const DROPS: usize = libc::SK_MEMINFO_DROPS as usize;

/// Datagrams that the socket has dropped since it was opened, modulo 2^32.
pub fn receive_drops(socket: &impl AsFd) -> io::Result<u32> {
    let mut memory = [0_u32; DROPS + 1];
    let mut length = size_of_val(&memory) as libc::socklen_t;
    // SAFETY: the pointers lead to `memory` and its length in bytes, which outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            memory.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(memory[DROPS])
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn what_does_not_fit_into_the_buffer_is_counted() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket2::SockRef::from(&receiver).set_recv_buffer_size(4096).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(receive_drops(&receiver).unwrap(), 0);
        for _ in 0..100 {
            sender.send_to(&[0; 1000], receiver.local_addr().unwrap()).unwrap();
        }
        receiver.set_nonblocking(true).unwrap();
        let mut received = 0;
        while receiver.recv(&mut [0; 1000]).is_ok() {
            received += 1;
        }
        assert_eq!(receive_drops(&receiver).unwrap(), 100 - received);
        assert!(received < 100);
    }
}
