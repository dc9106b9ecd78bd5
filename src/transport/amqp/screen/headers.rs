//! The headers in a message's properties, as bytes.
//!
//! What is let by has been read to its end here, so a value that only one of the two could read, this or the client
//! library, hides no nesting: what cannot be read here is left out as well.

use std::ops::Range;

use crate::message::header;

/// Bytes of a frame of properties that the client library takes, as it agrees on frames of 128 KiB at most: it ends the
/// connection over a larger one. A producer's may be that large already, and the broker adds a header (`x-delivery-count`)
/// to a message that comes again.
pub(super) const MOST: usize = 128 * 1024 - 8;

/// Levels of lists and tables in a header that are let by. The deepest of the broker's own, `x-death`, has three.
const DEEPEST: usize = 32;

/// Bytes before the flags of the properties: class, weight, size of the body.
const BEFORE_FLAGS: usize = 12;
/// Properties that stand before the headers, both short strings.
const CONTENT_TYPE: u16 = 1 << 15;
const CONTENT_ENCODING: u16 = 1 << 14;
const HEADERS: u16 = 1 << 13;

/// The payload of a frame of properties (AMQP 0-9-1, section 4.2.6.1) without the headers that nobody should read, and
/// with one that says so; `None` if it can stay as it is. Where there is no room for all, the largest are left out.
pub(super) fn screen(payload: &[u8]) -> Option<Vec<u8>> {
    let table = table(payload)?;
    let mut kept: Vec<&[u8]> = Vec::new();
    let mut rest = &payload[table.clone()];
    let mut all = true;
    while !rest.is_empty() {
        let Some((header, later)) = Value::split_named(rest) else {
            all = false; // nobody can tell where the next one begins
            break;
        };
        if header.is_readable(DEEPEST) {
            kept.push(&rest[..rest.len() - later.len()]);
        } else {
            all = false;
        }
        rest = later;
    }
    if all && payload.len() <= MOST {
        return None;
    }
    let name = header::DROPPED.as_bytes();
    let dropped = [&[u8::try_from(name.len()).unwrap_or_default()], name, b"t\x01"].concat();
    kept.push(&dropped);
    let mut total = payload.len() - table.len() + kept.iter().map(|header| header.len()).sum::<usize>();
    while total > MOST {
        let (largest, header) = kept.iter().enumerate().max_by_key(|(_, header)| header.len())?;
        total -= header.len();
        kept.remove(largest);
    }
    let (before, after) = (&payload[..table.start - LENGTH], &payload[table.end..]);
    let kept = kept.concat();
    Some([before, &size(kept.len()), &kept, after].concat())
}

/// Where the headers are. `None` if there are none, or not all of them: the client library gets as far.
fn table(payload: &[u8]) -> Option<Range<usize>> {
    let (flags, mut rest) = payload.get(BEFORE_FLAGS..)?.split_first_chunk()?;
    let flags = u16::from_be_bytes(*flags);
    for text in [CONTENT_TYPE, CONTENT_ENCODING] {
        if flags & text != 0 {
            rest = split_short(rest)?.1;
        }
    }
    if flags & HEADERS == 0 {
        return None;
    }
    let (table, after) = split_long(rest)?;
    let end = payload.len() - after.len();
    Some(end - table.len()..end)
}

/// Bytes of the length of a long string, a list or a table.
const LENGTH: usize = 4;

/// Such a length.
pub(super) fn size(bytes: usize) -> [u8; LENGTH] {
    // What is screened has at most MOST bytes.
    u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes()
}

fn split_short(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

fn split_long(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize)
}

/// A value of a table or a list.
struct Value<'a> {
    /// Of one in a table.
    name: &'a [u8],
    kind: u8,
    content: &'a [u8],
}

impl<'a> Value<'a> {
    /// Takes the first value of a table, by its name, and gives the rest.
    fn split_named(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (name, rest) = split_short(bytes)?;
        let (value, rest) = Self::split(rest)?;
        Some((Self { name, ..value }, rest))
    }

    /// Takes the first value of a list, and gives the rest.
    fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (kind, rest) = bytes.split_first()?;
        let (content, rest) = match kind {
            b'V' => rest.split_at_checked(0),
            b't' | b'b' | b'B' => rest.split_at_checked(1),
            b's' | b'U' | b'u' => rest.split_at_checked(2),
            b'I' | b'i' | b'f' => rest.split_at_checked(4),
            b'D' => rest.split_at_checked(5),
            b'l' | b'L' | b'd' | b'T' => rest.split_at_checked(8),
            b'S' | b'x' | b'A' | b'F' => split_long(rest),
            _ => None,
        }?;
        let (name, kind) = (&[][..], *kind);
        Some((Self { name, kind, content }, rest))
    }

    /// Whether all of it is well-formed and at most so many levels deep.
    fn is_readable(&self, levels: usize) -> bool {
        let split = match self.kind {
            b'F' => Self::split_named,
            b'A' => Self::split,
            _ => return self.has_name(),
        };
        let Some(levels) = levels.checked_sub(1) else {
            return false;
        };
        let mut rest = self.content;
        while !rest.is_empty() {
            match split(rest) {
                Some((value, later)) if value.is_readable(levels) => rest = later,
                _ => return false,
            }
        }
        self.has_name()
    }

    fn has_name(&self) -> bool {
        str::from_utf8(self.name).is_ok()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use lapin::types::FieldTable;
    use lapin::types::parsing::parse_field_table;

    use super::*;

    fn long(kind: u8, content: &[u8]) -> Vec<u8> {
        [&[kind], &size(content.len())[..], content].concat()
    }

    fn named(name: &[u8], value: &[u8]) -> Vec<u8> {
        [&[u8::try_from(name.len()).unwrap()], name, value].concat()
    }

    /// A header that is lists and tables in turn, so many levels.
    pub(in super::super) fn nested(name: &str, levels: usize) -> Vec<u8> {
        let mut value = b"t\x01".to_vec();
        for level in 0..levels {
            value = match level % 2 {
                0 => long(b'A', &value),
                _ => long(b'F', &named(b"n", &value)),
            };
        }
        named(name.as_bytes(), &value)
    }

    /// The payload of a frame of properties: a content type, these headers, a delivery mode.
    pub(in super::super) fn properties(headers: &[Vec<u8>]) -> Vec<u8> {
        let table = headers.concat();
        let flags = CONTENT_TYPE | HEADERS | 1 << 12;
        let before = [b"\0\x3c\0\0\0\0\0\0\0\0\0\x09", &flags.to_be_bytes()[..], b"\x04text"].concat();
        [&before[..], &size(table.len()), &table, b"\x02"].concat()
    }

    fn told() -> Vec<u8> {
        named(header::DROPPED.as_bytes(), b"t\x01")
    }

    #[test]
    fn headers_that_are_nested_too_deep_are_left_out_alone() {
        let text = named(b"text", &long(b'S', b"\xff\xfe"));
        for deep in [DEEPEST + 1, 2000, 10_000] {
            let came = properties(&[nested("a", 1), nested("deep", deep), text.clone()]);
            let wanted = properties(&[nested("a", 1), text.clone(), told()]);
            assert_eq!(screen(&came), Some(wanted), "{deep} levels");
        }
    }

    #[test]
    fn all_that_a_broker_knows_stays_as_it_is() {
        let list = [
            &b"V"[..],
            b"t\x01",
            b"b\xff",
            b"B\xff",
            b"s\0\x01",
            b"U\0\x01",
            b"u\0\x01",
            b"I\0\0\0\x01",
            b"i\0\0\0\x01",
            b"f\0\0\0\x01",
            b"D\x01\0\0\0\x01",
            b"l\0\0\0\0\0\0\0\x01",
            b"L\0\0\0\0\0\0\0\x01",
            b"d\0\0\0\0\0\0\0\x01",
            b"T\0\0\0\0\0\0\0\x01",
            &long(b'S', b"long"),
            &long(b'x', b"bytes"),
            &long(b'A', b""),
            &long(b'F', b""),
        ]
        .concat();
        let list = named(b"all", &long(b'A', &list));
        let read: Result<(&[u8], FieldTable), _> =
            parse_field_table(&[&size(list.len())[..], &list].concat()[..]).map(|(_, table)| (&b""[..], table));
        assert_eq!(
            read.map(|(_, table)| table.inner().len()),
            Ok(1),
            "the client library reads it"
        );
        for headers in [
            vec![],
            vec![list],
            vec![nested("deepest", DEEPEST)],
            vec![named(b"", b"V")],
        ] {
            assert_eq!(screen(&properties(&headers)), None, "{headers:?}");
        }
        assert_eq!(
            screen(b"\0\x3c\0\0\0\0\0\0\0\0\0\x09\0\0"),
            None,
            "no properties at all"
        );
    }

    #[test]
    fn what_cannot_be_read_is_left_out() {
        let good = named(b"good", b"t\x01");
        // The end of each is known, so the next one is read.
        for bad in [
            named(b"\xff", b"t\x01"),
            named(b"list", &long(b'A', b"t\x01?")),
            named(b"list", &long(b'A', &long(b'A', b"S\0\0\0\x09"))),
            named(b"table", &long(b'F', b"\x09name")),
            named(b"table", &long(b'F', &named(b"\xff", b"V"))),
        ] {
            let wanted = properties(&[good.clone(), told()]);
            assert_eq!(
                screen(&properties(&[bad.clone(), good.clone()])),
                Some(wanted),
                "{bad:?}"
            );
        }
        for bad in [
            named(b"unknown", b"?"),
            named(b"cut", b"S\0\0\0\xff"),
            b"\x09cut".to_vec(),
        ] {
            let wanted = properties(&[good.clone(), told()]);
            assert_eq!(
                screen(&properties(&[good.clone(), bad.clone()])),
                Some(wanted),
                "{bad:?}"
            );
        }
    }

    /// A frame that is too large ends the connection, each time the message comes.
    #[test]
    fn a_frame_never_outgrows_what_the_client_takes() {
        let count = named(b"x-delivery-count", &[b"l", &1_u64.to_be_bytes()[..]].concat());
        let filling = |bytes| named(b"large", &long(b'S', &vec![b'x'; bytes]));
        let rest = properties(&[filling(0), named(b"\xff", b"V"), count.clone()]).len();
        for size in MOST - 60..MOST + 60 {
            for bad in [named(b"\xff", b"V"), named(b"ok", b"V")] {
                let came = properties(&[filling(size - rest), bad, count.clone()]);
                let screened = screen(&came).unwrap_or(came);
                assert!(screened.len() <= MOST, "{size} became {}", screened.len());
                let table = table(&screened).expect("it has headers");
                let found = screened[table].windows(count.len()).any(|window| window == count);
                assert!(found, "of {size}, the broker's own header is gone");
            }
        }
    }

    #[test]
    fn properties_that_are_cut_short_stay_as_they_are() {
        let whole = properties(&[nested("deep", 2000)]);
        for end in 0..whole.len() - 1 {
            assert_eq!(screen(&whole[..end]), None, "cut at {end}");
        }
    }

    #[test]
    fn what_is_let_by_can_be_read() {
        let came = properties(&[nested("deepest", DEEPEST), nested("deep", 2000)]);
        let screened = screen(&came).expect("one is too deep");
        let table = table(&screened).expect("it has headers");
        let (_, table) = parse_field_table(&screened[table.start - LENGTH..table.end]).expect("it is a table");
        let names: Vec<&str> = table.inner().keys().map(|name| name.as_str()).collect();
        assert_eq!(names, ["deepest", header::DROPPED]);
    }
}
