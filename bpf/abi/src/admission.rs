//! Which new flows are entered when more come than `FLOWS` has room for.
//!
//! An LRU hash takes everything, and pushes out what it took before. Where more flows take turns than
//! it holds, each packet then enters its flow, none finds it there, and the entering (the LRU lists'
//! locks, an element taken and one given back) comes on top of the slow path. So a processor enters
//! no more new flows within a lease than there is room for; of those beyond, one packet in
//! [`ONE_OF`] is let in. It draws its place where it misses: the others cost a look-up and are not even
//! marked. A long flow gets in by one of its next packets, the others stay on the slow
//! path, and those that are in stay long enough to be of use.
//!
//! A connection that ends gives its place back: short connections crowd nobody, however many follow
//! each other.

/// Of so many packets of new flows, one is entered while the cache is crowded.
pub const ONE_OF: u32 = 64;

/// Whether a packet draws a place while the cache is crowded, by a random number.
#[inline(always)]
pub const fn draws_a_place(random: u32) -> bool {
    random.is_multiple_of(ONE_OF)
}

/// How many flows a processor has entered since when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// The tick it begins at.
    pub begun: u64,
    /// New flows entered since, less those whose connection has ended.
    pub entered: u64,
}

impl Window {
    /// The window that `now` is in: this one, or a new one once a lease is over.
    #[inline(always)]
    pub const fn at(self, now: u64, lease: u64) -> Self {
        if now.wrapping_sub(self.begun) < lease {
            self
        } else {
            Self {
                begun: now,
                entered: 0,
            }
        }
    }

    /// Whether as many flows were entered as there is `room` for: another one only pushes out one
    /// that is as new.
    #[inline(always)]
    pub const fn is_crowded(self, room: u32) -> bool {
        self.entered >= room as u64
    }

    /// The window with one more flow entered.
    #[inline(always)]
    pub const fn with_another(self) -> Self {
        Self {
            begun: self.begun,
            entered: self.entered + 1,
        }
    }
}

/// What a window has entered, less a flow whose connection has ended: its place is the next one's.
#[inline(always)]
pub const fn with_one_less(entered: u64) -> u64 {
    entered.saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_ends_gives_its_place_back() {
        let mut window = Window::default().at(1000, 100);
        for _ in 0..1000 {
            assert!(!window.is_crowded(8));
            window = window.with_another();
            window.entered = with_one_less(window.entered);
        }
        // Entered in the window before.
        assert_eq!(with_one_less(0), 0);
    }

    #[test]
    fn as_many_are_entered_within_a_lease_as_there_is_room_for() {
        let mut window = Window::default().at(1000, 100);
        assert_eq!(window.begun, 1000);
        for _ in 0..8 {
            assert!(!window.is_crowded(8));
            window = window.with_another();
        }
        assert!(window.at(1099, 100).is_crowded(8));
        assert!(!window.at(1100, 100).is_crowded(8));
    }

    #[test]
    fn a_window_of_the_future_is_over() {
        // The clock of another processor may be a tick ahead.
        let window = Window {
            begun: 1001,
            entered: 8,
        };
        assert!(!window.at(1000, 100).is_crowded(8));
    }
}
