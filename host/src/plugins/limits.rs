//! Every bound that a plugin lives within, in one place, with its reason.
//!
//! A plugin is somebody else's code: whatever it does, it may cost its own calls and nothing else. So what a call takes is
//! bounded by the call (time, memory, handles, what it hands over), and where many calls add up, by the plugin (calls, memory,
//! log lines, stored values). Pure values; the engine, the calls and the imports apply them.

use std::time::Duration;

// --- The component ---------------------------------------------------------------------------------------------------

/// Largest file that is taken for a component. Those that bring the runtime of a language along have 10 to 20 MB.
pub const COMPONENT_BYTES: u64 = 64 << 20;

/// How long compiling a component may take. The bundled ones take a tenth of a second, in a debug build a few; one that brings
/// the runtime of a language along about ten.
pub const COMPILE: Duration = Duration::from_secs(120);

/// Core modules in a component that fits into the pool of instances: the plugin itself, and two that the tool which makes
/// components adds.
pub const CORE_INSTANCES_PER_COMPONENT: u32 = 4;
pub const MEMORIES_PER_COMPONENT: u32 = 1;
pub const TABLES_PER_COMPONENT: u32 = 2;

/// The same in one that does not fit there, for each call: a language's runtime has some forty modules, with one memory.
pub const CORE_INSTANCES_PER_CALL: usize = 256;
pub const MEMORIES_PER_CALL: usize = 4;
pub const TABLES_PER_CALL: usize = 64;

/// How long checking settings against a plugin's schema may take. A schema can be made to take for ever.
pub const CHECK_SETTINGS: Duration = Duration::from_secs(5);

/// Largest JSON Schema of a plugin's settings.
pub const SCHEMA_BYTES: usize = 256 << 10;

// --- Calls ---------------------------------------------------------------------------------------------------------

/// Calls under way at the same time, over all plugins. Each reserves 4 GiB of address space, though no memory.
pub const CONCURRENT_CALLS: u32 = 128;

/// Calls of one plugin under way at the same time: half of all, so that one plugin cannot starve the others.
pub const CALLS_PER_PLUGIN: usize = CONCURRENT_CALLS as usize / 2;

/// A call that computes longer than this takes turns with the others that do, so that they never keep every thread busy.
pub const UNDISTURBED: Duration = Duration::from_millis(5);

/// What the linear memory and the tables of one call may grow to. A backend that shuffles requests and small files needs a
/// tenth of it, the runtime of a language a third.
pub const MEMORY_PER_CALL_BYTES: usize = 128 << 20;

/// The same for all calls of one plugin together.
pub const MEMORY_PER_PLUGIN_BYTES: usize = 512 << 20;

/// What a guest may hand over at once: with one call of an import, or as the answer of an export. The host copies it.
pub const HANDED_OVER_BYTES: usize = 8 << 20;

/// Things of the host that one call may have open at once: connections, and everything of WASI.
pub const HANDLES_PER_CALL: usize = 64;

/// Streams among them.
pub const CONNECTIONS_PER_CALL: usize = 32;

/// Programs that one call may leave running.
pub const SPAWNED_PER_CALL: u32 = 16;

/// How long a call may take, and how much of that its guest may compute.
#[derive(Debug, Clone, Copy)]
pub struct CallLimits {
    /// From beginning to end, waiting included.
    pub deadline: Duration,
    /// Time in the guest's own code. Waiting for the host does not count.
    pub computing: Duration,
}

const fn seconds(deadline: u64, computing: u64) -> CallLimits {
    CallLimits {
        deadline: Duration::from_secs(deadline),
        computing: Duration::from_secs(computing),
    }
}

/// The limits of each function. Waiting is cheap; what the deadlines bound is how long somebody is left without an answer.
#[derive(Debug, Clone, Copy)]
pub struct Functions {
    /// Computed from the component alone.
    pub describe: CallLimits,
    /// May try accelerators and set up a firewall.
    pub probe: CallLimits,
    /// Answers what is known already.
    pub look_up: CallLimits,
    /// May download gigabytes over a slow line.
    pub create: CallLimits,
    pub start: CallLimits,
    /// Above the longest `boot-timeout` that is sensible anywhere.
    pub await_ready: CallLimits,
    /// On top of the grace that the machine is given.
    pub stop: CallLimits,
    pub delete: CallLimits,
    pub add_ssh_key: CallLimits,
    /// May wait for two blocks of a chain, and for a transaction to be replaced.
    pub publish: CallLimits,
    pub withdraw: CallLimits,
    /// `look-up`: asks a server, past its caches.
    pub entries: CallLimits,
    pub search: CallLimits,
    /// Hundreds of payments, from nodes that may have to be asked one after the other.
    pub read_payments: CallLimits,
    pub write_call: CallLimits,
}

pub const FUNCTIONS: Functions = Functions {
    describe: seconds(5, 1),
    probe: seconds(60, 2),
    look_up: seconds(30, 2),
    create: seconds(3600, 10),
    start: seconds(120, 5),
    await_ready: seconds(1800, 30),
    stop: seconds(60, 5),
    delete: seconds(120, 5),
    add_ssh_key: seconds(60, 5),
    publish: seconds(150, 5),
    withdraw: seconds(60, 5),
    entries: seconds(30, 2),
    search: seconds(60, 5),
    read_payments: seconds(40, 5),
    write_call: seconds(10, 2),
};

// --- Answers -------------------------------------------------------------------------------------------------------

/// What is kept of a text for people in a plugin's answer, such as an error's: the rest is cut off.
pub const TEXT_BYTES: usize = 4 << 10;

/// What is kept of a name, such as an image's alias.
pub const NAME_BYTES: usize = 256;

/// Images, findings of a probe, listings.
pub const LISTED: usize = 1000;

/// Machines in one answer: more than any computer runs.
pub const MACHINES: usize = 10_000;

// --- What a plugin leaves in the provider's log, database and disk ----------------------------------------------------

/// Longest message that is kept whole.
pub const LOG_MESSAGE_BYTES: usize = 8 << 10;

/// Lines that one call may log.
pub const LOG_LINES_PER_CALL: u32 = 300;

/// A line costs one of these, and one more for each further [`LOG_UNIT_BYTES`].
pub const LOG_UNITS_BURST: u32 = 2000;
pub const LOG_UNITS_PER_SECOND: u32 = 20;
pub const LOG_UNIT_BYTES: usize = 256;

/// How often the log says that lines were not kept.
pub const LOG_NOTICE_EVERY: Duration = Duration::from_secs(10);

/// Of `state`: one key, one value, and all of a plugin's together.
pub const STATE_KEY_BYTES: usize = 256;
pub const STATE_VALUE_BYTES: usize = 1 << 20;
pub const STATE_BYTES: u64 = 16 << 20;

/// Room on the disk that plugins leave free, for the provider's own database and log.
pub const DISK_RESERVE_BYTES: u64 = 128 << 20;

/// Most that is read of a file at once.
pub const FILE_READ_BYTES: u32 = 16 << 20;

/// Directories within directories: whoever walks through them goes down as far.
pub const DIRECTORY_DEPTH: usize = 64;

/// Names that are listed of one directory.
pub const DIRECTORY_ENTRIES: usize = 50_000;

// --- What a plugin fetches, runs and connects to -----------------------------------------------------------------------

/// Of one HTTP answer; longer ones are downloads.
pub const HTTP_BODY_BYTES: usize = 4 << 20;
pub const HTTP_HEADERS: usize = 100;
pub const HTTP_REDIRECTS: usize = 10;
pub const HTTP_CONNECT: Duration = Duration::from_secs(20);

/// A download whose server falls silent for so long is broken off; it can be resumed.
pub const HTTP_IDLE: Duration = Duration::from_secs(60);

/// A connection without a request is kept so long for the next one. Usual servers close theirs after five seconds.
pub const HTTP_KEPT: Duration = Duration::from_secs(2);

/// Nothing that a plugin fetches is larger: a bound for servers that never end.
pub const DOWNLOAD_BYTES: u64 = 64 << 30;

/// What is kept of a program's standard output, and of its standard error.
pub const PROGRAM_OUTPUT_BYTES: u64 = 1 << 20;

/// How long what a program wrote is still collected after it ended: a child of its own may hold the pipe open for ever.
pub const PROGRAM_OUTPUT_GRACE: Duration = Duration::from_secs(1);

/// Read from a stream at once.
pub const STREAM_READ_BYTES: usize = 1 << 20;

/// Random bytes at once.
pub const RANDOM_BYTES: usize = 64 << 10;

/// Of a message that the provider's key signs.
pub const SIGNED_BYTES: usize = 1 << 20;

/// Questions to a chain at once.
pub const EVM_REQUESTS: usize = 500;

/// Characters of a stage's name.
pub const STAGE_CHARS: usize = 100;

/// Reports of progress that one call may make as fast as it likes, and the least time between two after those.
pub const PROGRESS_BURST: u32 = 200;
pub const PROGRESS_EVERY: Duration = Duration::from_millis(100);
