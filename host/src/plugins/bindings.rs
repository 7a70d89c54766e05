//! Generated from `wit/`. Only the neighbours in this folder use it.

wasmtime::component::bindgen!({
    path: "../wit",
    world: "vm-backend",
    imports: {
        "golem:provider/process": async,
        "golem:provider/sockets": async,
        "golem:provider/files": async,
        "golem:provider/http": async,
        "golem:provider/state": async,
        "golem:provider/clock.sleep": async,
        "golem:provider/random": trappable,
    },
    exports: { default: async },
    with: {
        "golem:provider/sockets.connection": super::imports::sockets::Connection,
    },
});

pub(super) use golem::provider::types::Error;
