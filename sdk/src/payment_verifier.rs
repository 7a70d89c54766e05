//! The kind of plugin that reads what requestors pay.

pub use crate::bindings::payment_verifier::exports::golem::provider::payments::{
    Call, Changes, Event, Moment, Payment, Payout, Snapshot, Standing, Terms,
};

use crate::{Plugin, Result};

/// One contract that requestors pay through. `wit/payments.wit` has the whole contract of this trait, with how schemes other than
/// streams fit it; `golem-provider plugin test` tries it.
///
/// A verifier reads and writes down; it decides nothing, and signs nothing that moves money: calls go to the provider, which
/// bounds, signs and sends them.
///
/// [`Error::Unavailable`](crate::Error::Unavailable) when the chain cannot be asked: never an absent payment.
/// [`Error::FailedPrecondition`](crate::Error::FailedPrecondition) when the contract is none, or another one.
pub trait PaymentVerifier: Plugin {
    /// How requestors pay here, from the settings alone. At most 5 s.
    fn terms() -> Result<Terms>;

    /// The one spelling of a reference. [`Error::InvalidArgument`](crate::Error::InvalidArgument) for one that cannot be right,
    /// with what a reference looks like. At most 5 s.
    fn check_reference(reference: String) -> Result<String>;

    /// Payments as they stand at the newest block that has so many confirmations, 1 or more, in the order of the references, of
    /// which there are at most 500. At most 30 s.
    fn read(references: Vec<String>, confirmations: u32) -> Result<Snapshot>;

    /// Payments that something happened to after this block. [`Error::Unsupported`](crate::Error::Unsupported) where nodes cannot
    /// tell. At most 30 s.
    fn changed_since(block: u64) -> Result<Changes>;

    /// The call that gives the payee what has run up. At most 10 s.
    fn collect(reference: String) -> Result<Call>;

    /// The call that ends the payment. At most 10 s.
    fn close(reference: String) -> Result<Call>;

    /// What the payee got by a call that was mined. At most 5 s.
    fn payouts(events: Vec<Event>) -> Result<Vec<Payout>>;
}

/// Exports a type that implements [`PaymentVerifier`] as this component's plugin. Once per crate.
#[macro_export]
macro_rules! export_payment_verifier {
    ($verifier:ty) => {
        #[doc(hidden)]
        mod golem_provider_export {
            use super::*;
            use $crate::bindings::payment_verifier::exports::golem::provider::payments;

            $crate::__export_plugin!($verifier);

            impl payments::Guest for Export {
                fn get_terms() -> $crate::Result<payments::Terms> {
                    $crate::log::report_panics();
                    <$verifier as $crate::PaymentVerifier>::terms()
                }
                fn check_reference(reference: String) -> $crate::Result<String> {
                    $crate::log::report_panics();
                    <$verifier as $crate::PaymentVerifier>::check_reference(reference)
                }
                fn read(
                    references: Vec<String>,
                    confirmations: u32,
                ) -> $crate::Result<payments::Snapshot> {
                    $crate::log::report_panics();
                    <$verifier as $crate::PaymentVerifier>::read(references, confirmations.max(1))
                }
                fn changed_since(block: u64) -> $crate::Result<payments::Changes> {
                    $crate::log::report_panics();
                    <$verifier as $crate::PaymentVerifier>::changed_since(block)
                }
                fn collect(reference: String) -> $crate::Result<payments::Call> {
                    $crate::log::report_panics();
                    <$verifier as $crate::PaymentVerifier>::collect(reference)
                }
                fn close(reference: String) -> $crate::Result<payments::Call> {
                    $crate::log::report_panics();
                    <$verifier as $crate::PaymentVerifier>::close(reference)
                }
                fn payouts(
                    events: Vec<payments::Event>,
                ) -> $crate::Result<Vec<payments::Payout>> {
                    $crate::log::report_panics();
                    <$verifier as $crate::PaymentVerifier>::payouts(events)
                }
            }

            $crate::bindings::payment_verifier::export_payment_verifier_bindings!(
                Export with_types_in $crate::bindings::payment_verifier
            );
        }
    };
}
