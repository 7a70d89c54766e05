//! Ports of this machine: free ones for a provider, and what listens where.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    ops::Range,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, bail};

/// Below the range from which the kernel takes ports for outgoing connections, so that none of those gets in the way.
const BLOCKS: Range<u16> = 20_000..32_000;
const BLOCK: u16 = 16;

/// Ports for one provider.
#[derive(Debug, Clone)]
pub struct Block {
    pub api: u16,
    /// For SSH to VMs.
    pub ssh: Range<u16>,
}

/// Free ports that no other caller of this process gets.
///
/// # Errors
/// When there are none.
pub fn free_block() -> Result<Block> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let blocks = u32::from((BLOCKS.end - BLOCKS.start) / BLOCK);
    for _ in 0..blocks {
        // Other test programs that run on this machine begin elsewhere.
        let number = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(std::process::id() * 7);
        let first = BLOCKS.start + u16::try_from(number % blocks)? * BLOCK;
        if (first..first + BLOCK).all(can_be_bound) {
            return Ok(Block { api: first, ssh: first + 1..first + BLOCK });
        }
    }
    bail!("no {BLOCK} free ports in a row among {BLOCKS:?}")
}

/// Does nobody hold this port on 127.0.0.1?
pub fn can_be_bound(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// The addresses on which this port is listened on.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn listeners(port: u16) -> Result<BTreeSet<IpAddr>> {
    const LISTEN: &str = "0A";
    let mut found = BTreeSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        // A machine without IPv6 has no second table.
        let Ok(text) = fs::read_to_string(table) else { continue };
        for line in text.lines().skip(1) {
            let mut fields = line.split_whitespace().skip(1);
            let (Some(local), Some(state)) = (fields.next(), fields.nth(1)) else { continue };
            let local = socket_address(local).with_context(|| format!("{table}: {line}"))?;
            if state == LISTEN && local.port() == port {
                found.insert(local.ip());
            }
        }
    }
    Ok(found)
}

/// Reads `0100007F:1F90`: words in the machine's byte order, then the port.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::new();
    for at in (0..address.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    let address: IpAddr = match bytes.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        _ => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
    };
    Some(SocketAddr::new(address, port))
}

/// All IPv4 addresses of this machine outside of 127.0.0.0/8.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn own_addresses() -> Result<BTreeSet<Ipv4Addr>> {
    let text = fs::read_to_string("/proc/net/fib_trie").context("reading /proc/net/fib_trie")?;
    let mut found = BTreeSet::new();
    let mut last = None;
    for line in text.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line.starts_with("/32 host LOCAL") {
            found.extend(last.filter(|address| !address.is_loopback()));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_on_its_address_while_it_is_open() -> Result<()> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        assert_eq!(listeners(port)?, BTreeSet::from([IpAddr::from(Ipv4Addr::LOCALHOST)]));
        assert!(!can_be_bound(port));
        drop(listener);
        assert!(listeners(port)?.is_empty());
        assert!(can_be_bound(port));
        Ok(())
    }

    #[test]
    fn two_providers_get_different_ports() -> Result<()> {
        let (one, other) = (free_block()?, free_block()?);
        assert!(one.api >= other.ssh.end || other.api >= one.ssh.end);
        Ok(())
    }
}
