//! Does on request what a plugin must not do. The tests of the host's engine load it and watch what becomes of the call,
//! of its neighbours, and of the message.
//!
//! The request is the id that a call names: `inspect("loop")` loops.

use std::time::Duration;

use golem_provider_sdk::{
    Description, Error, Finding, Plugin, Result, VmBackend, clock, export_vm_backend, files, log,
    process::Command,
    sockets::Connection,
    vm_backend::{BootLimits, Image, Instance, PowerState, Spec},
};

struct Misbehaving;

impl Plugin for Misbehaving {
    fn describe() -> Description {
        Description {
            name: "misbehaving".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "does what a plugin must not do".into(),
            license: "Apache-2.0".into(),
            settings_schema: r#"{"type":"object"}"#.into(),
        }
    }

    fn probe() -> Result<Vec<Finding>> {
        Ok(vec![Finding::info("ready to misbehave")])
    }
}

impl VmBackend for Misbehaving {
    fn images() -> Result<Vec<Image>> {
        Ok(Vec::new())
    }

    fn limits() -> Result<BootLimits> {
        Ok(BootLimits { parallel_boots: 1, boot_timeout_ms: 1000 })
    }

    fn create(spec: Spec) -> Result<Instance> {
        Ok(well(spec.id))
    }

    fn start(id: String) -> Result<Instance> {
        Ok(well(id))
    }

    fn await_ready(id: String) -> Result<Instance> {
        Ok(well(id))
    }

    fn stop(id: String, _grace: Duration) -> Result<Instance> {
        Ok(well(id))
    }

    fn delete(_id: String) -> Result<()> {
        Ok(())
    }

    fn inspect(id: String) -> Result<Instance> {
        match id.as_str() {
            "loop" => loop {
                std::hint::black_box(&id);
            },
            "panic" => panic!("the disk of {id} is on fire"),
            "trap" => trap(),
            "overflow" => {
                let depth = deeper(1);
                return Err(Error::Internal(format!("came back from a depth of {depth}")));
            }
            "allocate" => {
                let mut hoard: Vec<Vec<u8>> = Vec::new();
                loop {
                    hoard.push(vec![1; 1 << 20]);
                    std::hint::black_box(&hoard);
                }
            }
            "sleep" => clock::sleep(Duration::from_secs(3600)),
            "nap" => clock::sleep(Duration::from_millis(300)),
            "flood" => (0..10_000).for_each(|line| log::info!("flood {line}")),
            "program" => return Command::new("sh").run().map(|_| well(id)),
            "other-program" => return Command::new("../../bin/sh").run().map(|_| well(id)),
            "dotdot" => return files::read("../provider.db", 0, 10).map(|_| well(id)),
            "absolute" => return files::read("/etc/passwd", 0, 10).map(|_| well(id)),
            "symlink" => return files::read("link", 0, 10).map(|_| well(id)),
            "import" => {
                return files::import_file("/etc/passwd", "stolen", &"0".repeat(64))
                    .map(|()| well(id));
            }
            "socket" => {
                return Connection::unix("/run/dbus/system_bus_socket", Duration::from_secs(1))
                    .map(|_| well(id));
            }
            "loopback" => {
                return Connection::loopback(22, Duration::from_secs(1)).map(|_| well(id));
            }
            "remember" => {
                static mut CALLS: u32 = 0;
                // SAFETY: a component has one thread.
                let calls = unsafe {
                    CALLS += 1;
                    CALLS
                };
                return Ok(Instance { detail: Some(calls.to_string()), ..well(id) });
            }
            _ => {}
        }
        Ok(well(id))
    }

    fn inspect_all() -> Result<Vec<Instance>> {
        Ok(Vec::new())
    }

    fn add_ssh_key(_id: String, _key: String) -> Result<()> {
        Ok(())
    }
}

fn well(id: String) -> Instance {
    Instance { id, power: PowerState::Running, ssh: None, ip_address: None, detail: None }
}

/// Recursion that the compiler cannot turn into a loop.
#[inline(never)]
fn deeper(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    if depth == u64::MAX { frame[0] } else { deeper(depth + 1) + frame[63] }
}

/// WebAssembly's `unreachable`, without a panic before it.
fn trap() -> ! {
    #[cfg(target_arch = "wasm32")]
    core::arch::wasm32::unreachable();
    #[cfg(not(target_arch = "wasm32"))]
    std::process::abort()
}

export_vm_backend!(Misbehaving);
