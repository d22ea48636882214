//! How verbose a log is, in SPIRE's words and in ours.
//! It trusts nothing: a level that is not specified is none. It never changes a log.

use tracing::level_filters::LevelFilter;

use crate::spire::api::types::LogLevel;

/// In SPIRE's words.
pub fn log_level_to_wire(level: LevelFilter) -> LogLevel {
    match level {
        // We have no record above an error.
        LevelFilter::OFF => LogLevel::Panic,
        LevelFilter::ERROR => LogLevel::Error,
        LevelFilter::WARN => LogLevel::Warn,
        LevelFilter::INFO => LogLevel::Info,
        LevelFilter::DEBUG => LogLevel::Debug,
        LevelFilter::TRACE => LogLevel::Trace,
    }
}

/// In our words; none if it is not specified.
pub fn log_level_from_wire(level: LogLevel) -> Option<LevelFilter> {
    match level {
        LogLevel::Panic | LogLevel::Fatal => Some(LevelFilter::OFF),
        LogLevel::Error => Some(LevelFilter::ERROR),
        LogLevel::Warn => Some(LevelFilter::WARN),
        LogLevel::Info => Some(LevelFilter::INFO),
        LogLevel::Debug => Some(LevelFilter::DEBUG),
        LogLevel::Trace => Some(LevelFilter::TRACE),
        LogLevel::Unspecified => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_level_of_ours_comes_back_the_same_and_an_unspecified_one_is_none() {
        for level in [
            LevelFilter::OFF,
            LevelFilter::ERROR,
            LevelFilter::WARN,
            LevelFilter::INFO,
            LevelFilter::DEBUG,
            LevelFilter::TRACE,
        ] {
            assert_eq!(log_level_from_wire(log_level_to_wire(level)), Some(level));
        }
        assert_eq!(log_level_from_wire(LogLevel::Unspecified), None);
    }
}
