//! What one client may ask for: requests a minute, and bytes and seconds of a request's body.

use std::{
    error::Error,
    net::IpAddr,
    num::NonZeroU32,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
    http::StatusCode,
};
use governor::{
    Quota, RateLimiter as Governor,
    clock::{Clock, DefaultClock},
    middleware::NoOpMiddleware,
    state::keyed::DashMapStateStore,
};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::error::ApiError;

/// The longest body that is read, in bytes.
pub const MAX_BODY: usize = 64 * 1024;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);

/// The longest path with its query, in bytes.
const MAX_TARGET: usize = 8 * 1024;

/// The longest headers of a request in all, in bytes. The server itself reads a little more ([`super::Server`]), so that
/// this refusal can be told in the API's own form.
const MAX_HEADERS: usize = 32 * 1024;

/// After so many requests, addresses that have not asked for a while are forgotten.
const SWEEP_EVERY: u32 = 8192;

/// Counts requests per client address. A client may spend its whole minute at once, and gets it back steadily.
///
/// Memory is bounded by the addresses that asked within the last minute, and [`SWEEP_EVERY`].
pub struct RateLimiter<C: Clock = DefaultClock> {
    /// `None`: no limit.
    governor: Option<Buckets<C>>,
    clock: C,
    since_sweep: AtomicU32,
}

type Buckets<C> =
    Governor<IpAddr, DashMapStateStore<IpAddr>, C, NoOpMiddleware<<C as Clock>::Instant>>;

impl RateLimiter {
    /// 0 lifts the limit.
    pub fn per_minute(requests: u32) -> Self {
        Self::with_clock(requests, DefaultClock::default())
    }
}

impl<C: Clock + Clone> RateLimiter<C> {
    fn with_clock(requests_per_minute: u32, clock: C) -> Self {
        let quota = NonZeroU32::new(requests_per_minute).map(Quota::per_minute);
        let governor = quota.map(|quota| Governor::dashmap_with_clock(quota, clock.clone()));
        Self { governor, clock, since_sweep: AtomicU32::new(0) }
    }

    /// Counts one request, or says after how many seconds (at least one) the next one is welcome.
    pub fn check(&self, client: IpAddr) -> Result<(), u64> {
        let Some(governor) = &self.governor else { return Ok(()) };
        if self.since_sweep.fetch_add(1, Ordering::Relaxed) == SWEEP_EVERY {
            self.since_sweep.store(0, Ordering::Relaxed);
            governor.retain_recent();
            governor.shrink_to_fit();
        }
        governor.check_key(&subscriber(client)).map_err(|refused| {
            let wait = refused.wait_time_from(self.clock.now());
            wait.as_secs() + u64::from(wait.subsec_nanos() > 0).max(u64::from(wait.is_zero()))
        })
    }
}

/// What counts as one client: an IPv6 subscriber has a whole /64.
fn subscriber(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
    }
}

/// Whether a request's head is of a size that clients need.
///
/// # Errors
/// 414 and 431.
pub fn check_head(request: &Request) -> Result<(), ApiError> {
    let uri = request.uri();
    let target = uri.path().len() + uri.query().map_or(0, str::len);
    if target > MAX_TARGET {
        return Err(ApiError::new(
            StatusCode::URI_TOO_LONG,
            "uri_too_long",
            format!("the request's address is longer than {} KiB", MAX_TARGET / 1024),
        ));
    }
    let sizes = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len());
    if sizes.sum::<usize>() > MAX_HEADERS {
        return Err(ApiError::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "headers_too_large",
            format!("the request's headers are longer than {} KiB in all", MAX_HEADERS / 1024),
        ));
    }
    Ok(())
}

/// A request's body, whatever its content type says, within the limits.
pub struct Body(pub Bytes);

impl<S: Sync> FromRequest<S> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        Self::read(request.into_body()).await
    }
}

impl Body {
    /// # Errors
    /// It is too long, too slow or broken off.
    pub async fn read(body: axum::body::Body) -> Result<Self, ApiError> {
        let whole = Limited::new(body, MAX_BODY).collect();
        match tokio::time::timeout(BODY_TIMEOUT, whole).await {
            Ok(Ok(body)) => Ok(Self(body.to_bytes())),
            Ok(Err(error)) if is_too_long(error.as_ref()) => Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                format!("the request's body is longer than {} KiB", MAX_BODY / 1024),
            )),
            Ok(Err(_)) => Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                "body_incomplete",
                "the request's body did not arrive whole",
            )),
            Err(_) => Err(ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                "body_too_slow",
                format!("the request's body did not arrive within {} s", BODY_TIMEOUT.as_secs()),
            )),
        }
    }
}

fn is_too_long(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source())
        .any(|error| error.is::<LengthLimitError>())
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    fn limiter(requests: u32) -> (RateLimiter<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        (RateLimiter::with_clock(requests, clock.clone()), clock)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_request_after_the_last_one_is_refused_and_told_when_to_come_back() {
        let (limiter, clock) = limiter(100);
        let client = ip("203.0.113.9");
        assert!((0..100).all(|_| limiter.check(client).is_ok()));
        assert_eq!(limiter.check(client), Err(1));
        assert_eq!(limiter.check(ip("203.0.113.10")), Ok(()));
        clock.advance(Duration::from_secs(1));
        assert_eq!(limiter.check(client), Ok(()));
    }

    #[test]
    fn a_client_that_asks_every_two_seconds_is_never_refused() {
        let (limiter, clock) = limiter(100);
        for _ in 0..600 {
            assert_eq!(limiter.check(ip("203.0.113.9")), Ok(()));
            clock.advance(Duration::from_secs(2));
        }
    }

    #[test]
    fn a_small_limit_is_told_in_whole_seconds() {
        let (limiter, _) = limiter(1);
        assert_eq!(limiter.check(ip("203.0.113.9")), Ok(()));
        assert_eq!(limiter.check(ip("203.0.113.9")), Err(60));
    }

    #[test]
    fn addresses_of_one_ipv6_subscriber_count_together() {
        let (limiter, _) = limiter(2);
        assert!(limiter.check(ip("2001:db8::1")).is_ok());
        assert!(limiter.check(ip("2001:db8::2")).is_ok());
        assert!(limiter.check(ip("2001:db8::ffff:1:2:3")).is_err());
        assert!(limiter.check(ip("2001:db8:0:1::1")).is_ok());
    }

    #[test]
    fn addresses_that_have_gone_are_forgotten() {
        let (limiter, clock) = limiter(100);
        for n in 0..20 * SWEEP_EVERY {
            limiter.check(IpAddr::V4(n.into())).unwrap();
            clock.advance(Duration::from_millis(10));
        }
        let known = limiter.governor.as_ref().unwrap().len();
        assert!(known <= SWEEP_EVERY as usize + 6_000, "{known} addresses are remembered");
    }

    #[test]
    fn zero_lifts_the_limit() {
        let (limiter, _) = limiter(0);
        assert!((0..10_000).all(|_| limiter.check(ip("203.0.113.9")).is_ok()));
    }
}
