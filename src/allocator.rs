//! Allocator tuning.

/// Makes the allocator give back what it does not need: a start and a reload with thousands of peers
/// take for a moment several times what the daemon holds between them, and a daemon is there for
/// months. To be called before there are threads, each of which could get an arena of its own.
///
/// Does nothing where the C library is not glibc.
pub fn be_frugal() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 1),
        (libc::M_TRIM_THRESHOLD, 128 * 1024),
        (libc::M_MMAP_THRESHOLD, 64 * 1024),
    ] {
        // SAFETY: takes two integers (mallopt(3)); what it refuses stays as it was.
        unsafe { libc::mallopt(parameter, value) };
    }
}
