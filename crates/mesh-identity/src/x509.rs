//! Decides what a certificate says: one strict walk over the DER (RFC 5280, version 3), nothing copied.
//! Trusts nothing; signatures are checked elsewhere (`verify.rs`).
//! Never guesses: an extension twice, a trailing byte, a time in the wrong form make the certificate unreadable.

use std::time::{Duration, SystemTime};

use crate::der::{DerError, Element, Reader, tag};

/// Most extensions that a certificate may carry.
const MAX_EXTENSIONS: usize = 48;

/// Why a certificate cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {at} of the certificate: {what}")]
pub struct CertificateError {
    /// Offset in the certificate's DER.
    pub at: usize,
    /// What was wrong there.
    pub what: &'static str,
}

impl From<DerError> for CertificateError {
    fn from(DerError { at, what }: DerError) -> Self {
        Self { at, what }
    }
}

type Result<T> = std::result::Result<T, CertificateError>;

/// A certificate as it reads, with slices of the DER it was read from.
#[derive(Debug)]
pub(crate) struct Certificate<'a> {
    pub(crate) serial: &'a [u8],
    pub(crate) subject: &'a [u8],
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    /// SubjectPublicKeyInfo, tag and length included.
    pub(crate) spki: &'a [u8],
    /// Where it starts in the certificate.
    pub(crate) spki_at: usize,
    pub(crate) san: Option<San<'a>>,
    pub(crate) key_usage: Option<KeyUsage>,
    pub(crate) eku: Option<Eku>,
    pub(crate) basic: Option<BasicConstraints>,
    pub(crate) name_constraints: Option<NameConstraints>,
    pub(crate) subject_key_id: Option<&'a [u8]>,
    /// OID of the first critical extension that we do not process.
    pub(crate) unknown_critical: Option<&'a [u8]>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct San<'a> {
    pub(crate) critical: bool,
    pub(crate) uris: usize,
    pub(crate) first_uri: &'a [u8],
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyUsage {
    pub(crate) critical: bool,
    pub(crate) digital_signature: bool,
    pub(crate) key_cert_sign: bool,
    pub(crate) crl_sign: bool,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Eku {
    pub(crate) server_auth: bool,
    pub(crate) client_auth: bool,
    pub(crate) any: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct BasicConstraints {
    pub(crate) critical: bool,
    pub(crate) ca: bool,
    pub(crate) path_len: Option<u32>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct NameConstraints {
    pub(crate) on_uris: bool,
}

impl<'a> Certificate<'a> {
    /// Reads exactly one certificate.
    pub(crate) fn parse(der: &'a [u8]) -> Result<Self> {
        let mut outer = Reader::new(der);
        let whole = outer.expect(tag::SEQUENCE, "a certificate is a sequence")?;
        outer.end("something follows the certificate")?;
        let mut parts = whole.inside();
        let tbs = parts.expect(tag::SEQUENCE, "the signed part is a sequence")?;
        let algorithm = parts.expect(tag::SEQUENCE, "the signature algorithm is a sequence")?;
        whole_bytes(parts.expect(tag::BIT_STRING, "the signature is a bit string")?)?;
        parts.end("something follows the signature")?;

        let mut tbs = tbs.inside();
        let version = tbs.expect(
            tag::context_constructed(0),
            "only version 3 certificates can be SVIDs; the version is missing",
        )?;
        if version.value != [tag::INTEGER, 1, 2] {
            return Err(fail(version.at, "only version 3 certificates can be SVIDs"));
        }
        let serial = integer(tbs.expect(tag::INTEGER, "the serial number is an integer")?)?;
        let inner = tbs.expect(tag::SEQUENCE, "the signature algorithm is a sequence")?;
        if inner.value != algorithm.value {
            return Err(fail(inner.at, "the two signature algorithms differ"));
        }
        tbs.expect(tag::SEQUENCE, "the issuer is a sequence")?;
        let validity = tbs.expect(tag::SEQUENCE, "the validity is a sequence")?;
        let mut times = validity.inside();
        let not_before = time(&mut times)?;
        let not_after = time(&mut times)?;
        times.end("something follows the two times")?;
        if not_after < not_before {
            return Err(fail(validity.at, "it ends before it begins"));
        }
        let subject = tbs
            .expect(tag::SEQUENCE, "the subject is a sequence")?
            .value;
        let spki_at = tbs.at();
        let spki = tbs.expect(tag::SEQUENCE, "the public key is a sequence")?;
        let mut key = spki.inside();
        key.expect(tag::SEQUENCE, "the key's algorithm is a sequence")?;
        whole_bytes(key.expect(tag::BIT_STRING, "the key is a bit string")?)?;
        key.end("something follows the key")?;
        let extensions = tbs.expect(
            tag::context_constructed(3),
            "extensions are expected here; SVIDs and their authorities always have some",
        )?;
        tbs.end("something follows the extensions")?;

        let mut certificate = Self {
            serial,
            subject,
            not_before,
            not_after,
            spki: spki.whole,
            spki_at,
            san: None,
            key_usage: None,
            eku: None,
            basic: None,
            name_constraints: None,
            subject_key_id: None,
            unknown_critical: None,
        };
        certificate.read_extensions(extensions)?;
        Ok(certificate)
    }

    fn read_extensions(&mut self, wrapper: Element<'a>) -> Result<()> {
        let mut wrapper = wrapper.inside();
        let list = wrapper.expect(tag::SEQUENCE, "the extensions are a sequence")?;
        wrapper.end("something follows the extensions")?;
        let mut list = list.inside();
        let mut seen: [&[u8]; MAX_EXTENSIONS] = [&[]; MAX_EXTENSIONS];
        let mut count = 0;
        while !list.is_empty() {
            let mut parts = list
                .expect(tag::SEQUENCE, "an extension is a sequence")?
                .inside();
            let oid = parts.expect(tag::OID, "an extension starts with its OID")?;
            if seen[..count].contains(&oid.value) {
                return Err(fail(oid.at, "an extension occurs twice"));
            }
            *seen
                .get_mut(count)
                .ok_or(fail(oid.at, "there are too many extensions"))? = oid.value;
            count += 1;
            let critical = match parts.optional(tag::BOOLEAN)? {
                Some(flag) => boolean(flag)?,
                None => false,
            };
            let content = parts.expect(tag::OCTET_STRING, "an extension holds an octet string")?;
            parts.end("something follows the extension's content")?;
            self.read_extension(oid.value, critical, content)?;
        }
        Ok(())
    }

    fn read_extension(
        &mut self,
        oid: &'a [u8],
        critical: bool,
        content: Element<'a>,
    ) -> Result<()> {
        let mut body = content.inside();
        // id-ce, 2.5.29
        match oid {
            [0x55, 0x1d, 14] if !critical => {
                self.subject_key_id = Some(
                    body.expect(tag::OCTET_STRING, "a key ID is an octet string")?
                        .value,
                );
            }
            [0x55, 0x1d, 15] => self.key_usage = Some(key_usage(critical, &mut body)?),
            [0x55, 0x1d, 17] => self.san = Some(san(critical, &mut body)?),
            [0x55, 0x1d, 19] => self.basic = Some(basic_constraints(critical, &mut body)?),
            [0x55, 0x1d, 30] => self.name_constraints = Some(name_constraints(&mut body)?),
            [0x55, 0x1d, 37] => self.eku = Some(eku(&mut body)?),
            _ => {
                // RFC 5280 4.2: what is critical and not processed refuses the certificate.
                // Key identifiers (14, 35) may not be critical at all.
                if critical && self.unknown_critical.is_none() {
                    self.unknown_critical = Some(oid);
                }
                return Ok(()); // its content is not for us
            }
        }
        body.end("something follows the content of an extension")
            .map_err(Into::into)
    }
}

fn fail(at: usize, what: &'static str) -> CertificateError {
    CertificateError { at, what }
}

/// The bytes of an integer, in the shortest form.
fn integer(element: Element<'_>) -> Result<&[u8]> {
    match element.value {
        [] => Err(fail(element.at, "an integer is empty")),
        [0, next, ..] if next & 0x80 == 0 => {
            Err(fail(element.at, "an integer has a needless zero"))
        }
        [0xff, next, ..] if next & 0x80 != 0 => {
            Err(fail(element.at, "an integer has a needless byte"))
        }
        value => Ok(value),
    }
}

/// Keys and signatures are bit strings of whole bytes, and of some.
fn whole_bytes(element: Element<'_>) -> Result<()> {
    match element.value {
        [0, _, ..] => Ok(()),
        _ => Err(fail(
            element.at,
            "a key or signature is not made of whole bytes",
        )),
    }
}

/// FALSE may be spelled out although it is the default: some encoders do, and its meaning is plain.
fn boolean(element: Element<'_>) -> Result<bool> {
    match element.value {
        [0] => Ok(false),
        [0xff] => Ok(true),
        _ => Err(fail(element.at, "a boolean is neither 0x00 nor 0xff")),
    }
}

fn key_usage(critical: bool, body: &mut Reader<'_>) -> Result<KeyUsage> {
    let bits = body.expect(tag::BIT_STRING, "key usage is a bit string")?;
    let (unused, first) = match *bits.value {
        [unused, first] => (unused, first),
        [unused, first, second] if second != 0 => {
            if unused > 7 || second & ((1u16 << unused) - 1) as u8 != 0 {
                return Err(fail(bits.at, "key usage has bits beyond its end"));
            }
            (0, first)
        }
        _ => return Err(fail(bits.at, "key usage has one or two bytes")),
    };
    if unused > 7 || first & ((1u16 << unused) - 1) as u8 != 0 {
        return Err(fail(bits.at, "key usage has bits beyond its end"));
    }
    Ok(KeyUsage {
        critical,
        digital_signature: first & 0x80 != 0,
        key_cert_sign: first & 0x04 != 0,
        crl_sign: first & 0x02 != 0,
    })
}

fn san<'a>(critical: bool, body: &mut Reader<'a>) -> Result<San<'a>> {
    let names = body.expect(tag::SEQUENCE, "alternative names are a sequence")?;
    if names.value.is_empty() {
        return Err(fail(names.at, "the alternative names are empty"));
    }
    let mut names = names.inside();
    let mut san = San {
        critical,
        uris: 0,
        first_uri: &[],
    };
    while !names.is_empty() {
        let name = names.any()?;
        match name.tag {
            // otherName, x400Address, directoryName, ediPartyName
            0xa0 | 0xa3 | 0xa4 | 0xa5 => {}
            // rfc822Name, dNSName, iPAddress, registeredID
            0x81 | 0x82 | 0x87 | 0x88 => {}
            0x86 => {
                if san.uris == 0 {
                    san.first_uri = name.value;
                }
                san.uris += 1;
            }
            _ => return Err(fail(name.at, "an alternative name of an unknown kind")),
        }
    }
    Ok(san)
}

fn basic_constraints(critical: bool, body: &mut Reader<'_>) -> Result<BasicConstraints> {
    let outer = body.expect(tag::SEQUENCE, "basic constraints are a sequence")?;
    let mut parts = outer.inside();
    let ca = match parts.optional(tag::BOOLEAN)? {
        Some(flag) => boolean(flag)?,
        None => false,
    };
    let path_len = match parts.optional(tag::INTEGER)? {
        None => None,
        Some(_) if !ca => return Err(fail(outer.at, "a path length without cA")),
        Some(len) => match *integer(len)? {
            [n] if n < 0x80 => Some(u32::from(n)),
            // Longer than any chain that we would follow: no limit at all.
            [first, ..] if first < 0x80 => Some(u32::MAX),
            _ => return Err(fail(len.at, "a path length is negative")),
        },
    };
    parts.end("something follows the path length")?;
    Ok(BasicConstraints {
        critical,
        ca,
        path_len,
    })
}

fn name_constraints(body: &mut Reader<'_>) -> Result<NameConstraints> {
    let outer = body.expect(tag::SEQUENCE, "name constraints are a sequence")?;
    let mut on_uris = false;
    let mut lists = outer.inside();
    if lists.is_empty() {
        return Err(fail(outer.at, "the name constraints are empty"));
    }
    for number in [0, 1] {
        let Some(list) = lists.optional(tag::context_constructed(number))? else {
            continue;
        };
        let mut subtrees = list.inside();
        if subtrees.is_empty() {
            return Err(fail(list.at, "a list of name constraints is empty"));
        }
        while !subtrees.is_empty() {
            let subtree = subtrees.expect(tag::SEQUENCE, "a name constraint is a sequence")?;
            on_uris |= subtree.inside().any()?.tag == tag::context(6);
        }
    }
    lists.end("something follows the name constraints")?;
    Ok(NameConstraints { on_uris })
}

fn eku(body: &mut Reader<'_>) -> Result<Eku> {
    /// 1.3.6.1.5.5.7.3
    const ID_KP: [u8; 7] = [0x2b, 6, 1, 5, 5, 7, 3];
    const ANY: [u8; 4] = [0x55, 0x1d, 37, 0];
    let list = body.expect(tag::SEQUENCE, "extended key usage is a sequence")?;
    if list.value.is_empty() {
        return Err(fail(list.at, "the extended key usage is empty"));
    }
    let mut list = list.inside();
    let mut eku = Eku::default();
    while !list.is_empty() {
        let purpose = list
            .expect(tag::OID, "an extended key usage is an OID")?
            .value;
        match purpose.strip_prefix(&ID_KP) {
            Some([1]) => eku.server_auth = true,
            Some([2]) => eku.client_auth = true,
            _ => eku.any |= purpose == ANY,
        }
    }
    Ok(eku)
}

/// UTCTime up to 2049, GeneralizedTime from 2050, both in whole seconds and UTC (RFC 5280 4.1.2.5).
fn time(times: &mut Reader<'_>) -> Result<SystemTime> {
    let element = times.any()?;
    let at = element.at;
    let malformed = || fail(at, "a time is not written as RFC 5280 asks");
    let (year, rest) = match (element.tag, element.value.len()) {
        (tag::UTC_TIME, 13) => match two_digits(element.value).ok_or_else(malformed)? {
            yy @ 0..50 => (2000 + yy, &element.value[2..]),
            yy => (1900 + yy, &element.value[2..]),
        },
        (tag::GENERALIZED_TIME, 15) => {
            let century = two_digits(element.value).ok_or_else(malformed)?;
            let year = century * 100 + two_digits(&element.value[2..]).ok_or_else(malformed)?;
            if year < 2050 {
                return Err(fail(at, "a time before 2050 is not written as UTCTime"));
            }
            (year, &element.value[4..])
        }
        _ => return Err(malformed()),
    };
    let mut fields = [0i64; 5];
    for (i, field) in fields.iter_mut().enumerate() {
        *field = two_digits(&rest[2 * i..]).ok_or_else(malformed)?;
    }
    let [month, day, hour, minute, second] = fields;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_in_month = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return Err(malformed()),
    };
    let in_range = (1..=days_in_month).contains(&day) && hour < 24 && minute < 60 && second < 60;
    if !in_range || rest[10] != b'Z' {
        return Err(malformed());
    }
    // Days since 1970-01-01 in the Gregorian calendar, counting years from March.
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second;
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    }
    .ok_or_else(malformed)
}

fn two_digits(text: &[u8]) -> Option<i64> {
    match *text {
        [a @ b'0'..=b'9', b @ b'0'..=b'9', ..] => {
            Some(i64::from(a - b'0') * 10 + i64::from(b - b'0'))
        }
        _ => None,
    }
}

/// Whether a validity is over. X.509 counts in whole seconds, and the last one belongs to it to its end.
pub(crate) fn has_ended(not_after: SystemTime, now: SystemTime) -> bool {
    now.duration_since(not_after)
        .is_ok_and(|since| since >= Duration::from_secs(1))
}

/// An OID in dots and numbers, for messages.
pub(crate) fn oid_text(oid: &[u8]) -> String {
    let mut numbers: Vec<u128> = Vec::new();
    let mut number = 0u128;
    for &b in oid {
        number = number << 7 | u128::from(b & 0x7f);
        if number >> 112 != 0 {
            return "with an absurd number in it".into();
        }
        if b & 0x80 == 0 {
            numbers.push(number);
            number = 0;
        }
    }
    let mut parts = Vec::with_capacity(numbers.len() + 1);
    if let Some((&first, rest)) = numbers.split_first() {
        let top = (first / 40).min(2);
        parts.extend([top.to_string(), (first - top * 40).to_string()]);
        parts.extend(rest.iter().map(u128::to_string));
    }
    parts.join(".")
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for b in bytes {
        text.push(char::from(DIGITS[usize::from(b >> 4)]));
        text.push(char::from(DIGITS[usize::from(b & 15)]));
    }
    text
}

/// A serial number in lower-case hex, without the zero that only keeps it positive.
pub(crate) fn serial_text(serial: &[u8]) -> String {
    hex(serial
        .strip_prefix(&[0])
        .filter(|rest| !rest.is_empty())
        .unwrap_or(serial))
}

#[cfg(test)]
mod tests;
