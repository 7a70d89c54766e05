//! The file format `.env`: a text becomes keys and values, and a list of what could not be read.
//!
//! `dotenvy` reads the lines. Before that, lists in JSON, which may go over several lines and hold double quotes, are put
//! between single quotes, since operators write them bare. The process's environment is not changed.

/// What a file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Dotenv {
    /// In the file's order; a later one of the same key counts.
    pub values: Vec<(String, String)>,
    /// Without the file's name, and without any value, which may be a secret.
    pub problems: Vec<String>,
}

/// Reads the text of a file.
pub fn read(text: &str) -> Dotenv {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut read = Dotenv::default();
    let prepared = quote_lists(text, &mut read.problems);
    for item in dotenvy::Iter::new(prepared.as_bytes()) {
        match item {
            Ok(pair) => read.values.push(pair),
            Err(dotenvy::Error::LineParse(line, _)) => read.problems.push(describe(text, &line)),
            Err(_) => read.problems.push("cannot be read as text".into()),
        }
    }
    read
}

/// Which line it is, by number and key alone. `dotenvy` hands back the line, or what of it it could not read.
fn describe(text: &str, unread: &str) -> String {
    let unread = unread.lines().next().unwrap_or_default().trim();
    let found = text.lines().enumerate().find(|(_, line)| line.contains(unread));
    let place = found.map(|(index, line)| match line.split_once('=') {
        Some((key, _)) if is_key(key) => format!("line {} ({})", index + 1, key.trim()),
        _ => format!("line {}", index + 1),
    });
    let place = place.as_deref().unwrap_or("a line");
    format!(
        "{place} is not KEY=VALUE; put a value with spaces or special characters between single quotes"
    )
}

/// Puts `KEY=[…]` on one line and between single quotes, line count and all other lines unchanged.
fn quote_lists(text: &str, problems: &mut Vec<String>) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let list = line
            .split_once('=')
            .filter(|(key, value)| is_key(key) && value.trim_start().starts_with('['));
        let Some((key, value)) = list else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        let mut list = value.trim().to_owned();
        let mut taken = 0;
        while closing(&list).is_none() {
            let Some((_, more)) = lines.next() else { break };
            list.push(' ');
            list.push_str(more.trim());
            taken += 1;
        }
        match closing(&list) {
            Some(end) => {
                out.push_str(&format!("{}='{}'\n", key.trim_end(), list[..=end].replace('\'', "")))
            }
            None => problems.push(format!(
                "line {} ({}): the list that begins here has no closing ]",
                number + 1,
                key.trim()
            )),
        }
        out.extend(std::iter::repeat_n('\n', taken));
    }
    out
}

/// The key that a line sets, if it sets one.
pub fn key_of(line: &str) -> Option<&str> {
    let (key, _) = line.split_once('=')?;
    let key = key.trim();
    Some(key.strip_prefix("export ").map_or(key, str::trim))
}

fn is_key(text: &str) -> bool {
    let name = text.trim().trim_start_matches("export ").trim();
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Where the list's closing bracket is, outside of quoted texts.
fn closing(list: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in list.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ']' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Vec<(String, String)> {
        let read = read(text);
        assert_eq!(read.problems, Vec::<String>::new());
        read.values
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn the_published_example_is_read_as_it_is_written() {
        let text = "# Provider Settings\nNAME=\"your-provider-name\"\n\nPORT=7466 # Default: 7466\nSERVERS=[\n\"https://a.example\",\n\
                    \"https://b.example\"\n]\nPUBLIC_IP=\"auto\"\n";
        assert_eq!(
            values(text),
            [
                pair("NAME", "your-provider-name"),
                pair("PORT", "7466"),
                pair("SERVERS", r#"[ "https://a.example", "https://b.example" ]"#),
                pair("PUBLIC_IP", "auto"),
            ]
        );
    }

    #[test]
    fn a_list_on_one_line_may_have_a_comment() {
        assert_eq!(
            values("export A=[\"x]y\", \"z\"] # two\nB=1"),
            [pair("A", r#"["x]y", "z"]"#), pair("B", "1")]
        );
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named_by_number_and_key_and_its_value_is_not_shown() {
        let read = read("A=1\nKEY=very secret words\nB=2\n");
        assert_eq!(read.values, [pair("A", "1"), pair("B", "2")]);
        assert_eq!(read.problems.len(), 1);
        assert!(read.problems[0].contains("line 2 (KEY)"), "{read:?}");
        assert!(!read.problems[0].contains("secret"), "{read:?}");
    }

    #[test]
    fn a_list_without_an_end_is_named() {
        let read = read("A=1\nS=[\"x\",\n");
        assert!(read.problems[0].contains("line 2 (S)"), "{read:?}");
    }
}
