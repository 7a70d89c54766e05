//! Who computes when: the time that guests compute is counted, and those that compute long take turns.
//!
//! Guests run on the same threads as everything else of the provider. The epoch interrupts each of them once in a while
//! ([`TICK`](super::engine::TICK)), which alone would not be enough: sixty guests that compute without end would leave every other task
//! a sixtieth of the time. So a call that has computed for longer than [`UNDISTURBED`] goes on only while it has one of a few
//! turns, fewer than there are threads, and gives it back at the next tick, or when it waits for something.
//!
//! Counted is the time in which the call's future is being polled. Waiting for the host costs nothing, however often the guest
//! wakes up from it.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::UpdateDeadline;

use super::limits::UNDISTURBED;

/// The turns of all calls of an engine.
#[derive(Clone)]
pub(super) struct Turns(Arc<Semaphore>);

impl Turns {
    /// Half of the threads that a runtime has on this machine.
    pub fn new() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self(Arc::new(Semaphore::new((threads / 2).max(1))))
    }
}

/// The time that one call has computed.
pub(super) struct Meter {
    turns: Turns,
    state: Mutex<MeterState>,
}

#[derive(Default)]
struct MeterState {
    spent: Duration,
    polled_since: Option<Instant>,
    turn: Option<OwnedSemaphorePermit>,
}

impl Meter {
    pub fn new(turns: &Turns) -> Arc<Self> {
        Arc::new(Self { turns: turns.clone(), state: Mutex::default() })
    }

    /// The state stays right even if a thread panicked with the lock: each change is a single step.
    fn lock(&self) -> MutexGuard<'_, MeterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Polls the call's work, and counts how long that takes.
    pub fn poll<T>(
        &self,
        work: Pin<&mut impl Future<Output = T>>,
        context: &mut Context<'_>,
    ) -> Poll<T> {
        self.lock().polled_since = Some(Instant::now());
        let polled = work.poll(context);
        let mut state = self.lock();
        let running = state.polled_since.take().map(|since| since.elapsed());
        state.spent += running.unwrap_or_default();
        state.turn = None;
        polled
    }

    fn spent(&self) -> Duration {
        let state = self.lock();
        state.spent + state.polled_since.map(|since| since.elapsed()).unwrap_or_default()
    }

    /// What becomes of a guest that the epoch has interrupted.
    pub fn tick(self: &Arc<Self>, computing: Duration) -> UpdateDeadline {
        let spent = self.spent();
        if spent >= computing {
            return UpdateDeadline::Interrupt;
        }
        if spent < UNDISTURBED {
            return UpdateDeadline::Yield(1);
        }
        let meter = Arc::clone(self);
        let next_turn = async move {
            // Also the one that would get the next turn at once lets others go first.
            tokio::task::yield_now().await;
            // The semaphore is never closed.
            if let Ok(turn) = Arc::clone(&meter.turns.0).acquire_owned().await {
                meter.lock().turn = Some(turn);
            }
        };
        UpdateDeadline::YieldCustom(1, Box::pin(next_turn))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_that_computes_long_takes_turns_and_gives_its_turn_back_when_it_waits() {
        let turns = Turns(Arc::new(Semaphore::new(1)));
        let meter = Meter::new(&turns);
        meter.lock().spent = UNDISTURBED;
        let UpdateDeadline::YieldCustom(1, next_turn) = meter.tick(Duration::from_secs(1)) else {
            panic!("it goes on without a turn");
        };
        let mut has_turn = false;
        let mut work = Box::pin(async {
            next_turn.await;
            has_turn = turns.0.available_permits() == 0;
            std::future::pending::<()>().await;
        });
        let polling = std::future::poll_fn(|context| meter.poll(work.as_mut(), context));
        assert!(tokio::time::timeout(Duration::from_millis(50), polling).await.is_err());
        drop(work);
        assert!(has_turn);
        assert_eq!(turns.0.available_permits(), 1);
    }

    #[tokio::test]
    async fn a_call_may_compute_for_as_long_as_its_limit_says() {
        let meter = Meter::new(&Turns::new());
        assert!(matches!(meter.tick(Duration::from_secs(1)), UpdateDeadline::Yield(1)));
        meter.lock().spent = Duration::from_secs(1);
        assert!(matches!(meter.tick(Duration::from_secs(1)), UpdateDeadline::Interrupt));
    }
}
