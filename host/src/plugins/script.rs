//! A machine that exists in a test alone: what programs, servers and the clock answer to a plugin, as its author wrote it down.
//!
//! The imports ask a [`Script`], where one is set, at the point where they would turn to the machine: grants, bounds and the
//! conversion of values are the real ones. Only [`harness`](super::harness) sets one; a provider never does.
//!
//! Lines are tried in the order they were written, and the first that fits answers. What no line fits is an error for the
//! plugin and is kept, so that a test can say that nothing unexpected was asked.

use std::{
    collections::BTreeSet,
    fmt,
    fs::File,
    io::Write,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::bindings::{
    Error,
    golem::provider::{
        http::{Method, Request, Response},
        process::{Background, Command, ExitStatus, Output, Running},
    },
};

/// What answers in the machine's place.
///
/// ```
/// use golem_provider::plugins::harness::{Answer, Script};
/// let script = Script::new()
///     .on("qemu-img", &["info", "--output=json", "*"], Answer::success().stdout("{}"))
///     .on("qemu-img", &["create", ".."], Answer::status(1).stderr("no space left"))
///     .real_program("id")
///     .simulated_clock();
/// ```
#[derive(Default)]
pub struct Script {
    lines: Vec<Line>,
    installed: BTreeSet<String>,
    real_programs: BTreeSet<String>,
    pages: Option<Vec<Page>>,
    clock: Option<SimulatedClock>,
    played: Mutex<Played>,
}

/// What became of a script up to now.
#[derive(Default)]
struct Played {
    asked: Vec<Asked>,
    running: Vec<Running>,
    /// How often each line answered.
    answered: Vec<u32>,
    last_pid: u32,
}

/// Something that the plugin asked of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Such as `qemu-img info --output=json disk`, or `GET https://example.org/`.
    pub what: String,
    /// What the program got as its input, or the server as the body.
    pub input: Vec<u8>,
    /// Had the script an answer?
    pub expected: bool,
}

impl fmt::Display for Asked {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.what)
    }
}

struct Line {
    program: String,
    arguments: Vec<String>,
    answer: Answer,
}

/// How a program ends.
#[derive(Debug, Clone)]
pub struct Answer {
    status: i32,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    delay: Duration,
    times: Option<u32>,
}

impl Answer {
    /// Exit status 0, and not a word.
    pub fn success() -> Self {
        Self::status(0)
    }

    /// This exit status, and not a word.
    pub fn status(status: i32) -> Self {
        Self { status, stdout: Vec::new(), stderr: Vec::new(), delay: Duration::ZERO, times: None }
    }

    /// What it writes to standard output.
    #[must_use]
    pub fn stdout(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdout = bytes.into();
        self
    }

    /// What it writes to standard error.
    #[must_use]
    pub fn stderr(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stderr = bytes.into();
        self
    }

    /// How long it takes. One that takes longer than the plugin allows is killed, as the provider does.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// This answer only so often; then the next line that fits.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }
}

struct Page {
    method: Method,
    url: String,
    reply: Reply,
}

/// What a server answers.
#[derive(Debug, Clone)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    delay: Duration,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), delay: Duration::ZERO }
    }

    /// Status 200.
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..Self::status(200) }
    }

    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }
}

/// Writing a script.
impl Script {
    /// A machine on which nothing is installed. Its clock is the real one, and HTTP goes to real servers, until
    /// [`simulated_clock`](Self::simulated_clock) and [`get`](Self::get) say otherwise.
    pub fn new() -> Self {
        Self::default()
    }

    /// How a program answers to arguments. `*` in one stands for any characters, and `..` as the last for any further
    /// arguments. The program counts as installed.
    #[must_use]
    pub fn on(mut self, program: &str, arguments: &[&str], answer: Answer) -> Self {
        self.lines.push(Line {
            program: program.to_owned(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            answer,
        });
        self.installed(program)
    }

    /// A program that can be found.
    #[must_use]
    pub fn installed(mut self, program: &str) -> Self {
        self.installed.insert(program.to_owned());
        self
    }

    /// A program of the real machine, which really runs.
    #[must_use]
    pub fn real_program(mut self, program: &str) -> Self {
        self.real_programs.insert(program.to_owned());
        self
    }

    /// What a server answers to GET; `*` in the address stands for any characters. From the first of these on, no real server
    /// is asked.
    #[must_use]
    pub fn get(self, url: &str, reply: Reply) -> Self {
        self.page(Method::Get, url, reply)
    }

    /// The same for POST.
    #[must_use]
    pub fn post(self, url: &str, reply: Reply) -> Self {
        self.page(Method::Post, url, reply)
    }

    fn page(mut self, method: Method, url: &str, reply: Reply) -> Self {
        let page = Page { method, url: url.to_owned(), reply };
        self.pages.get_or_insert_default().push(page);
        self
    }

    /// No server answers at all.
    #[must_use]
    pub fn no_http(mut self) -> Self {
        self.pages.get_or_insert_default();
        self
    }

    /// Waiting takes no time: the plugin's clock is set forward instead.
    #[must_use]
    pub fn simulated_clock(mut self) -> Self {
        self.clock = Some(SimulatedClock::default());
        self
    }
}

/// Looking at what became of it.
impl Script {
    fn played(&self) -> MutexGuard<'_, Played> {
        self.played.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that was asked, in order.
    pub fn asked(&self) -> Vec<Asked> {
        self.played().asked.clone()
    }

    /// What was asked and had no answer.
    pub fn unexpected(&self) -> Vec<Asked> {
        self.played().asked.iter().filter(|asked| !asked.expected).cloned().collect()
    }

    /// The lines that never answered: program and arguments as they were written.
    pub fn unused(&self) -> Vec<String> {
        let played = self.played();
        let unused = self
            .lines
            .iter()
            .enumerate()
            .filter(|(index, _)| played.answered.get(*index).copied().unwrap_or_default() == 0);
        unused.map(|(_, line)| shown(&line.program, &line.arguments)).collect()
    }

    /// Ends a program that the plugin left running, as if it had crashed. Answers whether there was one.
    pub fn crash(&self, program: &str) -> bool {
        let mut played = self.played();
        let before = played.running.len();
        played.running.retain(|running| running.program != program);
        played.running.len() < before
    }
}

/// Asked by the imports.
impl Script {
    pub(super) fn plays_program(&self, program: &str) -> bool {
        !self.real_programs.contains(program)
    }

    pub(super) fn plays_http(&self) -> bool {
        self.pages.is_some()
    }

    pub(super) fn clock(&self) -> Option<&SimulatedClock> {
        self.clock.as_ref()
    }

    pub(super) fn find(&self, program: &str) -> Result<String, Error> {
        if self.installed.contains(program) {
            return Ok(format!("/usr/bin/{program}"));
        }
        Err(Error::NotFound(format!("`{program}` is not installed on this machine")))
    }

    pub(super) async fn run(&self, command: Command) -> Result<Output, Error> {
        self.find(&command.program)?;
        let answer = self.answer(&command.program, &command.arguments, command.stdin)?;
        let limit = Duration::from_millis(command.timeout_ms.into());
        self.wait(answer.delay.min(limit)).await;
        if answer.delay > limit {
            return Err(Error::DeadlineExceeded(format!(
                "`{}` did not end within {} s and was killed",
                command.program,
                limit.as_secs_f32()
            )));
        }
        Ok(Output {
            status: ExitStatus::Code(answer.status),
            stdout: answer.stdout,
            stderr: answer.stderr,
        })
    }

    /// What the answer writes goes to `output`; with a status other than 0 the program has ended at once.
    pub(super) fn spawn(&self, command: Background, mut output: File) -> Result<u32, Error> {
        self.find(&command.program)?;
        let answer = self.answer(&command.program, &command.arguments, Vec::new())?;
        output.write_all(&answer.stdout).and_then(|()| output.write_all(&answer.stderr)).map_err(
            |error| Error::Internal(format!("cannot write {}: {error}", command.output)),
        )?;
        let mut played = self.played();
        // Beyond every real process id, so that none of this machine's can be meant.
        let pid = played.last_pid.max(1 << 30) + 1;
        played.last_pid = pid;
        if answer.status == 0 {
            let Background { program, arguments, .. } = command;
            played.running.push(Running { pid, program, arguments });
        }
        Ok(pid)
    }

    pub(super) fn processes(&self) -> Vec<Running> {
        self.played().running.clone()
    }

    /// Was it one of the script's?
    pub(super) fn kill(&self, pid: u32) -> bool {
        let mut played = self.played();
        let before = played.running.len();
        played.running.retain(|running| running.pid != pid);
        played.running.len() < before
    }

    pub(super) async fn send(&self, request: &Request) -> Result<Response, Error> {
        let reply = self.reply(request.method, &request.url, &request.body)?;
        let limit = Duration::from_millis(request.timeout_ms.into());
        self.wait(reply.delay.min(limit)).await;
        if reply.delay > limit {
            return Err(Error::DeadlineExceeded(format!(
                "{} did not answer within {} s",
                request.url,
                limit.as_secs_f32()
            )));
        }
        Ok(Response { status: reply.status, headers: reply.headers, body: reply.body })
    }

    /// The bytes that a download gets.
    pub(super) async fn body(&self, url: &str) -> Result<Vec<u8>, Error> {
        let reply = self.reply(Method::Get, url, &[])?;
        self.wait(reply.delay).await;
        match reply.status {
            200..=299 => Ok(reply.body),
            404 | 410 => Err(Error::NotFound(format!("{url} answers {}", reply.status))),
            status => Err(Error::Unavailable(format!("{url} answers {status}"))),
        }
    }

    async fn wait(&self, delay: Duration) {
        match &self.clock {
            Some(clock) => clock.sleep(delay).await,
            None => tokio::time::sleep(delay).await,
        }
    }

    fn answer(&self, program: &str, arguments: &[String], input: Vec<u8>) -> Result<Answer, Error> {
        let mut played = self.played();
        played.answered.resize(self.lines.len(), 0);
        let found = self.lines.iter().zip(&mut played.answered).find(|(line, answered)| {
            line.program == program
                && fit_all(&line.arguments, arguments)
                && line.answer.times.is_none_or(|times| **answered < times)
        });
        let answer = found.map(|(line, answered)| {
            *answered += 1;
            line.answer.clone()
        });
        let what = shown(program, arguments);
        let unknown =
            || Error::Internal(format!("the script of this test has no answer for `{what}`"));
        let result = answer.ok_or_else(unknown);
        played.asked.push(Asked { what, input, expected: result.is_ok() });
        result
    }

    fn reply(&self, method: Method, url: &str, body: &[u8]) -> Result<Reply, Error> {
        let page =
            self.pages.iter().flatten().find(|page| page.method == method && fits(&page.url, url));
        let name = match method {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
        };
        let what = format!("{name} {url}");
        let unknown = || {
            Error::Unavailable(format!(
                "{url} cannot be reached: the script of this test has no answer for `{what}`"
            ))
        };
        let result = page.map(|page| page.reply.clone()).ok_or_else(unknown);
        self.played().asked.push(Asked { what, input: body.to_vec(), expected: result.is_ok() });
        result
    }
}

fn shown(program: &str, arguments: &[String]) -> String {
    [program].into_iter().chain(arguments.iter().map(String::as_str)).collect::<Vec<_>>().join(" ")
}

fn fit_all(patterns: &[String], arguments: &[String]) -> bool {
    let (patterns, more) = match patterns.split_last() {
        Some((last, before)) if last == ".." => (before, true),
        _ => (patterns, false),
    };
    (arguments.len() == patterns.len() || more && arguments.len() > patterns.len())
        && patterns.iter().zip(arguments).all(|(pattern, argument)| fits(pattern, argument))
}

/// Does the text fit a pattern in which `*` stands for any characters?
fn fits(pattern: &str, text: &str) -> bool {
    let Some((begin, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(begin) else { return false };
    let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in middle.split('*').filter(|part| !part.is_empty()) {
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
    }
    text.ends_with(end)
}

/// A clock that waiting sets forward.
#[derive(Default)]
pub(super) struct SimulatedClock {
    passed_ms: AtomicU64,
}

/// When a simulated clock begins: 2030-01-01 UTC.
const BEGIN_UNIX_MS: u64 = 1_893_456_000_000;

impl SimulatedClock {
    pub fn unix_ms(&self) -> u64 {
        BEGIN_UNIX_MS + self.monotonic_ms()
    }

    pub fn monotonic_ms(&self) -> u64 {
        self.passed_ms.load(Ordering::Relaxed)
    }

    pub async fn sleep(&self, duration: Duration) {
        let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        self.passed_ms.fetch_add(ms, Ordering::Relaxed);
        // A plugin that waits for ever has to be able to be given up.
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, text) in [
            ("a", "a"),
            ("*", ""),
            ("*", "ab"),
            ("a*c", "abc"),
            ("a*b*c", "a-b-b-c"),
            ("*.img", "x.img"),
        ] {
            assert!(fits(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("a", "ab"), ("a*c", "ab"), ("ab*ba", "aba"), ("a*b*c", "acb")] {
            assert!(!fits(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn further_arguments_fit_only_where_they_are_allowed() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(fit_all(&words("info *"), &words("info disk")));
        assert!(!fit_all(&words("info *"), &words("info disk more")));
        assert!(fit_all(&words("info .."), &words("info disk more")));
        assert!(fit_all(&words("info .."), &words("info")));
        assert!(!fit_all(&words("info *"), &words("info")));
    }

    #[tokio::test]
    async fn answers_come_in_the_order_they_were_written() {
        let script = Script::new().on("multipass", &["info", "a"], Answer::status(2).times(1)).on(
            "multipass",
            &["info", "*"],
            Answer::success().stdout("running"),
        );
        let ask = |name: &str| {
            script.run(Command {
                program: "multipass".into(),
                arguments: vec!["info".into(), name.into()],
                stdin: Vec::new(),
                timeout_ms: 1000,
            })
        };
        assert!(matches!(ask("a").await.unwrap().status, ExitStatus::Code(2)));
        assert_eq!(ask("a").await.unwrap().stdout, b"running");
        assert!(script.unused().is_empty() && script.unexpected().is_empty());
        assert!(ask("a b").await.is_ok());
        let unknown = Command {
            program: "multipass".into(),
            arguments: vec!["launch".into()],
            stdin: b"#cloud-config".to_vec(),
            timeout_ms: 1000,
        };
        assert!(matches!(script.run(unknown).await, Err(Error::Internal(_))));
        assert_eq!(script.unexpected()[0].to_string(), "multipass launch");
        assert_eq!(script.unexpected()[0].input, b"#cloud-config");
    }
}
