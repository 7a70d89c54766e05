//! The machine that the provider runs on.

pub use crate::bindings::golem::provider::host::{
    architecture, boot_id, cpu_cores, is_privileged, name_servers,
};
