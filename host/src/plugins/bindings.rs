//! Generated from `wit/`: one module per world, over one set of imports. Only the neighbours in this folder use it.

pub mod vm_backend {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "vm-backend",
        imports: {
            "golem:provider/process": async,
            "golem:provider/sockets": async,
            "golem:provider/files": async,
            "golem:provider/http": async,
            "golem:provider/state": async,
            "golem:provider/evm": async,
            "golem:provider/signer.sign-message": async,
            "golem:provider/signer.send-transaction": async,
            "golem:provider/clock.sleep": async,
            "golem:provider/random": trappable,
        },
        exports: { default: async },
        with: {
            "golem:provider/sockets.connection": crate::plugins::imports::sockets::Connection,
        },
    });
}

pub mod discovery_advertiser {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "discovery-advertiser",
        exports: { default: async },
        with: {
            "golem:provider/types": crate::plugins::bindings::golem::provider::types,
            "golem:provider/process": crate::plugins::bindings::golem::provider::process,
            "golem:provider/sockets": crate::plugins::bindings::golem::provider::sockets,
            "golem:provider/files": crate::plugins::bindings::golem::provider::files,
            "golem:provider/http": crate::plugins::bindings::golem::provider::http,
            "golem:provider/state": crate::plugins::bindings::golem::provider::state,
            "golem:provider/progress": crate::plugins::bindings::golem::provider::progress,
            "golem:provider/log": crate::plugins::bindings::golem::provider::log,
            "golem:provider/clock": crate::plugins::bindings::golem::provider::clock,
            "golem:provider/random": crate::plugins::bindings::golem::provider::random,
            "golem:provider/settings": crate::plugins::bindings::golem::provider::settings,
            "golem:provider/host": crate::plugins::bindings::golem::provider::host,
            "golem:provider/evm": crate::plugins::bindings::golem::provider::evm,
            "golem:provider/signer": crate::plugins::bindings::golem::provider::signer,
        },
    });
}

pub mod payment_verifier {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "payment-verifier",
        exports: { default: async },
        with: {
            "golem:provider/types": crate::plugins::bindings::golem::provider::types,
            "golem:provider/process": crate::plugins::bindings::golem::provider::process,
            "golem:provider/sockets": crate::plugins::bindings::golem::provider::sockets,
            "golem:provider/files": crate::plugins::bindings::golem::provider::files,
            "golem:provider/http": crate::plugins::bindings::golem::provider::http,
            "golem:provider/state": crate::plugins::bindings::golem::provider::state,
            "golem:provider/progress": crate::plugins::bindings::golem::provider::progress,
            "golem:provider/log": crate::plugins::bindings::golem::provider::log,
            "golem:provider/clock": crate::plugins::bindings::golem::provider::clock,
            "golem:provider/random": crate::plugins::bindings::golem::provider::random,
            "golem:provider/settings": crate::plugins::bindings::golem::provider::settings,
            "golem:provider/host": crate::plugins::bindings::golem::provider::host,
            "golem:provider/evm": crate::plugins::bindings::golem::provider::evm,
            "golem:provider/signer": crate::plugins::bindings::golem::provider::signer,
        },
    });
}

pub(super) use vm_backend::{golem, golem::provider::types::Error};
