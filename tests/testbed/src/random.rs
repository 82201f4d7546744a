//! Randomness that can be had again.

/// A generator whose seed is printed; `ONCACHE_SEED=NUMBER` sets it.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Begins with `ONCACHE_SEED`, or else with the time.
    ///
    /// # Panics
    /// If `ONCACHE_SEED` is no number.
    #[must_use]
    pub fn seeded() -> Self {
        let seed = match std::env::var("ONCACHE_SEED") {
            Ok(text) => text.parse().expect("ONCACHE_SEED is a number"),
            Err(_) => {
                let time = std::time::UNIX_EPOCH.elapsed().expect("a time after 1970");
                u64::from(time.subsec_nanos()) ^ time.as_secs()
            }
        };
        println!("seed: ONCACHE_SEED={seed}");
        Self(seed)
    }

    /// Another generator, for another thread.
    pub fn split(&mut self) -> Self {
        Self(self.draw())
    }

    /// The next number (SplitMix64).
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u32) -> u32 {
        u32::try_from(self.draw() % u64::from(limit)).expect("below a u32")
    }

    /// A number from 0 to 1.
    pub fn fraction(&mut self) -> f64 {
        f64::from(self.below(1 << 20)) / f64::from(1 << 20)
    }

    /// One of some.
    pub fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let count = u32::try_from(all.len()).expect("not many");
        &all[self.below(count) as usize]
    }

    /// Puts them into another order.
    pub fn shuffle<T>(&mut self, all: &mut [T]) {
        for last in (1..all.len()).rev() {
            let count = u32::try_from(last + 1).expect("not many");
            all.swap(last, self.below(count) as usize);
        }
    }
}
