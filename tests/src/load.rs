//! Requestors who ask all the time, while something else is tested.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use reqwest::Method;
use tokio::task::{JoinHandle, JoinSet};

use crate::Client;

/// Requests at a steady pace that no plugin is needed for.
pub struct Requests {
    ended: Arc<AtomicBool>,
    asking: JoinHandle<Result<(usize, Duration)>>,
}

impl Requests {
    /// Asks for the VM `my-vm` among other things, which has to be there; `every` passes between two requests.
    pub fn begin(client: Client, every: Duration) -> Requests {
        let ended = Arc::new(AtomicBool::new(false));
        let asking = tokio::spawn(ask_until(client, every, Arc::clone(&ended)));
        Requests { ended, asking }
    }

    /// How many there were, and how long the slowest took.
    ///
    /// # Errors
    /// When one of them failed.
    pub async fn end(self) -> Result<(usize, Duration)> {
        self.ended.store(true, Ordering::Relaxed);
        self.asking.await?
    }
}

async fn ask_until(
    client: Client,
    every: Duration,
    ended: Arc<AtomicBool>,
) -> Result<(usize, Duration)> {
    let mut asked = JoinSet::new();
    let mut ticks = tokio::time::interval(every);
    let mut paths = ["/api/v1/vms/my-vm", "/health", "/api/v1/vms", "/api/v1/provider/info"]
        .into_iter()
        .cycle();
    while !ended.load(Ordering::Relaxed) {
        ticks.tick().await;
        let (client, path) = (client.clone(), paths.next().context("no path")?);
        asked.spawn(async move {
            let begun = Instant::now();
            let answer = client.send(Method::GET, path, None).await?;
            if answer.status != 200 {
                bail!("{path} answered {}: {}", answer.status, answer.text);
            }
            Ok(begun.elapsed())
        });
    }
    let (mut count, mut longest) = (0, Duration::ZERO);
    while let Some(answer) = asked.join_next().await {
        longest = longest.max(answer??);
        count += 1;
    }
    Ok((count, longest))
}
