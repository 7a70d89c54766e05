//! Lines in the provider's log: `log::info!("…")`, `log::warn!`, `log::debug!`, `log::error!`.

pub use crate::bindings::golem::provider::log::{Level, write};

use crate::bindings::golem::provider::log as import;

/// Sends a panic's message to the operator. The export macro does this at the start of every call.
pub fn report_panics() {
    use std::sync::Once;
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|panic| import::panicked(&panic.to_string())));
    });
}

#[doc(hidden)]
#[macro_export]
macro_rules! __log_at {
    ($level:ident, $($message:tt)+) => {
        $crate::log::write($crate::log::Level::$level, &::std::format!($($message)+))
    };
}

/// A line of level debug.
#[macro_export]
macro_rules! log_debug { ($($message:tt)+) => { $crate::__log_at!(Debug, $($message)+) }; }
/// A line of level info.
#[macro_export]
macro_rules! log_info { ($($message:tt)+) => { $crate::__log_at!(Info, $($message)+) }; }
/// A line of level warn.
#[macro_export]
macro_rules! log_warn { ($($message:tt)+) => { $crate::__log_at!(Warn, $($message)+) }; }
/// A line of level error.
#[macro_export]
macro_rules! log_error { ($($message:tt)+) => { $crate::__log_at!(Error, $($message)+) }; }

pub use crate::{log_debug as debug, log_error as error, log_info as info, log_warn as warn};
