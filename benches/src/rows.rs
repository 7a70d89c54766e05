//! The rows of the table, as the programs print them: one JSON object a line on standard output.
//!
//! `cargo xtask bench` reads them; the fields' names are the whole of the agreement between the two.

use serde::Serialize;

/// One figure, perhaps beside a reference, perhaps with a target.
#[derive(Debug, Serialize)]
pub struct Row {
    what: String,
    unit: &'static str,
    value: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    met: Option<bool>,
}

#[derive(Debug, Serialize)]
struct Reference {
    name: String,
    value: f64,
    /// Ours over the reference.
    ratio: f64,
}

impl Row {
    /// `rounds` holds what each round measured.
    pub fn of<'a>(what: impl Into<String>, unit: &'static str, rounds: &'a [f64]) -> RowOf<'a> {
        let row = Row {
            what: what.into(),
            unit,
            value: median(rounds),
            reference: None,
            target: None,
            met: None,
        };
        RowOf { row, rounds }
    }
}

/// A row under construction.
#[must_use]
pub struct RowOf<'a> {
    row: Row,
    rounds: &'a [f64],
}

impl RowOf<'_> {
    /// What the same rounds measured of something else.
    pub fn beside(mut self, name: impl Into<String>, rounds: &[f64]) -> Self {
        let ratios: Vec<f64> =
            self.rounds.iter().zip(rounds).map(|(ours, theirs)| ours / theirs).collect();
        self.row.reference =
            Some(Reference { name: name.into(), value: median(rounds), ratio: median(&ratios) });
        self
    }

    pub fn at_most(mut self, limit: f64) -> Self {
        self.row.target = Some(format!("≤ {limit} {}", self.row.unit));
        self.row.met = Some(self.row.value <= limit);
        self
    }

    /// Of the reference.
    pub fn at_most_times(self, factor: f64) -> Self {
        self.times("≤", factor, |ratio| ratio <= factor)
    }

    /// Of the reference.
    pub fn at_least_times(self, factor: f64) -> Self {
        self.times("≥", factor, |ratio| ratio >= factor)
    }

    fn times(mut self, sign: &str, factor: f64, holds: impl Fn(f64) -> bool) -> Self {
        self.row.target = Some(format!("{sign} {factor} ×"));
        self.row.met = self.row.reference.as_ref().map(|reference| holds(reference.ratio));
        self
    }

    pub fn print(self) {
        line(&self.row);
    }
}

/// Something that whoever reads the table has to know.
pub fn note(text: &str) {
    #[derive(Serialize)]
    struct Note<'a> {
        note: &'a str,
    }
    line(&Note { note: text });
}

fn line(value: &impl Serialize) {
    match serde_json::to_string(value) {
        Ok(text) => println!("{text}"),
        Err(error) => eprintln!("a row could not be written: {error}"),
    }
}

/// The value in the middle; 0 of nothing.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value below which this share of all lies; 0 of nothing.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1) as f64;
    sorted.get((last * share).round() as usize).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_judged_by_the_median_of_the_rounds_ratios() {
        // The second round was measured on a busy machine, for both.
        let row = Row::of("x", "s", &[1.0, 10.0, 1.0])
            .beside("y", &[2.0, 20.0, 1.9])
            .at_most_times(0.51)
            .row;
        let reference = row.reference.unwrap();
        assert_eq!((row.value, reference.value, reference.ratio), (1.0, 2.0, 0.5));
        assert_eq!((row.target.as_deref(), row.met), (Some("≤ 0.51 ×"), Some(true)));
        assert_eq!(Row::of("x", "s", &[3.0]).at_most(2.5).row.met, Some(false));
    }

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=101).rev().map(f64::from).collect();
        assert_eq!((median(&values), quantile(&values, 0.99)), (51.0, 100.0));
    }
}
