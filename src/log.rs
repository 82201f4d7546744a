//! The log on standard error, whose level can be changed while the daemon runs.

use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;

use crate::config::LogLevel;

/// The environment's word on the level, for as long as the configuration has none.
const VARIABLE: &str = "ONCACHE_LOG";

/// Puts another filter in the place of the present one.
type Replace = Box<dyn Fn(EnvFilter) + Send + Sync>;

static REPLACE: OnceLock<Replace> = OnceLock::new();

/// Begins to log. Without effect if something has begun already.
pub fn to_stderr() {
    // Either format has a type of its own, and so has its handle.
    macro_rules! begin {
        ($format:expr) => {{
            let log = $format
                .with_env_filter(filter(None))
                .with_filter_reloading();
            let handle = log.reload_handle();
            // Fails only once the subscriber is gone, and it never goes.
            let replace = move |filter| drop(handle.reload(filter));
            if REPLACE.set(Box::new(replace)).is_ok() {
                log.init();
            }
        }};
    }
    let format = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false);
    // The journal has a clock of its own.
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        begin!(format.without_time());
    } else {
        begin!(format);
    }
}

/// Sets the level: what the configuration says or, if it says nothing, what `ONCACHE_LOG` says.
pub fn set_level(level: Option<LogLevel>) {
    if let Some(replace) = REPLACE.get() {
        replace(filter(level));
    }
}

fn filter(level: Option<LogLevel>) -> EnvFilter {
    match level {
        Some(level) => EnvFilter::new(level.name()),
        None => EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new("info")),
    }
}
