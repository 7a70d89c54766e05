//! `log`: the plugin's lines in the provider's log, cut and counted so that a flood does no harm.

use crate::plugins::{
    bindings::golem::provider::log::{Host, Level},
    call::CallState,
};

const MAX_MESSAGE_BYTES: usize = 8 << 10;
const MAX_LINES_PER_CALL: u32 = 300;

/// What one call may still log.
#[derive(Debug, Default)]
pub struct LogBudget {
    lines: u32,
    dropped: u32,
}

impl LogBudget {
    /// Lines that were not kept.
    pub fn dropped(&self) -> u32 {
        self.dropped
    }

    fn take(&mut self) -> bool {
        if self.lines < MAX_LINES_PER_CALL {
            self.lines += 1;
            return true;
        }
        self.dropped = self.dropped.saturating_add(1);
        false
    }
}

impl Host for CallState {
    fn write(&mut self, level: Level, message: String) {
        if !self.log.take() {
            return;
        }
        let name = self.plugin.name.as_str();
        let message = clean(&message);
        match level {
            Level::Trace => tracing::trace!(target: "plugin", { plugin.name = name }, "{message}"),
            Level::Debug => tracing::debug!(target: "plugin", { plugin.name = name }, "{message}"),
            Level::Info => tracing::info!(target: "plugin", { plugin.name = name }, "{message}"),
            Level::Warn => tracing::warn!(target: "plugin", { plugin.name = name }, "{message}"),
            Level::Error => tracing::error!(target: "plugin", { plugin.name = name }, "{message}"),
        }
    }

    fn panicked(&mut self, message: String) {
        self.panic = Some(clean(&message));
    }
}

/// Without what could forge lines or steer a terminal, and not too long.
fn clean(message: &str) -> String {
    let end = message.floor_char_boundary(MAX_MESSAGE_BYTES);
    let mut text: String = message[..end]
        .chars()
        .map(|c| match c {
            '\n' | '\t' => ' ',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect();
    if end < message.len() {
        text.push_str(" …");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_cannot_forge_lines_or_steer_a_terminal() {
        assert_eq!(clean("a\nb\x1b[2Jc"), "a b\u{fffd}[2Jc");
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let cut = clean(&"ä".repeat(MAX_MESSAGE_BYTES));
        assert!(cut.len() < MAX_MESSAGE_BYTES + 8 && cut.ends_with(" …"));
    }

    #[test]
    fn a_flood_is_counted_and_not_kept() {
        let mut budget = LogBudget::default();
        let kept = (0..1000).filter(|_| budget.take()).count();
        assert_eq!((kept, budget.dropped()), (300, 700));
    }
}
