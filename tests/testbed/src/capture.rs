//! Recording what passes a device.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    frame::Frame,
    namespace::Place,
    socket::{force_receive_buffer, get, receive_timeout, set, timed_out},
};

/// What the kernel may hold until the recording thread has read it.
const RECEIVE_BUFFER: usize = 64 << 20;

/// What is kept of a frame unless [`Capture::snap`] says otherwise.
const DEFAULT_SNAP: usize = 2048;

/// The kernel's `virtio_net_hdr`, which precedes every frame.
const VNET_HEADER: usize = 10;

type Filter = Box<dyn Fn(&Frame<'_>) -> bool + Send>;

/// A recording to be started.
pub struct Capture {
    place: Place,
    device: String,
    snap: usize,
    buffer: usize,
    filter: Option<Filter>,
}

/// One recorded frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapturedFrame {
    /// The bytes from the Ethernet header on, up to the snap length.
    pub bytes: Vec<u8>,
    /// How long the frame was; with segmentation offload that is more than the MTU.
    pub length: usize,
    /// Whether this side sent it (or it was forwarded out); otherwise it came in.
    pub outgoing: bool,
    /// The payload size of the segments that the device is to cut a large frame into; 0 if none.
    pub segment_size: u16,
    /// Whether the TCP or UDP checksum is still to be computed by the device.
    pub checksum_pending: bool,
    /// When it was read, since the start of the recording.
    pub at: Duration,
}

impl CapturedFrame {
    /// The parsed view.
    #[must_use]
    pub fn view(&self) -> Frame<'_> {
        Frame(&self.bytes)
    }
}

/// A finished recording.
#[derive(Debug, Clone)]
pub struct Recording {
    /// The frames that the filter let through and nobody has [taken](RunningCapture::take), in
    /// order.
    pub frames: Vec<CapturedFrame>,
    /// How many frames passed the device, whether the filter let them through or not.
    pub seen: usize,
    /// How many frames the kernel could not hand over. What was recorded is all only if it is 0.
    pub lost: usize,
}

impl Capture {
    /// A recording of all that a device of a host or container sends and receives.
    #[must_use]
    pub fn on(place: &Place, device: &str) -> Self {
        let device = device.to_owned();
        Self {
            place: place.clone(),
            device,
            snap: DEFAULT_SNAP,
            buffer: RECEIVE_BUFFER,
            filter: None,
        }
    }

    /// How many bytes of each frame to keep; 2048 unless told otherwise.
    #[must_use]
    pub fn snap(mut self, bytes: usize) -> Self {
        self.snap = bytes;
        self
    }

    /// How many bytes the kernel may hold until they are read; 64 MiB unless told otherwise.
    #[must_use]
    pub fn buffer(mut self, bytes: usize) -> Self {
        self.buffer = bytes;
        self
    }

    /// Keeps only the frames for which `filter` is true. It sees at least 256 bytes of a frame,
    /// and is called in the recording thread, so it should be quick.
    #[must_use]
    pub fn filter(mut self, filter: impl Fn(&Frame<'_>) -> bool + Send + 'static) -> Self {
        self.filter = Some(Box::new(filter));
        self
    }

    /// Starts recording; what passes the device after the return is recorded.
    ///
    /// # Panics
    /// If there is no such device.
    #[must_use]
    pub fn start(self) -> RunningCapture {
        let Self {
            place,
            device,
            snap,
            buffer,
            filter,
        } = self;
        let socket = place
            .enter(|| open(&device, buffer))
            .unwrap_or_else(|error| panic!("recording on {device}: {error}"));
        let stopping = Arc::new(AtomicBool::new(false));
        let kept = Arc::new(Kept::default());
        let recorder = thread::spawn({
            let (stopping, kept) = (Arc::clone(&stopping), Arc::clone(&kept));
            move || record(&socket, snap, filter.as_deref(), &stopping, &kept)
        });
        RunningCapture {
            stopping,
            kept,
            recorder: Some(recorder),
        }
    }
}

/// What a recording thread has kept so far.
#[derive(Debug, Default)]
struct Kept {
    frames: Mutex<Vec<CapturedFrame>>,
    /// How many were ever kept, those taken included.
    count: AtomicUsize,
}

impl Kept {
    fn add(&self, frame: CapturedFrame) {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        frames.push(frame);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    fn take(&self) -> Vec<CapturedFrame> {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *frames)
    }
}

/// A recording that is going on; dropping it ends it.
#[derive(Debug)]
pub struct RunningCapture {
    stopping: Arc<AtomicBool>,
    kept: Arc<Kept>,
    recorder: Option<thread::JoinHandle<Recording>>,
}

impl RunningCapture {
    /// How many frames were kept so far, those taken included.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.kept.count.load(Ordering::Relaxed)
    }

    /// The frames kept since the last call, in order; the recording goes on.
    #[must_use]
    pub fn take(&self) -> Vec<CapturedFrame> {
        self.kept.take()
    }

    /// Waits until that many frames were kept.
    #[must_use]
    pub fn wait_kept(&self, frames: usize, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.kept() < frames {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Ends the recording, with all that had passed the device before the call.
    ///
    /// # Panics
    /// If the recording thread did, as a filter may.
    #[must_use]
    pub fn stop(mut self) -> Recording {
        self.stopping.store(true, Ordering::Relaxed);
        let recorder = self.recorder.take().expect("a capture is stopped once");
        recorder
            .join()
            .unwrap_or_else(|payload| std::panic::resume_unwind(payload))
    }
}

impl Drop for RunningCapture {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(recorder) = self.recorder.take() {
            recorder.join().ok();
        }
    }
}

/// A packet socket of the calling thread's network namespace that hears one device only.
fn open(device: &str, buffer: usize) -> io::Result<OwnedFd> {
    let name = CString::new(device)?;
    let all = u16::try_from(libc::ETH_P_ALL)
        .expect("a protocol number")
        .to_be();
    // SAFETY: plain system calls; the name and the address live longer than the calls, and the
    // descriptor is new and nobody else's.
    unsafe {
        let index = match libc::if_nametoindex(name.as_ptr()) {
            0 => return Err(io::Error::last_os_error()),
            index => libc::c_int::try_from(index).expect("a device index"),
        };
        // Protocol 0 hears nothing until the socket is bound, so no other device gets in.
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(fd);
        force_receive_buffer(&socket, buffer)?;
        receive_timeout(&socket, Duration::from_millis(20))?;
        set::<libc::c_int>(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = u16::try_from(libc::AF_PACKET).expect("an address family");
        address.sll_protocol = all;
        address.sll_ifindex = index;
        let length = libc::socklen_t::try_from(size_of_val(&address)).expect("a small structure");
        match libc::bind(fd, (&raw const address).cast(), length) {
            0 => Ok(socket),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn record(
    socket: &OwnedFd,
    snap: usize,
    filter: Option<&(dyn Fn(&Frame<'_>) -> bool + Send)>,
    stopping: &AtomicBool,
    kept: &Kept,
) -> Recording {
    let started = Instant::now();
    let mut recording = Recording {
        frames: Vec::new(),
        seen: 0,
        lost: 0,
    };
    let mut buffer = vec![0; VNET_HEADER + snap.max(256)];
    let mut deaf = false;
    loop {
        if !deaf && stopping.load(Ordering::Relaxed) {
            // From here on the kernel hands over only what it has queued already.
            refuse_all(socket).expect("a filter that refuses all");
            deaf = true;
        }
        match receive(socket, &mut buffer, deaf) {
            Ok((length, outgoing)) => {
                recording.seen += 1;
                let (header, rest) = buffer.split_at(VNET_HEADER);
                let at_hand = &rest[..length.min(rest.len())];
                if filter.is_none_or(|wanted| wanted(&Frame(at_hand))) {
                    kept.add(CapturedFrame {
                        bytes: at_hand[..at_hand.len().min(snap)].to_vec(),
                        length,
                        outgoing,
                        segment_size: match header[1] {
                            0 => 0,
                            _ => u16::from_ne_bytes([header[4], header[5]]),
                        },
                        checksum_pending: header[0] & 1 != 0,
                        at: started.elapsed(),
                    });
                }
            }
            Err(error) if timed_out(&error) && deaf => break,
            Err(error) if timed_out(&error) => {}
            // The device went down or away: there is nothing to hear, for now or for good.
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
            // A frame whose offloads the header cannot describe.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => recording.lost += 1,
            Err(error) => panic!("reading a packet socket: {error}"),
        }
    }
    // SAFETY: the structure is two integers.
    let statistics: libc::tpacket_stats =
        unsafe { get(socket, libc::SOL_PACKET, libc::PACKET_STATISTICS) }
            .expect("a packet socket counts what it drops");
    recording.lost += usize::try_from(statistics.tp_drops).expect("a count");
    recording.frames = kept.take();
    recording
}

/// Reads one frame behind its `virtio_net_hdr`; returns its whole length and direction.
fn receive(socket: &OwnedFd, buffer: &mut [u8], queued_only: bool) -> io::Result<(usize, bool)> {
    let flags = libc::MSG_TRUNC | if queued_only { libc::MSG_DONTWAIT } else { 0 };
    // SAFETY: the pointers and lengths describe `buffer` and `from`, which outlive the call; any
    // bytes are a valid `sockaddr_ll`.
    let (length, from) = unsafe {
        let mut from: libc::sockaddr_ll = std::mem::zeroed();
        let mut from_length =
            libc::socklen_t::try_from(size_of_val(&from)).expect("a small structure");
        let length = libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            flags,
            (&raw mut from).cast(),
            &raw mut from_length,
        );
        (length, from)
    };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let outgoing = from.sll_pkttype == libc::PACKET_OUTGOING;
    Ok((length.saturating_sub(VNET_HEADER), outgoing))
}

fn refuse_all(socket: &OwnedFd) -> io::Result<()> {
    let code = u16::try_from(libc::BPF_RET | libc::BPF_K).expect("an instruction code");
    let mut refuse = libc::sock_filter {
        code,
        jt: 0,
        jf: 0,
        k: 0,
    };
    let program = libc::sock_fprog {
        len: 1,
        filter: &raw mut refuse,
    };
    set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, program)
}
