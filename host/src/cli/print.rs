//! What commands print with: tables, wrapped text, JSON, lengths of time and amounts. Colours are `console`'s, which leaves them
//! away where nobody would see them or `NO_COLOR` is set.

use std::{
    io::{self, Write},
    time::Duration,
};

use console::{Term, measure_text_width};
use indicatif::{ProgressBar, ProgressStyle};

/// Rows of columns, each as wide as it has to be.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// To standard output.
///
/// # Errors
/// It cannot be written. That its reader has gone is none.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever read it has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// To standard output, for programs.
///
/// # Errors
/// As [`print`].
pub fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))?;
    Ok(())
}

/// How many columns there are to write in; a usual width where nobody knows.
pub fn width() -> usize {
    const USUAL: usize = 100;
    const NARROWEST: usize = 40;
    Term::stdout().size_checked().map_or(USUAL, |(_, columns)| usize::from(columns).max(NARROWEST))
}

/// `first` and then the words of `text`, as lines of at most `width` columns; those after the first begin below the text. A
/// word that is longer stays whole, so that it can be copied.
pub fn wrapped(first: &str, text: &str, width: usize) -> String {
    let indent = measure_text_width(first);
    let mut lines = first.to_owned();
    let mut column = indent;
    for word in text.split_whitespace() {
        let length = measure_text_width(word);
        if column > indent && column + 1 + length > width {
            lines.push('\n');
            lines.push_str(&" ".repeat(indent));
            column = indent;
        }
        if column > indent {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += length;
    }
    lines.push('\n');
    lines
}

/// At most so many characters, the last one `…` where some are missing.
pub fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let kept: String = text.chars().take(most.saturating_sub(1)).collect();
    format!("{kept}…")
}

/// Such as `5 min` or `2 d 3 h`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let two = |large: u64, unit: &str, small: u64, part: &str| match small {
        0 => format!("{large} {unit}"),
        _ => format!("{large} {unit} {small} {part}"),
    };
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => two(seconds / 3600, "h", seconds % 3600 / 60, "min"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3600, "h"),
    }
}

/// Such as `3.4 GB`, in powers of a thousand.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut amount = bytes as f64;
    let mut unit = 0;
    while amount >= 999.95 && unit + 1 < UNITS.len() {
        amount /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{amount:.1} {}", UNITS[unit]),
    }
}

/// Something that turns on standard error while one waits. Shows nothing where that is no terminal; gone when it is dropped.
pub struct Waiting(ProgressBar);

impl Waiting {
    pub fn for_(what: impl Into<String>) -> Waiting {
        let bar = ProgressBar::new_spinner();
        // A template that is known to be right.
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.set_message(what.into());
        bar.enable_steady_tick(Duration::from_millis(100));
        Waiting(bar)
    }

    pub fn now_for(&self, what: impl Into<String>) {
        self.0.set_message(what.into());
    }

    /// Prints without getting in its way.
    pub fn print(&self, text: &str) -> io::Result<()> {
        self.0.suspend(|| print(text))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["NAME", "STATE"], ["multipass", "x"]];
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.map(str::to_owned).to_vec()).collect();
        assert_eq!(table(&rows), "NAME       STATE\nmultipass  x\n");
    }

    #[test]
    fn text_is_wrapped_below_its_beginning_and_words_stay_whole() {
        assert_eq!(wrapped("warn  ", "one two three", 14), "warn  one two\n      three\n");
        assert_eq!(wrapped("- ", "averylongword x", 8), "- averylongword\n  x\n");
        assert_eq!(wrapped("- ", "", 8), "- \n");
    }

    #[test]
    fn lengths_of_time_and_amounts_are_short() {
        let of = |seconds| duration(Duration::from_secs(seconds));
        assert_eq!([of(0), of(59), of(3599)], ["0 s", "59 s", "59 min"]);
        assert_eq!([of(3600), of(7800), of(200_000)], ["1 h", "2 h 10 min", "2 d 7 h"]);
        assert_eq!([bytes(999), bytes(1000), bytes(999_999)], ["999 B", "1.0 kB", "1.0 MB"]);
        assert_eq!(bytes(3_440_000_000), "3.4 GB");
        assert_eq!([shortened("abcdef", 4), shortened("abcd", 4)], ["abc…", "abcd"]);
    }
}
