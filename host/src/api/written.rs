//! VMs that have been written as JSON once, for clients that ask again and again: what does not change is not written anew.
//!
//! What the VM service hands out is a VM as it was at one moment, which never changes; after a change it hands out another.
//! So what was written is true for as long as the same one is handed out; so for how its payment stands. Called by `vms`.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use axum::body::Bytes;

use super::vms::VmBody;
use crate::{payments::streams::PaymentStatus, vms::Vm};

/// How many VMs are kept; past it, all are written anew. Those that were deleted go then, too.
const MAX: usize = 1024;

/// VMs as JSON, by instance id.
#[derive(Default)]
pub struct WrittenVms(RwLock<HashMap<String, Written>>);

struct Written {
    /// Held, so that no later VM can lie where this one does.
    of: Arc<Vm>,
    payment: Option<Arc<PaymentStatus>>,
    json: Bytes,
}

impl Written {
    /// Is this what was written?
    fn tells(&self, vm: &Arc<Vm>, payment: Option<&Arc<PaymentStatus>>) -> bool {
        Arc::ptr_eq(&self.of, vm)
            && match (&self.payment, payment) {
                (Some(written), Some(now)) => Arc::ptr_eq(written, now),
                (None, None) => true,
                _ => false,
            }
    }
}

impl WrittenVms {
    /// The VM as JSON.
    pub fn json(&self, vm: &Arc<Vm>, payment: Option<Arc<PaymentStatus>>) -> Bytes {
        // Nothing that could panic runs between the steps of a change.
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(written) =
            known.get(&vm.id).filter(|written| written.tells(vm, payment.as_ref()))
        {
            return written.json.clone();
        }
        drop(known);
        // Texts and numbers: writing them cannot fail.
        let json =
            Bytes::from(serde_json::to_vec(&VmBody::of(vm, payment.clone())).unwrap_or_default());
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX {
            known.clear();
        }
        known.insert(vm.id.clone(), Written { of: Arc::clone(vm), payment, json: json.clone() });
        json
    }
}
