//! Keeps the offer true: looks at what it is made of, and tells the campaigns when it has changed.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::offer::{Free, Identity, Offer, Reach, compose};
use crate::{
    plugins::advertiser::Prices,
    resources::{Amounts, Minimums},
};

/// Looking costs next to nothing: everything is in memory.
const EVERY: Duration = Duration::from_millis(500);

/// What is free also moves with other programs' memory. That alone is told this often, so that no chain is paid for it.
const DRIFT: Duration = Duration::from_secs(300);

/// What an offer is made of. None of the functions waits.
pub struct Sources {
    pub identity: Identity,
    pub minimums: Minimums,
    /// What could be rented now, and what of the machine VMs hold, which tells a change that matters from a drift.
    pub free: Box<dyn Fn() -> (Free, Held) + Send + Sync>,
    /// In USD, and in GLM where its worth is known.
    pub prices: Box<dyn Fn() -> (Prices, Option<Prices>) + Send + Sync>,
    pub reach: Box<dyn Fn() -> Reach + Send + Sync>,
}

/// What VMs hold: cores, GB of memory and storage, and how many they are.
pub type Held = (u64, u64, u64, usize);

impl Sources {
    fn look(&self, last: &mut Option<Look>, now: Instant) -> Offer {
        let (free, held) = (self.free)();
        let look = match last {
            Some(look) if look.held == held && now < look.at + DRIFT => look,
            _ => last.insert(Look { amounts: free.amounts, held, at: now }),
        };
        // How many machines may be made does not drift: it changes with the ports that can be reached.
        let free = Free { amounts: look.amounts, ..free };
        let (usd, glm) = (self.prices)();
        compose(&self.identity, free, self.minimums, usd, glm, &(self.reach)())
    }

    /// The first offer, and the work that keeps it true until `stop`.
    pub fn watch(
        self,
        stop: CancellationToken,
    ) -> (watch::Receiver<Offer>, impl Future<Output = ()> + Send + 'static) {
        let mut last = None;
        let (sender, receiver) = watch::channel(self.look(&mut last, Instant::now()));
        let sources = Arc::new(self);
        let work = async move {
            while stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
                let offer = sources.look(&mut last, Instant::now());
                sender.send_if_modified(|told| {
                    let changed = *told != offer;
                    *told = offer;
                    changed
                });
            }
        };
        (receiver, work)
    }
}

struct Look {
    amounts: Amounts,
    held: Held,
    at: Instant,
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::discovery::tests::advertisement;

    #[tokio::test(start_paused = true)]
    async fn what_vms_take_is_told_at_once_and_what_other_programs_take_now_and_then() {
        let said = advertisement(4);
        let machine = Arc::new(Mutex::new((8_u64, 0_usize)));
        let ports = Arc::new(Mutex::new(0_u32));
        let counted = Arc::clone(&ports);
        let looked_at = Arc::clone(&machine);
        let sources = Sources {
            identity: Identity {
                provider_id: said.provider_id.clone(),
                name: said.name.clone(),
                country: None,
                platform: said.platform.clone(),
                network: said.network.clone(),
                payments_network: said.payments_network.clone(),
            },
            minimums: Minimums::default(),
            free: Box::new(move || {
                let (memory_gb, vms) = *looked_at.lock().unwrap();
                let amounts = Amounts { cpu_cores: 4, memory_gb, storage_gb: 100 };
                (Free { amounts, machines: *counted.lock().unwrap() }, (0, 0, 0, vms))
            }),
            prices: Box::new(move || (said.usd, None)),
            reach: Box::new(|| Reach::At([203, 0, 113, 5].into())),
        };
        let stop = CancellationToken::new();
        let (offer, work) = sources.watch(stop.clone());
        let work = tokio::spawn(work);
        let memory = |offer: &watch::Receiver<Offer>| match &*offer.borrow() {
            Offer::Advertise(said) => said.available.memory_gb,
            other => panic!("{other:?}"),
        };
        assert!(matches!(&*offer.borrow(), Offer::Withhold(_)), "no port is known to be open");
        *ports.lock().unwrap() = 3;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(memory(&offer), 8);
        *machine.lock().unwrap() = (7, 0);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(memory(&offer), 8, "a browser was opened");
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert_eq!(memory(&offer), 7);
        *machine.lock().unwrap() = (5, 1);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(memory(&offer), 5, "a VM was made");
        stop.cancel();
        work.await.unwrap();
    }
}
