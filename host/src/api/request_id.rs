//! The id of a request: given by the client, else made here. Log lines, error bodies and the answer's header carry it.

use std::sync::{
    LazyLock,
    atomic::{AtomicU64, Ordering},
};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

pub static HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is taken over from a client.
const MAX_LENGTH: usize = 64;

/// A request's id: letters, digits, `.`, `_` and `-`, at most 64 of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// The client's id where it is one that can be shown anywhere, else a new one.
    pub fn of(headers: &HeaderMap) -> Self {
        headers
            .get(&HEADER)
            .filter(|value| is_sane(value))
            .map_or_else(Self::make, |value| Self(value.clone()))
    }

    /// Different for each request of this process and, very likely, of all others.
    fn make() -> Self {
        static PROCESS: LazyLock<u32> = LazyLock::new(|| uuid::Uuid::new_v4().as_fields().0);
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let text = format!("{:08x}-{count:x}", *PROCESS);
        // Hex digits and a dash are always a header's value.
        Self(HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("unknown")))
    }

    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    pub fn into_header(self) -> HeaderValue {
        self.0
    }
}

fn is_sane(value: &HeaderValue) -> bool {
    let fits = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=MAX_LENGTH).contains(&value.len()) && value.as_bytes().iter().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: &'static [u8]) -> RequestId {
        let mut headers = HeaderMap::new();
        headers.insert(&HEADER, HeaderValue::from_bytes(value).unwrap());
        RequestId::of(&headers)
    }

    #[test]
    fn a_clients_id_is_taken_over_unless_it_could_disturb_a_log() {
        assert_eq!(of(b"trace_1.2-3").as_str(), "trace_1.2-3");
        for bad in [&b""[..], b"a b", b"a\"b", b"\xff\xfe", &[b'a'; 65]] {
            assert_ne!(of(bad).as_str().as_bytes(), bad);
        }
    }

    #[test]
    fn ids_that_are_made_differ() {
        let headers = HeaderMap::new();
        assert_ne!(RequestId::of(&headers), RequestId::of(&headers));
        assert!(is_sane(&RequestId::of(&headers).into_header()));
    }
}
