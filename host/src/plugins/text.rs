//! Text that comes from a plugin and is meant for people: cut to a length, and without what could forge lines of a log or
//! steer a terminal. Pure.

/// At most `max_bytes` of the text, in one line, with an ellipsis where it was cut.
pub(super) fn plain(text: &str, max_bytes: usize) -> String {
    let end = text.floor_char_boundary(max_bytes);
    let mut plain: String = text[..end]
        .chars()
        .map(|c| match c {
            '\n' | '\t' => ' ',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect();
    if end < text.len() {
        plain.push_str(" …");
    }
    plain
}

/// The same for a text that is mostly short and clean already, which then costs no copy.
pub(super) fn plain_owned(text: String, max_bytes: usize) -> String {
    if text.len() <= max_bytes && !text.chars().any(char::is_control) {
        text
    } else {
        plain(&text, max_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_cannot_forge_lines_or_steer_a_terminal() {
        for plain in [plain("a\nb\x1b[2Jc", 100), plain_owned("a\nb\x1b[2Jc".into(), 100)] {
            assert_eq!(plain, "a b\u{fffd}[2Jc");
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let long = "ä".repeat(1000);
        for cut in [plain(&long, 101), plain_owned(long.clone(), 101)] {
            assert_eq!(cut, format!("{} …", "ä".repeat(50)));
        }
        assert_eq!(plain_owned("short".into(), 101), "short");
    }
}
