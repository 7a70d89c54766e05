//! Named places between two steps, where a test can let the provider die as by `kill -9`.
//!
//! What has to hold after a crash can only be proven by crashing everywhere. Each step boundary that matters has a name
//! here; the code calls [`reached`] there. In a program that is built for operators this is an empty function: the feature
//! `fault-points` is switched on by the end-to-end tests alone.
//!
//! With the feature, the environment variable [`FILE_VARIABLE`] names a file that a test writes while the provider runs.
//! Each line is the name of a point and, after a space, at which visit counted from the writing of the file (1 if absent) the
//! process dies. The name of the point it died at is left in a file beside it, with the extension `died`.
//!
//! Calls nothing; called from wherever steps follow each other.

/// The environment variable with the path of the file that arms points.
pub const FILE_VARIABLE: &str = "GOLEM_FAULT_POINTS_FILE";

macro_rules! points {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// A boundary between two steps.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum FaultPoint {
            $($(#[$doc])* $variant,)*
        }

        impl FaultPoint {
            pub const ALL: &[FaultPoint] = &[$(FaultPoint::$variant,)*];

            /// As it is written in the file that arms it.
            pub fn name(self) -> &'static str {
                match self {
                    $(FaultPoint::$variant => $name,)*
                }
            }
        }
    };
}

points! {
    /// A create has a port open, and nothing of it is written.
    AdmitPortOpen => "admit.port-open",
    /// A create is written down, and nobody knows yet.
    AdmitWritten => "admit.written",
    /// The backend has made and begun to boot the machine.
    CreateMade => "create.made",
    /// SSH has answered for the first time.
    CreateReady => "create.ready",
    /// A create is a success on disk.
    CreateWritten => "create.written",
    /// A create has failed on disk, and what it left is still there.
    UndoFailed => "undo.failed",
    /// The backend has cleared away what a failed create left.
    UndoCleared => "undo.cleared",
    /// The failed create's port is closed, and still its own on disk.
    UndoPortClosed => "undo.port-closed",
    /// A failed create holds nothing any more.
    UndoWritten => "undo.written",
    /// A stop is written down.
    StopBegun => "stop.begun",
    /// The backend has stopped the machine.
    StopDone => "stop.done",
    /// A stop is a success on disk.
    StopWritten => "stop.written",
    /// A start is written down.
    StartBegun => "start.begun",
    /// The backend has begun to boot the machine.
    StartMade => "start.made",
    /// SSH has answered.
    StartReady => "start.ready",
    /// A start is a success on disk.
    StartWritten => "start.written",
    /// A start has failed on disk, and the machine may still run.
    StartFailed => "start.failed",
    /// A delete is written down.
    DeleteBegun => "delete.begun",
    /// The backend has removed the machine.
    DeleteCleared => "delete.cleared",
    /// The VM's port is closed, and its row is there.
    DeletePortClosed => "delete.port-closed",
    /// The row is gone.
    DeleteWritten => "delete.written",
    /// The backend has added a key.
    KeyAdded => "key.added",
    /// The statements of a change are done, and not committed.
    StoreUncommitted => "store.uncommitted",
    /// A signed transaction is written down, and not sent.
    TransactionWritten => "transaction.written",
    /// A node has taken a transaction.
    TransactionSent => "transaction.sent",
    /// A transaction has a receipt, and nobody was told.
    TransactionMined => "transaction.mined",
    /// Money is to be collected, which is written down, and nothing was signed.
    PayoutPlanned => "payout.planned",
    /// What came of collecting money is known, and not written down.
    PayoutUnwritten => "payout.unwritten",
    /// What came of collecting money is written down.
    PayoutWritten => "payout.written",
    /// A plugin's file is whole under its passing name.
    PluginFileUnnamed => "plugin.file-unnamed",
    /// The provider has done something for a plugin that lasts, and the plugin does not know yet.
    PluginHostCall => "plugin.host-call",
}

/// The process dies here, if a test wants that.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub fn reached(_: FaultPoint) {}

#[cfg(feature = "fault-points")]
pub use armed::reached;

#[cfg(feature = "fault-points")]
mod armed {
    use std::{
        collections::HashMap,
        path::PathBuf,
        sync::{LazyLock, Mutex, PoisonError},
    };

    use rustix::process::{Signal, getpid, kill_process};

    use super::{FILE_VARIABLE, FaultPoint};

    static FILE: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| std::env::var_os(FILE_VARIABLE).map(PathBuf::from));

    /// Since the file has its present content.
    #[derive(Default)]
    struct Visits {
        content: String,
        by_name: HashMap<&'static str, u64>,
    }

    /// The process dies here, if the file says so.
    pub fn reached(point: FaultPoint) {
        static VISITS: LazyLock<Mutex<Visits>> = LazyLock::new(Mutex::default);
        let Some(file) = &*FILE else { return };
        // Blocks for the time of reading one line, which is nothing to a test.
        let Ok(content) = std::fs::read_to_string(file) else { return };
        let mut visits = VISITS.lock().unwrap_or_else(PoisonError::into_inner);
        if visits.content != content {
            *visits = Visits { content, ..Visits::default() };
        }
        let visit = visits.by_name.entry(point.name()).or_default();
        *visit += 1;
        let visit = *visit;
        if visits.content.lines().any(|line| parse(line) == Some((point.name(), visit))) {
            let _ = std::fs::write(file.with_extension("died"), point.name());
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }

    fn parse(line: &str) -> Option<(&str, u64)> {
        match line.trim().split_once(' ') {
            Some((name, visit)) => Some((name, visit.parse().ok()?)),
            None => Some((line.trim(), 1)),
        }
    }
}
