//! Decides where one DER element ends and the next begins; definite, minimal lengths and one-byte tags only.
//! Trusts nothing: a length is compared with what is there before anything is sliced.
//! Never allocates and never recurses.

/// Tags that certificates use.
pub(crate) mod tag {
    pub(crate) const BOOLEAN: u8 = 0x01;
    pub(crate) const INTEGER: u8 = 0x02;
    pub(crate) const BIT_STRING: u8 = 0x03;
    pub(crate) const OCTET_STRING: u8 = 0x04;
    pub(crate) const OID: u8 = 0x06;
    pub(crate) const UTC_TIME: u8 = 0x17;
    pub(crate) const GENERALIZED_TIME: u8 = 0x18;
    pub(crate) const SEQUENCE: u8 = 0x30;
    /// `[n]`, primitive.
    pub(crate) const fn context(n: u8) -> u8 {
        0x80 | n
    }
    /// `[n]`, constructed.
    pub(crate) const fn context_constructed(n: u8) -> u8 {
        0xa0 | n
    }
}

/// What was wrong, and at which byte of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DerError {
    pub(crate) at: usize,
    pub(crate) what: &'static str,
}

/// One element.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Element<'a> {
    pub(crate) tag: u8,
    /// The content.
    pub(crate) value: &'a [u8],
    /// Tag, length and content.
    pub(crate) whole: &'a [u8],
    /// Where the content starts in the input.
    pub(crate) at: usize,
}

impl<'a> Element<'a> {
    /// Reads the content as elements.
    pub(crate) fn inside(&self) -> Reader<'a> {
        Reader {
            rest: self.value,
            at: self.at,
        }
    }
}

/// Walks over elements that lie one after another.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Self {
        Self { rest: input, at: 0 }
    }

    /// Where the next element starts in the input.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next element's tag, or `None` at the end.
    pub(crate) fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    /// The next element, whatever it is.
    pub(crate) fn any(&mut self) -> Result<Element<'a>, DerError> {
        let start = self.at;
        let fail = |what| DerError { at: start, what };
        let [tag, first, ..] = *self.rest else {
            return Err(fail("the data ends inside an element"));
        };
        if tag & 0x1f == 0x1f {
            return Err(fail(
                "a tag of several bytes does not occur in certificates",
            ));
        }
        let (header, len) = match first {
            0..0x80 => (2, usize::from(first)),
            0x81..=0x84 => {
                let count = usize::from(first & 0x7f);
                let bytes = self
                    .rest
                    .get(2..2 + count)
                    .ok_or(fail("the data ends inside a length"))?;
                let len = bytes.iter().fold(0u64, |len, &b| len << 8 | u64::from(b));
                if bytes[0] == 0 || len < 0x80 {
                    return Err(fail("a length is written longer than need be"));
                }
                let len = usize::try_from(len).map_err(|_| fail("a length is too large"))?;
                (2 + count, len)
            }
            0x80 => return Err(fail("indefinite lengths are not DER")),
            _ => return Err(fail("a length is too large")),
        };
        let end = header
            .checked_add(len)
            .filter(|end| *end <= self.rest.len())
            .ok_or(fail("a length reaches beyond the data"))?;
        let (whole, rest) = self.rest.split_at(end);
        self.rest = rest;
        self.at += end;
        Ok(Element {
            tag,
            value: &whole[header..],
            whole,
            at: start + header,
        })
    }

    /// The next element, which must have this tag.
    pub(crate) fn expect(&mut self, tag: u8, what: &'static str) -> Result<Element<'a>, DerError> {
        if self.peek() != Some(tag) {
            return Err(DerError { at: self.at, what });
        }
        self.any()
    }

    /// The next element if it has this tag.
    pub(crate) fn optional(&mut self, tag: u8) -> Result<Option<Element<'a>>, DerError> {
        if self.peek() == Some(tag) {
            self.any().map(Some)
        } else {
            Ok(None)
        }
    }

    /// Nothing may follow.
    pub(crate) fn end(&self, what: &'static str) -> Result<(), DerError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(DerError { at: self.at, what })
        }
    }
}

/// Cuts concatenated DER sequences apart.
pub(crate) fn split_sequences(input: &[u8]) -> Result<Vec<&[u8]>, DerError> {
    let mut reader = Reader::new(input);
    let mut parts = Vec::new();
    while !reader.is_empty() {
        parts.push(
            reader
                .expect(tag::SEQUENCE, "a certificate starts with a sequence")?
                .whole,
        );
    }
    Ok(parts)
}

#[cfg(test)]
mod tests;
