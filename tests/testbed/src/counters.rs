//! The daemon's packet counters.

use std::collections::BTreeMap;

use crate::Host;

/// Counters of one moment, by program and reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<(String, String), u64>);

impl Counters {
    /// Packets that `program` counted under `reason`.
    #[must_use]
    pub fn get(&self, program: &str, reason: &str) -> u64 {
        self.0
            .get(&(program.to_owned(), reason.to_owned()))
            .copied()
            .unwrap_or(0)
    }

    /// What was counted since `earlier`, without the counters that stood still.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let grown = self.0.iter().filter_map(|(key, now)| {
            let before = earlier.0.get(key).copied().unwrap_or(0);
            (*now != before).then(|| (key.clone(), now.saturating_sub(before)))
        });
        Self(grown.collect())
    }
}

impl std::fmt::Display for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (number, ((program, reason), packets)) in self.0.iter().enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}{program}/{reason} {packets}")?;
        }
        Ok(())
    }
}

impl Host {
    /// The counters of `oncache stats`.
    ///
    /// # Panics
    /// Without a daemon.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let stats = self.oncache_json(&["stats", "--json"]);
        let counts = stats["counters"]
            .as_array()
            .expect("`oncache stats` lists counters");
        let text = |value: &serde_json::Value| value.as_str().expect("a name").to_owned();
        let counter = |count: &serde_json::Value| {
            let key = (text(&count["program"]), text(&count["reason"]));
            (key, count["packets"].as_u64().expect("a number of packets"))
        };
        Counters(counts.iter().map(counter).collect())
    }
}
