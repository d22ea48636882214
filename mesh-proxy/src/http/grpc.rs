//! The messages of a gRPC call, counted from the bytes of its body (gRPC over HTTP/2: a flag, four bytes of length, the message).
//! Trusts nothing in them: a length is counted down and never allocated.
//! Never looks into a message.

/// The messages of one direction.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    prefix: [u8; 5],
    known: usize,
    left: usize,
    count: u64,
}

impl Messages {
    /// The next bytes of the body.
    pub(crate) fn pass(&mut self, mut data: &[u8]) {
        while let Some(first) = data.first() {
            if self.left > 0 {
                let passed = self.left.min(data.len());
                self.left -= passed;
                data = &data[passed..];
                continue;
            }
            self.prefix[self.known] = *first;
            self.known += 1;
            data = &data[1..];
            if self.known == self.prefix.len() {
                let [_, length @ ..] = self.prefix;
                self.left = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                self.known = 0;
                self.count += 1;
            }
        }
    }

    /// Messages that have begun.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_their_bytes_are_cut() {
        let mut body = Vec::new();
        for length in [0_u32, 3, 300] {
            body.push(0);
            body.extend_from_slice(&length.to_be_bytes());
            body.extend(std::iter::repeat_n(7, length as usize));
        }
        for piece in [1, 2, 4, 7, 1000] {
            let mut messages = Messages::default();
            body.chunks(piece).for_each(|piece| messages.pass(piece));
            assert_eq!(messages.count(), 3, "in pieces of {piece}");
        }
    }

    #[test]
    fn a_length_that_lies_is_one_message() {
        let mut messages = Messages::default();
        messages.pass(&[0, 255, 255, 255, 255]);
        messages.pass(&[0; 4096]);
        assert_eq!(messages.count(), 1);
    }
}
