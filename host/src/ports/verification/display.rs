//! What the operator sees while ports are checked: moving lines on a terminal, a few log lines elsewhere.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{http, standing::Standing, verdict::PortState};
use crate::telemetry;

/// Log lines about progress come no more often than this.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Clones draw the same.
#[derive(Clone)]
pub struct Display(Option<Arc<Mutex<State>>>);

struct State {
    bars: MultiProgress,
    drawn: Option<Drawn>,
    checked: usize,
    last_line: Instant,
}

struct Drawn {
    ports: ProgressBar,
    servers: Vec<ProgressBar>,
}

impl Display {
    /// One that is not `shown` does nothing.
    pub fn new(shown: bool) -> Display {
        Display(shown.then(|| {
            Arc::new(Mutex::new(State {
                bars: telemetry::bars(),
                drawn: None,
                checked: 0,
                last_line: Instant::now(),
            }))
        }))
    }

    fn state(&self) -> Option<MutexGuard<'_, State>> {
        // What is drawn may be wrong after a panic; nothing else is.
        Some(self.0.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// So many ports of `address` are going to be checked by these.
    pub fn begin(&self, address: IpAddr, ports: usize, standings: &[Standing]) {
        let Some(mut state) = self.state() else { return };
        if state.bars.is_hidden() {
            tracing::info!(%address, ports, servers = standings.len(), "port verification: checking");
            return;
        }
        let bar = state.bars.add(ProgressBar::new(u64::try_from(ports).unwrap_or_default()));
        bar.set_style(style(
            "{spinner} Port verification of {prefix}  [{bar:24}] {pos}/{len} ports  {msg}",
        ));
        bar.set_prefix(address.to_string());
        bar.set_message("listening on this machine, asking from outside");
        bar.enable_steady_tick(Duration::from_millis(120));
        let servers = standings.iter().map(|standing| {
            let line = state.bars.add(ProgressBar::new_spinner());
            line.set_style(style("    {prefix}  {msg}"));
            line.set_prefix(http::shown(&standing.server.url));
            line.set_message("…");
            line.tick();
            line
        });
        let servers = servers.collect();
        state.drawn = Some(Drawn { ports: bar, servers });
    }

    /// One of them has said something.
    pub fn server(&self, index: usize, standing: &Standing) {
        let Some(state) = self.state() else { return };
        let Some(line) = state.drawn.as_ref().and_then(|drawn| drawn.servers.get(index)) else {
            return;
        };
        let report = standing.report(&BTreeMap::new());
        line.set_message(match report.detail {
            None => format!("✓ {} ports checked", report.ports_checked),
            Some(detail) => format!("✗ {detail}"),
        });
    }

    /// These ports are done.
    pub fn advance(&self, chunk: &[u16], found: &BTreeMap<u16, PortState>) {
        let Some(mut state) = self.state() else { return };
        state.checked += chunk.len();
        let open = found.values().filter(|state| **state == PortState::Open).count();
        match &state.drawn {
            Some(drawn) => {
                drawn.ports.inc(u64::try_from(chunk.len()).unwrap_or_default());
                drawn.ports.set_message(format!("{open} reachable"));
            }
            None if state.last_line.elapsed() >= LINE_EVERY => {
                tracing::info!(checked = state.checked, reachable = open, "port verification");
                state.last_line = Instant::now();
            }
            None => {}
        }
    }

    /// Takes it off the screen.
    pub fn end(&self) {
        let Some(mut state) = self.state() else { return };
        if let Some(drawn) = state.drawn.take() {
            drawn.servers.iter().for_each(ProgressBar::finish_and_clear);
            drawn.ports.finish_and_clear();
        }
    }
}

/// Templates are written in this file, and right.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("█░░")
}

/// Prints a block on standard output, for whoever is there to read it.
pub fn print(block: &str) {
    telemetry::bars().suspend(|| {
        // That nobody reads it is no failure of the provider.
        let _ = writeln!(io::stdout().lock(), "\n{block}\n");
    });
}
