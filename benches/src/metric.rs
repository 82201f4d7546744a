//! Figures of another shape than workload by column: things in rows, each with its metrics.

use serde_json::{Map, Value, json};

use crate::{
    series::{Series, short},
    table::Table,
};

/// One thing measured, once or in several rounds.
#[derive(Clone, Debug)]
pub struct Metric {
    /// What, with its unit.
    pub name: String,
    pub values: Series,
    /// In whole numbers, of which every digit counts.
    pub whole: bool,
}

/// What was measured of one thing.
#[derive(Clone, Debug, Default)]
pub struct Row {
    pub head: Vec<String>,
    pub metrics: Vec<Metric>,
}

impl Row {
    /// A row with nothing measured yet.
    pub fn new<const N: usize>(head: [String; N]) -> Self {
        Self {
            head: head.into(),
            metrics: Vec::new(),
        }
    }

    /// One more value of a metric, which begins here if it is new.
    pub fn push(&mut self, name: &str, value: f64) {
        self.metric(name, false).values.push(value);
    }

    /// The same of what is counted.
    pub fn push_whole(&mut self, name: &str, value: u64) {
        self.metric(name, true).values.push(value as f64);
    }

    /// The median of a metric; none if it was not measured.
    pub fn median(&self, name: &str) -> Option<f64> {
        let found = self.metrics.iter().find(|metric| metric.name == name);
        found.map(|metric| metric.values.median())
    }

    fn metric(&mut self, name: &str, whole: bool) -> &mut Metric {
        let place = self.metrics.iter().position(|metric| metric.name == name);
        let place = place.unwrap_or_else(|| {
            self.metrics.push(Metric {
                name: name.to_owned(),
                values: Series::default(),
                whole,
            });
            self.metrics.len() - 1
        });
        &mut self.metrics[place]
    }
}

/// All rows, with the names of all metrics in the order in which they appear.
pub fn table(heads: &[&str], rows: &[Row]) -> Table {
    let mut names: Vec<&str> = Vec::new();
    for metric in rows.iter().flat_map(|row| &row.metrics) {
        if !names.contains(&metric.name.as_str()) {
            names.push(&metric.name);
        }
    }
    let mut table = vec![
        heads
            .iter()
            .chain(&names)
            .map(|&it| it.to_owned())
            .collect(),
    ];
    for row in rows {
        let mut line = row.head.clone();
        for name in &names {
            let metric = row.metrics.iter().find(|metric| metric.name == *name);
            line.push(metric.map(shown).unwrap_or_default());
        }
        table.push(line);
    }
    table
}

fn shown(metric: &Metric) -> String {
    let [least, median, greatest] = metric.values.spread();
    if metric.whole {
        return thousands(median as u64);
    }
    let [least, median, greatest] = [least, median, greatest].map(short);
    if least == greatest {
        median
    } else {
        format!("{median} ({least}-{greatest})")
    }
}

/// A number with its digits in threes.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// As JSON: an object a row.
pub fn json(heads: &[&str], rows: &[Row]) -> Value {
    let object = |row: &Row| {
        let heads = heads.iter().zip(&row.head);
        let mut object: Map<String, Value> = heads
            .map(|(name, value)| ((*name).to_owned(), json!(value)))
            .collect();
        for metric in &row.metrics {
            let [least, median, greatest] = metric.values.spread();
            let value = json!({ "least": least, "median": median, "greatest": greatest });
            object.insert(metric.name.clone(), value);
        }
        Value::Object(object)
    };
    rows.iter().map(object).collect()
}
