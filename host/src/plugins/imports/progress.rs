//! `progress`: how far the call has come.

use crate::plugins::{
    bindings::golem::provider::progress::Host, call::CallState, vm_backend::Progress,
};

const MAX_STAGE_CHARS: usize = 100;

impl Host for CallState {
    fn report(&mut self, stage: String, percent: Option<u8>) {
        if let Some(progress) = &self.progress {
            progress(Progress {
                stage: stage.chars().filter(|c| !c.is_control()).take(MAX_STAGE_CHARS).collect(),
                percent: percent.map(|percent| percent.min(100)),
            });
        }
    }
}
