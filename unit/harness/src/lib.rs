//! Runs the tests of a program that sets `harness = false`: those that need root, network namespaces, a kernel with some ability, or the
//! machine to themselves. What `cargo test` says of them and which arguments it takes are the built-in harness's (`libtest-mimic`), except:
//!
//! * A test that finds that it cannot run says so with [`ignore`], and is reported as ignored with the reason.
//! * `#[test(alone)]`: no other test of the program runs beside it. `#[test(light)]`: none but light ones do, which wait more than they
//!   compute and mind a machine that is busy. The others run first, several at a time, then the light ones.
//! * What a test prints with [`note!`], and what a panic says, is shown if the test fails, or with `--nocapture`.
//! * With `TEST_TIMES=FILE` in the environment each test adds a line to the file: how many milliseconds it took, and its name.
//! * Namespaces, processes and temporary files that carry [`leftovers::name`] are removed however the program ends, see [`leftovers`].
//!
//! ```ignore
//! use harness::test;
//!
//! #[test]
//! fn a_client_connects() { ... }
//!
//! fn main() -> std::process::ExitCode {
//!     harness::main()
//! }
//! ```

mod corpora;
pub mod leftovers;

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::Write;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::{Condvar, Mutex, OnceLock};
use std::time::Instant;
use std::{fmt, thread};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

pub use corpora::replay;
pub use harness_macros::test;
pub use inventory;

/// A test that [`macro@test`] has registered.
#[derive(Debug)]
pub struct Test {
    /// The path of its module, the program's name included.
    pub module: &'static str,
    /// The function's name.
    pub name: &'static str,
    /// Which tests may run beside it.
    pub company: Company,
    /// Whether it takes so long that it begins first.
    pub is_long: bool,
    /// The test.
    pub body: fn(),
}

/// Which tests may run beside a test: those of the same company, and beside one that wants nobody none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Company {
    /// Any others but the following.
    Any,
    /// Those that wait more than they compute and mind a machine that is busy.
    Light,
    /// None.
    Nobody,
}

impl Company {
    /// How many of them run at once, at most: all wait for timers and kernels more than they compute.
    fn at_once(self) -> usize {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        match self {
            Self::Any => 4 * processors,
            Self::Light => 6 * processors,
            Self::Nobody => 1,
        }
    }
}

inventory::collect!(Test);

/// Why a test did not run: the payload of the unwinding that [`ignore`] starts.
struct Ignored(String);

/// The company of the tests that run now, and their number.
static RUNNING: Mutex<(Company, usize)> = Mutex::new((Company::Any, 0));

/// Notified when one has ended.
static ONE_HAS_ENDED: Condvar = Condvar::new();

/// A test's turn, until it is dropped.
struct Turn;

impl Turn {
    /// Waits until a test with this company may run.
    fn wait(company: Company) -> Self {
        let mut running = RUNNING.lock().unwrap_or_else(|poison| poison.into_inner());
        while running.1 > 0 && (running.0 != company || running.1 >= company.at_once()) {
            running = ONE_HAS_ENDED.wait(running).unwrap_or_else(|poison| poison.into_inner());
        }
        *running = (company, running.1 + 1);
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut running = RUNNING.lock().unwrap_or_else(|poison| poison.into_inner());
        running.1 -= 1;
        ONE_HAS_ENDED.notify_all();
    }
}

/// Whether notes are kept until a test fails, once [`main`] runs.
static CAPTURES: OnceLock<bool> = OnceLock::new();

/// Notes of threads that are not a test's own, with the time: whose they are is not known, so the tests that fail then show them.
static OTHER_NOTES: Mutex<VecDeque<(Instant, String)>> = Mutex::new(VecDeque::new());

/// How many of them are kept.
const OTHER_NOTES_KEPT: usize = 1000;

thread_local! {
    /// What the test of this thread has noted.
    static NOTES: RefCell<Option<String>> = const { RefCell::new(None) };
    /// Whether the test of this thread runs alone.
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Ends the calling test, which is reported as ignored for this reason. May be called from a function or a scoped thread of the test, as
/// long as the thread's unwinding is passed on.
pub fn ignore(reason: impl fmt::Display) -> ! {
    // No panic hook runs: this is no failure.
    panic::resume_unwind(Box::new(Ignored(reason.to_string())))
}

/// Ends the calling test as ignored unless the program runs as root.
pub fn needs_root() {
    if !nix::unistd::geteuid().is_root() {
        ignore("needs root");
    }
}

/// Whether the caller may take the machine for itself: always outside of a test, and in a test that is marked `alone`.
#[must_use]
pub fn may_be_alone() -> bool {
    CAPTURES.get().is_none() || ALONE.get()
}

/// Prints a line about a test: at once with `--nocapture` or outside of a test program, otherwise only if the test fails.
#[macro_export]
macro_rules! note {
    ($($argument:tt)*) => { $crate::take_note(::std::format_args!($($argument)*)) };
}

/// What [`note!`] calls.
#[doc(hidden)]
pub fn take_note(line: fmt::Arguments) {
    if CAPTURES.get() != Some(&true) {
        return println!("{line}");
    }
    // A thread that ends may have no notes any more.
    let taken = NOTES.try_with(|notes| {
        let mut notes = notes.borrow_mut();
        notes.as_mut().map(|notes| *notes += &format!("{line}\n")).is_some()
    });
    if !taken.unwrap_or_default() {
        let mut others = OTHER_NOTES.lock().unwrap_or_else(|poison| poison.into_inner());
        others.push_back((Instant::now(), line.to_string()));
        if others.len() > OTHER_NOTES_KEPT {
            others.pop_front();
        }
    }
}

/// What threads that are not a test's own have noted since then.
fn other_notes(since: Instant) -> String {
    let others = OTHER_NOTES.lock().unwrap_or_else(|poison| poison.into_inner());
    others.iter().filter(|(when, _)| *when >= since).map(|(_, line)| format!("another thread: {line}\n")).collect()
}

/// The `main` of a test program: runs what is registered, as the arguments say.
///
/// # Panics
/// If the program handles signals itself.
#[must_use]
pub fn main() -> ExitCode {
    leftovers::guard();
    let mut arguments = Arguments::from_args();
    let captures = !arguments.nocapture && std::env::var_os("RUST_TEST_NOCAPTURE").is_none();
    CAPTURES.set(captures).expect("a program has one main");
    if captures {
        panic::set_hook(Box::new(|panic| {
            let backtrace = Backtrace::capture();
            let thread = thread::current();
            note!("thread {} {panic}", thread.name().unwrap_or("without a name"));
            if backtrace.status() == BacktraceStatus::Captured {
                note!("{backtrace}");
            }
        }));
    }
    if arguments.test_threads.is_none() {
        let threads = std::env::var("RUST_TEST_THREADS").ok().and_then(|threads| threads.parse().ok());
        arguments.test_threads = Some(threads.unwrap_or_else(|| Company::Light.at_once()));
    }
    let mut tests: Vec<&Test> = inventory::iter::<Test>.into_iter().collect();
    // Those that must be alone come last, so that nobody waits for them; those that take long come before the others beside which they run.
    tests.sort_by_key(|test| (test.company, !test.is_long, test.module, test.name));
    let trials = tests.into_iter().map(|test| {
        let module = test.module.split_once("::").map_or("", |(_, module)| module);
        let name = if module.is_empty() { test.name.to_owned() } else { format!("{module}::{}", test.name) };
        Trial::ignorable_test(name, move || run(test, captures))
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// Runs one test on the calling thread.
fn run(test: &Test, captures: bool) -> Result<Completion, Failed> {
    let _turn = Turn::wait(test.company);
    ALONE.set(test.company == Company::Nobody);
    NOTES.set(captures.then(String::new));
    let begin = Instant::now();
    let outcome = panic::catch_unwind(AssertUnwindSafe(test.body));
    if let Some(file) = std::env::var_os("TEST_TIMES") {
        note_time(test, begin, &file);
    }
    let notes = NOTES.take().unwrap_or_default();
    match outcome {
        Ok(()) => Ok(Completion::Completed),
        Err(payload) => match payload.downcast::<Ignored>() {
            Ok(ignored) => Ok(Completion::ignored_with(ignored.0)),
            Err(payload) => Err(Failed::from(format!("{}\n{notes}{}", message(&*payload), other_notes(begin)))),
        },
    }
}

/// Adds how long a test took, without its wait for others, to a file.
fn note_time(test: &Test, begin: Instant, file: &OsStr) {
    let (took, company) = (begin.elapsed().as_millis(), test.company);
    let line = format!("{took:7} {company:?} {}::{}\n", test.module, test.name);
    let file = OpenOptions::new().create(true).append(true).open(file);
    file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the file of TEST_TIMES can be written");
}

/// What a panic said.
fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}
