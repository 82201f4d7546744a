//! How often the daemon has raised its epoch, and why.

use crate::Host;

impl Host {
    /// How often the epoch was raised for `cause`, a name that `oncache stats` shows, since the
    /// daemon's start.
    ///
    /// # Panics
    /// Without a daemon.
    #[must_use]
    pub fn invalidations(&self, cause: &str) -> u64 {
        let stats = self.oncache_json(&["stats", "--json"]);
        let counts = stats["invalidations"]
            .as_array()
            .expect("`oncache stats` lists invalidations");
        let found = counts.iter().find(|count| count["cause"] == cause);
        found.map_or(0, |count| count["count"].as_u64().expect("a number"))
    }
}
