//! Socket options that the standard library has no name for.

use std::{
    io,
    net::{TcpListener, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use nix::sys::{
    socket::{setsockopt, sockopt},
    time::{TimeVal, TimeValLike},
};

/// Sets an option whose value is a plain C structure or integer.
pub(crate) fn set<T: Copy>(
    socket: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: T,
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).expect("options are small");
    // SAFETY: the pointer and the length describe `value`, which the kernel only reads.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sets an option of the socket's IPv4 layer, such as `IP_OPTIONS`, whose value is bytes.
///
/// # Panics
/// If the kernel refuses it.
pub fn set_ip_option(socket: &UdpSocket, option: libc::c_int, value: &[u8]) {
    let length = libc::socklen_t::try_from(value.len()).expect("a short value");
    // SAFETY: the value lives through the call and is as long as said.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            option,
            value.as_ptr().cast(),
            length,
        )
    };
    assert_eq!(
        outcome,
        0,
        "option {option}: {}",
        io::Error::last_os_error()
    );
}

/// Reads an option whose value is a plain C structure of integers. The kernel may know a shorter
/// or longer version of the structure; what it does not fill in is zero.
///
/// # Safety
/// Any bytes have to be a valid `T`.
pub(crate) unsafe fn get<T: Copy>(
    socket: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
) -> io::Result<T> {
    let mut length = libc::socklen_t::try_from(size_of::<T>()).expect("options are small");
    // SAFETY: by the caller's promise zeroes are a valid `T`; the kernel writes at most `length`
    // bytes of it.
    unsafe {
        let mut value: T = std::mem::zeroed();
        let fd = socket.as_raw_fd();
        match libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut length) {
            0 => Ok(value),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Makes the receive buffer `bytes` large, beyond the machine's limit.
pub(crate) fn force_receive_buffer(socket: &impl AsFd, bytes: usize) -> io::Result<()> {
    setsockopt(socket, sockopt::RcvBufForce, &bytes).map_err(io::Error::from)
}

/// Bounds how long a read may block; on a listener, how long an accept may.
pub(crate) fn receive_timeout(socket: &impl AsFd, patience: Duration) -> io::Result<()> {
    let microseconds = i64::try_from(patience.as_micros()).expect("a time-out of a sane length");
    let value = TimeVal::microseconds(microseconds.max(1));
    setsockopt(socket, sockopt::ReceiveTimeout, &value).map_err(io::Error::from)
}

/// Accepts one connection within the listener's receive time-out.
pub(crate) fn accept_within(
    listener: &TcpListener,
    patience: Duration,
) -> io::Result<std::net::TcpStream> {
    receive_timeout(listener, patience)?;
    listener.accept().map(|(stream, _)| stream)
}

/// Whether an error only says that time is up.
pub(crate) fn timed_out(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}
