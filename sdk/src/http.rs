//! HTTP and HTTPS to granted hosts.

pub use crate::bindings::golem::provider::http::{
    Checksum, Method, Request, Response, download, send,
};
