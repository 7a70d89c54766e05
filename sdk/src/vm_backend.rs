//! The kind of plugin that makes and runs virtual machines.

pub use crate::bindings::exports::golem::provider::vms::{
    BootLimits, Endpoint, Image, Instance, PowerState, Spec,
};

use core::time::Duration;

use crate::{Plugin, Result};

/// A hypervisor, as the provider uses it.
///
/// The provider chooses each instance's id, and never runs two changing calls for one id at a time. Any call may be cut off
/// anywhere (deadline, crash of the provider): every change has to be safe to repeat.
pub trait VmBackend: Plugin {
    /// The images that [`create`](Self::create) accepts.
    fn images() -> Result<Vec<Image>>;

    /// How many machines may boot at once, and how long a boot may take here.
    fn limits() -> Result<BootLimits>;

    /// Makes the machine and starts it, without waiting for it to boot. Repeated for the same id, it finishes what an
    /// interrupted call left undone.
    fn create(spec: Spec) -> Result<Instance>;

    /// Starts a stopped or crashed machine, without waiting for it to boot. A running one stays as it is.
    fn start(id: String) -> Result<Instance>;

    /// Waits until SSH answers. An error as soon as it is clear that it never will.
    fn await_ready(id: String) -> Result<Instance>;

    /// Shuts the machine down, and switches it off if that takes longer than `grace`. A stopped one stays as it is.
    fn stop(id: String, grace: Duration) -> Result<Instance>;

    /// Removes everything that was made for the machine, running or not. An unknown id is a success.
    fn delete(id: String) -> Result<()>;

    /// What the machine is doing. Changes nothing. [`NotFound`](crate::Error::NotFound) only if that is certain.
    fn inspect(id: String) -> Result<Instance>;

    /// Every machine made here and not deleted.
    fn inspect_all() -> Result<Vec<Instance>>;

    /// Lets one more OpenSSH public key log in as root, now and after later starts.
    fn add_ssh_key(id: String, key: String) -> Result<()>;
}

/// Exports a type that implements [`VmBackend`] as this component's plugin. Once per crate.
#[macro_export]
macro_rules! export_vm_backend {
    ($backend:ty) => {
        #[doc(hidden)]
        mod golem_provider_export {
            use super::*;
            use $crate::bindings::exports::golem::provider::{plugin, vms};

            pub struct Export;

            impl plugin::Guest for Export {
                fn describe() -> plugin::Description {
                    $crate::log::report_panics();
                    <$backend as $crate::Plugin>::describe()
                }
                fn probe() -> $crate::Result<Vec<plugin::Finding>> {
                    $crate::log::report_panics();
                    <$backend as $crate::Plugin>::probe()
                }
            }

            impl vms::Guest for Export {
                fn images() -> $crate::Result<Vec<vms::Image>> {
                    $crate::log::report_panics();
                    <$backend as $crate::VmBackend>::images()
                }
                fn limits() -> $crate::Result<vms::BootLimits> {
                    $crate::log::report_panics();
                    <$backend as $crate::VmBackend>::limits()
                }
                fn create(spec: vms::Spec) -> $crate::Result<vms::Instance> {
                    $crate::log::report_panics();
                    <$backend as $crate::VmBackend>::create(spec)
                }
                fn start(id: String) -> $crate::Result<vms::Instance> {
                    $crate::log::report_panics();
                    <$backend as $crate::VmBackend>::start(id)
                }
                fn await_ready(id: String) -> $crate::Result<vms::Instance> {
                    $crate::log::report_panics();
                    <$backend as $crate::VmBackend>::await_ready(id)
                }
                fn stop(id: String, grace_ms: u32) -> $crate::Result<vms::Instance> {
                    $crate::log::report_panics();
                    let grace = ::core::time::Duration::from_millis(grace_ms.into());
                    <$backend as $crate::VmBackend>::stop(id, grace)
                }
                fn delete(id: String) -> $crate::Result<()> {
                    $crate::log::report_panics();
                    <$backend as $crate::VmBackend>::delete(id)
                }
                fn inspect(id: String) -> $crate::Result<vms::Instance> {
                    $crate::log::report_panics();
                    <$backend as $crate::VmBackend>::inspect(id)
                }
                fn inspect_all() -> $crate::Result<Vec<vms::Instance>> {
                    $crate::log::report_panics();
                    <$backend as $crate::VmBackend>::inspect_all()
                }
                fn add_ssh_key(id: String, key: String) -> $crate::Result<()> {
                    $crate::log::report_panics();
                    <$backend as $crate::VmBackend>::add_ssh_key(id, key)
                }
            }

            $crate::bindings::export_vm_backend_bindings!(Export with_types_in $crate::bindings);
        }
    };
}
