//! Points in time in JSON: RFC 3339, in UTC, with exactly three digits after the second. Left to itself the writer drops
//! zeros at the end, and the parsers of some clients' languages take three or six digits and nothing between.

use jiff::Timestamp;
use serde::Serializer;

/// For `#[serde(serialize_with)]`.
pub fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_always_three_digits() {
        for (milliseconds, written) in [
            (0, "\"1970-01-01T00:00:00.000Z\""),
            (300, "\"1970-01-01T00:00:00.300Z\""),
            (1_739_970_264_391, "\"2025-02-19T13:04:24.391Z\""),
        ] {
            let time = Timestamp::from_millisecond(milliseconds).unwrap();
            let mut out = Vec::new();
            serialize(&time, &mut serde_json::Serializer::new(&mut out)).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), written);
        }
    }
}
