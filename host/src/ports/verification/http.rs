//! What asking servers and asking sources have in common: one kind of client, bounded answers, short reasons.

use std::{
    error::Error,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use url::Url;

/// The longest reason that is kept, in characters.
const MAX_REASON: usize = 200;

/// A client that goes straight to its server, over the family of `address`, and follows nobody anywhere else. Reads the
/// machine's certificates, which takes time.
///
/// # Errors
/// Why there is none.
pub fn client(address: Option<IpAddr>) -> Result<reqwest::Client, String> {
    let mut builder = reqwest::Client::builder()
        // What is behind a proxy sees the proxy's address, and would check that.
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(10))
        .user_agent(concat!("golem-provider/", env!("CARGO_PKG_VERSION")));
    if let Some(address) = address {
        let any: IpAddr = match address {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        builder = builder.local_address(any);
    }
    builder.build().map_err(|error| reason(&error))
}

/// The body of an answer.
///
/// # Errors
/// It is longer than `limit` bytes, or breaks off.
pub async fn bounded(mut response: reqwest::Response, limit: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| reason(&error))? {
        if body.len() + chunk.len() > limit {
            return Err(format!("its answer is longer than {} KiB", limit / 1024));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The innermost cause, which is the one that says something; without the URL.
pub fn reason(error: &reqwest::Error) -> String {
    let mut cause: Option<&dyn Error> = error.source();
    while let Some(deeper) = cause.and_then(Error::source) {
        cause = Some(deeper);
    }
    match cause {
        Some(cause) => {
            let text = cause.to_string();
            plain(text.split(" (os error").next().unwrap_or(&text))
        }
        None if error.is_timeout() => "no answer in time".to_owned(),
        None => "the request failed".to_owned(),
    }
}

/// What somebody else wrote, fit for a terminal and a log line.
pub fn plain(text: &str) -> String {
    let text = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    text.take(MAX_REASON).collect()
}

/// A URL as it may be shown: without credentials and query.
pub fn shown(url: &str) -> String {
    let Ok(mut url) = Url::parse(url) else { return plain(url) };
    // Neither fails on a URL that has a host, and one without cannot hold credentials.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.as_str().trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_write_cannot_move_the_cursor_or_fill_the_screen() {
        assert_eq!(plain("a\u{1b}[2Jb\n"), "a [2Jb");
        assert_eq!(plain(&"x".repeat(10_000)).len(), MAX_REASON);
    }

    #[test]
    fn credentials_in_a_url_are_not_shown() {
        assert_eq!(shown("https://me:secret@ports.example/?key=1"), "https://ports.example");
        assert_eq!(shown("http://ports.example:9000/a/"), "http://ports.example:9000/a");
    }
}
