//! Tables of the kernel read message by message: what is of no kind that this build knows has to be seen all the
//! same, and a decoder that passes over it would hide it.

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;

use super::{
    DUMP_ATTEMPTS, NetlinkError,
    conntrack::{errno, outcome},
};

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// A socket for dumps, of the calling thread's network namespace.
pub(super) struct Dumps {
    socket: Socket,
    sequence: u32,
}

impl Dumps {
    /// Opens a socket of the protocol; none where the kernel has no such protocol.
    pub(super) fn open(protocol: isize) -> Result<Option<Self>, NetlinkError> {
        let mut socket = match Socket::new(protocol) {
            Ok(socket) => socket,
            Err(error) if error.raw_os_error() == Some(Errno::EPROTONOSUPPORT as i32) => {
                return Ok(None);
            }
            Err(error) => return Err(NetlinkError::Open(error)),
        };
        socket.bind_auto().map_err(NetlinkError::Open)?;
        let kernel = SocketAddr::new(0, 0);
        socket.connect(&kernel).map_err(NetlinkError::Open)?;
        Ok(Some(Self {
            socket,
            sequence: 0,
        }))
    }

    /// Reads a whole table, again from the start if it changed meanwhile. `request` follows the netlink
    /// header; `parse` gets type and body of each answer.
    ///
    /// # Errors
    /// [`NetlinkError`]: the kernel refused, or the table never stood still.
    pub(super) fn list<T>(
        &mut self,
        operation: &str,
        kind: u16,
        request: &[u8],
        parse: impl Fn(u16, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut entries = Vec::new();
            let outcome = self.once(kind, request, |kind, body| {
                entries.extend(parse(kind, body));
            });
            match outcome {
                Ok(true) => return Ok(entries),
                Ok(false) => {}
                Err(errno) => {
                    return Err(NetlinkError::Refused {
                        operation: operation.to_owned(),
                        errno,
                        reason: None,
                    });
                }
            }
        }
        Err(NetlinkError::Interrupted {
            operation: operation.to_owned(),
            attempts: DUMP_ATTEMPTS,
        })
    }

    /// Whether the dump was one consistent state.
    fn once(
        &mut self,
        kind: u16,
        request: &[u8],
        mut answer: impl FnMut(u16, &[u8]),
    ) -> Result<bool, Errno> {
        self.sequence += 1;
        let length = u32::try_from(HEADER + request.len()).unwrap_or(u32::MAX);
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
        bytes.extend(self.sequence.to_ne_bytes());
        // Port: the socket's own.
        bytes.extend([0; 4]);
        bytes.extend(request);
        self.socket.send(&bytes, 0).map_err(|error| errno(&error))?;
        let mut consistent = true;
        loop {
            let (datagram, _) = self
                .socket
                .recv_from_full()
                .map_err(|error| errno(&error))?;
            for message in messages(&datagram) {
                // The end of a dump that was given up before.
                if message.sequence != self.sequence {
                    continue;
                }
                consistent &= message.flags & NLM_F_DUMP_INTR == 0;
                if ![NLMSG_ERROR, NLMSG_DONE].contains(&message.kind) {
                    answer(message.kind, message.body);
                    continue;
                }
                return outcome(message.body).map(|()| consistent);
            }
        }
    }
}

struct Message<'d> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'d [u8],
}

fn messages(mut datagram: &[u8]) -> Vec<Message<'_>> {
    let mut messages = Vec::new();
    while let Some((header, _)) = datagram.split_first_chunk::<HEADER>() {
        let [
            a,
            b,
            c,
            d,
            kind,
            kind_high,
            flags,
            flags_high,
            s,
            t,
            u,
            v,
            ..,
        ] = *header;
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let Some(body) = datagram.get(HEADER..length) else {
            break;
        };
        messages.push(Message {
            kind: u16::from_ne_bytes([kind, kind_high]),
            flags: u16::from_ne_bytes([flags, flags_high]),
            sequence: u32::from_ne_bytes([s, t, u, v]),
            body,
        });
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    messages
}
