//! Which plugin reads payments. It may be replaced while the provider runs: calls under way finish on the old one.

use std::sync::{Arc, PoisonError, RwLock};

use crate::plugins::PaymentVerifier;

/// The payment verifiers there are, and the one that counts. Clones are the same.
#[derive(Clone)]
pub struct Verifiers(Arc<RwLock<Known>>);

struct Known {
    /// Nobody, where no payments are taken.
    chosen: Option<String>,
    verifiers: Vec<Arc<dyn PaymentVerifier>>,
    /// Why each that is not there is not, by name.
    missing: Vec<(String, String)>,
}

/// The plugin that reads payments is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("payments cannot be read: {reason}")]
pub struct NoVerifier {
    pub reason: String,
}

impl Verifiers {
    /// `chosen` is a plugin's name; `None` takes no payments.
    pub fn new(chosen: Option<String>) -> Self {
        Self(Arc::new(RwLock::new(Known { chosen, verifiers: Vec::new(), missing: Vec::new() })))
    }

    /// Are payments taken?
    pub fn are_wanted(&self) -> bool {
        self.read(|known| known.chosen.is_some())
    }

    /// The plugin that is to read payments, whether it is there or not.
    pub fn chosen(&self) -> Option<String> {
        self.read(|known| known.chosen.clone())
    }

    /// Takes the calls from now on, if it is the one that was chosen.
    pub fn install(&self, verifier: Arc<dyn PaymentVerifier>) {
        self.write(|known| {
            known.verifiers.retain(|other| other.name() != verifier.name());
            known.missing.retain(|(name, _)| name != verifier.name());
            known.verifiers.push(verifier);
        });
    }

    /// It is not there, or not any more.
    pub fn remove(&self, name: &str, reason: String) {
        self.write(|known| {
            known.verifiers.retain(|other| other.name() != name);
            known.missing.retain(|(other, _)| other != name);
            known.missing.push((name.to_owned(), reason));
        });
    }

    pub fn names(&self) -> Vec<String> {
        self.read(|known| known.verifiers.iter().map(|one| one.name().to_owned()).collect())
    }

    /// Chooses the one that counts. False: there is none of that name, and nothing has changed.
    pub fn choose(&self, name: &str) -> bool {
        self.write(|known| {
            let is_there = known.verifiers.iter().any(|one| one.name() == name);
            if is_there {
                known.chosen = Some(name.to_owned());
            }
            is_there
        })
    }

    /// One of them.
    pub fn named(&self, name: &str) -> Option<Arc<dyn PaymentVerifier>> {
        self.read(|known| known.verifiers.iter().find(|one| one.name() == name).cloned())
    }

    /// The one that counts.
    ///
    /// # Errors
    /// No payments are taken, or it is not there.
    pub fn current(&self) -> Result<Arc<dyn PaymentVerifier>, NoVerifier> {
        let Some(chosen) = self.chosen() else {
            return Err(NoVerifier { reason: "this provider takes no payments".to_owned() });
        };
        self.named(&chosen).ok_or_else(|| {
            let known = self.read(|known| {
                known.missing.iter().find(|(name, _)| *name == chosen).map(|(_, why)| why.clone())
            });
            let reason = known.unwrap_or_else(|| {
                format!("there is no plugin `{chosen}` that reads payments; see golem-provider plugin list")
            });
            NoVerifier { reason }
        })
    }

    fn read<T>(&self, look: impl FnOnce(&Known) -> T) -> T {
        look(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Known) -> T) -> T {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }
}
