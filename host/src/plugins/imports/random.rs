//! `random`: bytes of the operating system's generator.

use crate::plugins::{bindings::golem::provider::random::Host, call::CallState, limits};

impl Host for CallState {
    fn bytes(&mut self, count: u32) -> wasmtime::Result<Vec<u8>> {
        let mut bytes = vec![0; (count as usize).min(limits::RANDOM_BYTES)];
        getrandom::fill(&mut bytes).map_err(|error| {
            wasmtime::format_err!("the operating system gives no random bytes: {error}")
        })?;
        Ok(bytes)
    }
}
