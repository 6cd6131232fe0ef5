//! Streams of bytes, right and wrong: whatever comes, in whatever pieces, is taken for the same,
//! and nothing panics. `tests/corpus/h1` holds streams that parsers of others have misread; each
//! is replayed, and mutated at random.

use std::fs;
use std::path::Path;

use bytes::BytesMut;
use http::{HeaderValue, Method};
use proptest::prelude::*;

use super::chunked::{Decoded, Decoder};
use super::request::{self, Limits};
use super::response;

const LIMITS: Limits = Limits {
    max_bytes: 60 << 10,
    max_fields: 100,
    accept_http_10: true,
    default_host: Some(HeaderValue::from_static("default")),
};

fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/h1");
    let mut entries: Vec<_> = fs::read_dir(&folder)
        .expect("the corpus is part of the sources")
        .map(|entry| {
            let path = entry.expect("a file").path();
            let name = path.file_name().unwrap_or_default();
            let bytes = fs::read(&path).expect("a file");
            (name.to_string_lossy().into_owned(), bytes)
        })
        .collect();
    entries.sort();
    entries
}

/// What a client's stream is taken for when it comes in pieces of that size.
fn requests(stream: &[u8], piece: usize) -> Vec<String> {
    let mut seen = Vec::new();
    let mut buffer = BytesMut::new();
    let mut pieces = stream.chunks(piece);
    let mut scanned = 0;
    loop {
        let head = match request::parse(&mut buffer, &mut scanned, &LIMITS) {
            Ok(Some(head)) => head,
            Ok(None) => match pieces.next() {
                Some(piece) => {
                    buffer.extend_from_slice(piece);
                    continue;
                }
                None => return seen,
            },
            Err(_) => {
                seen.push("refused".into());
                return seen;
            }
        };
        seen.push(format!("{head:?}"));
        let mut decoder = Decoder::from(head.framing);
        let mut body = Vec::new();
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Decoded::Data(data)) => body.extend_from_slice(&data),
                Ok(Decoded::End | Decoded::Trailers(_)) => break,
                Ok(Decoded::More) => match pieces.next() {
                    Some(piece) => buffer.extend_from_slice(piece),
                    None => {
                        seen.push(format!("{body:?} and more"));
                        return seen;
                    }
                },
                Err(_) => {
                    seen.push("a broken body".into());
                    return seen;
                }
            }
        }
        seen.push(format!("{body:?}"));
    }
}

/// As [`requests`], of an upstream's answer.
fn answer(stream: &[u8], piece: usize) -> String {
    let mut buffer = BytesMut::new();
    let mut scanned = 0;
    for piece in stream.chunks(piece) {
        buffer.extend_from_slice(piece);
        match response::parse(&mut buffer, &mut scanned, &Method::GET) {
            Ok(Some(head)) => return format!("{head:?}"),
            Ok(None) => {}
            Err(_) => return "refused".into(),
        }
    }
    "more".into()
}

#[test]
fn every_stream_is_taken_for_the_same_in_whatever_pieces() {
    let corpus = corpus();
    assert!(corpus.len() > 20);
    for (name, stream) in corpus {
        let whole = requests(&stream, usize::MAX);
        for piece in [1, 2, 3, 7, 64] {
            assert_eq!(requests(&stream, piece), whole, "{name} in {piece}s");
        }
    }
}

/// A change to a stream.
#[derive(Debug, Clone)]
enum Edit {
    Replace(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let telling = prop::sample::select(b"\r\n :,;\t\0/#%chunkedHTTP/1.1\xff0".to_vec());
    let index = any::<prop::sample::Index>;
    prop_oneof![
        (index(), telling.clone()).prop_map(|(at, byte)| Edit::Replace(at, byte)),
        (index(), prop::collection::vec(telling, 1..4))
            .prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (index(), 1..8_usize).prop_map(|(at, count)| Edit::Remove(at, count)),
        (index(), 1..40_usize).prop_map(|(at, count)| Edit::Repeat(at, count)),
    ]
}

fn edited(mut stream: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for edit in edits {
        if stream.is_empty() {
            break;
        }
        let length = stream.len();
        match edit {
            Edit::Replace(at, byte) => stream[at.index(length)] = *byte,
            Edit::Insert(at, bytes) => {
                let at = at.index(length);
                stream.splice(at..at, bytes.iter().copied());
            }
            Edit::Remove(at, count) => {
                let at = at.index(length);
                stream.drain(at..length.min(at + count));
            }
            Edit::Repeat(at, count) => {
                let at = at.index(length);
                let again = stream[at..length.min(at + count)].to_vec();
                stream.splice(at..at, again);
            }
        }
    }
    stream
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn mutated_streams_are_taken_for_the_same_in_whatever_pieces(
        (stream, edits, piece) in (
            prop::sample::select(corpus()).prop_map(|(_, stream)| stream),
            prop::collection::vec(edit(), 1..6),
            1..40_usize,
        )
    ) {
        let mut stream = edited(stream, &edits);
        stream.truncate(4096);
        prop_assert_eq!(requests(&stream, piece), requests(&stream, usize::MAX));
        prop_assert_eq!(answer(&stream, piece), answer(&stream, usize::MAX));
        let reply = [b"HTTP/1.1 200 OK\r\n", &stream[..]].concat();
        prop_assert_eq!(answer(&reply, piece), answer(&reply, usize::MAX));
    }
}
