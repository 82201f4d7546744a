//! Figures of several rounds.

/// Values of one thing, one a round.
#[derive(Clone, Debug, Default)]
pub struct Series(Vec<f64>);

impl Series {
    /// One more.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Least, median and greatest; zeros without any value.
    pub fn spread(&self) -> [f64; 3] {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.as_slice() {
            [] => [0.0; 3],
            all => [all[0], all[all.len() / 2], all[all.len() - 1]],
        }
    }

    /// The one in the middle.
    pub fn median(&self) -> f64 {
        self.spread()[1]
    }
}

/// A figure in four digits at most.
pub fn short(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
