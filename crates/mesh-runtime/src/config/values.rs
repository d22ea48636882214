//! Decides how lengths of time and sizes are written: always with a unit, so that nobody can mistake seconds for milliseconds.
//! Trusts nothing; never rounds, never wraps: what does not fit is refused.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, json_schema};
use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(super) const A_DURATION: &str = "a duration with a unit, such as `90s` or `1h30m`";
pub(super) const A_SIZE: &str = "a size with a unit, such as `64MiB`";

/// Why a duration or size cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseValueError {
    /// There is no text.
    #[error("it is empty")]
    Empty,
    /// A number has no unit behind it.
    #[error("a number has no unit")]
    NoUnit,
    /// A unit is not one of ours.
    #[error("a unit is unknown")]
    UnknownUnit,
    /// A unit stands twice or after a smaller one.
    #[error("the units are not in falling order")]
    Order,
    /// The number does not fit.
    #[error("it is too large")]
    TooLarge,
    /// Something else than digits stands where a number should be.
    #[error("a number is missing")]
    NoNumber,
}

/// A length of time: `500ms`, `90s`, `1h30m`, `7d`. Zero is `0s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HumanDuration(Duration);

const TIME_UNITS: &[(&str, u64)] = &[
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];
const SIZE_UNITS: &[(&str, u64)] = &[
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

impl HumanDuration {
    /// From whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// From whole milliseconds.
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(Duration::from_millis(milliseconds))
    }

    /// The value for std and tokio.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl Deref for HumanDuration {
    type Target = Duration;

    fn deref(&self) -> &Duration {
        &self.0
    }
}

impl From<Duration> for HumanDuration {
    /// Less than a millisecond is cut off.
    fn from(duration: Duration) -> Self {
        Self(Duration::from_millis(
            u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        ))
    }
}

impl From<HumanDuration> for Duration {
    fn from(duration: HumanDuration) -> Self {
        duration.0
    }
}

impl FromStr for HumanDuration {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<Self, ParseValueError> {
        parse(text, TIME_UNITS).map(Self::from_millis)
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if left == 0 {
            return f.write_str("0s");
        }
        for (unit, size) in TIME_UNITS {
            // `48h` reads better than `2d`, and that is how lifetimes are written; days only when they are many.
            if *unit == "d" && (left % size != 0 || left < 7 * size) {
                continue;
            }
            if left >= *size {
                write!(f, "{}{unit}", left / size)?;
                left %= size;
            }
        }
        Ok(())
    }
}

/// A number of bytes: `512B`, `64KiB`, `64MiB`, `1GiB`. Zero is `0B`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

impl ByteSize {
    /// From bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// From MiB.
    pub const fn from_mib(mib: u32) -> Self {
        Self((mib as u64) << 20)
    }

    /// The number of bytes.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }

    /// The number of bytes for a buffer; what does not fit into memory becomes the largest number.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for ByteSize {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<Self, ParseValueError> {
        parse(text, SIZE_UNITS).map(Self)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, size) = SIZE_UNITS
            .iter()
            .find(|(_, size)| self.0 >= *size && self.0.is_multiple_of(*size))
            .copied()
            .unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / size)
    }
}

fn parse(text: &str, units: &[(&str, u64)]) -> Result<u64, ParseValueError> {
    if text.is_empty() {
        return Err(ParseValueError::Empty);
    }
    let (mut rest, mut total, mut first_allowed) = (text, 0_u64, 0);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        if number.is_empty() {
            return Err(ParseValueError::NoNumber);
        }
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at(letters);
        if unit.is_empty() {
            return Err(if after.is_empty() {
                ParseValueError::NoUnit
            } else {
                ParseValueError::NoNumber
            });
        }
        let index = units
            .iter()
            .position(|(name, _)| *name == unit)
            .ok_or(ParseValueError::UnknownUnit)?;
        if index < first_allowed {
            return Err(ParseValueError::Order);
        }
        first_allowed = index + 1;
        let number: u64 = number.parse().map_err(|_| ParseValueError::TooLarge)?;
        total = number
            .checked_mul(units[index].1)
            .and_then(|n| total.checked_add(n))
            .ok_or(ParseValueError::TooLarge)?;
        rest = after;
    }
    Ok(total)
}

macro_rules! as_text_with_a_unit {
    ($type:ty, $expected:expr, $name:literal, $pattern:literal, $example:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(|error| match error {
                            ParseValueError::NoUnit => E::invalid_type(Unexpected::Other("a number"), &self),
                            error => E::custom(format_args!("{error}; expected {}", $expected)),
                        })
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "examples": [$example] })
            }
        }
    };
}

as_text_with_a_unit!(
    HumanDuration,
    A_DURATION,
    "Duration",
    r"^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$",
    "1h30m"
);
as_text_with_a_unit!(
    ByteSize,
    A_SIZE,
    "ByteSize",
    r"^([0-9]+GiB)?([0-9]+MiB)?([0-9]+KiB)?([0-9]+B)?$",
    "64MiB"
);
