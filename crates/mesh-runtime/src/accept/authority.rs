//! Decides what becomes of the path of a socket where HTTP/2 wants a host: gRPC's C core (Python, C++, Ruby, PHP) names it as the
//! `:authority` of its requests (`run%2Fagent.sock`), Java's older clients as it is, and h2 ends such a stream before any code of
//! ours sees it. Byte by byte on the way in, `%` and `/` of that one value become `.`, so that nothing changes its length.
//! Trusts nothing: what it does not understand it passes on as it is, and h2 judges it. Nothing decides by an `:authority` here.

/// What a client sends before its first frame.
const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

/// The head of a frame.
const HEAD: usize = 9;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

const NAME: &[u8] = b":authority";
/// Its place in HPACK's static table (RFC 7541, appendix A).
const INDEX: u64 = 1;

/// The filter of one connection's incoming bytes; for doors on Unix sockets.
#[derive(Debug)]
pub struct PathAuthority {
    place: Place,
    block: Block,
}

/// Where in the frames the next byte is.
#[derive(Debug)]
enum Place {
    Preface(usize),
    Head(usize, [u8; HEAD]),
    /// So many bytes of no interest, and then what is left of a frame's block.
    Skip(usize, Fragment),
    /// The length of the padding.
    Padding(Fragment),
    Block(Fragment),
    /// It was not understood; everything passes.
    Lost,
}

/// The next frame begins.
const NEXT: Place = Place::Head(0, [0; HEAD]);

/// A part of a block of headers.
#[derive(Clone, Copy, Debug)]
struct Fragment {
    block: usize,
    padding: usize,
    priority: bool,
    ends: bool,
}

/// Where in a block of headers the next byte is (RFC 7541, section 6).
#[derive(Debug)]
enum Block {
    Field,
    /// The rest of an integer, with what was read of it and what follows.
    Integer(u64, u32, Then),
    NameLength,
    Name {
        left: u64,
        seen: usize,
        same: bool,
    },
    ValueLength {
        authority: bool,
    },
    Value {
        left: u64,
        authority: bool,
    },
}

/// What follows an integer.
#[derive(Clone, Copy, Debug)]
enum Then {
    Field,
    /// It was the index of a name.
    Indexed,
    /// It was the length of a name; coded by Huffman, it is not looked at.
    Name {
        plain: bool,
    },
    Value {
        authority: bool,
    },
}

impl Default for PathAuthority {
    fn default() -> Self {
        Self {
            place: Place::Preface(PREFACE),
            block: Block::Field,
        }
    }
}

impl PathAuthority {
    /// Takes the next bytes of the connection, in their order.
    pub fn pass(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let taken = self.step(bytes);
            bytes = &mut bytes[taken..];
        }
    }

    /// Takes at least one byte; how many.
    fn step(&mut self, bytes: &mut [u8]) -> usize {
        match &mut self.place {
            Place::Lost => bytes.len(),
            Place::Preface(left) => {
                let taken = bytes.len().min(*left);
                *left -= taken;
                if *left == 0 {
                    self.place = NEXT;
                }
                taken
            }
            Place::Head(have, head) => {
                head[*have] = bytes[0];
                *have += 1;
                if *have == HEAD {
                    self.place = after_head(head, &mut self.block);
                }
                1
            }
            Place::Skip(left, then) => {
                let taken = bytes.len().min(*left);
                *left -= taken;
                if *left == 0 {
                    self.place = enter(*then, &mut self.block);
                }
                taken
            }
            Place::Padding(then) => {
                let padding = usize::from(bytes[0]);
                self.place = match then.block.checked_sub(padding) {
                    None => Place::Lost,
                    Some(left) => {
                        let fragment = Fragment {
                            block: left,
                            padding,
                            ..*then
                        };
                        after_padding(fragment, &mut self.block)
                    }
                };
                1
            }
            Place::Block(fragment) => {
                let known = self.block.take(&mut bytes[0]);
                fragment.block -= 1;
                let fragment = *fragment;
                if !known {
                    self.place = Place::Lost;
                } else if fragment.block == 0 {
                    self.place = enter(fragment, &mut self.block);
                }
                1
            }
        }
    }
}

fn after_head(head: &[u8; HEAD], block: &mut Block) -> Place {
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    let (kind, flags) = (head[3], head[4]);
    if kind != HEADERS && kind != CONTINUATION {
        let nothing = Fragment {
            block: 0,
            padding: 0,
            priority: false,
            ends: false,
        };
        return match length {
            0 => NEXT,
            length => Place::Skip(length, nothing),
        };
    }
    let fragment = Fragment {
        block: length,
        padding: 0,
        priority: kind == HEADERS && flags & PRIORITY != 0,
        ends: flags & END_HEADERS != 0,
    };
    if kind == HEADERS && flags & PADDED != 0 {
        return match length.checked_sub(1) {
            None => Place::Lost,
            Some(block) => Place::Padding(Fragment { block, ..fragment }),
        };
    }
    after_padding(fragment, block)
}

fn after_padding(fragment: Fragment, block: &mut Block) -> Place {
    if !fragment.priority {
        return enter(fragment, block);
    }
    match fragment.block.checked_sub(5) {
        None => Place::Lost,
        Some(block) => Place::Skip(
            5,
            Fragment {
                block,
                priority: false,
                ..fragment
            },
        ),
    }
}

/// The place of what is left of a frame.
fn enter(fragment: Fragment, block: &mut Block) -> Place {
    if fragment.block > 0 {
        return Place::Block(fragment);
    }
    if fragment.ends {
        *block = Block::Field;
    }
    match fragment.padding {
        0 => NEXT,
        padding => Place::Skip(
            padding,
            Fragment {
                padding: 0,
                ..fragment
            },
        ),
    }
}

impl Block {
    /// Takes one byte; false where it makes no sense.
    fn take(&mut self, byte: &mut u8) -> bool {
        let next = match self {
            Self::Field => match *byte {
                b if b & 0x80 != 0 => prefixed(b, 7, Then::Field),
                b if b & 0x40 != 0 => prefixed(b, 6, Then::Indexed),
                b if b & 0x20 != 0 => prefixed(b, 5, Then::Field),
                b => prefixed(b, 4, Then::Indexed),
            },
            Self::Integer(so_far, shift, then) => {
                if *shift > 28 {
                    return false;
                }
                let value = *so_far + (u64::from(*byte & 0x7f) << *shift);
                match *byte & 0x80 {
                    0 => then.with(value),
                    _ => Self::Integer(value, *shift + 7, *then),
                }
            }
            Self::NameLength => {
                let plain = *byte & 0x80 == 0;
                prefixed(*byte, 7, Then::Name { plain })
            }
            Self::Name { left, seen, same } => {
                let same = *same && NAME.get(*seen) == Some(&*byte);
                match *left - 1 {
                    0 => Self::ValueLength {
                        authority: same && *seen + 1 == NAME.len(),
                    },
                    left => Self::Name {
                        left,
                        seen: *seen + 1,
                        same,
                    },
                }
            }
            Self::ValueLength { authority } => {
                // One that is coded by Huffman stays as it is: none of those clients does that.
                let authority = *authority && *byte & 0x80 == 0;
                prefixed(*byte, 7, Then::Value { authority })
            }
            Self::Value { left, authority } => {
                if *authority && matches!(*byte, b'%' | b'/') {
                    *byte = b'.';
                }
                match *left - 1 {
                    0 => Self::Field,
                    left => Self::Value {
                        left,
                        authority: *authority,
                    },
                }
            }
        };
        *self = next;
        true
    }
}

/// An integer that begins in the low bits of a byte (RFC 7541, section 5.1).
fn prefixed(byte: u8, bits: u32, then: Then) -> Block {
    let most = (1_u64 << bits) - 1;
    match u64::from(byte) & most {
        value if value == most => Block::Integer(most, 0, then),
        value => then.with(value),
    }
}

impl Then {
    fn with(self, value: u64) -> Block {
        match (self, value) {
            (Self::Field, _) => Block::Field,
            (Self::Indexed, 0) => Block::NameLength,
            (Self::Indexed, index) => Block::ValueLength {
                authority: index == INDEX,
            },
            (Self::Name { .. }, 0) => Block::ValueLength { authority: false },
            (Self::Name { plain }, left) => Block::Name {
                left,
                seen: 0,
                same: plain,
            },
            (Self::Value { .. }, 0) => Block::Field,
            (Self::Value { authority }, left) => Block::Value { left, authority },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What comes out when it arrives in pieces of these sizes.
    fn passed(bytes: &[u8], sizes: &[usize]) -> Vec<u8> {
        let (mut filter, mut bytes, mut at) = (PathAuthority::default(), bytes.to_vec(), 0);
        let mut sizes = sizes.iter().cycle();
        while at < bytes.len() {
            let end = bytes
                .len()
                .min(at + sizes.next().map_or(1, |size| (*size).max(1)));
            filter.pass(&mut bytes[at..end]);
            at = end;
        }
        bytes
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn text(length_bits: u8, text: &str) -> Vec<u8> {
        let length = u8::try_from(text.len()).unwrap() | length_bits;
        [&[length], text.as_bytes()].concat()
    }

    /// A request as the C core makes it: `:method` indexed, `:path` and `:authority` literal, one with a name of its own.
    fn block(authority_by_name: bool, authority: &str) -> Vec<u8> {
        let path = [vec![0x44], text(0, "/SpiffeWorkloadAPI/Fetch%2F")].concat();
        let name = match authority_by_name {
            true => [vec![0x40], text(0, ":authority")].concat(),
            false => vec![0x41],
        };
        let other = [vec![0x40], text(0, "x-path"), text(0, "a/b%2F")].concat();
        [vec![0x83], path, name, text(0, authority), other].concat()
    }

    fn connection(frames: &[Vec<u8>]) -> Vec<u8> {
        [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(),
            &frames.concat(),
        ]
        .concat()
    }

    #[test]
    fn the_path_of_a_socket_becomes_a_name_in_every_form_that_a_client_may_choose() {
        let settings = frame(4, 0, b"/%/%/%");
        let data = frame(0, 1, b"/data%2F");
        let forms = |authority: &str| -> Vec<Vec<u8>> {
            let mut all = Vec::new();
            for by_name in [false, true] {
                let block = block(by_name, authority);
                let padded = [&[3], &[0, 0, 0, 0, 9][..], &block, b"%/%"].concat();
                let (first, second) = block.split_at(33);
                all.push(connection(&[
                    settings.clone(),
                    frame(1, 4, &block),
                    data.clone(),
                ]));
                all.push(connection(&[frame(1, 4 | 8 | 0x20, &padded), data.clone()]));
                all.push(connection(&[
                    settings.clone(),
                    frame(1, 0, first),
                    frame(9, 4, second),
                    data.clone(),
                    frame(1, 4, &block),
                ]));
            }
            all
        };
        for authority in ["run%2Ffinial%2Fapi.sock", "/run/finial/api.sock"] {
            let named = authority.replace(['%', '/'], ".");
            for (sent, wanted) in forms(authority).into_iter().zip(forms(&named)) {
                for sizes in [&[usize::MAX / 2][..], &[1], &[3, 1, 7]] {
                    assert_eq!(passed(&sent, sizes), wanted);
                }
            }
        }
    }

    #[test]
    fn what_is_no_path_stays_as_it_is() {
        let usual = connection(&[
            frame(1, 4, &block(false, "localhost:443")),
            frame(0, 1, b"%/"),
        ]);
        assert_eq!(passed(&usual, &[5]), usual);
        let huffman = [vec![0x41], text(0x80, "%/%/")].concat();
        let coded = connection(&[frame(1, 4, &huffman)]);
        assert_eq!(passed(&coded, &[2]), coded);
        let endless = [vec![0x41], vec![0xff; 40], b"/%/%".to_vec()].concat();
        let lost = connection(&[frame(1, 4, &endless), frame(1, 4, &block(false, "a/b"))]);
        assert_eq!(passed(&lost, &[4]), lost);
    }

    proptest! {
        #[test]
        fn whatever_arrives_keeps_its_length_and_what_changes_was_a_slash_or_a_percent_sign(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..400),
            with_preface: bool,
            sizes in proptest::collection::vec(1_usize..40, 1..5),
        ) {
            if with_preface {
                bytes = connection(&[frame(1, 4, &bytes), bytes.clone()]);
            }
            let out = passed(&bytes, &sizes);
            prop_assert_eq!(&out, &passed(&bytes, &[1]), "the pieces do not matter");
            for (before, after) in bytes.iter().zip(&out) {
                prop_assert!(before == after || (matches!(before, b'%' | b'/') && *after == b'.'));
            }
        }
    }
}
