//! What the daemon tells the programs.

use crate::plain_data;

/// Constants of one load of the programs, in their read-only data. A change of any of them loads
/// the programs anew and replaces them in their links atomically.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Constants {
    /// Underlay address of this host, network byte order.
    pub host: u32,
    /// Network of all containers, network byte order.
    pub network: u32,
    /// Its mask, network byte order.
    pub netmask: u32,
    /// VXLAN network identifier, already in its place in the header: network byte order, shifted
    /// left by 8.
    pub vni: u32,
    /// The mark mask, see [`crate::mark::MarkField`].
    pub mark_mask: u32,
    /// Largest inner IP packet in bytes.
    pub mtu: u32,
    /// Address of the bridge, network byte order.
    pub gateway_address: u32,
    /// Room for flows.
    pub flows: u32,
    /// UDP port of VXLAN, network byte order.
    pub port: u16,
    /// MAC address of this host's VTEP.
    pub vtep: [u8; 6],
    /// MAC address of the bridge: what containers send to.
    pub gateway: [u8; 6],
    /// Always zero.
    pub reserved: [u8; 2],
}

/// What changes while the programs run: one element in an array map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The current epoch. Entries of another one are dead.
    pub epoch: u32,
    /// Lease in ticks (see [`crate::flow::TICK_SHIFT`]).
    pub lease: u32,
    /// Lowest outer UDP source port, host byte order.
    pub port_min: u16,
    /// Highest outer UDP source port, host byte order.
    pub port_max: u16,
    /// Fingerprint of the [`Constants`] and rules that the cached results were learned under: a
    /// daemon that starts with another one raises the epoch.
    pub fingerprint: u32,
    /// Tick from which packets are learned from (see [`Settings::raised`]); mostly long ago.
    pub learn_from: u64,
    /// Tick at which the present half of the marks' epochs began (see [`Settings::raised`]).
    pub half_began: u64,
}

/// `learn_from` while nothing is learned, until the daemon has looked at what hangs on the devices.
pub const HELD: u64 = u64::MAX;

/// How long (in ticks, ten seconds) an epoch's bits in a mark rest before they may mean another
/// epoch. Longer than the slow path holds a packet by itself: the longest wait is for a neighbour's
/// address, three seconds by default (net/core/neighbour.c, `neigh_timer_handler`: `mcast_solicit`
/// times `retrans_time_ms`).
pub const MARK_REST: u64 = crate::flow::ticks(10_000_000_000);

impl Settings {
    /// The settings with the next epoch, raised at tick `now`, where marks have `bits` bits for it.
    ///
    /// A mark has room for the epoch's lowest bits only, so the same bits come round. A packet that
    /// waited on the slow path all the while would be learned from though it had passed older rules.
    /// So the bits of an epoch are believed again only `rest` ticks after they last were in force;
    /// until then nothing is learned. To know that, the circle of bits is counted in halves: what
    /// the bits of this half meant before ended when the half before this one began.
    ///
    /// With the default mask that takes more than 256 epochs in [`MARK_REST`].
    #[must_use]
    #[inline(always)]
    pub const fn raised(self, now: u64, bits: u32, rest: u64) -> Self {
        let epoch = self.epoch.wrapping_add(1);
        let half = 1 << (bits - 1);
        if epoch.is_multiple_of(half) {
            Self {
                epoch,
                learn_from: self.half_began + rest,
                half_began: now,
                ..self
            }
        } else {
            Self { epoch, ..self }
        }
    }
}

plain_data!(Constants, Settings);

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings {
        epoch: 0,
        lease: 100,
        port_min: 1,
        port_max: 2,
        fingerprint: 3,
        learn_from: 0,
        half_began: 0,
    };

    #[test]
    fn epochs_raised_slowly_never_stop_learning() {
        let mut settings = SETTINGS;
        for raise in 1..5000_u64 {
            let now = 1000 + raise * 10;
            settings = settings.raised(now, 9, 2559);
            assert_eq!(u64::from(settings.epoch), raise);
            assert!(settings.learn_from <= now, "{settings:?} at {now}");
        }
    }

    #[test]
    fn the_same_bits_rest_before_they_are_believed_again() {
        const BITS: u32 = 3;
        const REST: u64 = 50;
        // Raised at random, mostly fast: whenever learning is allowed, the present bits were last
        // in force at least `REST` ticks ago.
        let mut seed = 1_u64;
        let (mut settings, mut now) = (SETTINGS, 1000);
        let mut ended = [None; 1 << BITS];
        let mut rested = 0;
        for _ in 0..100_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            now += (seed >> 33) % 16;
            ended[(settings.epoch % 8) as usize] = Some(now);
            settings = settings.raised(now, BITS, REST);
            let last = ended[(settings.epoch % 8) as usize];
            let from = settings.learn_from.max(now);
            assert!(
                last.is_none_or(|last| last + REST <= from),
                "{settings:?} at {now}: the bits were in force until {last:?}"
            );
            rested += u32::from(settings.learn_from > now);
        }
        assert!(rested > 1000 && rested < 99_000, "{rested}");
    }

    #[test]
    fn values_have_no_padding() {
        assert_eq!(size_of::<Constants>(), 8 * 4 + 2 + 6 + 6 + 2);
        assert_eq!(size_of::<Settings>(), 32);
    }
}
