//! Waiting with an end: every wait of the tests goes through here, and says what it waited for when it gave up.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// Looks every `pause` until something is there.
///
/// # Errors
/// When nothing is there after `deadline`, and whatever `look` fails with: that ends the wait at once.
pub async fn until<T>(
    what: &str,
    deadline: Duration,
    pause: Duration,
    mut look: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await.with_context(|| format!("waiting for {what}"))? {
            return Ok(found);
        }
        if started.elapsed() >= deadline {
            bail!("waited {} s for {what}", deadline.as_secs());
        }
        tokio::time::sleep(pause).await;
    }
}

/// What `work` comes to, if that is known within `deadline`.
///
/// # Errors
/// When it takes longer.
pub async fn within<T>(what: &str, deadline: Duration, work: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(deadline, work)
        .await
        .with_context(|| format!("{what} took longer than {} s", deadline.as_secs()))
}
