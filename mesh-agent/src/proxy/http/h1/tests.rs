//! The codec on bytes alone.

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, StatusCode, Version};
use proptest::prelude::*;

use crate::proxy::http::reply::Refusal;

use super::chunked::{Decoded, Decoder};
use super::fields::{Framing, Malformed};
use super::request::{self, Head, Limits};
use super::response;
use super::write::Out;

const LIMITS: Limits = Limits {
    max_bytes: 60 << 10,
    max_fields: 100,
    accept_http_10: true,
    default_host: Some(HeaderValue::from_static("default")),
};

fn parse(text: &[u8]) -> Result<Option<Head>, Refusal> {
    request::parse(&mut BytesMut::from(text), &mut 0, &LIMITS)
}

#[test]
fn a_request_is_read_and_what_is_behind_it_stays() {
    let mut buffer = BytesMut::from(
        &b"\r\nPOST /a?b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nX:  y \t\r\n\r\nabcGET"[..],
    );
    let head = request::parse(&mut buffer, &mut 0, &LIMITS)
        .unwrap()
        .unwrap();
    assert_eq!(head.request.method, Method::POST);
    assert_eq!(head.request.path.as_str(), "/a?b");
    assert_eq!(head.request.authority, "h");
    assert_eq!(head.request.headers["x"], "y");
    assert_eq!(head.framing, Framing::Length(3));
    assert!(head.keep_alive && !head.request.headers.contains_key("host"));
    assert_eq!(&buffer[..], b"abcGET");
}

#[test]
fn targets_of_every_form() {
    let of = |target: &str| {
        let text = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
        parse(text.as_bytes()).map(|head| {
            let request = head.unwrap().request;
            (
                request.authority.to_str().unwrap().to_owned(),
                request.path.as_str().to_owned(),
            )
        })
    };
    let is = |authority: &str, path: &str| Ok((authority.to_owned(), path.to_owned()));
    assert_eq!(of("/a"), is("h", "/a"));
    assert_eq!(of("http://other/x?y"), is("other", "/x?y"));
    assert_eq!(of("HTTP://other"), is("other", "/"));
    assert_eq!(of("http://other?y"), is("other", "/?y"));
    assert_eq!(of("*"), Err(Refusal::MALFORMED));
    assert_eq!(of("x"), Err(Refusal::MALFORMED));
    assert_eq!(of("http://"), Err(Refusal::MALFORMED));
    assert_eq!(of("/a#b"), Err(Refusal::request(StatusCode::BAD_REQUEST)));
    assert_eq!(of("/\u{e4}"), Err(Refusal::MALFORMED));
}

#[test]
fn http_10_closes_unless_told_otherwise_and_has_a_default_host() {
    let head = parse(b"GET / HTTP/1.0\r\n\r\n").unwrap().unwrap();
    assert_eq!(head.request.version, Version::HTTP_10);
    assert_eq!(head.request.authority, "default");
    assert!(!head.keep_alive);
    let head = parse(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n");
    assert!(head.unwrap().unwrap().keep_alive);
}

#[test]
fn limits_hold_before_the_head_is_complete() {
    let long = [b"GET / HTTP/1.1\r\nX: ", &[b'a'; 70_000][..]].concat();
    assert_eq!(parse(&long).unwrap_err(), Malformed::TooLarge.into());
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(101));
    assert_eq!(
        parse(many.as_bytes()).unwrap_err(),
        Malformed::TooLarge.into()
    );
}

#[test]
fn responses_tell_how_long_their_body_is() {
    let of = |text: &str, method: Method| {
        let head = response::parse(&mut BytesMut::from(text), &mut 0, &method);
        head.unwrap()
            .map(|head| (head.status.as_u16(), head.framing, head.keep_alive))
    };
    let get = Method::GET;
    assert_eq!(
        of("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", get.clone()),
        Some((200, Framing::Length(5), true))
    );
    assert_eq!(
        of("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", Method::HEAD),
        Some((200, Framing::None, true))
    );
    assert_eq!(
        of("HTTP/1.1 204\r\nConnection: close\r\n\r\n", get.clone()),
        Some((204, Framing::None, false))
    );
    assert_eq!(
        of("HTTP/1.0 200 OK\r\n\r\n", get.clone()),
        Some((200, Framing::Close, false))
    );
    assert_eq!(of("HTTP/1.1 200 OK\r\nContent-Le", get), None);
}

fn decode_all(decoder: &mut Decoder, pieces: &[&[u8]]) -> Result<(Vec<u8>, Vec<u8>), Malformed> {
    let mut buffer = BytesMut::new();
    let mut body = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer)? {
                Decoded::Data(data) => body.extend_from_slice(&data),
                Decoded::More => break,
                Decoded::Trailers(_) => {}
                Decoded::End => {
                    break;
                }
            }
        }
    }
    Ok((body, buffer.to_vec()))
}

#[test]
fn malformed_chunks_are_refused() {
    for wrong in [
        "zz\r\n",
        "-3\r\n",
        "0x3\r\n",
        " 3\r\n",
        "\r\n",
        "3\nabc",
        "3 x\r\n",
        "fffffffffffffffff\r\n",
        "3\r\nabcd\r\n",
        "3\r\nabc\n0\r\n",
        "0\r\nno colon\r\n\r\n",
        "0\r\n: x\r\n\r\n",
    ] {
        let result = decode_all(&mut Decoder::Size, &[wrong.as_bytes()]);
        assert_eq!(result, Err(Malformed::Syntax), "{wrong:?}");
    }
    let trailers = format!("0\r\n{}", "a: b\r\n".repeat(4_000));
    let result = decode_all(&mut Decoder::Size, &[trailers.as_bytes()]);
    assert_eq!(result, Err(Malformed::TooLarge));
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&bytes);
        let _ = parse(&[b"GET / HTTP/1.1\r\n", &bytes[..], b"\r\n\r\n"].concat());
        let _ = response::parse(&mut BytesMut::from(&bytes[..]), &mut 0, &Method::GET);
        let _ = decode_all(&mut Decoder::Size, &[&bytes]);
    }

    #[test]
    fn a_head_reads_the_same_in_two_pieces(cut in 0_usize..70) {
        let text = b"GET /path HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n0";
        let (mut buffer, mut scanned) = (BytesMut::new(), 0);
        buffer.extend_from_slice(&text[..cut.min(text.len())]);
        let first = request::parse(&mut buffer, &mut scanned, &LIMITS).unwrap();
        let head = match first {
            Some(head) => head,
            None => {
                buffer.extend_from_slice(&text[cut..]);
                request::parse(&mut buffer, &mut scanned, &LIMITS).unwrap().unwrap()
            }
        };
        prop_assert_eq!(head.framing, Framing::Chunked);
        prop_assert_eq!(head.request.headers.len(), 2);
    }

    #[test]
    fn chunks_written_are_chunks_read(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..5_000), 0..6),
        cut in 1_usize..4_000,
    ) {
        let mut out = Out::default();
        for piece in &pieces {
            out.chunk(Bytes::copy_from_slice(piece));
        }
        out.last_chunk();
        let mut written = Vec::new();
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        prop_assert!(out.poll_write(&mut written, &mut cx).is_ready() && out.is_empty());
        written.extend_from_slice(b"next");
        let mut decoder = Decoder::Size;
        let split: Vec<&[u8]> = written.chunks(cut).collect();
        let (body, rest) = decode_all(&mut decoder, &split).unwrap();
        prop_assert_eq!(body, pieces.concat());
        prop_assert!(decoder.is_done());
        prop_assert_eq!(rest, b"next".to_vec());
    }
}
