//! Does on request what a plugin must not do. The tests of the host's engine load it and watch what becomes of the call,
//! of its neighbours, and of the message.
//!
//! The request is the id that a call names: `inspect("loop")` loops. `create` does what the VM's name says. For calls
//! that name no id, a setting of the call's name says what they do.

use std::{collections::BTreeMap, time::Duration};

use golem_provider_sdk::{
    Description, Error, Finding, Plugin, Result, VmBackend, clock, export_vm_backend, files, http,
    log,
    process::Command,
    settings,
    sockets::Connection,
    state,
    vm_backend::{BootLimits, Image, Instance, PowerState, Spec},
};

struct Misbehaving;

const FOREVER: Duration = Duration::from_secs(100_000);
const MIB: usize = 1 << 20;

impl Plugin for Misbehaving {
    fn describe() -> Description {
        let settings_schema = match setting("describe").as_str() {
            "huge-schema" => format!(r#"{{"type":"object","title":"{}"}}"#, "a".repeat(MIB)),
            "endless-schema" => r##"{"allOf":[{"$ref":"#"}]}"##.into(),
            "deep-schema" => "[".repeat(100_000),
            other => {
                let _ = deed(other);
                r#"{"type":"object"}"#.into()
            }
        };
        Description {
            name: "misbehaving".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "does what a plugin must not do".into(),
            license: "Apache-2.0".into(),
            settings_schema,
        }
    }

    fn probe() -> Result<Vec<Finding>> {
        match setting("probe").as_str() {
            "many-findings" => return Ok(vec![Finding::info("again"); 2000]),
            other => deed(other)?,
        };
        Ok(vec![Finding::info("ready to misbehave")])
    }
}

impl VmBackend for Misbehaving {
    fn images() -> Result<Vec<Image>> {
        let image = |alias: &str| Image { alias: alias.into(), description: "A trap".into() };
        match setting("images").as_str() {
            "many" => return Ok(vec![image("again"); 2000]),
            other => deed(other)?,
        };
        Ok(vec![image("hostile")])
    }

    fn limits() -> Result<BootLimits> {
        deed(&setting("limits"))?;
        Ok(BootLimits { parallel_boots: 64, boot_timeout_ms: 1000 })
    }

    fn create(spec: Spec) -> Result<Instance> {
        let detail = deed(&spec.hostname)?;
        Ok(Instance { detail, ..well(spec.id) })
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
        let detail = deed(&id)?;
        Ok(Instance { detail, ..well(id) })
    }

    fn inspect_all() -> Result<Vec<Instance>> {
        match setting("inspect-all").as_str() {
            "million" => return Ok(vec![well(String::new()); 1_000_000]),
            "many" => return Ok(vec![well(String::new()); 20_000]),
            other => deed(other)?,
        };
        Ok(Vec::new())
    }

    fn add_ssh_key(_id: String, _key: String) -> Result<()> {
        Ok(())
    }
}

/// What the operator wants to see of a call; empty for nothing.
fn setting(call: &str) -> String {
    settings::get::<BTreeMap<String, String>>()
        .ok()
        .and_then(|mut settings| settings.remove(call))
        .unwrap_or_default()
}

/// Does it, if there is such a deed. Some have something to show.
fn deed(name: &str) -> Result<Option<String>> {
    match name {
        "loop" => loop {
            std::hint::black_box(name);
        },
        "panic" => panic!("the disk of {name} is on fire"),
        "long-panic" => panic!("{}", "on fire ".repeat(MIB / 8)),
        "trap" => trap(),
        "overflow" => {
            let depth = deeper(1);
            return Err(Error::Internal(format!("came back from a depth of {depth}")));
        }
        "allocate" => {
            let mut hoard: Vec<Vec<u8>> = Vec::new();
            loop {
                hoard.push(vec![1; MIB]);
                std::hint::black_box(&hoard);
            }
        }
        "hold-memory" => {
            let hoard: Vec<u8> = Vec::with_capacity(100 * MIB);
            clock::sleep(Duration::from_millis(500));
            std::hint::black_box(&hoard);
        }
        "sleep" => clock::sleep(FOREVER),
        "nap" => clock::sleep(Duration::from_millis(300)),
        "naps" => (0..60).for_each(|_| clock::sleep(Duration::from_millis(15))),
        "flood" => (0..10_000).for_each(|line| log::info!("flood {line}")),
        "wide-flood" => (0..300).for_each(|_| log::info!("{}", "wide ".repeat(MIB / 100))),
        "forged-line" => log::info!("harmless\n2030-01-01 ERROR the provider is \x1b[31mlost"),
        "megabytes" => return Ok(Some("a".repeat(50 * MIB))),
        "long-detail" => return Ok(Some("a".repeat(MIB))),
        "forged-detail" => return Ok(Some("fine\n2030-01-01 ERROR lost".into())),
        "long-error" => return Err(Error::Internal("wrong ".repeat(MIB))),
        // As names of VMs, which have no slashes.
        "host" => return fetch("http://192.0.2.1/", Vec::new()),
        "redirect" => return fetch(&setting("url"), Vec::new()),
        "socket" => return deed("connect /run/ungranted.sock"),
        "file" => return deed("import /etc/passwd"),
        "program" => return Command::new("sh").run().map(|_| None),
        "other-program" => return Command::new("../../bin/sh").run().map(|_| None),
        "program-with-long-name" => return Command::new("a".repeat(MIB)).run().map(|_| None),
        "endless-program" => {
            let sleep = Command::new("sh").args(["-c", "sleep 98765 & sleep 98765"]);
            return sleep.timeout(FOREVER).run().map(|_| None);
        }
        "spawn" => {
            for _ in 0..100 {
                Command::new("sh").args(["-c", "exit 0"]).spawn("spawned.log")?;
            }
        }
        "dotdot" => return files::read("../provider.db", 0, 10).map(|_| None),
        "absolute" => return files::read("/etc/passwd", 0, 10).map(|_| None),
        "symlink" => return files::read("link", 0, 10).map(|_| None),
        "list-symlink" => return files::list_directory("directory-link").map(|_| None),
        "write-behind-symlink" => return files::write("directory-link/x", b"x").map(|()| None),
        "remove-behind-symlink" => return files::remove("directory-link/kept").map(|()| None),
        "rename-behind-symlink" => {
            files::write("mine", b"mine")?;
            return files::rename("mine", "directory-link/mine").map(|()| None);
        }
        "rename-out" => {
            files::write("mine", b"mine")?;
            return files::rename("mine", "../mine").map(|()| None);
        }
        "path-of-symlink" => return files::host_path("link").map(Some),
        "deep-directories" => {
            let half = vec!["d"; 40].join("/");
            files::create_directory(&format!("one/{half}"))?;
            files::create_directory(&format!("other/{half}"))?;
            return files::rename("one", &format!("other/{half}/one")).map(|()| None);
        }
        "deeper-directories" => {
            return files::create_directory(&vec!["d"; 1000].join("/")).map(|()| None);
        }
        "download-out" => {
            let checksum = http::Checksum::Sha256("0".repeat(64));
            return http::download("http://127.0.0.1:1/", "../x", &checksum).map(|()| None);
        }
        "pipe" => return files::read("pipe", 0, 10).map(|_| None),
        "write-megabytes" => return files::write("big", &vec![1; 9 * MIB]).map(|()| None),
        "fill-state" => {
            for key in 0..100 {
                state::set(&format!("key-{key}"), &vec![0; MIB])?;
            }
        }
        "big-value" => return state::set("key", &vec![0; MIB + 1]).map(|()| None),
        "loopback" => return Connection::loopback(22, Duration::from_secs(1)).map(|_| None),
        "silent-server" => {
            let connection = Connection::unix("own.sock", FOREVER)?;
            return connection.read(10, FOREVER).map(|_| None);
        }
        "deaf-server" => {
            let connection = Connection::unix("own.sock", FOREVER)?;
            loop {
                connection.write(&vec![1; MIB], FOREVER)?;
            }
        }
        "hoard-connections" => {
            let mut hoard = Vec::new();
            loop {
                hoard.push(Connection::unix("own.sock", Duration::from_secs(1))?);
            }
        }
        "many-headers" => {
            let header = ("x-again".to_owned(), "1".to_owned());
            return fetch("http://127.0.0.1:1/", vec![header; 40_000]);
        }
        "remember" => {
            static mut CALLS: u32 = 0;
            // SAFETY: a component has one thread.
            let calls = unsafe {
                CALLS += 1;
                CALLS
            };
            return Ok(Some(calls.to_string()));
        }
        other => {
            if let Some(url) = other.strip_prefix("fetch ") {
                return fetch(url, Vec::new());
            }
            if let Some(path) = other.strip_prefix("import ") {
                return files::import_file(path, "stolen", &"0".repeat(64)).map(|()| None);
            }
            if let Some(path) = other.strip_prefix("connect ") {
                return Connection::unix(path, Duration::from_secs(1)).map(|_| None);
            }
        }
    }
    Ok(None)
}

/// The body of what is found there.
fn fetch(url: &str, headers: Vec<(String, String)>) -> Result<Option<String>> {
    let request = http::Request {
        method: http::Method::Get,
        url: url.to_owned(),
        headers,
        body: Vec::new(),
        timeout_ms: 5000,
    };
    let answer = http::send(&request)?;
    Ok(Some(String::from_utf8_lossy(&answer.body).into_owned()))
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
