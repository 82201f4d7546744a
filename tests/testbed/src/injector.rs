//! Sending made-up frames from a device.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use crate::Place;

/// A packet socket that sends from one device and hears nothing.
#[derive(Debug)]
pub struct Injector(OwnedFd);

impl Injector {
    /// One that sends from a device of `place`, with a `virtio_net_hdr` before each frame.
    ///
    /// # Panics
    /// If there is no such device.
    #[must_use]
    pub fn on(place: &Place, device: &str) -> Self {
        let opened = place.enter(|| open(device));
        Self(opened.unwrap_or_else(|error| panic!("a packet socket on {device}: {error}")))
    }

    /// Sends one frame behind its `virtio_net_hdr`.
    ///
    /// # Errors
    /// The error's number if the kernel refuses it.
    pub fn send(&self, offload: &[u8; 10], frame: &[u8]) -> Result<(), i32> {
        let parts = [
            libc::iovec {
                iov_base: offload.as_ptr().cast_mut().cast(),
                iov_len: offload.len(),
            },
            libc::iovec {
                iov_base: frame.as_ptr().cast_mut().cast(),
                iov_len: frame.len(),
            },
        ];
        // SAFETY: the parts outlive the call, which only reads them.
        let sent = unsafe { libc::writev(self.0.as_raw_fd(), parts.as_ptr(), 2) };
        if sent < 0 {
            return Err(io::Error::last_os_error().raw_os_error().unwrap_or(0));
        }
        Ok(())
    }
}

fn open(device: &str) -> io::Result<OwnedFd> {
    let name = CString::new(device)?;
    // SAFETY: plain system calls; the name and the address live longer than the calls, and the
    // descriptor is new and nobody else's.
    unsafe {
        let index = match libc::if_nametoindex(name.as_ptr()) {
            0 => return Err(io::Error::last_os_error()),
            index => libc::c_int::try_from(index).map_err(io::Error::other)?,
        };
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(fd);
        let on: libc::c_int = 1;
        let option = libc::setsockopt(
            fd,
            libc::SOL_PACKET,
            libc::PACKET_VNET_HDR,
            (&raw const on).cast(),
            4,
        );
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
        address.sll_ifindex = index;
        let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
        if option != 0 || libc::bind(fd, (&raw const address).cast(), length) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(socket)
    }
}
