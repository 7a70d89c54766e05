//! A small internet of a test's own: a provider behind a router, and hosts out there, in three network namespaces that are
//! connected to each other and to nothing else. Needs root.
//!
//! ```text
//! provider 192.168.77.2 ── 192.168.77.1 router 45.67.89.1 … .9 ── 45.67.89.10 … .19 hosts
//! ```
//!
//! The addresses outside are such as the internet has, because a provider takes no others for public. They lead nowhere but
//! into the namespaces.

use std::{
    fs::File,
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::AsRawFd,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::geteuid;

use crate::optional;

/// Where the provider is reached from outside.
pub const PUBLIC: Ipv4Addr = Ipv4Addr::new(45, 67, 89, 1);

/// Another address of the router.
pub const OTHER_PUBLIC: Ipv4Addr = Ipv4Addr::new(45, 67, 89, 2);

/// Where the provider is on its own network.
const PROVIDER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 2);

/// May this process make networks?
///
/// # Panics
/// When it may not, in continuous integration.
pub fn are_allowed() -> bool {
    optional::tell(geteuid().is_root(), "only root can make the networks that this test needs")
}

/// The address of a host out there; there are ten.
pub fn host(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(45, 67, 89, 10 + number)
}

/// Gone with this value.
pub struct Network {
    provider: Namespace,
    router: Namespace,
    outside: Namespace,
}

/// What the router does with a connection from outside.
#[derive(Debug, Clone, Copy)]
pub enum Rule {
    /// Ports from the first to the second lead to the same ports of the provider.
    Forward(u16, u16),
    /// Ports from the first to the second lead to the third of the provider.
    ForwardAllTo(u16, u16, u16),
    /// Nobody is answered on ports from the first to the second.
    Drop(u16, u16),
}

impl Network {
    /// The router lets the provider out, and nobody in: it refuses connections.
    ///
    /// # Errors
    /// When the kernel or its tools do not play along.
    pub fn new() -> Result<Network> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let tag = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let namespace = |role: &str| Namespace::new(format!("golem-{tag}-{role}"));
        let network = Network {
            provider: namespace("p")?,
            router: namespace("r")?,
            outside: namespace("o")?,
        };
        let Network { provider, router, outside } = &network;
        for (here, there, name) in [(provider, router, "lan"), (outside, router, "wan")] {
            ip(&[
                "link",
                "add",
                "eth0",
                "netns",
                &here.name,
                "type",
                "veth",
                "peer",
                "name",
                name,
                "netns",
                &router.name,
            ])?;
            there.ip(&["link", "set", name, "up"])?;
            here.ip(&["link", "set", "eth0", "up"])?;
        }
        provider.ip(&["addr", "add", &format!("{PROVIDER}/24"), "dev", "eth0"])?;
        router.ip(&["addr", "add", "192.168.77.1/24", "dev", "lan"])?;
        provider.ip(&["route", "add", "default", "via", "192.168.77.1"])?;
        for address in [PUBLIC, OTHER_PUBLIC] {
            router.ip(&["addr", "add", &format!("{address}/24"), "dev", "wan"])?;
        }
        for number in 0..10 {
            outside.ip(&["addr", "add", &format!("{}/24", host(number)), "dev", "eth0"])?;
        }
        router
            .run(Command::new("sh").args(["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]), "")?;
        network.set_rules(PUBLIC, &[])?;
        Ok(network)
    }

    /// What the router does from now on with new connections. The provider's own leave from `address`.
    ///
    /// # Errors
    /// When the rules are refused.
    pub fn set_rules(&self, address: Ipv4Addr, rules: &[Rule]) -> Result<()> {
        let (mut forwards, mut drops) = (String::new(), String::new());
        for rule in rules {
            match rule {
                Rule::Forward(from, to) => {
                    forwards += &format!("iifname wan tcp dport {from}-{to} dnat to {PROVIDER}\n");
                }
                Rule::ForwardAllTo(from, to, port) => {
                    forwards +=
                        &format!("iifname wan tcp dport {from}-{to} dnat to {PROVIDER}:{port}\n");
                }
                Rule::Drop(from, to) => {
                    drops += &format!("iifname wan tcp dport {from}-{to} drop\n");
                }
            }
        }
        let ruleset = format!(
            "flush ruleset\n\
             table ip golem {{\n\
             chain first {{\ntype filter hook prerouting priority -200\n{drops}}}\n\
             chain in {{\ntype nat hook prerouting priority -100\n{forwards}}}\n\
             chain out {{\ntype nat hook postrouting priority 100\noifname wan snat to {address}\n}}\n\
             }}\n"
        );
        self.router.run(Command::new("nft").args(["-f", "-"]), &ruleset)
    }

    /// Does the work on the provider's network, with a runtime of its own; programs that it starts are there too.
    ///
    /// # Errors
    /// When the network cannot be entered, and whatever the work fails with.
    pub fn as_provider<T: Send>(&self, work: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
        self.provider.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(work())
        })
    }

    /// Does the work on the network outside.
    ///
    /// # Errors
    /// When the network cannot be entered, and whatever the work fails with.
    pub fn outside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.outside.enter(work)
    }

    /// A socket that listens out there.
    ///
    /// # Errors
    /// When somebody does already.
    pub fn listen_outside(&self, address: SocketAddr) -> Result<TcpListener> {
        self.outside(|| {
            let listener = TcpListener::bind(address).context("listening outside")?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
    }

    /// A program that will run out there.
    pub fn program_outside(&self, program: &std::path::Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.outside.name]).arg(program);
        command
    }
}

struct Namespace {
    name: String,
}

impl Namespace {
    fn new(name: String) -> Result<Namespace> {
        ip(&["netns", "add", &name])?;
        let namespace = Namespace { name };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        ip(&[&["-n", &self.name], arguments].concat())
    }

    /// Runs a program in here, to its end.
    fn run(&self, inner: &Command, input: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(inner.get_program());
        run(command.args(inner.get_args()), input)
    }

    /// Threads and programs that this one starts are in here too; the rest of the process is not.
    fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = format!("/run/netns/{}", self.name);
        let file = File::open(&path).with_context(|| format!("opening {path}"))?;
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                // SAFETY: the descriptor is open for as long as the call lasts; only this thread changes its network.
                let entered = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
                if entered != 0 {
                    return Err(std::io::Error::last_os_error()).context("entering a network");
                }
                work()
            });
            match inside.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ip(&["netns", "del", &self.name]);
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    run(Command::new("ip").args(arguments), "")
}

fn run(command: &mut Command, input: &str) -> Result<()> {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut process = command.spawn().with_context(|| format!("running {command:?}"))?;
    let mut stdin = process.stdin.take().ok_or_else(|| anyhow!("no standard input"))?;
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let output = process.wait_with_output()?;
    if !output.status.success() {
        bail!("{command:?}: {}\n{input}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
