//! VMs from the first request to the last trace: made, logged in to, stopped, started, broken and deleted.
//!
//! All of this is one program, and its tests take turns (see [`checks::machine`]): guests are emulated where there is no
//! usable KVM, and each boot then needs a core. Boots are what the time goes to: six whole ones, two of them at once.

mod canary;
mod checks;
mod conformance;
mod full_disk;
mod given_back;
mod killed;
mod one_vm;
mod paid;
mod reference;
mod two_vms;
