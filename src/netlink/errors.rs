//! What can go wrong between us and rtnetlink.

use std::{fmt::Display, io};

use netlink_packet_core::{ErrorMessage, NlasIterator};
use nix::errno::Errno;

/// Length of the header that precedes the extended answer (`struct nlmsghdr`).
const HEADER_LENGTH: usize = 16;
/// `NLMSGERR_ATTR_MSG` of include/uapi/linux/netlink.h: the reason as text.
const REASON: u16 = 1;

/// An operation on the kernel's network objects failed. The message names the operation and the
/// object.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No netlink socket.
    #[error("open a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// A network namespace could not be opened or entered.
    #[error("enter network namespace {namespace}: {source}")]
    Namespace {
        /// The path, or a description of the descriptor.
        namespace: String,
        /// The reason.
        source: io::Error,
    },
    /// The kernel said no.
    #[error("{operation}: {} ({}){}{}", errno.desc(), *errno as i32, reason.as_deref().unwrap_or_default(), advice(*errno))]
    Refused {
        /// What was tried, on which object.
        operation: String,
        /// The kernel's error number.
        errno: Errno,
        /// The kernel's own words (extended acknowledgement), with their separator; absent when it
        /// gave none.
        reason: Option<String>,
    },
    /// The object that the operation is about does not exist; it was looked for by name.
    #[error("{operation}: no such device")]
    NoDevice {
        /// What was tried, on which object.
        operation: String,
    },
    /// The socket's task has ended, with its runtime.
    #[error("{operation}: the netlink connection is closed")]
    Closed {
        /// What was tried, on which object.
        operation: String,
    },
    /// The table changed during every attempt to read it.
    #[error("{operation}: changed under each of {attempts} attempts to read it")]
    Interrupted {
        /// What was tried.
        operation: String,
        /// How often.
        attempts: usize,
    },
}

/// What to do about an answer of the kernel that says it the same for every object. Those that ask who
/// has the object are looked into where the object is known.
const fn advice(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM | Errno::EACCES => "; run as root, or with CAP_NET_ADMIN and CAP_SYS_ADMIN",
        Errno::EEXIST => {
            "; somebody else has it already: look with `ip`, and remove or rename that"
        }
        Errno::EADDRINUSE => "; somebody else has the port: look with `ss -ulpn`, and end that",
        Errno::EBUSY => "; it is in use: see `dmesg` and who else manages this device",
        Errno::ENOMEM | Errno::ENOBUFS => "; the kernel has no memory for it: free some",
        Errno::EOPNOTSUPP => "; this kernel lacks it: `oncache check` says what is needed",
        _ => "",
    }
}

impl NetlinkError {
    pub(super) fn closed(operation: impl Display) -> Self {
        Self::Closed {
            operation: operation.to_string(),
        }
    }

    pub(super) fn refused(operation: impl Display, verdict: &ErrorMessage) -> Self {
        Self::Refused {
            operation: operation.to_string(),
            errno: Errno::from_raw(verdict.raw_code().saturating_abs()),
            reason: reason(&verdict.header).map(|text| format!(": {text}")),
        }
    }

    /// The same with the device named behind the object.
    pub(super) fn on(mut self, device: &str) -> Self {
        match &mut self {
            Self::Refused { operation, .. }
            | Self::NoDevice { operation }
            | Self::Closed { operation }
            | Self::Interrupted { operation, .. } => {
                operation.push_str(" dev ");
                operation.push_str(device);
            }
            Self::Open(_) | Self::Namespace { .. } => {}
        }
        self
    }

    /// The kernel's error number, if it was the kernel that refused.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Whether the operation failed because its object is not there: for a deletion, success.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        match self {
            // ENOENT: neighbours, FDB; ESRCH: routes; EADDRNOTAVAIL: addresses; ENODEV: their
            // device.
            Self::Refused { errno, .. } => matches!(
                errno,
                Errno::ENOENT | Errno::ESRCH | Errno::ENODEV | Errno::EADDRNOTAVAIL
            ),
            Self::NoDevice { .. } => true,
            _ => false,
        }
    }
}

/// The text of an extended acknowledgement.
fn reason(answer: &[u8]) -> Option<String> {
    let attributes = answer.get(HEADER_LENGTH..)?;
    NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == REASON)
        .map(|attribute| {
            String::from_utf8_lossy(attribute.value())
                .trim_end_matches(['\0', '.'])
                .to_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_operation_object_and_number() {
        let error = NetlinkError::Refused {
            operation: "add route 10.42.2.0/24 dev oncache-vx0".into(),
            errno: Errno::EEXIST,
            reason: None,
        };
        assert_eq!(
            error.to_string(),
            "add route 10.42.2.0/24 dev oncache-vx0: File exists (17); somebody else has it already: look with `ip`, and remove or rename that"
        );
        assert!(!error.is_absent());
    }

    #[test]
    fn the_kernels_words_are_read_from_behind_the_header() {
        let mut answer = vec![0; HEADER_LENGTH];
        // Length 4 + 11, kind NLMSGERR_ATTR_MSG, the text, its NUL, padding.
        answer.extend(15_u16.to_ne_bytes());
        answer.extend(REASON.to_ne_bytes());
        answer.extend(b"No, sorry.\0\0");
        assert_eq!(reason(&answer).as_deref(), Some("No, sorry"));
        assert_eq!(reason(&[0; HEADER_LENGTH]), None);
        assert_eq!(reason(&[]), None);
    }
}
